from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms
from hypothesis import given
from hypothesis import strategies as st

from ase_deeprelax.errors import PredictionError
from ase_deeprelax.geometry.symmetry import spacegroup_number
from ase_deeprelax.models.paegnn import PUBLISHED, PaEGNN
from ase_deeprelax.models.store import load_model, save_model
from ase_deeprelax.predict import Predictor
from ase_deeprelax.predict.finish import finish, move_of, prepare_again
from ase_deeprelax.predict.passes import (
    MAX_PASSES,
    STRAINS,
    Passes,
    followed_by,
    next_weight,
    part_of,
    strain_of,
)
from ase_deeprelax.predict.prepare import prepare
from ase_deeprelax.testing import awaken, symmetric_crystals
from tests.strategies import orthogonal, quick, seeds


def stretch(rng, size):
    """Symmetric, positive definite, of a logarithmic strain of that norm."""
    strain = rng.normal(size=(3, 3))
    strain += strain.T
    values, axes = np.linalg.eigh(size * strain / np.linalg.norm(strain))
    return (axes * np.exp(values)) @ axes.T


def answer(rng, n=4):
    moves = 0.2 * rng.normal(size=(n, 3))
    return stretch(rng, 0.2), moves - moves.mean(axis=0)


def inputs(rng, n=4):
    return 4 * np.eye(3) + rng.normal(size=(3, 3)), 3 * rng.normal(size=(n, 3))


def moved(cell, positions, said):
    deformation, displacement = said
    return cell @ deformation, (positions + displacement) @ deformation


def metric(cell, positions):
    """All that does not depend on orientation and origin."""
    rows = np.vstack([cell, positions - positions.mean(axis=0)])
    return rows @ rows.T


# --- the arithmetic ------------------------------------------------------------------


@quick
@given(seeds())
def test_one_move_after_the_other_is_one_move(seed):
    rng = np.random.default_rng(seed)
    crystal, first, second = inputs(rng), answer(rng), answer(rng)
    both = moved(*moved(*crystal, first), second)
    at_once = moved(*crystal, followed_by(first, second))
    assert np.allclose(metric(*at_once), metric(*both), atol=1e-9)


@quick
@given(seeds(), st.floats(0, 1))
def test_parts_of_a_move_add_up(seed, weight):
    rng = np.random.default_rng(seed)
    crystal, whole = inputs(rng), answer(rng)
    strain, displacement = part_of(whole, weight)
    rest, remaining = part_of(whole, 1 - weight)
    assert np.allclose(strain @ rest, whole[0])
    assert np.allclose(displacement + remaining, whole[1])
    for one, other in zip(part_of(whole, 1.0), whole, strict=True):
        assert np.allclose(one, other)
    assert np.allclose(moved(*crystal, part_of(whole, 0.0))[0], crystal[0])


@quick
@given(seeds(), st.floats(0, 1))
def test_what_is_added_is_a_strain_without_rotation_and_drift(seed, weight):
    rng = np.random.default_rng(seed)
    first, second = answer(rng), answer(rng)
    deformation, displacement = followed_by(first, part_of(second, weight))
    assert np.allclose(deformation, deformation.T, atol=1e-12)
    assert np.linalg.eigvalsh(deformation).min() > 0
    assert np.allclose(displacement.mean(axis=0), 0, atol=1e-12)
    ratio = np.linalg.det(first[0]) * np.linalg.det(second[0]) ** weight
    assert np.linalg.det(deformation) == pytest.approx(ratio)


@quick
@given(seeds(), seeds(), st.floats(0, 1))
def test_adding_turns_with_the_crystal(seed, turn, weight):
    rng, rotation = np.random.default_rng(seed), orthogonal(turn)
    first, second = answer(rng), answer(rng)
    s, u = followed_by(first, part_of(second, weight))
    turned = [(rotation.T @ a @ rotation, b @ rotation) for a, b in (first, second)]
    s1, u1 = followed_by(turned[0], part_of(turned[1], weight))
    assert np.allclose(s1, rotation.T @ s @ rotation, atol=1e-10)
    assert np.allclose(u1, u @ rotation, atol=1e-10)


@quick
@given(st.floats(0, 0.3), st.floats(0, 0.01))
def test_the_weight_grows_without_jumps(size, more):
    weight, after = next_weight(size), next_weight(size + more)
    steepest = 1 / (STRAINS[1] - STRAINS[0])
    assert -1e-9 <= after - weight <= steepest * more + 1e-9
    assert 0 <= weight <= 1
    assert weight == 0 or size > STRAINS[0] - 1e-9
    assert weight == 1 or size < STRAINS[1] + 1e-9


@quick
@given(seeds(), st.floats(0.01, 0.3), st.floats(0.01, 0.6))
def test_no_pass_strains_farther_than_the_one_before(seed, first, second):
    rng = np.random.default_rng(seed)
    moves = [
        (stretch(rng, size), 0.1 * rng.normal(size=(3, 3))) for size in (first, second)
    ]
    passes = Passes(output=None)
    for move in moves:
        passes.add(move)
    weight = next_weight(first)
    asked = part_of(moves[1], weight)
    part = min(1.0, first / max(strain_of(asked[0]), 1e-9))
    for found, expected in zip(
        passes.moves[1], followed_by(moves[0], part_of(asked, part)), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-9)
    assert passes.strain <= first + 1e-12
    assert passes.next_weight == next_weight(passes.strain)


# --- in a prediction -----------------------------------------------------------------


def whole_moves():
    """A predictor that makes moves as they are, without `predict.shrinkage`."""
    model = load_model('deeprelax')
    model.card = replace(model.card, saw_relaxed=False)
    predictor = Predictor(model, device='cpu')
    predictor.max_passes = MAX_PASSES
    return predictor


@pytest.fixture(scope='module')
def predictor():
    return whole_moves()


def passes(predictor):
    """A list that gets the number of crystals of each pass from now on."""
    seen = []
    predictor.model.register_forward_hook(
        lambda m, given, out: seen.append(given[0].n_graphs)
    )
    return seen


def after(predictor, count, crystals):
    """With that many passes at most."""
    predictor.max_passes = count
    try:
        return predictor.relax(crystals)
    finally:
        predictor.max_passes = MAX_PASSES


def far():
    """Salts at volumes that are wrong by a third, one of them disturbed."""
    salts = [bulk('NaCl', 'rocksalt', a=5.1), bulk('KBr', 'rocksalt', a=7.2, cubic=True)]
    salts[1].rattle(0.1, seed=0)
    return salts


@pytest.mark.parametrize('count', [2, 3])
def test_each_pass_starts_where_the_one_before_it_led(predictor, count):
    for initial, last in zip(far(), after(predictor, count, far()), strict=True):
        (first,) = after(predictor, 1, [initial])
        latest = whole = first.deformation, first.displacement
        for _ in range(count - 1):
            weight = next_weight(strain_of(latest[0]))
            cell, positions = moved(initial.cell.array, initial.positions, whole)
            place = Atoms(initial.numbers, positions, cell=cell, pbc=True)
            # The space group is that of the input, which a prediction has to 1e-2 A only.
            (said,) = after(predictor, 1, [place])
            latest = part_of((said.deformation, said.displacement), weight)
            whole = followed_by(whole, latest)
        assert np.allclose(last.deformation, whole[0], atol=1e-5)
        assert np.allclose(last.displacement, whole[1], atol=1e-4)
        assert last.sigma == pytest.approx(first.sigma, rel=1e-5)  # of another batch
        assert not np.allclose(last.deformation, first.deformation, atol=1e-4)


def test_the_answer_of_a_pass_is_read_in_the_frame_of_its_own_graph():
    """A network that wants the canonical frame: here the longest vector becomes the
    shortest.
    """
    torch.manual_seed(0)
    model = awaken(PaEGNN(**{**PUBLISHED, 'hidden': 16, 'layers': 1}), scale=0.3)
    predictor = Predictor(model, device='cpu', dtype='float64')
    salt = far()[1]
    salt.set_cell(salt.cell.array @ np.diag([1.0, 1.03, 1.06]), scale_atoms=True)
    prepared = prepare(salt, predictor.settings)
    move = np.diag([1.08, 1.0, 0.93]), np.zeros((8, 3))
    again = prepare_again(prepared, move)
    assert not np.allclose(again.frame.rotation, prepared.frame.rotation, atol=0.1)
    cell, positions = moved(salt.cell.array, salt.positions, move)
    place = Atoms(salt.numbers, positions, cell=cell, pbc=True)
    read = [
        move_of(one, output)
        for one in (again, prepare(place, predictor.settings))
        for _, output in predictor.outputs({0: one})
    ]
    for found, expected in zip(*read, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_there_is_one_pass_at_least(predictor):
    for none, one in zip(
        after(predictor, 0, far()), after(predictor, 1, far()), strict=True
    ):
        np.testing.assert_array_equal(none.deformation, one.deformation)


def test_only_far_ones_go_through_the_network_again():
    predictor = Predictor(load_model('deeprelax'), device='cpu')
    near = predictor.relax(far())[0].atoms
    seen = passes(predictor)
    predictor.relax([near, *far(), near])
    assert seen[:2] == [4, 2]
    assert len(seen) <= MAX_PASSES


def test_a_model_that_never_saw_relaxed_inputs_is_asked_once(tmp_path):
    for several, card in ((False, {}), (True, {'second_look': True})):
        folder = tmp_path / str(several)
        save_model(load_model('deeprelax'), folder, card)
        predictor = Predictor(load_model(folder), device='cpu')
        seen = passes(predictor)
        result = predictor.relax(far()[:1], on_bad='raise')[0]
        assert next_weight(strain_of(result.deformation)) > 0
        assert (len(seen) > 1) is several


@pytest.mark.parametrize('factor', [0.5, 4.0])
def test_a_refused_answer_is_not_asked_about(factor):
    predictor = whole_moves()
    seen = passes(predictor)
    predictor.model.register_forward_hook(times(factor))
    (result,) = predictor.relax(far()[:1])
    assert 'volume' in result.problem
    assert len(seen) == 1


def test_a_later_answer_that_runs_away_counts_as_far_as_the_one_before(predictor):
    (one,) = after(predictor, 1, far()[:1])
    other = whole_moves()
    other.max_passes = 2
    seen = passes(other)
    other.model.register_forward_hook(lambda *_: times(4)(*_) if len(seen) == 2 else None)
    (result,) = other.relax(far()[:1], on_bad='raise')
    strain = strain_of(one.deformation)
    assert strain_of(result.deformation) == pytest.approx(2 * strain, rel=1e-3)


@pytest.mark.parametrize('problem', ['memory', 'nan'])
def test_where_no_other_pass_is_possible_those_before_count(predictor, problem):
    (one,) = after(predictor, 1, far()[:1])
    other = whole_moves()
    seen = passes(other)
    if problem == 'memory':
        other.model.register_forward_pre_hook(lambda *_: run_out() if seen else None)
    else:
        other.model.register_forward_hook(lambda *_: spoil(*_) if len(seen) == 2 else None)
    (result,) = other.relax(far()[:1], on_bad='raise')
    assert len(seen) == (1 if problem == 'memory' else 2)
    assert np.allclose(result.deformation, one.deformation, atol=1e-6)


def test_the_last_plausible_of_all_passes_counts(predictor):
    salt = far()[0]
    prepared = prepare(salt, predictor.settings, None)
    [(_, output)] = predictor.outputs({0: prepared})
    moves = [(scale * np.eye(3), np.zeros((2, 3))) for scale in (1.1, 1.2, 9.0, 7.0)]
    result = finish(prepared, output, moves)
    assert result.volume_ratio == pytest.approx(1.2**3)
    with pytest.raises(PredictionError, match='volume is 729 times'):
        finish(prepared, output, moves[2:])


def test_an_answer_whose_atoms_have_lost_sight_of_each_other_holds():
    predictor = whole_moves()
    seen = passes(predictor)
    predictor.model.register_forward_hook(widen)
    metal = bulk('K', 'bcc', a=4.7)
    (result,) = predictor.relax([metal], on_bad='raise')
    assert len(seen) == 1
    assert result.atoms.get_volume() == pytest.approx(1.4**3 * metal.get_volume())


def widen(model, given, said):
    bonds = given[0].edge_vectors().index_select(0, said.bond_index)
    said.distance = 1.4 * bonds.norm(dim=1)
    said.deformation = 1.4 * torch.eye(3).expand_as(said.deformation)


def run_out():
    raise RuntimeError('out of memory')


def spoil(model, given, said):
    said.deformation = said.deformation * np.nan


def times(factor):
    def change(model, given, said):
        said.deformation = factor * said.deformation

    return change


def test_the_space_group_is_kept(predictor):
    crystals = symmetric_crystals(12)
    for atoms in crystals:
        atoms.set_cell(atoms.cell.array * 0.94, scale_atoms=True)
    results = predictor.relax(crystals)
    assert sum(bool(next_weight(strain_of(r.deformation))) for r in results if r.ok) > 5
    for initial, result in zip(crystals, results, strict=True):
        if result.ok:
            group = spacegroup_number(result.atoms, symprec=1e-3)
            assert group == spacegroup_number(initial, symprec=1e-3)


def test_fixed_atoms_stay(predictor):
    salt = far()[1]
    salt.set_constraint(FixAtoms([0, 3]))
    (result,) = predictor.relax([salt])
    before, after = (x.get_scaled_positions(wrap=False) for x in (salt, result.atoms))
    assert np.allclose(after[[0, 3]], before[[0, 3]], atol=1e-9)
    assert not np.allclose(after[1], before[1], atol=1e-3)


def test_no_answer_depends_on_its_neighbours(predictor):
    together = predictor.relax(far())
    for alone, result in zip(far(), together, strict=True):
        (single,) = predictor.relax([Atoms(alone)])
        assert np.allclose(single.atoms.positions, result.atoms.positions, atol=1e-4)
