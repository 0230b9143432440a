"""The recipe for SLURM: a job array that meets its time limit, is killed, is cancelled."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from ase_deeprelax.screening.run import SHARD_PACKS
from ase_deeprelax.screening.store import Store
from tests.screening.screens import RECIPES, ROOT, N, assert_complete, environment
from tests.screening.slurm import PLACES, Slurm, missing, wait_until

RECIPE = RECIPES / 'slurm_screen.sh'
PACK = 6  # structures of a pack: 20 packs for each of two tasks
# Python of the jobs: as long as the file is there, a pack takes 15 s longer.
SLOWLY = """
import os, sys, time
if 'screen' in sys.orig_argv:
    from ase_deeprelax.screening.store import Store
    real = Store.write
    def write(self, pack, rows):
        real(self, pack, rows)
        end = time.monotonic() + 15
        while os.path.exists({file!r}) and time.monotonic() < end:
            if list(self.out.glob('.stop-*')):
                break
            time.sleep(0.1)
    Store.write = write
"""


@pytest.fixture(scope='module')
def slurm():
    """A SLURM of one node."""
    if programs := missing():
        pytest.skip(
            f'SLURM is not installed (no {", ".join(programs)}); on Debian and Ubuntu: '
            'apt-get install slurm-wlm munge'
        )
    # The name of a socket may not be long, as those of tmp_path are.
    folder = Path(tempfile.mkdtemp(prefix='slurm-'))
    with Slurm(folder) as slurm:
        yield slurm
    shutil.rmtree(folder)


@pytest.fixture
def programs(tmp_path):
    """A folder with a ``deeprelax`` that is the one that is tested."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    deeprelax = folder / 'deeprelax'
    deeprelax.write_text(f'#!/bin/sh\nexec {sys.executable} -m ase_deeprelax "$@"\n')
    deeprelax.chmod(0o755)
    return folder


def variables(programs, *folders):
    """Of a job that finds these programs, and code in these folders."""
    path = os.pathsep.join((str(programs), PLACES))
    return environment(*folders) | {'PATH': path}


@pytest.fixture
def slow(tmp_path):
    """Packs take longer as long as this file is there."""
    file = tmp_path / 'slow'
    file.touch()
    code = tmp_path / 'code'
    code.mkdir()
    (code / 'sitecustomize.py').write_text(SLOWLY.format(file=str(file)))
    return file


@pytest.fixture
def submit(slurm, programs, slow, source, tmp_path, tiny_model):
    """Submit the recipe as it is, with two tasks of one processor."""

    def submit(out):
        return slurm.run(
            'sbatch', '--parsable', '--array=1-2', '--cpus-per-task=1', '--time=60',
            '--signal=TERM@90', f'--output={tmp_path}/task-%a.out',
            RECIPE, source, out, '--model', tiny_model, '--pack', PACK,
            env=variables(programs, slow.parent / 'code'),
        )  # fmt: skip

    return submit


def packs_of(out, number):
    """The packs of a task that are there, and their times."""
    packs = [k for k in Store(out).done() if k // SHARD_PACKS % 2 == number - 1]
    return {pack: Store(out).path(pack).stat().st_mtime_ns for pack in packs}


def process_of(out, number):
    """The process that does the part of a task."""
    words = [str(out), '--shard', f'{number}/2']
    [process] = [
        process
        for process in psutil.process_iter(['cmdline'])
        if set(words) <= set(process.info['cmdline'] or ())
        and 'ase_deeprelax' in process.info['cmdline']
    ]
    return process


@pytest.mark.timeout(900)
def test_array_goes_on_after_a_time_limit_and_after_a_kill(slurm, submit, slow, tmp_path):
    out, log = tmp_path / 'out', tmp_path / 'task-1.out'
    job = submit(out)
    limited, killed = f'{job}_1', f'{job}_2'

    def state(task):
        return slurm.job(task)['JobState']

    wait_until(lambda: packs_of(out, 1) and packs_of(out, 2), log.read_text)
    process_of(out, 2).send_signal(signal.SIGKILL)
    wait_until(lambda: state(killed) == 'FAILED')
    assert slurm.job(killed)['ExitCode'] == '137:0'
    assert len(packs_of(out, 2)) < N // PACK // 2
    slurm.run('scontrol', 'requeue', killed)

    # Its limit is one to two minutes away, so that SLURM tells it the next time it looks.
    minutes = int(slurm.job(limited)['RunTime'].split(':')[1])
    slurm.run('scontrol', 'update', f'JobId={limited}', f'TimeLimit={minutes + 2}')
    said = 'stopped by SIGTERM after a whole pack; the same command goes on from here'
    wait_until(lambda: said in log.read_text(), log.read_text)
    before = packs_of(out, 1) | packs_of(out, 2)
    assert 0 < len(packs_of(out, 1)) < N // PACK // 2
    slow.unlink()

    wait_until(lambda: state(limited) == state(killed) == 'COMPLETED', log.read_text)
    assert slurm.job(limited)['Restarts'] == '1'
    after = packs_of(out, 1) | packs_of(out, 2)
    assert before.items() <= after.items()
    assert_complete(out)


def test_a_task_that_is_cancelled_does_not_come_back(slurm, submit, tmp_path):
    out = tmp_path / 'out'
    job = submit(out)
    wait_until(lambda: packs_of(out, 1), (tmp_path / 'task-1.out').read_text)
    slurm.run('scancel', job)
    for number in (1, 2):
        task = f'{job}_{number}'
        wait_until(lambda task=task: slurm.job(task)['JobState'] == 'CANCELLED')
        assert slurm.job(task)['Restarts'] == '0'
    assert not slurm.run('squeue', '--noheader')


def test_the_page_shows_the_recipe():
    assert RECIPE.read_text() in (ROOT / 'docs/screening.md').read_text()


def test_the_recipe_makes_the_whole_without_slurm(source, programs, tmp_path, tiny_model):
    """Task after task, with an `srun` that runs what it is given."""
    srun = programs / 'srun'
    srun.write_text('#!/bin/sh\nshift\nexec "$@"\n')
    srun.chmod(0o755)
    out = tmp_path / 'out'
    options = ['--model', tiny_model, '--pack', str(PACK), '--quiet']
    for number in (1, 2):
        subprocess.run(
            ['bash', RECIPE, source, out, *options],
            env=variables(programs)
            | {'SLURM_ARRAY_TASK_ID': str(number), 'SLURM_ARRAY_TASK_COUNT': '2'},
            check=True,
        )
        assert len(Store(out).done()) == number * N // PACK // 2
    assert_complete(out)
