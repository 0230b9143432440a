"""The scripts of speed run as they are called, and print tables that can be read back."""

import os
import subprocess
import sys
from pathlib import Path
from time import sleep

import pytest
from ase.build import bulk

from ase_deeprelax import Predictor
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ('command', 'rows'),
    [
        ('throughput.py --repeats 1 --model deeprelax', [2]),
        (f'published_speed.py {PAIRS} --limit 2 --repeats 1', [7, 8]),
        ('scaling.py --sizes 1 2 --kind vacancy', [2]),
        (f'roofline.py {PAIRS} --limit 8 --repeats 1', [8]),
        ('screening.py --structures 40 --compared 8 --model deeprelax', [3, 4]),
        ('screening_workers.py --structures 16 --repeats 1 --model deeprelax', [2, 9, 7]),
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
