"""The loss: eqs. 11-15 and what must not change it."""

import math

import numpy as np
import pytest
import torch
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ase_deeprelax.data.batching import collate
from ase_deeprelax.data.graph import CrystalGraph, build_graph
from ase_deeprelax.models import create_model
from ase_deeprelax.models.base import ModelOutput, relaxed_structure
from ase_deeprelax.models.paegnn import PUBLISHED
from ase_deeprelax.train.config import Loss
from ase_deeprelax.train.losses import (
    FINEST_SCALE,
    laplace_nll,
    nearest_image,
    relaxation_loss,
    target_distances,
)


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


def without_edges(cells, batch):
    """Atoms in cells, and no pairs."""
    n = len(batch)
    return CrystalGraph(
        z=torch.ones(n, dtype=int),
        pos=torch.zeros(n, 3),
        cell=cells,
        edge_index=torch.zeros(2, 0, dtype=int),
        offset=torch.zeros(0, 3),
        intra=torch.zeros(0, dtype=bool),
        fixed=torch.zeros(n, dtype=bool),
        free_strain=torch.eye(6).repeat(len(cells), 1, 1),
        batch=batch,
    )


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return create_model('paegnn', hidden=16, layers=1).double()


def perfect(graph):
    edges = torch.arange(graph.num_edges)
    distance = target_distances(graph, edges)
    log_b = torch.full_like(distance, -9.0)
    return ModelOutput(
        graph.deformation_target, graph.displacement_target, edges, distance, log_b
    )


def test_perfect_prediction_has_no_structure_error(model):
    graph = sample(model)
    terms = relaxation_loss(graph, perfect(graph), Loss())
    for name in ('lattice', 'volume', 'displacement'):
        assert terms[name] < 1e-4
    finest = math.exp(-9) + FINEST_SCALE
    assert terms['distance'] == pytest.approx(math.log(2 * finest))


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
        for b in (math.log(error - FINEST_SCALE), log_b)
    ]
    assert values[0] <= values[1] + 1e-6


@given(st.floats(-9, 2), st.floats(-1, 1))
def test_no_scale_makes_the_gradient_of_a_distance_large(log_b, error):
    distance = torch.tensor([2.0 + error], dtype=torch.float64, requires_grad=True)
    target = torch.full_like(distance, 2.0)
    laplace_nll(distance, torch.full_like(distance, log_b), target).backward()
    assert abs(distance.grad.item()) <= 1 / FINEST_SCALE


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
    graph = collate(graphs)
    terms = relaxation_loss(graph, model(graph), Loss())
    terms['loss'].backward()
    assert torch.isfinite(terms['loss'])
    assert all(
        torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None
    )


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_displacement_loss_sees_the_nearest_image(seed):
    """Whole lattice vectors are no error; the gradient is that of what is left."""
    rng = np.random.default_rng(seed)
    cells = torch.from_numpy(np.eye(3) * 4 + rng.normal(0, 0.5, (2, 3, 3)))
    graph = without_edges(cells, torch.tensor([0, 0, 1, 1, 1]))
    small = torch.from_numpy(rng.normal(0, 0.2, (5, 3)))
    whole = torch.from_numpy(rng.integers(-2, 3, (5, 1, 3)).astype(float))
    far = (small + (whole @ cells[graph.batch]).squeeze(1)).requires_grad_()
    found = nearest_image(far, graph)
    assert torch.allclose(found, small, atol=1e-9)
    found.square().sum().backward()
    assert torch.allclose(far.grad, 2 * small, atol=1e-9)


def test_nearest_image_in_a_skewed_cell():
    """Rounding fractional coordinates alone would miss it."""
    cell = torch.tensor([[[1.0, 0, 0], [0.9, 1, 0], [0, 0, 1]]], dtype=torch.float64)
    graph = without_edges(cell, torch.tensor([0]))
    difference = torch.tensor([[0.93, 0.49, 0.0]], dtype=torch.float64)
    length = nearest_image(difference, graph).norm()
    grid = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3), -1).reshape(-1, 3)
    best = np.linalg.norm(difference.numpy() + grid @ cell[0].numpy(), axis=1).min()
    assert float(length) == pytest.approx(best)
