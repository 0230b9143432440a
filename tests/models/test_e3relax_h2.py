"""E3Relax-H2: layers that move the structure, and what each of them keeps."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.spacegroup import crystal
from scipy.special import eval_legendre

from ase_deeprelax.data.batching import collate
from ase_deeprelax.data.convert import to_graph
from ase_deeprelax.models import create_model
from ase_deeprelax.models.base import moved_vectors, relaxed_structure
from ase_deeprelax.models.e3relax_h2 import legendre_means
from ase_deeprelax.models.layers import spherical
from ase_deeprelax.testing import awaken
from ase_deeprelax.train.config import Loss
from ase_deeprelax.train.losses import relaxation_loss


def rocksalt(a=4.3):
    return bulk('MgO', 'rocksalt', a=a)


def rattled(seed=0):
    atoms = crystal(
        ['Ti', 'O'],
        [(0, 0, 0), (0.31, 0.31, 0)],
        spacegroup=136,
        cellpar=[4.5, 4.5, 3.0, 90, 90, 90],
    )
    atoms.rattle(0.1, seed=seed)
    return atoms


def graphs(*structures, model):
    return collate([to_graph(atoms, model.spec, torch.float64)[0] for atoms in structures])


@pytest.fixture
def model():
    """Random weights, moving atoms by about 0.1 A."""
    model = awaken(create_model('e3relax-h2', hidden=16, layers=3), scale=0.03).double()
    with torch.no_grad():
        for move in model.moves:
            move.vectors.weight *= 10
    return model


def test_untrained_model_says_relaxed():
    model = create_model('e3relax-h2', hidden=16, layers=3).double()
    said = model(graphs(rattled(), model=model))
    assert len(said.layers) == 3
    for deformation, displacement in said.layers:
        assert torch.equal(deformation[0], torch.eye(3, dtype=torch.float64))
        assert not displacement.any()


def test_every_layer_moves_on_and_the_last_is_the_answer(model):
    said = model(graphs(rattled(), rocksalt(), model=model))
    assert said.layers[-1][0] is said.deformation
    assert said.layers[-1][1] is said.displacement
    for one, two in zip(said.layers, said.layers[1:], strict=False):
        assert (one[0] - two[0]).abs().max() > 1e-4
        assert (one[1] - two[1]).abs().max() > 1e-4


def test_every_layer_is_equivariant(model):
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    atoms = rattled()
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ rotation, scale_atoms=True)
    said, again = (model(graphs(x, model=model)) for x in (atoms, turned))
    r = torch.from_numpy(rotation)
    for one, two in zip(said.layers, again.layers, strict=True):
        assert torch.allclose(r.T @ one[0] @ r, two[0], atol=1e-12)
        assert torch.allclose(one[1] @ r, two[1], atol=1e-12)


def test_perfect_rocksalt_stays_perfect(model):
    said = model(graphs(rocksalt(), rocksalt() * (2, 1, 1), model=model))
    for deformation, displacement in said.layers:
        assert displacement.abs().max() < 1e-12
        shape = deformation / deformation[:, :1, :1]
        assert torch.allclose(
            shape, torch.eye(3, dtype=torch.float64).expand_as(shape), atol=1e-12
        )
        assert (deformation[:, 0, 0] - 1).abs().min() > 1e-4  # but its volume changes
        assert torch.allclose(deformation[0], deformation[1], atol=1e-12)  # supercell


def test_answer_is_smooth_at_a_centre_of_inversion(model):
    """A reference direction would jump here; per-degree moments vanish with the shift."""
    steps = (0, 1e-8, 1e-4, 1e-3)
    answers = []
    for shift in steps:
        atoms = rocksalt() * (2, 1, 1)
        atoms.positions[0] += shift * np.array([0.3, 0.5, 0.8])
        answers.append(model(graphs(atoms, model=model)).displacement.detach())
    sizes = [float((x - answers[0]).abs().max()) for x in answers]
    for shift, size in zip(steps[1:], sizes[1:], strict=True):
        assert 1e-3 * shift < size < 10 * shift


def test_edges_follow_the_structure(model):
    graph = graphs(rattled(), model=model)
    said = model(graph)
    vectors = moved_vectors(
        graph, graph.edge_vectors(), said.deformation, said.displacement
    )
    moved = graph.clone()
    moved.cell, moved.pos = relaxed_structure(graph, said.deformation, said.displacement)
    assert torch.allclose(vectors, moved.edge_vectors(), atol=1e-12)


def test_answer_is_smooth_where_an_edge_appears(model):
    """Neighbours enter at the cutoff with no weight, also after later layers moved them."""
    atoms = rattled()
    distances = graphs(atoms, model=model).edge_vectors().norm(dim=1)
    model.spec = type(model.spec)(cutoff=float(distances.max()) + 1e-6)
    model.radial.cutoff = model.spec.cutoff
    said = model(graphs(atoms, model=model))
    model.spec = type(model.spec)(cutoff=float(distances.max()) - 1e-6)
    model.radial.cutoff = model.spec.cutoff
    fewer = graphs(atoms, model=model)
    assert fewer.edge_index.shape[1] < len(distances)
    assert torch.allclose(said.displacement, model(fewer).displacement, atol=1e-5)


def test_legendre_means_are_means_over_pairs_of_edges():
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(9, 3))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    weight, centre = rng.random((9, 1)), np.array([0, 0, 0, 0, 2, 2, 2, 2, 2])
    given = spherical(torch.from_numpy(unit), 2), *map(torch.from_numpy, (weight, centre))
    found = legendre_means(*given, 3)
    for e in range(9):
        others = np.flatnonzero(centre == centre[e])
        cosines = np.clip(unit[others] @ unit[e], -1, 1)
        for degree in (1, 2, 3):
            mean = np.average(eval_legendre(degree, cosines), weights=weight[others, 0])
            assert float(found[e, degree - 1]) == pytest.approx(mean, abs=1e-5)


def test_training_supervises_every_layer(model):
    """Each layer learns: its read-outs get a gradient that the last layer's loss lacks."""
    graph = graphs(rattled(), rattled(1), model=model)
    graph.deformation_target = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1) * 1.03
    graph.displacement_target = 0.05 * torch.randn_like(graph.pos)
    relaxation_loss(graph, model(graph), Loss())['loss'].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    for move, strain in zip(model.moves, model.strains, strict=True):
        assert move.vectors.weight.grad.abs().max() > 1e-6
        assert strain.tensors.weight.grad.abs().max() > 1e-6


def test_one_atom_cells_train():
    model = create_model('e3relax-h2', hidden=16, layers=2).double()
    graph = graphs(bulk('Cu', a=3.5), model=model)
    graph.deformation_target = 1.03 * torch.eye(3, dtype=torch.float64).unsqueeze(0)
    graph.displacement_target = torch.zeros_like(graph.pos)
    loss = relaxation_loss(graph, model(graph), Loss())['loss']
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
