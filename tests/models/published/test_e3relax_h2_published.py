"""E3Relax-H2 as published, against a forward pass with loops, and its known defects."""

import itertools

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from scipy.special import eval_legendre

from ase_deeprelax.data.batching import collate
from ase_deeprelax.data.convert import to_graph
from ase_deeprelax.data.graph import build_graph
from ase_deeprelax.errors import UnsupportedElementError
from ase_deeprelax.models.base import relaxed_structure
from ase_deeprelax.models.published.checkpoint import convert_checkpoint
from ase_deeprelax.models.published.e3relax_h2 import (
    Edges,
    Messages,
    ReferenceE3RelaxH2,
    published_edges,
    reference_direction,
)
from ase_deeprelax.testing import generic_crystals

F, LAYERS, R, LMAX, CUTOFF, RBF_CUTOFF = 6, 3, 5, 3, 3.6, 30.0
SMALL = {'hidden': F, 'layers': LAYERS, 'num_rbf': R, 'cutoff': CUTOFF}
SELF_IMAGES = [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)]

# Parameters by their published names: shape of the weight, and whether there is a bias.
LAYER = {
    'message_passing_layers.{n}.x_proj.0': (F // 2, F, True),
    'message_passing_layers.{n}.x_proj.2': (3 * F, F // 2, True),
    'message_passing_layers.{n}.edge_proj': (3 * F, R, True),
    'message_passing_layers.{n}.inv_norm': (LMAX + 1, True),
    'message_passing_layers.{n}.edge_inv_proj.0': (3 * F, LMAX + 2, True),
    'message_update_layers.{n}.vec_proj': (2 * F, F, False),
    'message_update_layers.{n}.xvec_proj.0': (F, 2 * F, True),
    'message_update_layers.{n}.xvec_proj.2': (3 * F, F, True),
    'structure_update_layers.{n}.pos_mlp': (1, F, False),
    'lattice_feat_mlps.{n}.0': (R, 2 * R, True),
    'lattice_feat_mlps.{n}.2': (R, R, True),
    'lattice_blocks.{n}.axis_mix_scalar': (3, 3, True),
    'lattice_blocks.{n}.axis_mix_vector': (3, 3, False),
}
AXIS = {
    'atoms_to_axis_scalar_mlp.0': (F, 2 * F, True),
    'atoms_to_axis_scalar_mlp.2': (F, F, True),
    'atoms_to_axis_vector_mlp': (F, F, False),
    'axis_to_atom_scalar_mlp.0': (F, 2 * F, True),
    'axis_to_atom_scalar_mlp.2': (F, F, True),
    'axis_to_atom_vector_mlp': (F, F, False),
    'axis_atom_message_proj.0': (F, F, True),
    'axis_atom_message_proj.2': (3 * F, F, True),
    'axis_edge_rbf_proj': (3 * F, R, True),
    'axis_state_vector_proj': (2 * F, F, False),
    'axis_state_scalar_mlp.0': (F, 2 * F, True),
    'axis_state_scalar_mlp.2': (3 * F, F, True),
    'axis_lattice_delta_mlp': (1, F, False),
}


def published_weights(seed=0):
    """Random arrays by published name; no two parameters are equal."""
    rng = np.random.default_rng(seed)
    shapes = dict(LAYER)
    for k, (name, shape) in itertools.product(range(3), AXIS.items()):
        shapes[f'lattice_blocks.{{n}}.axis_blocks.{k}.{name}'] = shape
    weights = {
        'atom_emb.embeddings.weight': rng.normal(size=(118, F)),
        'lattice_scalar_emb.weight': rng.normal(size=(3, F)),
    }
    for n, (name, (*shape, bias)) in itertools.product(range(LAYERS), shapes.items()):
        key = name.format(n=n)
        weights[f'{key}.weight'] = rng.uniform(-1, 1, shape) / np.sqrt(shape[-1])
        if bias:
            weights[f'{key}.bias'] = rng.uniform(-0.3, 0.3, shape[:1])
    for n in range(LAYERS):
        weights[f'structure_update_layers.{n}.delta_scale'] = rng.uniform(0.5, 1.5, ())
    return weights


def as_checkpoint(weights):
    tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in weights.items()}
    return tensors | {'radial_basis.rbf.offset': torch.linspace(0, 1, R)}


def small_model(seed=0):
    model = ReferenceE3RelaxH2(**SMALL).double().eval()
    model.load_state_dict(convert_checkpoint(as_checkpoint(published_weights(seed))))
    return model


def generic_graph(model, number=2, rotation=None):
    """A crystal without symmetry as it is written, not in the canonical frame."""
    atoms = generic_crystals()[number]
    rotation = np.eye(3) if rotation is None else rotation
    return build_graph(
        atoms.numbers,
        atoms.positions @ rotation,
        atoms.cell.array @ rotation,
        model.spec,
        torch.float64,
    )


# A forward pass from the equations: one atom, edge, axis at a time; Python's own sums.


def silu(x):
    return x / (1 + np.exp(-x))


def act(x):
    return silu(x) / 0.6


def norm(x):
    return max(x @ x, 1e-8) ** 0.5


class Loops:
    """Weights by published name, and what they do to one vector of features."""

    def __init__(self, weights):
        self.w = weights

    def linear(self, name, x):
        """(n_in,) or, for vectors, (3, n_in)."""
        return x @ self.w[f'{name}.weight'].T + self.w.get(f'{name}.bias', 0.0)

    def mlp(self, name, x, act=act):
        return self.linear(f'{name}.2', act(self.linear(f'{name}.0', x)))

    @staticmethod
    def rbf(d):
        x = d / RBF_CUTOFF
        envelope = 1 - 21 * x**5 + 35 * x**6 - 15 * x**7 if x < 1 else 0.0
        step = 1 / (R - 1)
        gaussians = [np.exp(-0.5 * ((x - k * step) / step) ** 2) for k in range(R)]
        return envelope * np.array(gaussians)

    def give(self, n, s, v, axis_s, axis_v, pos, cell):
        """Step 2: lattice to atoms."""
        centroid = sum(pos) / len(pos)
        for k in range(3):
            name, a = f'lattice_blocks.{n}.axis_blocks.{k}', cell[k]
            for i in range(len(pos)):
                r = pos[i] - centroid
                parallel = r @ a / (norm(a) + 1e-9)
                perpendicular = norm(np.cross(r, a)) / (norm(a) + 1e-9)
                x = np.append(self.rbf(parallel), self.rbf(perpendicular))
                f = self.mlp(f'lattice_feat_mlps.{n}', x, silu)
                w = -(a - r) / (norm(a - r) + 1e-9)
                m = self.mlp(f'{name}.axis_atom_message_proj', s[i])
                m = m * self.linear(f'{name}.axis_edge_rbf_proj', f) / 3**0.5
                s[i] = s[i] + m[2 * F :]
                v[i] = (m[:F] * v[i] + np.outer(w, m[F : 2 * F])) / F**0.5
                told = np.append(s[i], axis_s[k])
                s[i] = s[i] + act(self.mlp(f'{name}.axis_to_atom_scalar_mlp', told))
                told = v[i] + axis_v[k]
                v[i] = v[i] + self.linear(f'{name}.axis_to_atom_vector_mlp', told)

    def messages(self, n, s, v, edges, pos, cell):
        """Step 3: atoms to atoms."""
        name = f'message_passing_layers.{n}'
        units, distances = [], []
        for i, j, offset in edges:
            d = pos[j] + offset @ cell - pos[i]
            distances.append(norm(d))
            units.append(-d / (norm(d) + 1e-9))
        ds, dv = np.zeros_like(s), np.zeros_like(v)
        for i in range(len(pos)):
            own = [e for e, edge in enumerate(edges) if edge[0] == i]
            mean = sum(units[e] for e in own) / len(own)
            length = (mean @ mean + 1e-9) ** 0.5
            ref = mean / length if length >= 5e-5 else np.array([1.0, 0.0, 0.0])
            for e in own:
                j = edges[e][1]
                cosine = units[e] @ ref
                exact = cosine / (units[e] @ units[e] * ref @ ref) ** 0.5
                p = np.array([eval_legendre(degree, exact) for degree in range(LMAX + 1)])
                p = (p - p.mean()) / (p.var() + 1e-5) ** 0.5
                p = p * self.w[f'{name}.inv_norm.weight'] + self.w[f'{name}.inv_norm.bias']
                gate = self.linear(f'{name}.edge_inv_proj.0', np.append(cosine, p))
                m = self.mlp(f'{name}.x_proj', s[j]) / 3**0.5
                m = m * self.linear(f'{name}.edge_proj', self.rbf(distances[e]))
                m = m * (1 + np.tanh(act(gate)))
                ds[i] += m[2 * F :]
                dv[i] += (m[:F] * v[j] + np.outer(units[e], m[F : 2 * F])) / F**0.5
        return (s + ds) / 2**0.5, v + dv

    def gated(self, vectors, mlp, s, v):
        pq = self.linear(vectors, v)
        p, q = pq[:, :F], pq[:, F:]
        lengths = [(q[:, f] @ q[:, f] + 1e-8) ** 0.5 for f in range(F)]
        b = self.mlp(mlp, np.append(s, lengths))
        return b[F : 2 * F], np.tanh(b[2 * F :]), b[:F] * p

    def take(self, n, s, v, axis_s, axis_v):
        """Step 6: atoms to lattice, and what the axes say of the cell."""
        s, v = sum(s) / len(s), sum(v) / len(v)
        for k in range(3):
            name = f'lattice_blocks.{n}.axis_blocks.{k}'
            told = np.append(s, axis_s[k])
            axis_s[k] += act(self.mlp(f'{name}.atoms_to_axis_scalar_mlp', told))
            axis_v[k] += self.linear(f'{name}.atoms_to_axis_vector_mlp', v + axis_v[k])
            names = f'{name}.axis_state_vector_proj', f'{name}.axis_state_scalar_mlp'
            ds, gate, dv = self.gated(*names, axis_s[k], axis_v[k])
            axis_s[k] = ds + axis_s[k] * gate
            axis_v[k] += dv

    def mix(self, n, axis_s, axis_v):
        a = self.w[f'lattice_blocks.{n}.axis_mix_scalar.weight']
        bias = self.w[f'lattice_blocks.{n}.axis_mix_scalar.bias']
        b = self.w[f'lattice_blocks.{n}.axis_mix_vector.weight']
        axis_s = [sum(a[k, m] * axis_s[m] for m in range(3)) + bias[k] for k in range(3)]
        axis_v = [sum(b[k, m] * axis_v[m] for m in range(3)) for k in range(3)]
        return np.array(axis_s), np.array(axis_v)

    def forward(self, numbers, pos, cell, edges):
        s = self.w['atom_emb.embeddings.weight'][numbers].copy()
        v = np.zeros((len(pos), 3, F))
        axis_s = self.w['lattice_scalar_emb.weight'].copy()
        axis_v = np.zeros((3, 3, F))
        said = []
        for n in range(LAYERS):
            self.give(n, s, v, axis_s, axis_v, pos, cell)
            axis_s, axis_v = self.mix(n, axis_s, axis_v)
            s, v = self.messages(n, s, v, edges, pos, cell)
            name = f'message_update_layers.{n}'
            for i in range(len(pos)):
                names = f'{name}.vec_proj', f'{name}.xvec_proj'
                ds, gate, dv = self.gated(*names, s[i], v[i])
                s[i] = (s[i] + ds / 2**0.5 + s[i] * gate) / 2**0.5
                v[i] = v[i] + dv
            name = f'structure_update_layers.{n}'
            moves = [self.linear(f'{name}.pos_mlp', v_i)[:, 0] for v_i in v]
            pos = pos + self.w[f'{name}.delta_scale'] * np.array(moves)
            self.take(n, s, v, axis_s, axis_v)
            axis_s, axis_v = self.mix(n, axis_s, axis_v)
            cell = cell.copy()
            for k in range(3):
                name = f'lattice_blocks.{n}.axis_blocks.{k}.axis_lattice_delta_mlp'
                cell[:, k] += self.linear(name, axis_v[k])[:, 0]  # a column, as published
            said.append((pos, cell))
        return said


def edges_by_hand(pos, cell):
    """(centre, neighbour, offset) of all pairs i != j in the cutoff; six images each."""
    edges = []
    for i, j in itertools.product(range(len(pos)), repeat=2):
        for offset in itertools.product(range(-3, 4), repeat=3):
            d = np.linalg.norm(pos[j] + np.array(offset) @ cell - pos[i])
            if (i != j and d <= CUTOFF) or (i == j and offset in SELF_IMAGES):
                edges.append((i, j, np.array(offset)))
    return edges


@pytest.mark.parametrize('number', [0, 1, 2])
def test_forward_pass_is_that_of_the_equations(number):
    model = small_model()
    graph = generic_graph(model, number)
    pos, cell = graph.pos.numpy(), graph.cell[0].numpy()
    expected = Loops(published_weights()).forward(
        graph.z.numpy(), pos, cell, edges_by_hand(pos, cell)
    )
    said = model.structures(graph)
    for one, two in zip(said, expected, strict=True):
        np.testing.assert_allclose(one[0].detach(), two[0], rtol=0, atol=1e-10)
        np.testing.assert_allclose(one[1].detach()[0], two[1], rtol=0, atol=1e-10)
    assert np.abs(two[0] - pos).max() > 0.05
    assert np.abs(two[1] - cell).max() > 0.01


def test_prediction_is_what_layers_say_without_rotation_and_drift():
    model = small_model()
    graph = generic_graph(model)
    with torch.no_grad():
        said, structures = model(graph), model.structures(graph)
    assert said.layers[-1] == (said.deformation, said.displacement)
    for layer, (pos, cell) in zip(said.layers, structures, strict=True):
        torch.testing.assert_close(layer[0], layer[0].mT)
        torch.testing.assert_close(layer[1].mean(0), torch.zeros(3).double())
        new_cell, new_pos = relaxed_structure(graph, *layer)
        torch.testing.assert_close(new_cell @ new_cell.mT, cell @ cell.mT)
        torch.testing.assert_close(torch.cdist(new_pos, new_pos), torch.cdist(pos, pos))
    j, i = graph.edge_index[:, said.bond_index]
    vectors = new_pos[j] + graph.offset[said.bond_index] @ new_cell[0] - new_pos[i]
    torch.testing.assert_close(said.distance, vectors.norm(dim=1))
    assert not said.log_b.any()


def test_cell_update_is_transposed():
    """Turning a crystal turns positions of layer 1, but the change of the cell wrongly."""
    model = small_model()
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    one, two = generic_graph(model), generic_graph(model, rotation=q)
    q, shift = torch.from_numpy(q), torch.tensor([1.0, 2.0, 3.0])
    two.pos += shift  # which changes nothing: positions are taken from the centroid
    with torch.no_grad():
        (pos, cell), *_, (last_pos, _) = model.structures(one)
        (turned_pos, turned_cell), *_, (turned_last_pos, _) = model.structures(two)
    torch.testing.assert_close(turned_pos, pos @ q + shift, rtol=0, atol=1e-11)
    change, turned_change = (cell - one.cell)[0], (turned_cell - two.cell)[0]
    assert (turned_change - change @ q).norm() > 0.3 * change.norm()
    torch.testing.assert_close(turned_change.T, change.T @ q, rtol=0, atol=1e-11)
    assert (turned_last_pos - last_pos @ q - shift).abs().max() > 1e-4


def test_self_images_are_six_on_one_side():
    spec = ReferenceE3RelaxH2(hidden=4, layers=1, num_rbf=4).spec
    crystals = [bulk('Cu'), bulk('NaCl', 'rocksalt', 5.6), generic_crystals()[2]]
    graph = collate([to_graph(atoms, spec)[0] for atoms in crystals])
    edges = published_edges(graph)
    own = edges.i == edges.j
    for atom in range(len(graph.z)):
        offsets = edges.offset[own & (edges.i == atom)].int().tolist()
        assert sorted(map(tuple, offsets)) == sorted(SELF_IMAGES)
    assert edges.degree[0] == 6  # one atom: nothing else is left
    j, i = graph.edge_index
    kept = torch.cat([graph.edge_index.T, graph.offset], dim=1)[j != i]
    found = torch.stack([edges.j, edges.i, *edges.offset.T], dim=1)[~own]
    torch.testing.assert_close(found, kept)
    torch.testing.assert_close(edges.degree[:, 0], edges.i.bincount())


def test_vanishing_mean_direction_falls_back_to_x():
    mean = torch.tensor([[0.0, 0.0, 0.0], [0.0, 3e-5, 0.0], [0.0, 0.0, 0.2]]).double()
    mean.requires_grad_()
    direction = reference_direction(mean)
    expected = torch.tensor([[1, 0, 0], [1, 0, 0], [0, 0, 1]]).double()
    torch.testing.assert_close(direction, expected)
    direction.sum().backward()
    assert mean.grad.isfinite().all()

    def message(a, b):
        """To an atom between two others, one on either side."""
        unit = torch.tensor([[a, b, 0.0], [-a, -b, 0.0]])
        x, s, v = torch.ones(2, 4), torch.ones(3, 8), torch.zeros(3, 3, 8)
        edges = Edges(
            torch.tensor([1, 2]), torch.tensor([0, 0]), None, torch.full((3, 1), 2)
        )
        return messages(s, v, edges, x, unit)[0][0]

    messages = Messages(8, 4, 3)
    assert (message(1.0, 0.0) - message(0.0, 1.0)).abs().max() > 1e-3


def test_checkpoint_with_published_names_loads_whole():
    weights = published_weights()
    converted = convert_checkpoint(as_checkpoint(weights))
    model = ReferenceE3RelaxH2(**SMALL).double()
    model.load_state_dict(converted)  # strict: no name is missing or left over
    loaded = sorted(p.sum().item() for p in model.state_dict().values())
    np.testing.assert_allclose(loaded, sorted(np.sum(w) for w in weights.values()))
    assert len(converted) == len(weights)
    with pytest.raises(RuntimeError, match=r'x_head\.weight'):
        model.load_state_dict(convert_checkpoint({'x_head.weight': torch.zeros(1)}))


def test_published_size():
    with torch.device('meta'):
        model = ReferenceE3RelaxH2()
    assert sum(p.numel() for p in model.parameters()) == 72_770_168
    assert len(model.layers) == 4
    assert (model.spec.cutoff, model.spec.max_neighbors) == (6.0, 50)


def test_element_beyond_the_published_table_is_an_error():
    model = small_model()
    graph, _ = to_graph(
        Atoms([26, 118], [[0, 0, 0], [2.5, 2.5, 2.5]], cell=[5] * 3, pbc=True), model.spec
    )
    with pytest.raises(UnsupportedElementError, match=r'atomic number 118.*with 117'):
        model.double()(graph)


def test_batch_equals_single_crystals():
    model = small_model()
    graphs = [generic_graph(model, number) for number in range(4)]
    with torch.no_grad():
        together = model(collate(graphs))
        alone = [model(graph) for graph in graphs]
    for name in ('deformation', 'displacement', 'distance', 'log_b'):
        parts = torch.cat([getattr(prediction, name) for prediction in alone])
        torch.testing.assert_close(getattr(together, name), parts)


def test_gradients_reach_every_parameter_also_in_symmetric_crystals():
    model = ReferenceE3RelaxH2(**SMALL)
    crystals = [bulk('Cu'), bulk('NaCl', 'rocksalt', 5.6), bulk('Si')]
    graph = collate([to_graph(atoms, model.spec)[0] for atoms in crystals])
    said = model(graph)
    (said.displacement.square().sum() + said.deformation.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
