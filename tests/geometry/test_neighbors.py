"""Close pairs in boxes of any shape, beside ASE's neighbour list."""

import numpy as np
import pytest
from ase.build import fcc111, molecule
from ase.neighborlist import neighbor_list as ase_neighbor_list
from hypothesis import given
from hypothesis import strategies as st

from ase_deeprelax.errors import StructureError
from ase_deeprelax.geometry import neighbors
from ase_deeprelax.geometry.neighbors import close_pairs, neighbor_list
from tests.strategies import crystals, orthogonal, quick


def by_tree(monkeypatch):
    monkeypatch.setattr(neighbors, '_is_safe', lambda *_: False)


def compare(atoms, cutoff, found):
    """The same pairs, each once, nearest first."""
    i, j, distance = found
    first, second, shift, length = ase_neighbor_list('ijSd', atoms, cutoff)
    half = (first < second) | ((first == second) & (shift @ [9e4, 3e2, 1] > 0))
    expected = sorted(zip(first[half], second[half], length[half].round(6), strict=True))
    i, j = np.minimum(i, j), np.maximum(i, j)
    assert sorted(zip(i, j, distance.round(6), strict=True)) == expected
    assert (np.diff(distance) >= 0).all()


@pytest.mark.parametrize('tree', [False, True])
@quick
@given(atoms=crystals(max_atoms=8), cutoff=st.sampled_from([1.5, 3.0]))
def test_close_pairs_are_those_of_ase(tree, atoms, cutoff):
    with pytest.MonkeyPatch.context() as patch:
        if tree:
            by_tree(patch)
        compare(atoms, cutoff, close_pairs(atoms.positions, atoms.cell.array, cutoff))


@quick
@given(crystals(max_atoms=8), st.sampled_from([2.0, 4.0]))
def test_both_searches_give_the_same_list(atoms, cutoff):
    atoms.positions += np.array([3, -2, 1]) @ atoms.cell.array
    usual = neighbor_list(atoms.positions, atoms.cell.array, cutoff)
    with pytest.MonkeyPatch.context() as patch:
        by_tree(patch)
        for one, two in zip(
            usual, neighbor_list(atoms.positions, atoms.cell.array, cutoff), strict=True
        ):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    'atoms', [molecule('C2H6'), fcc111('Al', (2, 1, 3), vacuum=4)], ids=['molecule', 'slab']
)
def test_structures_that_are_not_periodic_along_all_vectors(atoms):
    found = close_pairs(atoms.positions, atoms.cell.array, 3.0, atoms.pbc)
    compare(atoms, 3.0, found)


@pytest.mark.parametrize(
    ('cell', 'pairs'),
    [
        ([700.0, 3.0, 700.0], 0),
        ([1e6, 3.0, 1e6], 0),
        ([1e9, 1e9, 1e9], 0),
        ([1e8, 1.0, 1e8], 1),
        ([0.9, 0.9, 1e7], 4),
    ],
)
def test_boxes_in_which_a_bare_search_ends_the_process(cell, pairs):
    _, _, distance = close_pairs(np.zeros((1, 3)), np.diag(cell), 1.4)
    assert len(distance) == pairs
    i, _, _ = neighbor_list(np.zeros((1, 3)), np.diag(cell), 1.4)
    assert len(i) == 2 * pairs


@pytest.mark.parametrize(
    ('cell', 'words'),
    [
        (np.zeros((3, 3)), 'has no volume'),
        (np.ones((3, 3)), 'has no volume'),
        (np.diag([1e-7, 1e-7, 1.0]), 'too thin'),
        (np.diag([1e13, 1.0, 1.0]), 'too far for double precision'),
        (np.diag([1e300, 1.0, 1.0]), 'has no volume|too far'),
    ],
)
def test_cells_that_are_refused(cell, words):
    with pytest.raises(StructureError, match=words):
        close_pairs(np.zeros((1, 3)), cell, 1.0)


def test_a_shell_is_the_same_in_all_orientations():
    """Distances of 3 and 3.001 A differ by just the tolerance."""
    cell, counts = np.diag([3.0, 3.001, 3.002]), set()
    for seed in range(20):
        turned = cell @ orthogonal(seed)
        counts.add(len(neighbor_list(np.zeros((1, 3)), turned, 4.0, max_neighbors=2)[0]))
    assert counts == {4}
