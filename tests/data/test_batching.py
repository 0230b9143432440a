import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_deeprelax.data.batching import halve, pack

SIZES = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 900)), max_size=40)


@given(SIZES, st.integers(1, 2000))
@settings(derandomize=True, deadline=None)
def test_each_graph_once_and_no_pack_over_budget(sizes, budget):
    n_atoms, n_edges = zip(*sizes, strict=True) if sizes else ((), ())
    packs = pack(n_atoms, n_edges, budget)
    assert sorted(np.concatenate([*packs, []]).tolist()) == list(range(len(sizes)))
    for indices in packs:
        assert len(indices)
        assert len(indices) == 1 or sum(n_edges[k] for k in indices) <= budget
    again = pack(n_atoms, n_edges, budget)
    assert [p.tolist() for p in packs] == [p.tolist() for p in again]


def test_neighbours_in_a_pack_are_alike():
    rng = np.random.default_rng(0)
    n_atoms = rng.integers(1, 50, 200)
    spans = [np.ptp(n_atoms[p]) for p in pack(n_atoms, 40 * n_atoms, 4000)]
    assert max(spans) < 20


def test_packs_are_filled():
    packs = pack([4] * 10, [100] * 10, 350)
    assert [len(p) for p in packs] == [3, 3, 3, 1]


@pytest.mark.parametrize('n', [2, 3, 8])
def test_halves_hold_the_whole(n):
    first, second = halve(np.arange(n))
    assert len(first)
    assert len(second)
    assert [*first, *second] == list(range(n))
