"""Batches whose inputs are the answers of the network in training."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk, fcc111

pytest.importorskip('pydantic')

from ase_deeprelax import Predictor
from ase_deeprelax.data.graph import GraphSpec
from ase_deeprelax.data.pair import make_pair
from ase_deeprelax.data.radius_edges import with_radius_edges
from ase_deeprelax.models import create_model
from ase_deeprelax.models.base import relaxed_structure
from ase_deeprelax.models.store import load_model
from ase_deeprelax.train.recycle import is_drawn, recycled
from ase_deeprelax.train.samples import fit_thickness, to_samples


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


def batch(*pairs, dtype=torch.float32):
    spec = GraphSpec(cutoff=5.0)
    graph = fit_thickness(to_samples(pairs, spec)).to_dtype(dtype)
    return with_radius_edges(graph, spec.cutoff)


def test_inputs_are_predictions():
    predictor = Predictor('deeprelax')
    predictor.max_passes = 1
    graph = recycled(batch(salt()), load_model('deeprelax'))
    (result,) = predictor.relax([salt().unrelaxed])
    np.testing.assert_allclose(graph.cell[0], result.atoms.cell.array, atol=1e-4)
    edges = graph.edge_vectors().norm(dim=1)
    assert graph.num_edges > 20
    assert edges.max() < 5.0


def test_the_relaxed_structure_stays_and_what_is_fixed():
    torch.manual_seed(0)
    model = create_model('paegnn', hidden=16, layers=2).double()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    before = batch(salt(), slab(), dtype=torch.float64)
    after = recycled(before, model)
    assert not torch.allclose(before.cell[0], after.cell[0], atol=1e-3)
    (cell, pos), (cell1, pos1) = (
        relaxed_structure(graph, *graph.targets()) for graph in (before, after)
    )
    torch.testing.assert_close(cell @ cell.mT, cell1 @ cell1.mT, atol=1e-9, rtol=0)
    torch.testing.assert_close(
        torch.cdist(pos[2:], pos[2:]), torch.cdist(pos1[2:], pos1[2:])
    )
    fixed = before.fixed
    assert fixed.any()
    torch.testing.assert_close(before.pos[fixed], after.pos[fixed], atol=1e-12, rtol=0)
    torch.testing.assert_close(before.cell[1], after.cell[1], atol=1e-12, rtol=0)
    assert not after.displacement_target[fixed].any()


def test_a_resumed_training_recycles_the_same_batches():
    drawn = [is_drawn(0.2, seed=3, step=k) for k in range(1000)]
    assert drawn == [is_drawn(0.2, seed=3, step=k) for k in range(1000)]
    assert 140 < sum(drawn) < 260
    assert not any(is_drawn(0.0, seed=3, step=k) for k in range(100))
