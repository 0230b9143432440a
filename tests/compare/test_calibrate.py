"""Errors that were fitted: laws, intervals, and what a model knows."""

import numpy as np
import pytest
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from hypothesis import given
from hypothesis import strategies as st

from ase_deeprelax.compare import calibrate as calibrate_module
from ase_deeprelax.compare import calibrate_potentials
from ase_deeprelax.compare.calibrate import (
    calibrate,
    errors_of,
    features_of,
    fit_environments,
)
from ase_deeprelax.compare.calibrate_potentials import calibrate_potential
from ase_deeprelax.compare.error_laws import (
    COVERAGE,
    FEWEST,
    Observed,
    conformal_quantile,
    cross_coverage,
    fit_laws,
)
from ase_deeprelax.data.pair import make_pair
from ase_deeprelax.errors import ConfigError, DeepRelaxWarning
from ase_deeprelax.models import create_model
from ase_deeprelax.predict import Predictor, relax
from ase_deeprelax.testing import awaken


def simulated(file, kind, *, scale, n=400, seed=0):
    """Predictions whose errors are exponential around ``scale * sigma ** 1.4``."""
    rng = np.random.default_rng(seed)
    found = []
    for sigma in np.exp(rng.normal(-3.5, 0.8, n)):
        sizes = {
            'coordinates': 1,
            'positions': rng.integers(1, 9),
            'lattice': 3,
            'volume': 1,
        }
        errors = {
            name: scale * sigma**1.4 * rng.exponential(size=size)
            for name, size in sizes.items()
        }
        sigmas = {name: np.full(len(x), sigma) for name, x in errors.items()}
        found.append(Observed(file, kind, errors, sigmas, 1.0))
    return found


def test_laws_are_found_again():
    laws = fit_laws([*simulated('a', 'bulk', scale=2), *simulated('a', 'layer', scale=0.5)])
    for law in laws.values():
        assert law.power == pytest.approx(1.4, abs=0.12)
        assert law.scale['bulk'] / law.scale['layer'] == pytest.approx(4, rel=0.25)
        # 90 % of an exponential distribution lie below 2.3 times its mean.
        assert law.bound['bulk'] == pytest.approx(np.log(10), rel=0.25)


def test_new_errors_lie_inside_as_often_as_they_should():
    laws = fit_laws(simulated('a', 'bulk', scale=1, n=1000))
    inside = [
        (
            one.errors['positions']
            <= laws['positions'].within('bulk', one.sigmas['positions'])
        ).mean()
        for one in simulated('b', 'bulk', scale=1, n=3000, seed=1)
    ]
    assert np.mean(inside) == pytest.approx(COVERAGE, abs=0.025)


def test_the_file_that_is_predicted_worst_decides():
    easy, hard = simulated('easy', 'bulk', scale=1), simulated('hard', 'bulk', scale=3)
    both, alone = fit_laws([*easy, *hard]), fit_laws(hard)
    for name, law in both.items():
        assert law.within('bulk', 0.03) == pytest.approx(
            alone[name].within('bulk', 0.03), rel=0.2
        )


def test_coverage_is_measured_on_the_other_half():
    found = cross_coverage(simulated('a', 'bulk', scale=1, n=1000))
    for share in found['a', 'bulk'].values():
        assert share == pytest.approx(COVERAGE, abs=0.03)


def test_a_file_too_small_for_a_half_counts_in_the_fits_as_it_does_in_that_to_all():
    """Its bound is the larger one, and so nearly all of the other file lies inside."""
    easy, hard = simulated('easy', 'bulk', scale=1), simulated('hard', 'bulk', scale=3)
    found = cross_coverage([*easy, *hard[: 2 * FEWEST - 2]])
    assert list(found) == [('easy', 'bulk')]
    assert min(found['easy', 'bulk'].values()) > 0.97


@given(st.lists(st.floats(0, 1e3), min_size=20, max_size=200))
def test_conformal_quantile_is_a_value_that_enough_do_not_exceed(values):
    values = np.array(values)
    limit = conformal_quantile(values, np.ones(len(values)))
    assert limit in values
    assert (values <= limit).mean() >= COVERAGE


def some_pairs(count, seed=0):
    rng = np.random.default_rng(seed)
    pairs = []
    for k in range(count):
        relaxed = bulk('NaCl', 'rocksalt', a=5.7, cubic=True)
        unrelaxed = relaxed.copy()
        unrelaxed.set_cell(relaxed.cell * rng.uniform(0.95, 1.05), scale_atoms=True)
        unrelaxed.rattle(0.05, seed=k)
        pairs.append(make_pair(f'{k}', unrelaxed, relaxed))
    return pairs


def test_a_model_is_calibrated_from_pairs():
    model = awaken(create_model('paegnn', hidden=16, layers=2), scale=0.3)
    found = calibrate({'mine': some_pairs(FEWEST + 2)}, model)
    assert found.kinds == ('bulk',)
    assert found.fitted_on[0]['n'] == FEWEST + 2
    predictor = Predictor(model)
    predictor.model.calibration = found
    pairs = some_pairs(40, seed=1)
    results = predictor.relax([pair.unrelaxed for pair in pairs])
    errors = [
        errors_of(pair, one)['coordinates'][0]
        for pair, one in zip(pairs, results, strict=True)
    ]
    assert np.mean([one.error for one in results]) == pytest.approx(
        np.mean(errors), rel=0.3
    )


def test_too_few_pairs_are_refused():
    with pytest.raises(ConfigError, match=f'no file holds {FEWEST} pairs of one kind'):
        calibrate({'mine': some_pairs(5)}, create_model('paegnn', hidden=16, layers=2))


def test_what_is_known_has_unit_distance_and_the_rest_is_far():
    predictor = Predictor(create_model('paegnn', hidden=16, layers=2))
    known = [pair.unrelaxed for pair in some_pairs(40)]
    environments = fit_environments(predictor, known)
    assert environments.elements == {(11, 17)}
    assert environments.strangers(bulk('KCl', 'rocksalt', a=6.3).numbers) == (17, 19)
    assert environments.strangers(known[0].numbers) is None
    near = features_of(predictor, known)
    inside = np.concatenate([environments.distances(x) for x in near])
    assert 0.3 < np.sqrt(np.mean(inside**2)) < 1.2
    [far] = features_of(predictor, [bulk('W')])
    assert environments.distances(far).min() > 2 * inside.max()


def test_of_many_known_structures_an_even_sample_goes_through_the_network(monkeypatch):
    monkeypatch.setattr(calibrate_module, 'MOST_KNOWN', 10)
    asked = []

    def features(predictor, structures):
        asked.extend(structures)
        return features_of(predictor, structures)

    monkeypatch.setattr(calibrate_module, 'features_of', features)
    predictor = Predictor(create_model('paegnn', hidden=16, layers=2))
    known = [*(pair.unrelaxed for pair in some_pairs(18)), bulk('KCl', 'rocksalt', a=6.3)]
    environments = fit_environments(predictor, known)
    assert len(asked) == 10
    assert asked[-1] == known[17]
    assert environments.elements == {(11, 17), (17, 19)}  # those of all


def test_a_potential_needs_pairs_that_can_be_predicted():
    clash = bulk('NaCl', 'rocksalt', a=5.7)
    clash.positions[1] = clash.positions[0]
    pair = make_pair('clash', clash, bulk('NaCl', 'rocksalt', a=5.7))
    predictor = Predictor(create_model('paegnn', hidden=16, layers=2))
    with pytest.raises(ConfigError, match='no kind of structure has 30 pairs'):
        calibrate_potential(40 * [pair], predictor, EMT())


class Choosy(EMT):
    """EMT that fails, or gives no numbers, for structures of two sizes."""

    def calculate(self, atoms=None, *args, **kwargs):
        if len(atoms) == 2:
            raise RuntimeError('two atoms are too many')
        super().calculate(atoms, *args, **kwargs)
        if len(atoms) == 3:
            self.results['forces'] = np.full((3, 3), np.nan)


def copper_pairs(n, size):
    return [
        make_pair(
            f'{size}-{k}', *(bulk('Cu', a=a).repeat((size, 1, 1)) for a in (3.5, 3.6))
        )
        for k in range(n)
    ]


def test_pairs_for_which_a_potential_fails_are_left_out_of_its_calibration(monkeypatch):
    monkeypatch.setattr(calibrate_potentials, 'STRENGTHS', (0.04,))
    predictor = Predictor(create_model('paegnn', hidden=16, layers=2))
    good, bad = copper_pairs(FEWEST, 1), [*copper_pairs(1, 2), *copper_pairs(1, 3)]
    with pytest.warns(DeepRelaxWarning, match='fails for 2 of 32 pairs'):
        found = calibrate_potential([*good, *bad], predictor, Choosy())
    assert found == calibrate_potential(good, predictor, EMT())
    with (
        pytest.warns(DeepRelaxWarning, match='two atoms are too many'),
        pytest.raises(ConfigError, match=f'works for fewer than {FEWEST} pairs'),
    ):
        calibrate_potential(copper_pairs(FEWEST, 2), predictor, Choosy())


def test_what_cannot_move_has_no_error():
    slab = fcc111('Cu', (2, 2, 3), vacuum=8)
    moved = slab.copy()
    moved.positions[-1, 2] += 0.3
    fixed = np.arange(len(slab)) < 4
    slab.set_constraint(FixAtoms(mask=fixed))
    pair = make_pair('slab', slab, moved, fixed_cell=True, kind='slab')
    errors = errors_of(pair, relax(slab, relax_cell=False))
    assert np.isnan(errors['lattice']).all()
    assert len(errors['volume']) == 0
    assert np.isnan(errors['positions'][fixed]).all()
    assert np.isfinite(errors['positions'][~fixed]).all()
