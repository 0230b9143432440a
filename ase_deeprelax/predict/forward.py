"""Network and distance geometry for a batch of graphs, in the frames of the graphs."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch

from ase_deeprelax.data.graph import CrystalGraph
from ase_deeprelax.errors import DeviceError, ModelError
from ase_deeprelax.models.base import (
    ModelOutput,
    RelaxationModel,
    apply_deformation,
    relaxed_structure,
)
from ase_deeprelax.models.heads import free_displacement
from ase_deeprelax.predict.edg_solver import EDGSolution, solve_edg
from ase_deeprelax.predict.forks import make_forks_safe
from ase_deeprelax.predict.uncertainty import aggregate

DTYPES = {'float32': torch.float32, 'float64': torch.float64}
# Edges per batch: on a CPU enough for operations of some size (the network takes 1.1 to
# 1.2 ms for a crystal of 7.5 atoms with 5,000 to 20,000, and 1.5 ms with 2,000), on a GPU
# what keeps it busy.
BATCH_EDGES = {'cpu': 10_000, 'cuda': 1_000_000}
# How memory shortage reads where it is not a class of its own.
OUT_OF_MEMORY = (
    'out of memory',
    "can't allocate memory",
    'Failed to allocate',
    'bad_alloc',
)


@dataclass(frozen=True, eq=False)
class StructureOutput:
    """What network and solver found for one graph.

    Attributes
    ----------
    finite : bool
        False where the network returned numbers that cannot be used; the other fields
        then mean "nothing moves".
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
        The model returned something else than a `ModelOutput` for this batch.

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
    _check_output(model, batch, prediction)
    finite = _make_finite(batch, prediction)
    middle = _now(device)
    solution = _solve(batch, prediction)
    displacement = _displacement(batch, prediction, solution.pos)
    neighbour, centre = batch.edge_index.index_select(1, prediction.bond_index)
    bonds = torch.stack([centre, neighbour])
    sigma_bonds = prediction.log_b.exp()
    graph_of_atom = batch.graph_of_atom
    sigma_atoms, sigma = aggregate(sigma_bonds, bonds, graph_of_atom, n_graphs)
    graph_of_bond = graph_of_atom.index_select(0, centre)
    atoms = batch.starts[1:-1].tolist()
    counts = torch.bincount(graph_of_bond, minlength=n_graphs)
    edges = counts.cumsum(0)[:-1].tolist()
    bonds = (bonds - batch.starts.index_select(0, graph_of_bond)).cpu().numpy()
    offsets = batch.offset.index_select(0, prediction.bond_index).long().cpu().numpy()
    features = prediction.features
    fields = zip(
        finite.tolist(),
        _array(prediction.deformation),
        np.split(_array(displacement), atoms),
        sigma.tolist(),
        np.split(_array(sigma_atoms), atoms),
        np.split(bonds, edges, axis=1),
        np.split(offsets, edges),
        np.split(_array(sigma_bonds), edges),
        solution.residual.tolist(),
        n_graphs * [None] if features is None else np.split(_array(features), atoms),
        strict=True,
    )
    outputs = [StructureOutput(*values) for values in fields]
    seconds = {'network': middle - start, 'solver': perf_counter() - middle}
    return outputs, seconds


def _check_output(model: RelaxationModel, batch: CrystalGraph, output: Any) -> None:
    """Refuse what is no answer to a batch, before numbers are taken from it."""
    who = f'the model {type(model).__name__}'
    if not isinstance(output, ModelOutput):
        raise ModelError(f'{who} returned {type(output).__name__}, not ModelOutput')
    n_bonds = len(output.bond_index)
    for name, shape in (
        ('deformation', (batch.n_graphs, 3, 3)),
        ('displacement', tuple(batch.pos.shape)),
        ('distance', (n_bonds,)),
        ('log_b', (n_bonds,)),
    ):
        found = tuple(getattr(output, name).shape)
        if found != shape:
            raise ModelError(
                f'{who} returned {name} of shape {found}; for {batch.n_graphs} graphs of '
                f'{len(batch.pos)} atoms and {n_bonds} bonds it must be {shape}'
            )


def _make_finite(batch: CrystalGraph, prediction: ModelOutput) -> torch.Tensor:
    """Which structures got usable numbers; the others become "nothing moves", in place.

    Numbers that are not finite would otherwise stop the linear algebra of the whole batch.
    """
    index, edges = batch.graph_of_atom, batch.edge_index
    values = torch.linalg.det(prediction.deformation)
    good = torch.isfinite(prediction.deformation).flatten(1).all(1) & (values > 0)
    bad_atoms = ~torch.isfinite(prediction.displacement).all(1)
    good[index[bad_atoms]] = False
    for names in (
        ('bond_index', 'distance', 'log_b'),
        ('cross_index', 'cross_distance', 'cross_log_b'),
    ):
        chosen, distance, log_b = (getattr(prediction, name) for name in names)
        if chosen is None:
            continue
        bad = ~(
            torch.isfinite(distance) & torch.isfinite(log_b) & torch.isfinite(log_b.exp())
        )
        good[index[edges[0, chosen[bad]]]] = False
        setattr(prediction, names[1], torch.where(bad, 1.0, distance))
        setattr(prediction, names[2], torch.where(bad, 0.0, log_b))
    eye = torch.eye(3, dtype=values.dtype, device=values.device)
    prediction.deformation = torch.where(good[:, None, None], prediction.deformation, eye)
    keep = good.index_select(0, index)[:, None]
    prediction.displacement = torch.where(keep, prediction.displacement, 0.0)
    return good


def _solve(batch: CrystalGraph, prediction: ModelOutput) -> EDGSolution:
    """Positions within the bounds ``d +- b`` (eqs. 16-20), from the read-out on."""
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
    return solve_edg(
        pos,
        cell,
        batch.graph_of_atom,
        batch.edge_index.index_select(1, prediction.bond_index),
        batch.offset.index_select(0, prediction.bond_index),
        (prediction.distance - width).clamp(min=0),
        prediction.distance + width,
        fixed=batch.fixed,
        **anchors,
    )


def _displacement(
    batch: CrystalGraph, prediction: ModelOutput, pos: torch.Tensor
) -> torch.Tensor:
    """Displacements at the unrelaxed cell that lead to ``pos``."""
    back = torch.linalg.inv(prediction.deformation.double())
    moved = apply_deformation(pos.double(), back, batch.graph_of_atom) - batch.pos
    return free_displacement(moved, batch)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()


def _now(device: torch.device) -> float:
    """Time at which the device has finished its work, s."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return perf_counter()


def is_shortage(error: BaseException) -> bool:
    """Whether an error of `run_model` says that the batch does not fit into memory."""
    text = str(error)
    return isinstance(error, MemoryError) or any(part in text for part in OUT_OF_MEMORY)


def resolve_device(device: str) -> torch.device:
    """``torch.device`` of 'auto', 'cpu', 'cuda', 'cuda:N'; ``DeviceError`` if not there."""
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(
            f"device is {device!r}; it must be 'auto', 'cpu', 'cuda' or 'cuda:N'"
        ) from error
    if resolved.type not in BATCH_EDGES:
        raise DeviceError(
            f"device {device!r}: only 'cpu' and 'cuda' are tested; use one of them"
        )
    count = torch.cuda.device_count() if resolved.type == 'cuda' else 1
    if (resolved.index or 0) >= count:
        raise DeviceError(
            f'device {device!r} is not there: torch {torch.__version__} sees {count} CUDA '
            "devices; use device='cpu' or 'auto', or install a CUDA build of torch"
        )
    if resolved.type == 'cuda' and torch.cuda._is_in_bad_fork():  # noqa: SLF001
        raise DeviceError(
            f'device {device!r}: this process was forked from one that had used CUDA, and '
            'CUDA does not survive that; start workers with '
            "multiprocessing.get_context('spawn'), or use device='cpu'"
        )
    return resolved
