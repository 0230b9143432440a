"""Read-outs: from features of atoms to strain, displacements, distances and scales.

Equation numbers are those of DeepRelax (Nat. Commun. 15, 8148 (2024)).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from ase_deeprelax.data.graph import CrystalGraph
from ase_deeprelax.geometry.motion import STRAIN_BASIS
from ase_deeprelax.models.base import LOG_B_RANGE, moved_vectors
from ase_deeprelax.models.layers import (
    TRACELESS,
    mean_over_atoms,
    mlp,
    project_symmetric,
    zero_last,
)

# Frobenius norm of the log strain that no prediction exceeds (volumes change by e^5).
MAX_STRAIN = 3.0
# The matrices that the six components of a log strain stand for, as rows (6, 9).
STRAINS = torch.cat([torch.eye(3, dtype=torch.float64).view(1, 9), TRACELESS])
# Enough for vectors that change by a hundred times; each step doubles the digits.
NEWTON_STEPS = 12


class Features(NamedTuple):
    """Features of atoms of degree l = 0, 1 and 2; None where a network has none."""

    s: torch.Tensor  # (n_atoms, F)
    v: torch.Tensor | None  # (n_atoms, 3, F)
    t: torch.Tensor | None  # (n_atoms, 5, F), see `project_symmetric`


class StrainHead(nn.Module):
    """Log strain of the cell: symmetric, equivariant, a mean over atoms.

    The deformation is its matrix exponential, so that volumes stay positive and
    ``det = exp(trace)``.
    """

    def __init__(self, hidden: int, degree: int):
        super().__init__()
        self.degree = degree
        if degree == 1:
            self.vectors = nn.Linear(hidden, 2 * hidden, bias=False)
        self.tensors = nn.Linear(hidden, hidden, bias=False)
        self.gates = zero_last(mlp(hidden, hidden, hidden + 1))

    def forward(self, features: Features, graph: CrystalGraph) -> torch.Tensor:
        """Deformations (n_graphs, 3, 3), symmetric and positive definite."""
        s, v, t = features
        if self.degree == 1:
            t = project_symmetric(*self.vectors(v).chunk(2, dim=-1))
        gates = self.gates(s)
        traceless = (self.tensors(t) * gates[:, None, 1:]).sum(-1)
        per_atom = torch.cat([gates[:, :1], traceless], dim=1).to(graph.pos.dtype)
        return stretch(free_strain(mean_over_atoms(per_atom, graph), graph))


def free_strain(log_strain: torch.Tensor, graph: CrystalGraph) -> torch.Tensor:
    """The part of log strains (n_graphs, 6), see `stretch`, that is free to change."""
    # The identity has the norm sqrt(3), the other five matrices of the basis 1.
    norms = log_strain.new_tensor([math.sqrt(3), 1, 1, 1, 1, 1])
    with torch.autocast(log_strain.device.type, enabled=False):
        parts = graph.free_strain.to(log_strain.dtype) @ (log_strain * norms).unsqueeze(2)
    return parts.squeeze(2) / norms


def free_deformation(deformation: torch.Tensor, graph: CrystalGraph) -> torch.Tensor:
    """The free part of deformations (n_graphs, 3, 3) that are not made from log strains."""
    eye = torch.eye(3, dtype=deformation.dtype, device=deformation.device)
    return eye + project_strains(graph.free_strain, deformation - eye)


def project_strains(free_strain: torch.Tensor, strain: torch.Tensor) -> torch.Tensor:
    """`motion.project_strain` for projections (n, 6, 6) and strains (n, 3, 3)."""
    basis = torch.from_numpy(STRAIN_BASIS).to(strain)
    parts = torch.einsum('gij,aij->ga', strain, basis)
    parts = torch.einsum('gab,gb->ga', free_strain.to(parts.dtype), parts)
    return torch.einsum('ga,aij->gij', parts, basis)


def free_displacement(displacement: torch.Tensor, graph: CrystalGraph) -> torch.Tensor:
    """Displacements (n_atoms, 3) that leave fixed atoms in place.

    Where no atom of a structure is fixed, it has no place of its own: its rigid drift is
    taken away.
    """
    fixed = graph.fixed.unsqueeze(1)
    means = mean_over_atoms(torch.cat([displacement, fixed], dim=1), graph)
    drift = means[:, :3].masked_fill(means[:, 3:] > 0, 0.0)
    drift = drift.index_select(0, graph.graph_of_atom)
    return (displacement - drift).masked_fill(fixed, 0.0)


def stretch(log_strain: torch.Tensor) -> torch.Tensor:
    """Deformations from log strains: (n, 6), a third of the trace and five traceless
    components (`project_symmetric`), -> (n, 3, 3), symmetric and positive definite.
    """
    with torch.autocast(log_strain.device.type, enabled=False):
        strain = log_strain @ STRAINS.to(log_strain)
        # A bound far outside any real relaxation keeps exp finite for any weights.
        size = torch.linalg.vector_norm(strain, dim=1, keepdim=True)
        size = size.clamp(min=1e-6) / MAX_STRAIN
        strain = strain * (torch.tanh(size) / size)
        return torch.linalg.matrix_exp(strain.view(-1, 3, 3))


class DisplacementHead(nn.Module):
    """Displacement of each free atom at the unrelaxed cell, A: gated vectors."""

    def __init__(self, hidden: int):
        super().__init__()
        self.vectors = nn.Linear(hidden, hidden, bias=False)
        self.gates = zero_last(mlp(hidden, hidden, hidden))

    def forward(self, features: Features, graph: CrystalGraph) -> torch.Tensor:
        """Displacements (n_atoms, 3), A."""
        s, v, _ = features
        u = (self.vectors(v) * self.gates(s).unsqueeze(1)).sum(-1).to(graph.pos.dtype)
        return free_displacement(u, graph)


class DistanceHead(nn.Module):
    """Relaxed distance and Laplace scale of each edge, eqs. 8 and 10.

    The distance is ``length * exp(change)``, where ``length`` is its value in the structure
    that the other heads predict; the features are symmetric in the two ends of the bond.
    """

    def __init__(self, hidden: int, n_radial: int):
        super().__init__()
        width = hidden // 2
        self.atoms = nn.Linear(hidden, width)
        self.edge = mlp(n_radial, width, width)
        self.out = zero_last(mlp(3 * width, width, 2))

    def forward(
        self,
        features: Features,
        x: torch.Tensor,
        graph: CrystalGraph,
        edges: torch.Tensor,
        lengths: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Distances (n_bonds,), A, and logs of their scales (n_bonds,).

        Parameters
        ----------
        features : Features
        x : (n_edges, n_radial)
            Edge features.
        graph : CrystalGraph
        edges : (n_bonds,) int64
            The edges to predict for.
        lengths : (n_edges,), A
            See `predicted_distances`.
        """
        s = features.s
        j, i = graph.edge_index.index_select(1, edges)
        atoms = self.atoms(s)
        a, b = atoms.index_select(0, i), atoms.index_select(0, j)
        edge = self.edge(x.index_select(0, edges))
        change, scale = self.out(torch.cat([a + b, a * b, edge], dim=1)).to(lengths.dtype).T
        low, high = LOG_B_RANGE
        # A sigmoid bounds log b without killing gradients; it starts near 0.05 A.
        log_b = low + (high - low) * torch.sigmoid(scale + 0.2)
        return lengths.index_select(0, edges) * torch.exp(torch.tanh(change)), log_b


class LatticeMatrixHead(nn.Module):
    """The paper's lattice head, eq. 9: nine numbers added to the cell's nine.

    Atoms are summed, as published, so that the answer depends on the size of the cell.
    What it adds is reduced to a pure stretch.
    """

    def __init__(self, hidden: int):
        super().__init__()
        self.atoms = nn.Linear(hidden, hidden)
        self.cell = mlp(9, hidden, hidden)
        self.out = zero_last(mlp(2 * hidden, hidden, 9))

    def forward(self, features: Features, graph: CrystalGraph) -> torch.Tensor:
        """Deformations (n_graphs, 3, 3), symmetric and positive definite."""
        s = features.s
        pooled = s.new_zeros(graph.n_graphs, s.shape[1])
        pooled = pooled.index_add(0, graph.graph_of_atom, self.atoms(s).to(s.dtype))
        cell = self.cell(graph.cell.flatten(1))
        change = self.out(torch.cat([pooled, cell], dim=1)).view(-1, 3, 3)
        with torch.autocast(graph.pos.device.type, enabled=False):
            general = torch.linalg.solve(
                graph.cell, graph.cell + change.to(graph.cell.dtype)
            )
            return free_deformation(stretch_of(general), graph)


def stretch_of(general: torch.Tensor) -> torch.Tensor:
    """Symmetric factor of ``general = stretch @ rotation``: (n, 3, 3) -> (n, 3, 3).

    Found by Newton's iteration for the rotation, which may mirror. Where eigenvalues are
    equal, as before training and for cubic crystals, eigenvectors have no gradient, and on
    a GPU their search fails. Of singular matrices the result is not finite.

    >>> stretch_of(torch.tensor([[[0.0, 2.0, 0.0], [-3.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]))
    tensor([[[2., 0., 0.],
             [0., 3., 0.],
             [0., 0., 1.]]])
    """
    rotation = general
    for _ in range(NEWTON_STEPS):
        inverse, _ = torch.linalg.inv_ex(rotation)
        rotation = (rotation + inverse.mT) / 2
    stretch = general @ rotation.mT
    return (stretch + stretch.mT) / 2


def predicted_distances(
    graph: CrystalGraph,
    vectors: torch.Tensor,
    deformation: torch.Tensor,
    displacement: torch.Tensor,
) -> torch.Tensor:
    """(n_edges,): edge lengths in the predicted structure, A.

    Detached: each head learns from its own target.
    """
    with torch.no_grad(), torch.autocast(graph.pos.device.type, enabled=False):
        moved = moved_vectors(graph, vectors, deformation, displacement)
        return torch.linalg.vector_norm(moved, dim=1)
