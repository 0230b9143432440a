"""The loss: eqs. 11-15 and what must not change it."""

import math

import numpy as np
import pytest
import torch
from ase.build import bulk
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch_geometric.data import Batch

from ase_deeprelax.data.graph import build_graph
from ase_deeprelax.models import create_model
from ase_deeprelax.models.base import Prediction, relaxed_structure
from ase_deeprelax.models.paegnn import PUBLISHED
from ase_deeprelax.train.config import Loss
from ase_deeprelax.train.losses import laplace_nll, relaxation_loss, target_distances


def sample(model, rotation=None, seed=0):
    rng = np.random.default_rng(seed)
    rotation = np.eye(3) if rotation is None else rotation
    atoms = bulk('NaCl', 'rocksalt', 5.6, cubic=True)
    noise = rng.normal(0, 0.02, (3, 3))
    deformation = np.eye(3) + noise + noise.T
    displacement = rng.normal(0, 0.1, (len(atoms), 3))
    displacement -= displacement.mean(0)
    graph = build_graph(
        atoms.numbers,
        atoms.positions @ rotation,
        atoms.cell.array @ rotation,
        model.spec,
        torch.float64,
    )
    graph.deformation_target = torch.from_numpy(rotation.T @ deformation @ rotation)[None]
    graph.displacement_target = torch.from_numpy(displacement @ rotation)
    return graph


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return create_model('paegnn', hidden=16, layers=1).double()


def perfect(graph):
    edges = torch.arange(graph.num_edges)
    distance = target_distances(graph, edges)
    log_b = torch.full_like(distance, -9.0)
    return Prediction(
        graph.deformation_target, graph.displacement_target, edges, distance, log_b
    )


def test_perfect_prediction_has_no_structure_error(model):
    graph = sample(model)
    terms = relaxation_loss(graph, perfect(graph), Loss())
    for name in ('lattice', 'volume', 'displacement'):
        assert terms[name] < 1e-4
    assert terms['distance'] == pytest.approx(-9 + math.log(2))


def test_target_distances_are_those_of_the_relaxed_structure(model):
    graph = sample(model)
    target = graph.deformation_target, graph.displacement_target
    cell, pos = relaxed_structure(graph, *target)
    j, i = graph.edge_index
    expected = (pos[j] + graph.offset @ cell[0] - pos[i]).norm(dim=1)
    torch.testing.assert_close(
        target_distances(graph, torch.arange(graph.num_edges)), expected
    )


@given(st.integers(0, 1000))
def test_loss_does_not_depend_on_orientation(model, seed):
    rotation = Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
    values = [
        relaxation_loss(graph, model(graph), Loss())['loss'].item()
        for graph in (sample(model), sample(model, rotation))
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-8)


@given(st.floats(0.01, 2), st.floats(-3, 1))
def test_laplace_nll_is_least_at_the_true_scale(error, log_b):
    """At the maximum of the likelihood the scale is the error."""
    values = [
        laplace_nll(*(torch.tensor([x]) for x in (1 + error, b, 1.0))).item()
        for b in (math.log(error), log_b)
    ]
    assert values[0] <= values[1] + 1e-6


def test_one_atom_cells_give_a_finite_loss():
    settings = PUBLISHED | {'hidden': 16, 'layers': 1}
    model = create_model('paegnn', **settings).double()
    graphs = []
    for _ in range(2):
        cu = bulk('Cu')
        graph = build_graph(
            cu.numbers, cu.positions, cu.cell.array, model.spec, torch.float64
        )
        graph.deformation_target = 1.02 * torch.eye(3, dtype=torch.float64)[None]
        graph.displacement_target = torch.zeros(1, 3, dtype=torch.float64)
        graphs.append(graph)
    graph = Batch.from_data_list(graphs)
    terms = relaxation_loss(graph, model(graph), Loss())
    terms['loss'].backward()
    assert torch.isfinite(terms['loss'])
    assert all(
        torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None
    )
