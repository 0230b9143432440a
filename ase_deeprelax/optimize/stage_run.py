"""One stage at work on a structure, and back to the best structure where it goes wrong."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import compare_atoms
from ase.utils.abc import Optimizable

from ase_deeprelax import keys
from ase_deeprelax.calculators.attached import calculator_name
from ase_deeprelax.data.one_line import count
from ase_deeprelax.errors import RefinementError, reason_of
from ase_deeprelax.geometry.degrees_of_freedom import unwrap
from ase_deeprelax.geometry.snapshot import Snapshot
from ase_deeprelax.optimize.ase_optimizers import optimizer_name
from ase_deeprelax.optimize.guide import GuidedCalculator, bare_calculator, strength_for
from ase_deeprelax.optimize.options import Options
from ase_deeprelax.optimize.relaxation_step import (
    RUNAWAY,
    GuardedOptimizer,
    check_finite,
    energy_of,
    own_energy,
)
from ase_deeprelax.optimize.stage import Stage, StageRecord, bare
from ase_deeprelax.optimize.target import Target, get_origin, put_origin
from ase_deeprelax.result import Relaxation

# Forces are out of hand above this, eV/A, and above so many times those of the start.
EXPLOSION = 100.0, 10.0
# What a stage may end above its start, eV/atom: energies have noise, and basis sets that
# depend on the cell.
UPHILL = 1e-3

# What of a run a restart needs, beside the state of its optimizer.
KEPT = (
    *('status', 'reason', 'steps', 'seconds', 'value', 'energy', 'gradient'),
    *('start', 'best', 'measured'),
)


class StageRun(Optimizable):
    """A stage at work: its steps, what was measured, the best structure so far.

    A stage without a calculator of its own is an ordinary relaxation with the one that the
    atoms have, and raises its errors. In all others energies and forces are checked; an
    error, or what is wrong with these numbers, ends the stage, and the structure goes back
    to the best one.

    Parameters
    ----------
    index : int
        Of the stage in its chain.
    stage : Stage
    target : Target
        What relaxes, unless the stage says something else. The atoms get the calculator of
        the stage.
    options : Options

    Attributes
    ----------
    calculator : ase Calculator
        That of the stage, without the pull of a prediction.
    status, reason : str
        See `StageRecord`.
    moving : ase.Atoms or ase.filters.Filter
        What its optimizer moves.
    live : ase.utils.abc.Optimizable
        Energy and forces of the structure as it is.
    value, gradient : float, eV; array, eV/A
        Those of the structure that was measured last, with the pull of a guided stage.
    energy : float, eV
        See `own_energy`.
    best : dict or None
        The structure to go back to, that of lowest energy, and what was measured there.
    start : dict or None
        The same of where the stage began, with volume and largest force.
    measured : ase.Atoms or None
        The structure that was measured last.
    """

    def __init__(self, index: int, stage: Stage, target: Target, options: Options):
        self.index, self.stage, self._options = index, stage, options
        self.ordinary = stage.calculator is None
        self.atoms = unwrap(target.moving)
        self._optimizer = stage.optimizer or options.optimizer
        # For where nothing of this stage is kept.
        self._calculator_before = self.calculator = bare_calculator(self.atoms.calc)
        if not self.ordinary:
            self.calculator = stage.build_calculator()
        self.atoms.calc = self.calculator
        self._target = target
        self._aim()
        self.status, self.reason, self.steps, self.seconds = 'running', '', 0, 0.0
        self.value, self.energy = np.nan, np.nan
        self.gradient = np.full(self.live.ndofs(), np.nan)
        self.start: dict[str, Any] | None = None
        self.best: dict[str, Any] | None = None
        self.measured: Atoms | None = None
        self._goes_on = False  # whether the stage had converged in an earlier run

    def _aim(self) -> None:
        """Make filter and optimizer for the structure as it is."""
        target = self._target.of_stage(
            self.stage.relax_cell, self.atoms.calc, self._optimizer
        )
        self.moving, self.kind = target.moving, target.kind
        self.live = self.moving.__ase_optimizable__()
        self.guarded = GuardedOptimizer(self.moving, self._optimizer)
        self._constraints = list(self.atoms.constraints)

    @property
    def name(self) -> str:
        """Of the calculator."""
        return calculator_name(self.calculator) if self.ordinary else self.stage.name

    @property
    def title(self) -> str:
        """For the log and for ``atoms.info``."""
        name = optimizer_name(self._optimizer)
        return name if self.ordinary else f'{self.name}, {name}'

    @property
    def over(self) -> bool:
        """Whether the stage has come to its end, good or bad."""
        return self.status != 'running'

    @property
    def nothing_new(self) -> bool:
        """Whether it had converged in an earlier run, and is so still."""
        return self._goes_on and self.status == 'converged' and self.steps == 0

    # --- the stage -----------------------------------------------------------------------

    def advance(self, fmax: float, *, moves: bool) -> None:
        """Take a step, and measure; an error or success ends the stage.

        Parameters
        ----------
        fmax : float, eV/A
            Of stages that have none.
        moves : bool
            Whether to take a step of the stage's optimizer; else only energy and forces of
            the structure as it is are measured.
        """
        if self.stage.fmax is not None:
            fmax = self.stage.fmax
        begun = perf_counter()
        try:
            if moves:
                self.guarded.step(fmax)
                self.steps += 1
                self.atoms.info |= {keys.STAGE: self.title, keys.KIND: self.kind}
                self.atoms.info.pop(keys.VERIFIED, None)  # this judges the prediction
            self._measure()
        except Exception as error:
            if self.ordinary:
                raise
            self._fail(error)
        else:
            self._end(fmax)
        finally:
            self.seconds += perf_counter() - begun

    def _measure(self) -> None:
        self.measured = bare(self.atoms)
        value, gradient = energy_of(self.live), self.live.get_gradient()
        norm, volume = self.live.gradient_norm(gradient), abs(self.atoms.cell.volume)
        if not self.ordinary:
            self._check(value, gradient, norm, volume)
        self.value, self.gradient = value, gradient
        self.energy = own_energy(self.atoms)
        if self.best is None or value < self.best['value']:
            self.best = {
                'value': self.value,
                'energy': self.energy,
                'gradient': gradient.copy(),
                'state': vars(Snapshot.take(self.moving)),
                'info': self._info(),
                'steps': self.steps,
            }
        if self.start is None:
            self.start = self.best | {'volume': volume, 'norm': float(norm)}

    def _check(
        self, value: float, gradient: np.ndarray, norm: float, volume: float
    ) -> None:
        check_finite(self.atoms, value)
        check_finite(self.atoms, gradient)
        if self.start is None:
            return
        limit = max(EXPLOSION[0], EXPLOSION[1] * self.start['norm'])
        if norm > limit:
            raise RefinementError(f'the largest force is {norm:.3g} eV/A')
        low, high = (ratio * self.start['volume'] for ratio in RUNAWAY)
        if not low <= volume <= high:
            self.best = self.start  # on such a slide the lowest energy is the worst place
            raise RefinementError(
                f'the cell ran away: its volume is {volume / self.start["volume"]:.3g} '
                'times that at the start of the stage'
            )

    def _end(self, fmax: float) -> None:
        """Give the stage its status where it is over."""
        limit = self.stage.steps
        if self.live.converged(self.gradient, fmax):
            self.status, self.reason = 'converged', ''
        elif limit is not None and self.steps >= limit:
            self.status = 'not converged'
            self.reason = f'no more than {count(limit, "step")} may be taken'
            self.atoms.info[keys.STAGE] = f'{self.title} (not converged)'
        else:
            return
        begun = self.value if self.start is None else self.start['value']
        rise = (self.value - begun) / len(self.atoms)
        if rise > UPHILL and not self.ordinary:
            self._fail(f'went uphill by {rise:.6f} eV/atom')

    def _fail(self, error: Exception | str) -> None:
        """End the stage, and go back to the best structure."""
        self.status = 'failed'
        self.reason = error if isinstance(error, str) else reason_of(error)
        if self.best is None or self.best['steps'] == 0:
            self.atoms.calc = self._calculator_before
        if self.best is None:
            return
        Snapshot(**self.best['state']).restore(self.moving)
        self.value, self.energy = self.best['value'], self.best['energy']
        self.gradient = np.array(self.best['gradient'])
        for name in self._info():
            del self.atoms.info[name]
        self.atoms.info.update(self.best['info'])

    def _info(self) -> dict[str, str]:
        """The names in ``atoms.info`` that a step writes."""
        info = self.atoms.info
        return {name: info[name] for name in (keys.STAGE, keys.KIND) if name in info}

    # --- beside the prediction, and between runs -----------------------------------------

    @property
    def left_alone(self) -> bool:
        """Whether the atoms still have the calculator that the stage began with."""
        return bare_calculator(self.atoms.calc) is self.calculator

    @property
    def disturbed(self) -> bool:
        """Whether something else has changed what was measured, or what is fixed."""
        changes = compare_atoms(self.measured, self.atoms)
        return bool(changes) or self.atoms.constraints != self._constraints

    def begin_here(self, target: Target) -> None:
        """Forget where it began: what was measured was changed by something else."""
        self.start = self.best = None
        if not self._fits:
            self._target = target
            self._aim()

    @property
    def _fits(self) -> bool:
        """Whether filter and optimizer are of this cell, constraints, moments, charges."""
        changed = set(compare_atoms(self.measured, self.atoms))
        same = changed.isdisjoint(('cell', 'initial_magmoms', 'initial_charges'))
        return same and self.atoms.constraints == self._constraints

    def take_over(self, former: StageRun) -> None:
        """Go on with filter and optimizer of a run of this stage.

        Where that failed, or something else than places was changed since, they are made
        anew.
        """
        if former.status != 'failed' and former._fits:
            self.moving, self.live = former.moving, former.live
            self.guarded = former.guarded
        self._goes_on = former.status == 'converged' and not former.disturbed

    def guide(self, prediction: Relaxation | None) -> None:
        """Let a prediction, if there is one, pull in a guided stage."""
        strength = self.stage.guided
        if not strength or prediction is None:
            return
        if strength is True:
            calibration = self._options.calibration
            strength = strength_for(self.name.lower(), prediction.kind, calibration)
        self.atoms.calc = GuidedCalculator(self.calculator, prediction, strength)

    def leave(self) -> None:
        """Leave the bare calculator in the atoms, with what it calculated last."""
        self.atoms.calc = bare_calculator(self.atoms.calc)

    @property
    def record(self) -> StageRecord:
        """What became of the stage so far."""
        numbers: dict[str, Any] = {}
        if self.start is not None:
            numbers = {
                'energy_before': self.start['energy'],
                'energy_after': self.energy,
                'fmax': float(self.live.gradient_norm(self.gradient)),
            }
            # A calculator that failed is not called again.
            if isinstance(self.atoms.calc, GuidedCalculator) and self.status != 'failed':
                numbers['pulled'] = self.atoms.calc.pulled(self.moving)
        # The numbers are those of the structure that was measured, whatever came after it.
        measured = None if self.over else self.measured
        return StageRecord(
            name=self.name,
            optimizer=optimizer_name(self._optimizer),
            status=self.status,
            reason=self.reason,
            steps=self.steps,
            seconds=self.seconds,
            atoms=bare(self.atoms if measured is None else measured),
            **numbers,
        )

    def state_dict(self, *, copied: bool = False) -> dict[str, Any]:
        """What is needed to go on from here, ready for JSON.

        Parameters
        ----------
        copied : bool
            Without what the optimizer has learnt, which may be a large matrix.
        """
        forget = copied or self.status == 'failed'
        state = {name: getattr(self, name) for name in KEPT}
        return state | {
            'learnt': None if forget else self.guarded.state_dict(),
            'origin': get_origin(self.moving),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        for name in KEPT:
            setattr(self, name, state[name])
        self.gradient = np.array(self.gradient, float)
        put_origin(self.moving, state['origin'])
        if state['learnt'] is not None:
            self.guarded.load_state_dict(state['learnt'])

    # --- ASE's Optimizable: the structure as the dynamics sees it ------------------------

    def ndofs(self) -> int:
        return self.live.ndofs()

    def get_x(self) -> np.ndarray:
        return self.live.get_x()

    def set_x(self, x: np.ndarray) -> None:
        self.live.set_x(x)

    def get_value(self) -> float:
        # Measured once: a calculator that failed is not called again, by the log either.
        return energy_of(self.live) if self.ordinary else self.value

    def get_gradient(self) -> np.ndarray:
        return self.live.get_gradient() if self.ordinary else self.gradient

    def gradient_norm(self, gradient: np.ndarray) -> float:
        return self.live.gradient_norm(gradient)

    def converged(self, gradient: np.ndarray, fmax: float) -> bool:
        if self.ordinary:
            return self.live.converged(gradient, fmax)
        return self.status == 'converged'

    def iterimages(self) -> Any:
        return self.live.iterimages()
