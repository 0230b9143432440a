"""Edges of many crystals at once, found by torch on the device where the crystals are."""

from __future__ import annotations

from dataclasses import replace

import torch

from ase_deeprelax.data.batching import counted
from ase_deeprelax.data.graph import ROUNDING, CrystalGraph


def with_radius_edges(graph: CrystalGraph, cutoff: float) -> CrystalGraph:
    """A batch of crystals with an edge for each pair of atoms nearer than ``cutoff``.

    All pairs of atoms of a crystal are tried, which suits many small cells: on a GPU it is
    far faster than a search for one crystal after the other (`geometry.neighbors`). The
    edges and their order are the same.

    Parameters
    ----------
    graph : CrystalGraph
        One or more crystals, periodic along all three vectors; their edges are replaced.
    cutoff : float, A

    Returns
    -------
    CrystalGraph

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase_deeprelax.data.graph import GraphSpec, build_graph
    >>> cu = bulk('Cu')
    >>> graph = build_graph(cu.numbers, cu.positions, cu.cell, GraphSpec(cutoff=3.0))
    >>> with_radius_edges(graph, 4.0).num_edges
    18
    """
    cutoff *= 1 - ROUNDING
    cell, pos, of_atom = graph.cell.double(), graph.pos.double(), graph.graph_of_atom
    inverse, _ = torch.linalg.inv_ex(cell)
    frac = (pos.unsqueeze(1) @ inverse.index_select(0, of_atom)).squeeze(1)
    # The columns of the inverse are as long as one over the heights of the cell.
    reach = cutoff * torch.linalg.vector_norm(inverse, dim=1)
    # All pairs of a centre i and a neighbour j of one crystal, in the order of the edges.
    starts = graph.starts
    i, nth = counted(starts.diff().index_select(0, of_atom))
    j = nth + starts.index_select(0, of_atom).index_select(0, i)
    apart = frac.index_select(0, j) - frac.index_select(0, i)
    reach = reach.index_select(0, of_atom.index_select(0, i))
    first = (-reach - apart).ceil()
    sides = ((reach - apart).floor() - first + 1).clamp(min=0).long()
    # All images of j between the planes at the distance of the cutoff around i.
    pair, nth = counted(sides.prod(dim=1))
    _, b, c = sides.index_select(0, pair).unbind(1)
    plane, z = _divided(nth, c)
    x, y = _divided(plane, b)
    offset = torch.stack([x, y, z], dim=1) + first.index_select(0, pair)
    vector = (offset + apart.index_select(0, pair)).unsqueeze(1)
    i, j = i.index_select(0, pair), j.index_select(0, pair)
    vector = (vector @ cell.index_select(0, of_atom.index_select(0, i))).squeeze(1)
    near = vector.square().sum(dim=1) < cutoff**2
    near &= (i != j) | offset.any(dim=1)  # no atom is its own neighbour
    kept = near.nonzero().squeeze(1)
    i, j = i.index_select(0, kept), j.index_select(0, kept)
    return replace(
        graph,
        edge_index=torch.stack([j, i]),
        offset=offset.index_select(0, kept).to(graph.pos.dtype),
        intra=torch.zeros_like(i, dtype=torch.bool),
    )


def _divided(number: torch.Tensor, by: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quotient and remainder of positive integers."""
    quotient = torch.div(number, by, rounding_mode='floor')
    return quotient, number - quotient * by
