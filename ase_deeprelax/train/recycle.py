"""Inputs from the answers of the network in training: what its later passes meet."""

from __future__ import annotations

import numpy as np
import torch

from ase_deeprelax.data.graph import CrystalGraph
from ase_deeprelax.data.radius_edges import with_radius_edges
from ase_deeprelax.models.base import ModelOutput, RelaxationModel, moved_vectors
from ase_deeprelax.train.samples import with_input

# Atoms that are predicted to be nearer to each other than this are a mistake, A. The bond
# of a hydrogen molecule has 0.74.
CLOSEST = 0.6


def recycled(graph: CrystalGraph, model: RelaxationModel) -> CrystalGraph:
    """A batch whose inputs are a model's answers to it, with the targets that it had.

    A network that was trained on its own answers knows what is wrong with them, and the
    passes after the first one (`predict.passes`) bring more. Known from AlphaFold. A
    crystal whose answer is a wreck (`CLOSEST`) keeps its input.

    Parameters
    ----------
    graph : CrystalGraph
        With edges and targets.
    model : RelaxationModel
        Of a graph of all neighbours within a radius.
    """
    with torch.no_grad(), torch.compiler.set_stance('force_eager'):
        answer = model(graph)
        with torch.autocast(graph.pos.device.type, enabled=False):
            sane = are_sane(graph, answer)
            eye = torch.eye(3, dtype=graph.pos.dtype, device=graph.pos.device)
            deformation = torch.where(sane[:, None, None], answer.deformation, eye)
            sane = sane.index_select(0, graph.graph_of_atom).unsqueeze(1)
            displacement = torch.where(sane, answer.displacement, 0.0)
            moved = with_input(graph, displacement, deformation)
            return with_radius_edges(moved, model.spec.cutoff)


def are_sane(graph: CrystalGraph, answer: ModelOutput) -> torch.Tensor:
    """(n_graphs,) bool: all is finite, and no two atoms are closer than `CLOSEST`."""
    vectors = moved_vectors(
        graph, graph.edge_vectors(), answer.deformation, answer.displacement
    )
    lengths = torch.linalg.vector_norm(vectors, dim=1)
    near = ~(lengths > CLOSEST)  # also where the length is not a number
    graph_of_edge = graph.graph_of_atom.index_select(0, graph.edge_index[1])
    wrecked = torch.zeros(graph.n_graphs, dtype=torch.int64, device=lengths.device)
    wrecked = wrecked.index_add(0, graph_of_edge, near.long())
    finite = torch.isfinite(answer.deformation).flatten(1).all(dim=1)
    return (wrecked == 0) & finite


def is_drawn(share: float, seed: int, step: int) -> bool:
    """Whether the batch of this step is recycled; a resumed training draws the same."""
    return bool(np.random.default_rng((seed, step)).random() < share)
