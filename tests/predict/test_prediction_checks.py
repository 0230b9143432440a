"""What predictions are refused: every message says what and where."""

import gzip
import itertools
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111
from ase.data import covalent_radii
from ase.geometry import get_distances
from hypothesis import given
from hypothesis import strategies as st

from ase_deeprelax.errors import (
    PredictionError,
    StructureError,
)
from ase_deeprelax.geometry.vacuum import find_layer
from ase_deeprelax.predict.prediction_checks import (
    CONTACT,
    STRETCH,
    VOLUME_RATIO,
    check_prediction,
)
from ase_deeprelax.predict.structure_checks import check_structure
from tests.strategies import crystals, prototypes, quick

DATA = Path(__file__).parents[2] / '../shared' / 'data'


def moved(atoms, deformation=None, displacement=0.0):
    deformation = np.eye(3) if deformation is None else deformation
    result = atoms.copy()
    result.positions = (atoms.positions + displacement) @ deformation
    result.set_cell(atoms.cell.array @ deformation)
    return result


@quick
@given(crystals(), st.integers(0, 2**32 - 1))
def test_moderate_predictions_pass(atoms, seed):
    rng = np.random.default_rng(seed)
    strain = rng.uniform(-0.05, 0.05, (3, 3))
    displacement = rng.uniform(-0.05, 0.05, atoms.positions.shape)
    check_prediction(atoms, moved(atoms, np.eye(3) + strain + strain.T, displacement))


@quick
@given(st.data())
def test_no_prediction_is_no_problem(data):
    atoms = data.draw(crystals(max_atoms=10))
    check_prediction(atoms, atoms)


@quick
@given(crystals(max_atoms=10), st.floats(0.05, 8.0))
def test_volume_limits(atoms, ratio):
    spread = atoms.copy()  # room, so that only the volume is judged
    spread.set_cell(atoms.cell.array * 4, scale_atoms=True)
    scale = ratio ** (1 / 3)
    low, high = VOLUME_RATIO
    if low * 1.001 < ratio < high * 0.999:
        check_prediction(spread, moved(spread, scale * np.eye(3)))
    elif not low * 0.999 < ratio < high * 1.001:
        with pytest.raises(PredictionError, match=r'volume is .* times.*input was kept'):
            check_prediction(spread, moved(spread, scale * np.eye(3)))


@quick
@given(crystals(max_atoms=10), st.sampled_from([STRETCH[0] * 0.9, STRETCH[1] * 1.1]))
def test_shape_limits(atoms, stretch):
    spread = atoms.copy()
    spread.set_cell(atoms.cell.array * 6, scale_atoms=True)
    other = stretch**-0.5  # the volume stays
    with pytest.raises(PredictionError, match='stretched by'):
        check_prediction(spread, moved(spread, np.diag([stretch, other, other])))


@pytest.mark.parametrize(
    ('stretches', 'refused'),
    [
        ([0.45 ** (1 / 3)] * 3, False),
        ([3.0 ** (1 / 3)] * 3, False),
        ([0.2 ** (1 / 3)] * 3, True),
        ([6.0 ** (1 / 3)] * 3, True),
        ([0.31, 0.31**-0.5, 0.31**-0.5], False),
        ([2.8, 2.8**-0.5, 2.8**-0.5], False),
        ([0.2, 0.2**-0.5, 0.2**-0.5], True),
        ([4.0, 4.0**-0.5, 4.0**-0.5], True),
    ],
)
def test_changes_as_large_as_those_of_dft_pass_and_much_larger_ones_do_not(
    stretches, refused
):
    """In 69,000 pairs DFT changes volumes by 0.45 to 3.0, and lengths by 0.31 to 2.8."""
    atoms = Atoms('NaCl', [[0, 0, 0], [12, 12, 12]], cell=[24, 24, 24], pbc=True)
    relaxed = moved(atoms, np.diag(stretches))
    said = pytest.raises(PredictionError, match=r'volume is|stretched by')
    with said if refused else nullcontext():
        check_prediction(atoms, relaxed)


def test_handedness():
    atoms = prototypes()['SrTiO3']
    with pytest.raises(PredictionError, match='inside out'):
        check_prediction(atoms, moved(atoms, np.diag([1, 1, -1])))
    left = moved(atoms, np.diag([1, 1, -1]))
    check_prediction(left, moved(left, 1.02 * np.eye(3)))


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_predictions_that_are_not_finite(value):
    atoms = prototypes()['SrTiO3']
    bad = atoms.copy()
    bad.positions[4, 2] = value
    with pytest.raises(PredictionError, match=rf'atom 4 \(O\): position z is {value}'):
        check_prediction(atoms, bad)
    bad = atoms.copy()
    bad.cell[0, 0] = value
    with pytest.raises(PredictionError, match='relaxed cell'):
        check_prediction(atoms, bad)


@quick
@given(st.data())
def test_contacts(data):
    """Two atoms pushed together are refused below half the sum of their radii only."""
    atoms = prototypes()[data.draw(st.sampled_from(['NaCl', 'TiO2 rutile', 'CaTiO3']))]
    a = data.draw(st.integers(0, len(atoms) - 2))
    b = len(atoms) - 1
    vectors, lengths = get_distances(
        atoms.positions[a], atoms.positions[b], cell=atoms.cell, pbc=True
    )
    vector, length = vectors[0, 0], lengths[0, 0]
    limit = CONTACT * covalent_radii[atoms.numbers[[a, b]]].sum()
    target = limit * data.draw(st.sampled_from([0.9, 0.99, 1.01, 1.1]))
    displacement = np.zeros_like(atoms.positions)
    displacement[b] = -vector * (1 - target / length)
    relaxed = moved(atoms, displacement=displacement)
    # the same images, written in a skewed cell: both are judged alike
    basis = np.array([[1, 0, 0], [7, 1, 0], [-2, 5, 1]])
    skewed, skewed_relaxed = atoms.copy(), relaxed.copy()
    skewed.set_cell(basis @ atoms.cell.array)
    skewed_relaxed.set_cell(basis @ relaxed.cell.array)
    text = rf'atom {a} \(.*atom {b} \(.*{target:.3f} A apart.*\(before: farther\)'
    for pair in ((atoms, relaxed), (skewed, skewed_relaxed)):
        if target < limit:
            with pytest.raises(PredictionError, match=text):
                check_prediction(*pair)
        else:
            check_prediction(*pair)


def test_close_contacts_of_the_input_may_stay_or_grow():
    atoms = Atoms(
        'SrHH',
        positions=[[0, 0, 0], [2.5, 2.5, 2.5], [2.5, 2.5, 2.75]],
        cell=[5, 5, 5],
        pbc=True,
    )
    check_prediction(atoms, atoms)
    apart = atoms.copy()
    apart.positions[2, 2] += 0.03
    check_prediction(atoms, apart)
    closer = atoms.copy()
    closer.positions[2, 2] -= 0.03
    with pytest.raises(PredictionError, match=r'0\.220 A apart.*before: 0\.250 A'):
        check_prediction(atoms, closer)


def test_contacts_of_an_open_layer_are_those_within_it():
    slab = fcc111('Cu', (1, 1, 4), vacuum=2)
    layer = find_layer(slab)
    flat = slab.copy()
    flat.cell[2, 2] = np.ptp(slab.positions[:, 2])
    check_prediction(slab, flat, layer=layer)
    flat.positions[3] = flat.positions[2] + [0, 0, 1.2]
    with pytest.raises(PredictionError, match=r'atom 2 \(Cu\) and atom 3 \(Cu\) are 1\.2'):
        check_prediction(slab, flat, layer=layer)


@pytest.mark.parametrize('residual', [np.nan, np.inf, 1.2])
def test_distances_that_contradict_each_other_are_refused(residual):
    """Also where the solver cannot say by how much."""
    atoms = prototypes()['NaCl']
    check_prediction(atoms, atoms, residual=0.9)  # as untrained networks leave
    with pytest.raises(PredictionError, match='contradict each other'):
        check_prediction(atoms, atoms, residual=residual)


@pytest.mark.skipif(not DATA.exists(), reason='needs ../shared/data')
@pytest.mark.parametrize('name', ['pairs_mp', 'pairs_pandey2021'])
def test_true_relaxations_are_not_refused(name):
    """DFT's own answers to real inputs pass both checks, all but very few."""
    refused, count = [], 0
    with gzip.open(DATA / f'{name}.jsonl.gz', 'rt') as lines:
        for line in itertools.islice(lines, 0, None, 60):
            record = json.loads(line)
            if not record['ok']:
                continue
            count += 1
            initial, relaxed = (
                Atoms(
                    numbers=record['numbers'],
                    cell=record[f'cell{k}'],
                    scaled_positions=record[f'frac{k}'],
                    pbc=True,
                )
                for k in (0, 1)
            )
            try:
                check_structure(initial)
                check_prediction(initial, relaxed)
            except (StructureError, PredictionError) as error:
                refused.append(f'{record["id"]}: {error}')
    assert count > 100
    assert len(refused) <= 0.002 * count, refused
