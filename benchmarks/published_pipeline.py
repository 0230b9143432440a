"""The published DeepRelax pipeline, written plainly: one structure after the other.

The arithmetic of the published code (github.com/Shen-Group/DeepRelax, MIT licence) at its
size, in words of this package and without its speed: edges found by loops over pymatgen's
sites, a network that works on every edge, and 100 steps of Adam on the autograd graph for
each structure. It is what `published_speed.py` measures against, and what
`published_form.py` must agree with.

Kept as published: pairs within the cell as it is written, neighbours cut by number, the
raw nine numbers of the cell, distances through a ReLU, mean violations of bounds as the
loss, no test for convergence. A cell of one atom has no pair within it, and no answer.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from ase import Atoms
from pymatgen.io.ase import AseAtomsAdaptor
from torch import nn

# Settings of the published training: 15,829,517 parameters.
HIDDEN, LAYERS, GAUSSIANS, ENCODING, ELEMENTS = 512, 4, 128, 128, 118
RBF_CUTOFF = 30.0  # A
RADIUS, NEIGHBORS, PAIRS = 6.0, 30, 20
STEPS, RATE = 100, 0.1
LOG_B = (-5, 2)


class PlainGraph(NamedTuple):
    """Edges of one structure; the pairs within the cell come first."""

    z: torch.Tensor  # (n_atoms,)
    pos: torch.Tensor  # (n_atoms, 3), A
    cell: torch.Tensor  # (3, 3), A
    j: torch.Tensor  # (n_edges,) neighbours
    i: torch.Tensor  # (n_edges,) centres
    offset: torch.Tensor  # (n_edges, 3)
    intra: torch.Tensor  # (n_edges,) bool


class Answer(NamedTuple):
    """What the network says of one structure."""

    cross: torch.Tensor  # (n_intra,), A: relaxed neighbour from unrelaxed centre
    cross_log_b: torch.Tensor
    distance: torch.Tensor  # (n_edges,), A: in the relaxed structure
    log_b: torch.Tensor
    cell: torch.Tensor  # (3, 3), A


def build_graph(atoms: Atoms, dtype: torch.dtype = torch.float32) -> PlainGraph:
    """Edges by loops over sites, as published."""
    structure = AseAtomsAdaptor.get_structure(atoms)
    centres, neighbors, offsets, distances = [], [], [], []
    for i in range(len(structure)):
        for j in range(len(structure)):
            if j != i:
                distance, image = structure[i].distance_and_image(
                    structure[j], jimage=[0, 0, 0]
                )
                centres.append(i)
                neighbors.append(j)
                distances.append(distance)
                offsets.append(image)
    pairs = _nearest(
        np.array(centres, dtype=int),
        np.array(neighbors, dtype=int),
        np.array(offsets, dtype=int).reshape(-1, 3),
        np.array(distances),
        most=PAIRS,
    )
    found = structure.get_neighbor_list(r=RADIUS, numerical_tol=0, exclude_self=True)
    i, j, offset = _nearest(*found, most=NEIGHBORS)
    other = offset.any(axis=1)
    i, j, offset = (
        np.concatenate([a, b[other]]) for a, b in zip(pairs, (i, j, offset), strict=True)
    )
    return PlainGraph(
        z=torch.from_numpy(atoms.numbers.astype(np.int64)),
        pos=torch.from_numpy(atoms.positions).to(dtype),
        cell=torch.from_numpy(atoms.cell.array).to(dtype),
        j=torch.from_numpy(j.astype(np.int64)),
        i=torch.from_numpy(i.astype(np.int64)),
        offset=torch.from_numpy(offset.astype(float)).to(dtype),
        intra=torch.arange(len(i)) < len(pairs[0]),
    )


def _nearest(centres, neighbors, offsets, distances, *, most):
    """The ``most`` nearest neighbours of each centre, whatever else is as near."""
    kept = []
    for i in range(max(centres, default=-1) + 1):
        mine = np.flatnonzero(centres == i)
        kept.append(mine[np.argsort(distances[mine])[:most]])
    kept = np.concatenate(kept) if kept else np.zeros(0, dtype=int)
    return centres[kept], neighbors[kept], offsets[kept]


class ScaledSiLU(nn.Module):
    """SiLU / 0.6."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.silu(x) / 0.6


def layers(*widths: int, last: bool = True) -> nn.Sequential:
    """Linear layers, each with an activation; ``last`` tells whether the last has one."""
    made = []
    for n_in, n_out in pairwise(widths):
        made += [nn.Linear(n_in, n_out), ScaledSiLU()]
    return nn.Sequential(*made) if last else nn.Sequential(*made[:-1])


class PlainNetwork(nn.Module):
    """The published network for one structure, edge by edge (paper eqs. 2-10)."""

    def __init__(self, hidden: int = HIDDEN, n_layers: int = LAYERS):
        super().__init__()
        f, n_edge = hidden, GAUSSIANS + ENCODING
        self.embedding = nn.Embedding(ELEMENTS, f)
        nn.init.uniform_(self.embedding.weight, -math.sqrt(3), math.sqrt(3))
        self.messages = nn.ModuleList(PlainMessage(f, n_edge) for _ in range(n_layers))
        self.updates = nn.ModuleList(PlainUpdate(f) for _ in range(n_layers))
        self.atoms_cross, self.atoms_distance = layers(f, f), layers(f, f)
        self.atoms_cell = layers(f, f)
        self.edge_cross, self.edge_distance = layers(n_edge, f, f), layers(n_edge, f, f)
        self.out_cross = layers(3 * f, f, f, 2, last=False)
        self.out_distance = layers(3 * f, f, f, 2, last=False)
        self.cell = layers(9, f, f)
        self.out_cell = layers(2 * f, f, f, 9, last=False)

    def forward(self, graph: PlainGraph) -> Answer:
        j, i = graph.j, graph.i
        vector = graph.pos[j] + graph.offset @ graph.cell - graph.pos[i]
        distance = vector.square().sum(1).clamp(min=1e-8).sqrt()
        unit = -vector / distance[:, None]
        x = torch.cat([gaussians(distance), encoded(graph.offset)], dim=1)
        s = self.embedding(graph.z)
        v = s.new_zeros(len(s), 3, s.shape[1])
        for message, update in zip(self.messages, self.updates, strict=True):
            s, v = message(s, v, (j, i), x, unit)
            s, v = update(s, v)
        inside = graph.intra
        cross, cross_log_b = self._read(
            self.out_cross(
                _ends(self.atoms_cross(s), j[inside], i[inside], self.edge_cross(x[inside]))
            )
        )
        relaxed, log_b = self._read(
            self.out_distance(_ends(self.atoms_distance(s), j, i, self.edge_distance(x)))
        )
        pooled = self.atoms_cell(s).sum(0)
        change = self.out_cell(torch.cat([pooled, self.cell(graph.cell.flatten())]))
        return Answer(cross, cross_log_b, relaxed, log_b, graph.cell + change.view(3, 3))

    @staticmethod
    def _read(out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.relu(out[:, 0]), out[:, 1]


def _ends(atoms, j, i, edge):
    return torch.cat([atoms[i], atoms[j], edge], dim=1)


class PlainMessage(nn.Module):
    """Eqs. 4-5."""

    def __init__(self, f: int, n_edge: int):
        super().__init__()
        self.atoms = layers(f, f // 2, 3 * f, last=False)
        self.edges = nn.Linear(n_edge, 3 * f)

    def forward(self, s, v, ends, x, unit):
        j, i = ends
        m = self.atoms(s)[j] * self.edges(x) / math.sqrt(3)
        m1, m2, m3 = m.chunk(3, dim=1)
        passed = m1[:, None] * v[j] + m2[:, None] * unit[:, :, None]
        ds = torch.zeros_like(s).index_add_(0, i, m3)
        dv = torch.zeros_like(v).index_add_(0, i, passed / math.sqrt(s.shape[1]))
        return (s + ds) / math.sqrt(2), v + dv


class PlainUpdate(nn.Module):
    """Eqs. 6-7."""

    def __init__(self, f: int):
        super().__init__()
        self.vectors = nn.Linear(f, 2 * f, bias=False)
        self.atoms = layers(2 * f, f, 3 * f, last=False)
        for weight in (self.vectors.weight, self.atoms[0].weight, self.atoms[2].weight):
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.atoms[0].bias)
        nn.init.zeros_(self.atoms[2].bias)

    def forward(self, s, v):
        p, q = self.vectors(v).chunk(2, dim=2)
        dot = (p * q).sum(1) / math.sqrt(s.shape[1])
        length = (q.square().sum(1) + 1e-8).sqrt()
        b1, b2, b3 = self.atoms(torch.cat([s, length], dim=1)).chunk(3, dim=1)
        return s + (b1 + b2 * dot) / math.sqrt(2), v + b3[:, None] * p


def gaussians(distance: torch.Tensor) -> torch.Tensor:
    """Gaussians of d / 30 A times the polynomial envelope of DimeNet with p = 5."""
    x = distance[:, None] / RBF_CUTOFF
    centres = torch.linspace(0, 1, GAUSSIANS, dtype=x.dtype)
    envelope = torch.where(x < 1, 1 - 21 * x**5 + 35 * x**6 - 15 * x**7, 0.0)
    return envelope * torch.exp(-0.5 * ((x - centres) * (GAUSSIANS - 1)) ** 2)


def encoded(offset: torch.Tensor) -> torch.Tensor:
    """Unit cell offset encoding, eqs. 2-3."""
    k = (offset[:, 0] + 2) + (offset[:, 1] + 2) * 5 + (offset[:, 2] + 2) * 25
    even = torch.arange(0, ENCODING, 2, dtype=offset.dtype)
    angle = k[:, None] * torch.exp(even * (-math.log(10000.0) / ENCODING))
    code = offset.new_zeros(len(k), ENCODING)
    code[:, 0::2], code[:, 1::2] = angle.sin(), angle.cos()
    return code


def bounds(
    distance: torch.Tensor, log_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower and upper bounds, A (eqs. 18-19)."""
    width = log_b.clamp(*LOG_B).exp()
    return (distance - width).clamp(min=0), distance + width


def violation(x: torch.Tensor, graph: PlainGraph, answer: Answer) -> torch.Tensor:
    """The loss, A: mean violation of the bounds on edges and on cross distances."""
    j, i = graph.j, graph.i
    shift = graph.offset @ answer.cell
    j_in, i_in = j[graph.intra], i[graph.intra]
    loss = x.new_zeros(())
    for vector, (low, high) in (
        (x[j_in] - graph.pos[i_in], bounds(answer.cross, answer.cross_log_b)),
        (x[j] + shift - x[i], bounds(answer.distance, answer.log_b)),
    ):
        length = vector.square().sum(1).clamp(min=1e-8).sqrt().clamp(max=150)
        loss = loss + (length - high).relu().mean() + (low - length).relu().mean()
    return loss


def solve(graph: PlainGraph, answer: Answer) -> torch.Tensor:
    """Positions (n_atoms, 3), A, by 100 steps of Adam from the unrelaxed ones."""
    x = graph.pos.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=RATE)
    for _ in range(STEPS):
        loss = violation(x, graph, answer)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return x.detach()
