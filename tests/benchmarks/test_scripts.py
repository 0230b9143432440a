"""The scripts of speed run as they are called, and print tables that can be read back."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from time import sleep

import pytest
from ase.build import bulk

from ase_deeprelax import Predictor
from ase_deeprelax.data.pairs import read_pairs
from ase_deeprelax.errors import ConfigError
from ase_deeprelax.models.paegnn import PaEGNN

ROOT = Path(__file__).parents[2]
PAIRS = 'tests/real/pairs_mp.jsonl.gz'


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')


class Sleeper(PaEGNN):
    """A network that waits without computing."""

    def forward(self, graph, edges=None):
        sleep(0.3)
        return super().forward(graph, edges)


def test_cpu_time_leaves_out_waiting(benchmarks):
    from cpu_time import cpu_timings, medians, timed

    predictor = Predictor(Sleeper(hidden=16, layers=1), device='cpu')
    predictor.relax([bulk('Cu')])
    assert predictor.timings['network'] > 0.3
    with cpu_timings():
        _, seconds = timed(lambda: predictor.relax([bulk('Cu')]))
    assert predictor.timings['network'] < 0.2
    assert sum(predictor.timings.values()) <= seconds
    predictor.relax([bulk('Cu')])
    assert predictor.timings['network'] > 0.3
    calls = []
    median = medians({name: lambda n=name: calls.append(n) for name in 'ab'}, 3)
    assert calls == list('ababab')
    assert set(median) == {'a', 'b'}


PRINTED = '| model | error |\n|---|--:|\n| mine | 0.1 |'


@pytest.fixture
def measured(benchmarks, tmp_path, monkeypatch):
    """A function that runs measure.py, and gives what it wrote about a result."""
    import measure

    monkeypatch.setattr(measure.render, 'RESULTS', tmp_path)
    monkeypatch.setattr(measure.render, 'PAGES', [])
    (tmp_path / 'printed.txt').write_text(PRINTED)
    for name, commands in (('one', ['a.py']), ('two', ['a.py', 'b.py'])):
        (tmp_path / f'{name}.json').write_text(json.dumps({'commands': commands}))

    def measured(name, *words):
        monkeypatch.setattr(sys, 'argv', ['measure.py', name, *words])
        measure.main()
        return json.loads((tmp_path / f'{name}.json').read_text())

    return measured


def test_output_from_elsewhere_says_where_it_is_from(measured, tmp_path):
    source = ['--from', str(tmp_path / 'printed.txt')]
    where = ['--machine', 'EPYC, cores: 64', '--commit', 'abc1234']
    result = measured('one', *source, *where)
    assert (result['machine'], result['commit']) == ('EPYC, cores: 64', 'abc1234')
    assert result['weights'] == 'those of the commit'
    assert 'versions' not in result  # they are not known here
    assert result['parts'] == [{'columns': ['model', 'error'], 'rows': [['mine', '0.1']]}]


def test_output_from_elsewhere_is_that_of_one_command(measured, tmp_path, capsys):
    source = ['--from', str(tmp_path / 'printed.txt')]
    where = ['--machine', 'EPYC, cores: 64', '--commit', 'abc1234']
    for name, words, said in (
        ('one', source, 'given together or not at all'),
        ('one', source + where[:2], 'given together or not at all'),
        ('one', where, 'given together or not at all'),
        ('two', source + where, 'the output of one command, not of 2'),
    ):
        with pytest.raises(SystemExit):
            measured(name, *words)
        assert said in capsys.readouterr().err


def test_files_to_measure_on_are_asked_for_before_the_work(measured, tmp_path, capsys):
    before = (tmp_path / 'one.json').write_text(json.dumps({'commands': ['touch ran']}))
    (tmp_path / 'three.json').write_text(json.dumps({'commands': ['cat PAIRS']}))
    for words, said in (
        (['three', '--set', 'PAIRS'], "'PAIRS' is no WORD=FILE"),
        (['three', '--set', f'PAIRS={tmp_path}/none'], 'with a file or folder that is'),
        (['three', '--set', f'PAIR={tmp_path}'], 'needs --set PAIRS=...'),
    ):
        with pytest.raises(SystemExit) as refused:
            measured('one', *words)
        assert said in f'{refused.value}{capsys.readouterr().err}'
        assert len((tmp_path / 'one.json').read_text()) == before


def test_files_to_measure_on_are_found_from_the_users_folder(
    measured, tmp_path, monkeypatch
):
    """Commands run in the folder of the clone; results hold the hash of the same file."""
    import measure

    monkeypatch.setattr(measure, 'facts_here', dict)  # a copy of the tree has no commit
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine.json').write_text(json.dumps({'commands': ['cat PAIRS']}))
    result = measured('mine', '--set', 'PAIRS=printed.txt')
    assert result['parts'] == [{'columns': ['model', 'error'], 'rows': [['mine', '0.1']]}]
    sha256 = hashlib.sha256(PRINTED.encode()).hexdigest()
    assert result['data'] == [{'name': 'printed.txt', 'sha256': sha256}]


def test_structures_to_time_are_spread_over_the_file(benchmarks, monkeypatch):
    import throughput

    pairs = read_pairs(ROOT / PAIRS)
    monkeypatch.setattr(throughput, 'N', 2 * len(pairs) // 3)
    chosen = throughput.structures(ROOT / PAIRS)
    assert len(chosen) == throughput.N
    assert chosen[-1] == pairs[-2].unrelaxed


def test_other_weights_are_another_potential(benchmarks, tmp_path):
    from iterative import journal_of

    for folder in ('a', 'b'):
        (tmp_path / folder / 'M3GNet-PES').mkdir(parents=True)
    journal_of('m3gnet', tmp_path, tmp_path / 'a').close()
    journal_of('m3gnet', tmp_path, tmp_path / 'a').close()
    with pytest.raises(ConfigError, match=r'was written with potential .*now it is'):
        journal_of('m3gnet', tmp_path, tmp_path / 'b')


@pytest.mark.slow
@pytest.mark.parametrize(
    ('command', 'rows'),
    [
        ('throughput.py --repeats 1 --model deeprelax --workers 2', [3]),
        (f'published_speed.py {PAIRS} --limit 2 --repeats 1', [7, 8]),
        ('scaling.py --sizes 1 2 --kind vacancy', [2]),
        (f'roofline.py {PAIRS} --limit 8 --repeats 1', [8]),
        ('screening.py --structures 40 --compared 8 --model deeprelax', [3, 4]),
        (f'guided_kinds.py --crystals {PAIRS} --limit 2', [4]),
        ('screening_workers.py --structures 16 --repeats 1 --model deeprelax', [2, 9, 5]),
    ],
)
def test_scripts_print_tables(command, rows, benchmarks):
    import measure

    script, *options = command.split()
    done = subprocess.run(
        [sys.executable, f'benchmarks/{script}', *options],
        check=False,
        cwd=ROOT,
        env=os.environ | {'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    tables = [part['rows'] for part in measure.parse(done.stdout) if 'rows' in part]
    assert [len(table) for table in tables] == rows
    assert 'nan' not in done.stdout
