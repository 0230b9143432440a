"""``deeprelax screen``: words that make no sense, and what it says at the end."""

import pytest
from ase.build import bulk
from ase.io import write

from ase_deeprelax.cli.screen import PACK
from ase_deeprelax.predict.stream import WINDOW


@pytest.mark.parametrize('shard', ['17/16', '0/16', '3', '1/0', 'a/b', '-1/2'])
def test_a_part_that_makes_no_sense_is_refused(run, tmp_path, shard):
    shown = run('screen', tmp_path / 'a.extxyz', tmp_path / 'out', f'--shard={shard}')
    assert shown.exit_code == 2
    assert '1/N to N/N' in shown.output
    assert not (tmp_path / 'out').exists()


def test_many_sources_are_refused_in_one_line(run, tmp_path):
    files = [tmp_path / f'{k}.cif' for k in range(1000)]
    shown = run('screen', *files, tmp_path / 'out')
    assert shown.exit_code == 2
    assert 'and 1000 are given' in shown.stderr
    assert 'give the folder that holds them' in shown.stderr
    assert str(files[1]) not in shown.stderr


def test_a_file_is_no_place_for_rows(run, tmp_path, tiny_model):
    source = tmp_path / 'a.extxyz'
    write(source, bulk('NaCl', 'rocksalt', a=5.5))
    before = source.read_bytes()
    shown = run('screen', source, source, '--model', tiny_model)
    assert shown.exit_code == 1
    assert f'{source} is a file' in shown.stderr
    assert source.read_bytes() == before


def test_says_where_the_rows_are(run, tmp_path, tiny_model):
    write(tmp_path / 'a.extxyz', bulk('NaCl', 'rocksalt', a=5.5))
    words = ('screen', tmp_path / 'a.extxyz', tmp_path / 'out', '--model', tiny_model)
    shown = run(*words)
    assert shown.exit_code == 0, shown.output
    assert '1 of 1 structures done, 0 of them quarantined' in shown.stdout
    assert f'see: deeprelax results {tmp_path / "out"}' in shown.stdout
    shown = run(*words, '--quiet')
    assert (shown.exit_code, shown.stdout) == (0, '')


def test_packs_are_those_of_the_function():
    assert PACK == WINDOW
