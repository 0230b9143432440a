"""Message and update blocks that the networks are built of.

Equation numbers are those of DeepRelax (Yang et al., Nat. Commun. 15, 8148 (2024)).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ase_deeprelax.models.layers import (
    Neighborhood,
    mlp,
    project_symmetric,
    safe_norm,
    symmetric_matrix,
)

# Whole shells hold some fifty neighbours: keeps the first sums of order one.
MESSAGE_SCALE = 0.2


class Message(nn.Module):
    """Message passing phase, eqs. 4-5, and its counterpart for l = 2.

    Parameters
    ----------
    hidden : int
        Width F of the features.
    n_radial : int
        Width of the edge features.
    degree : 1 or 2
        Highest degree l of the features.
    """

    def __init__(self, hidden: int, n_radial: int, degree: int):
        super().__init__()
        self.degree = degree
        n = 2 + degree
        self.norm = nn.LayerNorm(hidden)
        self.mlp = mlp(hidden, hidden, n * hidden)
        # W of  phi_e = W x_e. No bias: messages vanish where the radial basis does.
        self.filters = nn.Parameter(torch.randn(n, n_radial, hidden) / math.sqrt(n_radial))

    def forward(
        self,
        s: torch.Tensor,
        v: torch.Tensor | None,
        t: torch.Tensor | None,
        neighborhood: Neighborhood,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Features after the messages of all neighbours were added.

        Parameters
        ----------
        s, v, t : (n_atoms, F), (n_atoms, 3, F), (n_atoms, 5, F)
            Scalars, vectors and tensors; None: all zero.
        neighborhood : Neighborhood
            With the edge features x_e and spherical harmonics of the edges.

        Returns
        -------
        s, v, t
            Of the same shapes; ``t`` is None where the degree is 1.
        """
        m = self.mlp(self.norm(s)) * (MESSAGE_SCALE / math.sqrt(3))
        m = m.chunk(2 + self.degree, dim=1)
        messages = [(k, m[k], self.filters[k]) for k in range(1 + self.degree)]
        if v is not None:  # m * v_j, taken once per atom rather than once per edge
            messages.append((0, (m[-1].unsqueeze(1) * v).flatten(1), self.filters[-1]))
        ds, dv, *others = neighborhood.sums(messages)
        if self.degree == 2:
            dt, *others = others
            t = dt if t is None else t + dt
        if v is not None:
            dv = v + dv + others[0]
        s = (s + ds.squeeze(1)) / math.sqrt(2)
        return s, dv, t


class Update(nn.Module):
    """Message updating phase, eqs. 6-7: each atom mixes its own features.

    With l = 2 the products that couple the degrees join in: t.t to scalars, t.v to
    vectors, v (x) v to tensors.

    Parameters
    ----------
    hidden : int
        Width F of the features.
    degree : 1 or 2
        Highest degree l of the features.
    """

    def __init__(self, hidden: int, degree: int):
        super().__init__()
        self.vectors = nn.Linear(hidden, 2 * hidden, bias=False)
        n_in, n_out = (2, 3) if degree == 1 else (3, 7)
        if degree == 2:
            self.tensors = nn.Linear(hidden, 2 * hidden, bias=False)
        self.norm = nn.LayerNorm(hidden)
        self.mlp = mlp(n_in * hidden, hidden, n_out * hidden)

    def forward(
        self, s: torch.Tensor, v: torch.Tensor, t: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Features (n_atoms, F), (n_atoms, 3, F), (n_atoms, 5, F) after the update."""
        f = s.shape[1]
        p, q = self.vectors(v).chunk(2, dim=-1)
        invariants = [self.norm(s), safe_norm(q)]
        if t is not None:
            tp, tq = self.tensors(t).chunk(2, dim=-1)
            invariants.append(safe_norm(tq))
        b = self.mlp(torch.cat(invariants, dim=-1)).unsqueeze(1).split(f, dim=-1)
        ds = b[1] * (p * q).sum(1, keepdim=True)
        v = torch.addcmul(v, b[2], p)
        if t is not None:
            ds = ds + b[3] * (tp * tq).sum(1, keepdim=True)
            turned = (symmetric_matrix(tq) * q.unsqueeze(1)).sum(2)
            v = torch.addcmul(v, b[4], turned)
            t = torch.addcmul(torch.addcmul(t, b[5], tp), b[6], project_symmetric(p, q))
        ds = torch.add(b[0], ds, alpha=1 / math.sqrt(f)).squeeze(1)
        return torch.add(s, ds, alpha=1 / math.sqrt(2)), v, t
