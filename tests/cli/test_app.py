import os
import subprocess
import sys
import warnings

import pytest
from ase.build import bulk
from ase.io import write

from ase_deeprelax.cli import app
from ase_deeprelax.cli.app import _warnings_as_messages
from ase_deeprelax.data.pairs import make_pair, write_pairs


def test_errors_are_one_message_without_traceback(run, tmp_path):
    write(tmp_path / 'one.cif', bulk('NaCl', 'rocksalt', a=5.6))
    result = run('relax', tmp_path / 'one.cif', '--model', 'deeprelaks')
    assert result.exit_code == 1
    assert result.stderr.startswith('Error: ')
    assert 'deeprelaks' in result.stderr
    assert 'Traceback' not in result.output


def test_warnings_are_one_message_without_a_line_of_code(tmp_path):
    before = bulk('NaCl', 'rocksalt', a=5.6, cubic=True).repeat((3, 2, 2))
    before.rattle(0.05, seed=0)
    write_pairs(tmp_path / 'large.jsonl', [make_pair('large', before, before)])
    words = ['evaluate', tmp_path / 'large.jsonl', '--model', 'deeprelax']
    command = [sys.executable, '-m', 'ase_deeprelax', *words]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    ours = [line for line in found.stderr.splitlines() if 'training range' in line]
    assert [line.partition(' ')[0] for line in ours] == ['Warning:']
    assert 'return callback' not in found.stderr


def test_warnings_of_other_packages_keep_their_place_but_not_its_code():
    with _warnings_as_messages():
        shown = warnings.formatwarning('old weights', UserWarning, __file__, 1)
    assert shown == f'{__file__}:1: UserWarning: old weights\n'


@pytest.mark.slow
def test_a_potential_brings_no_advice_for_its_authors(tmp_path):
    pytest.importorskip('chgnet', reason="pip install 'ase-deeprelax[chgnet]'")
    write(tmp_path / 'one.cif', bulk('NaCl', 'rocksalt', a=5.6))
    words = ['relax', 'one.cif', '--model', 'deeprelax', '--refine', 'chgnet', '--quiet']
    command = [sys.executable, '-m', 'ase_deeprelax', *words]
    found = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert 'UserWarning' not in found.stderr


def test_ctrl_c_while_the_command_line_is_loaded_leaves_no_traceback():
    code = """
import sys
from ase_deeprelax.__main__ import main

class Interrupt:
    def find_spec(self, name, *_):
        if name == 'typer':
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
main()
"""
    command = [sys.executable, '-c', code]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (130, '')


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


def test_help_calls_arguments_by_one_name(run):
    """That of its sentences, which speak of FILES."""
    for command in app.registered_commands:
        usage = run(command.name, '--help').stdout.splitlines()[0]
        words = usage.split('[OPTIONS]')[1]
        assert words == words.upper()


def test_overview_shows_what_each_command_does_in_full(run):
    listed = run('--help').stdout.split('Commands:')[1].strip().splitlines()
    assert len(listed) > 10
    assert [line for line in listed if not line.endswith('.') or line.endswith('..')] == []


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
