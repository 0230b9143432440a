"""The lattice nodes of the published E3Relax-H2, one block per lattice vector."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ase_deeprelax.data.graph import CrystalGraph
from ase_deeprelax.models.layers import ScaledSiLU, mean_over_atoms, mlp, safe_norm


class Lattice(nn.Module):
    """The three lattice vectors as nodes."""

    def __init__(self, hidden: int, num_rbf: int):
        super().__init__()
        self.axes = nn.ModuleList(Axis(hidden, num_rbf) for _ in range(3))
        self.mix_scalars = nn.Linear(3, 3)
        self.mix_vectors = nn.Linear(3, 3, bias=False)

    @property
    def _axes(self) -> Iterator[Any]:
        return iter(self.axes)

    def give(
        self,
        s: torch.Tensor,
        v: torch.Tensor,
        axes: tuple[torch.Tensor, torch.Tensor],
        x: torch.Tensor,
        directions: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Messages to atoms, from one lattice vector after the other."""
        axis_s, axis_v = axes
        for k, axis in enumerate(self._axes):
            s, v = axis.give(s, v, (axis_s[:, k], axis_v[:, k]), x[:, k], directions[:, k])
        return s, v

    def take(
        self,
        s: torch.Tensor,
        v: torch.Tensor,
        axis_s: torch.Tensor,
        axis_v: torch.Tensor,
        graph: CrystalGraph,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Messages from the mean atom."""
        s, v = mean_over_atoms(s, graph), mean_over_atoms(v, graph)
        taken = [
            axis.take(s, v, axis_s[:, k], axis_v[:, k]) for k, axis in enumerate(self._axes)
        ]
        scalars, vectors = zip(*taken, strict=True)
        return torch.stack(scalars, dim=1), torch.stack(vectors, dim=1)

    def mix(
        self, axis_s: torch.Tensor, axis_v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Linear maps among the three lattice vectors."""
        return (
            self.mix_scalars(axis_s.movedim(1, -1)).movedim(-1, 1),
            self.mix_vectors(axis_v.movedim(1, -1)).movedim(-1, 1),
        )

    def cell_change(self, axis_v: torch.Tensor) -> torch.Tensor:
        """(n_graphs, 3, 3), A: transposed, the change of vector k is column k."""
        changes = [axis.change(axis_v[:, k]) for k, axis in enumerate(self._axes)]
        return torch.cat(changes, dim=-1)


class Axis(nn.Module):
    """One lattice vector."""

    def __init__(self, hidden: int, num_rbf: int):
        super().__init__()
        self.atoms = mlp(hidden, hidden, 3 * hidden)
        self.radial = nn.Linear(num_rbf, 3 * hidden)
        self.give_scalars = nn.Sequential(*mlp(2 * hidden, hidden, hidden), ScaledSiLU())
        self.give_vectors = nn.Linear(hidden, hidden, bias=False)
        self.take_scalars = nn.Sequential(*mlp(2 * hidden, hidden, hidden), ScaledSiLU())
        self.take_vectors = nn.Linear(hidden, hidden, bias=False)
        self.update = GatedUpdate(hidden)
        self.change = nn.Linear(hidden, 1, bias=False)

    def give(
        self,
        s: torch.Tensor,
        v: torch.Tensor,
        axis: tuple[torch.Tensor, torch.Tensor],
        x: torch.Tensor,
        direction: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scalars and vectors of atoms, told about their place beside this vector."""
        axis_s, axis_v = axis
        m = self.atoms(s) * self.radial(x) / math.sqrt(3)
        m1, m2, m3 = m.unsqueeze(1).chunk(3, dim=-1)
        s = s + m3.squeeze(1)
        # The published scaling has no residual path: it all but erases earlier vectors.
        v = (m1 * v + m2 * direction.unsqueeze(2)) / math.sqrt(s.shape[1])
        s = s + self.give_scalars(torch.cat([s, axis_s], dim=1))
        return s, v + self.give_vectors(v + axis_v)

    def take(
        self, s: torch.Tensor, v: torch.Tensor, axis_s: torch.Tensor, axis_v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scalars and vectors of this lattice vector, told about the mean atom."""
        axis_s = axis_s + self.take_scalars(torch.cat([s, axis_s], dim=1))
        axis_v = axis_v + self.take_vectors(v + axis_v)
        ds, gate, dv = self.update(axis_s, axis_v)
        return ds + axis_s * gate, axis_v + dv


class GatedUpdate(nn.Module):
    """Scalars and norms of vectors decide how both change."""

    def __init__(self, hidden: int):
        super().__init__()
        self.vectors = nn.Linear(hidden, 2 * hidden, bias=False)
        self.mlp = mlp(2 * hidden, hidden, 3 * hidden)

    def forward(
        self, s: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Summand of the scalars, their gate, summand of the vectors."""
        p, q = self.vectors(v).chunk(2, dim=-1)
        b1, b2, b3 = self.mlp(torch.cat([s, safe_norm(q)], dim=1)).chunk(3, dim=1)
        return b2, torch.tanh(b3), b1.unsqueeze(1) * p
