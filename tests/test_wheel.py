"""Wheel and source archive hold all that the package needs, and work without the clone."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip('hatchling', reason="pip install -e '.[test]'")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
# What users read or run that is not a module, by its end.
ASSETS = ('.safetensors', '.json', '.yaml', '.js', '.css', '.html', 'py.typed')


def run(command, cwd, **environment):
    """Run it away from the clone, and give its output."""
    kept = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(folder, target, to):
    """The archive that is built from a folder."""
    run([sys.executable, '-m', 'hatchling', 'build', '-t', target, '-d', to], folder)
    [archive] = to.iterdir()
    return archive


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The wheel that is built from the source archive, not from the clone."""
    source = build(ROOT, 'sdist', tmp_path_factory.mktemp('sdist'))
    unpacked = tmp_path_factory.mktemp('unpacked')
    with tarfile.open(source) as archive:
        archive.extractall(unpacked, filter='data')
    [folder] = unpacked.iterdir()
    return build(folder, 'wheel', tmp_path_factory.mktemp('wheel'))


@pytest.fixture(scope='module')
def python(wheel, tmp_path_factory):
    """An interpreter that sees the wheel and the other packages of this environment.

    Their folder is a line of a path file: the path files in it, that of the clone among
    them, are not read.
    """
    folder = tmp_path_factory.mktemp('empty')
    run([sys.executable, '-m', 'venv', '--without-pip', folder], folder)
    scheme = {'base': str(folder), 'platbase': str(folder)}
    site = Path(sysconfig.get_path('purelib', 'venv', scheme))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    others = {sysconfig.get_path(name) for name in ('purelib', 'platlib')}
    (site / 'others.pth').write_text('\n'.join(others))
    return folder / 'bin/python'


def test_wheel_holds_every_file_of_the_package(wheel):
    there = set(zipfile.ZipFile(wheel).namelist())
    here = {
        str(path.relative_to(ROOT))
        for path in (ROOT / 'ase_deeprelax').rglob('*')
        if path.suffix == '.py' or path.name.endswith(ASSETS)
    }
    assert here <= there
    assert not {name for name in there if name.startswith(('tests', 'docs', 'runs'))}
    assert wheel.stat().st_size < 30e6


def test_code_of_the_readme_runs_from_the_wheel(python, tmp_path):
    text = (ROOT / 'README.md').read_text()
    blocks = re.findall(r'^```python\n(.*?)^```$', text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    where = 'import ase_deeprelax; print(ase_deeprelax.__file__)'
    printed = run([python, '-c', '\n'.join([*blocks, where])], tmp_path)
    assert printed.splitlines()[-1].startswith(str(python.parents[1]))


def test_commands_run_from_the_wheel(python, tmp_path):
    build = 'from ase.build import bulk; bulk("KCl", "rocksalt", a=5.64).write("a.cif")'
    run([python, '-c', build], tmp_path)
    printed = run([python, '-m', 'ase_deeprelax', 'relax', 'a.cif', '--out', 'b'], tmp_path)
    assert 'KCl' in printed
    assert (tmp_path / 'b/a.cif').exists()
