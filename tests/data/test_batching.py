import numpy as np
import pytest
import torch
from ase.build import bulk
from hypothesis import given
from hypothesis import strategies as st

from ase_deeprelax.data.batching import collate, counted, group_by_size, halve, split
from ase_deeprelax.data.graph import GraphSpec, build_graph

SIZES = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 900)), max_size=40)


@given(SIZES, st.integers(1, 2000))
def test_each_graph_once_and_no_batch_over_budget(sizes, budget):
    n_atoms, n_edges = zip(*sizes, strict=True) if sizes else ((), ())
    batches = group_by_size(n_atoms, n_edges, budget)
    assert sorted(np.concatenate([*batches, []]).tolist()) == list(range(len(sizes)))
    for indices in batches:
        assert len(indices)
        assert len(indices) == 1 or sum(n_edges[k] for k in indices) <= budget
    again = group_by_size(n_atoms, n_edges, budget)
    assert [p.tolist() for p in batches] == [p.tolist() for p in again]


def test_neighbours_in_a_batch_are_alike():
    rng = np.random.default_rng(0)
    n_atoms = rng.integers(1, 50, 200)
    spans = [np.ptp(n_atoms[p]) for p in group_by_size(n_atoms, 40 * n_atoms, 4000)]
    assert max(spans) < 20


def test_batches_are_filled():
    for budget in (300, 350):
        batches = group_by_size([4] * 10, [100] * 10, budget)
        assert [len(p) for p in batches] == [3, 3, 3, 1]


@given(SIZES, st.integers(1, 2000))
def test_batches_hold_graphs_by_atoms_and_then_by_edges(sizes, budget):
    n_atoms, n_edges = zip(*sizes, strict=True) if sizes else ((), ())
    order = np.concatenate([*group_by_size(n_atoms, n_edges, budget), []]).astype(int)
    assert [sizes[k] for k in order] == sorted(sizes)


def test_parts_of_a_batch_have_the_targets_of_their_graphs():
    cu = bulk('Cu', cubic=True)
    spec, graphs = GraphSpec(cutoff=3.0), []
    for k in range(3):
        graph = build_graph(cu.numbers, cu.positions, cu.cell.array, spec)
        graph.deformation_target = k * torch.eye(3)[None]
        graph.displacement_target = k * torch.ones(4, 3)
        graphs.append(graph)
    for graph, part in zip(graphs, split(collate(graphs)), strict=True):
        assert part.tensors().keys() == graph.tensors().keys()
        for target, expected in zip(part.targets(), graph.targets(), strict=True):
            assert torch.equal(target, expected)


@pytest.mark.parametrize('n', [2, 3, 8])
def test_halves_hold_the_whole(n):
    first, second = halve(np.arange(n))
    assert len(first)
    assert len(second)
    assert [*first, *second] == list(range(n))


@given(st.lists(st.integers(0, 5), max_size=12))
def test_numbers_counted_through_are_those_of_a_plain_loop(counts):
    which, nth = counted(torch.tensor(counts, dtype=torch.int64))
    pairs = [(k, n) for k, count in enumerate(counts) for n in range(count)]
    assert list(zip(which.tolist(), nth.tolist(), strict=True)) == pairs


def test_a_single_graph_is_the_only_part_of_itself():
    cu = bulk('Cu')
    graph = build_graph(cu.numbers, cu.positions, cu.cell.array, GraphSpec(cutoff=3.0))
    assert split(graph) == [graph]


def test_targets_of_some_graphs_only_are_refused():
    cu = bulk('Cu')
    spec = GraphSpec(cutoff=3.0)
    graphs = [build_graph(cu.numbers, cu.positions, cu.cell.array, spec) for _ in 'ab']
    graphs[1].displacement_target = torch.zeros(1, 3)
    with pytest.raises(ValueError, match='1 of 2 graphs have displacement_target'):
        collate(graphs)
    with pytest.raises(ValueError, match='at least one graph'):
        collate([])
