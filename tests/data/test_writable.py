import logging
import warnings
from pathlib import Path
from time import process_time

import numpy as np
import pytest
from ase.build import bulk, mx2
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian, FixedPlane, FixInternals, FixScaled
from ase.db import connect
from ase.io import read, write
from ase.spacegroup import Spacegroup

from ase_deeprelax import keys
from ase_deeprelax.data import writable as writable_module
from ase_deeprelax.data.structure_writing import (
    columns_of,
    find_format,
    write_structures,
)
from ase_deeprelax.data.writable import writable
from ase_deeprelax.errors import ConfigError


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch):
    monkeypatch.setattr(writable_module, '_named', set())


def salt(*constraints, skew=0.0):
    atoms = bulk('NaCl', 'rocksalt', a=5.6, cubic=True)
    atoms.set_cell(atoms.cell.array + skew * np.eye(3, k=1), scale_atoms=True)
    atoms.set_constraint(constraints)
    return atoms


def held(atoms):
    """(n_atoms, 3) bool: directions in which constraints hold each atom."""
    mask = np.zeros((len(atoms), 3), dtype=bool)
    for constraint in atoms.constraints:
        along = True if isinstance(constraint, FixAtoms) else np.array(constraint.mask)
        mask[constraint.get_indices()] |= along
    return mask


PARTLY = FixAtoms([0]), FixScaled([1, 2], [True, True, False]), FixScaled([5], [True] * 3)


@pytest.mark.parametrize('name', ['a.extxyz', 'a.vasp', 'a.traj'])
def test_selective_dynamics_survive_files(name, tmp_path, caplog):
    atoms = salt(*PARTLY)
    form = {'vasp': 'vasp', 'traj': 'traj'}.get(name[2:], 'extxyz')
    write(tmp_path / name, writable(atoms, form))
    np.testing.assert_array_equal(held(read(tmp_path / name)), held(atoms))
    assert len(atoms.constraints) == 3
    assert not caplog.records


@pytest.mark.parametrize('form', ['vasp', 'extxyz'])
@pytest.mark.parametrize('kind', [FixCartesian, FixScaled])
def test_constraints_of_extxyz_and_poscar_files_stand_in_for_each_other(
    form, kind, tmp_path, caplog
):
    """As ASE reads extxyz files: with a constraint for each atom, free ones as well."""
    free, along, everything = (False,) * 3, (True, False, True), (True,) * 3
    atoms = salt(kind([0], everything), kind([1, 2], along), kind([3], free))
    file = tmp_path / f'a.{form}'
    assert not write_structures(file, [atoms], form)
    np.testing.assert_array_equal(held(read(file)), held(atoms))
    assert not caplog.records
    # In a skewed cell only what is fixed along all axes means the same.
    atoms = salt(kind([0], everything), kind([1, 2], along), skew=0.4)
    assert not write_structures(file, [atoms], form)
    written = held(read(file))
    assert written[0].all()
    same = (form, kind) in {('vasp', FixScaled), ('extxyz', FixCartesian)}
    assert written[1:].any() == same
    assert (kind.__name__ in caplog.text) != same
    caplog.clear()
    atoms = salt(kind([0], everything), kind([3], free), skew=0.4)
    assert not write_structures(file, [atoms], form)
    assert not caplog.records


def test_what_is_lost_is_named_once_per_kind(caplog):
    caplog.set_level(logging.WARNING)
    atoms = salt(FixScaled([1], [True, False, False]), FixedPlane(3, [0, 0, 1]), skew=0.4)
    for _ in range(3):
        assert writable(atoms, 'extxyz').constraints == []
    text = caplog.text
    assert len(caplog.records) == 2
    assert 'constraint FixScaled' in text
    assert 'constraint FixedPlane' in text
    writable(salt(FixAtoms([0])), 'cif')
    assert 'FixAtoms' in caplog.text


def test_a_layer_that_would_be_read_as_a_crystal_is_warned_of(caplog, tmp_path):
    caplog.set_level(logging.WARNING)
    layer = mx2('MoS2', vacuum=1.0)
    for form in ('extxyz', 'traj'):
        write_structures(tmp_path / f'a.{form}', [layer], form)
    layer.center(vacuum=8, axis=2)
    write_structures(tmp_path / 'a.cif', [layer], 'cif')
    assert not caplog.records
    layer.center(vacuum=1, axis=2)
    for form in ('cif', 'cif', 'vasp'):
        write_structures(tmp_path / f'a.{form}', [layer], form)
    assert [record.message.split()[1] for record in caplog.records] == ['cif', 'vasp']
    assert 'too little vacuum' in caplog.text


@pytest.mark.parametrize('form', ['turbomole', 'sys', 'xtd'])
def test_formats_that_cannot_hold_a_crystal_are_refused(form):
    with pytest.raises(ConfigError, match=f'the format {form} cannot hold a crystal'):
        find_format(Path('a.out'), form)
    assert find_format(Path('a.out'), 'xyz') == 'extxyz'


def test_thousands_of_rows_are_told_once_what_no_line_can_hold(tmp_path, caplog):
    """As the data of a database, which would be a warning for each of its rows."""
    structures = [salt(), salt(), salt()]
    for k, atoms in enumerate(structures):
        atoms.info |= {'data': {'mesh': np.arange(3)}, 'index': k}
    with warnings.catch_warnings(record=True) as of_ase:
        warnings.simplefilter('always')
        assert not write_structures(tmp_path / 'a.extxyz', structures, 'extxyz')
    assert not of_ase
    assert [atoms.info['index'] for atoms in read(tmp_path / 'a.extxyz', ':')] == [0, 1, 2]
    assert len(caplog.records) == 1
    assert "info 'data'; it is left out, of other structures as well" in caplog.text


def test_atoms_that_need_no_change_are_the_same_object():
    for atoms in (salt(), salt(FixAtoms([0]), FixCartesian([1], (True, False, False)))):
        assert writable(atoms, 'extxyz') is atoms
    anything = salt(FixInternals(bonds=[[2.0, [0, 1]]]))
    assert writable(anything, 'traj') is anything


def test_a_database_takes_each_value_of_ours_once_as_column_or_as_data(tmp_path):
    atoms = bulk('Cu')
    atoms.info |= {
        'mine': 3,
        keys.SIGMA: np.float64(0.1),
        keys.MODEL: '42',  # ase.db refuses text that reads as a number
        keys.KIND: 'bulk',
        keys.STAGE: '',
        keys.SIGMA_ATOMS: np.zeros(1),
        keys.LATTICE_LOW: np.zeros(3),
    }
    columns, data = columns_of(atoms)
    assert keys.to_key_value_pairs(atoms) == {keys.SIGMA: 0.1, keys.KIND: 'bulk'}
    assert columns == keys.to_key_value_pairs(atoms) | {'mine': 3}
    assert set(data) == {keys.MODEL, keys.STAGE, keys.SIGMA_ATOMS, keys.LATTICE_LOW}
    with connect(tmp_path / 'one.db') as database:
        database.write(atoms, columns, data)
    assert connect(tmp_path / 'one.db').get(1).data[keys.MODEL] == '42'


@pytest.mark.parametrize('odd', ['train', 3, [1, 2]])
def test_info_may_be_called_as_the_parts_of_a_row_are(tmp_path, odd):
    atoms = bulk('Cu')
    atoms.info = {'data': odd, 'key_value_pairs': odd}
    assert not write_structures(tmp_path / 'one.db', [atoms], 'db')
    row = connect(tmp_path / 'one.db').get(1)
    assert (row.key_value_pairs | row.data) == atoms.info


@pytest.mark.parametrize('form', ['db', 'json'])
def test_a_database_takes_what_the_input_knew_as_columns_or_as_data(form, tmp_path, caplog):
    columns = {'name': 'salt', 'energy_above_hull': np.float32(0.5), 'stable': True}
    data = {
        'id': 'mp-1',  # a database has numbers of its own
        'CO2': 1,  # a query would take it for a formula
        'energy': -1.0,
        'text': 'one\ntwo',
        'code': '42',
        'rows': [[1], [2, 3]],
        'group': Spacegroup(225),
    }
    held = {'key_value_pairs': {'gap': 1.5}, 'data': {'kpoints': np.arange(3)}}
    atoms = salt()
    atoms.info = columns | data | held | {'odd': object(), ('a', 1): 1}
    file = tmp_path / f'one.{form}'
    assert not write_structures(file, [atoms], form)
    row = connect(file).get(1)
    assert row.key_value_pairs == columns | {'gap': 1.5}
    assert row.data.keys() == data.keys() | {'kpoints'}
    assert row.data['group'] == {'number': 225, 'setting': 1}
    assert "info 'odd', info \"('a', 1)\"; it is left out" in caplog.text


@pytest.mark.parametrize('form', ['db', 'json', 'extxyz'])
def test_many_structures_cost_as_many_times_as_much(form, tmp_path):
    file, costs = tmp_path / f'many.{form}', []
    for n in (60, 480):
        begun = process_time()
        assert not write_structures(file, [salt()] * n, form)
        costs.append(process_time() - begun)
    assert len(read(file, ':')) == 480
    assert costs[1] < 24 * costs[0]  # in proportion it is 8, and to the square 64


# Values and names that ASE writes without a word, and reads otherwise or not at all.
ODD = {
    'ends in a backslash': {'x': 'a\\'},
    'backslash and quote': {'x': '\\"'},
    'line break': {'x': 'one\ntwo'},
    'empty': {'x': ''},
    'ragged': {'x': [[1, 2], [3]]},
    'an object': {'x': object()},
    'bytes': {'x': b'abc'},
    'surrogate': {'x': '\ud800'},
    'number for a name': {5: 1.0},
    'tuple for a name': {('a', 1): 1.0},
    'blank in a name': {'a b': 1.0},
    'Lattice': {'Lattice': 'x'},
    'Properties': {'Properties': 1.5},
    'pbc': {'pbc': 'F F F'},
    'stress': {'stress': 1.5},
    'forces': {'forces': 'none'},
    'key_value_pairs': {'key_value_pairs': {'a': np.arange(2)}},
}


@pytest.mark.filterwarnings('ignore:Skipping unhashable')
@pytest.mark.parametrize('form', ['extxyz', 'traj'])
@pytest.mark.parametrize('info', ODD.values(), ids=ODD)
def test_odd_info_spoils_no_file(info, form, tmp_path):
    atoms = salt()
    atoms.info = info | {'beside': 7}
    file = tmp_path / f'odd.{form}'
    assert not write_structures(file, [atoms, salt()], form)
    first, second = read(file, index=':')
    assert first.info['beside'] == 7
    assert first.calc is None
    for found in (first, second):
        np.testing.assert_allclose(found.positions, atoms.positions, atol=1e-7)
        np.testing.assert_allclose(found.cell.array, atoms.cell.array)
        assert found.pbc.all()


def test_results_of_the_input_are_not_read_as_those_of_the_relaxed_structure(
    tmp_path, caplog
):
    atoms = salt()
    atoms.info['energy'] = -1.0
    atoms.arrays['forces'] = np.ones((len(atoms), 3))
    write_structures(tmp_path / 'predicted.extxyz', [atoms], 'extxyz')
    assert read(tmp_path / 'predicted.extxyz').calc is None
    assert "info 'energy', array 'forces'" in caplog.text
    atoms.calc = SinglePointCalculator(atoms, energy=-2.0, forces=np.zeros((8, 3)))
    assert not write_structures(tmp_path / 'refined.extxyz', [atoms], 'extxyz')
    assert read(tmp_path / 'refined.extxyz').get_potential_energy() == -2.0


def test_arrays_that_extxyz_cannot_hold_are_named(tmp_path, caplog):
    atoms = salt()
    n = len(atoms)
    good = {'whole': np.arange(n), 'text': np.array(['ab'] * n), 'rows': np.ones((n, 2))}
    good['read'] = np.array(['ab'] * n, dtype=object)  # as ASE reads text
    bad = {
        'blank': np.array(['a b'] * n),
        'empty': np.array([''] * n),
        'complex': np.ones(n) * 1j,
        'mixed': np.array(['ab', None] * (n // 2), dtype=object),
        'deep': np.ones((n, 3, 3)),
        'large': np.full(n, 2**31),
        'a name': np.ones(n),
        'pos': np.ones((n, 3)),
    }
    atoms.arrays |= good | bad
    assert not write_structures(tmp_path / 'a.extxyz', [atoms], 'extxyz')
    found = read(tmp_path / 'a.extxyz')
    assert found.arrays.keys() - {'numbers', 'positions'} == good.keys()
    assert all(repr(name) in caplog.text for name in bad)


@pytest.mark.parametrize('form', ['traj', 'db', 'json'])
def test_arrays_that_have_no_place_are_named(form, tmp_path, caplog):
    atoms = salt()
    atoms.set_tags(range(8))
    atoms.set_initial_charges([1, -1] * 4)
    atoms.arrays |= {keys.SIGMA: np.ones(8), 'spacegroup_kinds': np.zeros(8, int)}
    assert not write_structures(tmp_path / f'a.{form}', [atoms], form)
    assert not caplog.records
    atoms.arrays['site'] = np.arange(8)
    assert not write_structures(tmp_path / f'b.{form}', [atoms], form)
    assert f"{form} files cannot hold array 'site'; it is left out" in caplog.text
    found = read(tmp_path / f'b.{form}')
    assert found.get_tags().tolist() == list(range(8))
    assert found.get_initial_charges().tolist() == [1, -1] * 4


def test_a_space_group_of_ase_is_kept_as_text():
    atoms = salt()
    atoms.info['spacegroup'] = Spacegroup(225)
    assert writable(atoms, 'extxyz') is atoms


def test_names_of_any_type_in_info():
    atoms = salt()
    atoms.info = {5: 1, ('a',): 2, keys.SIGMA: 0.1}
    assert keys.ours(atoms) == {keys.SIGMA: 0.1}
    keys.strip(atoms)
    assert atoms.info == {5: 1, ('a',): 2}
