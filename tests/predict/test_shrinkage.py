from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk, make_supercell, mx2
from ase.constraints import FixAtoms
from hypothesis import given
from hypothesis import strategies as st

from ase_deeprelax import Predictor, load_model, relax
from ase_deeprelax.geometry.symmetry import find_symmetry
from ase_deeprelax.predict.shrinkage import DISPLACEMENT_RATIO, STRAIN_RATIO, shrink
from ase_deeprelax.testing import symmetric_crystals
from tests.strategies import orthogonal, quick, seeds


def a_move(rng, size=0.05, n=5):
    strain = rng.normal(size=(3, 3))
    values, axes = np.linalg.eigh(size * (strain + strain.T))
    moves = size * rng.normal(size=(n, 3))
    return (axes * np.exp(values)) @ axes.T, moves - moves.mean(axis=0)


def strain_of(deformation):
    return np.sqrt(np.square(np.log(np.linalg.eigvalsh(deformation))).mean())


@pytest.mark.parametrize(('part', 'left'), [(1.0, 0.5), (0.01, 1e-4), (100.0, 1.0)])
def test_half_of_a_move_is_left_at_the_ratios_and_next_to_nothing_far_below(part, left):
    strain, spacing = 0.02, 2.0
    deformation, displacement = np.exp(strain) * np.eye(3), np.diag([0.1, 0.2, 0.3])
    sigma = strain * spacing / STRAIN_RATIO / part
    sigma_atoms = np.diag(displacement) / DISPLACEMENT_RATIO / part
    for size in (1.0, 1e-3):
        move = 1 + size * (deformation[0, 0] - 1), size * displacement
        s, u = shrink(
            (move[0] * np.eye(3), move[1]),
            np.log(move[0]) / strain * sigma,
            size * sigma_atoms,
            spacing,
            floating=False,
        )
        assert np.log(s[0, 0]) == pytest.approx(left * np.log(move[0]), rel=1e-3)
        np.testing.assert_allclose(u, left * move[1], rtol=1e-3)


@quick
@given(seeds(), st.floats(0.001, 1.0))
def test_a_move_never_grows_or_turns(seed, sigma):
    rng = np.random.default_rng(seed)
    deformation, displacement = a_move(rng)
    sigma_atoms = sigma * rng.random(5)
    s, u = shrink((deformation, displacement), sigma, sigma_atoms, 2.5, floating=False)
    assert strain_of(s) <= strain_of(deformation) + 1e-12
    assert (np.linalg.norm(u, axis=1) <= np.linalg.norm(displacement, axis=1)).all()
    np.testing.assert_allclose(np.cross(u, displacement), 0, atol=1e-15)
    np.testing.assert_allclose(s @ deformation, deformation @ s, atol=1e-12)


@quick
@given(seeds(), st.floats(0.001, 1.0))
def test_it_turns_with_the_crystal(seed, sigma):
    rng = np.random.default_rng(seed)
    (deformation, displacement), q = a_move(rng), orthogonal(rng)
    sigma_atoms = sigma * rng.random(5)
    s, u = shrink((deformation, displacement), sigma, sigma_atoms, 2.5, floating=True)
    turned = q.T @ deformation @ q, displacement @ q
    s1, u1 = shrink(turned, sigma, sigma_atoms, 2.5, floating=True)
    np.testing.assert_allclose(s1, q.T @ s @ q, atol=1e-10)
    np.testing.assert_allclose(u1, u @ q, atol=1e-10)


@quick
@given(seeds(), st.floats(0.001, 1.0))
def test_no_rigid_drift_is_left_where_no_atom_is_fixed(seed, sigma):
    rng = np.random.default_rng(seed)
    _, u = shrink(a_move(rng), sigma, sigma * rng.random(5), 2.5, floating=True)
    np.testing.assert_allclose(u.mean(axis=0), 0, atol=1e-15)


def test_nothing_moves_where_nothing_is_predicted():
    nothing = np.eye(3), np.zeros((2, 3))
    for sigma in (0.0, 0.1):
        s, u = shrink(nothing, sigma, np.full(2, sigma), 2.5, floating=True)
        np.testing.assert_array_equal(s, np.eye(3))
        np.testing.assert_array_equal(u, 0)


def test_the_space_group_is_kept_to_double_precision():
    for atoms in symmetric_crystals(12):
        before = find_symmetry(atoms)
        relaxed = relax(atoms, on_bad='keep').atoms
        after = find_symmetry(relaxed, symprec=1e-9)
        assert len(after.rotations) >= len(before.rotations), atoms


def test_a_supercell_is_answered_as_its_cell():
    cell = bulk('ZnS', 'wurtzite', a=3.75)
    small, large = relax([cell, make_supercell(cell, np.diag([2, 2, 1]))])
    np.testing.assert_allclose(large.deformation, small.deformation, atol=1e-5)


def test_a_layer_is_answered_alike_in_a_box_of_any_height():
    layers = [mx2('MoS2', a=3.19, thickness=3.1, vacuum=vacuum) for vacuum in (8, 25)]
    low, high = relax(layers)
    np.testing.assert_allclose(high.deformation, low.deformation, atol=2e-6)
    np.testing.assert_allclose(high.displacement, low.displacement, atol=2e-5)


@pytest.mark.parametrize(('name', 'a'), [('MgO', 4.2), ('NaCl', 5.6), ('CaO', 4.8)])
def test_what_is_relaxed_hardly_moves(name, a):
    once = relax(bulk(name, 'rocksalt', a=a))
    again = relax(once.atoms)
    assert strain_of(again.deformation) < 0.3 * strain_of(once.deformation) + 2e-3


def test_models_that_know_relaxed_inputs_hold_back_small_moves_and_make_large_ones():
    model = load_model('deeprelax')
    held = Predictor(model, device='cpu')
    model.card = replace(model.card, saw_relaxed=False)
    whole = Predictor(model, device='cpu')
    salts = [bulk(x, 'rocksalt', a=a) for x, a in (('MgO', 4.2), ('CaO', 4.8))]
    relaxed = [result.atoms for result in held.relax(salts)]
    for one, other in zip(held.relax(relaxed), whole.relax(relaxed), strict=True):
        assert strain_of(one.deformation) < 0.85 * strain_of(other.deformation)
    for one, other in zip(held.relax(salts), whole.relax(salts), strict=True):
        assert strain_of(one.deformation) > 0.9 * strain_of(other.deformation)


def test_fixed_atoms_stay_to_the_last_bit():
    atoms = bulk('MgO', 'rocksalt', a=4.3, cubic=True)
    atoms.rattle(0.05, seed=1)
    atoms.set_constraint(FixAtoms([0, 3]))
    result = relax(atoms, relax_cell=False)
    np.testing.assert_array_equal(result.atoms.positions[[0, 3]], atoms.positions[[0, 3]])
