"""The shipped models: numbers they gave when they were released, and how good they are.

``python tests/regression/test_shipped.py`` writes the numbers of today's weights.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.spacegroup import crystal

from ase_deeprelax import available_models, relax
from ase_deeprelax.compare.evaluate import cuts, evaluate
from ase_deeprelax.data.pairs import read_pairs
from ase_deeprelax.models.folders import SHIPPED

NUMBERS = Path(__file__).with_name('numbers.json')
PAIRS = Path(__file__).parents[2] / '../shared/data/pairs_wbm_dev.jsonl.gz'
REAL = Path(__file__).parents[1] / 'real/pairs_mp.jsonl.gz'
MODELS = sorted(available_models())


def crystals():
    """A few unrelaxed crystals whose atoms, cells, or both have to move."""
    rutile = crystal(
        ['Sn', 'O'],
        [(0, 0, 0), (0.3053, 0.3053, 0)],
        spacegroup=136,
        cellpar=[4.594, 4.594, 2.959, 90, 90, 90],
    )
    rattled = bulk('NaCl', 'rocksalt', a=5.8, cubic=True)
    rattled.rattle(0.1, seed=0)
    return {
        'KCl': bulk('KCl', 'rocksalt', a=5.64),
        'SnO2': rutile,
        'ZnS': bulk('ZnS', 'wurtzite', a=3.25, c=5.207, u=0.382),
        'NaCl': rattled,
    }


def answers(model):
    results = relax(list(crystals().values()), model=model)
    return {
        name: {
            'cell': result.atoms.cell.array.round(4).tolist(),
            'dmax': round(result.dmax, 4),
            'sigma': round(result.sigma, 4),
        }
        for name, result in zip(crystals(), results, strict=True)
    }


def test_models_are_shipped():
    assert MODELS == ['deeprelax', 'deeprelax-2', 'e3relax-h2', 'ensemble']


@pytest.mark.parametrize('model', MODELS)
def test_answers_are_those_of_the_release(model):
    expected, today = json.loads(NUMBERS.read_text())[model], answers(model)
    assert expected.keys() == today.keys()
    for name in expected:
        for key in ('cell', 'dmax', 'sigma'):
            np.testing.assert_allclose(today[name][key], expected[name][key], atol=5e-4)


def test_chemistry_of_the_answers():
    """Distances are PBE's within 3 %, or sigma says that they are not to be trusted."""
    pbe = {'NaCl': 5.69, 'KCl': 6.39, 'MgO': 4.25, 'LiF': 4.07, 'CaO': 4.84}
    trusted = 0
    for name, a in pbe.items():
        for scale in (0.96, 1.0, 1.04):
            result = relax(bulk(name, 'rocksalt', a=a * scale))
            error = abs((4 * result.atoms.cell.volume) ** (1 / 3) - a) / 2
            assert error < max(0.03 * a / 2, 2 * result.sigma)
            trusted += error < 0.03 * a / 2
    assert trusted > 10


def test_shipped_model_beats_its_baselines_on_materials_project_pairs():
    """150 DFT relaxations that come with the tests, so that the gate holds everywhere."""
    result = evaluate(read_pairs(REAL), workers=1)
    check_cuts(result, coord_mae=(33, 65), lattice_mae=(42, 66), volume_mae=(74, 81))
    assert result['spearman_sigma'] > 0.6


@pytest.mark.skipif(not PAIRS.exists(), reason='../shared/data is not there')
def test_shipped_model_beats_its_baselines_on_dft():
    """Every 14th pair of WBM, never trained on; docs/benchmarks.md has all of them."""
    result = evaluate(read_pairs(PAIRS)[::14], workers=1)
    check_cuts(result, coord_mae=(25, 48), lattice_mae=(37, 52), volume_mae=(69, 76))
    assert result['spearman_sigma'] > 0.4


def check_cuts(result, **bounds):
    """How many percent of the input's error a model takes away, mean and median."""
    cut = cuts(result['all'])
    for key, (mean, median) in bounds.items():
        assert cut[key]['mean'] > mean
        assert cut[key]['median'] > median
        model, scaled = (result['all'][m][key] for m in ('model', 'scaled_dummy'))
        assert model['mean'] < scaled['mean']
        assert model['median'] < scaled['median']
    assert result['all']['model']['spacegroup_kept'] > 0.98  # 0.995 of all 2,068 of WBM
    assert result['n_failed'] == 0


@pytest.mark.parametrize('model', MODELS)
def test_card_says_where_a_model_comes_from(model):
    card = available_models()[model]
    assert card['licence']
    assert all(source['licence'] for source in card['training']['sources'])
    assert card['metrics']['pairs_wbm_dev']['n'] == 2068
    assert len(card['elements']) > 80


def test_weights_fit_into_a_wheel():
    size = sum(file.stat().st_size for file in SHIPPED.glob('*/*'))
    assert size < 40e6


if __name__ == '__main__':
    numbers = {name: answers(name) for name in MODELS}
    NUMBERS.write_text(json.dumps(numbers, indent=1) + '\n')
