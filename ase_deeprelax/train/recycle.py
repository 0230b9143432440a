"""Inputs from the answers of the network in training: what its later passes meet."""

from __future__ import annotations

import random

import torch

from ase_deeprelax.data.graph import CrystalGraph
from ase_deeprelax.data.radius_edges import with_radius_edges
from ase_deeprelax.models.base import RelaxationModel
from ase_deeprelax.train.samples import with_input


def recycled(graph: CrystalGraph, model: RelaxationModel) -> CrystalGraph:
    """A batch whose inputs are a model's answers to it, with the targets that it had.

    A network that was trained on its own answers knows what is wrong with them, and the
    passes after the first one (`predict.passes`) bring more. Known from AlphaFold.

    Parameters
    ----------
    graph : CrystalGraph
        With targets.
    model : RelaxationModel
        Of a graph of all neighbours within a radius.
    """
    with torch.no_grad(), torch.compiler.set_stance('force_eager'):
        answer = model(graph)
        with torch.autocast(graph.pos.device.type, enabled=False):
            moved = with_input(graph, answer.displacement, answer.deformation)
            return with_radius_edges(moved, model.spec.cutoff)


def is_drawn(share: float, seed: int, step: int) -> bool:
    """Whether the batch of this step is recycled; a resumed training draws the same."""
    return random.Random(f'{seed} {step}').random() < share
