import itertools
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import PeriodicSite
from pymatgen.io.ase import AseAtomsAdaptor
from scipy.spatial.transform import Rotation

from ase_deeprelax.compare.alignment import Alignment
from ase_deeprelax.compare.baselines import Dummy, ScaledDummy, fit_element_volumes
from ase_deeprelax.compare.metrics import (
    ERRORS,
    SHARES,
    Reference,
    summarise,
)
from ase_deeprelax.compare.structure_matcher import Matcher
from ase_deeprelax.data.pairs import make_pair, read_pairs

DEV = Path(__file__).parents[2] / '../shared/data/pairs_wbm_dev.jsonl.gz'


def perovskite(a=3.9):
    sites = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
    return Atoms('SrTiO3', scaled_positions=sites, cell=[a, a, a], pbc=True)


def random_pair(seed):
    rng = np.random.default_rng(seed)
    cell = 5.0 * (np.eye(3) + rng.uniform(-0.2, 0.2, (3, 3)))
    first = Atoms([8, 22, 38, 8], scaled_positions=rng.random((4, 3)), cell=cell, pbc=True)
    return make_pair('x', first, moved(first, rng))


def moved(atoms, rng):
    stretch = np.eye(3) + rng.uniform(-0.1, 0.1, (3, 3))
    result = atoms.copy()
    result.positions += rng.uniform(-0.2, 0.2, (len(atoms), 3))
    result.set_cell(atoms.cell.array @ stretch, scale_atoms=True)
    return result


def elsewhere(atoms, seed):
    """The same crystal turned, shifted, and with its atoms in other images."""
    rng = np.random.default_rng(seed)
    turn = Rotation.random(random_state=seed).as_matrix()
    result = atoms.copy()
    result.positions += rng.integers(-2, 3, (len(atoms), 3)) @ atoms.cell.array
    result.positions = (result.positions + rng.random(3)) @ turn
    result.set_cell(atoms.cell.array @ turn)
    return result


@pytest.mark.parametrize('seed', range(5))
def test_the_answer_itself_has_no_error(seed):
    pair = random_pair(seed)
    errors = Reference(pair).errors(elsewhere(pair.relaxed, seed))
    assert set(errors) == {*ERRORS, *SHARES}
    for key in (*ERRORS, 'rmsd'):
        assert errors[key] == pytest.approx(0, abs=1e-6)
    assert errors['match_rate'] == errors['spacegroup_right'] == 1


@pytest.mark.parametrize('seed', range(5))
def test_orientation_drift_and_images_of_a_prediction_do_not_count(seed):
    pair = random_pair(seed)
    guess = moved(pair.relaxed, np.random.default_rng(100 + seed))
    reference = Reference(pair)
    first, second = reference.errors(guess), reference.errors(elsewhere(guess, seed))
    assert second == pytest.approx(first, abs=1e-6)
    assert first['coord_mae'] > 0.02


def test_errors_of_a_known_strain():
    pair = make_pair('x', perovskite(4.0), perovskite(3.9))
    errors = Reference(pair).errors(perovskite(4.0))
    assert errors['lattice_mae'] == pytest.approx(0.1 * 3 / 9)
    assert errors['volume_mae'] == pytest.approx(4.0**3 - 3.9**3)
    assert errors['relative_volume'] == pytest.approx((4.0 / 3.9) ** 3 - 1)
    assert errors['metric_error'] == pytest.approx(3**0.5 * (4.0**2 - 3.9**2))
    assert errors['internal_mae'] == pytest.approx(0, abs=1e-9)
    # a cell that is too large by a factor moves each atom by its distance from the centre
    sites = pair.frac1 - pair.frac1.mean(axis=0)
    assert errors['coord_mae'] == pytest.approx(0.1 * np.abs(sites).mean())
    assert errors['match_rate'] == errors['spacegroup_kept'] == 1


def test_errors_of_a_known_displacement():
    pair = make_pair('x', perovskite(), perovskite())
    guess = perovskite()
    guess.positions[1, 2] += 0.05  # Ti moves against the rest
    errors = Reference(pair).errors(guess)
    # without drift: Ti 4/5 of it, the four others 1/5 each, one of three directions
    expected = 0.05 * (4 / 5 + 4 / 5) / 5 / 3
    assert errors['coord_mae'] == pytest.approx(expected)
    assert errors['internal_mae'] == pytest.approx(expected)
    assert errors['lattice_mae'] == errors['volume_mae'] == pytest.approx(0, abs=1e-9)
    assert errors['bond_mae'] > 0
    assert errors['spacegroup_kept'] == errors['spacegroup_right'] == 0


def test_kept_space_group_is_the_input_s_and_right_is_the_answer_s():
    broken = perovskite()
    broken.positions[1, 2] += 0.1
    pair = make_pair('x', perovskite(), broken)
    errors = Reference(pair).errors(perovskite(3.95))
    assert (errors['spacegroup_kept'], errors['spacegroup_right']) == (1, 0)
    errors = Reference(pair).errors(broken)
    assert (errors['spacegroup_kept'], errors['spacegroup_right']) == (0, 1)


def test_bond_error_counts_bonds_of_the_unrelaxed_structure():
    pair = make_pair('x', bulk('Cu', a=3.5), bulk('Cu', a=3.6))
    nearest = (np.zeros(1, int), np.zeros(1, int), np.array([[1, 0, 0]]))
    alignment = Alignment(pair)
    cell, frac = alignment.align(bulk('Cu', a=3.5))
    assert alignment.distance_error(cell, frac, nearest) == pytest.approx(0.1 / 2**0.5)
    # 30 neighbours in whole shells: 12, 6, 24 at a / sqrt 2, a, a sqrt(3 / 2)
    shells = np.array([12, 6, 24]) * [0.5**0.5, 1, 1.5**0.5]
    error = Reference(pair).errors(bulk('Cu', a=3.5))['bond_mae']
    assert error == pytest.approx(0.1 * shells.sum() / 42)


def test_nothing_alike_counts_as_an_rmsd_of_one():
    pair = make_pair('x', perovskite(), perovskite())
    guess = perovskite()
    guess.set_cell([3.0, 3.0, 9.0], scale_atoms=True)
    errors = Reference(pair).errors(guess)
    assert (errors['match_rate'], errors['rmsd']) == (0, 1.0)
    assert Reference(pair).rmsd(guess) == 1.0


def test_supercells_have_the_errors_of_their_cells():
    first, second = perovskite(4.0), perovskite(3.9)
    second.positions[1, 2] += 0.05
    once = Reference(make_pair('x', first, second)).errors(first)
    double = [make_supercell(atoms, np.diag([1, 1, 2])) for atoms in (first, second)]
    twice = Reference(make_pair('x', *double)).errors(double[0])
    for key in ('internal_mae', 'bond_mae', 'relative_volume', *SHARES):
        assert twice[key] == pytest.approx(once[key], rel=1e-6)
    assert twice['volume_mae'] == pytest.approx(2 * once['volume_mae'])


def test_summary_has_mean_and_median_of_errors_and_mean_of_shares():
    rows = [{'coord_mae': x, 'match_rate': y} for x, y in ((1, 0), (2, 1), (6, 1), (7, 0))]
    assert summarise(rows) == {
        'coord_mae': {'mean': 4.0, 'median': 4.0},
        'match_rate': 0.5,
    }
    assert summarise([]) == {}


@pytest.mark.parametrize('noise', [0.0, 0.05])
def test_fitted_volumes_are_those_that_cells_add_up_from(noise):
    rng = np.random.default_rng(0)
    known = {'Na': 23.0, 'Cl': 28.0, 'Ti': 16.0, 'O': 7.0, 'Cu': 0.5}
    pairs = []
    for k in range(300):
        symbols = list(rng.choice(list(known), rng.integers(1, 9)))
        volume = sum(known[s] for s in symbols) * (1 + noise * rng.uniform(-1, 1))
        if noise and k % 10 == 0:
            volume *= 5  # wrong targets must not decide
        places = rng.random((len(symbols), 3))
        atoms = Atoms(symbols, scaled_positions=places, cell=[volume, 1, 1], pbc=True)
        pairs.append(make_pair(k, atoms, atoms))
    found = fit_element_volumes(pairs)
    assert list(found) == ['O', 'Na', 'Cl', 'Ti', 'Cu']
    for symbol, volume in known.items():
        assert found[symbol] == pytest.approx(volume, rel=1e-3 + noise, abs=5 * noise)


@pytest.mark.parametrize('settings', [{'stol': 1.0, 'scale': False}, {'stol': 0.3}])
def test_the_matcher_answers_as_that_of_pymatgen(settings):
    def structures(seed):
        for atoms in (
            perovskite(),
            perovskite() * (2, 1, 1),
            bulk('NaCl', 'rocksalt', 5.6),
        ):
            atoms.rattle(0.03, seed=seed)
            yield AseAtomsAdaptor.get_structure(atoms)

    for one, other in itertools.product(structures(1), structures(2)):
        own, theirs = (kind(**settings) for kind in (Matcher, StructureMatcher))
        assert own.fit(one, other) == theirs.fit(one, other)
        assert own.get_rms_dist(one, other) == theirs.get_rms_dist(one, other)


def test_a_reduced_structure_is_found_again_without_comparing_sites(monkeypatch):
    atoms = perovskite() * (2, 2, 2)
    atoms.rattle(0.3, seed=1)
    structure = AseAtomsAdaptor.get_structure(atoms)
    compared, equal = [], PeriodicSite.__eq__
    monkeypatch.setattr(
        PeriodicSite, '__eq__', lambda *two: compared.append(1) or equal(*two)
    )
    for _ in range(2):
        assert Matcher().fit(structure, structure)
    assert not compared


def test_scaled_dummy_gives_the_sum_of_volumes_and_leaves_the_rest():
    atoms = perovskite()
    scaled, unknown = ScaledDummy({'Sr': 30.0, 'Ti': 15.0, 'O': 7.0})([atoms, bulk('Cu')])
    assert scaled.get_volume() == pytest.approx(66.0)
    assert np.allclose(scaled.get_scaled_positions(), atoms.get_scaled_positions())
    assert np.allclose(scaled.cell.array / scaled.cell[0, 0], np.eye(3))
    assert unknown == bulk('Cu')
    assert atoms == perovskite()


def test_shipped_volumes_are_of_the_right_size():
    copper, salt = ScaledDummy()([bulk('Cu', a=3.0), bulk('NaCl', 'rocksalt', a=5.0)])
    assert copper.get_volume() == pytest.approx(11.8, rel=0.1)
    assert salt.get_volume() == pytest.approx(45, rel=0.2)


def test_dummy_on_real_pairs_has_the_errors_measured_elsewhere():
    if not DEV.exists():
        pytest.skip(f'{DEV} is not on this machine')
    pairs = read_pairs(DEV)
    rows = []
    for pair, atoms in zip(pairs, Dummy()([p.unrelaxed for p in pairs]), strict=True):
        alignment = Alignment(pair)
        cell, frac = alignment.align(atoms)
        volumes = [np.linalg.det(pair.cell0), np.linalg.det(pair.cell1)]
        rows.append(
            {
                'coord_mae': alignment.coordinate_error(cell, frac),
                'internal_mae': np.abs((frac - pair.frac1) @ pair.cell1).mean(),
                'lattice_mae': np.abs(cell - pair.cell1).mean(),
                'volume_mae': abs(volumes[0] - volumes[1]),
                'relative_volume': abs(volumes[0] / volumes[1] - 1),
            }
        )
    found = summarise(rows)
    for key, mean, median in (
        ('coord_mae', 0.1094, 0.0690),
        ('internal_mae', 0.0550, 0.0156),
        ('lattice_mae', 0.1226, 0.0893),
        ('volume_mae', 17.1, 10.6),
        ('relative_volume', 0.121, 0.084),
    ):
        assert found[key]['mean'] == pytest.approx(mean, rel=6e-3)
        assert found[key]['median'] == pytest.approx(median, rel=6e-3)
