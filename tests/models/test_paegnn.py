"""PaEGNN: what its equations promise, on real prototypes."""

import itertools

import numpy as np
import pytest
import torch
from ase.build import bulk, make_supercell
from ase.spacegroup import crystal

from ase_deeprelax.data.batching import collate
from ase_deeprelax.data.graph import build_graph
from ase_deeprelax.errors import ModelError
from ase_deeprelax.models import create_model, layers
from ase_deeprelax.models.base import LOG_B_RANGE, relaxed_structure
from ase_deeprelax.models.heads import stretch_of
from ase_deeprelax.models.layers import (
    Neighborhood,
    RadialBasis,
    project_symmetric,
    symmetric_matrix,
)
from ase_deeprelax.models.paegnn import PUBLISHED, encode_offsets
from ase_deeprelax.models.topology import topology, undirected

SMALL = {'hidden': 16, 'layers': 2}


def rutile():
    return crystal(
        ['Ti', 'O'],
        [(0, 0, 0), (0.31, 0.31, 0)],
        spacegroup=136,
        cellpar=[4.5, 4.5, 3.0, 90, 90, 90],
    )


def rattled(seed=0):
    atoms = rutile()
    atoms.rattle(0.1, seed=seed)
    return atoms


def speaking(model, seed=0):
    """The model with read-outs that are not zero, as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.any():
                p.copy_(0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
            assert p.any(), name
    return model.eval()


def graph_of(atoms, model, dtype=torch.float64):
    return build_graph(
        atoms.numbers, atoms.get_positions(wrap=True), atoms.cell.array, model.spec, dtype
    )


@pytest.mark.parametrize('settings', [SMALL, {**SMALL, 'degree': 1}, PUBLISHED | SMALL])
def test_untrained_model_says_already_relaxed(settings):
    model = create_model('paegnn', **settings).double().eval()
    graph = graph_of(rattled(), model)
    prediction = model(graph)
    cell, pos = relaxed_structure(graph, prediction.deformation, prediction.displacement)
    torch.testing.assert_close(cell, graph.cell)
    torch.testing.assert_close(pos, graph.pos)
    edges = graph.edge_vectors().norm(dim=1)
    torch.testing.assert_close(prediction.distance, edges[prediction.bond_index])


@pytest.mark.parametrize('degree', [1, 2])
@pytest.mark.parametrize('matrix', [np.diag([2, 1, 1]), [[1, 1, 0], [0, 2, 1], [0, 0, 1]]])
def test_supercell_gives_the_same_crystal(degree, matrix):
    torch.manual_seed(0)
    model = speaking(create_model('paegnn', **SMALL, degree=degree).double())
    atoms = rattled()
    atoms.arrays['home'] = np.arange(len(atoms))
    large = make_supercell(atoms, matrix)
    small_says, large_says = model(graph_of(atoms, model)), model(graph_of(large, model))
    torch.testing.assert_close(small_says.deformation, large_says.deformation)
    home = torch.from_numpy(large.arrays['home'])
    assert small_says.displacement.norm(dim=1).max() > 1e-3
    torch.testing.assert_close(small_says.displacement[home], large_says.displacement)


def test_centrosymmetric_site_still_feels_the_shape_of_its_cell():
    """All vectors vanish in a stretched fcc crystal; only l = 2 features see the axis."""
    cu = bulk('Cu', cubic=True)
    cu.set_cell(cu.cell.array * [1, 1, 1.1], scale_atoms=True)
    for degree, sees in [(1, False), (2, True)]:
        torch.manual_seed(0)
        model = speaking(create_model('paegnn', **SMALL, degree=degree).double())
        strain = model(graph_of(cu, model)).deformation[0].detach()
        assert (abs(strain[2, 2] - strain[0, 0]) > 1e-6) == sees
        torch.testing.assert_close(strain[0, 0], strain[1, 1])


def test_batch_equals_single_crystals():
    torch.manual_seed(0)
    model = speaking(create_model('paegnn', **SMALL).double())
    crystals = [rattled(), bulk('Cu'), bulk('NaCl', 'rocksalt', 5.6), rattled(3)]
    graphs = [graph_of(atoms, model) for atoms in crystals]
    together = model(collate(graphs))
    alone = [model(graph) for graph in graphs]
    for name in ('deformation', 'displacement', 'distance', 'log_b'):
        parts = torch.cat([getattr(prediction, name) for prediction in alone])
        torch.testing.assert_close(getattr(together, name), parts)


def test_sum_over_images_equals_sum_over_edges():
    model = create_model('paegnn', **SMALL)
    graph = graph_of(rattled(), model)
    radial = torch.rand(graph.num_edges, 5, dtype=torch.float64)
    unit = torch.nn.functional.normalize(graph.edge_vectors())
    features = torch.rand(graph.num_nodes, 7, dtype=torch.float64)
    filters = torch.rand(5, 7, dtype=torch.float64)
    hood = Neighborhood(
        topology(graph), radial, [torch.ones_like(unit[:, :1]), unit], torch.float64
    )
    j, i = graph.edge_index
    message = (radial @ filters) * features[j]
    naive = torch.zeros_like(features).index_add(0, i, message)
    scalars, vectors = hood.sums([(0, features, filters), (1, features, filters)])
    torch.testing.assert_close(scalars.squeeze(1), naive)
    vector = message[:, None] * unit[..., None]
    naive = torch.zeros(len(features), 3, 7, dtype=torch.float64).index_add(0, i, vector)
    torch.testing.assert_close(vectors, naive)


def test_sums_in_blocks_equal_those_in_one(monkeypatch):
    model = speaking(create_model('paegnn', **SMALL).double())
    graph = collate([graph_of(atoms, model) for atoms in (rattled(), bulk('Cu'))])
    whole = model(graph)  # with gradients, there are no blocks
    for size in (1, 5_000):
        monkeypatch.setattr(layers, 'BLOCK_BYTES', size)
        with torch.no_grad():
            blocks = model(graph)
        for name in ('deformation', 'displacement', 'distance', 'log_b'):
            torch.testing.assert_close(getattr(blocks, name), getattr(whole, name).detach())


def test_offset_codes_are_the_papers_and_never_collide():
    offsets = torch.tensor(
        list(itertools.product(range(-4, 5), repeat=3)), dtype=torch.float64
    )
    codes = encode_offsets(offsets, 128)
    distance = torch.cdist(codes, codes) + 10 * torch.eye(len(codes), dtype=torch.float64)
    assert distance.min() > 1e-2
    # (3, 0, 0) and (-2, 1, 0) share index 65 in the reference
    inside = offsets.abs().amax(1) <= 2
    o = offsets[inside] + 2
    k = o[:, 0] + 5 * o[:, 1] + 25 * o[:, 2]
    torch.testing.assert_close(codes[inside, 0], k.sin())
    torch.testing.assert_close(codes[inside, 1], k.cos())


def test_each_bond_is_taken_once():
    model = create_model('paegnn', **SMALL)
    for atoms in (rattled(), bulk('Cu'), bulk('Si')):
        graph = graph_of(atoms, model)
        once = undirected(graph)
        assert 2 * int(once.sum()) == graph.num_edges
        lengths = graph.edge_vectors().norm(dim=1)
        torch.testing.assert_close(
            lengths[once].repeat(2).sort().values, lengths.sort().values
        )


def test_prediction_is_smooth_where_an_atom_crosses_the_cutoff():
    torch.manual_seed(0)
    model = speaking(create_model('paegnn', **SMALL).double())

    def says(a):
        return model(graph_of(bulk('Cu', a=a), model)).deformation[0, 0, 0].item()

    # the third shell of fcc lies at a * sqrt(3/2); at this a it crosses the cutoff
    a = model.spec.cutoff / np.sqrt(1.5)
    edge_counts = {
        graph_of(bulk('Cu', a=a * (1 + x)), model).num_edges for x in (-1e-5, 1e-5)
    }
    assert len(edge_counts) == 2
    assert abs(says(a * (1 + 1e-5)) - says(a * (1 - 1e-5))) < 1e-4


def test_radial_basis_has_no_subnormal_numbers():
    basis = RadialBasis(128, 30.0)(torch.linspace(0.3, 30, 500))
    tiny = torch.finfo(torch.float32).tiny
    assert not ((basis != 0) & (basis.abs() < tiny)).any()


def test_five_components_stand_for_a_symmetric_traceless_matrix():
    p, q = torch.rand(2, 4, 3, dtype=torch.float64)
    outer = torch.einsum('na,nb->nab', p, q)
    traceless = (outer + outer.mT) / 2
    traceless -= torch.einsum('naa->n', outer)[:, None, None] * torch.eye(3) / 3
    t = project_symmetric(p, q)
    torch.testing.assert_close(symmetric_matrix(t), traceless)
    torch.testing.assert_close(t.norm(dim=1), traceless.flatten(1).norm(dim=1))


def test_log_b_stays_in_its_range_with_a_gradient():
    torch.manual_seed(0)
    model = speaking(create_model('paegnn', **SMALL).double())
    with torch.no_grad():
        model.distances.out[-1].bias[1] = 30.0
    log_b = model(graph_of(rattled(), model)).log_b
    assert log_b.max() <= LOG_B_RANGE[1]
    assert log_b.min() >= LOG_B_RANGE[0]


def test_one_atom_cell_in_the_published_form():
    model = speaking(create_model('paegnn', **(PUBLISHED | SMALL)).double())
    prediction = model(graph_of(bulk('Cu'), model))
    assert len(prediction.cross_distance) == 0
    for value in (prediction.deformation, prediction.displacement, prediction.distance):
        assert torch.isfinite(value).all()


def test_published_size():
    """The reference at its training settings has 15.8 M parameters."""
    model = create_model('paegnn', **PUBLISHED)
    assert 14e6 < sum(p.numel() for p in model.parameters()) < 17e6


def test_unknown_settings_are_named():
    with pytest.raises(ModelError, match='unknown architecture'):
        create_model('painnn')
    with pytest.raises(ModelError, match='hiden'):
        create_model('paegnn', hiden=3)
    with pytest.raises(ModelError, match='degree is 3'):
        create_model('paegnn', degree=3)
    for name, value in (
        ('offset_encoding', 5),
        ('offset_encoding', 0),
        ('rbf_cutoff', -2.0),
        ('max_neighbors', 0),
        ('intra_neighbors', -3),
    ):
        with pytest.raises(ModelError, match=f'{name} is {value}; it must be'):
            create_model('paegnn', **{name: value})


def test_stretch_is_the_polar_factor():
    torch.manual_seed(0)
    general = torch.eye(3, dtype=torch.float64) + 0.3 * torch.rand(
        50, 3, 3, dtype=torch.float64
    )
    stretch = stretch_of(general)
    left, values, _ = torch.linalg.svd(general)
    expected = (left * values.unsqueeze(1)) @ left.mT
    torch.testing.assert_close(stretch, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize('shortest', [1.0, 0.5, 0.01])
def test_stretch_of_flat_cells_in_single_precision(shortest):
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(20, 3, 3)).Q
    expected = torch.diag(torch.tensor([1.0, 1.0, shortest])).expand(20, 3, 3)
    torch.testing.assert_close(stretch_of(expected @ rotation), expected, atol=1e-6, rtol=0)


def test_stretch_has_a_gradient_where_eigenvalues_are_equal():
    general = torch.diag(torch.tensor([1.0, 1.0, 1.3], dtype=torch.float64))[None]
    assert torch.autograd.gradcheck(stretch_of, general.requires_grad_())
