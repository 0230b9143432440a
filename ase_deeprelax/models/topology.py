"""Neighbours in a batch of graphs: integers that all networks share.

They depend on the edges alone, not on lengths, and their number depends on values: finding
them first leaves networks whose operations have shapes that are known beforehand, as
`models.compiled` asks for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ase_deeprelax.data.graph import CrystalGraph


@dataclass(frozen=True, eq=False)
class Topology:
    """Indices of the atoms and edges of a batch, made by `topology`.

    Attributes
    ----------
    bonds : (n_bonds,) int64
        Edges: one of the two directions of each.
    reverse : (n_edges,) int64
        See `reverse_edges`.
    neighbors : (n_atoms, width) int64
        The distinct neighbours of each atom, however many of their images are near it; rows
        are filled up with atom 0.
    slots : (n_edges,) int64
        The place of the edge's neighbour in ``neighbors``, as one row.
    """

    bonds: torch.Tensor
    reverse: torch.Tensor
    neighbors: torch.Tensor
    slots: torch.Tensor


def topology(graph: CrystalGraph) -> Topology:
    """The topology of a batch of graphs, whose edges are sorted by centre and neighbour.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase_deeprelax.data.graph import GraphSpec, build_graph
    >>> salt = bulk('NaCl', 'rocksalt', a=5.6)
    >>> graph = build_graph(
    ...     salt.numbers, salt.positions, salt.cell.array, GraphSpec(cutoff=3.0)
    ... )
    >>> found = topology(graph)
    >>> graph.num_edges, len(found.bonds), found.neighbors.tolist()
    (12, 6, [[1], [0]])
    """
    neighbors, slots = _neighbors(graph)
    bonds = undirected(graph).nonzero().squeeze(1)
    return Topology(bonds, reverse_edges(graph), neighbors, slots)


def _neighbors(graph: CrystalGraph) -> tuple[torch.Tensor, torch.Tensor]:
    """``neighbors`` and ``slots`` of `Topology`."""
    j, i = graph.edge_index
    n = len(graph.z)
    pairs, column = torch.unique_consecutive(i * n + j, return_inverse=True)
    pair_i = torch.div(pairs, n, rounding_mode='floor')
    counts = torch.bincount(pair_i, minlength=n)
    width = int(counts.max()) if len(pairs) else 1
    first = counts.cumsum(0) - counts
    slot = torch.arange(len(pairs), device=i.device) - first.index_select(0, pair_i)
    position = pair_i * width + slot
    neighbors = torch.zeros(n * width, dtype=torch.long, device=i.device)
    neighbors[position] = pairs % n
    return neighbors.view(n, width), position.index_select(0, column)


def undirected(graph: CrystalGraph) -> torch.Tensor:
    """(n_edges,) bool: one of the two directions of each edge."""
    j, i = graph.edge_index
    # Whether the first of the three translations that is not zero is positive.
    positive = graph.offset.sign() @ graph.offset.new_tensor([4, 2, 1]) > 0
    return (i < j) | ((i == j) & positive)


def reverse_edges(graph: CrystalGraph) -> torch.Tensor:
    """(n_edges,) int64: for each edge j -> i the index of the edge i -> j.

    An edge whose reverse is not in the graph (one that keeps the nearest neighbours only)
    is its own.
    """
    j, i = graph.edge_index
    offset = graph.offset.long()
    span = 2 * int(offset.abs().max()) + 1 if len(offset) else 1
    x, y, z = offset.unbind(1)  # CUDA has no matrix products of integers
    shift, n = (x * span + y) * span + z, len(graph.z)
    key = (i * n + j) * span**3 + shift  # in ascending order, as the edges are
    mirrored = (j * n + i) * span**3 - shift
    place = torch.searchsorted(key, mirrored).clamp(max=max(len(key) - 1, 0))
    there = key.index_select(0, place) == mirrored
    return torch.where(there, place, torch.arange(len(key), device=key.device))
