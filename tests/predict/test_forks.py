"""Worker processes that are forked after a prediction, with several threads in torch."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
WORKERS = """
    crystals = [bulk('Cu', a=a) for a in (3.5, 3.6, 3.7)]
    expected = [one.volume_ratio for one in relax(crystals, device='cpu', workers=2)]

    def child():
        found = relax(crystals, device='cpu', workers=2)
        assert [one.volume_ratio for one in found] == expected

    process = fork.Process(target=child)
    process.start()
    process.join(120)
    assert process.exitcode == 0
"""
# A process that is forked from one that has used CUDA. Without a GPU, the child
# hears from torch what it would hear then.
AS_TORCH_TELLS = """
    torch.cuda._is_in_bad_fork = lambda: multiprocessing.parent_process() is not None
    torch.cuda.device_count = lambda: 1
"""
CUDA_IN_A_CHILD = """
    from ase_deeprelax import Predictor
    from ase_deeprelax.errors import DeviceError

    def child():
        try:
            Predictor(device='cuda')
        except DeviceError as error:
            assert "multiprocessing.get_context('spawn')" in str(error)
        else:
            raise AssertionError('no error')
        job(5.6)  # on the CPU it works

    process = fork.Process(target=child)
    process.start()
    process.join(90)
    assert process.exitcode == 0
"""
REAL_CUDA = "    relax(bulk('Cu'), device='cuda')\n" + CUDA_IN_A_CHILD
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')


@pytest.mark.skipif(
    'fork' not in multiprocessing.get_all_start_methods(), reason='no fork on this system'
)
@pytest.mark.parametrize(
    'use',
    [
        pytest.param(POOL, id='pool'),
        pytest.param(EXECUTOR, id='futures'),
        pytest.param(NESTED, id='nested'),
        pytest.param(WORKERS, id='workers of their own'),
        pytest.param(AS_TORCH_TELLS + CUDA_IN_A_CHILD, id='as torch tells it'),
        pytest.param(REAL_CUDA, id='on a GPU', marks=CUDA),
    ],
)
def test_forked_workers_answer(use, tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(START + use)
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '2'}
    subprocess.run([sys.executable, script], env=environment, check=True, timeout=200)
