"""Reduction of lattices, and the bases that are equally good."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ase_deeprelax.errors import StructureError
from ase_deeprelax.geometry.lattice import (
    SKEW,
    canonical_bases,
    compact,
    lattice_misfit,
    lattice_symmetries,
    reduced_basis,
)
from tests.strategies import SYSTEMS, cell_of, prototypes, quick, seeds, unimodular


@st.composite
def cells(draw):
    rng = np.random.default_rng(draw(seeds()))
    return cell_of(draw(st.sampled_from(SYSTEMS)), rng, 100.0)


@quick
@given(cells(), unimodular(steps=8, largest=9))
def test_reduced_basis_is_minkowski(cell, basis):
    reduced = reduced_basis(basis @ cell) @ basis @ cell
    assert abs(np.linalg.det(reduced)) == pytest.approx(100.0)
    lengths = np.linalg.norm(reduced, axis=1)
    assert (np.diff(lengths) > -1e-8).all()
    # no vector can be shortened by the two others, nor by any short combination
    for k in range(3):
        for x in range(-3, 4):
            for y in range(-3, 4):
                other = np.roll([0, x, y], k) @ reduced
                assert np.linalg.norm(reduced[k] + other) >= lengths[k] - 1e-8


@quick
@given(cells(), unimodular(steps=8, largest=9))
def test_canonical_bases_do_not_depend_on_the_basis(cell, basis):
    metrics = []
    for given_cell in (cell, basis @ cell):
        reduced = reduced_basis(given_cell) @ given_cell
        vectors = canonical_bases(reduced, 1e-3) @ reduced
        found = np.einsum('nix,njx->nij', vectors, vectors)
        assert 2 <= len(found) <= 48
        np.testing.assert_allclose(found, found[:1].repeat(len(found), 0), atol=0.02)
        metrics.append(found[0])
    np.testing.assert_allclose(*metrics, atol=0.02)


@pytest.mark.parametrize(
    ('name', 'count'),
    [
        ('Cu fcc', 48),
        ('Fe bcc', 48),
        ('SrTiO3', 48),
        ('Mg hcp', 24),
        ('TiO2 rutile', 16),
        ('Al2O3', 12),
        ('CaTiO3', 8),
        ('ZrO2 baddeleyite', 4),
    ],
)
def test_lattice_symmetries_of_holohedries(name, count):
    cell = prototypes()[name].cell.array
    cell = reduced_basis(cell) @ cell
    found = lattice_symmetries(cell, 1e-3)
    assert len(found) == count == len(canonical_bases(cell, 1e-3))
    turns = np.linalg.inv(cell) @ found @ cell
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1) - np.eye(3), 0, atol=1e-6)


@quick
@given(cells(), seeds())
def test_the_misfit_of_a_lattice_is_how_far_its_vectors_are_from_an_equal_shape(cell, seed):
    """In lengths, and in products of two vectors over the sum of their lengths."""
    rng = np.random.default_rng(seed)
    basis = np.eye(3, dtype=int)[rng.permutation(3)] * rng.choice([-1, 1], 3)[:, None]
    old, new = (x @ x.T for x in (cell, basis @ cell))
    lengths = np.sqrt(np.diag(old))
    expected = [np.abs(np.sqrt(np.diag(new)) - lengths).max()]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        expected.append(abs(new[i, j] - old[i, j]) / (lengths[i] + lengths[j]))
    assert lattice_misfit(cell, basis[None])[0] == pytest.approx(max(expected), abs=1e-9)


def test_a_cell_whose_lattice_rounding_hides_is_refused():
    """Each vector can be shortened by the others for ever, by what is lost in digits."""
    a = 2.844393168277005
    cell = [
        [0.0, a, a],
        [a, 284439.3168277005, 284442.16122086876],
        [-853315.1060899332, 22.75514534621604, -853298.0397309235],
    ]
    with pytest.raises(StructureError, match='too skewed to be reduced'):
        reduced_basis(np.array(cell))


def test_a_huge_skew_is_undone():
    cell = np.diag([3.0, 4.0, 5.0])
    skewed = np.array([[1, 0, 0], [1000, 1, 0], [-70_000, 300, 1]]) @ cell
    np.testing.assert_allclose(
        np.abs(reduced_basis(skewed) @ skewed).round(6), np.diag([3.0, 4.0, 5.0])
    )


@quick
@given(cells(), unimodular(steps=6), seeds())
def test_compact_keeps_the_crystal(cell, basis, seed):
    rng = np.random.default_rng(seed)
    cell = basis @ cell
    positions = rng.uniform(-1, 1, (5, 3)) * 1e6
    wrapped, small, change = compact(positions, cell)
    if change is not None:
        np.testing.assert_allclose(change @ cell, small, atol=1e-9)
        assert abs(round(np.linalg.det(change))) == 1
    frac = wrapped @ np.linalg.inv(small)
    assert frac.min() >= -1e-9
    assert frac.max() <= 1 + 1e-9
    moved = (wrapped - positions) @ np.linalg.inv(cell)
    np.testing.assert_allclose(moved, np.rint(moved), atol=1e-6)
    heights = 1 / np.linalg.norm(np.linalg.inv(small), axis=0)
    assert (np.linalg.norm(small, axis=1) / heights).max() <= SKEW + 1e-9
