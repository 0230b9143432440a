"""Measure the tables of the pages again: run their commands, keep what they print as JSON.

    python benchmarks/measure.py table textbook --set PAIRS=pairs_wbm_dev.jsonl.gz

Each result in ``benchmarks/results/`` holds its command. Words in capitals, such as PAIRS
but not the names of optimizers, are files and folders of yours: give them with ``--set``.
The command runs in the folder above this one, and the tables in what it prints are parsed.
Date, machine, versions, commit, hash of the weights and hashes of the files are written
beside them. At the end all pages are rendered. ``--from FILE`` takes the output of one
command that ran elsewhere, ``--machine`` and ``--commit`` say where and of which commit.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import render

from ase_deeprelax import available_models

PLACEHOLDER = re.compile(r'(?<!--optimizer )\b[A-Z][A-Z_]{2,}\b')
RULE = re.compile(r'\|(\s*:?-+:?\s*\|)+')


def parse(printed, omit=()):
    r"""The parts of what a command printed: paragraphs, and tables with their rows.

    Tables are those of markdown, or lines whose cells are two spaces apart.

    >>> parse('two structures\n\n| model | error |\n|---|--:|\n| mine | 0.1 |')[1]
    {'columns': ['model', 'error'], 'rows': [['mine', '0.1']]}
    """
    parts = []
    for paragraph in re.split(r'\n\s*\n', printed.strip('\n')):
        lines = [line.rstrip() for line in paragraph.splitlines()]
        caption, table = _table(lines)
        if caption:
            parts.append({'text': caption})
        if table is not None:
            kept = [k for k, title in enumerate(table[0]) if title not in omit]
            rows = [[row[k] for k in kept] for row in table]
            parts.append({'columns': rows[0], 'rows': rows[1:]})
    return parts


def _table(lines):
    """Text before a table, and its rows of cells; all is text where there is no table."""
    for k in range(len(lines)):
        if lines[k].startswith('|'):
            rows = [_cells(line) for line in lines[k:] if not RULE.fullmatch(line.strip())]
        else:
            rows = [re.split(r'\s{2,}', line.strip()) for line in lines[k:]]
        if len(rows) > 1 and len(rows[0]) > 1 and len({len(row) for row in rows}) == 1:
            return ' '.join(lines[:k]), rows
    return ' '.join(line.strip() for line in lines), None


def _cells(line):
    return [cell.strip() for cell in line.strip().strip('|').split('|')]


def filled(command, values):
    """The command with the files that stand for its words in capitals.

    >>> filled('savings.py PAIRS --optimizer FIRE', {'PAIRS': 'my pairs.jsonl'})
    "savings.py 'my pairs.jsonl' --optimizer FIRE"
    """
    missing = set(PLACEHOLDER.findall(command)) - values.keys()
    if missing:
        raise SystemExit(
            f'{command}\nneeds --set {" --set ".join(f"{m}=..." for m in sorted(missing))}'
        )
    return PLACEHOLDER.sub(lambda word: shlex.quote(values[word[0]]), command)


def data_files(command, values):
    """Name and hash of the files that a command reads."""
    files = [Path(values[word]) for word in PLACEHOLDER.findall(command)]
    return [
        {'name': file.name, 'sha256': hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in dict.fromkeys(files)
        if file.is_file()
    ]


def machine():
    """Processor, cores that this process may use, and threads, if they are set."""
    facts = Path('/proc/cpuinfo')  # Linux names the processor only there
    lines = facts.read_text().splitlines() if facts.exists() else []
    names = [line.partition(':')[2].strip() for line in lines if line[:10] == 'model name']
    here = os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else ()
    shown = [
        names[0] if names else platform.processor(),
        f'cores: {len(here) or os.cpu_count()}',
    ]
    if threads := os.environ.get('OMP_NUM_THREADS'):
        shown.append(f'threads: {threads}')
    return ', '.join(shown)


def versions():
    """Of Python, and of the packages that take the time."""
    packages = ('torch', 'numpy', 'scipy', 'ase', 'spglib', 'vesin')
    return {'python': platform.python_version()} | {
        name: metadata.version(name) for name in packages
    }


def weights():
    """Names of the shipped models with the beginnings of their hashes."""
    return ', '.join(
        f'{name} {card["sha256"][:8]}' for name, card in available_models().items()
    )


def run(command):
    """What the command printed; its progress goes to this terminal."""
    print(command, file=sys.stderr)
    folder = Path(sys.executable).parent
    path = f'{folder}{os.pathsep}{os.environ["PATH"]}'
    # The user's own command, with the files quoted.
    done = subprocess.run(  # noqa: S602
        command,
        shell=True,
        cwd=render.ROOT,
        env=os.environ | {'PATH': path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def commit_here():
    """Short hash of the commit; ``-dirty`` behind it where files were changed since."""
    git = ['git', 'describe', '--always', '--dirty', '--exclude=*']
    done = subprocess.run(  # noqa: S603 - no word of it is given from outside
        git, cwd=render.ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def facts_here():
    """Where, and with which code and weights, a command runs on this machine."""
    return {
        'commit': commit_here(),
        'machine': machine(),
        'versions': versions(),
        'weights': weights(),
    }


def facts_elsewhere(machine, commit):
    """The same of a command that ran elsewhere, as far as it is known here."""
    return {'commit': commit, 'machine': machine, 'weights': 'those of the commit'}


def given(text):
    """Word and absolute path of what ``--set`` takes: commands run in another folder."""
    word, is_given, path = text.partition('=')
    if not is_given or not Path(path).exists():
        raise argparse.ArgumentTypeError(
            f'{text!r} is no WORD=FILE with a file or folder that is there'
        )
    return word, str(Path(path).absolute())


def measure(name, values, facts, source=None):
    """Run the commands of a result and replace what it held."""
    result = render.load(name)
    omit = result.get('omit', ())
    commands = [filled(command, values) for command in result['commands']]
    outputs = [source.read_text()] if source else map(run, commands)
    result = {
        'commands': result['commands'],
        'omit': omit,
        'date': datetime.now(UTC).date().isoformat(),
        **facts,
        'data': data_files(' '.join(result['commands']), values),
        'parts': [part for printed in outputs for part in parse(printed, omit)],
    }
    file = render.RESULTS / f'{name}.json'
    file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + '\n', 'utf-8')


def main():
    """Measure, then render."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = sorted(file.stem for file in render.RESULTS.glob('*.json'))
    parser.add_argument('names', nargs='+', choices=known, metavar='NAME', help=str(known))
    parser.add_argument(
        '--set', action='append', default=[], type=given, metavar='WORD=FILE'
    )
    parser.add_argument('--from', dest='source', type=Path, metavar='FILE')
    parser.add_argument('--machine', help='the processor and cores that --from ran on')
    parser.add_argument('--commit', help='the short hash of the code of --from')
    options = parser.parse_args()
    values = dict(options.set)
    elsewhere = (options.source, options.machine, options.commit)
    if any(elsewhere) and not all(elsewhere):
        parser.error('--from, --machine and --commit are given together or not at all')
    commands = [c for name in options.names for c in render.load(name)['commands']]
    if options.source and len(commands) > 1:
        parser.error(f'--from is the output of one command, not of {len(commands)}')
    for command in commands:
        filled(command, values)  # A word without a file is refused before the work.
    # Before the results change: the commit says whether files were changed since.
    facts = facts_elsewhere(*elsewhere[1:]) if options.source else facts_here()
    for name in options.names:
        measure(name, values, facts, options.source)
    for page in render.PAGES:
        page.write_text(render.rendered(page.read_text('utf-8')), 'utf-8')


if __name__ == '__main__':
    main()
