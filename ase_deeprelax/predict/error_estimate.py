"""What the calibration of a model says of a prediction: errors, and how far to trust it."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from ase_deeprelax.data.convert import Frame
from ase_deeprelax.data.formula import chemical_formula
from ase_deeprelax.errors import PredictionError
from ase_deeprelax.geometry.degrees_of_freedom import Freedom
from ase_deeprelax.geometry.motion import STRAIN_BASIS
from ase_deeprelax.models.calibration import Calibration, Environments
from ase_deeprelax.predict.forward import StructureOutput
from ase_deeprelax.result import no_errors

# A vector counts as fixed where a free strain of size one changes it by a smaller part than
# this: in cells from files, which have few digits, right angles are not quite right.
SMALLEST_CHANGE = 1e-3


def estimate_errors(
    calibration: Calibration | None,
    atoms: Atoms,
    freedom: Freedom,
    frame: Frame,
    output: StructureOutput,
) -> tuple[dict[str, Any], str]:
    """Errors that are expected of a predicted structure.

    Parameters
    ----------
    calibration : Calibration or None
    atoms : ase.Atoms
        The predicted structure.
    freedom : Freedom
        What could move in it.
    frame : Frame
        The way from the atoms of the graph to these.
    output : StructureOutput

    Returns
    -------
    fields : dict
        The fields of a `Relaxation` from ``error`` to ``fingerprint``.
    unknown : str
        Which atom is unlike all in training, or which elements never met there; or ''.
    """
    if calibration is None:
        return no_errors(len(atoms)), ''
    laws, kind, sigma = calibration.laws, freedom.kind, output.sigma
    changes = _changing_vectors(freedom)
    width = np.where(changes, laws['lattice'].within(kind, sigma), 0.0)
    volume = np.full(2, np.nan)
    if freedom.layer is None:
        exact = freedom.strain is None or freedom.strain.constant_volume
        relative = 0.0 if exact else laws['volume'].within(kind, sigma)
        volume = _interval(np.array([atoms.cell.volume]), np.array([relative]))[0]
    sigma_atoms = frame.per_atom(output.sigma_atoms)
    radius = np.where(freedom.labels == 1, 0, laws['positions'].within(kind, sigma_atoms))
    fields = {
        'error': float(laws['coordinates'].expected(kind, sigma)),
        'position_90': radius,
        'lattice_90': _interval(atoms.cell.lengths(), width),
        'volume_90': volume,
        'novelty': np.nan,
        'fingerprint': np.zeros(0),
    }
    if output.features is None:
        return fields, ''
    known = calibration.environments
    features = frame.per_atom(output.features)
    distances = known.distances(features)
    limit = known.limit.get(kind, np.nan)
    fields['novelty'] = float(distances.max() / limit)
    fields['fingerprint'] = known.fingerprint(features)
    return fields, _name_unknown(known, atoms, distances, limit)


def check_error(atoms: Atoms, error: float, accept_below: float | None) -> None:
    """Refuse a prediction whose expected error (A) is not below a limit (A).

    Raises
    ------
    PredictionError
    """
    if accept_below is None or error < accept_below:
        return
    known = f'is {error:.3f} A, not' if np.isfinite(error) else 'is not known to be'
    raise PredictionError(
        f'{chemical_formula(atoms)}: the expected error of the prediction {known} '
        f'below accept_below={accept_below:g} A; relax this structure with a potential or '
        'with DFT'
    )


def _changing_vectors(freedom: Freedom) -> np.ndarray:
    """(3,) bool: the lattice vectors that a free strain changes.

    To turn a vector changes it too: its length then changes to second order.
    """
    if freedom.strain is None:
        return np.zeros(3, dtype=bool)
    strains = np.tensordot(freedom.strain.projection(), STRAIN_BASIS, 1)
    units = freedom.strain.cell / np.linalg.norm(freedom.strain.cell, axis=1)[:, None]
    changes = np.linalg.norm(units @ strains, axis=2).max(axis=0) > SMALLEST_CHANGE
    if freedom.layer is not None:
        vacuum = np.abs(freedom.layer.basis[2])
        changes &= (vacuum == 0) | (vacuum.sum() > 1)  # a vector along the vacuum stays
    return changes


def _interval(values: np.ndarray, relative: np.ndarray) -> np.ndarray:
    """(n, 2): where the true values lie that these differ from by ``relative`` of them."""
    below = np.where(relative < 1, 1 - relative, 0.0)
    with np.errstate(divide='ignore'):
        return np.stack([values / (1 + relative), values / below], axis=1)


def _name_unknown(
    known: Environments, atoms: Atoms, distances: np.ndarray, limit: float
) -> str:
    reasons = []
    strangers = known.strangers(atoms.numbers)
    if strangers is not None:
        first, second = (chemical_symbols[z] for z in strangers)
        reasons.append(f'no structure in training holds {first} and {second} together')
    worst = int(distances.argmax())
    if distances[worst] > limit:
        reasons.append(
            f'the surroundings of atom {worst} ({atoms.symbols[worst]}) are unlike those '
            f'in training (distance {distances[worst]:.2f}, limit {limit:.2f})'
        )
    return '; '.join(reasons)
