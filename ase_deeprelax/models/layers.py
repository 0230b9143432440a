"""Pieces that the networks share: radial basis, harmonics, sums over neighbourhoods."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn

from ase_deeprelax.data.graph import CrystalGraph
from ase_deeprelax.geometry.motion import STRAIN_BASIS
from ase_deeprelax.models.topology import Topology


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
        return self.gaussians(distance) * envelope(distance.unsqueeze(-1) / self.cutoff)

    def gaussians(self, distance: torch.Tensor) -> torch.Tensor:
        """The same without the envelope."""
        square = (distance.unsqueeze(-1) - self.centres).square()
        # Far tails are subnormal numbers, on which CPUs are slow: e^-60 will do.
        return (square * -self.gamma).clamp(min=-60.0).exp()


def envelope(x: torch.Tensor, p: int = 5) -> torch.Tensor:
    """Polynomial cutoff of DimeNet: 1 at 0, smoothly 0 at x >= 1."""
    a, b, c = -(p + 1) * (p + 2) / 2, p * (p + 2), -p * (p + 1) / 2
    x = x.clamp(max=1)
    return 1 + x**p * (a + x * (b + x * c))


# Constants are kept in double precision, and converted where they are used.
_BASIS = torch.from_numpy(STRAIN_BASIS)
# Five matrices that are an orthonormal basis of degree l = 2, as rows (5, 9).
TRACELESS = _BASIS[1:].flatten(1)
# Traceless parts of the products of two strains, (6 * 6, 5).
STRAIN_PRODUCTS = torch.einsum('aij,bjk,cik->abc', _BASIS, _BASIS, _BASIS[1:]).flatten(0, 1)

# Centres are summed over in blocks whose neighbours' features take this much: they stay in
# the cache of a CPU, and a large cell costs per atom what a small one does.
BLOCK_BYTES = 2**18


def project_symmetric(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """Traceless symmetric part of p (x) q in the basis `TRACELESS`, degree l = 2.

    (n, 3[, F]) each -> (n, 5[, F]); `symmetric_matrix` is the way back.
    """
    products = (p.unsqueeze(2) * q.unsqueeze(1)).flatten(1, 2)
    basis = TRACELESS.to(products)
    return products @ basis.T if p.dim() == 2 else basis @ products


def symmetric_matrix(t: torch.Tensor) -> torch.Tensor:
    """The matrices that five components stand for: (n, 5[, F]) -> (n, 3, 3[, F])."""
    basis = TRACELESS.to(t)
    matrix = t @ basis if t.dim() == 2 else basis.T @ t
    return matrix.view(-1, 3, 3, *t.shape[2:])


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
    topology : Topology
        Of the batch.
    radial : (n_edges, n_radial)
        Edge features.
    harmonics : list of (n_edges, 2l + 1)
        Angular functions; ``moments[l]`` belongs to ``harmonics[l]``.
    dtype : torch.dtype
        Of the moments (bfloat16 under autocast).
    """

    def __init__(
        self,
        topology: Topology,
        radial: torch.Tensor,
        harmonics: list[torch.Tensor],
        dtype: torch.dtype,
    ):
        self.neighbors, self.slots = topology.neighbors, topology.slots
        self.dtype = dtype
        self.moments = self._sums(radial, harmonics)

    def _sums(
        self, radial: torch.Tensor, harmonics: list[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        angular = torch.cat(harmonics, dim=1)
        features = (angular.unsqueeze(2) * radial.unsqueeze(1)).flatten(1)
        n, width = self.neighbors.shape
        total = features.new_zeros(n * width, features.shape[1])
        total = total.index_add(0, self.slots, features).to(self.dtype)
        total = total.view(n, width, features.shape[1]).transpose(1, 2).contiguous()
        rows = [harmonic.shape[1] * radial.shape[1] for harmonic in harmonics]
        return total.split(rows, dim=1)

    def sums(
        self, messages: list[tuple[int, torch.Tensor, torch.Tensor]]
    ) -> list[torch.Tensor]:
        """Messages of all neighbours, summed for each centre.

        Parameters
        ----------
        messages : list of (l, x, filters)
            ``harmonics[l]`` goes with  x (n_atoms, c * f),  what each atom sends (``c``
            vector components of ``f`` features), and  filters (n_radial, f),  the linear
            map W of  phi_e = W x_e.

        Returns
        -------
        list of (n_atoms, (2l + 1) * c, f)
        """
        messages = [(k, x.to(self.dtype), w.to(self.dtype)) for k, x, w in messages]
        x = messages[0][1]
        if torch.is_grad_enabled() or x.device.type != 'cpu':
            return self._sums_of_block(self.moments, self.neighbors, messages)
        row = self.neighbors.shape[1] * x.shape[1] * x.element_size()
        size = max(1, BLOCK_BYTES // row)
        moments = zip(*(moment.split(size) for moment in self.moments), strict=True)
        blocks = [
            self._sums_of_block(*block, messages)
            for block in zip(moments, self.neighbors.split(size), strict=True)
        ]
        if len(blocks) == 1:
            return blocks[0]
        return [torch.cat(parts) for parts in zip(*blocks, strict=True)]

    def _sums_of_block(
        self,
        moments: tuple[torch.Tensor, ...],
        neighbors: torch.Tensor,
        messages: list[tuple[int, torch.Tensor, torch.Tensor]],
    ) -> list[torch.Tensor]:
        """`sums` for some centres: their moments, and their neighbours (n, width)."""
        sums = []
        for degree, x, filters in messages:
            n_radial, f = filters.shape
            sent = x.index_select(0, neighbors.flatten())
            moment = torch.bmm(moments[degree], sent.view(*neighbors.shape, x.shape[1]))
            shape = moment.shape[1] // n_radial, n_radial, x.shape[1] // f, f
            moment = moment.view(moment.shape[0], *shape)
            sums.append((moment * filters.unsqueeze(1)).sum(2).flatten(1, 2))
        return sums


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
        direction = held.flatten(1) @ STRAIN_PRODUCTS.to(held)
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
    counts = graph.starts.diff().clamp(min=1)
    return total / counts.view(-1, *[1] * (x.dim() - 1))
