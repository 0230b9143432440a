"""One relaxation with a calculator whose evaluations are counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, cast

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.singlepoint import SinglePointCalculator

from ase_deeprelax.calculators.attached import (
    NO_STRESS,
    calculator_name,
    has_stress,
    one_number,
)
from ase_deeprelax.data.one_line import count
from ase_deeprelax.errors import RefinementError, StructureError, reason_of
from ase_deeprelax.geometry.free_strain import RelaxCell
from ase_deeprelax.geometry.motion import project_strain
from ase_deeprelax.optimize.refinable import check_refinable
from ase_deeprelax.optimize.relaxation_step import RUNAWAY, GuardedOptimizer
from ase_deeprelax.optimize.target import Target, find_target
from ase_deeprelax.predict.prediction_checks import check_prediction

PROPERTIES = ('energy', 'forces', 'stress')


@dataclass(eq=False)
class RelaxationRun:
    """The course and the end of one relaxation, also of one that failed.

    Attributes
    ----------
    atoms : ase.Atoms
        Where it ended; where it is ok, with energy, forces and stress attached.
    ok : bool
        False where the calculator raised or returned numbers that are not finite, the
        structure is neither a crystal nor one layer, ran away, or ended as what
        `check_prediction` refuses.
    converged : bool
        Whether no force on an atom or on the cell exceeds fmax.
    reason : str
        Why it failed or did not converge, or ''.
    steps, calls : int
        Steps of the optimizer; evaluations of the calculator.
    seconds : float
        Wall time.
    curve : list of [float, float]
        Energy per atom (eV) and `largest_force` (eV/A) of each evaluation.
    kind : str
        What was relaxed: 'bulk' or 'layer', with ', cell fixed' where it was.
    """

    atoms: Atoms
    ok: bool = False
    converged: bool = False
    reason: str = ''
    steps: int = 0
    calls: int = 0
    seconds: float = 0.0
    curve: list[list[float]] = field(default_factory=list)
    kind: str = ''


def run_relaxation(
    atoms: Atoms,
    calculator: Any,
    *,
    optimizer: Callable,
    fmax: float,
    steps: int,
    initial: Atoms | None = None,
    relax_cell: RelaxCell | Callable | None = None,
) -> RelaxationRun:
    """Relax positions and cell of a structure, and count steps and calls.

    All optimizers stop by one criterion, that of `largest_force`, which depends on the
    structure alone. ASE's filters measure forces against the cell that they were made
    with, and optimizers may have a criterion of their own; where a filter is given, that
    decides, because forces that it holds back never vanish.

    Parameters
    ----------
    atoms : ase.Atoms
        Where to start; not changed.
    calculator : ase Calculator
    optimizer : callable
        As `find_optimizer` takes it.
    fmax : float, eV/A
    steps : int
        At most so many.
    initial : ase.Atoms, optional
        The end is compared with it: a relaxation may change so much; default ``atoms``.
    relax_cell : bool, str, array or callable, optional
        What of the cell moves, as `relax` takes it, with the same default: all of it, of a
        layer its plane. Or a function from atoms to a filter of ASE.

    Returns
    -------
    RelaxationRun
        Never an exception of the calculator or the optimizer: that is its ``reason``.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase.calculators.emt import EMT
    >>> from ase.optimize import BFGS
    >>> run = run_relaxation(bulk('Cu', a=3.7), EMT(), optimizer=BFGS, fmax=0.01, steps=100)
    >>> run.converged, run.calls == len(run.curve) == run.steps + 1
    (True, True)
    """
    initial = atoms if initial is None else initial
    run = RelaxationRun(atoms.copy())
    start = perf_counter()
    try:
        if hasattr(calculator, 'reset'):
            calculator.reset()  # a run that failed may have left it half made
        run.atoms.calc = counting = CountingCalculator(calculator)
        run.curve = counting.curve
        check_refinable(run.atoms)
        target = _target(run.atoms, relax_cell, calculator).fitted(optimizer)
        run.kind, counting.free_strain = target.kind, target.free_strain
        guarded = GuardedOptimizer(target.moving, optimizer)
        volume = initial.get_volume()
        _take_steps(run, guarded, volume, fmax=fmax, steps=steps, by_filter=target.given)
        check_prediction(initial, run.atoms, layer=target.layer)
        run.ok = True
    except Exception as error:  # noqa: BLE001 - calculators raise anything
        run.reason = reason_of(error)
    run.seconds = perf_counter() - start
    run.converged = run.converged and run.ok
    if run.atoms.calc is not None:
        run.calls = run.atoms.calc.calls
    # The calculator is used for the next structure, so its numbers replace it.
    run.atoms.calc = (
        SinglePointCalculator(run.atoms, **run.atoms.calc.results) if run.ok else None
    )
    return run


def _target(
    atoms: Atoms, relax_cell: RelaxCell | Callable | None, calculator: Any
) -> Target:
    """The target of a relaxation, or an error where the calculator cannot relax it.

    Wires and molecules are refused, and cells that relax without a stress.
    """
    target = find_target(atoms, relax_cell)
    if target.refusal and not target.given:
        raise StructureError(target.refusal)
    if not (target.cell_fixed or has_stress(calculator)):
        raise RefinementError(f'{calculator_name(calculator)} {NO_STRESS}')
    return target


def _take_steps(
    run: RelaxationRun,
    guarded: GuardedOptimizer,
    volume: float,
    *,
    fmax: float,
    steps: int,
    by_filter: bool,
) -> None:
    """Step until the run is converged: by the filter's criterion or the largest force."""
    low, high = RUNAWAY
    while True:
        run.atoms.get_potential_energy()
        converged = guarded.converged(fmax) if by_filter else run.curve[-1][1] <= fmax
        run.converged = converged
        if converged or run.steps == steps:
            break
        guarded.step(fmax)
        run.steps += 1
        ratio = run.atoms.get_volume() / volume
        if not low < ratio < high:
            raise RefinementError(
                f'the cell ran away: after {count(run.steps, "step")} its volume is '
                f'{ratio:.3g} times that of the input; use another potential or '
                'optimizer'
            )
    if not run.converged:
        run.reason = f'not converged to {fmax:g} eV/A in {count(run.steps, "step")}'


def largest_force(
    atoms: Atoms,
    forces: np.ndarray,
    stress: np.ndarray | None,
    free_strain: np.ndarray | None = None,
) -> float:
    """The largest force on an atom, or on the cell per atom as cell filters have it, eV/A.

    Parameters
    ----------
    atoms : ase.Atoms
        Constraints take away the forces against which they hold.
    forces : (n_atoms, 3), eV/A
    stress : (6,), eV/A^3, or None
        None: the cell does not count.
    free_strain : (6, 6), optional
        Projection on the strains whose stress counts, see `motion.Motion`; default all.

    Returns
    -------
    float

    Examples
    --------
    >>> from ase.build import bulk
    >>> cell = bulk('Cu', a=3.6)
    >>> pressed = [0.01, 0.01, 0.01, 0, 0, 0]
    >>> round(largest_force(cell, np.zeros((1, 3)), pressed), 6)
    0.11664
    """
    atoms = atoms.copy()
    atoms.calc = SinglePointCalculator(atoms, forces=forces, stress=stress)
    rows = atoms.get_forces()
    if stress is not None:
        on_cell = atoms.get_stress(voigt=False) * atoms.cell.volume / len(atoms)
        if free_strain is not None:
            on_cell = project_strain(free_strain, on_cell)
        rows = np.concatenate([rows, on_cell])
    return float(np.sqrt((rows**2).sum(axis=1).max()))


class CountingCalculator(Calculator):
    """A calculator that counts its evaluations and keeps their energies and forces.

    Each evaluation gives energy, forces and stress together (a calculator that knows no
    stress, energy and forces) and is really made: results that the calculator still holds
    of an earlier run are not used.

    Parameters
    ----------
    calculator : ase Calculator

    Attributes
    ----------
    calls : int
    curve : list of [float, float]
        As in `RelaxationRun`.
    free_strain : (6, 6) or None
        As in `largest_force`.
    """

    def __init__(self, calculator: Any) -> None:
        super().__init__()
        self.calculator = calculator
        self.implemented_properties = ['energy', 'forces']
        if has_stress(calculator):
            self.implemented_properties.append('stress')
        self.calls = 0
        self.curve: list[list[float]] = []
        self.free_strain: np.ndarray | None = None

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = PROPERTIES,
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        current = cast('Atoms', self.atoms)  # the base class has set it
        results = self._evaluate()
        for name, value in results.items():
            if not np.isfinite(value).all():
                raise RefinementError(f'{_where(current, name, value)} is not finite')
        forces, stress = results['forces'], results.get('stress')
        force = largest_force(current, forces, stress, self.free_strain)
        self.curve.append([results['energy'] / len(current), force])
        self.results = results

    def _evaluate(self) -> dict[str, Any]:
        inner, names = self.calculator, self.implemented_properties
        if isinstance(inner, Calculator):
            # In one go: some calculators would start anew for the stress.
            inner.calculate(self.atoms, names, inner.check_state(self.atoms))
        results = {name: inner.get_property(name, self.atoms) for name in names}
        return results | {'energy': one_number(results['energy'])}


def _where(atoms: Atoms, name: str, value: np.ndarray) -> str:
    if name != 'forces':
        return f'the {name}'
    index = int(np.flatnonzero(~np.isfinite(value).all(axis=1))[0])
    return f'the force on atom {index} ({atoms.symbols[index]})'
