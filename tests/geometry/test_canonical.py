"""The canonical frame does not depend on how a crystal was written down."""

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given
from hypothesis import strategies as st

from ase_deeprelax.geometry import canonical as frames
from ase_deeprelax.geometry.canonical import canonicalize
from ase_deeprelax.geometry.symmetry import find_symmetry
from tests.strategies import (
    crystals,
    disguise,
    disguises,
    orthogonal,
    prototypes,
    quick,
    unimodular,
)


def canonical(atoms):
    return canonicalize(atoms.numbers, atoms.positions, atoms.cell.array)


def assert_same_frame(a, b, atol=1e-9):
    np.testing.assert_array_equal(a.numbers, b.numbers)
    np.testing.assert_allclose(a.cell, b.cell, atol=atol)
    np.testing.assert_allclose(a.positions, b.positions, atol=atol)


def answer_without_symmetry(crystal):
    """An answer that sees everything in the frame, as a network with UCOE does.

    It has no symmetry at all: numbers and order of the atoms, x, y, z and the vectors of
    the cell enter in different ways.
    """
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3, 3))
    which = np.arange(len(crystal.numbers))[:, None] + crystal.numbers[:, None]
    u = np.sin(crystal.positions @ weights + which) + np.cos(crystal.cell.sum() + which)
    strain = np.sin(crystal.cell @ weights)
    return np.eye(3) + 0.05 * (strain + strain.T), 0.1 * u


def relax(atoms):
    """That answer in the user's frame, projected on the space group."""
    crystal = canonical(atoms)
    s, u = answer_without_symmetry(crystal)
    back = np.empty_like(u)
    back[crystal.order] = u @ crystal.rotation.T
    return find_symmetry(atoms).project(crystal.rotation @ s @ crystal.rotation.T, back)


@quick
@given(st.data())
def test_the_frame_is_the_crystal(data):
    atoms = data.draw(crystals(max_atoms=12))
    crystal = canonical(atoms)
    q = crystal.rotation
    np.testing.assert_allclose(q @ q.T, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(
        crystal.cell, crystal.basis @ atoms.cell.array @ q, atol=1e-9
    )
    assert abs(round(np.linalg.det(crystal.basis))) == 1
    np.testing.assert_array_equal(crystal.numbers, atoms.numbers[crystal.order])
    assert np.diag(crystal.cell).min() > 0
    assert np.abs(np.triu(crystal.cell, 1)).max() < 1e-12
    # every atom moved by one common translation and by the stated number of cells
    moved = crystal.positions - atoms.positions[crystal.order] @ q
    common = moved - crystal.shift @ crystal.cell
    np.testing.assert_allclose(common, common[:1].repeat(len(atoms), 0), atol=1e-8)
    frac = crystal.positions @ np.linalg.inv(crystal.cell)
    assert frac.min() > -1e-3
    assert frac.max() < 1
    # the origin is an atom of the rarest species
    counts = dict(zip(*np.unique(crystal.numbers, return_counts=True), strict=True))
    assert counts[crystal.numbers[0]] == min(counts.values())
    np.testing.assert_allclose(crystal.positions[0], 0, atol=1e-9)


@quick
@given(st.data())
def test_generic_crystals(data):
    atoms = data.draw(crystals(min_atoms=1, max_atoms=12, disguised=False))
    other = data.draw(disguises(atoms))
    assert_same_frame(canonical(atoms), canonical(other))
    (s, u), (s2, u2) = relax(atoms), relax(other)
    # lengths of all displaced vectors agree whatever the orientation
    old, new = (atoms.positions + u) @ s, (other.positions + u2) @ s2
    assert np.linalg.det(s) == pytest.approx(np.linalg.det(s2), rel=1e-8)
    np.testing.assert_allclose(np.linalg.eigvalsh(s), np.linalg.eigvalsh(s2), atol=1e-8)
    was = other.arrays['was']
    np.testing.assert_allclose(
        np.linalg.norm(u[was], axis=1), np.linalg.norm(u2, axis=1), atol=1e-8
    )
    assert old.shape == new.shape


@pytest.mark.parametrize('name', prototypes())
def test_symmetric_crystals_are_unique_after_projection(name):
    atoms = prototypes()[name]
    s, u = relax(atoms)
    rng = np.random.default_rng(1)
    for trial in range(12):
        q = orthogonal(trial, improper=trial % 2 == 1)
        basis = unimodular_of(rng)
        other = disguise(atoms, rng, rotation=q, basis=basis)
        assert_same_frame(canonical(atoms), canonical(other), atol=1e-8)
        s2, u2 = relax(other)
        np.testing.assert_allclose(q.T @ s @ q, s2, atol=1e-7)
        np.testing.assert_allclose((u @ q)[other.arrays['was']], u2, atol=1e-7)


def unimodular_of(rng):
    basis = np.eye(3, dtype=int)[rng.permutation(3)] * rng.choice([-1, 1], 3)[:, None]
    for _ in range(3):
        i, j = rng.permutation(3)[:2]
        basis[i] += rng.integers(-3, 4) * basis[j]
    return basis


def test_without_projection_symmetric_crystals_are_not_unique():
    # the claim above is no truism: the bare answer depends on which equivalent frame came
    atoms = prototypes()['SrTiO3']
    rng = np.random.default_rng(0)
    answers = set()
    for trial in range(10):
        q = orthogonal(trial)
        other = disguise(atoms, rng, rotation=q, basis=unimodular_of(rng))
        crystal = canonical(other)
        s, _ = answer_without_symmetry(crystal)
        s = q @ crystal.rotation @ s @ crystal.rotation.T @ q.T
        answers.add(tuple(s.round(6).ravel()))
    assert len(answers) > 1


@quick
@given(st.data())
def test_rounding_noise_changes_nothing(data):
    atoms = prototypes()[data.draw(st.sampled_from(sorted(prototypes())))]
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    other = atoms.copy()
    other.positions += rng.normal(size=(len(atoms), 3)) * 1e-7
    other.set_cell(atoms.cell.array * (1 + 1e-8 * rng.normal(size=(3, 3))))
    a, b = canonical(atoms), canonical(other)
    assert_same_frame(a, b, atol=1e-5)


@quick
@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
def test_shared_coordinates_are_no_knife_edge(seed, n_atoms):
    """Atoms on a grid in a cubic cell: few operations, but every coordinate is shared."""
    rng = np.random.default_rng(seed)
    grid = np.array(list(np.ndindex(4, 4, 4))) / 4
    atoms = Atoms(
        rng.choice(['Na', 'Cl'], n_atoms),
        scaled_positions=rng.permutation(grid)[:n_atoms],
        cell=8 * np.eye(3),
        pbc=True,
    )
    for trial in range(4):
        q = orthogonal(trial)
        other = disguise(atoms, rng, rotation=q, basis=unimodular_of(rng))
        other.positions += 1e-9 * rng.normal(size=(n_atoms, 3))
        assert_same_frame(canonical(atoms), canonical(other), atol=1e-7)


@quick
@given(crystals(max_atoms=12), st.sampled_from([1, 20, 300]))
def test_how_many_candidates_are_compared_at_a_time_does_not_matter(atoms, chunk):
    with pytest.MonkeyPatch.context() as patch:
        whole = canonical(atoms)
        patch.setattr(frames, '_CHUNK', chunk)
        assert_same_frame(whole, canonical(atoms))


@quick
@given(st.integers(0, 2**32 - 1))
def test_lengths_from_a_file_of_few_digits_are_no_knife_edge(seed):
    """A cube whose edges differ by rounding; its atoms have no symmetry."""
    rng = np.random.default_rng(seed)
    atoms = Atoms('Li2O3', scaled_positions=rng.random((5, 3)), cell=[6, 6, 6], pbc=True)
    rounded = atoms.copy()
    rounded.set_cell(6 * np.eye(3) + 1e-4 * np.diag(rng.normal(size=3)), scale_atoms=True)
    assert_same_frame(canonical(atoms), canonical(rounded), atol=2e-3)


@quick
@given(st.integers(0, 2**32 - 1), st.sampled_from([(4, 4.001, 5), (6, 6.001, 6.002)]))
def test_lengths_that_differ_by_just_the_tolerance_are_no_knife_edge(seed, lengths):
    rng = np.random.default_rng(seed)
    atoms = Atoms('Li2O3', scaled_positions=rng.random((5, 3)), cell=lengths, pbc=True)
    for trial in range(4):
        other = disguise(atoms, rng, rotation=orthogonal(trial), basis=unimodular_of(rng))
        assert_same_frame(canonical(atoms), canonical(other))


def test_mirror_images_share_a_frame_and_differ_in_rotation():
    quartz = prototypes()['SiO2 quartz']
    mirror = quartz.copy()
    mirror.positions = -mirror.positions
    mirror.set_cell(-mirror.cell.array)
    a, b = canonical(quartz), canonical(mirror)
    assert_same_frame(a, b, atol=1e-9)
    assert np.linalg.det(a.rotation) * np.linalg.det(b.rotation) < 0


def test_different_crystals_have_different_frames():
    nacl = prototypes()['NaCl, 2x1x1']
    moved = nacl.copy()
    moved.positions[1] += [0.05, 0.02, 0.01]
    a, b = canonical(nacl), canonical(moved)
    assert np.abs(a.positions - b.positions).max() > 0.01


@quick
@given(unimodular(steps=8, largest=9))
def test_large_supercells_and_extreme_skew(basis):
    atoms = prototypes()['NaCl'] * (3, 3, 2)
    atoms.rattle(0.05, seed=0)
    rng = np.random.default_rng(0)
    other = disguise(atoms, rng, rotation=orthogonal(3, improper=True), basis=basis)
    assert_same_frame(canonical(atoms), canonical(other), atol=1e-7)
