"""One call of a potential that says whether a prediction is as good as the potential."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.constraints import FixAtoms
from ase.filters import Filter

from ase_deeprelax.errors import ConfigError, reason_of
from ase_deeprelax.geometry.cell_filter import FreeCellFilter, free_cell
from ase_deeprelax.geometry.constraints import constraint_labels
from ase_deeprelax.geometry.degrees_of_freedom import find_freedom, unwrap
from ase_deeprelax.geometry.free_strain import RelaxCell
from ase_deeprelax.models.calibration import Calibration, potentials_beside
from ase_deeprelax.optimize.elastic_bfgs import model_hessian
from ase_deeprelax.optimize.relaxation_step import check_finite


@dataclass(frozen=True)
class Verification:
    """What a potential says of a structure.

    Attributes
    ----------
    potential : str
    step : float, A
        Mean move of the coordinates, strain included, that the potential wants.
    limit : float, A
        What it wants less than for 90 % of the structures that DFT has relaxed: its own
        error.
    """

    potential: str
    step: float
    limit: float

    @property
    def within(self) -> bool:
        """Whether the structure may be the relaxed one as far as the potential can tell."""
        return self.step <= self.limit

    def __str__(self) -> str:
        """One line for the log and for ``atoms.info``."""
        relation = 'within' if self.within else 'beyond'
        return (
            f'{self.potential} would move the atoms by {self.step:.3f} A on average, '
            f'{relation} its own error of {self.limit:.3f} A'
        )


def verify(
    target: Atoms | Filter,
    calculator: Calculator,
    potential: str,
    calibration: Calibration | None,
    relax_cell: RelaxCell | None = None,
) -> Verification:
    """Compare the step that a potential would take with its own error.

    Parameters
    ----------
    target : ase.Atoms or ase.filters.Filter
        A predicted structure; not changed. What a filter around it holds does not count.
    calculator : ase Calculator
        Called once.
    potential : str
        Its name in the calibration.
    calibration : Calibration or None
        Of the model.
    relax_cell : bool, str, array, optional
        What of the cell of bare Atoms may change, see `find_freedom`.

    Returns
    -------
    Verification

    Raises
    ------
    ConfigError
        See `known_error`.
    RefinementError
        The potential gives numbers that are not finite.
    """
    limit = known_error(potential, calibration, find_freedom(target, relax_cell).kind)
    moving = _twin(target, relax_cell)
    atoms = unwrap(moving)
    atoms.calc = calculator
    return Verification(potential, mean_newton_step(moving), limit)


def failure(potential: str, error: Exception) -> str:
    r"""The text that stands for the verdict of a potential that failed.

    It is one line, because a line break would make an extended XYZ file unreadable.

    >>> failure('chgnet', RuntimeError('first line\nsecond line'))
    'chgnet failed: RuntimeError: first line second line'
    """
    return ' '.join(f'{potential} failed: {reason_of(error)}'.split())


def _twin(target: Atoms | Filter, relax_cell: RelaxCell | None) -> Atoms | Filter:
    """A copy that has the freedom of the target, in the filter of this package."""
    freedom = find_freedom(target, relax_cell)
    atoms = freedom.atoms.copy()
    if target is freedom.atoms:
        return free_cell(atoms, relax_cell)
    hidden = ~freedom.movable
    if hidden.any():
        atoms.set_constraint([*atoms.constraints, FixAtoms(mask=hidden)])
    if freedom.strain is None:
        return atoms
    return FreeCellFilter(atoms, freedom.strain.projection(), freedom.layer)


def known_error(
    potential: str, calibration: Calibration | None, kind: str = 'bulk'
) -> float:
    """The error of a potential beside a model, A; see `PotentialErrors.step`.

    Parameters
    ----------
    potential : str
        Its name in the calibration.
    calibration : Calibration or None
        Of the model.
    kind : str
        That of the structure, see `Relaxation.kind`; default 'bulk'.

    Raises
    ------
    ConfigError
        The potential was not calibrated.
    """
    known = None if calibration is None else calibration.beside(potential, kind)
    if known is None:
        names = potentials_beside(calibration)
        raise ConfigError(
            f'verify is {potential!r}; the error of this potential is not known, but of: '
            f'{names}. Give one of these by its name, or find the error of another one '
            'with "deeprelax calibrate --potential"'
        )
    return known.step


def mean_newton_step(target: Any) -> float:
    """Mean move of the coordinates, A, by one step of Newton's method.

    The Hessian is that of `ElasticBFGS`. Fixed atoms, which only follow the cell, do not
    count. Of a single atom, which no strain moves, the images in a doubled cell count.

    Parameters
    ----------
    target : ase.Atoms or ase.filters.UnitCellFilter
        With a calculator, which is called once. It is moved by the step.

    Raises
    ------
    RefinementError
        The calculator gives numbers that are not finite.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase.calculators.emt import EMT
    >>> copper = bulk('Cu', cubic=True)
    >>> copper.rattle(0.05, seed=1)
    >>> copper.calc = EMT()
    >>> 0.02 < mean_newton_step(copper) < 0.08
    True
    """
    atoms = unwrap(target)
    before = _places(atoms)
    forces = np.ravel(target.get_forces())
    check_finite(atoms, forces)
    step = np.linalg.solve(model_hessian(target), forces).reshape(-1, 3)
    target.set_positions(target.get_positions() + step)
    move = _places(atoms) - before
    if len(atoms) == 1:
        return float(np.abs(move - move.mean(axis=0)).mean())
    if not atoms.constraints:
        move -= move.mean(axis=0)
    free = constraint_labels(atoms, np.ones(len(atoms), dtype=bool)) != 1
    return float(np.abs(move[free] if free.any() else move).mean())


def _places(atoms: Atoms) -> np.ndarray:
    """(n, 3): positions, A; of a single atom those of its images in a doubled cell."""
    if len(atoms) > 1:
        return atoms.positions.copy()
    return np.array(list(product((0, 1), repeat=3))) @ atoms.cell.array
