"""What a calibrated model says of its errors."""

from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, make_supercell, mx2
from ase.constraints import FixAtoms, FixedPlane
from ase.data import chemical_symbols
from ase.filters import FrechetCellFilter
from hypothesis import given
from hypothesis import strategies as st

from ase_deeprelax import keys, relax
from ase_deeprelax.data.convert import Frame
from ase_deeprelax.errors import ConfigError, ModelError, PredictionError
from ase_deeprelax.geometry.degrees_of_freedom import KINDS, find_freedom
from ase_deeprelax.models import create_model
from ase_deeprelax.models.calibration import (
    QUANTITIES,
    Calibration,
    Environments,
    ErrorLaw,
)
from ase_deeprelax.models.store import load_model
from ase_deeprelax.predict.error_estimate import check_error, estimate_errors
from ase_deeprelax.predict.select import select
from tests.layers import rewrite, written_layers
from tests.strategies import quick, seeds


@pytest.fixture(scope='module')
def rutile():
    """A crystal of six atoms that has to move."""
    a, c, u = 4.6, 2.96, 0.3
    frac = [[0, 0, 0], [0.5, 0.5, 0.5], [u, u, 0], [-u, -u, 0]]
    frac += [[0.5 + u, 0.5 - u, 0.5], [0.5 - u, 0.5 + u, 0.5]]
    return Atoms('Ti2O4', scaled_positions=frac, cell=[a, a, c], pbc=True)


def test_errors_do_not_depend_on_how_the_crystal_is_written(rutile):
    result = relax(rutile)
    assert 0 < result.error < 0.3
    turned = rutile[[5, 2, 0, 4, 1, 3]]
    turned.rotate(37, (1, 2, 3), rotate_cell=True)
    other = relax(turned)
    assert other.error == pytest.approx(result.error, rel=1e-4)
    assert other.novelty == pytest.approx(result.novelty, rel=1e-4)
    np.testing.assert_allclose(other.lattice_90, result.lattice_90, rtol=1e-4)
    np.testing.assert_allclose(other.volume_90, result.volume_90, rtol=1e-4)
    np.testing.assert_allclose(
        other.position_90, result.position_90[[5, 2, 0, 4, 1, 3]], rtol=1e-3
    )
    np.testing.assert_allclose(other.fingerprint, result.fingerprint, atol=1e-3)


def test_a_supercell_is_as_uncertain_as_its_cell(rutile):
    result = relax(rutile)
    double = relax(make_supercell(rutile, np.diag([1, 1, 2])))
    assert double.error == pytest.approx(result.error, rel=1e-3)
    assert double.novelty == pytest.approx(result.novelty, rel=1e-3)


def test_intervals_hold_the_prediction(rutile):
    result = relax(rutile)
    lengths = result.atoms.cell.lengths()
    assert (result.lattice_90[:, 0] < lengths).all()
    assert (result.lattice_90[:, 1] > lengths).all()
    low, high = result.volume_90
    assert low < result.atoms.cell.volume < high
    assert (result.position_90 > 0).all()


def test_what_cannot_change_is_exact():
    held = relax(bulk('NaCl', 'rocksalt', a=5.9), relax_cell=False)
    np.testing.assert_allclose(
        held.lattice_90, held.initial.cell.lengths()[:, None] + [0, 0]
    )
    np.testing.assert_allclose(held.volume_90, held.initial.cell.volume)
    sheet = relax(mx2('MoS2', a=3.3, vacuum=9))
    np.testing.assert_allclose(sheet.lattice_90[2], sheet.initial.cell.lengths()[2])
    assert (np.ptp(sheet.lattice_90[:2], axis=1) > 0).all()
    assert np.isnan(sheet.volume_90).all()
    slab = fcc111('Cu', (1, 1, 4), vacuum=8)
    slab.set_constraint(FixAtoms([0, 1]))
    radius = relax(slab).position_90
    assert (radius[:2] == 0).all()
    assert (radius[2:] > 0).all()


def test_what_a_partly_free_cell_cannot_change_is_exact(rutile, calibrated_model):
    def widths(structure, relax_cell):
        """Of the intervals of the three lengths and of the volume."""
        result = relax(structure, calibrated_model, relax_cell=relax_cell)
        return np.ptp([*result.lattice_90, result.volume_90], axis=1).tolist()

    *lengths, volume = widths(rutile, [0, 0, 1, 0, 0, 0])
    assert lengths[:2] == [0, 0]
    assert min(lengths[2], volume) > 0
    *lengths, volume = widths(rutile, 'in-plane')
    assert lengths[2] == 0
    assert min(*lengths[:2], volume) > 0
    # A cell from a file of few digits, whose c is not quite perpendicular to a and b.
    rounded = rutile.copy()
    rounded.set_cell([*rutile.cell[:2], [1e-4, 0, 2.96]], scale_atoms=True)
    assert widths(rounded, 'in-plane')[2] == 0
    assert min(widths(rutile, 'hydrostatic')) > 0
    # A shear changes lengths and volume, though only to second order.
    *lengths, volume = widths(rutile, [0, 0, 0, 0, 0, 1])
    assert lengths[2] == 0
    assert min(*lengths[:2], volume) > 0


def test_a_constant_volume_is_exact(rutile, calibrated_model):
    result = relax(FrechetCellFilter(rutile, constant_volume=True), calibrated_model)
    np.testing.assert_allclose(result.volume_90, rutile.cell.volume)
    assert (np.ptp(result.lattice_90, axis=1) > 0).all()


@pytest.mark.parametrize('relax_cell', [True, 'in-plane'])
def test_what_cannot_change_is_exact_in_all_orientations(
    rutile, calibrated_model, relax_cell
):
    turned = rutile.copy()
    turned.rotate(50, (1, 2, 3), rotate_cell=True)
    one, other = (
        np.ptp(relax(atoms, calibrated_model, relax_cell=relax_cell).lattice_90, axis=1)
        for atoms in (rutile, turned)
    )
    np.testing.assert_array_equal(one > 0, other > 0)


@quick
@given(written_layers())
def test_of_a_layer_the_vectors_that_a_strain_changes_are_uncertain(written):
    """However it is written: some cells hold no vector that is the vacuum vector alone."""
    for atoms in written:
        freedom = find_freedom(atoms, True)
        rng = np.random.default_rng(0)
        flat = np.eye(3) - np.outer(freedom.layer.normal, freedom.layer.normal)
        strain = flat @ rng.normal(size=(3, 3)) @ flat
        cell, _ = freedom.layer.strain(atoms, np.eye(3) + 0.1 * (strain + strain.T))
        changed = np.abs(cell - atoms.cell.array).max(axis=1) > 1e-6
        fields, _ = estimate(atoms, freedom)
        np.testing.assert_array_equal(np.ptp(fields['lattice_90'], axis=1) > 0, changed)


def test_no_vector_of_a_layer_is_exact_where_all_of_them_lean():
    cells = np.array([[1, 0, 1], [0, 1, 1], [1, 1, 1]])
    sheet = mx2('MoS2', vacuum=10)
    atoms = rewrite(sheet, np.random.default_rng(0), vacuum=12.0, cells=cells, tilt=False)
    freedom = find_freedom(atoms, True)
    assert np.count_nonzero(freedom.layer.basis[2]) > 1
    fields, _ = estimate(atoms, freedom)
    assert (np.ptp(fields['lattice_90'], axis=1) > 0).all()


def estimate(atoms, freedom, *, order=None, sigma=0.1, distances=None, limit=1.0):
    """With laws that say sigma, and one feature: the distance from what is known."""
    law = ErrorLaw(1.0, dict.fromkeys(KINDS, 1.0), dict.fromkeys(KINDS, 1.0))
    limits = {'bulk': limit, 'layer': 2 * limit}
    known = Environments(np.zeros(1), np.eye(1), limits)
    calibration = Calibration([], dict.fromkeys(QUANTITIES, law), known)
    spread = np.arange(1.0, len(atoms) + 1) if distances is None else np.array(distances)
    order = np.arange(len(atoms)) if order is None else np.asarray(order)
    output = SimpleNamespace(
        sigma=sigma, sigma_atoms=spread[order], features=spread[order][:, None]
    )
    return estimate_errors(calibration, atoms, freedom, Frame(order=order), output)


def test_what_is_said_of_atoms_is_in_their_order(rutile):
    freedom = find_freedom(rutile, True)
    fields, unknown = estimate(rutile, freedom, order=[3, 1, 5, 0, 2, 4])
    np.testing.assert_array_equal(fields['position_90'], np.arange(1.0, 7.0))
    assert 'surroundings of atom 5 (O)' in unknown
    assert fields['novelty'] == 6


def test_only_surroundings_beyond_the_limit_of_their_kind_are_strange(rutile):
    sheet = mx2('MoS2', vacuum=9)
    for atoms, limit in ((rutile, 1.0), (sheet, 2.0)):
        freedom = find_freedom(atoms, True)
        for most in (0.9 * limit, 1.1 * limit):
            distances = np.linspace(0.1, most, len(atoms))
            fields, unknown = estimate(atoms, freedom, distances=distances)
            assert fields['novelty'] == pytest.approx(most / limit)
            assert (unknown == '') == (most < limit)


def test_intervals_hold_the_values_that_the_prediction_is_off_by_less_than_said(rutile):
    freedom = find_freedom(rutile, True)
    lengths = rutile.cell.lengths()
    fields, _ = estimate(rutile, freedom, sigma=0.25)
    for (low, high), value in zip(fields['lattice_90'], lengths, strict=True):
        assert value - low == pytest.approx(0.25 * low)
        assert high - value == pytest.approx(0.25 * high)
    fields, _ = estimate(rutile, freedom, sigma=1.5)  # any larger value is off by less
    assert np.isinf(fields['lattice_90'][:, 1]).all()
    assert np.isinf(fields['volume_90'][1])


def test_atoms_that_are_fixed_in_part_are_uncertain(rutile):
    held = rutile.copy()
    held.set_constraint([FixAtoms([1]), FixedPlane([3], (1, 0, 0))])
    fields, _ = estimate(held, find_freedom(held, True))
    np.testing.assert_array_equal(fields['position_90'], [1, 0, 3, 4, 5, 6])


def test_names_in_the_atoms(rutile):
    result = relax(rutile)
    info = result.atoms.info
    assert info[keys.ERROR] == result.error
    assert info[keys.VOLUME_LOW] < info[keys.VOLUME_HIGH]
    np.testing.assert_array_equal(info[keys.LATTICE_LOW], result.lattice_90[:, 0])
    np.testing.assert_array_equal(result.atoms.arrays[keys.POSITION_90], result.position_90)


def test_large_errors_are_refused_by_number(rutile):
    error = relax(rutile).error
    assert relax(rutile, accept_below=2 * error).ok
    for unknown, words in ((error, f'is {error:.3f} A'), (np.nan, 'is not known to be')):
        with pytest.raises(PredictionError, match=words):
            check_error(rutile, unknown, error)
    with pytest.raises(PredictionError, match=rf'is {error:.3f} A, not below accept_below'):
        relax(rutile, accept_below=error / 2)
    [kept] = relax([rutile], accept_below=error / 2)
    assert not kept.ok
    assert (kept.atoms.positions == rutile.positions).all()


def test_what_is_refused_for_its_error_still_says_what_it_is():
    sparse, sheet = bulk('Cu', a=6.4), mx2('MoS2', a=3.3, vacuum=9)
    for atoms, kind, outside in ((sparse, 'bulk', 'volume 5.'), (sheet, 'layer', '')):
        [kept] = relax([atoms], accept_below=1e-6)
        assert 'not below accept_below' in kept.problem
        assert kept.kind == kind
        assert outside in kept.ood


def test_errors_can_be_limited_for_calibrated_models_only(rutile):
    with pytest.raises(ModelError, match='accept_below needs a calibrated model'):
        relax(rutile, create_model('paegnn', hidden=16, layers=1), accept_below=0.1)
    with pytest.raises(ValueError, match='accept_below is -1'):
        relax(rutile, accept_below=-1)


def test_strange_surroundings_are_named():
    """Carbon as an fcc metal, and squeezed: no such thing was in training."""
    [result] = relax([bulk('C', 'fcc', a=2.3)])
    assert result.novelty > 1
    assert 'atom 0 (C)' in result.ood
    assert relax(bulk('NaCl', 'rocksalt', a=5.7)).novelty < 1


def test_elements_that_never_met_are_named():
    model = load_model('default')
    met = model.calibration.environments.elements
    trained = sorted(set(model.card.elements))
    pairs = [(a, b) for a in trained for b in trained if a < b and (a, b) not in met]
    first, second = (chemical_symbols[z] for z in pairs[-1])
    [result] = relax([bulk(first + second, 'rocksalt', a=6.4)])
    assert f'holds {first} and {second} together' in result.ood


def test_selected_structures_are_uncertain_and_different(rutile):
    structures = [bulk('NaCl', 'rocksalt', a=a) for a in (5.3, 5.31, 5.32, 6.2)]
    structures += [rutile, rutile, bulk('Cu', a=3.7)]
    results = relax(structures)
    errors = [one.error for one in results]
    chosen = select(results, 4)
    assert chosen[0] == int(np.argmax(errors))
    assert not {4, 5} <= set(chosen)  # the same crystal twice
    assert len(set(chosen)) == 4
    assert sorted(select(results, 100)) == list(range(7))


@quick
@given(seeds(), st.integers(1, 12))
def test_each_selected_structure_is_the_most_uncertain_and_different_that_is_left(
    seed, count
):
    rng = np.random.default_rng(seed)
    errors, prints = rng.uniform(0.01, 1.0, 12), rng.normal(size=(12, 3))
    errors[3] = np.nan  # of another kind than the model was calibrated on
    failed = 5
    results = [
        SimpleNamespace(ok=k != failed, error=errors[k], fingerprint=prints[k])
        for k in range(12)
    ]
    chosen = select(results, count)
    usable = set(range(12)) - {3, failed}
    assert len(chosen) == len(set(chosen)) == min(count, 10)
    assert set(chosen) <= usable
    assert errors[chosen[0]] == max(errors[k] for k in usable)
    for n in range(1, len(chosen)):
        apart = np.linalg.norm(prints[:, None] - prints[chosen[:n]], axis=2).min(axis=1)
        value = errors * apart
        assert value[chosen[n]] == max(value[k] for k in usable - set(chosen[:n]))


def test_nothing_to_select():
    with pytest.raises(ConfigError, match='count is 0; choose 1 structure or more'):
        select([], 0)
    with pytest.raises(ConfigError, match='no prediction has an expected error'):
        select([], 1)
