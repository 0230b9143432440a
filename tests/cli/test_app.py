import subprocess
import sys

from ase.build import bulk
from ase.io import write


def test_errors_are_one_message_without_traceback(run, tmp_path):
    write(tmp_path / 'one.cif', bulk('NaCl', 'rocksalt', a=5.6))
    result = run('relax', tmp_path / 'one.cif', '--model', 'deeprelaks')
    assert result.exit_code == 1
    assert result.stderr.startswith('Error: ')
    assert 'deeprelaks' in result.stderr
    assert 'Traceback' not in result.output


def test_help_is_quick():
    code = """
import sys
from ase_deeprelax.cli import app
app(['--help'], standalone_mode=False)
print([name for name in ('torch', 'lightning', 'pymatgen', 'scipy') if name in sys.modules])
"""
    words = [sys.executable, '-c', code]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == '[]'


def test_version(run):
    result = run('--version')
    assert result.exit_code == 0
    assert result.stdout.startswith('ase-deeprelax ')
