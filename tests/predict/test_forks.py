"""Worker processes that are forked after a prediction, with several threads in torch."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ase_deeprelax

ROOT = Path(ase_deeprelax.__file__).parents[1]
START = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
import torch
from ase.build import bulk
from ase_deeprelax import relax

def job(a):
    atoms = bulk('NaCl', 'rocksalt', a=a, cubic=True) * (2, 2, 2)
    return round(relax(atoms, device='cpu').volume_ratio, 4)

def threads(_):
    return torch.get_num_threads()

SIZES = [5.6, 5.8]
if __name__ == '__main__':
    torch.set_num_threads(2)
    expected = [job(a) for a in SIZES]
    fork = multiprocessing.get_context('fork')
"""
POOL = """
    with fork.Pool(2) as pool:
        waiting = pool.map_async(job, SIZES)
        assert [job(a) for a in SIZES] == expected  # in the parent at the same time
        assert waiting.get(60) == expected
"""
EXECUTOR = """
    with ProcessPoolExecutor(2, mp_context=fork) as executor:
        assert list(executor.map(job, SIZES, timeout=60)) == expected
        assert set(executor.map(threads, range(4), timeout=60)) == {1}
    assert torch.get_num_threads() == 2
"""
NESTED = """
    def child():
        assert [job(a) for a in SIZES] == expected
        with fork.Pool(1) as pool:
            assert pool.map_async(job, SIZES).get(60) == expected
    process = fork.Process(target=child)
    process.start()
    process.join(90)
    assert process.exitcode == 0
"""


@pytest.mark.skipif(
    'fork' not in multiprocessing.get_all_start_methods(), reason='no fork on this system'
)
@pytest.mark.parametrize('use', [POOL, EXECUTOR, NESTED], ids=['pool', 'futures', 'nested'])
def test_forked_workers_answer(use, tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(START + use)
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '2'}
    subprocess.run([sys.executable, script], env=environment, check=True, timeout=200)
