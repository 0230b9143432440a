"""One step of any ASE optimizer, with finite numbers only, that fails without a trace."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import ase.optimize
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import Filter
from ase.optimize.optimize import Optimizer
from ase.optimize.sciopt import SciPyOptimizer

from ase_deeprelax.data.disorder import check_ordered
from ase_deeprelax.errors import ConfigError, RefinementError, StructureError
from ase_deeprelax.geometry.degrees_of_freedom import unwrap
from ase_deeprelax.geometry.neighbors import close_pairs
from ase_deeprelax.geometry.snapshot import Snapshot
from ase_deeprelax.optimize.elastic_bfgs import ElasticBFGS

# Atoms closer than this are on one site, A: calculators drop such pairs, or divide by zero.
SAME_SITE = 1e-3
# Beyond these ratios of volumes neighbour lists grow without end, or atoms lose sight of
# each other.
RUNAWAY = (0.2, 5.0)
# Errors recommend these in place of an optimizer that does not fit.
OTHERS = "another optimizer, as 'BFGS' or 'FIRE'"
# What can be written into a restart file as it is.
PLAIN = (bool, int, float, str, np.generic, type(None))


class GuardedOptimizer:
    """An ASE optimizer of which a step either succeeds or leaves the structure as it was.

    Parameters
    ----------
    target : ase.Atoms or ase.filters.Filter
        With a calculator.
    optimizer : str or callable
        As `find_optimizer` takes it.
    state : dict, optional
        What `state_dict` of an earlier optimizer of this class gave, to go on from there.

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

    def __init__(
        self,
        target: Atoms | Filter,
        optimizer: str | Callable,
        state: dict[str, Any] | None = None,
    ):
        self.target, self.name = target, optimizer_name(optimizer)
        self.optimizer = _make(find_optimizer(optimizer), target)
        self.optimizer.optimizable = FiniteNumbers(self.optimizer.optimizable, target)
        # No part of the state: what all optimizers have, as files and counts of a run.
        plain: Any = Optimizer
        self._common = {*vars(plain(target, logfile=None)), 'max_steps', 'fmax', 'dump'}
        self._dumped = None
        if state is not None:
            self.load_state_dict(state)
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

    def __len__(self) -> int:
        return len(self._optimizable)

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


def find_optimizer(optimizer: str | Callable) -> Callable:
    """The class of an optimizer by its name; a class, or what makes one, as it is.

    Parameters
    ----------
    optimizer : str or callable
        'ElasticBFGS', the name of a class in ``ase.optimize``, such a class, or anything
        that makes an optimizer from ``(atoms, logfile=None)``, as
        ``functools.partial(FIRE, dt=0.05)``.

    Returns
    -------
    callable

    Raises
    ------
    ConfigError
        There is no such optimizer, or it does not move atoms step by step.

    Examples
    --------
    >>> find_optimizer('FIRE').__name__
    'FIRE'
    """
    found = optimizer
    if isinstance(optimizer, str):
        known = {name: getattr(ase.optimize, name) for name in ase.optimize.__all__}
        known = {n: c for n, c in known.items() if issubclass(c, Optimizer)}
        known[ElasticBFGS.__name__] = ElasticBFGS
        if optimizer not in known:
            fit = sorted(n for n, c in known.items() if not issubclass(c, SciPyOptimizer))
            raise ConfigError(
                f'optimizer is {optimizer!r}; choose one of {", ".join(fit)}, or give a '
                'class'
            )
        found = known[optimizer]
    if not callable(found):
        raise ConfigError(
            f'optimizer is {optimizer!r}; it must be the name of an ASE optimizer, its '
            'class, or a function that makes one'
        )
    kind = found.func if isinstance(found, partial) else found
    if isinstance(kind, type):
        _check_takes_steps(kind)
    return found


def _check_takes_steps(kind: type) -> None:
    """Refuse a class that does not relax a structure step by step."""
    if issubclass(kind, SciPyOptimizer):
        problem = 'hands the whole relaxation to SciPy and cannot be stopped after a step'
    elif not issubclass(kind, Optimizer):
        problem = 'is no optimizer of ASE (ase.optimize.optimize.Optimizer)'
    else:
        return
    raise ConfigError(f'{kind.__name__} {problem}; choose {OTHERS}')


def _make(make: Callable, target: Atoms | Filter) -> Optimizer:
    """The optimizer that a class or function makes for a structure, or `ConfigError`."""
    name = optimizer_name(make)
    try:
        optimizer = make(target, logfile=None)
    except Exception as error:
        raise ConfigError(
            f'the optimizer {name} cannot be made from (atoms, logfile=None): '
            f'{type(error).__name__}: {error}; choose {OTHERS}'
        ) from error
    _check_takes_steps(type(optimizer))
    return optimizer


def energy_of(optimizable: Any) -> float:
    """The energy, eV; some calculators give it as an array of one number.

    Parameters
    ----------
    optimizable : ase.utils.abc.Optimizable
    """
    return float(np.asarray(optimizable.get_value()).item())


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
        force = f'the force on {_label(atoms, row)}' if row < len(atoms) else 'the stress'
        what = f'{force} is not finite'
    raise RefinementError(
        f'{calculator_name(atoms.calc)}: {what}; look for atoms on one site or elements '
        'that the calculator does not know. The atoms are as they were before this step'
    )


def check_refinable(atoms: Atoms) -> None:
    """Refuse what no calculator can answer sensibly, molecules and slabs included.

    Parameters
    ----------
    atoms : ase.Atoms

    Raises
    ------
    StructureError
        No atoms, numbers that are not finite, a periodic cell without volume, two atoms on
        one site, partly occupied sites.

    Examples
    --------
    >>> from ase.build import molecule
    >>> check_refinable(molecule('H2O'))
    """
    if len(atoms) == 0:
        raise StructureError('0 atoms: there is nothing to relax')
    if not np.isfinite(atoms.cell).all():
        raise StructureError(f'cell {atoms.cell.tolist()} is not finite; set another one')
    for i, axis in np.argwhere(~np.isfinite(atoms.positions)):
        raise StructureError(
            f'{_label(atoms, i)}: position {"xyz"[axis]} is {atoms.positions[i, axis]}; '
            'set it to a number'
        )
    vectors = atoms.cell.array[atoms.pbc]
    if len(vectors) and np.linalg.matrix_rank(vectors) < len(vectors):
        raise StructureError(f'cell {atoms.cell.tolist()} has no volume; set another one')
    check_ordered(atoms)
    first, second, _ = close_pairs(atoms.positions, atoms.cell.array, SAME_SITE, atoms.pbc)
    for i, j in zip(first, second, strict=True):
        raise StructureError(
            f'{_label(atoms, i)} and {_label(atoms, j)} are on one site; remove or move one'
        )


def has_calculator(atoms: Atoms) -> bool:
    """Whether forces of a moved structure can be had; stored results give none."""
    return atoms.calc is not None and not isinstance(atoms.calc, SinglePointCalculator)


def has_stress(calculator: Any) -> bool:
    """Whether a calculator gives the stress, which a relaxation of the cell needs."""
    known = getattr(calculator, 'implemented_properties', None)
    return known is None or 'stress' in known


def optimizer_name(optimizer: str | Callable) -> str:
    """Name of a class, or of the class in a ``functools.partial``.

    >>> from ase.optimize import LBFGS
    >>> optimizer_name(LBFGS), optimizer_name(partial(LBFGS, maxstep=0.1))
    ('LBFGS', 'LBFGS')
    """
    if isinstance(optimizer, str):
        return optimizer
    # By type: LBFGS has a method called func.
    optimizer = optimizer.func if isinstance(optimizer, partial) else optimizer
    return getattr(optimizer, '__name__', type(optimizer).__name__)


def calculator_name(calculator: Any) -> str:
    """What a calculator calls itself, or else its class.

    >>> from ase.calculators.emt import EMT
    >>> calculator_name(EMT()), calculator_name(None)
    ('emt', 'NoneType')
    """
    name = getattr(calculator, 'name', None)
    return name if isinstance(name, str) else type(calculator).__name__


def _is_plain(value: Any, *, matrices: bool) -> bool:
    if isinstance(value, np.ndarray):
        return matrices or value.ndim < 2
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item, matrices=matrices) for item in value)
    return isinstance(value, PLAIN)


def _label(atoms: Atoms, index: int) -> str:
    return f'atom {index} ({atoms.symbols[index]})'
