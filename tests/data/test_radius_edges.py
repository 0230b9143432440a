"""Edges by torch are those that the search for one crystal finds."""

import numpy as np
import torch
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_deeprelax.data.batching import collate, split
from ase_deeprelax.data.graph import GraphSpec, build_graph
from ase_deeprelax.data.radius_edges import with_radius_edges
from tests.strategies import orthogonal

CUTOFF = 4.0


def crystal(seed):
    """Atoms anywhere, also outside the cell, which may be skewed and thin."""
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(2, 9, 3)) + rng.normal(0, 0.8, (3, 3))
    n = int(rng.integers(1, 9))
    return Atoms(
        rng.integers(1, 90, n),
        cell=cell,
        scaled_positions=rng.uniform(-2, 3, (n, 3)),
        pbc=True,
    )


def graph_of(atoms):
    spec = GraphSpec(cutoff=CUTOFF)
    return build_graph(atoms.numbers, atoms.positions, atoms.cell, spec, torch.float64)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=5))
def test_edges_and_their_order_are_those_of_the_search(seeds):
    expected = collate([graph_of(crystal(seed)) for seed in seeds])
    bare = collate([without_edges(graph) for graph in split(expected)])
    found = with_radius_edges(bare, CUTOFF)
    assert torch.equal(found.edge_index, expected.edge_index)
    assert torch.equal(found.offset, expected.offset)
    assert torch.equal(found.intra, expected.intra)


def test_a_single_crystal_without_neighbours():
    lonely = graph_of(Atoms('Ar', cell=[20, 20, 20], pbc=True))
    assert with_radius_edges(lonely, CUTOFF).num_edges == 0


def test_neighbours_at_just_the_cutoff_are_none_in_all_orientations():
    for seed in range(10):
        cell = CUTOFF * orthogonal(seed)
        alone = graph_of(Atoms('Po', cell=cell, pbc=True))
        assert with_radius_edges(alone, CUTOFF).num_edges == 0
        assert with_radius_edges(alone, 1.001 * CUTOFF).num_edges == 6


def without_edges(graph):
    graph = graph.clone()
    graph.edge_index, graph.offset = graph.edge_index[:, :0], graph.offset[:0]
    graph.intra = graph.intra[:0]
    return graph
