import os
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


def test_a_pipe_that_is_closed_ends_a_command_without_a_word():
    """As ``deeprelax models deeprelax | head -1`` does."""
    end, begin = os.pipe()
    os.close(end)
    words = [sys.executable, '-m', 'ase_deeprelax', 'models', 'deeprelax']
    ended = subprocess.run(words, stdout=begin, stderr=subprocess.PIPE, check=False)
    os.close(begin)
    assert ended.stderr == b''
    assert ended.returncode == 1
