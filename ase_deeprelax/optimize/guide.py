"""Relaxation under a potential and a prediction at once.

Network and potential are two estimates of one structure, with errors of their own. The most
probable structure given both minimises

    E + c sum over bonds of rho(d - d_network) / b,

the energy of the potential and the negative logarithm of the network's own Laplace density
of the distances (eqs. 11-20 of DeepRelax), smooth at its tip (``rho`` is quadratic up to
0.3 A, then linear). The constant ``c``, eV/A, says how sharp the network is beside the
potential: it comes from the calibration of the model (`compare.calibrate_potentials`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.mixing import SumCalculator
from ase.filters import Filter

from ase_deeprelax.errors import warn
from ase_deeprelax.geometry.degrees_of_freedom import unwrap
from ase_deeprelax.models.calibration import Calibration, potentials_beside
from ase_deeprelax.predict.edg_calculator import EDGCalculator
from ase_deeprelax.result import Relaxation

# For a potential that was not calibrated, eV/A: what the calibrated ones have, roughly.
USUAL_STRENGTH = 0.02
# A scale below this is no information on a bond, A.
SMALLEST_SCALE = 1e-3


def pull_of(relaxation: Relaxation, strength: float) -> EDGCalculator:
    """The second term: what pulls a structure to a prediction.

    Parameters
    ----------
    relaxation : Relaxation
    strength : float, eV/A

    Returns
    -------
    EDGCalculator
        Its energy is zero at the prediction.
    """
    scales = np.maximum(relaxation.sigma_bonds, SMALLEST_SCALE)
    return EDGCalculator(relaxation, force_constant=strength / scales)


def strength_for(potential: str, kind: str, calibration: Calibration | None) -> float:
    """How strongly a prediction pulls beside a potential, eV/A; see `Stage`.

    Parameters
    ----------
    potential : str
        Its name, as 'chgnet'.
    kind : str
        `Relaxation.kind` of the prediction.
    calibration : Calibration or None
        Of the model.
    """
    known = None if calibration is None else calibration.beside(potential, kind)
    if known is not None:
        return known.guide
    names = potentials_beside(calibration)
    warn(
        f'the model is not calibrated beside {potential!r}, but beside: {names}; its '
        f'prediction pulls with {USUAL_STRENGTH:g} eV/A, as beside other potentials. Give '
        'one of these by its name, or fit another one with "deeprelax calibrate '
        '--potential"'
    )
    return USUAL_STRENGTH


class GuidedCalculator(SumCalculator):
    """A potential and the pull of a prediction, as one ASE calculator.

    Parameters
    ----------
    potential : ase Calculator
    relaxation : Relaxation
        The prediction.
    strength : float, eV/A

    Attributes
    ----------
    potential : ase Calculator
    relaxation : Relaxation

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase.calculators.emt import EMT
    >>> from ase_deeprelax import relax
    >>> copper = bulk('Cu', a=3.7)
    >>> prediction = relax(copper)
    >>> atoms = prediction.atoms.copy()
    >>> atoms.calc = GuidedCalculator(EMT(), prediction, strength=0.02)
    >>> at_prediction = atoms.get_potential_energy()
    >>> atoms.calc = EMT()
    >>> bool(abs(at_prediction - atoms.get_potential_energy()) < 1e-9)
    True
    """

    def __init__(self, potential: Calculator, relaxation: Relaxation, strength: float):
        super().__init__([potential, pull_of(relaxation, strength)])
        self.potential, self.relaxation = potential, relaxation

    def pulled(self, target: Atoms | Filter) -> dict[str, float]:
        """How far each side was pulled.

        Parameters
        ----------
        target : ase.Atoms or ase.filters.Filter
            The structure at the end, with this calculator.

        Returns
        -------
        dict
            ``moved``, A, and ``strained``, %: largest displacement of an atom in the cell
            and change of a length, away from the prediction. ``force``, eV/A: largest force
            that the potential alone has left, generalised ones of the cell included.
        """
        atoms, predicted = unwrap(target), self.relaxation.atoms
        change = np.linalg.solve(predicted.cell.array, atoms.cell.array)
        places = [x.cell.scaled_positions(x.positions) for x in (atoms, predicted)]
        inside = places[0] - places[1]
        inside -= np.rint(inside)
        if not atoms.constraints:
            inside -= inside.mean(axis=0)
        moves = np.linalg.norm(inside @ atoms.cell.array, axis=1)
        stretches = np.linalg.svd(change, compute_uv=False)
        return {
            'moved': float(moves.max()),
            'strained': 100 * float(np.abs(stretches - 1).max()),
            'force': self._force_without_pull(target, atoms),
        }

    def _force_without_pull(self, target: Atoms | Filter, atoms: Atoms) -> float:
        atoms.calc = self.potential
        try:
            return float(np.linalg.norm(target.get_forces(), axis=1).max())
        finally:
            atoms.calc = self


def bare_calculator(calculator: Any) -> Any:
    """The calculator inside a `GuidedCalculator`; any other one as it is."""
    return calculator.potential if isinstance(calculator, GuidedCalculator) else calculator
