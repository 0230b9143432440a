"""Pieces that the networks share: radial basis, harmonics, sums over neighbourhoods."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from ase_deeprelax.data.graph import CrystalGraph
from ase_deeprelax.geometry.motion import STRAIN_BASIS


class ScaledSiLU(nn.Module):
    """SiLU / 0.6, the activation of the reference networks."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.silu(x) / 0.6


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ScaledSiLU between them."""
    layers = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), ScaledSiLU()]
    return nn.Sequential(*layers[:-1])


def zero_last(network: Any) -> Any:
    """Set the last linear layer to zero, so that an untrained head answers "relaxed"."""
    for parameter in network[-1].parameters():
        nn.init.zeros_(parameter)
    return network


class RadialBasis(nn.Module):
    """Gaussians on [0, cutoff] times a polynomial envelope that vanishes smoothly there.

    Parameters
    ----------
    num_rbf : int
        Number of Gaussians; their width is their spacing.
    cutoff : float, A
    """

    def __init__(self, num_rbf: int, cutoff: float):
        super().__init__()
        self.cutoff = cutoff
        self.gamma = 0.5 * ((num_rbf - 1) / cutoff) ** 2
        self.centres: torch.Tensor
        self.register_buffer(
            'centres', torch.linspace(0, cutoff, num_rbf), persistent=False
        )

    def forward(self, distance: torch.Tensor) -> torch.Tensor:
        """(n,) A -> (n, num_rbf)."""
        x = distance.unsqueeze(-1)
        # Far tails are subnormal numbers, on which CPUs are slow: e^-60 will do.
        gaussians = torch.exp(-(self.gamma * (x - self.centres) ** 2).clamp(max=60.0))
        return gaussians * envelope(x / self.cutoff)


def envelope(x: torch.Tensor, p: int = 5) -> torch.Tensor:
    """Polynomial cutoff of DimeNet: 1 at 0, smoothly 0 at x >= 1."""
    a, b, c = -(p + 1) * (p + 2) / 2, p * (p + 2), -p * (p + 1) / 2
    return torch.where(x < 1, 1 + a * x**p + b * x ** (p + 1) + c * x ** (p + 2), 0.0)


# Traceless parts of the products of two strains, (6, 6, 5).
STRAIN_PRODUCTS = np.einsum(
    'aij,bjk,cik->abc', STRAIN_BASIS, STRAIN_BASIS, STRAIN_BASIS[1:]
)

R2, R6 = math.sqrt(1 / 2), math.sqrt(1 / 6)

# Centres are summed over in blocks whose neighbours' features take this much: they stay in
# the cache of a CPU, and a large cell costs per atom what a small one does.
BLOCK_BYTES = 2**18


def project_symmetric(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Traceless symmetric part of p (x) q in an orthonormal basis, degree l = 2.

    (n, 3[, F]) each -> (n, 5[, F]); `symmetric_matrix` is the way back.
    """
    x, y, z = (p[:, a] * q[:, a] for a in range(3))
    pairs = ((0, 1), (1, 2), (0, 2))
    xy, yz, xz = (p[:, a] * q[:, b] + p[:, b] * q[:, a] for a, b in pairs)
    return torch.stack(
        [R2 * xy, R2 * yz, R2 * xz, R2 * (x - y), R6 * (2 * z - x - y)], dim=1
    )


def symmetric_matrix(t: torch.Tensor) -> torch.Tensor:
    """The matrices that five components stand for: (n, 5[, F]) -> (n, 3, 3[, F])."""
    xy, yz, xz = R2 * t[:, 0], R2 * t[:, 1], R2 * t[:, 2]
    x, y, z = R2 * t[:, 3] - R6 * t[:, 4], -R2 * t[:, 3] - R6 * t[:, 4], 2 * R6 * t[:, 4]
    rows = (x, xy, xz), (xy, y, yz), (xz, yz, z)
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def spherical(unit: torch.Tensor, degree: int) -> list[torch.Tensor]:
    """Angular functions of unit vectors (n, 3) for l = 0 ... degree <= 2, as a list."""
    harmonics = [torch.ones_like(unit[:, :1]), unit]
    if degree == 2:
        harmonics.append(project_symmetric(unit, unit))
    return harmonics


def autocast_dtype(x: torch.Tensor) -> torch.dtype:
    """The float type of matrix products with ``x``: its own, or autocast's."""
    device = x.device.type
    low = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if low else x.dtype


def safe_norm(x: torch.Tensor) -> torch.Tensor:
    """Norm over the components (dim 1), with a gradient at zero."""
    return ((x * x).sum(1) + 1e-8).sqrt()


class Neighborhood:
    """Sums over neighbours as small dense products, one column per distinct neighbour.

    A message  sum_e phi_e * x_j  with phi_e = W x_e is linear in the edge features x_e, so
    the features of all periodic images of one neighbour atom j may be added up first:
    a centre in a cell of ten atoms then has ten columns, however many images lie within
    the cutoff. The sums are taken once and serve every layer.

    Parameters
    ----------
    graph : CrystalGraph
    radial : (n_edges, n_radial)
        Edge features.
    harmonics : list of (n_edges, 2l + 1)
        Angular functions; ``moments[k]`` belongs to ``harmonics[k]``.
    dtype : torch.dtype
        Of the moments (bfloat16 under autocast).
    """

    def __init__(
        self,
        graph: CrystalGraph,
        radial: torch.Tensor,
        harmonics: list[torch.Tensor],
        dtype: torch.dtype,
    ):
        j, i = graph.edge_index
        n = len(graph.z)
        pairs, column = torch.unique_consecutive(i * n + j, return_inverse=True)
        pair_i = torch.div(pairs, n, rounding_mode='floor')
        counts = torch.bincount(pair_i, minlength=n)
        width = int(counts.max()) if len(pairs) else 1
        first = counts.cumsum(0) - counts
        slot = torch.arange(len(pairs), device=i.device) - first.index_select(0, pair_i)
        position = pair_i * width + slot
        self.neighbor = torch.zeros(n * width, dtype=torch.long, device=i.device)
        self.neighbor[position] = pairs % n
        self.width, self.dtype = width, dtype
        self.row = position.index_select(0, column)
        self.moments = self._sums(radial, harmonics)

    def moved(self, radial: torch.Tensor, harmonics: list[torch.Tensor]) -> Neighborhood:
        """The same neighbours after a change of the structure, with new edge features."""
        other = copy.copy(self)
        other.moments = self._sums(radial, harmonics)
        return other

    def _sums(
        self, radial: torch.Tensor, harmonics: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        moments = []
        for harmonic in harmonics:
            features = (harmonic.unsqueeze(2) * radial.unsqueeze(1)).flatten(1)
            moment = features.new_zeros(len(self.neighbor), features.shape[1])
            moment = moment.index_add(0, self.row, features)
            moment = moment.view(-1, self.width, features.shape[1]).transpose(1, 2)
            moments.append(moment.to(self.dtype).contiguous())
        return moments

    def sum(self, k: int, x: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
        """Messages of the neighbours through ``harmonics[k]``.

        Parameters
        ----------
        x : (n_atoms, c * f)
            What each atom sends: ``c`` vector components of ``f`` features.
        filters : (n_radial, f)
            The linear map W of  phi_e = W x_e.

        Returns
        -------
        (n_atoms, (2l + 1) * c, f)
        """
        x, filters = x.to(self.dtype), filters.to(self.dtype)
        if torch.is_grad_enabled() or x.device.type != 'cpu' or len(x) == 0:
            return self._sum_of_block(self.moments[k], self.neighbor, x, filters)
        size = max(1, BLOCK_BYTES // (self.width * x[:1].nbytes))
        blocks = zip(
            self.moments[k].split(size), self.neighbor.split(size * self.width), strict=True
        )
        return torch.cat([self._sum_of_block(*block, x, filters) for block in blocks])

    def _sum_of_block(
        self,
        moments: torch.Tensor,
        neighbor: torch.Tensor,
        x: torch.Tensor,
        filters: torch.Tensor,
    ) -> torch.Tensor:
        """`sum` for some centres: their moments, and (n_centres * width,) neighbours."""
        n_radial, f = filters.shape
        sent = x.index_select(0, neighbor).view(-1, self.width, x.shape[1])
        moment = torch.bmm(moments, sent)
        moment = moment.view(len(moment), -1, n_radial, x.shape[1] // f, f)
        return (moment * filters.unsqueeze(1)).sum(2).flatten(1, 2)


class MotionEmbedding(nn.Module):
    """What may move, as features of atoms; nothing is added where all is free.

    A fixed atom, the share of the six strains that is fixed and whether the volume is fixed
    add to the scalars. The direction in which strains are fixed adds to the features of
    degree l = 2: the traceless part of  sum_k H_k H_k  over the fixed strains H_k.

    The weights start at zero, and are zero for weights that were saved before.

    Parameters
    ----------
    hidden : int
        Width F of the features.
    degree : 1 or 2
        Highest degree of the network's features.
    """

    def __init__(self, hidden: int, degree: int = 2):
        super().__init__()
        self.scalars = nn.Parameter(torch.zeros(3, hidden))
        self.tensors = nn.Parameter(torch.zeros(hidden)) if degree == 2 else None

    def forward(self, graph: CrystalGraph) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scalars (n_atoms, F) and tensors (n_atoms, 5, F) or None."""
        held = torch.eye(6, dtype=graph.pos.dtype, device=graph.pos.device)
        held = held - graph.free_strain
        share = held.diagonal(dim1=1, dim2=2).mean(1)
        by_graph = torch.stack([share, held[:, 0, 0]], dim=1)
        index = graph.graph_of_atom
        fixed = graph.fixed.to(share.dtype).unsqueeze(1)
        scalars = torch.cat([fixed, by_graph.index_select(0, index)], dim=1) @ self.scalars
        if self.tensors is None:
            return scalars, None
        products = torch.from_numpy(STRAIN_PRODUCTS).to(held)
        direction = torch.einsum('gab,abc->gc', held, products)
        tensors = direction.index_select(0, index).unsqueeze(2) * self.tensors
        return scalars, tensors

    # Weights made before know nothing of it: zeros mean that all is free.
    def _load_from_state_dict(  # ty: ignore[incompatible-method-override] - a hook of torch
        self, state_dict: Any, prefix: str, *args: Any
    ) -> None:
        for name, parameter in self.named_parameters():
            state_dict.setdefault(prefix + name, torch.zeros_like(parameter))
        super()._load_from_state_dict(state_dict, prefix, *args)


def mean_over_atoms(x: torch.Tensor, graph: CrystalGraph) -> torch.Tensor:
    """(n_atoms, ...) -> (n_graphs, ...): mean over the atoms of each graph."""
    index = graph.graph_of_atom
    total = x.new_zeros(graph.n_graphs, *x.shape[1:]).index_add(0, index, x)
    counts = torch.bincount(index, minlength=graph.n_graphs).clamp(min=1)
    return total / counts.view(-1, *[1] * (x.dim() - 1))
