"""PaiNN and EGNN: the contract, and their equations against loops over edges."""

import itertools

import numpy as np
import pytest
import torch
from ase import Atoms
from scipy.linalg import expm

from ase_deeprelax import testing
from ase_deeprelax.data.batching import collate
from ase_deeprelax.data.graph import ROUNDING, build_graph
from ase_deeprelax.errors import ModelError
from ase_deeprelax.models import create_model
from ase_deeprelax.models.base import relaxed_structure
from ase_deeprelax.models.topology import topology
from ase_deeprelax.train.config import Loss
from ase_deeprelax.train.losses import relaxation_loss

# How loud the read-outs of an untrained network are made: displacements of about 0.05 A.
SCALES = {'painn': 0.7, 'egnn': 0.1}
BASELINES = tuple(SCALES)
SMALL = {'hidden': 16, 'layers': 2}
# With eight Gaussians their centres are exact in single precision too.
CUTOFF = 3.5


@pytest.fixture(scope='module', params=BASELINES)
def model(request):
    torch.manual_seed(0)
    model = create_model(request.param, hidden=32, layers=2)
    return testing.awaken(model, scale=SCALES[request.param])


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('check', testing.CHECKS, ids=lambda check: check.__name__)
def test_model(model, check, dtype):
    check(model, dtype)


def graph_of(atoms, model):
    return build_graph(
        atoms.numbers, atoms.positions, atoms.cell.array, model.spec, torch.float64
    )


def skewed():
    """Two atoms in a cell so small that each sees several images of itself."""
    return Atoms(
        'TiO',
        cell=[[2.9, 0.2, 0], [0.3, 3.1, -0.2], [0.1, 0.4, 3.3]],
        positions=[[0.1, 0.2, 0.3], [1.6, 1.5, 1.4]],
        pbc=True,
    )


@pytest.mark.parametrize('architecture', BASELINES)
def test_untrained_model_says_already_relaxed(architecture):
    model = create_model(architecture, **SMALL).double().eval()
    graph = graph_of(testing.generic_crystals()[3], model)
    said = model(graph)
    cell, pos = relaxed_structure(graph, said.deformation, said.displacement)
    torch.testing.assert_close(cell, graph.cell)
    torch.testing.assert_close(pos, graph.pos)
    edges = graph.edge_vectors().norm(dim=1)
    torch.testing.assert_close(said.distance, edges[said.bond_index])


@pytest.mark.parametrize('seed', [0, 3])
@pytest.mark.parametrize('architecture', BASELINES)
def test_prediction_is_smooth_where_atoms_cross_the_cutoff(architecture, seed):
    """EGNN moves the pair at the cutoff apart with one seed, together with the other."""
    model = create_model(architecture, **SMALL, cutoff=3.0)
    model = testing.awaken(model, scale=3, seed=seed).double()

    def says(distance):
        strontium = distance * np.array([0.5, 0.75**0.5, 0])
        atoms = Atoms('TiOSr', [[0, 0, 0], [1.8, 0.3, 0.3], strontium], pbc=True)
        atoms.cell = 9 * np.eye(3)
        graph = graph_of(atoms, model)
        said = model(graph)
        return graph.num_edges, said.deformation.detach(), said.displacement.detach()

    cutoff = 3 * (1 - ROUNDING)
    many, *inside = says(cutoff - 1e-8)
    few, *outside = says(cutoff + 1e-8)
    assert (few, many) == (4, 6)
    assert inside[1].norm(dim=1).max() > 0.01
    torch.testing.assert_close(inside, outside, atol=1e-7, rtol=0)


@pytest.mark.parametrize('architecture', BASELINES)
def test_learns_a_few_pairs_by_heart(architecture):
    model = create_model(architecture, hidden=32, layers=2).double()
    rng = np.random.default_rng(0)
    graphs = []
    for atoms in testing.generic_crystals()[1:]:
        graph = graph_of(atoms, model)
        noise = rng.normal(0, 0.03, (3, 3))
        deformation = np.eye(3) * rng.uniform(0.95, 1.1) + noise + noise.T
        u = rng.normal(0, 0.1, (len(atoms), 3))
        graph.deformation_target = torch.from_numpy(deformation)[None]
        graph.displacement_target = torch.from_numpy(u - u.mean(0))
        graphs.append(graph)
    held = graph_of(testing.generic_crystals()[0], model)  # its cell and one atom
    held.fixed[0], held.free_strain[:] = True, 0.0
    held.deformation_target = torch.eye(3, dtype=held.pos.dtype)[None]
    held.displacement_target = 0.1 * torch.randn_like(held.pos)
    held.displacement_target[0] = 0.0
    batch = collate([*graphs, held])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    structure = []
    for _ in range(60):
        terms = relaxation_loss(batch, model(batch), Loss())
        structure.append(
            sum(terms[x].item() for x in ('lattice', 'volume', 'displacement'))
        )
        optimizer.zero_grad()
        terms['loss'].backward()
        optimizer.step()
    assert structure[-1] < structure[0] / 2
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def arrays(module):
    return {name: p.detach().numpy() for name, p in module.state_dict().items()}


def silu(x):
    return x / (1 + np.exp(-x)) / 0.6


def dense(weights, name, x):
    """An MLP with activations between its layers."""
    keys = sorted(k for k in weights if k.startswith(f'{name}.') and k.endswith('weight'))
    for n, key in enumerate(keys):
        if n:
            x = silu(x)
        x = weights[key] @ x + weights.get(key.replace('weight', 'bias'), 0)
    return x


def layer_norm(weights, name, x):
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
    return weights[f'{name}.weight'] * x + weights[f'{name}.bias']


def images(atoms):
    """Centre, neighbour and vector of every edge, by trying all cells nearby."""
    for i, j in itertools.product(range(len(atoms)), repeat=2):
        for offset in itertools.product(range(-3, 4), repeat=3):
            vector = atoms.positions[j] + offset @ atoms.cell.array - atoms.positions[i]
            if 1e-9 < np.linalg.norm(vector) < CUTOFF:
                yield i, j, vector


def radial(d, num_rbf=8):
    centres = np.linspace(0, CUTOFF, num_rbf)
    width = CUTOFF / (num_rbf - 1)
    return np.exp(-((d - centres) ** 2) / (2 * width**2)) * fade(d)


def fade(d):
    x = d / CUTOFF
    return 1 - 21 * x**5 + 35 * x**6 - 15 * x**7 if x < 1 else 0.0


def traceless(matrix):
    return (matrix + matrix.T) / 2 - np.trace(matrix) / 3 * np.eye(3)


def test_painn_is_its_equations():
    model = testing.awaken(create_model('painn', **SMALL, cutoff=CUTOFF)).double()
    atoms, f = skewed(), SMALL['hidden']
    graph = graph_of(atoms, model)
    features = model.features(graph, model.edge_features(graph, topology(graph))[2])

    s = arrays(model.embedding)['weight'][atoms.numbers]
    v = np.zeros((2, 3, f))
    for message, update in zip(model.messages, model.updates, strict=True):
        w = arrays(message)
        ds, dv = np.zeros_like(s), np.zeros_like(v)
        for i, j, vector in images(atoms):  # message
            d = np.linalg.norm(vector)
            phi = dense(w, 'mlp', layer_norm(w, 'norm', s[j])) * 0.2 / np.sqrt(3)
            phi_s, phi_vs, phi_vv = phi.reshape(3, f)
            filter_s, filter_vs, filter_vv = np.einsum('r,krf->kf', radial(d), w['filters'])
            ds[i] += phi_s * filter_s
            dv[i] += v[j] * phi_vv * filter_vv
            dv[i] += np.outer(vector / d, phi_vs * filter_vs)
        s, v = (s + ds) / np.sqrt(2), v + dv
        w = arrays(update)
        ds, dv = np.zeros_like(s), np.zeros_like(v)
        for i in range(2):  # update
            uv, vv = np.split(v[i] @ w['vectors.weight'].T, 2, axis=1)
            norm = np.sqrt((vv**2).sum(0) + 1e-8)
            x = np.concatenate([layer_norm(w, 'norm', s[i]), norm])
            a_ss, a_sv, a_vv = dense(w, 'mlp', x).reshape(3, f)
            ds[i] = (a_ss + a_sv * (uv * vv).sum(0) / np.sqrt(f)) / np.sqrt(2)
            dv[i] = a_vv * uv
        s, v = s + ds, v + dv
    assert np.abs(v).max() > 1e-3
    np.testing.assert_allclose(features.s.detach().numpy(), s, atol=1e-10)
    np.testing.assert_allclose(features.v.detach().numpy(), v, atol=1e-10)


def test_egnn_is_its_equations():
    model = testing.awaken(create_model('egnn', **SMALL, cutoff=CUTOFF), scale=1).double()
    atoms = skewed()
    said = model(graph_of(atoms, model))

    edges = list(images(atoms))
    weight = [fade(np.linalg.norm(vector)) for _, _, vector in edges]
    total = np.zeros(2)
    for (i, _, _), w in zip(edges, weight, strict=True):
        total[i] += w
    h = arrays(model.embedding)['weight'][atoms.numbers]
    moved, strain = np.zeros((2, 3)), np.zeros((2, 3, 3))
    for layer in model.layers:
        p = arrays(layer)
        m_i, move = np.zeros_like(h), np.zeros_like(moved)
        phi_e = np.concatenate(
            [p['centre.weight'], p['neighbor.weight'], p['edge.weight']], axis=1
        )
        for (i, j, start), w in zip(edges, weight, strict=True):
            vector = start + moved[j] - moved[i]
            d = np.sqrt(vector @ vector + 1e-8)
            x = np.concatenate([h[i], h[j], radial(d)])
            hidden = silu(phi_e @ x + p['centre.bias'])
            m = silu(p['message.1.weight'] @ hidden + p['message.1.bias'])  # eq. 3
            phi_x, phi_l = dense(p, 'moves', m)
            c = 1 / (1 + total[i])
            move[i] -= c * w * np.tanh(phi_x) * vector  # eq. 4
            strain[i] += c * w * phi_l * traceless(np.outer(vector, vector) / d**2)
            m_i[i] += w * m  # eq. 5
        for i in range(2):  # eq. 6
            h[i] += dense(p, 'update', np.concatenate([h[i], 0.2 * m_i[i]]))
        moved = moved + move
    u = moved - moved.mean(0)
    assert np.abs(u).max() > 1e-3
    np.testing.assert_allclose(said.displacement.detach().numpy(), u, atol=1e-10)
    trace = [dense(arrays(model), 'trace', x) for x in h]
    strain = strain.mean(0) + np.mean(trace) * np.eye(3)
    assert np.abs(strain - np.diag(strain.diagonal())).max() > 1e-4
    size = np.linalg.norm(strain) / 3
    stretch = expm(strain * np.tanh(size) / size)
    np.testing.assert_allclose(said.deformation[0].detach().numpy(), stretch, atol=1e-10)


def test_painn_cannot_take_what_only_paegnn_has():
    with pytest.raises(ModelError, match='offset_encoding'):
        create_model('painn', offset_encoding=128)
