"""What the tests of screens share: sources, real runs in processes of their own."""

import subprocess
import sys
import time

import pytest
from ase.io import write

from ase_deeprelax import screen
from ase_deeprelax.testing import symmetric_crystals
from tests.screening.screens import N, environment, rows


@pytest.fixture(scope='session')
def crystals():
    """Some hundred crystals of up to 14 atoms."""
    return symmetric_crystals(N)


@pytest.fixture
def source(tmp_path, crystals):
    file = tmp_path / 'many.extxyz'
    write(file, crystals)
    return file


@pytest.fixture
def undisturbed(source, tmp_path, tiny_model):
    """Rows of a screen that nothing happens to."""
    screen(source, tmp_path / 'undisturbed', model=tiny_model, pack=12)
    return rows(tmp_path / 'undisturbed')


@pytest.fixture
def code_of_workers(tmp_path):
    """Write code that workers of this machine run first; a folder for ``environment``."""

    def code_of_workers(code):
        folder = tmp_path / 'code'
        folder.mkdir()
        lines = ['import sys', 'if "spawn_main" in " ".join(sys.orig_argv):']
        lines += [f'    {line}' for line in code.strip().splitlines()]
        (folder / 'sitecustomize.py').write_text('\n'.join(lines))
        return folder

    return code_of_workers


@pytest.fixture
def command(tiny_model):
    """A ``deeprelax screen`` that runs in a process of its own."""
    begun = []

    def command(source, out, *words, before='', pack=12, folders=()):
        code = f'{before}\nfrom ase_deeprelax.cli import main\nmain()'
        words = ['screen', source, out, '--model', tiny_model, '--pack', pack, *words]
        process = subprocess.Popen(
            [sys.executable, '-c', code, *map(str, words)],
            env=environment(*folders),
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
