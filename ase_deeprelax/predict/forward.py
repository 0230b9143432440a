"""Network and distance geometry for a batch of graphs, in the frames of the graphs."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch

from ase_deeprelax.data.graph import CrystalGraph
from ase_deeprelax.models.base import (
    ModelOutput,
    RelaxationModel,
    apply_deformation,
    check_output,
    relaxed_structure,
)
from ase_deeprelax.models.heads import free_displacement
from ase_deeprelax.predict.edg_solver import solve_edg
from ase_deeprelax.predict.forks import make_forks_safe
from ase_deeprelax.predict.uncertainty import aggregate

DTYPES = {'float32': torch.float32, 'float64': torch.float64}
# Deformations whose entries differ by more than this from those across the diagonal are not
# symmetric: single precision makes 1e-6.
SKEW = 1e-4


@dataclass(frozen=True, eq=False)
class StructureOutput:
    """What network and solver found for one graph.

    Attributes
    ----------
    finite : bool
        False where the network returned numbers that are not finite, or a deformation that
        is not symmetric and positive definite; the other fields then mean "nothing moves".
    deformation : (3, 3)
    displacement : (n_atoms, 3), A
        At the unrelaxed cell, without rigid drift.
    sigma : float, A
    sigma_atoms : (n_atoms,), A
    bonds : (2, n_bonds) int64
        Centre and neighbour.
    offsets : (n_bonds, 3) int64
        Lattice translations of the neighbours.
    sigma_bonds : (n_bonds,), A
    residual : float, A
        Mean violation of the distance bounds.
    features : (n_atoms, F) or None
        Invariant features of the atoms, see `ModelOutput`.
    """

    finite: bool
    deformation: np.ndarray
    displacement: np.ndarray
    sigma: float
    sigma_atoms: np.ndarray
    bonds: np.ndarray
    offsets: np.ndarray
    sigma_bonds: np.ndarray
    residual: float
    features: np.ndarray | None


@torch.inference_mode()
def run_model(
    model: RelaxationModel, batch: CrystalGraph
) -> tuple[list[StructureOutput], dict[str, float]]:
    """Run network and solver on a batch of graphs.

    Parameters
    ----------
    model : RelaxationModel
        In eval mode.
    batch : CrystalGraph
        On the device of the model.

    Returns
    -------
    outputs : list of StructureOutput
        In the order of the graphs.
    seconds : dict
        Wall time of 'network' and 'solver'.

    Raises
    ------
    ModelError
        What the model returned is no answer to this batch, see `check_output`.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase_deeprelax.data.batching import collate
    >>> from ase_deeprelax.data.convert import to_graph
    >>> from ase_deeprelax.models import create_model
    >>> model = create_model('paegnn', hidden=16, layers=1).eval()
    >>> graph, _ = to_graph(bulk('Cu'), model.spec)
    >>> outputs, seconds = run_model(model, collate([graph]))
    >>> outputs[0].deformation.shape, outputs[0].displacement.shape
    ((3, 3), (1, 3))
    """
    make_forks_safe()
    device, n_graphs = batch.pos.device, batch.n_graphs
    start = perf_counter()
    prediction = model(batch)
    check_output(model, batch, prediction)
    finite = _make_finite(batch, prediction)
    middle = _now(device)
    edges = batch.edge_index.index_select(1, prediction.bond_index)
    offsets = batch.offset.index_select(0, prediction.bond_index)
    displacement, residual = _solve(batch, prediction, edges, offsets)
    centre, bonds = edges[1], edges.flip(0)
    sigma_bonds = prediction.log_b.exp()
    graph_of_atom = batch.graph_of_atom
    sigma_atoms, sigma = aggregate(sigma_bonds, bonds, graph_of_atom, n_graphs)
    graph_of_bond = graph_of_atom.index_select(0, centre)
    atoms = batch.starts[1:-1].tolist()
    counts = torch.bincount(graph_of_bond, minlength=n_graphs)
    ends = counts.cumsum(0)[:-1].tolist()
    bonds = (bonds - batch.starts.index_select(0, graph_of_bond)).cpu().numpy()
    offsets = offsets.long().cpu().numpy()
    features = prediction.features
    fields = zip(
        finite.tolist(),
        _array(prediction.deformation),
        np.split(_array(displacement), atoms),
        sigma.tolist(),
        np.split(_array(sigma_atoms), atoms),
        np.split(bonds, ends, axis=1),
        np.split(offsets, ends),
        np.split(_array(sigma_bonds), ends),
        residual.tolist(),
        n_graphs * [None] if features is None else np.split(_array(features), atoms),
        strict=True,
    )
    outputs = [StructureOutput(*values) for values in fields]
    seconds = {'network': middle - start, 'solver': perf_counter() - middle}
    return outputs, seconds


def _make_finite(batch: CrystalGraph, prediction: ModelOutput) -> torch.Tensor:
    """Which structures got usable numbers; the others become "nothing moves", in place.

    Numbers that are not finite would otherwise stop the linear algebra of the whole batch.
    """
    index, deformation = batch.graph_of_atom, prediction.deformation
    # One number of each structure, which is finite where all of its numbers are.
    total = deformation.sum((1, 2)).index_add_(0, index, prediction.displacement.sum(1))
    terms = [
        ('bond_index', 'distance', 'log_b'),
        ('cross_index', 'cross_distance', 'cross_log_b'),
    ]
    graphs = []
    for names in terms:
        chosen, distance, log_b = (getattr(prediction, name) for name in names)
        if chosen is None:
            continue
        graphs.append(index.index_select(0, batch.edge_index[1].index_select(0, chosen)))
        total.index_add_(0, graphs[-1], distance + log_b + log_b.exp())
    good = torch.isfinite(total) & _are_stretches(deformation)
    if bool(good.all()):
        return good
    eye = torch.eye(3, dtype=deformation.dtype, device=deformation.device)
    prediction.deformation = torch.where(good[:, None, None], deformation, eye)
    keep = good.index_select(0, index)[:, None]
    prediction.displacement = torch.where(keep, prediction.displacement, 0.0)
    for (_, *names), graph_of_bond in zip(terms, graphs, strict=False):
        keep = good.index_select(0, graph_of_bond)
        for name, value in zip(names, (1.0, 0.0), strict=True):
            setattr(prediction, name, torch.where(keep, getattr(prediction, name), value))
    return good


def _are_stretches(deformation: torch.Tensor) -> torch.Tensor:
    """(n_graphs,) bool: which matrices (n_graphs, 3, 3) are symmetric, positive definite.

    All upper left determinants of these are positive; eigenvalues would take longer.
    """
    skew = (deformation - deformation.mT).abs().amax((1, 2))
    minors = [torch.linalg.det(deformation[:, :n, :n]) > 0 for n in (1, 2, 3)]
    return (skew < SKEW) & minors[0] & minors[1] & minors[2]


def _solve(
    batch: CrystalGraph,
    prediction: ModelOutput,
    edges: torch.Tensor,
    offsets: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """From the read-out on to positions within the bounds ``d +- b`` (eqs. 16-20).

    Displacements (n_atoms, 3) at the unrelaxed cell, in float64, and residuals (n_graphs,).
    """
    cell, pos = relaxed_structure(batch, prediction.deformation, prediction.displacement)
    width = prediction.log_b.exp()
    anchors: dict[str, Any] = {}
    index, distance = prediction.cross_index, prediction.cross_distance
    if index is not None and distance is not None and prediction.cross_log_b is not None:
        anchor_width = prediction.cross_log_b.exp()
        anchors = {
            'anchor_index': batch.edge_index.index_select(1, index),
            'anchor_pos': apply_deformation(
                batch.pos, prediction.deformation, batch.graph_of_atom
            ),
            'anchor_lower': (distance - anchor_width).clamp(min=0),
            'anchor_upper': distance + anchor_width,
        }
    solution = solve_edg(
        pos,
        cell,
        batch.graph_of_atom,
        edges,
        offsets,
        (prediction.distance - width).clamp(min=0),
        prediction.distance + width,
        fixed=batch.fixed,
        **anchors,
    )
    displacement = prediction.displacement.double()
    if solution.steps:
        back = torch.linalg.inv(prediction.deformation.double())
        move = solution.pos.double() - pos.double()
        move = apply_deformation(move, back, batch.graph_of_atom)
        displacement = displacement + free_displacement(move, batch)
    return displacement, solution.residual


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()


def _now(device: torch.device) -> float:
    """Time at which the device has finished its work, s."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return perf_counter()
