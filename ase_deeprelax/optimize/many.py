"""Relax many structures at once: one evaluation for all of them per step."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import Filter

from ase_deeprelax.calculators.attached import NO_STRESS
from ase_deeprelax.data.disorder import check_ordered
from ase_deeprelax.data.one_line import count
from ase_deeprelax.errors import DeepRelaxError
from ase_deeprelax.geometry.cell_filter import free_cell
from ase_deeprelax.geometry.free_strain import RelaxCell
from ase_deeprelax.optimize.relaxation_step import (
    RUNAWAY,
    GuardedOptimizer,
    check_limits,
)

# A cell with less room or less height than this is flat or missing: within the cutoff of a
# potential lie so many images that memory runs out. A^3 per atom, and A.
SMALLEST_VOLUME, SMALLEST_HEIGHT = 1.0, 0.7
# How the reason of an `Outcome` begins where the potential raised an exception.
RAISED = 'the potential failed: '


@dataclass(frozen=True)
class Outcome:
    """How the relaxation of one structure ended.

    Attributes
    ----------
    atoms : ase.Atoms
        The relaxed structure with energy, forces and, where the potential has it, stress
        attached, or, where ``converged`` is False, the last one that could be evaluated
        (the input as it is where none could).
    converged : bool
    reason : str
        Why not, or ''.
    calls : int
        Evaluations of the potential: of a relaxation that converged, one more than its
        steps; 0 where the structure could not be evaluated at all.
    """

    atoms: Atoms
    converged: bool
    reason: str
    calls: int


class _Run:
    """One structure on its way to its minimum."""

    def __init__(
        self,
        key: Hashable,
        atoms: Atoms,
        optimizer: str | Callable,
        relax_cell: RelaxCell,
        pull: Calculator | None,
    ):
        self.key, self.atoms, self.evaluations, self.pull = key, atoms, 0, pull
        self.before = atoms.copy()  # the last one that could be evaluated
        self.volume = atoms.get_volume()
        self.guarded = GuardedOptimizer(free_cell(atoms, relax_cell), optimizer)

    def advance(
        self, results: dict[str, Any] | Exception, fmax: float, steps: int
    ) -> Outcome | None:
        """Take in results and, unless that was the last step, move; the end or None."""
        self.evaluations += 1
        if isinstance(results, Exception):
            return self.fail(f'{RAISED}{type(results).__name__}: {results}')
        try:
            return self._advance(results, fmax, steps)
        except Exception as error:  # noqa: BLE001 - so do optimizers and constraints
            return self.fail(f'{type(error).__name__}: {error}')

    def _advance(self, results: dict[str, Any], fmax: float, steps: int) -> Outcome | None:
        for name, value in results.items():
            if not np.isfinite(value).all():
                return self.fail(f'{name} is not finite')
        if 'stress' not in results and isinstance(self.guarded.target, Filter):
            return self.fail(f'the potential {NO_STRESS}')
        bare = SinglePointCalculator(self.atoms, **results)
        self.atoms.calc = SinglePointCalculator(self.atoms, **self._pulled(results))
        converged = self.guarded.converged(fmax)
        if converged or self.evaluations > steps:
            late = '' if converged else f'not converged in {count(steps, "step")}'
            self.atoms.calc = bare
            return self.end(late)
        self.before = self.atoms.copy()
        self.before.calc = bare
        self.guarded.step(fmax)
        ratio, (low, high) = self.atoms.get_volume() / self.volume, RUNAWAY
        if not low < ratio < high:
            return self.fail(f'exploded: volume {ratio:.3g} times that of the input')
        problem = _unusable(self.atoms)
        return self.fail(problem) if problem else None

    def _pulled(self, results: dict[str, Any]) -> dict[str, Any]:
        if self.pull is None:
            return results
        return {
            name: value + self.pull.get_property(name, self.atoms)
            for name, value in results.items()
        }

    def fail(self, reason: str) -> Outcome:
        """The end at the last structure that could be evaluated."""
        self.atoms = self.before
        return self.end(reason)

    def end(self, reason: str) -> Outcome:
        return Outcome(self.atoms, not reason, reason, self.evaluations)


def relax_batched(
    structures: Iterable[tuple[Hashable, Atoms]],
    potential: Callable[[list[Atoms]], list[dict[str, Any]]],
    *,
    optimizer: str | Callable = 'FIRE',
    relax_cell: RelaxCell | Callable[[Hashable], RelaxCell] = True,
    fmax: float = 0.05,
    steps: int = 200,
    batch_atoms: int = 200,
    guide: Callable[[Hashable], Calculator | None] | None = None,
) -> Iterator[tuple[Hashable, Outcome]]:
    """Relax positions and cells of many structures together.

    Each step evaluates all structures of the batch in one call of the potential; then each
    structure's own ASE optimizer moves it. A structure that has converged leaves, and the
    next one takes its place, so that batches stay full.

    A structure that cannot be relaxed ends with the reason and disturbs no other one: a
    batch for which the potential raises an exception is evaluated again in halves.

    Parameters
    ----------
    structures : iterable of (key, ase.Atoms)
        Taken one by one as places get free; copied. Constraints are honoured.
    potential : callable
        ``potential(list of Atoms)`` gives a list of dictionaries with ``energy`` (eV),
        ``forces`` (n_atoms, 3) (eV/A) and, unless all cells are fixed, ``stress`` (6,)
        (eV/A^3), for example `batch_potential`'s.
    optimizer : str or callable
        An ASE optimizer, by name or class, whose ``step`` moves once per evaluation (FIRE,
        BFGS, LBFGS, ...; none with a line search), default 'FIRE'.
    relax_cell : bool, str, array or callable
        What of the cells relaxes, see `check_relax_cell`; default True, all of
        it (of a layer, its two lattice vectors). A function says it for each key.
    fmax : float, eV/A
        Default 0.05, on atoms and cell.
    steps : int
        At most so many steps each, default 200.
    batch_atoms : int
        Atoms per forward pass, default 200.
    guide : callable, optional
        Returns for each key what pulls the structure besides the potential, as
        `guide.pull_of` makes it, or None; default nothing.

    Yields
    ------
    (key, Outcome)
        As they finish, which is not the order that they came in.

    Raises
    ------
    ValueError
        ``fmax`` or ``steps`` makes no sense.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase.calculators.emt import EMT
    >>> from ase_deeprelax.calculators.batched import batch_potential
    >>> inputs = enumerate([bulk('Cu', a=3.5), bulk('Au', a=4.2)])
    >>> ends = dict(relax_batched(inputs, batch_potential(EMT()), fmax=0.01))
    >>> [ends[k].converged for k in (0, 1)]
    [True, True]
    """
    check_limits(fmax, steps)
    waiting, active, used = iter(structures), [], 0
    exhausted = False
    while True:
        while not exhausted and (not active or used < batch_atoms):
            key, atoms = next(waiting, (None, None))
            if atoms is None:
                exhausted = True
                break
            pull = None if guide is None else guide(key)
            run = _start(key, atoms, optimizer, relax_cell, pull)
            if isinstance(run, _Run):
                active.append(run)
                used += len(atoms)
            else:
                yield key, run
        if not active:
            return
        still = []
        for run, result in zip(active, _evaluate(potential, active), strict=True):
            end = run.advance(result, fmax, steps)
            if end is None:
                still.append(run)
            else:
                used -= len(run.atoms)
                yield run.key, end
        active = still


def _start(
    key: Hashable,
    atoms: Atoms,
    optimizer: str | Callable,
    relax_cell: RelaxCell | Callable[[Hashable], RelaxCell],
    pull: Calculator | None,
) -> _Run | Outcome:
    """The run of a structure, or the end of one that cannot be relaxed."""
    atoms = atoms.copy()
    if problem := _unusable(atoms):
        return Outcome(atoms, False, problem, 0)
    wanted: Any = relax_cell(key) if callable(relax_cell) else relax_cell
    try:
        check_ordered(atoms)
        return _Run(key, atoms, optimizer, wanted, pull)
    except DeepRelaxError as error:
        return Outcome(atoms, False, f'{type(error).__name__}: {error}', 0)


def _evaluate(
    potential: Callable[[list[Atoms]], list[dict[str, Any]]], runs: list[_Run]
) -> list[dict[str, Any] | Exception]:
    """For each structure the results of the potential, or its exception."""
    try:
        return list(potential([run.atoms for run in runs]))
    except Exception as error:  # noqa: BLE001 - potentials raise anything
        if len(runs) == 1:
            return [error]
    half = len(runs) // 2
    return [*_evaluate(potential, runs[:half]), *_evaluate(potential, runs[half:])]


def _unusable(atoms: Atoms) -> str:
    """Why no potential can be called for a structure, or ''."""
    cell = atoms.cell.array
    if not (np.isfinite(cell).all() and np.isfinite(atoms.positions).all()):
        return 'positions or cell are not finite'
    volume = abs(np.linalg.det(cell))
    if len(atoms) == 0 or volume < SMALLEST_VOLUME * len(atoms):
        return f'{len(atoms)} atoms in a cell of {volume:.3g} A^3'
    height = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0).max()
    if height < SMALLEST_HEIGHT:
        return f'the cell is flat: its smallest height is {height:.2g} A'
    return ''
