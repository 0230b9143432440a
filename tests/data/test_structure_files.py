"""Which files of a folder are read, and what a bad entry of a file leaves of the others."""

import gzip
import json
import sqlite3
from contextlib import closing

import pytest
from ase.build import bulk
from ase.db import connect
from ase.io import write
from pymatgen.core import Lattice, Structure

from ase_deeprelax.data.structure_files import (
    StructureFile,
    find_files,
    read_each,
    read_structures,
)
from ase_deeprelax.errors import StructureError

SALT = Structure(Lattice.cubic(4), ['Na', 'Cl'], [[0] * 3, [0.5] * 3])
ALLOY = Structure(Lattice.cubic(3), [{'Cu': 0.5, 'Au': 0.5}], [[0] * 3])


def record(name, structure):
    found = None if structure is None else structure.as_dict()
    return {'material_id': name, 'structure': found}


def as_json(path, entries):
    path.write_text(json.dumps(entries))
    return StructureFile(path)


def test_a_folder_gives_what_is_read_when_named_and_counts_the_rest(tmp_path, caplog):
    salt = bulk('NaCl', 'rocksalt', a=5.6)
    for name in ('NaCl.cif', 'POSCAR', 'CONTCAR'):
        write(tmp_path / name, salt, format='cif' if '.' in name else 'vasp')
        packed = gzip.compress((tmp_path / name).read_bytes())
        (tmp_path / f'{name}.gz').write_bytes(packed)
    assert not caplog.records
    names = sorted(path.name for path in tmp_path.iterdir())
    for name in ('notes.txt', '.hidden.cif', 'all.zip'):
        (tmp_path / name).write_text('no structure')
    (tmp_path / 'below').mkdir()
    found = find_files([tmp_path])
    assert [file.path.name for file in found] == names
    assert all(len(read_structures(file)) == 1 for file in found)
    assert f'{tmp_path}: left out 3 of its entries, the first is all.zip' in caplog.text


@pytest.mark.parametrize('bad', [ALLOY, None])
def test_a_bad_record_is_named_and_loses_no_other_one(tmp_path, bad):
    entries = [record('mp-0', SALT), record('mp-1', bad), record('mp-2', SALT)]
    for content in (
        entries,
        entries[1:],
        {entry['material_id']: entry for entry in entries},
    ):
        file = as_json(tmp_path / 'mp.json', content)
        *_, wrong, last = read_each(file)
        assert last.info['id'] == 'mp-2'
        assert str(wrong).startswith('mp-1: ')
        assert ('disordered' if bad else 'no structure of pymatgen') in str(wrong)
        with pytest.raises(StructureError, match='mp-1: '):
            read_structures(file)
    assert len(read_structures(StructureFile(file.path, '-1'))) == 1


def test_a_list_may_begin_with_an_empty_place(tmp_path):
    file = as_json(tmp_path / 'a.json', [None, None, SALT.as_dict()])
    *empty, atoms = read_each(file)
    assert len(atoms) == 2
    assert ['there is: None' in str(error) for error in empty] == [True, True]
    with pytest.raises(StructureError, match='neither a database of ASE'):
        read_each(as_json(tmp_path / 'a.json', [None, None]))


def test_a_table_that_names_structures_holds_none(tmp_path):
    """`deeprelax relax --json` writes such a one; each of its rows was an error."""
    rows = [{'structure': f'{k}.cif', 'error': 0.02} for k in range(3)]
    with pytest.raises(StructureError, match='neither a database of ASE'):
        read_each(as_json(tmp_path / 'table.json', rows))


def test_a_cut_list_keeps_what_is_before_the_damage(tmp_path):
    file = as_json(tmp_path / 'cut.json', [SALT.as_dict()] * 3)
    file.path.write_text(file.path.read_text()[:-50])
    first, second, wrong = read_each(file)
    assert len(first) == len(second) == 2
    assert 'the file is damaged after 2 structures' in str(wrong)


def test_a_single_record_may_begin_with_its_structure(tmp_path):
    one = {'structure': SALT.as_dict(), 'id': 'mp-0'}
    [atoms] = read_structures(as_json(tmp_path / 'one.json', one))
    assert atoms.info['id'] == 'mp-0'
    with pytest.raises(StructureError, match='there is: structure, id'):
        read_structures(as_json(tmp_path / 'one.json', one | {'structure': None}))


def test_rows_of_a_database_keep_columns_and_data(tmp_path):
    with connect(tmp_path / 'in.db') as database:
        database.write(bulk('Cu'), tag='x', data={'mesh': [4, 4, 4]})
    [atoms] = read_structures(StructureFile(tmp_path / 'in.db'))
    assert atoms.info['key_value_pairs'] == {'tag': 'x'}
    assert atoms.info['data'] == {'mesh': [4, 4, 4]}


def test_a_database_of_something_else_is_left_as_it_is(tmp_path):
    with closing(sqlite3.connect(tmp_path / 'other.db')) as database:
        database.execute('CREATE TABLE flowers (name)')
    (tmp_path / 'empty.db').touch()
    for name, problem in (('other.db', 'no database of ASE'), ('empty.db', 'is empty')):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(StructureError, match=problem):
            read_structures(StructureFile(tmp_path / name))
        assert (tmp_path / name).read_bytes() == before
    with pytest.raises(StructureError, match='No such file'):
        read_structures(StructureFile(tmp_path / 'missing.db'))
    assert not (tmp_path / 'missing.db').exists()


def test_a_database_that_another_process_has_locked_is_one(tmp_path):
    with connect(tmp_path / 'busy.db') as database:
        database.write(bulk('Cu'))
    with closing(sqlite3.connect(tmp_path / 'busy.db')) as writer:
        writer.execute('BEGIN EXCLUSIVE')
        with pytest.raises(StructureError, match='another process is writing to this'):
            read_structures(StructureFile(tmp_path / 'busy.db'))


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-16-be'])
@pytest.mark.parametrize('suffix', ['cif', 'extxyz', 'vasp', 'json', 'xsf'])
def test_files_may_begin_with_a_mark_of_byte_order(tmp_path, suffix, encoding):
    """As editors of Windows write them."""
    salt = bulk('NaCl', 'rocksalt', a=5.6)
    file = tmp_path / f'a.{suffix}'
    write(file, salt)
    mark = '\ufeff' if encoding == 'utf-16-be' else ''
    file.write_bytes((mark + file.read_text()).encode(encoding))
    [found] = read_structures(StructureFile(file))
    assert found.symbols.formula == salt.symbols.formula
    assert found.cell.volume == pytest.approx(salt.cell.volume)


@pytest.mark.parametrize(('name', 'form'), [('CONTCAR', 'vasp'), ('a.xsf', 'xsf')])
def test_a_cut_file_is_said_to_be_cut_with_the_format_it_was_read_as(tmp_path, name, form):
    write(tmp_path / name, bulk('NaCl', 'rocksalt', a=5.6), format=form)
    lines = (tmp_path / name).read_text().splitlines()
    (tmp_path / name).write_text('\n'.join(lines[:-1]))
    with pytest.raises(StructureError, match=rf'cannot be read as {form} \(.*may be cut'):
        read_each(StructureFile(tmp_path / name))


def test_an_index_chooses_frames_of_all_files_of_a_pattern(tmp_path):
    for name in ('a.traj', 'b.traj', 'b[1].traj', 'c@2.traj'):
        (tmp_path / name).touch()
    found = [str(file) for file in find_files([f'{tmp_path}/[ab].traj@-1'])]
    assert found == [f'{tmp_path}/a.traj@-1', f'{tmp_path}/b.traj@-1']
    for word in ('b[1].traj@0:2', 'c@2.traj', 'no*.traj@1'):
        assert [str(file) for file in find_files([f'{tmp_path}/{word}'])] == [
            f'{tmp_path}/{word}'
        ]
