"""The one contract of all models: a batch of graphs in, a ModelOutput out."""

from dataclasses import dataclass

import torch
from torch import nn

from ase_deeprelax.data.graph import GraphSpec


@dataclass
class ModelOutput:
    """What a network says about a batch, in the frame of its graphs.

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
    anchor_index : (n_anchors,) int64 or None
        Intra-cell edges with a predicted cross distance (paper's displacement head).
    anchor_distance, anchor_log_b : (n_anchors,) or None
        Distance of the relaxed neighbour from the centre in the *strained unrelaxed*
        structure, and its scale.
    layers : tuple of (deformation, displacement)
        What a network says after each of its layers, the last one included, where it moves
        the structure as it goes; else empty.
    """

    deformation: torch.Tensor
    displacement: torch.Tensor
    bond_index: torch.Tensor
    distance: torch.Tensor
    log_b: torch.Tensor
    anchor_index: torch.Tensor | None = None
    anchor_distance: torch.Tensor | None = None
    anchor_log_b: torch.Tensor | None = None
    layers: tuple = ()


# One range for log b in loss and solver (the reference has two): 0.1 mA to 7 A.
LOG_B_RANGE = (-9.0, 2.0)


class RelaxationModel(nn.Module):
    """Base of all models.

    A subclass takes its hyperparameters as keyword-only arguments of ``__init__``,
    sets ``self.spec`` (the graph it wants) and implements ``forward``. ``hyperparameters``
    is filled by ``create_model`` and goes into the weights' config.
    """

    spec: GraphSpec

    def forward(self, graph) -> ModelOutput:
        raise NotImplementedError


def relaxed_structure(graph, deformation, displacement):
    """Cells (n_graphs, 3, 3) and positions (n_atoms, 3) that a relaxation leads to, A."""
    pos = apply_deformation(graph.pos + displacement, deformation, graph.graph_of_atom)
    return graph.cell @ deformation, pos


def apply_deformation(vectors, deformation, graph_of_atom):
    """Rows ``vectors`` (n, 3) times the deformation of their graph."""
    return (vectors.unsqueeze(1) @ deformation.index_select(0, graph_of_atom)).squeeze(1)


def moved_vectors(graph, vectors, deformation, displacement):
    """(n_edges, 3): edge vectors of the input, A, after displacement and deformation."""
    j, i = graph.edge_index
    moved = displacement.index_select(0, j) - displacement.index_select(0, i)
    graph_of_edge = graph.graph_of_atom.index_select(0, i)
    return apply_deformation(vectors + moved, deformation, graph_of_edge)
