"""Structures to graphs and back: nothing of the user's writing may matter."""

import numpy as np
import pytest
import torch
from ase.spacegroup import crystal
from hypothesis import given
from hypothesis import strategies as st

from ase_deeprelax.data.convert import to_graph
from ase_deeprelax.data.graph import GraphSpec
from ase_deeprelax.geometry.motion import (
    Motion,
    in_plane_strains,
    project_strain,
    strain_projection,
)
from ase_deeprelax.geometry.vacuum import find_layer
from tests.layers import written_layers
from tests.strategies import crystals, disguise, prototypes, quick, seeds, sorted_edges

PLAIN = GraphSpec(cutoff=4.0)
CANONICAL = GraphSpec(cutoff=4.0, intra_neighbors=6, canonical=True)
SPECS = st.sampled_from([PLAIN, CANONICAL])


def graph_of(atoms, spec=PLAIN):
    return to_graph(atoms, spec, torch.float64)


@quick
@given(crystals(max_atoms=10) | written_layers().map(lambda written: written[1]), SPECS)
def test_the_input_is_not_touched(atoms, spec):
    before = atoms.copy()
    graph, _ = to_graph(atoms, spec, torch.float64, layer=find_layer(atoms))
    graph.pos += 1.0
    graph.cell *= 2.0
    assert atoms.positions.tobytes() == before.positions.tobytes()
    assert atoms.cell.array.tobytes() == before.cell.array.tobytes()
    assert atoms.numbers.tobytes() == before.numbers.tobytes()


@quick
@given(crystals(max_atoms=10), SPECS, st.integers(0, 2**32 - 1))
def test_the_way_back_is_exact(atoms, spec, seed):
    """What a model does to the graph is what the user's atoms get, bond by bond."""
    rng = np.random.default_rng(seed)
    graph, frame = graph_of(atoms, spec)
    strain = 0.1 * rng.normal(size=(3, 3))
    s, u = np.eye(3) + strain + strain.T, 0.3 * rng.normal(size=(len(atoms), 3))

    relaxed = graph.clone()
    relaxed.cell = graph.cell @ torch.tensor(s)
    relaxed.pos = (graph.pos + torch.tensor(u)) @ torch.tensor(s)
    expected = relaxed.edge_vectors().norm(dim=1).numpy()

    s_user, u_user = frame.to_user(s, u)
    assert s_user.dtype == u_user.dtype == np.float64
    j, i = graph.edge_index.numpy()
    bonds, offsets = frame.bonds(i, j, graph.offset)
    cell = atoms.cell.array
    positions = (atoms.positions + u_user) @ s_user
    vectors = positions[bonds[:, 1]] + offsets @ (cell @ s_user) - positions[bonds[:, 0]]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), expected, atol=1e-8)
    np.testing.assert_array_equal(
        frame.per_atom(graph.z.numpy()), atoms.numbers, err_msg='order of the atoms'
    )


@quick
@given(crystals(max_atoms=10), SPECS)
def test_to_user_takes_tensors(atoms, spec):
    _, frame = graph_of(atoms, spec)
    s, u = frame.to_user(torch.eye(3), torch.zeros(len(atoms), 3))
    np.testing.assert_allclose(s, np.eye(3), atol=1e-12)
    np.testing.assert_array_equal(u, 0)


@quick
@given(crystals(max_atoms=10), st.integers(-1_000_000, 1_000_000), SPECS)
def test_far_images_give_the_same_graph(atoms, cells, spec):
    near, _ = graph_of(atoms, spec)
    far = atoms.copy()
    far.positions[0] += np.array([cells, -cells, cells // 2]) @ atoms.cell.array
    graph, _ = graph_of(far, spec)
    assert torch.isfinite(graph.pos).all()
    assert graph.pos.abs().max() < 1e3
    assert graph.num_edges == near.num_edges
    for value in (near, graph):
        value.lengths = value.edge_vectors().norm(dim=1).sort()[0]
    torch.testing.assert_close(near.lengths, graph.lengths, atol=1e-6, rtol=0)


@pytest.mark.parametrize('skew', [1, 7, 300, 5000])
def test_skewed_cells_give_the_unskewed_neighbours(skew):
    atoms = prototypes()['CaTiO3']
    atoms.rattle(0.05, seed=1)
    skewed = atoms.copy()
    skewed.set_cell(np.array([[1, 0, 0], [0, 1, 0], [skew, -skew, 1]]) @ atoms.cell.array)
    a, _ = graph_of(atoms)
    b, frame = graph_of(skewed)
    assert a.num_edges == b.num_edges
    assert np.linalg.norm(b.cell[0], axis=1).max() < 20 or skew == 1
    np.testing.assert_allclose(*(sorted_edges(graph) for graph in (a, b)), atol=1e-8)
    assert (frame.basis is None) == (skew == 1)


@quick
@given(st.data())
def test_the_canonical_graph_does_not_depend_on_the_writing(data):
    atoms = data.draw(crystals(max_atoms=8, disguised=False))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    basis = np.array([[1, 0, 0], [2, -1, 0], [-3, 1, 1]])
    other = disguise(atoms, rng, basis=basis)
    a, _ = graph_of(atoms, CANONICAL)
    b, _ = graph_of(other, CANONICAL)
    for key in ('z', 'edge_index', 'offset', 'intra'):
        assert torch.equal(getattr(a, key), getattr(b, key)), key
    torch.testing.assert_close(a.pos, b.pos, atol=1e-9, rtol=0)
    torch.testing.assert_close(a.cell, b.cell, atol=1e-9, rtol=0)


@pytest.mark.parametrize('oxygen', [2, 3, 4, 5])
def test_equivalent_atoms_that_are_fixed_are_one_in_the_canonical_graph(oxygen):
    """In a crystal that fixed atoms alone tell apart, they decide on the frame."""
    atoms = crystal(
        ['Ti', 'O'],
        [(0, 0, 0), (0.34, 0.34, 0)],
        spacegroup=136,
        cellpar=[4.6, 4.6, 2.95, 90, 90, 90],
    )
    fixed = np.arange(6) == oxygen
    graphs = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        order = rng.permutation(6)
        other = atoms[order]
        other.rotate(rng.uniform(0, 360), rng.normal(size=3), rotate_cell=True)
        motion = Motion(fixed[order], np.zeros((6, 6)))
        graphs.append(to_graph(other, CANONICAL, torch.float64, motion=motion)[0])
    first, _ = to_graph(
        atoms, CANONICAL, torch.float64, motion=Motion(np.arange(6) == 2, np.zeros((6, 6)))
    )
    for graph in graphs:
        assert torch.equal(graph.fixed, first.fixed)
        assert torch.equal(graph.z, first.z)
        torch.testing.assert_close(graph.pos, first.pos, atol=1e-9, rtol=0)


@quick
@given(crystals(max_atoms=5))
def test_dtype(atoms):
    single, _ = to_graph(atoms, PLAIN)
    double, _ = to_graph(atoms, PLAIN, torch.float64)
    assert single.pos.dtype == torch.float32
    assert double.pos.dtype == torch.float64
    torch.testing.assert_close(single.pos.double(), double.pos, atol=1e-4, rtol=1e-6)


# Layers


@pytest.mark.parametrize('spec', [PLAIN, CANONICAL], ids=['plain', 'canonical'])
@quick
@given(written=written_layers())
def test_bonds_of_a_layer_lead_to_the_users_atoms(written, spec):
    """Also across the border of the box, and in boxes of any height."""
    _, atoms = written
    graph, frame = to_graph(atoms, spec, torch.float64, layer=find_layer(atoms))
    j, i = graph.edge_index.numpy()
    bonds, offsets = frame.bonds(i, j, graph.offset)
    ends = atoms.positions[bonds[:, 1]] + offsets @ atoms.cell.array
    vectors = ends - atoms.positions[bonds[:, 0]]
    np.testing.assert_allclose(
        np.linalg.norm(vectors, axis=1),
        graph.edge_vectors().norm(dim=1).numpy(),
        atol=1e-7,
    )
    np.testing.assert_array_equal(frame.per_atom(graph.z.numpy()), atoms.numbers)


@pytest.mark.parametrize('spec', [PLAIN, CANONICAL], ids=['plain', 'canonical'])
@quick
@given(written=written_layers())
def test_no_edge_of_a_layer_crosses_the_vacuum(written, spec):
    _, atoms = written
    layer = find_layer(atoms)
    graph, frame = to_graph(atoms, spec, torch.float64, layer=layer)
    pieces = layer.in_one_piece(atoms) @ layer.normal
    normal = layer.normal if frame.rotation is None else layer.normal @ frame.rotation
    j, i = graph.edge_index.numpy()
    order = np.arange(len(atoms)) if frame.order is None else frame.order
    np.testing.assert_allclose(
        graph.edge_vectors().numpy() @ normal,
        pieces[order[j]] - pieces[order[i]],
        atol=1e-7,
    )


@quick
@given(written_layers())
def test_the_canonical_graph_of_a_layer_does_not_depend_on_the_box(written):
    atoms, other = written
    a, _ = to_graph(atoms, CANONICAL, torch.float64, layer=find_layer(atoms))
    b, _ = to_graph(other, CANONICAL, torch.float64, layer=find_layer(other))
    for key in ('z', 'edge_index', 'offset', 'intra'):
        assert torch.equal(getattr(a, key), getattr(b, key)), key
    torch.testing.assert_close(a.pos, b.pos, atol=1e-7, rtol=0)
    torch.testing.assert_close(a.cell, b.cell, atol=1e-7, rtol=0)


@pytest.mark.parametrize('spec', [PLAIN, CANONICAL], ids=['plain', 'canonical'])
@quick
@given(written=written_layers(), seed=seeds())
def test_what_may_move_is_carried_to_the_graph(written, spec, seed):
    _, atoms = written
    layer, rng = find_layer(atoms), np.random.default_rng(seed)
    free = in_plane_strains(layer.normal, thickness=bool(rng.integers(2)))
    motion = Motion(rng.random(len(atoms)) < 0.5, strain_projection(free))
    graph, frame = to_graph(atoms, spec, torch.float64, motion=motion, layer=layer)
    np.testing.assert_array_equal(frame.per_atom(graph.fixed.numpy()), motion.fixed)
    strain = rng.normal(size=(3, 3))
    strain = strain + strain.T
    expected = project_strain(motion.free_strain, strain)
    there, _ = frame.from_user(strain, np.zeros((len(atoms), 3)))
    there = project_strain(graph.free_strain[0].numpy(), there)
    back, _ = frame.to_user(there, np.zeros((len(atoms), 3)))
    np.testing.assert_allclose(back, expected, atol=1e-9)
