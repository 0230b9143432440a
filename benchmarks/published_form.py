"""The published network with its arithmetic, in the batches and sums of this package.

The weights are those of a `PlainNetwork`, and so are the numbers that come out, up to
rounding. What differs is the order of the work:

* messages are linear in the edge features, so that the features of all images of one
  neighbour are added up first, once for all layers;
* Gaussians far beyond the longest edge vanish, and their columns are left out; the offset
  encoding is one row of a table for each offset that occurs;
* a linear layer on [atom i, atom j, edge] is taken once per atom and once per edge;
* layers on edge features alone are taken once for all edges of one length and offset, of
  which symmetric crystals have many. Lengths that differ by rounding only are one length.

`PublishedForm` is a model like any other: graphs, batches, solver, checks and symmetry are
those of `Predictor`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from published_pipeline import (
    GAUSSIANS,
    LOG_B,
    NEIGHBORS,
    PAIRS,
    RADIUS,
    RBF_CUTOFF,
    PlainGraph,
    PlainNetwork,
    encoded,
    gaussians,
)
from torch import nn

from ase_deeprelax.data.graph import CrystalGraph, GraphSpec
from ase_deeprelax.models.base import ModelOutput, RelaxationModel
from ase_deeprelax.models.heads import stretch_of

# A Gaussian is below e^-60 eleven spacings away from its centre.
FAR = 11
# Lengths that differ by as many units of rounding are one length: 4e-6 A in float32.
ROUNDING = 32


class Raw(NamedTuple):
    """What the published network returns, of a batch."""

    cross: torch.Tensor  # (n_intra,), A
    cross_log_b: torch.Tensor
    distance: torch.Tensor  # (n_edges,), A
    log_b: torch.Tensor
    cell: torch.Tensor  # (n_graphs, 3, 3), A


class Sums(NamedTuple):
    """Edge features, and their sums over all images of each neighbour."""

    x: torch.Tensor  # (n_kinds, n_columns): of edges of one length and offset
    kind: torch.Tensor  # (n_edges,) row of each edge in it
    table: torch.Tensor  # (n_offsets, width of the encoding)
    used: int  # Gaussians that do not vanish
    scalar: torch.Tensor  # (n_pairs, n_columns)
    vector: torch.Tensor  # (n_pairs, 3, n_columns)
    j: torch.Tensor  # (n_pairs,) neighbours
    i: torch.Tensor  # (n_pairs,) centres


class PublishedForm(RelaxationModel):
    """The network of DeepRelax as published.

    Parameters
    ----------
    network : PlainNetwork
        Its weights are shared.
    """

    def __init__(self, network: PlainNetwork):
        super().__init__()
        self.network = network
        self.spec = GraphSpec(
            cutoff=RADIUS, max_neighbors=NEIGHBORS, intra_neighbors=PAIRS, canonical=True
        )

    def forward(self, graph: CrystalGraph) -> ModelOutput:
        """Predict for a batch; the cell is reduced to a pure stretch."""
        raw = self.raw(graph)
        general = torch.linalg.solve(graph.cell, raw.cell)
        every = torch.arange(graph.num_edges, device=graph.pos.device)
        return ModelOutput(
            deformation=stretch_of(general),
            displacement=torch.zeros_like(graph.pos),
            bond_index=every,
            distance=raw.distance,
            log_b=raw.log_b.clamp(*LOG_B),
            cross_index=graph.intra.nonzero().squeeze(1),
            cross_distance=raw.cross,
            cross_log_b=raw.cross_log_b.clamp(*LOG_B),
        )

    def raw(self, graph: CrystalGraph) -> Raw:
        """The numbers of the published network, edges in the order of the graph."""
        net = self.network
        sums = edge_sums(graph)
        s, v = net.embedding(graph.z), None
        for message, update in zip(net.messages, net.updates, strict=True):
            s, v = _pass(message, s, v, sums)
            s, v = update(s, v)
        j, i = graph.edge_index
        inside = graph.intra.nonzero().squeeze(1)
        ends = j.index_select(0, inside), i.index_select(0, inside)
        cross = _read(
            net.atoms_cross(s), net.edge_cross, net.out_cross, sums, ends=ends, edges=inside
        )
        distance = _read(
            net.atoms_distance(s), net.edge_distance, net.out_distance, sums, ends=(j, i)
        )
        pooled = s.new_zeros(graph.n_graphs, s.shape[1])
        pooled = pooled.index_add(0, graph.graph_of_atom, net.atoms_cell(s))
        cell = net.cell(graph.cell.flatten(1))
        change = net.out_cell(torch.cat([pooled, cell], dim=1)).view(-1, 3, 3)
        return Raw(*cross, *distance, graph.cell + change)


def to_crystal_graph(plain: PlainGraph) -> tuple[CrystalGraph, torch.Tensor]:
    """The graph of the published pipeline for our networks.

    Returns
    -------
    graph : CrystalGraph
    order : (n_edges,) int64
        Its edge ``k`` is edge ``order[k]`` of the plain graph.
    """
    keys = [*plain.offset.T.flip(0), plain.j, plain.i]
    order = torch.from_numpy(np.lexsort([key.numpy() for key in keys]))
    graph = CrystalGraph(
        z=plain.z,
        pos=plain.pos,
        cell=plain.cell.unsqueeze(0),
        edge_index=torch.stack([plain.j, plain.i])[:, order],
        offset=plain.offset[order],
        intra=plain.intra[order],
        fixed=torch.zeros_like(plain.z, dtype=torch.bool),
        free_strain=torch.eye(6, dtype=plain.pos.dtype).unsqueeze(0),
    )
    return graph, order


def edge_sums(graph: CrystalGraph) -> Sums:
    """The features of all edges, in the columns that are used, and their sums."""
    vectors = graph.edge_vectors()
    distance = vectors.square().sum(1).clamp(min=1e-8).sqrt()
    unit = -vectors / distance.unsqueeze(1)
    longest = float(distance.max()) if len(distance) else 0.0
    used = min(GAUSSIANS, math.ceil(longest * (GAUSSIANS - 1) / RBF_CUTOFF) + FAR)
    # Subnormal numbers, on which CPUs are slow, are taken for zero.
    radial = nn.functional.threshold(gaussians(distance)[:, :used], 1e-30, 0.0)
    offsets, which = _distinct(graph.offset)
    one_hot = nn.functional.one_hot(which, len(offsets)).to(distance.dtype)
    x = torch.cat([radial, one_hot], dim=1)
    j, i = graph.edge_index
    n = len(graph.z)
    # Edges are sorted by centre, then neighbour.
    pairs, row = torch.unique_consecutive(i * n + j, return_inverse=True)
    scalar = x.new_zeros(len(pairs), x.shape[1]).index_add_(0, row, x)
    turned = unit.unsqueeze(2) * x.unsqueeze(1)
    vector = x.new_zeros(len(pairs), *turned.shape[1:]).index_add_(0, row, turned)
    centre = torch.div(pairs, n, rounding_mode='floor')
    length = (distance / (ROUNDING * torch.finfo(x.dtype).eps)).round().long()
    kinds, kind = torch.unique(length * len(offsets) + which, return_inverse=True)
    example = kind.new_zeros(len(kinds)).scatter_(0, kind, torch.arange(len(kind)))
    x = x.index_select(0, example)
    return Sums(x, kind, encoded(offsets), used, scalar, vector, pairs % n, centre)


def _distinct(offset: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The offsets that occur, and which of them each edge has."""
    low = offset.amin(dim=0)
    span = offset.amax(dim=0) - low + 1
    weights = torch.stack([span[1] * span[2], span[2], torch.ones_like(span[2])])
    codes, which = torch.unique(((offset - low) @ weights).long(), return_inverse=True)
    a, rest = codes // weights[0].long(), codes % weights[0].long()
    found = torch.stack([a, rest // span[2].long(), rest % span[2].long()], dim=1)
    return found.to(offset.dtype) + low, which


def _filters(linear: nn.Linear, sums: Sums) -> torch.Tensor:
    """(n_columns, n_out): a layer on edge features; its bias is in the rows of offsets."""
    radial, encoding = linear.weight.T.split([GAUSSIANS, linear.in_features - GAUSSIANS])
    return torch.cat([radial[: sums.used], sums.table @ encoding + linear.bias])


def _pass(message: Any, s: torch.Tensor, v: torch.Tensor | None, sums: Sums):
    """`PlainMessage` with sums over pairs of atoms."""
    n, f = s.shape
    h1, h2, h3 = (message.atoms(s) / math.sqrt(3)).chunk(3, dim=1)
    w1, w2, w3 = _filters(message.edges, sums).chunk(3, dim=1)
    j, i = sums.j, sums.i
    ds = (sums.scalar @ w3).mul_(h3.index_select(0, j))
    dv = (sums.vector @ w2).mul_(h2.index_select(0, j).unsqueeze(1))
    if v is not None:
        moved = (h1.unsqueeze(1) * v).index_select(0, j)
        dv.addcmul_(moved, (sums.scalar @ w1).unsqueeze(1))
    s = (s + s.new_zeros(n, f).index_add_(0, i, ds)) / math.sqrt(2)
    dv = s.new_zeros(n, 3, f).index_add_(0, i, dv) / math.sqrt(f)
    return s, dv if v is None else v + dv


def _read(
    atoms: torch.Tensor,
    edge: nn.Sequential,
    out: nn.Sequential,
    sums: Sums,
    *,
    ends: tuple[torch.Tensor, torch.Tensor],
    edges: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances and logs of their scales, as `PlainNetwork` reads them from edges."""
    kind = sums.kind if edges is None else sums.kind.index_select(0, edges)
    kinds, kind = torch.unique(kind, return_inverse=True)
    hidden = edge[1:](sums.x.index_select(0, kinds) @ _filters(edge[0], sums))
    j, i = ends
    first, second, third = out[0].weight.chunk(3, dim=1)
    hidden = torch.addmm(out[0].bias, hidden, third.T).index_select(0, kind)
    hidden += (atoms @ first.T).index_select(0, i)
    hidden += (atoms @ second.T).index_select(0, j)
    distance, log_b = out[1:](hidden).unbind(1)
    return torch.relu(distance), log_b
