"""The graph of a crystal: tensors with documented shapes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch

from ase_deeprelax.geometry.motion import Motion, everything_free
from ase_deeprelax.geometry.neighbors import intra_cell_pairs, neighbor_list

# An atom at exactly the cutoff is no neighbour. Without this margin, rounding errors would
# decide about it, and differently in each orientation of the crystal.
ROUNDING = 1e-7


@dataclass(frozen=True)
class GraphSpec:
    """Which edges a model wants.

    Parameters
    ----------
    cutoff : float, A
        Neighbours are nearer than this.
    max_neighbors : int, optional
        Keep only the nearest shells, whole, until this many neighbours are reached.
    intra_neighbors : int, optional
        Add the paper's intra-cell pairs: all pairs within the cell as it is written, of
        which each centre keeps this many, again in whole shells. Edges of the radius
        graph are then inter-cell edges only (paper 4.2).
    canonical : bool
        Build the graph in the canonical frame (needed where the network sees the choice
        of cell: offset encoding, raw lattice head, intra-cell pairs).

    Raises
    ------
    ValueError
        The cutoff is no positive number, or a number of neighbours is below 1.
    """

    cutoff: float = 6.0
    max_neighbors: int | None = None
    intra_neighbors: int | None = None
    canonical: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.cutoff < math.inf:
            raise ValueError(f'cutoff is {self.cutoff}; it must be a length above 0, in A')
        for name in ('max_neighbors', 'intra_neighbors'):
            limit = getattr(self, name)
            if limit is not None and not (isinstance(limit, Integral) and limit > 0):
                raise ValueError(
                    f'{name} is {limit}; it must be a whole number from 1, or None'
                )

    @property
    def is_radius(self) -> bool:
        """Whether the edges are all neighbours within the cutoff, in any frame."""
        return self == GraphSpec(cutoff=self.cutoff)

    def to_dict(self) -> dict[str, Any]:
        """The settings by name, ready for JSON."""
        return asdict(self)


@dataclass(eq=False, repr=False)
class CrystalGraph:
    """One crystal, or a batch of them, as tensors; cells are row vectors.

    Edges point from the neighbour ``j`` to the centre ``i``; the neighbour sits at
    ``pos[j] + offset @ cell``, the edge vector is that minus ``pos[i]`` (paper eq. 2).
    Edges are sorted by centre, then neighbour, then offset.

    Graphs of single structures come from `build_graph` or `data.convert.to_graph`, batches
    from `data.batching.collate`; `data.pyg` turns both into ``torch_geometric`` data.

    Attributes
    ----------
    z : (n_atoms,) int64
        Atomic numbers.
    pos : (n_atoms, 3), A
    cell : (n_graphs, 3, 3), A
    edge_index : (2, n_edges) int64
        ``j`` in row 0, ``i`` in row 1.
    offset : (n_edges, 3), same float type as ``pos``
        Integer lattice translations of the neighbour.
    intra : (n_edges,) bool
        True for the intra-cell pairs of the paper; all False without them.
    fixed : (n_atoms,) bool
        Atoms that keep their fractional coordinates.
    free_strain : (n_graphs, 6, 6)
        Projection on the free strains of the cell, see `motion.Motion`.
    deformation_target : (n_graphs, 3, 3) or None
        What a model has to predict; only in training.
    displacement_target : (n_atoms, 3) or None, A
        What a model has to predict; only in training.
    batch : (n_atoms,) int64 or None
        Graph of each atom; only in batches.
    ptr : (n_graphs + 1,) int64 or None
        Graph ``k`` has the atoms ``ptr[k]`` to ``ptr[k + 1] - 1``; only in batches.
    """

    z: torch.Tensor
    pos: torch.Tensor
    cell: torch.Tensor
    edge_index: torch.Tensor
    offset: torch.Tensor
    intra: torch.Tensor
    fixed: torch.Tensor
    free_strain: torch.Tensor
    deformation_target: torch.Tensor | None = None
    displacement_target: torch.Tensor | None = None
    batch: torch.Tensor | None = None
    ptr: torch.Tensor | None = None

    def __repr__(self) -> str:
        batch = f'{self.n_graphs} graphs, ' if self.n_graphs > 1 else ''
        return f'CrystalGraph({batch}{self.num_nodes} atoms, {self.num_edges} edges)'

    @property
    def graph_of_atom(self) -> torch.Tensor:
        """(n_atoms,) int64: zeros for a single graph."""
        return torch.zeros_like(self.z) if self.batch is None else self.batch

    @property
    def starts(self) -> torch.Tensor:
        """(n_graphs + 1,) int64: `ptr`, also for a single graph."""
        if self.ptr is not None:
            return self.ptr
        return torch.tensor([0, self.num_nodes], device=self.z.device)

    @property
    def n_graphs(self) -> int:
        return self.cell.shape[0]

    @property
    def num_nodes(self) -> int:
        """Number of atoms."""
        return self.z.shape[0]

    @property
    def num_edges(self) -> int:
        return self.edge_index.shape[1]

    def targets(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Deformations (n_graphs, 3, 3) and displacements (n_atoms, 3), A, to learn."""
        if self.deformation_target is None or self.displacement_target is None:
            raise ValueError('these graphs have no targets; only those of pairs have')
        return self.deformation_target, self.displacement_target

    def edge_vectors(self) -> torch.Tensor:
        """(n_edges, 3), A: from centre to neighbour."""
        j, i = self.edge_index
        cell = self.cell.index_select(0, self.graph_of_atom.index_select(0, i))
        shift = (self.offset.unsqueeze(1) @ cell).squeeze(1)
        return self.pos.index_select(0, j) + shift - self.pos.index_select(0, i)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by name, without those that are None."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def to(self, device: torch.device | str) -> CrystalGraph:
        """The same on a device; tensors that are there already are not copied."""
        return CrystalGraph(
            **{k: tensor.to(device) for k, tensor in self.tensors().items()}
        )

    def to_dtype(self, dtype: torch.dtype) -> CrystalGraph:
        """The same with floating-point tensors of this type."""
        return CrystalGraph(
            **{
                k: tensor.to(dtype) if tensor.is_floating_point() else tensor
                for k, tensor in self.tensors().items()
            }
        )

    def clone(self) -> CrystalGraph:
        """A copy that shares no memory."""
        return CrystalGraph(**{k: tensor.clone() for k, tensor in self.tensors().items()})


def build_graph(
    numbers: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
    spec: GraphSpec,
    dtype: torch.dtype = torch.float32,
    *,
    motion: Motion | None = None,
) -> CrystalGraph:
    """The graph of a crystal that is periodic along all three vectors.

    Parameters
    ----------
    numbers : (n_atoms,) int
    positions : (n_atoms, 3), A
    cell : (3, 3), A
        Row vectors.
    spec : GraphSpec
    dtype : torch.dtype
        Of the floating-point tensors; default float32.
    motion : Motion, optional
        What may move; default everything.

    Returns
    -------
    CrystalGraph

    Examples
    --------
    >>> from ase.build import bulk
    >>> cu = bulk('Cu')
    >>> build_graph(cu.numbers, cu.positions, cu.cell, GraphSpec(cutoff=3.0)).num_edges
    12
    """
    # copies: in float64 the tensors would share the caller's memory
    positions = np.array(positions, dtype=float, order='C')
    cell = np.array(cell, dtype=float, order='C')
    cutoff = spec.cutoff * (1 - ROUNDING)
    i, j, offset = neighbor_list(positions, cell, cutoff, spec.max_neighbors)
    intra = np.zeros(len(i), dtype=bool)
    if spec.intra_neighbors is not None:
        inter = offset.any(axis=1)
        pi, pj = intra_cell_pairs(positions, spec.intra_neighbors)
        i, j = np.append(i[inter], pi), np.append(j[inter], pj)
        offset = np.concatenate([offset[inter], np.zeros((len(pi), 3), int)])
        order = np.lexsort((*offset.T[::-1], j, i))
        intra = np.append(intra[inter], np.ones(len(pi), dtype=bool))[order]
        i, j, offset = i[order], j[order], offset[order]
    motion = motion or everything_free(len(positions))
    return CrystalGraph(
        fixed=torch.from_numpy(motion.fixed.copy()),
        free_strain=torch.from_numpy(motion.free_strain.copy()).to(dtype).unsqueeze(0),
        z=torch.from_numpy(np.array(numbers, dtype=np.int64)),
        pos=torch.from_numpy(positions).to(dtype),
        cell=torch.from_numpy(cell).to(dtype).unsqueeze(0),
        edge_index=torch.from_numpy(np.stack([j, i]).astype(np.int64, copy=False)),
        offset=torch.from_numpy(offset).to(dtype),
        intra=torch.from_numpy(intra),
    )
