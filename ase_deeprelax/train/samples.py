"""Pairs as tensors: many crystals at once, of which any can be drawn as a batch.

A pair is written as its input, and as the displacements and the deformation that lead from
there to the relaxed structure: ``cell @ deformation`` and ``(pos + displacement) @
deformation``. `with_input` gives the same relaxed structure another input; all changes of
inputs in training (`train.augment`, `train.recycle`) are made of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.linalg import polar

from ase_deeprelax.data.batching import PER_ATOM, PER_GRAPH, collate, counted
from ase_deeprelax.data.convert import LAYER_MARGIN
from ase_deeprelax.data.graph import CrystalGraph, GraphSpec
from ase_deeprelax.data.pair import FLAT, GROWTH, Pair
from ase_deeprelax.geometry.lattice import compact
from ase_deeprelax.models.base import apply_deformation
from ase_deeprelax.models.heads import free_displacement, project_strains, stretch_of
from ase_deeprelax.models.layers import mean_over_atoms


@dataclass(frozen=True, eq=False)
class Samples:
    """Pairs, or relaxed structures as pairs of themselves, as tensors.

    Attributes
    ----------
    graph : CrystalGraph
        All of them, in double precision, without edges. Displacements of layers hold what
        their thickness changes by, see `fit_thickness`.
    normal : (n_graphs, 3)
        Unit vector across a layer; zeros for crystals.
    scale : (n_graphs,)
        See `Pair`.
    simple : (n_graphs,) bool
        See `augment.is_simple`.
    """

    graph: CrystalGraph
    normal: torch.Tensor
    scale: torch.Tensor
    simple: torch.Tensor

    def __len__(self) -> int:
        return self.graph.n_graphs

    def draw(self, index: torch.Tensor) -> Samples:
        """The samples with these numbers, (n,) int64, in this order, also repeatedly."""
        graph, starts = self.graph, self.graph.starts
        counts = starts.diff().index_select(0, index)
        batch, nth = counted(counts)
        ptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        atoms = nth + starts.index_select(0, index).index_select(0, batch)
        parts = graph.tensors() | {'batch': batch, 'ptr': ptr}
        for names, rows in ((PER_ATOM, atoms), (PER_GRAPH, index)):
            parts |= {name: parts[name].index_select(0, rows) for name in names}
        others = (self.normal, self.scale, self.simple)
        return Samples(CrystalGraph(**parts), *(x.index_select(0, index) for x in others))


def to_samples(
    pairs: Sequence[Pair], spec: GraphSpec, simple: Sequence[bool] | None = None
) -> Samples:
    """Pairs as tensors.

    Parameters
    ----------
    pairs : sequence of Pair
        At least one.
    spec : GraphSpec
        The boxes of layers are made high enough for it.
    simple : sequence of bool, optional
        Default none.
    """
    graphs, normals = zip(*(_graph(pair, spec) for pair in pairs), strict=True)
    return Samples(
        collate(graphs),
        torch.from_numpy(np.array(normals)),
        torch.tensor([pair.scale for pair in pairs], dtype=torch.float64),
        torch.tensor([False] * len(pairs) if simple is None else list(simple)),
    )


def _graph(pair: Pair, spec: GraphSpec) -> tuple[CrystalGraph, np.ndarray]:
    """A pair without edges in the axes of its file, and the normal of its layer."""
    atoms, layer, motion = pair.unrelaxed, pair.layer, pair.motion()
    given = atoms.positions, atoms.cell.array
    normal = np.zeros(3)
    if layer is not None:
        # Room for a layer that gets thicker, in training and by a prediction.
        given = layer.standard_box(atoms, spec.cutoff + 2 * LAYER_MARGIN)
        normal = layer.normal
    positions, cell, _ = compact(*given)
    _, deformation = polar(np.linalg.solve(pair.cell0, pair.cell1), side='left')
    displacement = (pair.frac1 - pair.frac0) @ pair.cell0
    graph = CrystalGraph(
        z=torch.from_numpy(np.array(pair.numbers, dtype=np.int64)),
        pos=torch.from_numpy(positions),
        cell=torch.from_numpy(cell)[None],
        edge_index=torch.zeros(2, 0, dtype=torch.int64),
        offset=torch.zeros(0, 3, dtype=torch.float64),
        intra=torch.zeros(0, dtype=torch.bool),
        fixed=torch.from_numpy(motion.fixed.copy()),
        free_strain=torch.from_numpy(motion.free_strain)[None],
        deformation_target=torch.from_numpy(deformation)[None],
        displacement_target=torch.from_numpy(displacement),
    )
    return graph, normal


def with_input(
    graph: CrystalGraph, displacement: torch.Tensor, deformation: torch.Tensor
) -> CrystalGraph:
    """Pairs with other inputs and the relaxed structures that they had.

    The new inputs are ``cell @ deformation`` and ``(pos + displacement) @ deformation``.
    With rows as vectors, the inverse of ``deformation`` times the old target is a pure
    stretch, which is the new target, times a rotation, which is left out.

    Parameters
    ----------
    graph : CrystalGraph
        With targets.
    displacement : (n_atoms, 3), A
    deformation : (n_graphs, 3, 3)

    Returns
    -------
    CrystalGraph
        Its edges are those of the old input.
    """
    of_atom = graph.graph_of_atom
    deformation_target, displacement_target = graph.targets()
    inverse, _ = torch.linalg.inv_ex(deformation.double())
    stretch = stretch_of(inverse @ deformation_target.double())
    rest = displacement_target - displacement
    return replace(
        graph,
        cell=graph.cell @ deformation,
        pos=apply_deformation(graph.pos + displacement, deformation, of_atom),
        deformation_target=stretch.to(graph.pos.dtype),
        displacement_target=apply_deformation(rest, deformation, of_atom),
    )


def fit_thickness(samples: Samples) -> CrystalGraph:
    """The pairs with targets as a network gives them, see `Pair.targets`.

    Where a layer may get thicker, the stretch that fits the heights of its atoms best
    becomes a part of the deformation. Rigid drifts are taken away.
    """
    graph, normal = samples.graph, samples.normal
    of_atom, (deformation, u) = graph.graph_of_atom, graph.targets()
    across = normal.unsqueeze(2) * normal.unsqueeze(1)
    free = (project_strains(graph.free_strain, across) * across).sum((1, 2)) > 0.5
    n = normal.index_select(0, of_atom)
    columns = torch.stack([(graph.pos * n).sum(1), (u * n).sum(1)], dim=1)
    columns = columns - mean_over_atoms(columns, graph).index_select(0, of_atom)
    heights, rise = columns.unbind(1)
    spread, fit = mean_over_atoms(columns * heights.unsqueeze(1), graph).unbind(1)
    free = free & (spread > FLAT**2)
    growth = torch.where(free, (fit / spread.clamp(min=1e-6)).clamp(*GROWTH), 0.0)
    g = growth.index_select(0, of_atom)
    # At the unrelaxed thickness:  h + u = (h + rise) / (1 + growth).
    rest = torch.where(g == 0, 0.0, (heights + rise) / (1 + g) - heights - rise)
    return replace(
        graph,
        deformation_target=deformation + growth[:, None, None] * across,
        displacement_target=free_displacement(u + rest.unsqueeze(1) * n, graph),
    )
