"""The last step of a prediction: from what the network found to a checked structure."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from ase import Atoms

from ase_deeprelax import __version__
from ase_deeprelax.data.formula import chemical_formula
from ase_deeprelax.errors import PredictionError
from ase_deeprelax.predict.error_estimate import check_error, estimate_errors
from ase_deeprelax.predict.forward import StructureOutput
from ase_deeprelax.predict.info import write_info
from ase_deeprelax.predict.passes import Move
from ase_deeprelax.predict.prediction_checks import check_change, check_prediction
from ase_deeprelax.predict.prepare import PARTS, Prepared, Settings, graph_of, timed
from ase_deeprelax.predict.shrinkage import shrink
from ase_deeprelax.predict.structure_checks import room
from ase_deeprelax.result import Relaxation, no_uncertainty


def move_of(prepared: Prepared, output: StructureOutput) -> Move:
    """The move that the network predicts, in the axes, order and space group of the input.

    Parameters
    ----------
    prepared : Prepared
    output : StructureOutput
        Of its graph.

    Returns
    -------
    Move

    Raises
    ------
    PredictionError
        The network returned numbers that cannot be used, see `StructureOutput.finite`.
    """
    if not output.finite:
        raise PredictionError(
            f'{chemical_formula(prepared.initial)}: model {prepared.settings.name!r} '
            'returned numbers that are not finite, or a deformation that is not symmetric '
            'and positive definite; use another model or float64'
        )
    with timed(prepared.timings, 'symmetry'):
        move = prepared.frame.to_user(output.deformation, output.displacement)
        if prepared.symmetry is None:
            return move
        # The first prediction has the symmetry of the input, so this holds for all passes.
        return prepared.symmetry.project(*move)


def prepare_again(prepared: Prepared, move: Move) -> Prepared:
    """The structure that a move leads to, ready for the next pass.

    Parameters
    ----------
    prepared : Prepared
        The input.
    move : Move

    Returns
    -------
    Prepared

    Raises
    ------
    PredictionError
        The move leads to no plausible cell.
    StructureError
        Atoms have lost their neighbours.
    """
    atoms = _placed(prepared.initial, *prepared.freedom.allowed(*move))
    check_change(prepared.initial, atoms)
    with timed(prepared.timings, 'graph'):
        graph, frame = graph_of(atoms, prepared.freedom, prepared.settings)
    return replace(prepared, graph=graph, frame=frame)


def finish(
    prepared: Prepared, output: StructureOutput, moves: Sequence[Move]
) -> Relaxation:
    """The result of what network and solver have found.

    Parameters
    ----------
    prepared : Prepared
    output : StructureOutput
        Of its graph, in the first pass.
    moves : sequence of Move
        From the input to the predictions of the first pass, of the first two passes, and so
        on. The last one that is plausible counts.

    Returns
    -------
    Relaxation

    Raises
    ------
    PredictionError
        No predicted structure is a plausible one, see `check_prediction`.
    """
    for move in moves[:0:-1]:
        with suppress(PredictionError):
            return _result(prepared, output, move)
    return _result(prepared, output, moves[0])


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


def _result(prepared: Prepared, output: StructureOutput, move: Move) -> Relaxation:
    """Constraints, checks and record of a move."""
    initial, freedom, settings = prepared.initial, prepared.freedom, prepared.settings
    sigma_atoms = prepared.frame.per_atom(output.sigma_atoms)
    if settings.shrinks:
        move = _shrunk(prepared, move, output.sigma, sigma_atoms)
    deformation, displacement = move
    cell, positions = freedom.allowed(deformation, displacement)
    if not freedom.all_free:
        deformation = np.linalg.solve(initial.cell.array, cell)
        displacement = positions @ np.linalg.inv(deformation) - initial.positions
    atoms = _placed(initial, cell, positions)
    with timed(prepared.timings, 'checks'):
        check_prediction(initial, atoms, residual=output.residual, layer=freedom.layer)
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
        sigma_atoms=sigma_atoms,
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


def _shrunk(prepared: Prepared, move: Move, sigma: float, sigma_atoms: np.ndarray) -> Move:
    """A move without what is small compared with its uncertainty; it keeps its symmetry."""
    initial, freedom = prepared.initial, prepared.freedom
    spacing = (room(initial, freedom.layer) / len(initial)) ** (1 / 3)
    floating = not (freedom.labels == 1).any()
    move = shrink(move, sigma, sigma_atoms, spacing, floating=floating)
    # The sigma of atoms has the symmetry to single precision only.
    return move if prepared.symmetry is None else prepared.symmetry.project(*move)


def _placed(atoms: Atoms, cell: np.ndarray, positions: np.ndarray) -> Atoms:
    """A copy at another place, whatever its constraints."""
    atoms = atoms.copy()
    atoms.set_cell(cell, apply_constraint=False)
    atoms.arrays['positions'] = positions  # the input's may be of integers
    return atoms
