"""Networks that are told what may move."""

import numpy as np
import pytest
import torch
from ase.build import bulk

from ase_deeprelax import testing
from ase_deeprelax.data.batching import collate
from ase_deeprelax.data.convert import to_graph
from ase_deeprelax.geometry.motion import (
    Motion,
    everything_free,
    in_plane_strains,
    strain_projection,
)
from ase_deeprelax.models import create_model
from ase_deeprelax.models.heads import (
    free_deformation,
    free_displacement,
    free_strain,
    stretch,
)

ARCHITECTURES = ('paegnn', 'painn', 'egnn', 'e3relax-h2')
PLANE = strain_projection(in_plane_strains(np.array([0.6, 0.0, 0.8]), thickness=False))
PROJECTIONS = {
    'all': np.eye(6),
    'none': np.zeros((6, 6)),
    'hydrostatic': strain_projection(np.eye(3)[None]),
    'plane': PLANE,
}


def small(architecture, seed=0):
    torch.manual_seed(seed)
    return testing.awaken(
        create_model(architecture, hidden=16, layers=2), scale=0.3
    ).double()


def batch_of(model, motions):
    atoms = bulk('NaCl', 'rocksalt', a=5.6, cubic=True)
    atoms.rattle(0.1, seed=1)
    return collate(
        [to_graph(atoms, model.spec, torch.float64, motion=motion)[0] for motion in motions]
    )


def awake_to_motion(model, seed=3):
    """Weights of the motion's embedding as training leaves them: not zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.motion.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_weights_of_before_mean_all_free(architecture):
    """They load, and give what they gave, since nothing is added where all is free."""
    model = small(architecture)
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith('motion.')}
    assert len(weights) < len(model.state_dict())
    other = create_model(architecture, hidden=16, layers=2).double()
    awake_to_motion(other).load_state_dict(weights)
    assert not any(parameter.any() for parameter in other.motion.parameters())
    batch = batch_of(model, [everything_free(8)])
    for seed in (3, 4):  # With all free, what the embedding has learnt is not asked.
        a, b = model(batch), awake_to_motion(other, seed)(batch)
        torch.testing.assert_close(a.displacement, b.displacement, rtol=0, atol=0)
        torch.testing.assert_close(a.deformation, b.deformation, rtol=0, atol=0)


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_the_answer_knows_what_may_move(architecture):
    """Neither a fixed cell nor a fixed atom is only cut off: the rest answers to it."""
    model = awake_to_motion(small(architecture))
    fixed = np.arange(8) == 2
    motions = [everything_free(8), Motion(np.zeros(8, dtype=bool), np.zeros((6, 6)))]
    motions.append(Motion(fixed, np.zeros((6, 6))))
    free, held, tagged = model(batch_of(model, motions)).displacement.split(8)
    assert (free - held).abs().max() > 1e-4
    assert (held - held.mean(0) - tagged + tagged.mean(0))[~fixed].abs().max() > 1e-4
    assert not tagged[fixed].any()


@pytest.mark.parametrize('architecture', ['paegnn', 'e3relax-h2'])
def test_directions_of_held_strains_turn_with_the_crystal(architecture):
    model = awake_to_motion(small(architecture))
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    atoms = bulk('NaCl', 'rocksalt', a=5.6, cubic=True)
    atoms.rattle(0.1, seed=1)
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ rotation)
    turned.positions = atoms.positions @ rotation
    said = []
    for structure, normal in (
        (atoms, np.array([0.6, 0.0, 0.8])),
        (turned, np.array([0.6, 0.0, 0.8]) @ rotation),
    ):
        plane = strain_projection(in_plane_strains(normal, thickness=False))
        motion = Motion(np.zeros(8, dtype=bool), plane)
        graph, _ = to_graph(structure, model.spec, torch.float64, motion=motion)
        said.append(model(collate([graph])))
    one, two = said
    r = torch.from_numpy(rotation)
    torch.testing.assert_close(two.displacement, one.displacement @ r, rtol=0, atol=1e-9)
    torch.testing.assert_close(
        two.deformation, r.T @ one.deformation @ r, rtol=0, atol=1e-9
    )
    normal = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    torch.testing.assert_close(one.deformation[0] @ normal, normal, rtol=0, atol=1e-12)


@pytest.mark.parametrize('name', PROJECTIONS)
def test_strains_and_deformations_keep_what_is_held(name):
    class Graph:
        free_strain = torch.from_numpy(PROJECTIONS[name])[None]

    torch.manual_seed(0)
    log_strain = 0.1 * torch.randn(1, 6, dtype=torch.float64)
    once = free_strain(log_strain, Graph)
    torch.testing.assert_close(free_strain(once, Graph), once)
    deformation = stretch(once)
    again = free_deformation(stretch(log_strain), Graph)
    torch.testing.assert_close(free_deformation(again, Graph), again)
    eye = torch.eye(3, dtype=torch.float64)
    for matrix in (deformation[0], again[0]):
        if name == 'all':
            assert (matrix - eye).abs().max() > 0.01
        if name == 'none':
            assert torch.equal(matrix, eye)
        if name == 'hydrostatic':
            torch.testing.assert_close(matrix, eye * matrix[0, 0])
        if name == 'plane':
            normal = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
            torch.testing.assert_close(matrix @ normal, normal)


def test_drift_is_taken_away_only_where_nothing_is_fixed():
    class Graph:
        graph_of_atom, starts = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 4])
        n_graphs = 2
        fixed = torch.tensor([False, False, True, False])

    moves = torch.ones(4, 3, dtype=torch.float64)
    moves[3] = 2.0
    left = free_displacement(moves, Graph)
    assert left[:3].abs().max() == 0
    assert (left[3] == 2).all()
