"""The contract of all models: a batch of graphs in, a `ModelOutput` out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ase_deeprelax.data.graph import CrystalGraph, GraphSpec
from ase_deeprelax.errors import ModelError
from ase_deeprelax.models.calibration import Calibration
from ase_deeprelax.models.card import ModelCard
from ase_deeprelax.models.topology import Topology, topology


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


# Fields that every output has, and fields that it may have: all three or none.
FIELDS = ('deformation', 'displacement', 'bond_index', 'distance', 'log_b')
CROSS_FIELDS = ('cross_index', 'cross_distance', 'cross_log_b')

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


class GraphNetwork(RelaxationModel):
    """Base of the models whose operations have shapes that the topology tells.

    A subclass implements ``predict`` without operations whose shapes depend on values, so
    that an `Ensemble` finds the topology once for all members, and `models.compiled` can
    compile it.
    """

    def forward(self, graph: CrystalGraph, found: Topology | None = None) -> ModelOutput:
        """Predict for a batch of graphs, see `CrystalGraph` and `ModelOutput`.

        Its topology is found here where it is not given.
        """
        return self.predict(graph, topology(graph) if found is None else found)

    def predict(self, graph: CrystalGraph, topology: Topology) -> ModelOutput:
        """The same with the topology of the graph."""
        raise NotImplementedError


def takes_topology(model: nn.Module) -> bool:
    """Whether a model is a `GraphNetwork` that has no ``forward`` of its own."""
    return isinstance(model, GraphNetwork) and type(model).forward is GraphNetwork.forward


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


def check_output(model: RelaxationModel, graph: CrystalGraph, output: Any) -> None:
    """Refuse what is no answer to a batch of graphs, before numbers are taken from it.

    Values are not looked at, but for the numbers of edges.

    Parameters
    ----------
    model : RelaxationModel
        Its class is named in the message.
    graph : CrystalGraph
        The batch.
    output
        What the model returned for it.

    Raises
    ------
    ModelError
        It is no `ModelOutput`, a field is missing, of another shape or no tensor, or an
        edge is not one of the batch.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase_deeprelax.data.convert import to_graph
    >>> from ase_deeprelax.models import create_model
    >>> model = create_model('egnn', hidden=16, layers=1)
    >>> graph, _ = to_graph(bulk('NaCl', 'rocksalt', a=5.6), model.spec)
    >>> check_output(model, graph, model(graph))
    """
    who = f'the model {type(model).__name__}'
    if not isinstance(output, ModelOutput):
        raise ModelError(f'{who} returned {type(output).__name__}, not ModelOutput')
    fields = _given(output)
    for name, value in fields.items():
        if not isinstance(value, torch.Tensor):
            kind = type(value).__name__
            raise ModelError(f'{who} returned {name} as {kind}; it must be a tensor')
    n_atoms, n_bonds = len(graph.pos), output.bond_index.numel()
    n_cross = fields['cross_index'].numel() if 'cross_index' in fields else 0
    shapes = {
        'deformation': (graph.n_graphs, 3, 3),
        'displacement': (n_atoms, 3),
        'features': (n_atoms, *np.shape(output.features)[1:2]),
        **dict.fromkeys(CROSS_FIELDS, (n_cross,)),
    }
    # Under autocast torch chooses the types, and not the model.
    free = torch.is_autocast_enabled(graph.pos.device.type)
    for name, value in fields.items():
        shape = shapes.get(name, (n_bonds,))
        if value.shape != shape:
            raise ModelError(
                f'{who} returned {name} of shape {tuple(value.shape)}; for '
                f'{graph.n_graphs} graphs of {n_atoms} atoms and {n_bonds} bonds it must '
                f'be {shape}'
            )
        if name.endswith('_index'):
            _check_edges(f'{who} returned {name}', value, graph.num_edges)
        elif value.dtype != graph.pos.dtype and not free:
            raise ModelError(
                f'{who} returned {name} of type {value.dtype}; it must be '
                f'{graph.pos.dtype}, as graph.pos is'
            )


def _given(output: ModelOutput) -> dict[str, Any]:
    """The fields that every output has, and those of the others that are given."""
    names = [*FIELDS]
    if any(getattr(output, name) is not None for name in CROSS_FIELDS):
        names += CROSS_FIELDS
    if output.features is not None:
        names.append('features')
    return {name: getattr(output, name) for name in names}


def _check_edges(what: str, index: torch.Tensor, n_edges: int) -> None:
    """Refuse edges that do not exist: a GPU would be of no more use to this process."""
    if index.dtype not in (torch.int64, torch.int32):
        raise ModelError(f'{what} of type {index.dtype}; it must be torch.int64')
    if not len(index):
        return
    low, high = torch.stack(torch.aminmax(index)).tolist()
    if low < 0 or high >= n_edges:
        raise ModelError(
            f'{what} with the edge {low if low < 0 else high}; the edges of this batch are '
            f'numbered from 0 to {n_edges - 1}'
        )
