"""Graphs as data of torch_geometric, and back."""

import pytest
import torch
from ase.build import bulk
from hypothesis import given
from hypothesis import strategies as st
from torch_geometric.data import Batch
from torch_geometric.loader import DataLoader

from ase_deeprelax.data.batching import collate, split
from ase_deeprelax.data.graph import GraphSpec, build_graph
from ase_deeprelax.data.pyg import from_pyg, to_pyg
from tests.strategies import crystals, quick

SPEC = GraphSpec(cutoff=4.0, intra_neighbors=3)


def graphs_of(many, *, targets):
    graphs = []
    for k, atoms in enumerate(many):
        graph = build_graph(atoms.numbers, atoms.positions, atoms.cell.array, SPEC)
        if targets:
            graph.deformation_target = k * torch.eye(3)[None]
            graph.displacement_target = k + graph.pos
        graphs.append(graph)
    return graphs


def same(one, two):
    one, two = one.tensors(), two.tensors()
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert tensor.dtype == two[name].dtype, name
        assert torch.equal(tensor, two[name]), name


MANY = st.lists(crystals(max_atoms=6), min_size=1, max_size=4)


@quick
@given(MANY, st.booleans())
def test_there_and_back(many, targets):
    graphs = graphs_of(many, targets=targets)
    for graph in graphs:
        same(from_pyg(to_pyg(graph)), graph)
    batch = collate(graphs)
    same(from_pyg(to_pyg(batch)), batch)
    for graph, part in zip(graphs, split(batch), strict=True):
        same(part, graph)


@quick
@given(MANY, st.booleans())
def test_torch_geometric_joins_graphs_as_we_do(many, targets):
    graphs = graphs_of(many, targets=targets)
    data = [to_pyg(graph) for graph in graphs]
    batch = Batch.from_data_list(data)
    assert batch.num_graphs == len(graphs)
    same(from_pyg(batch), collate(graphs))
    [loaded] = DataLoader(data, batch_size=len(data))
    same(from_pyg(loaded), collate(graphs))
    for graph, part in zip(graphs, batch.to_data_list(), strict=True):
        same(from_pyg(part), graph)


def test_other_data_are_refused_by_what_they_lack():
    [graph] = graphs_of([bulk('Cu')], targets=False)
    data = to_pyg(graph)
    del data.cell, data.intra
    with pytest.raises(ValueError, match='lack cell, intra'):
        from_pyg(data)
