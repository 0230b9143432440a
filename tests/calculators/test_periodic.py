"""Boxes in which potentials for crystals see a structure."""

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given
from hypothesis import strategies as st

from ase_deeprelax.calculators.periodic import BOX_VACUUM, periodic_box, right_handed
from ase_deeprelax.errors import StructureError

numbers = st.integers(0, 2**32 - 1)


def structure(seed, pbc):
    """Atoms in a skewed cell of either handedness, some of them outside of it."""
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(2, 30, 3)) + rng.uniform(-1.5, 1.5, (3, 3))
    cell = cell[rng.permutation(3)]
    return Atoms('NaCl2', cell=cell, positions=rng.uniform(-5, 25, (3, 3)), pbc=pbc)


def thickness(atoms, k):
    """Of the atoms, and from one image to the next, across the planes of two vectors, A."""
    normal = atoms.cell.reciprocal()[k]
    normal = normal / np.linalg.norm(normal)
    return np.ptp(atoms.positions @ normal), abs(atoms.cell.array[k] @ normal)


@given(numbers, st.lists(st.booleans(), min_size=3, max_size=3))
def test_a_box_has_the_same_atoms_and_vacuum_where_there_was_no_period(seed, pbc):
    atoms = structure(seed, pbc)
    box = periodic_box(atoms)
    assert box.pbc.all()
    assert np.array_equal(box.numbers, atoms.numbers)
    assert np.array_equal(box.positions, atoms.positions)
    for k in range(3):
        old, new = atoms.cell.array[k], box.cell.array[k]
        ratio = np.linalg.norm(new) / np.linalg.norm(old)
        np.testing.assert_allclose(new, ratio * old, rtol=1e-9)
        occupied, height = thickness(box, k)
        if pbc[k]:
            assert ratio == 1
            continue
        assert ratio >= 1
        assert height >= occupied + BOX_VACUUM - 1e-9
        if ratio > 1 + 1e-9:  # no longer than it has to be
            assert height == pytest.approx(occupied + BOX_VACUUM)


def test_a_crystal_is_its_own_box():
    atoms = structure(0, True)
    assert periodic_box(atoms) is atoms


@pytest.mark.parametrize('rank', [0, 1, 2])
def test_a_missing_vector_is_told(rank):
    cell = np.diag([4.0] * rank + [0.0] * (3 - rank))
    with pytest.raises(StructureError, match='has no box'):
        periodic_box(Atoms('Na', cell=cell, pbc=False))


@given(numbers, st.lists(st.booleans(), min_size=3, max_size=3))
def test_a_right_handed_cell_repeats_the_same_structure(seed, pbc):
    atoms = structure(seed, pbc)
    right = right_handed(atoms)
    assert right.cell.handedness == 1
    assert right.cell.volume == pytest.approx(atoms.cell.volume)
    assert np.array_equal(right.positions, atoms.positions)
    assert np.array_equal(right.numbers, atoms.numbers)
    periods = [{tuple(row) for row in one.cell.array[one.pbc]} for one in (atoms, right)]
    assert periods[0] == periods[1]
    if atoms.cell.handedness == 1:
        assert right is atoms
