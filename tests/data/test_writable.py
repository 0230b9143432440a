import logging

import numpy as np
import pytest
from ase.build import bulk
from ase.constraints import FixAtoms, FixCartesian, FixedPlane, FixInternals, FixScaled
from ase.db import connect
from ase.io import read, write

from ase_deeprelax import keys
from ase_deeprelax.data import writable
from ase_deeprelax.data.structure_files import columns_of
from ase_deeprelax.data.writable import as_writable


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch):
    monkeypatch.setattr(writable, '_named', set())


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
    write(tmp_path / name, as_writable(atoms, form))
    np.testing.assert_array_equal(held(read(tmp_path / name)), held(atoms))
    assert len(atoms.constraints) == 3
    assert not caplog.records


def test_what_is_lost_is_named_once_per_kind(caplog):
    caplog.set_level(logging.WARNING)
    atoms = salt(FixScaled([1], [True, False, False]), FixedPlane(3, [0, 0, 1]), skew=0.4)
    for _ in range(3):
        assert as_writable(atoms, 'extxyz').constraints == []
    text = caplog.text
    assert len(caplog.records) == 2
    assert 'constraint FixScaled' in text
    assert 'constraint FixedPlane' in text
    as_writable(salt(FixAtoms([0])), 'cif')
    assert 'FixAtoms' in caplog.text


def test_atoms_that_need_no_change_are_the_same_object():
    for atoms in (salt(), salt(FixAtoms([0]), FixCartesian([1], (True, False, False)))):
        assert as_writable(atoms, 'extxyz') is atoms
    anything = salt(FixInternals(bonds=[[2.0, [0, 1]]]))
    assert as_writable(anything, 'traj') is anything


def test_a_database_takes_each_value_of_ours_once_as_column_or_as_data(tmp_path):
    atoms = bulk('Cu')
    atoms.info |= {
        'mine': 3,
        keys.SIGMA: np.float64(0.1),
        keys.MODEL: '42',  # ase.db refuses text that reads as a number
        keys.KIND: 'bulk',
        keys.STAGE: '',
        keys.SIGMA_ATOMS: np.zeros(1),
    }
    columns, data = columns_of(atoms)
    assert columns == keys.to_key_value_pairs(atoms) == {keys.SIGMA: 0.1, keys.KIND: 'bulk'}
    assert set(data) == {keys.MODEL, keys.STAGE, keys.SIGMA_ATOMS}
    with connect(tmp_path / 'one.db') as database:
        database.write(atoms, columns, data)
    assert connect(tmp_path / 'one.db').get(1).data[keys.MODEL] == '42'
