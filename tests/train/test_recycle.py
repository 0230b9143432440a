from dataclasses import replace

import numpy as np
from ase import Atoms
from ase.build import bulk, fcc111

from ase_deeprelax import Predictor
from ase_deeprelax.data.pair import make_pair
from ase_deeprelax.data.pairs import write_pairs
from ase_deeprelax.models.base import GraphSpec
from ase_deeprelax.train.config import TrainConfig
from ase_deeprelax.train.datamodule import PairData
from ase_deeprelax.train.recycle import recycled


def salt():
    return make_pair(
        'NaCl', bulk('NaCl', 'rocksalt', a=5.2), bulk('NaCl', 'rocksalt', a=5.7)
    )


def slab():
    """A slab whose two lower layers are fixed, in a cell that is fixed."""
    relaxed = fcc111('Al', (1, 1, 4), a=4.04, vacuum=8)
    unrelaxed = relaxed.copy()
    unrelaxed.positions[-1, 2] += 0.2
    fixed = relaxed.positions[:, 2] < relaxed.positions[:, 2].mean()
    return replace(make_pair('Al', unrelaxed, relaxed), fixed=fixed, fixed_cell=True)


def test_inputs_are_predictions_and_targets_stay():
    predictor = Predictor('deeprelax')
    predictor.max_passes = 1
    for pair in (salt(), slab()):
        (result,) = predictor.relax([pair.unrelaxed], relax_cell=not pair.fixed_cell)
        (again,) = recycled([pair], 'deeprelax')
        assert np.allclose(again.unrelaxed.cell, result.atoms.cell)
        assert np.allclose(again.unrelaxed.positions, result.atoms.positions)
        assert not np.allclose(again.unrelaxed.positions, pair.unrelaxed.positions)
        assert np.allclose(again.relaxed.cell.cellpar(), pair.relaxed.cell.cellpar())
        assert np.allclose(again.frac1, pair.frac1)
        deformation, _ = again.targets()
        assert np.allclose(deformation, deformation.T)


def test_fixed_atoms_stay():
    pair = slab()
    (again,) = recycled([pair], 'deeprelax')
    assert np.allclose(again.frac0[pair.fixed], pair.frac0[pair.fixed], atol=1e-12)
    assert np.array_equal(again.fixed, pair.fixed)


def test_a_pair_that_the_model_refuses_is_left_out():
    lonely = Atoms('Ar', cell=[12, 12, 12], pbc=True)
    refused = make_pair('Ar', lonely, lonely)
    assert [pair.id for pair in recycled([refused, salt()], 'deeprelax')] == ['NaCl']


def test_a_training_takes_predictions_as_inputs(tmp_path):
    write_pairs(tmp_path / 'pairs.jsonl', [salt()])
    source = {'path': tmp_path / 'pairs.jsonl'}
    config = TrainConfig(
        name='again',
        model={'architecture': 'paegnn'},
        data={'pairs': [source, source | {'predicted_by': 'deeprelax', 'val_limit': 0}]},
        optimize={'max_steps': 1},
    )
    first, second = PairData(config, GraphSpec(cutoff=5.0)).train
    assert np.allclose(first.cell0, salt().cell0)
    assert np.allclose(second.cell0, recycled([salt()], 'deeprelax')[0].cell0)
