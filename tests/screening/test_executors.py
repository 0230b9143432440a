"""Screens on the engines that people have: the real ones, on this machine."""

import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import psutil
import pytest
from ase.db import connect

from ase_deeprelax import screen
from ase_deeprelax.errors import DeepRelaxError
from ase_deeprelax.screening import run
from tests.screening.screens import RECIPES, assert_complete, environment, rows


@pytest.fixture
def small_units(monkeypatch):
    """A unit of work is two packs, so that there are several."""
    monkeypatch.setattr(run, 'SHARD_PACKS', 2)


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


def test_threads_share_a_database_of_lmdb(small_units, tmp_path, crystals, tiny_model):
    pytest.importorskip('ase_db_backends', reason='the extra aselmdb is not installed')
    source = tmp_path / 'many.aselmdb'
    with connect(source, type='aselmdb') as database:
        for one in crystals[:24]:
            database.write(one)
    with ThreadPoolExecutor(3) as executor:
        done = screen(source, tmp_path / 'out', model=tiny_model, pack=2, executor=executor)
    found = rows(tmp_path / 'out')
    assert done.n_done == 24
    assert done.n_quarantined == 0
    assert found.n_atoms.tolist() == [len(one) for one in crystals[:24]]
    with connect(source, type='aselmdb') as database:  # it is closed
        assert len(database) == 24


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


# A worker is killed while it writes a pack, once, after a file was put there.
KILLED = """
import os, signal
real = os.fsync
def fsync(descriptor):
    try:
        os.remove({file!r})
    except FileNotFoundError:
        return real(descriptor)
    os.kill(os.getpid(), signal.SIGKILL)
os.fsync = fsync
"""
# A recipe with small packs and a small model.
RECIPE = """
import functools, runpy
import ase_deeprelax
from ase_deeprelax.screening import run
run.SHARD_PACKS = 1
ase_deeprelax.screen = functools.partial(ase_deeprelax.screen, model={model!r}, pack=12)
if __name__ == '__main__':
    runpy.run_path({recipe!r})['main']({source!r}, {out!r})
"""


def end_all(process):
    """End a process with all that it has begun, whatever became of it."""
    if process.poll() is None:
        for one in psutil.Process(process.pid).children(recursive=True):
            one.kill()
        process.kill()
    process.wait()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ('recipe', 'package'),
    [('dask_screen.py', 'distributed'), ('parsl_screen.py', 'parsl')],
)
def test_recipe_with_a_worker_that_is_killed(
    recipe, package, code_of_workers, packs_there, source, tmp_path, tiny_model
):
    pytest.importorskip(package, reason=f'{package} is not installed')
    out, kill, script = (tmp_path / name for name in ('out', 'kill', 'run.py'))
    code = code_of_workers(KILLED.format(file=str(kill)))
    places = {'recipe': RECIPES / recipe, 'source': source, 'out': out, 'model': tiny_model}
    script.write_text(RECIPE.format(**{name: str(path) for name, path in places.items()}))
    process = subprocess.Popen(
        [sys.executable, script],
        cwd=tmp_path,
        env=environment(code),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        packs_there(process, out, 2)
        kill.touch()
        output, errors = process.communicate(timeout=300)
    finally:
        end_all(process)
    assert process.returncode == 0, errors
    assert not kill.exists()
    assert 'n_done=240' in output
    assert_complete(out)
