"""Which structures commands read, and what they call them and their files."""

import gzip
import json
import zipfile

import pandas as pd
import pytest
from ase.build import bulk
from ase.io import read, write

from ase_deeprelax import keys


def salts(n):
    return [bulk('NaCl', 'rocksalt', a=5.3 + 0.01 * k) for k in range(n)]


def test_an_id_with_a_line_break_takes_one_line_of_a_table(run, tmp_path, tiny_model):
    table, out = tmp_path / 'mine.parquet', tmp_path / 'screened'
    ids = ['first\nsalt', 'second']
    columns = {
        'symbols': [list(atoms.symbols) for atoms in salts(2)],
        'positions': [atoms.positions.tolist() for atoms in salts(2)],
        'cell': [atoms.cell.tolist() for atoms in salts(2)],
    }
    pd.DataFrame({'id': ids, **columns}).to_parquet(table)
    model = ('--model', tiny_model)
    result = run('relax', table, '--out', tmp_path / 'out.extxyz', *model)
    assert result.exit_code == 0, result.output
    assert '\nmine.parquet@first salt  NaCl ' in result.stdout
    assert run('screen', table, out, *model).exit_code == 0
    result = run('results', out)
    assert '\nfirst salt  NaCl ' in result.stdout
    rows = run('results', out, '--json', '-', '--sort', 'position')
    assert [row['id'] for row in json.loads(rows.stdout)] == ids


@pytest.mark.parametrize('suffix', ['traj', 'db', 'extxyz'])
def test_structures_are_called_by_their_frames_in_the_file(
    run, tmp_path, tiny_model, suffix
):
    file, out = tmp_path / f'run.{suffix}', tmp_path / 'out.extxyz'
    write(file, salts(8))
    words = [f'{file}@{index}' for index in ('5:', '0', '-1', '1:5:3', '-8:-6')]
    result = run('relax', *words, '--out', out, '--model', tiny_model)
    assert result.exit_code == 0, result.output
    wanted = ['5', '6', '7', '0', '-1', '1', '4', '-8:-6[0]', '-8:-6[1]']
    found = [atoms.info[keys.ID] for atoms in read(out, ':')]
    assert found == [f'run.{suffix}@{name}' for name in wanted]


def test_outputs_may_go_into_the_present_folder(run, tmp_path, tiny_model, monkeypatch):
    write(tmp_path / 'NaCl.cif', salts(1))
    (tmp_path / 'in').mkdir()
    for out in ('.', '..'):
        folder = tmp_path / 'in' / out
        monkeypatch.chdir(tmp_path / 'in')
        words = ['--out', out, '--format', 'extxyz', '--model', tiny_model]
        result = run('relax', tmp_path / 'NaCl.cif', *words)
        assert result.exit_code == 0, result.output
        assert (folder / 'NaCl.extxyz').exists()
        assert not list(tmp_path.rglob('*.part.jsonl'))


def test_outputs_of_compressed_files_lose_both_suffixes(run, tmp_path, tiny_model):
    write(tmp_path / 'NaCl.cif', salts(1))
    packed = tmp_path / 'NaCl.cif.gz'
    packed.write_bytes(gzip.compress((tmp_path / 'NaCl.cif').read_bytes()))
    out = tmp_path / 'out'
    assert run('relax', packed, '--out', out, '--model', tiny_model).exit_code == 0
    assert {path.name for path in out.iterdir()} == {'NaCl.cif', 'NaCl.extxyz'}


def test_only_files_that_are_written_are_counted(run, tmp_path, tiny_model, monkeypatch):
    write(tmp_path / 'NaCl.extxyz', salts(1))
    words = ['relax', tmp_path / 'NaCl.extxyz', '--out', tmp_path / 'out']
    shown = run(*words, '--model', tiny_model)
    assert f'wrote {tmp_path / "out"}: 2 files' in shown.stdout

    def refuse(*_):
        raise ValueError('three vectors are needed')

    monkeypatch.setattr('ase.io.cif.write_cif', refuse)
    shown = run(*words, '--model', tiny_model)
    assert shown.exit_code == 1
    assert f'wrote {tmp_path / "out"}: 1 file\n' in shown.stdout
    assert 'NaCl.cif: structure 0: ValueError: three vectors' in shown.stderr


def test_what_an_archive_leaves_out_is_told(run, tmp_path, tiny_model, caplog):
    write(tmp_path / 'many.extxyz', salts(3))
    with zipfile.ZipFile(tmp_path / 'all.zip', 'w') as archive:
        archive.write(tmp_path / 'many.extxyz', 'x/many.extxyz')
        archive.writestr('README.md', 'nothing')
    table = tmp_path / 'table.json'
    words = ['--out', tmp_path / 'out', '--json', table, '--model', tiny_model]
    assert run('relax', tmp_path / 'all.zip', *words).exit_code == 0
    names = [row['structure'] for row in json.loads(table.read_text())]
    assert names == [f'all.zip@x/many.extxyz@{k}' for k in range(3)]
    assert 'left out 1 of its entries, the first is README.md' in caplog.text
