"""What the tests of screens share: sources, real runs in processes of their own."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ase.io import write

import ase_deeprelax
from ase_deeprelax.testing import symmetric_crystals

ROOT = Path(ase_deeprelax.__file__).parents[1]


@pytest.fixture(scope='session')
def crystals():
    """Some hundred crystals of up to 14 atoms."""
    return symmetric_crystals(240)


@pytest.fixture
def source(tmp_path, crystals):
    file = tmp_path / 'many.extxyz'
    write(file, crystals)
    return file


@pytest.fixture
def command(tiny_model):
    """A ``deeprelax screen`` that runs in a process of its own."""
    begun = []

    def command(source, out, *words, before='', pack=12):
        code = f'{before}\nfrom ase_deeprelax.cli import main\nmain()'
        words = ['screen', source, out, '--model', tiny_model, '--pack', pack, *words]
        places = os.pathsep.join((str(ROOT), os.environ.get('PYTHONPATH', '')))
        process = subprocess.Popen(
            [sys.executable, '-c', code, *map(str, words)],
            env=os.environ | {'PYTHONPATH': places, 'OMP_NUM_THREADS': '1'},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        begun.append(process)
        return process

    yield command
    for process in begun:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


@pytest.fixture
def packs_there():
    """Wait until a screen has so many packs."""

    def packs_there(process, out, count):
        end = time.monotonic() + 100
        while len(list((out / 'packs').glob('0*.parquet'))) < count:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.01)

    return packs_there
