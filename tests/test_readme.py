"""The README: its code runs, its commands exist, its names and its picture are true."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ase_deeprelax import keys
from ase_deeprelax.cli import app
from ase_deeprelax.result import Relaxation

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')


def blocks(language):
    return re.findall(
        rf'^```{language}\n(.*?)^```$', README, flags=re.MULTILINE | re.DOTALL
    )


def commands():
    """The words of each line in a shell block."""
    lines = '\n'.join(blocks('bash')).replace('\\\n', ' ').splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def section(title):
    return README.split(f'# {title}\n')[1].split('\n## ')[0]


def test_code_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for number, block in enumerate(blocks('python')):
        exec(compile(block, f'README block {number}', 'exec'), namespace)
    assert 'prediction' in Path('relax.log').read_text()
    printed = capsys.readouterr().out
    assert 'nan' not in printed
    assert 'False' not in printed


def test_configuration_is_one(tmp_path):
    load_config = pytest.importorskip('ase_deeprelax.train.config').load_config
    (block,) = blocks('yaml')
    file = tmp_path / 'config.yaml'
    file.write_text(block)
    overrides = [
        words[words.index('--set') + 1] for words in commands() if '--set' in words
    ]
    assert overrides
    config = load_config(file, overrides)
    assert config.data.pairs[0].path == tmp_path / 'pairs.jsonl.gz'


def test_commands_exist_with_their_options():
    used = [words for words in commands() if words[0] == 'deeprelax']
    assert {words[1] for words in used} >= {'relax', 'train', 'evaluate', 'doctor'}
    for _, command, *words in used:
        shown = CliRunner().invoke(app, [command, '--help'])
        assert shown.exit_code == 0, shown.output
        for option in (word for word in words if word.startswith('--')):
            assert option in shown.output, f'deeprelax {command} has no {option}'


def test_make_targets_and_extras_exist():
    makefile = (ROOT / 'Makefile').read_text()
    project = (ROOT / 'pyproject.toml').read_text()
    for target in re.findall(r'`?make ([a-z]+)', README):
        assert f'\n{target}:' in makefile
    for extra in re.findall(r'\.\[([a-z]+)\]', README):
        assert f'\n{extra} = ' in project


def test_names_written_into_atoms_are_listed():
    names = {v for k, v in vars(keys).items() if k.isupper() and k != 'PREFIX'}
    rows = [line for line in README.splitlines() if line.startswith('| `deeprelax_')]
    listed = {name for row in rows for name in re.findall(r'`(deeprelax_\w+)`', row)}
    assert listed == names


def test_fields_of_a_relaxation_are_listed():
    fields = set(Relaxation.__dataclass_fields__)
    fields |= {name for name in vars(Relaxation) if not name.startswith('_')}
    rows = section('What a relaxation holds').split('\n\n')[0].splitlines()[2:]
    listed = {name for row in rows for name in re.findall(r'`(\w+)`', row.split('|')[1])}
    assert listed == fields


def test_tables_that_the_numbers_stand_in_are_filled():
    for name in ('table', 'bench'):
        between = README.split(f'<!-- {name}:begin -->')[1].split(f'<!-- {name}:end -->')[0]
        assert re.search(r'\d', between), f'the README lacks its {name}'


def test_names_no_path_of_a_machine():
    assert not re.search(r'(^|[\s`(])/(home|root|tmp|work)/', README)
