"""Graphs and neighbour lists against slow, plain references."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.neighborlist import neighbor_list as ase_neighbor_list
from hypothesis import given
from hypothesis import strategies as st

from ase_deeprelax.data.batching import collate, split
from ase_deeprelax.data.convert import to_graph
from ase_deeprelax.data.graph import GraphSpec, build_graph
from ase_deeprelax.geometry.motion import (
    Motion,
    everything_free,
    in_plane_strains,
    strain_projection,
)
from ase_deeprelax.geometry.neighbors import (
    SHELL_TOLERANCE,
    intra_cell_pairs,
    neighbor_list,
)
from ase_deeprelax.geometry.vacuum import find_layer
from tests.layers import written_layers
from tests.strategies import (
    crystals,
    in_order,
    prototypes,
    quick,
    rotations,
    seeds,
    sorted_edges,
)


@pytest.mark.parametrize(
    'settings',
    [
        {'cutoff': 0.0},
        {'cutoff': -5.0},
        {'cutoff': float('nan')},
        {'cutoff': float('inf')},
        {'max_neighbors': 0},
        {'max_neighbors': 2.5},
        {'intra_neighbors': -3},
    ],
)
def test_a_graph_without_neighbours_is_refused(settings):
    with pytest.raises(ValueError, match=f'{next(iter(settings))} is .*; it must be'):
        GraphSpec(**settings)


def edges_of(i, j, offset):
    return set(zip(i.tolist(), j.tolist(), *offset.T.tolist(), strict=True))


def graph_of(atoms, spec, dtype=torch.float64):
    return build_graph(atoms.numbers, atoms.positions, atoms.cell.array, spec, dtype)


@quick
@given(crystals(max_atoms=12), st.sampled_from([3.0, 4.5]))
def test_edges_are_those_of_ase(atoms, cutoff):
    i, j, offset = neighbor_list(atoms.positions, atoms.cell.array, cutoff)
    expected = ase_neighbor_list('ijS', atoms, cutoff)
    assert len(i) == len(expected[0])
    assert edges_of(i, j, offset) == edges_of(*expected)


@quick
@given(crystals(max_atoms=12))
def test_edges_are_sorted_and_mutual(atoms):
    i, j, offset = neighbor_list(atoms.positions, atoms.cell.array, 4.0)
    rows = list(zip(i.tolist(), j.tolist(), *offset.T.tolist(), strict=True))
    assert rows == sorted(rows)
    assert {(b, a, -x, -y, -z) for a, b, x, y, z in rows} == set(rows)


@quick
@given(crystals(max_atoms=8), st.integers(1, 20))
def test_shells_are_whole(atoms, limit):
    positions, cell = atoms.positions, atoms.cell.array
    i, j, offset = neighbor_list(positions, cell, 5.0)
    kept = edges_of(*neighbor_list(positions, cell, 5.0, limit))
    distance = np.linalg.norm(positions[j] + offset @ cell - positions[i], axis=1)
    for atom in range(len(atoms)):
        mine = np.flatnonzero(i == atom)
        ranked = np.sort(distance[mine])
        last = np.inf if len(ranked) <= limit else ranked[limit - 1]
        for e in mine:
            if abs(distance[e] - last - SHELL_TOLERANCE) < 1e-9:
                continue  # on the border, either is right
            edge = (atom, j[e], *offset[e])
            assert (edge in kept) == (distance[e] <= last + SHELL_TOLERANCE)


@pytest.mark.parametrize('limit', [5, 7, 13, 30])
def test_no_cut_inside_the_shells_of_real_crystals(limit):
    # fcc has 12, 6, 24, 12 neighbours; a cut at any number must end on one of their sums
    graph = graph_of(bulk('Cu', cubic=True), GraphSpec(cutoff=5.3, max_neighbors=limit))
    counts = torch.bincount(graph.edge_index[1]).tolist()
    assert set(counts) == {next(c for c in (12, 18, 42, 54) if c >= limit)}


def naive_pairs(positions, limit):
    """The paper's intra-cell pairs by a double loop, shells kept whole."""
    pairs = set()
    for i in range(len(positions)):
        others = [j for j in range(len(positions)) if j != i]
        distances = {j: np.linalg.norm(positions[j] - positions[i]) for j in others}
        ranked = sorted(distances.values())
        last = np.inf if len(ranked) <= limit else ranked[limit - 1] + SHELL_TOLERANCE
        pairs |= {(i, j) for j in others if distances[j] <= last}
    return pairs


@quick
@given(crystals(max_atoms=15), st.integers(1, 20))
def test_intra_cell_pairs_are_those_of_a_loop(atoms, limit):
    i, j = intra_cell_pairs(atoms.positions, limit)
    assert len(i) == len(set(zip(i.tolist(), j.tolist(), strict=True)))
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == naive_pairs(
        atoms.positions, limit
    )


@quick
@given(crystals(max_atoms=10))
def test_graph_with_intra_cell_pairs(atoms):
    plain = graph_of(atoms, GraphSpec(cutoff=4.0))
    graph = graph_of(atoms, GraphSpec(cutoff=4.0, intra_neighbors=3))
    inter = ~graph.intra
    assert (graph.offset[graph.intra] == 0).all()
    assert (graph.offset[inter] != 0).any(dim=1).all()
    crossing = (plain.offset != 0).any(dim=1)
    assert torch.equal(graph.edge_index[:, inter], plain.edge_index[:, crossing])
    assert torch.equal(graph.offset[inter], plain.offset[crossing])
    assert not plain.intra.any()
    j, i = graph.edge_index[:, graph.intra].tolist()
    assert set(zip(i, j, strict=True)) == naive_pairs(atoms.positions, 3)
    rows = list(
        zip(*graph.edge_index.flip(0).tolist(), *graph.offset.T.tolist(), strict=True)
    )
    assert rows == sorted(rows)


@quick
@given(crystals(max_atoms=10))
def test_dtypes_and_edge_vectors(atoms):
    spec = GraphSpec(cutoff=4.0)
    double, single = graph_of(atoms, spec), graph_of(atoms, spec, torch.float32)
    for graph, dtype in ((double, torch.float64), (single, torch.float32)):
        assert graph.pos.dtype == graph.cell.dtype == graph.offset.dtype == dtype
        assert graph.z.dtype == graph.edge_index.dtype == torch.int64
    assert torch.equal(double.edge_index, single.edge_index)
    assert double.cell.shape == (1, 3, 3)
    theirs = in_order(*ase_neighbor_list('ijD', atoms, 4.0))
    np.testing.assert_allclose(sorted_edges(double), theirs, atol=1e-9)


@quick
@given(st.lists(crystals(max_atoms=6), min_size=1, max_size=4))
def test_a_batch_is_its_graphs_side_by_side(many):
    spec = GraphSpec(cutoff=4.0, intra_neighbors=4)
    graphs = [graph_of(atoms, spec) for atoms in many]
    batch = collate(graphs)
    assert batch.n_graphs == len(graphs)
    assert batch.graph_of_atom.bincount().tolist() == [len(atoms) for atoms in many]
    vectors = torch.cat([graph.edge_vectors() for graph in graphs])
    assert torch.equal(batch.edge_vectors(), vectors)
    for graph, again in zip(graphs, split(batch), strict=True):
        for key in ('z', 'pos', 'cell', 'edge_index', 'offset', 'intra'):
            assert torch.equal(getattr(graph, key), getattr(again, key))


@quick
@given(rotations(), st.sampled_from([1, 2, 3, 4]))
def test_neighbours_at_just_the_cutoff_are_none_in_all_orientations(rotation, shell):
    """Lengths are often given in round numbers, and so are cutoffs."""
    salt = bulk('CaO', 'rocksalt', a=10 / shell**0.5, cubic=True)
    counts = []
    for turn in (np.eye(3), rotation):
        salt.set_cell(salt.cell.array @ turn, scale_atoms=True)
        counts.append(graph_of(salt, GraphSpec(cutoff=5.0)).edge_index[1].bincount())
    within = [0, 6, 18, 26][shell - 1]
    assert all(set(count.tolist()) <= {within} for count in counts)


def test_one_atom():
    graph = graph_of(bulk('Cu'), GraphSpec(cutoff=3.0, intra_neighbors=20))
    assert graph.num_nodes == 1
    assert graph.num_edges == 12
    assert graph.graph_of_atom.tolist() == [0]
    assert not graph.intra.any()
    lengths = graph.edge_vectors().norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, 3.61 / 2**0.5))


def test_symmetric_sites_have_equal_neighbourhoods():
    for name, atoms in prototypes().items():
        graph = graph_of(atoms, GraphSpec(cutoff=5.0, max_neighbors=11))
        lengths = graph.edge_vectors().norm(dim=1)
        by_element = {}
        for atom in range(len(atoms)):
            shells = tuple(lengths[graph.edge_index[1] == atom].sort()[0].numpy().round(3))
            by_element.setdefault(atoms.numbers[atom], []).append(shells)
        for number, neighbourhoods in by_element.items():
            if name in ('CaTiO3', 'ZrO2 baddeleyite') and number == 8:
                continue  # two inequivalent oxygen sites
            for a, b in itertools.pairwise(neighbourhoods):
                assert len(a) == len(b), name
                np.testing.assert_allclose(a, b, atol=2e-3, err_msg=name)


@quick
@given(written_layers(), st.sampled_from([3.0, 5.0]))
def test_edges_of_a_layer_are_those_of_ase_without_periodicity_across(written, cutoff):
    _, atoms = written
    layer = find_layer(atoms)
    graph, _ = to_graph(atoms, GraphSpec(cutoff=cutoff), torch.float64, layer=layer)
    piece = atoms.copy()
    piece.set_cell(layer.basis @ atoms.cell.array)
    piece.positions = layer.in_one_piece(atoms)
    piece.pbc = True, True, False
    theirs = in_order(*ase_neighbor_list('ijD', piece, cutoff))
    np.testing.assert_allclose(sorted_edges(graph), theirs, atol=1e-7)


def test_a_graph_shares_no_memory_with_what_it_was_made_of():
    cu = bulk('Cu', cubic=True)
    motion = everything_free(len(cu))
    given = cu.numbers, cu.positions, cu.cell.array
    before = [array.copy() for array in given]
    graph = build_graph(*given, GraphSpec(cutoff=3.0), torch.float64, motion=motion)
    for tensor in graph.tensors().values():
        tensor.fill_(True)
    for array, old in zip(given, before, strict=True):
        np.testing.assert_array_equal(array, old)
    assert motion.all_free
    for tensor in graph.clone().tensors().values():
        tensor.fill_(False)
    assert all(tensor.all() for tensor in graph.tensors().values())


def test_types_of_floating_point_tensors_change_and_no_others():
    graph = graph_of(bulk('Cu'), GraphSpec(cutoff=3.0))
    for name, tensor in graph.to_dtype(torch.float32).tensors().items():
        old = getattr(graph, name)
        assert tensor.dtype == (torch.float32 if old.is_floating_point() else old.dtype)


def test_a_single_graph_starts_at_its_first_atom_and_ends_at_its_last():
    graph = graph_of(bulk('Cu', cubic=True), GraphSpec(cutoff=3.0))
    assert graph.starts.tolist() == collate([graph]).starts.tolist() == [0, 4]


def test_a_graph_without_one_of_its_targets_has_none():
    graph = graph_of(bulk('Cu'), GraphSpec(cutoff=3.0))
    for name, value in (('deformation', torch.eye(3)[None]), ('displacement', graph.pos)):
        with pytest.raises(ValueError, match='have no targets'):
            replace(graph, **{f'{name}_target': value}).targets()


@pytest.mark.parametrize(
    ('spec', 'is_radius'),
    [
        (GraphSpec(cutoff=4.0), True),
        (GraphSpec(cutoff=4.0, max_neighbors=20), False),
        (GraphSpec(cutoff=4.0, intra_neighbors=20), False),
        (GraphSpec(cutoff=4.0, canonical=True), False),
    ],
)
def test_only_the_radius_alone_makes_a_radius_graph(spec, is_radius):
    assert spec.is_radius == is_radius


@quick
@given(crystals(max_atoms=6))
def test_everything_may_move_unless_said(atoms):
    graph = graph_of(atoms, GraphSpec(cutoff=4.0), torch.float32)
    assert graph.fixed.dtype == torch.bool
    assert graph.fixed.tolist() == [False] * len(atoms)
    assert torch.equal(graph.free_strain, torch.eye(6).unsqueeze(0))


@quick
@given(st.lists(crystals(max_atoms=6), min_size=1, max_size=4), seeds())
def test_a_batch_knows_what_may_move_in_each_graph(many, seed):
    rng = np.random.default_rng(seed)
    spec, graphs, motions = GraphSpec(cutoff=4.0), [], []
    for atoms in many:
        strains = in_plane_strains(np.eye(3)[rng.integers(3)], thickness=False)
        motion = Motion(rng.random(len(atoms)) < 0.5, strain_projection(strains))
        motions.append(motion)
        graphs.append(
            build_graph(atoms.numbers, atoms.positions, atoms.cell, spec, motion=motion)
        )
    batch = collate(graphs)
    expected = np.concatenate([motion.fixed for motion in motions])
    np.testing.assert_array_equal(batch.fixed.numpy(), expected)
    expected = np.array([motion.free_strain for motion in motions])
    np.testing.assert_allclose(batch.free_strain.numpy(), expected, atol=1e-6)
