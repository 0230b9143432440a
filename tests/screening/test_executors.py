"""Screens on the engines that people have: the real ones, on this machine."""

import os
import runpy
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import psutil
import pytest

import ase_deeprelax
from ase_deeprelax import screen
from ase_deeprelax.errors import DeepRelaxError
from ase_deeprelax.screening import run
from ase_deeprelax.screening.store import Store

RECIPES = Path(ase_deeprelax.__file__).parents[1] / 'tutorials/screening'


@pytest.fixture
def small_units(monkeypatch):
    """A unit of work is two packs, so that there are several."""
    monkeypatch.setattr(run, 'SHARD_PACKS', 2)


def assert_complete(out):
    rows = pd.read_parquet(out / 'packs').sort_values('position')
    assert rows.id.tolist() == [f'many.extxyz@{k}' for k in range(240)]
    assert rows.ok.all()


@pytest.mark.parametrize('kind', ['threads', 'processes'])
def test_executors_of_python(kind, small_units, source, tmp_path, tiny_model):
    if kind == 'threads':
        executor = ThreadPoolExecutor(2)
    else:
        executor = ProcessPoolExecutor(1, mp_context=get_context('spawn'))
    with executor:
        done = screen(
            source, tmp_path / 'out', model=tiny_model, pack=30, executor=executor
        )
    assert done.n_done == 240
    assert_complete(tmp_path / 'out')


def test_an_engine_without_workers_is_told(
    small_units, source, tmp_path, tiny_model, monkeypatch
):
    def lost(task):
        raise OSError('the worker is gone')

    monkeypatch.setattr('ase_deeprelax.screening.workers.work', lost)
    with ThreadPoolExecutor(1) as executor, pytest.raises(DeepRelaxError) as raised:
        screen(source, tmp_path / 'out', model=tiny_model, pack=30, executor=executor)
    assert '3 times in a row' in str(raised.value)
    assert 'the worker is gone' in str(raised.value)


def test_workers_tell_what_is_wrong(small_units, source, tmp_path, tiny_model):
    out = tmp_path / 'out'
    with ThreadPoolExecutor(2) as executor:
        screen(source, out, model=tiny_model, pack=30, executor=executor)
        for file in (out / 'packs').iterdir():
            file.unlink()
        (out / 'packs').rmdir()
        (out / 'packs').touch()
        with pytest.raises((DeepRelaxError, OSError)):
            screen(source, out, model=tiny_model, pack=30, executor=executor)


def test_dask_with_a_worker_that_is_killed(small_units, source, tmp_path, tiny_model):
    pytest.importorskip('distributed', reason='Dask is not installed')
    out = tmp_path / 'out'
    code = (
        'import sys, runpy; from ase_deeprelax.screening import run; run.SHARD_PACKS = 1\n'
        'import ase_deeprelax, functools\n'
        'ase_deeprelax.screen = functools.partial('
        f'ase_deeprelax.screen, model={str(tiny_model)!r}, pack=12)\n'
        'if __name__ == "__main__":\n'
        f'    main = runpy.run_path({str(RECIPES / "dask_screen.py")!r})["main"]\n'
        f'    main({str(source)!r}, {str(out)!r})\n'
    )
    script = tmp_path / 'dask_run.py'
    script.write_text(code)
    process = python(script)
    try:
        wait_for_packs(process, out, 2)
        workers = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if 'resource_tracker' not in ' '.join(child.cmdline())
        ]
        assert len(workers) == 2
        workers[0].kill()
        output, errors = process.communicate(timeout=200)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, errors
    assert 'n_done=240' in output
    assert_complete(out)


def test_parsl(source, tmp_path, tiny_model, monkeypatch):
    pytest.importorskip('parsl', reason='Parsl is not installed')
    out = tmp_path / 'out'
    script = tmp_path / 'parsl_run.py'
    script.write_text(
        'import runpy, functools, ase_deeprelax\n'
        'from ase_deeprelax.screening import run; run.SHARD_PACKS = 4\n'
        'ase_deeprelax.screen = functools.partial('
        f'ase_deeprelax.screen, model={str(tiny_model)!r}, pack=30)\n'
        'if __name__ == "__main__":\n'
        f'    main = runpy.run_path({str(RECIPES / "parsl_screen.py")!r})["main"]\n'
        f'    main({str(source)!r}, {str(out)!r})\n'
    )
    process = python(script, cwd=tmp_path)
    output, errors = process.communicate(timeout=250)
    assert process.returncode == 0, errors
    assert 'n_done=240' in output
    assert_complete(out)


def test_job_array_of_slurm_makes_the_whole(source, tmp_path, tiny_model):
    """The script itself, task after task, with an `srun` that runs what it is given."""
    srun = tmp_path / 'bin' / 'srun'
    srun.parent.mkdir()
    srun.write_text('#!/bin/sh\nexec "$@"\n')
    deeprelax = tmp_path / 'bin' / 'deeprelax'
    deeprelax.write_text(f'#!/bin/sh\nexec {sys.executable} -m ase_deeprelax "$@"\n')
    for file in (srun, deeprelax):
        file.chmod(0o755)
    options = ['--model', tiny_model, '--pack', '12', '--quiet']
    for number in (1, 2):
        subprocess.run(
            ['bash', RECIPES / 'slurm_screen.sh', source, tmp_path / 'out', *options],
            env=environment()
            | {
                'PATH': f'{srun.parent}:{os.environ["PATH"]}',
                'SLURM_ARRAY_TASK_ID': str(number),
                'SLURM_ARRAY_TASK_COUNT': '2',
            },
            check=True,
        )
        done = len(Store(tmp_path / 'out').done())
        assert done == 10 * number
    assert_complete(tmp_path / 'out')


def environment():
    root, scripts = str(RECIPES.parents[1]), str(Path(sys.executable).parent)
    return os.environ | {
        'PYTHONPATH': root,
        'OMP_NUM_THREADS': '1',
        'PATH': f'{scripts}:{os.environ["PATH"]}',
    }


def python(script, **options):
    return subprocess.Popen(
        [sys.executable, script],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def wait_for_packs(process, out, count):
    end = time.monotonic() + 120
    while len(list((out / 'packs').glob('0*.parquet'))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def test_recipes_can_be_read():
    pytest.importorskip('distributed', reason='Dask is not installed')
    assert 'main' in runpy.run_path(str(RECIPES / 'dask_screen.py'))
