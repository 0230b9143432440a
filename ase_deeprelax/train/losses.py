"""The loss, eqs. 11-15, with the corrections that the read-outs need."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ase_deeprelax.data.graph import CrystalGraph
from ase_deeprelax.models.base import ModelOutput, apply_deformation, moved_vectors
from ase_deeprelax.models.layers import mean_over_atoms

if TYPE_CHECKING:
    from ase_deeprelax.train.config import Loss

# Scale of distances where none is learned, A: the usual error.
FIXED_SCALE = 0.05
# Added to scales of distances, A. Distances between atoms that cannot move are known to the
# last digit: without it, their gradients, one over the scale, are 50 times those of all
# other terms together, and the limit on the gradient shrinks these.
FINEST_SCALE = 0.005


def laplace_nll(
    distance: torch.Tensor, log_b: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """Negative log-likelihood of a Laplace distribution, eqs. 11-12; mean over edges.

    The scale of the distribution is ``exp(log_b) + FINEST_SCALE``.
    """
    if not len(target):
        return distance.sum()  # one-atom cells have no intra-cell pairs: a zero, not NaN
    scale = log_b.exp() + FINEST_SCALE
    return ((distance - target).abs() / scale + scale.log()).mean() + math.log(2)


def relaxation_loss(
    graph: CrystalGraph, prediction: ModelOutput, weights: Loss
) -> dict[str, torch.Tensor]:
    """The terms of the loss and their weighted sum.

    Where a network says a structure after each layer, the terms of the structure are means
    over its layers (E3Relax-H2's layer-wise supervision).

    The lattice term (eq. 14) is the Frobenius norm of the cell's error rather than the
    sum of its nine absolute values, the displacement term the Euclidean norm: neither
    depends on the orientation of the crystal.

    Parameters
    ----------
    graph : CrystalGraph
        With ``deformation_target`` (n_graphs, 3, 3) and ``displacement_target``
        (n_atoms, 3), A.
    prediction : ModelOutput
    weights : train.config.Loss

    Returns
    -------
    dict of str to scalar tensor
        The terms by name, and ``'loss'``.
    """
    structures = prediction.layers or ((prediction.deformation, prediction.displacement),)
    lattice, volume, displacement = (
        torch.stack(terms).mean()
        for terms in zip(
            *(structure_terms(graph, *layer) for layer in structures), strict=True
        )
    )
    distances = target_distances(graph, prediction.bond_index)
    terms = {
        'distance': distance_term(
            prediction.distance, prediction.log_b, distances, weights
        ),
        'lattice': lattice,
        'volume': volume,
        'displacement': displacement,
    }
    cross = cross_distances(prediction)
    if cross is not None:
        edges, distance, log_b = cross
        target = target_cross_distances(graph, edges)
        terms['cross_distance'] = distance_term(distance, log_b, target, weights)
    terms['loss'] = sum(getattr(weights, name) * value for name, value in terms.items())
    return terms


def distance_term(
    distance: torch.Tensor, log_b: torch.Tensor, target: torch.Tensor, weights: Loss
) -> torch.Tensor:
    """Likelihood of the distances, or, with ``scales`` off, that of one fixed scale, so
    that both weigh alike (the paper's ablation without data uncertainty).
    """
    if not weights.scales:
        log_b = torch.full_like(log_b, math.log(FIXED_SCALE))
    return laplace_nll(distance, log_b, target)


def cross_distances(
    prediction: ModelOutput,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Edges, distances and log scales of cross distances; None of a model without them."""
    index, distance = prediction.cross_index, prediction.cross_distance
    if index is None:
        return None
    if distance is None or prediction.cross_log_b is None:
        raise ValueError(
            'the model gives cross_index without cross_distance and cross_log_b; it must '
            'give all three of them, or none'
        )
    return index, distance, prediction.cross_log_b


def structure_terms(
    graph: CrystalGraph, deformation: torch.Tensor, displacement: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lattice, volume and displacement terms of one predicted structure."""
    target, displacement_target = graph.targets()
    error = graph.cell @ (deformation - target)
    volume = torch.logdet(deformation) - torch.logdet(target)
    missing = nearest_image(displacement - displacement_target, graph)
    # A mean over atoms, then over crystals: large cells do not outweigh small ones.
    drop = mean_over_atoms(missing.square().sum(1).add(1e-10).sqrt(), graph)
    return error.flatten(1).norm(dim=1).mean() / 3, volume.abs().mean(), drop.mean()


def nearest_image(difference: torch.Tensor, graph: CrystalGraph) -> torch.Tensor:
    """Differences between positions, (n_atoms, 3) in A, in their nearest periodic image.

    E3Relax-H2's periodicity-aware displacement loss: the image is chosen among those next
    to the one that rounding finds and is not differentiated, so that the gradient is that
    of the wrapped difference.
    """
    cell = graph.cell.index_select(0, graph.graph_of_atom)
    with torch.no_grad():
        whole = torch.linalg.solve(cell.mT, difference.unsqueeze(2)).squeeze(2).round()
        steps = torch.arange(-1.0, 2.0, dtype=cell.dtype, device=cell.device)
        near = torch.cartesian_prod(steps, steps, steps)
        # The input's own image first: among equals it wins.
        near = near[near.abs().sum(1).argsort(stable=True)]
        shifts = (near.unsqueeze(0) - whole.unsqueeze(1)) @ cell
        lengths = (difference.unsqueeze(1) + shifts).square().sum(2)
        best = lengths.argmin(dim=1)[:, None, None].expand(-1, 1, 3)
        shift = shifts.gather(1, best).squeeze(1)
    return difference + shift


def target_distances(graph: CrystalGraph, edges: torch.Tensor) -> torch.Tensor:
    """Relaxed distances of the given edges, A."""
    vectors = moved_vectors(graph, graph.edge_vectors(), *graph.targets())
    return vectors.index_select(0, edges).norm(dim=1)


def target_cross_distances(graph: CrystalGraph, edges: torch.Tensor) -> torch.Tensor:
    """Distances of relaxed neighbours from the centres of the *strained* input, A.

    The paper takes the unrelaxed centre; that distance changes when the origin is moved.
    """
    deformation, displacement = graph.targets()
    j, i = graph.edge_index.index_select(1, edges)
    vectors = graph.edge_vectors().index_select(0, edges)
    vectors = vectors + displacement.index_select(0, j)
    graph_of_edge = graph.graph_of_atom.index_select(0, i)
    return apply_deformation(vectors, deformation, graph_of_edge).norm(dim=1)
