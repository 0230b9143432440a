"""One step of any ASE optimizer, with finite numbers only, that fails without a trace."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np
from ase import Atoms
from ase.filters import Filter
from ase.optimize.optimize import Optimizer

from ase_deeprelax.calculators.attached import calculator_name, one_number
from ase_deeprelax.errors import RefinementError
from ase_deeprelax.geometry.degrees_of_freedom import unwrap
from ase_deeprelax.geometry.snapshot import Snapshot
from ase_deeprelax.optimize.ase_optimizers import make_optimizer, optimizer_name
from ase_deeprelax.optimize.guide import bare_calculator

# Beyond these ratios of volumes neighbour lists grow without end, or atoms lose sight of
# each other.
RUNAWAY = (0.2, 5.0)
# What can be written into a restart file as it is.
PLAIN = (bool, int, float, str, np.generic, type(None))


def check_limits(fmax: Any, steps: Any) -> None:
    """Refuse limits of a relaxation that make no sense, before hours are spent on it.

    Parameters
    ----------
    fmax : float, eV/A
    steps : int

    Raises
    ------
    ValueError
        ``fmax`` is no force, or ``steps`` no number of steps.

    Examples
    --------
    >>> check_limits(0.05, 200)
    """
    check_fmax(fmax)
    if not isinstance(steps, Integral) or not steps >= 0:
        raise ValueError(f'steps is {steps!r}; it must be a whole number, 0 or larger')


def check_fmax(fmax: Any) -> None:
    """The part of `check_limits` that looks at ``fmax`` alone, eV/A."""
    if not isinstance(fmax, Real) or not fmax >= 0:
        raise ValueError(f'fmax is {fmax!r}; it must be a force in eV/A, 0 or larger')


class GuardedOptimizer:
    """An ASE optimizer of which a step either succeeds or leaves the structure as it was.

    Parameters
    ----------
    target : ase.Atoms or ase.filters.Filter
        With a calculator.
    optimizer : str or callable
        As `find_optimizer` takes it.

    Raises
    ------
    ConfigError
        There is no such optimizer, or it cannot be made for this structure.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase.calculators.emt import EMT
    >>> atoms = bulk('Cu', cubic=True)
    >>> atoms.rattle(0.1)
    >>> atoms.calc = EMT()
    >>> before = atoms.get_potential_energy()
    >>> GuardedOptimizer(atoms, 'FIRE').step(fmax=0.05)
    >>> bool(atoms.get_potential_energy() < before)
    True
    """

    def __init__(self, target: Atoms | Filter, optimizer: str | Callable):
        self.target, self.name = target, optimizer_name(optimizer)
        self.optimizer = make_optimizer(optimizer, target)
        self.optimizer.optimizable = FiniteNumbers(self.optimizer.optimizable, target)
        # No part of the state: what all optimizers have, as files and counts of a run.
        plain: Any = Optimizer
        self._common = set(vars(plain(target, logfile=None)))
        self._dumped = None
        self.optimizer.dump = self._dump

    def step(self, fmax: float) -> None:
        """Take one step.

        Parameters
        ----------
        fmax : float, eV/A

        Raises
        ------
        RefinementError
            Energy, forces or new positions are not finite; as after any other error, and
            after Ctrl-C, the structure is as it was before.
        """
        before = Snapshot.take(self.target)
        self.optimizer.fmax = fmax
        try:
            self.optimizer.step()
            self._check_moved()
        except BaseException:
            before.restore(self.target)
            raise

    def converged(self, fmax: float) -> bool:
        """Whether no force exceeds ``fmax``, eV/A: ASE's usual criterion."""
        optimizable = self.optimizer.optimizable
        return bool(optimizable.converged(optimizable.get_gradient(), fmax))

    def state_dict(self) -> dict[str, Any]:
        """What the optimizer has learnt so far, ready for JSON."""
        # Matrices are what optimizers dump themselves.
        matrices = self._dumped is None
        values = {
            name: value
            for name, value in vars(self.optimizer).items()
            if name not in self._common and _is_plain(value, matrices=matrices)
        }
        return {'dumped': self._dumped, 'values': values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        if state['dumped'] is not None:
            self.optimizer.load = lambda: state['dumped']
            self.optimizer.read()
            self._dumped = state['dumped']
        vars(self.optimizer).update(state['values'])

    def _dump(self, data: Any = None) -> None:
        # GPMin hands over nothing: it holds all that it has learnt in its attributes.
        self._dumped = data

    def _check_moved(self) -> None:
        atoms = unwrap(self.target)
        if np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell).all():
            return
        raise RefinementError(
            f'{self.name} proposed positions that are not finite; the atoms are as they '
            'were before this step. Use another optimizer or calculator'
        )


class FiniteNumbers:
    """An ASE Optimizable with a finite energy and gradient, else an error.

    A line search would go on for ever with a number that is not.
    """

    def __init__(self, optimizable: Any, target: Atoms | Filter):
        self._optimizable, self._atoms = optimizable, unwrap(target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizable, name)

    def get_value(self) -> float:
        """The energy, eV; `RefinementError` where it is not finite."""
        value = energy_of(self._optimizable)
        check_finite(self._atoms, value)
        return value

    def get_gradient(self) -> np.ndarray:
        """(3 * n,): minus the forces, eV/A; `RefinementError` where one is not finite."""
        gradient = self._optimizable.get_gradient()
        check_finite(self._atoms, gradient)
        return gradient


def energy_of(optimizable: Any) -> float:
    """The energy, eV.

    Parameters
    ----------
    optimizable : ase.utils.abc.Optimizable
    """
    return one_number(optimizable.get_value())


def own_energy(atoms: Atoms) -> float:
    """The energy that ``atoms.get_potential_energy()`` gives without constraints, eV.

    Optimizers follow another one, which `energy_of` gives: that to which the forces belong
    (of DFT with smearing, the free energy), with pressure, constraints and the pull of a
    prediction.

    Parameters
    ----------
    atoms : ase.Atoms
        With its calculator.
    """
    return one_number(bare_calculator(atoms.calc).get_property('energy', atoms))


def check_finite(atoms: Atoms, numbers: float | np.ndarray) -> None:
    """Refuse an energy or forces that are not finite.

    Parameters
    ----------
    atoms : ase.Atoms
        With its calculator.
    numbers : float, eV, or (3 * n,), eV/A
        The energy, or the gradient: rows of the atoms, then of the cell.

    Raises
    ------
    RefinementError
        Naming the atom.
    """
    if np.isfinite(numbers).all():
        return
    if np.ndim(numbers) == 0:
        what = f'the energy is {numbers}, which is not finite'
    else:
        row = int(np.flatnonzero(~np.isfinite(numbers))[0]) // 3
        what = 'the stress is not finite'
        if row < len(atoms):
            what = f'the force on atom {row} ({atoms.symbols[row]}) is not finite'
    name = calculator_name(bare_calculator(atoms.calc))
    raise RefinementError(
        f'{name}: {what}; look for atoms on one site or elements '
        'that the calculator does not know. The atoms are as they were before this step'
    )


def _is_plain(value: Any, *, matrices: bool) -> bool:
    if isinstance(value, np.ndarray):
        return matrices or value.ndim < 2
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item, matrices=matrices) for item in value)
    return isinstance(value, PLAIN)
