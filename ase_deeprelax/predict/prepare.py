"""The two ends of a prediction: from a structure to a graph, and back to a result.

    prepared = prepare(structure, settings)
    outputs, _ = run_model(model, collate([prepared.graph]))
    result = finish(prepared, outputs[0])

Each structure is checked once before and once after the network, and neither function
changes what it is given.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.filters import Filter

from ase_deeprelax import __version__
from ase_deeprelax.data.convert import Frame, to_graph
from ase_deeprelax.data.graph import CrystalGraph, GraphSpec
from ase_deeprelax.data.structures import as_atoms
from ase_deeprelax.errors import PredictionError, StructureError
from ase_deeprelax.geometry.degrees_of_freedom import Freedom, find_freedom, unwrap
from ase_deeprelax.geometry.free_strain import RelaxCell
from ase_deeprelax.geometry.symmetry import Symmetry, find_symmetry
from ase_deeprelax.models.calibration import Calibration
from ase_deeprelax.predict.checks import check_cell, check_contents, check_prediction
from ase_deeprelax.predict.error_estimate import check_error, estimate_errors
from ase_deeprelax.predict.forward import StructureOutput
from ase_deeprelax.predict.ignored import name_ignored
from ase_deeprelax.predict.info import write_info
from ase_deeprelax.predict.two_pass import Move, add_second, second_weight
from ase_deeprelax.result import Relaxation, no_uncertainty

PARTS = ('checks', 'symmetry', 'graph', 'network', 'solver')


@dataclass(frozen=True)
class Settings:
    """What `prepare` and `finish` need to know of a model and of its user's wishes.

    Attributes
    ----------
    spec : GraphSpec
        The graph that the model wants.
    dtype : torch.dtype
    keep_symmetry : bool
        Whether moves are projected on the space group of the input; default True.
    name, sha256 : str
        Of the model, for the record.
    elements : collection of int, optional
        Atomic numbers that the model was trained on; default: all.
    ranges : dict of str to (low, high), optional
        Seen in training, see `check_structure`.
    learned : collection of str
        What the model was trained on: 'bulk', 'layer', 'fixed cell', 'partly fixed cell',
        'fixed atoms'; default bulk crystals only.
    calibration : Calibration, optional
        What is known about the errors of the model.
    accept_below : float, optional, A
        A prediction whose expected error is not below this is refused.
    """

    spec: GraphSpec
    dtype: torch.dtype
    keep_symmetry: bool = True
    name: str = ''
    sha256: str = ''
    elements: Collection[int] | None = None
    ranges: Mapping[str, Collection[float]] | None = None
    learned: Collection[str] = ('bulk',)
    calibration: Calibration | None = None
    accept_below: float | None = None


@dataclass(frozen=True, eq=False)
class Prepared:
    """A checked structure, ready for the network. Made by `prepare`.

    Attributes
    ----------
    initial : ase.Atoms
        A copy of the input.
    source : pymatgen Structure or None
        A copy of the input, where it was one.
    settings : Settings
    freedom : Freedom
        The directions in which it may move.
    symmetry : Symmetry or None
        The operations that the prediction keeps.
    ood : str
        Why the input lies outside the training range, or ''.
    graph : CrystalGraph
    frame : Frame
        The way back from the graph to the input's orientation and order.
    timings : dict of str to float, s
        Wall time by `PARTS`; later steps add theirs.
    """

    initial: Atoms
    source: Any
    settings: Settings
    freedom: Freedom
    symmetry: Symmetry | None
    ood: str
    graph: CrystalGraph
    frame: Frame
    timings: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))


def prepare(
    structure: Any, settings: Settings, relax_cell: RelaxCell | None = None
) -> Prepared:
    """Check a structure, find what may move in it, and make its graph.

    Parameters
    ----------
    structure : ase.Atoms, pymatgen Structure, ase.filters.Filter
        It is not changed.
    settings : Settings
    relax_cell : bool, str, array or None
        See `find_freedom`; default None.

    Returns
    -------
    Prepared

    Raises
    ------
    StructureError, UnsupportedElementError, UnsupportedConstraintError
        It cannot be relaxed; see `check_structure` and `find_freedom`.
    """
    timings = dict.fromkeys(PARTS, 0.0)
    with _timed(timings, 'checks'):
        # A copy has no calculator, so no result of it can outlive the move.
        initial = copy_of(structure)
        check_cell(initial)
        freedom = find_freedom(
            structure if isinstance(structure, Filter) else initial, relax_cell
        )
        outside = check_contents(
            initial, freedom.layer, settings.elements, ranges=settings.ranges
        )
        unlearned = _not_learned(freedom, settings.learned)
        source = None if isinstance(structure, (Atoms, Filter)) else structure.copy()
        name_ignored(initial, source)
    symmetry = None
    if settings.keep_symmetry:
        with _timed(timings, 'symmetry'):
            labels = freedom.labels if freedom.labels.any() else None
            found = find_symmetry(initial, labels=labels, layer=freedom.layer)
            symmetry = found.keeping(freedom.motion.free_strain)
    with _timed(timings, 'graph'):
        graph, frame = _graph_of(initial, freedom, settings)
    ood = '; '.join(filter(None, (outside, unlearned)))
    return Prepared(
        initial, source, settings, freedom, symmetry, ood, graph, frame, timings
    )


def prepare_second_pass(prepared: Prepared, output: StructureOutput) -> Prepared | None:
    """The prediction of a first pass, ready for a second one.

    Parameters
    ----------
    prepared : Prepared
    output : StructureOutput
        Of the first pass.

    Returns
    -------
    Prepared or None
        With the graph of the predicted structure; None where no second pass is wanted: the
        prediction is close to the input, or atoms have lost their neighbours.

    Raises
    ------
    PredictionError
        The first pass leads to no plausible structure.
    """
    move = _move(prepared, output)
    if not second_weight(move[0]):
        return None
    atoms = _placed(prepared.initial, *prepared.freedom.allowed(*move))
    _check(prepared, atoms, output)
    try:
        with _timed(prepared.timings, 'graph'):
            graph, frame = _graph_of(atoms, prepared.freedom, prepared.settings)
    except StructureError:
        return None
    return replace(prepared, graph=graph, frame=frame)


def finish(
    prepared: Prepared,
    output: StructureOutput,
    second: tuple[Prepared, StructureOutput] | None = None,
) -> Relaxation:
    """The result of what network and solver have found.

    Parameters
    ----------
    prepared : Prepared
    output : StructureOutput
        Of its graph.
    second : tuple of Prepared and StructureOutput, optional
        What `prepare_second_pass` made of the first pass, and its output. Where it cannot
        be used, the first pass alone counts.

    Returns
    -------
    Relaxation

    Raises
    ------
    PredictionError
        The predicted structure is no plausible one, see `check_prediction`.
    """
    first = _move(prepared, output)
    if second is not None:
        try:
            move = add_second(first, _move(*second), second_weight(first[0]))
            return _result(prepared, output, move)
        except PredictionError:
            pass
    return _result(prepared, output, first)


def failed(
    initial: Atoms,
    error: Exception,
    settings: Settings,
    prepared: Prepared | None = None,
    source: Any = None,
) -> Relaxation:
    """The result for a structure that has none: the input, and why.

    Parameters
    ----------
    initial : ase.Atoms
    error : Exception
    settings : Settings
    prepared : Prepared, optional
        As far as the structure came.
    source : pymatgen Structure, optional
        The input, where it was one.
    """
    n = len(initial)
    return Relaxation(
        atoms=initial.copy(),
        initial=initial,
        deformation=np.eye(3),
        displacement=np.zeros((n, 3)),
        **no_uncertainty(n),
        ok=False,
        problem=str(error),
        ood='' if prepared is None else prepared.ood,
        kind='' if prepared is None else prepared.freedom.kind,
        model=settings.name,
        sha256=settings.sha256,
        version=__version__,
        timings=dict.fromkeys(PARTS, 0.0) if prepared is None else prepared.timings,
        source=source,
    )


def copy_of(structure: Any) -> Atoms:
    """A copy of the Atoms in a structure or filter, without a calculator."""
    atoms = unwrap(structure) if isinstance(structure, Filter) else as_atoms(structure)
    return atoms.copy()


def _move(prepared: Prepared, output: StructureOutput) -> Move:
    """Deformation and displacement in the input's orientation, order and space group."""
    if not output.finite:
        raise PredictionError(
            f'{prepared.initial.get_chemical_formula()}: model {prepared.settings.name!r} '
            'returned numbers that are not finite; use another model or float64'
        )
    with _timed(prepared.timings, 'symmetry'):
        move = prepared.frame.to_user(output.deformation, output.displacement)
        if prepared.symmetry is None:
            return move
        # The first prediction has the symmetry of the input, so this holds for both passes.
        return prepared.symmetry.project(*move)


def _result(prepared: Prepared, output: StructureOutput, move: Move) -> Relaxation:
    """Constraints, checks and record of a move."""
    initial, freedom, settings = prepared.initial, prepared.freedom, prepared.settings
    deformation, displacement = move
    cell, positions = freedom.allowed(deformation, displacement)
    if not freedom.all_free:
        deformation = np.linalg.solve(initial.cell.array, cell)
        displacement = positions @ np.linalg.inv(deformation) - initial.positions
    atoms = _placed(initial, cell, positions)
    _check(prepared, atoms, output)
    errors, unknown = estimate_errors(
        settings.calibration, atoms, freedom, prepared.frame, output
    )
    check_error(atoms, errors['error'], settings.accept_below)
    bonds, offsets = prepared.frame.bonds(*output.bonds, output.offsets)
    result = Relaxation(
        atoms=atoms,
        initial=initial,
        deformation=deformation,
        displacement=displacement,
        sigma=output.sigma,
        sigma_atoms=prepared.frame.per_atom(output.sigma_atoms),
        bonds=bonds,
        bond_offsets=offsets,
        sigma_bonds=output.sigma_bonds,
        residual=output.residual,
        **errors,
        ok=True,
        problem='',
        ood='; '.join(filter(None, (prepared.ood, unknown))),
        kind=freedom.kind,
        model=settings.name,
        sha256=settings.sha256,
        version=__version__,
        timings=prepared.timings,
        source=prepared.source,
    )
    write_info(result)
    return result


def _check(prepared: Prepared, atoms: Atoms, output: StructureOutput) -> None:
    with _timed(prepared.timings, 'checks'):
        check_prediction(
            prepared.initial,
            atoms,
            residual=output.residual,
            layer=prepared.freedom.layer,
        )


def _graph_of(
    atoms: Atoms, freedom: Freedom, settings: Settings
) -> tuple[CrystalGraph, Frame]:
    """The graph of atoms; a network can say nothing about one that has no neighbour."""
    graph, frame = to_graph(
        atoms, settings.spec, settings.dtype, motion=freedom.motion, layer=freedom.layer
    )
    counts = torch.bincount(graph.edge_index[1], minlength=len(atoms))
    lonely = (counts == 0).nonzero().flatten()
    if len(lonely):
        first = int(lonely[0]) if frame.order is None else int(frame.order[lonely[0]])
        raise StructureError(
            f'atom {first} ({atoms.symbols[first]}) has no neighbour within '
            f'{settings.spec.cutoff:g} A ({len(lonely)} of {len(atoms)} atoms have none); '
            'the model predicts dense periodic crystals, not molecules or atoms far apart'
        )
    return graph, frame


def _placed(atoms: Atoms, cell: np.ndarray, positions: np.ndarray) -> Atoms:
    """A copy at another place, whatever its constraints."""
    atoms = atoms.copy()
    atoms.set_cell(cell, apply_constraint=False)
    atoms.arrays['positions'] = positions  # the input's may be of integers
    return atoms


def _not_learned(freedom: Freedom, learned: Collection[str]) -> str:
    """What the structure needs and the model was not trained on, or ''."""
    needed = ['bulk' if freedom.layer is None else 'layer']
    if freedom.strain is None:
        needed.append('fixed cell')
    elif freedom.layer is None and not freedom.strain.frees_all:
        needed.append('partly fixed cell')
    if (freedom.labels == 1).any():
        needed.append('fixed atoms')
    missing = [what for what in needed if what not in learned]
    return f'the model was not trained on: {", ".join(missing)}' if missing else ''


@contextmanager
def _timed(timings: dict[str, float], part: str) -> Generator[None]:
    start = perf_counter()
    try:
        yield
    finally:
        timings[part] += perf_counter() - start
