"""The contract of all models: a batch of graphs in, a `ModelOutput` out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ase_deeprelax.data.graph import CrystalGraph, GraphSpec
from ase_deeprelax.models.calibration import Calibration
from ase_deeprelax.models.card import ModelCard


@dataclass(repr=False)
class ModelOutput:
    """The prediction of a network for a batch, in the frame of its graphs.

    With rows as vectors the predicted structure is ``cell @ deformation`` and
    ``(pos + displacement) @ deformation``; zeros and identity mean "already relaxed".

    Attributes
    ----------
    deformation : (n_graphs, 3, 3)
        Symmetric, positive definite.
    displacement : (n_atoms, 3), A
        At the unrelaxed cell, without rigid drift.
    bond_index : (n_bonds,) int64
        The edges of the graph that distances are predicted for (one of each i-j, j-i).
    distance : (n_bonds,), A
        Predicted relaxed distances (paper eq. 8).
    log_b : (n_bonds,)
        Log of their Laplace scales in A (paper eq. 10), within ``LOG_B_RANGE``.
    cross_index : (n_cross,) int64 or None
        Intra-cell edges with a predicted cross distance (paper's displacement head).
    cross_distance, cross_log_b : (n_cross,) or None
        Distance of the relaxed neighbour from the centre in the *strained unrelaxed*
        structure, and its scale.
    features : (n_atoms, F) or None
        Invariant features of the atoms after the last layer: how the network sees their
        surroundings.
    layers : tuple of (deformation, displacement)
        The prediction after each layer, the last one included, of a network that moves the
        structure layer by layer; else empty.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase_deeprelax.data.convert import to_graph
    >>> from ase_deeprelax.models import create_model
    >>> model = create_model('paegnn', hidden=16, layers=2)
    >>> graph, _ = to_graph(bulk('NaCl', 'rocksalt', a=5.6), model.spec)
    >>> output = model(graph)
    >>> tuple(output.deformation.shape), tuple(output.displacement.shape)
    ((1, 3, 3), (2, 3))
    """

    deformation: torch.Tensor
    displacement: torch.Tensor
    bond_index: torch.Tensor
    distance: torch.Tensor
    log_b: torch.Tensor
    cross_index: torch.Tensor | None = None
    cross_distance: torch.Tensor | None = None
    cross_log_b: torch.Tensor | None = None
    features: torch.Tensor | None = None
    layers: tuple = ()

    def __repr__(self) -> str:
        n_graphs, n_atoms = len(self.deformation), len(self.displacement)
        return (
            f'ModelOutput({n_graphs} graphs, {n_atoms} atoms, {len(self.distance)} bonds)'
        )


# One range for log b in loss and solver (the reference has two): 0.1 mA to 7 A.
LOG_B_RANGE = (-9.0, 2.0)


class RelaxationModel(nn.Module):
    """Base of all models.

    A subclass takes its hyperparameters as keyword-only arguments of ``__init__``,
    sets ``self.spec`` and implements ``forward``.

    Attributes
    ----------
    spec : GraphSpec
        The graph that it wants.
    architecture, hyperparameters : str, dict
        As `create_model` was called; they go into the config on disk.
    card : ModelCard
        What there is to know about the weights; empty for a new model.
    calibration : Calibration or None
        What is known about its errors; None for a new model.
    name, sha256 : str
        Of the weights, as `load_model` sets them; '' for a new model.

    Examples
    --------
    >>> from ase_deeprelax.models import create_model
    >>> model = create_model('egnn', hidden=16)
    >>> isinstance(model, RelaxationModel), model.architecture, model.spec.cutoff
    (True, 'egnn', 5.0)
    """

    spec: GraphSpec
    architecture: str = ''
    hyperparameters: dict[str, Any] = {}  # noqa: RUF012 - replaced, never changed
    card: ModelCard = ModelCard()
    calibration: Calibration | None = None
    name: str = ''
    sha256: str = ''

    def __repr__(self) -> str:
        n = sum(parameter.numel() for parameter in self.parameters())
        name = f'{self.name!r}, ' if self.name else ''
        cutoff = f'cutoff {self.spec.cutoff:g} A' if hasattr(self, 'spec') else 'no spec'
        return f'{type(self).__name__}({name}{n:,} parameters, {cutoff})'

    def __str__(self) -> str:
        """All layers, as torch prints them."""
        return super().__repr__()

    def forward(self, graph: CrystalGraph) -> ModelOutput:
        """Predict for a batch of graphs, see `CrystalGraph` and `ModelOutput`."""
        raise NotImplementedError


def relaxed_structure(
    graph: CrystalGraph, deformation: torch.Tensor, displacement: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells (n_graphs, 3, 3) and positions (n_atoms, 3) that a relaxation leads to, A."""
    pos = apply_deformation(graph.pos + displacement, deformation, graph.graph_of_atom)
    return graph.cell @ deformation, pos


def apply_deformation(
    vectors: torch.Tensor, deformation: torch.Tensor, graph_of_atom: torch.Tensor
) -> torch.Tensor:
    """Rows ``vectors`` (n, 3) times the deformation of their graph."""
    return (vectors.unsqueeze(1) @ deformation.index_select(0, graph_of_atom)).squeeze(1)


def moved_vectors(
    graph: CrystalGraph,
    vectors: torch.Tensor,
    deformation: torch.Tensor,
    displacement: torch.Tensor,
) -> torch.Tensor:
    """(n_edges, 3): edge vectors of the input, A, after displacement and deformation."""
    j, i = graph.edge_index
    moved = displacement.index_select(0, j) - displacement.index_select(0, i)
    graph_of_edge = graph.graph_of_atom.index_select(0, i)
    return apply_deformation(vectors + moved, deformation, graph_of_edge)
