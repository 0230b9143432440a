"""Space groups: found as spglib finds them, kept by what is projected on them."""

import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import spglib
from ase import Atoms
from ase.build import bulk, fcc111
from hypothesis import given
from hypothesis import strategies as st

from ase_deeprelax.geometry.motion import in_plane_strains, strain_projection
from ase_deeprelax.geometry.symmetry import (
    find_symmetry,
    primitive_size,
    spacegroup_number,
)
from ase_deeprelax.geometry.vacuum import find_layer
from tests.strategies import crystals, disguise, orthogonal, prototypes, quick

pytestmark = pytest.mark.filterwarnings('ignore:Set OLD_ERROR_HANDLING')
SEEDS = Path(__file__).parents[2] / '../shared' / 'data' / 'seeds_mp.jsonl.gz'


def random_prediction(seed, n_atoms, size=0.3):
    rng = np.random.default_rng(seed)
    strain = rng.uniform(-0.15, 0.15, (3, 3))
    return np.eye(3) + strain + strain.T, size * rng.normal(size=(n_atoms, 3))


def apply(atoms, s, u):
    result = atoms.copy()
    result.positions = (atoms.positions + u) @ s
    result.set_cell(atoms.cell.array @ s)
    return result


def dataset(atoms, symprec):
    cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
    return spglib.get_symmetry_dataset(cell, symprec=symprec)


def point_group_order(found):
    """Of the crystal, also where the lattice of a supercell has less."""
    rotations = spglib.get_symmetry_from_database(found.hall_number)['rotations']
    return len(np.unique(rotations, axis=0))


def assert_operations(atoms, symmetry, tolerance):
    """Every operation carries the crystal onto itself."""
    counts = np.bincount(symmetry.primitive)
    assert len(set(counts)) == 1
    first = np.unique(symmetry.primitive, return_index=True)[1]
    volume = abs(atoms.cell.volume) / counts[0]
    # all translations between images of one primitive atom are lattice vectors
    alike = atoms.positions[symmetry.primitive == 0]
    vectors = np.vstack([alike - alike[0], atoms.cell.array])
    for q, permutation in zip(symmetry.rotations, symmetry.permutations, strict=True):
        np.testing.assert_allclose(q @ q.T, np.eye(3), atol=1e-9)
        assert sorted(permutation) == list(range(len(counts)))
        numbers = atoms.numbers[first]
        np.testing.assert_array_equal(numbers[permutation], numbers)
        places = atoms.positions[first]
        off = places[permutation] - places @ q
        assert_lattice_vectors(vectors @ q, vectors, volume, tolerance)
        assert_lattice_vectors(off - off[0], vectors, volume, tolerance)


def assert_lattice_vectors(test, vectors, volume, tolerance):
    for triple in itertools.combinations(vectors, 3):
        if abs(abs(np.linalg.det(triple)) - volume) < 1e-3 * volume:
            frac = test @ np.linalg.inv(triple)
            off = (frac - np.rint(frac)) @ triple
            assert np.linalg.norm(off, axis=1).max() < tolerance
            return
    raise AssertionError('translations do not span the primitive cell')


@pytest.mark.parametrize('name', prototypes())
@pytest.mark.parametrize('repeat', [(1, 1, 1), (2, 1, 1), (2, 2, 2)])
def test_operations_are_those_of_spglib(name, repeat):
    atoms = prototypes()[name] * repeat
    symmetry = find_symmetry(atoms)
    found = dataset(atoms, 1e-2)
    assert len(symmetry.rotations) == point_group_order(found)
    assert spacegroup_number(atoms) == found.number
    pairs = set(zip(symmetry.primitive, found.mapping_to_primitive, strict=True))
    assert (
        len(pairs) == symmetry.primitive.max() + 1 == found.mapping_to_primitive.max() + 1
    )
    if repeat != (2, 1, 1):
        assert_operations(atoms, symmetry, 0.01)


@pytest.mark.parametrize('repeat', [(1, 1, 1), (2, 1, 1), (3, 3, 3)])
def test_operations_carry_atoms_to_atoms_of_their_element(repeat):
    """A half-Heusler crystal: the inversion of one element would swap the two others."""
    atoms = bulk('LiMgPd', 'fluorite', a=6.2) * repeat
    assert len(set(atoms.numbers)) == 3
    symmetry = find_symmetry(atoms)
    assert len(symmetry.rotations) == 24 == point_group_order(dataset(atoms, 1e-2))
    assert symmetry.n_primitive == 3


@pytest.mark.parametrize('repeat', [(1, 1, 1), (3, 1, 1), (4, 3, 3)])
def test_large_cells_go_another_way_to_the_same_operations(repeat):
    atoms = prototypes()['SrTiO3'] * repeat
    symmetry = find_symmetry(atoms)
    assert len(symmetry.rotations) == 48
    assert symmetry.permutations.shape == (48, 5)
    # one primitive cell too large for the direct search
    rng = np.random.default_rng(0)
    atoms = atoms * (2, 2, 2) if len(atoms) == 180 else atoms
    atoms.positions[0] += [0.0, 0.0, 0.3]
    symmetry = find_symmetry(atoms)
    found = dataset(atoms, 1e-2)
    assert len(symmetry.rotations) == point_group_order(found)
    s, u = symmetry.project(*random_prediction(rng, len(atoms), 0.02))
    assert dataset(apply(atoms, s, u), 1e-3).number == found.number


def test_a_large_hexagonal_cell():
    atoms = bulk('Mg') * (5, 5, 3)
    atoms.symbols[70] = 'Al'
    symmetry = find_symmetry(atoms)
    found = dataset(atoms, 1e-2)
    assert symmetry.permutations.shape == (12, 150)
    s, u = symmetry.project(*random_prediction(0, 150, 0.02))
    assert dataset(apply(atoms, s, u), 1e-3).number == found.number == 187


@pytest.mark.parametrize('seed', range(5))
def test_a_rattled_supercell_is_one_within_the_tolerance(seed):
    atoms = prototypes()['NaCl'] * (4, 3, 2)
    atoms.rattle(1e-3, seed=seed)
    symmetry = find_symmetry(atoms)
    assert symmetry.permutations.shape == (48, 2)


@quick
@given(st.data())
def test_the_writing_does_not_matter(data):
    name = data.draw(st.sampled_from(sorted(prototypes())))
    atoms = prototypes()[name]
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    q = orthogonal(data.draw(st.integers(0, 10_000)), improper=data.draw(st.booleans()))
    basis = np.array([[1, 2, 0], [0, -1, 0], [5, 0, 1]])
    other = disguise(atoms, rng, rotation=q, basis=basis)
    a, b = find_symmetry(atoms), find_symmetry(other)
    assert len(a.rotations) == len(b.rotations)
    if np.linalg.det(q) > 0:  # the mirror image of P3_121 is P3_221
        assert spacegroup_number(other) == spacegroup_number(atoms)
    s, u = random_prediction(0, len(atoms))
    s1, u1 = a.project(s, u)
    s2, u2 = b.project(q.T @ s @ q, (u @ q)[other.arrays['was']])
    np.testing.assert_allclose(q.T @ s1 @ q, s2, atol=1e-8)
    np.testing.assert_allclose((u1 @ q)[other.arrays['was']], u2, atol=1e-8)


@pytest.mark.parametrize('name', prototypes())
def test_space_group_is_kept_over_seeds(name):
    """18 crystals x 12 seeds of random strain and displacements, as supercells too."""
    for seed in range(12):
        atoms = prototypes()[name] * [(1, 1, 1), (2, 1, 1), (1, 2, 2)][seed % 3]
        before = dataset(atoms, 1e-3)
        s, u = random_prediction(seed, len(atoms), size=0.1)
        s, u = find_symmetry(atoms).project(s, u)
        after = dataset(apply(atoms, s, u), 1e-3)
        assert after.number == before.number
        bare = dataset(apply(atoms, *random_prediction(seed, len(atoms), 0.1)), 1e-3)
        assert bare.number < before.number


@quick
@given(crystals(max_atoms=8), st.integers(0, 2**32 - 1))
def test_a_projection_is_one(atoms, seed):
    symmetry = find_symmetry(atoms)
    s, u = random_prediction(seed, len(atoms))
    s1, u1 = symmetry.project(s, u)
    s2, u2 = symmetry.project(s1, u1)
    np.testing.assert_allclose(s1, s2, atol=1e-9)
    np.testing.assert_allclose(u1, u2, atol=1e-9)
    np.testing.assert_allclose(s1, s1.T, atol=1e-12)
    assert np.linalg.eigvalsh(s1).min() >= np.linalg.eigvalsh(s).min() - 1e-12
    np.testing.assert_allclose(u1.mean(axis=0), 0, atol=1e-12)


@pytest.mark.parametrize('name', sorted(set(prototypes()) - {'NaCl, 2x1x1'}))
def test_projection_is_the_average_over_all_operations(name):
    """Against a plain loop over spglib's list, pure translations included."""
    atoms = prototypes()[name]
    if len(atoms) <= 3:
        atoms *= (2, 2, 2)  # the lattice keeps all operations
    s, u = random_prediction(3, len(atoms))
    cell, frac = atoms.cell.array, atoms.get_scaled_positions()
    found = dataset(atoms, 1e-3)
    s_sum, u_sum = np.zeros((3, 3)), np.zeros_like(u)
    for rotation, translation in zip(found.rotations, found.translations, strict=True):
        q = np.linalg.inv(cell) @ rotation.T @ cell
        image = frac @ rotation.T + translation
        s_sum += q.T @ s @ q
        for a in range(len(atoms)):
            delta = frac - image[a]
            delta = (delta - np.rint(delta)) @ cell
            u_sum[np.linalg.norm(delta, axis=1).argmin()] += u[a] @ q
    count = len(found.rotations)
    s1, u1 = find_symmetry(atoms, 1e-3).project(s, u)
    np.testing.assert_allclose(s1, s_sum / count, atol=1e-6)
    expected = u_sum / count
    np.testing.assert_allclose(u1, expected - expected.mean(axis=0), atol=1e-6)


@quick
@given(st.tuples(*3 * [st.floats(0, 0.02)]), st.integers(1, 4))
def test_at_the_edge_of_the_tolerance_operations_still_form_a_group(stretch, repeat):
    # a is within the tolerance of b, b of c, but not a of c
    atoms = Atoms('Cu', cell=[4, 4.008, 4.016], pbc=True) * (repeat, 1, 1)
    atoms.set_cell(atoms.cell.array + np.diag(stretch), scale_atoms=True)
    rotations = find_symmetry(atoms).rotations
    products = (rotations[:, None] @ rotations).reshape(-1, 1, 9)
    off = np.abs(products - rotations.reshape(1, -1, 9)).max(axis=2).min(axis=1)
    assert off.max() < 0.02


def test_what_is_symmetric_already_is_not_changed():
    atoms = prototypes()['TiO2 rutile']
    s = np.diag([1.1, 1.1, 0.9])
    u = np.zeros((6, 3))
    frac = atoms.get_scaled_positions()
    for k in np.flatnonzero(atoms.numbers == 8):  # the one free parameter of rutile
        # each oxygen moves along its own bond, within the plane
        delta = frac[k] - frac[[0, 1]]
        delta = (delta - np.rint(delta)) @ atoms.cell.array
        near = delta[np.abs(delta[:, 2]) < 0.1][0]
        u[k] = 0.05 * near / np.linalg.norm(near)
    s1, u1 = find_symmetry(atoms).project(s, u)
    np.testing.assert_allclose(s1, s, atol=1e-9)
    np.testing.assert_allclose(u1, u, atol=1e-9)


@pytest.mark.parametrize('name', ['NaCl, 2x1x1', 'CaTiO3', 'SiO2 quartz', 'Mg hcp'])
def test_a_rattled_crystal_is_not_moved_onto_ideal_sites(name):
    atoms = prototypes()[name]
    atoms.rattle(1e-3, seed=5)
    symmetry = find_symmetry(atoms)
    assert len(symmetry.rotations) > 1
    s, u = symmetry.project(np.eye(3), np.zeros((len(atoms), 3)))
    np.testing.assert_allclose(s, np.eye(3), atol=1e-9)
    np.testing.assert_array_equal(u, 0)
    number = spacegroup_number(atoms)
    assert number == spacegroup_number(prototypes()[name])
    s, u = symmetry.project(*random_prediction(1, len(atoms), 0.05))
    assert spacegroup_number(apply(atoms, s, u)) == number


def test_a_strained_cell_within_symprec_keeps_its_strain():
    atoms = bulk('NaCl', 'rocksalt', a=5.64, cubic=True)
    atoms.set_cell(atoms.cell.array @ np.diag([1.0005, 1, 1]), scale_atoms=True)
    s, u = find_symmetry(atoms).project(*random_prediction(0, len(atoms)))
    relaxed = apply(atoms, s, u)
    lengths = np.linalg.norm(relaxed.cell.array, axis=1)
    assert lengths[0] / lengths[1] == pytest.approx(1.0005, abs=1e-9)
    np.testing.assert_allclose(u, 0, atol=1e-3)


@quick
@given(crystals(min_atoms=4, max_atoms=10))
def test_without_symmetry_only_the_drift_goes(atoms):
    symmetry = find_symmetry(atoms)
    if len(symmetry.rotations) > 1:
        return
    s, u = random_prediction(0, len(atoms))
    s1, u1 = symmetry.project(s, u)
    np.testing.assert_array_equal(s1, s)
    np.testing.assert_allclose(u1, u - u.mean(axis=0), atol=1e-12)


def test_number_is_zero_where_spglib_gives_up():
    twice = Atoms('Cu2', positions=[[0, 0, 0], [0, 0, 0]], cell=3 * np.eye(3), pbc=True)
    assert spacegroup_number(twice) == 0


@pytest.mark.skipif(not SEEDS.exists(), reason='needs ../shared/data/seeds_mp.jsonl.gz')
def test_real_crystals_agree_with_spglib():
    with gzip.open(SEEDS, 'rt') as lines:
        records = [json.loads(line) for line in itertools.islice(lines, 0, 20_000, 100)]
    differ, kept = 0, 0
    for record in records:
        atoms = Atoms(
            numbers=record['numbers'],
            cell=record['cell'],
            scaled_positions=record['frac'],
            pbc=True,
        )
        symmetry = find_symmetry(atoms)
        found = dataset(atoms, 1e-2)
        differ += len(symmetry.rotations) != point_group_order(found)
        s, u = symmetry.project(*random_prediction(0, len(atoms), 0.02))
        after = dataset(apply(atoms, s, u), 1e-2)
        kept += after is not None and after.number >= found.number
    # at the tolerance's edge the two may judge differently
    assert differ <= 0.01 * len(records)
    assert kept >= 0.99 * len(records)


# --- layers, fixed atoms, fixed strains -------------------------------------------------


def test_a_fixed_bottom_takes_operations_away():
    slab = fcc111('Al', (1, 1, 4), vacuum=8, periodic=True)
    layer = find_layer(slab)
    labels = (slab.positions[:, 2] < slab.positions[:, 2].mean()).astype(int)
    whole = find_symmetry(slab, layer=layer).rotations
    tagged = find_symmetry(slab, labels=labels, layer=layer).rotations
    assert len(whole) == 12  # D3d
    assert len(tagged) == 6  # C3v: nothing turns the slab over
    np.testing.assert_allclose(tagged @ layer.normal, np.tile(layer.normal, (6, 1)))


@pytest.mark.parametrize('height', [2.9, 15.0, 60.0])
def test_the_group_of_a_layer_does_not_know_the_box(height):
    """In a box as high as its lattice vectors are long, a square layer is no cube."""
    square = Atoms('Cu', cell=[2.9, 2.9, height], pbc=(True, True, False))
    found = find_symmetry(square, layer=find_layer(square))
    assert len(found.rotations) == 16
    s, _ = found.project(np.diag([1.1, 1.1, 0.9]), np.zeros((1, 3)))
    np.testing.assert_allclose(s, np.diag([1.1, 1.1, 0.9]), atol=1e-12)


def test_a_slab_in_a_box_that_repeats_it_seamlessly_is_no_crystal():
    slab = fcc111('Cu', (2, 2, 3))
    slab.cell[2] = 3 * (slab.positions[4] - slab.positions[0])  # to the next three planes
    slab.pbc = True, True, False
    assert primitive_size(slab) == 1
    assert primitive_size(slab, layer=find_layer(slab)) == 3


def test_displacements_beside_fixed_atoms_keep_their_drift():
    nacl = bulk('NaCl', 'rocksalt', a=5.6)
    nacl.positions += [0.1, 0.0, 0.0] * np.array([[0], [1]])
    moves = np.array([[0, 0, 0], [0.1, 0.0, 0.0]])
    _, free = find_symmetry(nacl).project(np.eye(3), moves)
    _, held = find_symmetry(nacl, labels=np.array([1, 0])).project(np.eye(3), moves)
    np.testing.assert_allclose(free, moves - moves.mean(0), atol=1e-12)
    np.testing.assert_allclose(held, moves, atol=1e-12)
    # Atoms that are fixed in part only say no place of the crystal.
    _, partly = find_symmetry(nacl, labels=np.array([2, 0])).project(np.eye(3), moves)
    np.testing.assert_allclose(partly, moves - moves.mean(0), atol=1e-12)


def test_operations_that_turn_free_strains_into_held_ones_are_left_out():
    cubic = find_symmetry(bulk('Cu'))
    plane = strain_projection(in_plane_strains(np.array([0, 0, 1.0]), thickness=False))
    assert len(cubic.keeping(np.eye(6)).rotations) == 48
    assert len(cubic.keeping(np.zeros((6, 6))).rotations) == 48
    assert len(cubic.keeping(plane).rotations) == 16
    s, _ = cubic.keeping(plane).project(np.diag([1.1, 1.1, 1.0]), np.zeros((1, 3)))
    np.testing.assert_allclose(s, np.diag([1.1, 1.1, 1.0]), atol=1e-12)
