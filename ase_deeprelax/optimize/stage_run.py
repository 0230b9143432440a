"""One stage at work on a structure, and back to the best structure where it goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
from ase import Atoms
from ase.filters import Filter

from ase_deeprelax import keys
from ase_deeprelax.errors import DeepRelaxError, RefinementError
from ase_deeprelax.geometry.degrees_of_freedom import unwrap
from ase_deeprelax.geometry.snapshot import Snapshot
from ase_deeprelax.optimize.guide import GuidedCalculator, bare_calculator
from ase_deeprelax.optimize.one_shot_model import OneShotModel
from ase_deeprelax.optimize.relaxation_step import (
    RUNAWAY,
    GuardedOptimizer,
    calculator_name,
    check_finite,
    energy_of,
    optimizer_name,
)
from ase_deeprelax.optimize.stage import Stage, StageRecord, bare
from ase_deeprelax.optimize.target import Target
from ase_deeprelax.result import Relaxation

# Forces are out of hand above this, eV/A, and above so many times those of the start.
EXPLOSION = 100.0, 10.0
# What a stage may end above its start, eV/atom: energies have noise, and basis sets that
# depend on the cell.
UPHILL = 1e-3

# What of a run a restart needs, beside the state of its optimizer.
KEPT = ('status', 'reason', 'steps', 'seconds', 'value', 'energy', 'gradient', 'start')
KEPT += ('best', 'measured')


class StageRun:
    """A stage at work: its steps, what was measured, the best structure so far.

    Parameters
    ----------
    stage : Stage
    target : Target
        What relaxes, unless the stage says something else. The atoms get the calculator of
        the stage.
    optimizer : str or callable
        Of stages that have none.
    model : OneShotModel
        Of the prediction that pulls in a guided stage.
    ordinary : bool
        An ordinary relaxation is done with the calculator that the atoms have, and raises
        its errors; otherwise energies and forces are checked, and what is wrong with them
        ends the stage, as `fail` does.

    Attributes
    ----------
    status, reason : str
        See `StageRecord`.
    live : ase.utils.abc.Optimizable
        Energy and forces of the structure as it is.
    value, gradient : float, eV; array, eV/A
        Those of the structure that was measured last, with the pull of a guided stage.
    energy : float, eV
        The same without this pull.
    best : dict or None
        The structure to go back to, that of lowest energy, and what was measured there.
    start : dict or None
        The same of where the stage began, with volume and largest force.
    measured : ase.Atoms or None
        The structure that was measured last.
    """

    def __init__(
        self,
        stage: Stage,
        target: Target,
        optimizer: str | Callable,
        model: OneShotModel,
        *,
        ordinary: bool,
    ):
        self.stage, self.ordinary, self._model = stage, ordinary, model
        self.atoms = unwrap(target.moving)
        self._optimizer = stage.optimizer or optimizer
        # For where nothing of this stage is kept.
        self._calculator_before = bare_calculator(self.atoms.calc)
        self.atoms.calc = self._calculator_before
        if not ordinary:
            self.atoms.calc = stage.build_calculator()
        self._given = target
        self._aim()
        self.status, self.reason, self.steps, self.seconds = 'running', '', 0, 0.0
        self.value, self.energy = np.nan, np.nan
        self.gradient = np.full(self.live.ndofs(), np.nan)
        self.start: dict[str, Any] | None = None
        self.best: dict[str, Any] | None = None
        self.measured: Atoms | None = None

    def _aim(self) -> None:
        """Make filter and optimizer for the structure as it is."""
        target = self._given.of_stage(
            self.stage.relax_cell, self.atoms.calc, self._optimizer
        )
        self.target, self.kind = target.moving, target.kind
        self.live = self.target.__ase_optimizable__()
        self.guarded = GuardedOptimizer(self.target, self._optimizer)

    @property
    def title(self) -> str:
        """For the log and for ``atoms.info``."""
        name = optimizer_name(self._optimizer)
        return name if self.ordinary else f'{self.stage.name}, {name}'

    # --- ASE's Optimizable ---------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name.startswith('_'):  # on the way out of a pickle there is nothing yet
            raise AttributeError(name)
        return getattr(self.live, name)

    def get_value(self) -> float:
        # Measured once: a calculator that failed is not called again, by the log either.
        return energy_of(self.live) if self.ordinary else self.value

    def get_gradient(self) -> np.ndarray:
        return self.live.get_gradient() if self.ordinary else self.gradient

    def converged(self, gradient: np.ndarray, fmax: float) -> bool:
        if self.ordinary:
            return self.live.converged(gradient, fmax)
        return self.status == 'converged'

    # --- the stage -----------------------------------------------------------------------

    def measure(self) -> None:
        """Get energy and forces of the structure as it is.

        Raises
        ------
        RefinementError
            They are not finite, or the structure exploded.
        """
        begun, self.measured = perf_counter(), bare(self.atoms)
        try:
            value, gradient = energy_of(self.live), self.live.get_gradient()
        finally:
            self.seconds += perf_counter() - begun
        norm, volume = self.live.gradient_norm(gradient), abs(self.atoms.cell.volume)
        if not self.ordinary:
            self._check(value, gradient, norm, volume)
        self.value, self.gradient = value, gradient
        energy = bare_calculator(self.atoms.calc).get_property('energy', self.atoms)
        self.energy = float(np.asarray(energy).item())
        if self.best is None or value < self.best['value']:
            self.best = {
                'value': self.value,
                'energy': self.energy,
                'gradient': gradient.copy(),
                'state': vars(Snapshot.take(self.target)),
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

    def step(self, fmax: float) -> None:
        """Take a step of the stage's optimizer, and measure."""
        begun = perf_counter()
        try:
            self.guarded.step(fmax)
        finally:
            self.seconds += perf_counter() - begun
        self.steps += 1
        self.atoms.info |= {keys.STAGE: self.title, keys.KIND: self.kind}
        self.measure()

    def take_over(self, last: StageRun) -> None:
        """Go on with the filter and the optimizer of a run that is over."""
        self.target, self.live = last.target, last.live
        self.guarded = last.guarded

    def begin_here(self) -> None:
        """Forget where it began: the structure was moved by something else."""
        self.start = self.best = None
        if self.stage.relax_cell is not None and self.steps == 0:
            # What a stage of its own holds is held at this cell, not at that before it.
            self._aim()

    def guide(self, prediction: Relaxation | None) -> None:
        """Let a prediction, if there is one, pull in a guided stage."""
        if not self.stage.guided or prediction is None:
            return
        self.leave()
        calculator, strength = self.atoms.calc, self.stage.guided
        name = calculator_name(calculator) if self.ordinary else self.stage.name
        self.atoms.calc = self._model.guided(calculator, name, prediction, strength)

    def leave(self) -> None:
        """Leave the bare calculator in the atoms, with what it calculated last."""
        self.atoms.calc = bare_calculator(self.atoms.calc)

    def end(self, fmax: float) -> None:
        """Give the stage its status where it is over.

        Parameters
        ----------
        fmax : float, eV/A
        """
        limit = self.stage.steps
        if self.live.converged(self.gradient, fmax):
            self.status, self.reason = 'converged', ''
        elif limit is not None and self.steps >= limit:
            self.status = 'not converged'
            self.reason = f'no more than {limit} steps were allowed'
            self.atoms.info[keys.STAGE] = f'{self.title} (not converged)'
        else:
            return
        begun = self.value if self.start is None else self.start['value']
        rise = (self.value - begun) / len(self.atoms)
        if rise > UPHILL and not self.ordinary:
            self.fail(f'went uphill by {rise:.6f} eV/atom')

    def fail(self, error: Exception | str) -> None:
        """End the stage, and go back to the best structure."""
        known = isinstance(error, (str, DeepRelaxError))
        self.status = 'failed'
        self.reason = str(error) if known else f'{type(error).__name__}: {error}'
        if self.best is None or self.best['steps'] == 0:
            self.atoms.calc = self._calculator_before
        if self.best is None:
            return
        Snapshot(**self.best['state']).restore(self.target)
        self.value, self.energy = self.best['value'], self.best['energy']
        self.gradient = np.array(self.best['gradient'])
        for name in self._info():
            del self.atoms.info[name]
        self.atoms.info.update(self.best['info'])

    def _info(self) -> dict[str, str]:
        """The names in ``atoms.info`` that a step writes."""
        info = self.atoms.info
        return {name: info[name] for name in (keys.STAGE, keys.KIND) if name in info}

    @property
    def record(self) -> StageRecord:
        """What became of the stage so far."""
        known = self.start is not None
        before = None if self.start is None else self.start['energy']
        calculator, pulled = self.atoms.calc, None
        if known and isinstance(calculator, GuidedCalculator):
            pulled = calculator.pulled(self.atoms)
        return StageRecord(
            name=calculator_name(bare_calculator(calculator))
            if self.ordinary
            else self.stage.name,
            optimizer=optimizer_name(self._optimizer),
            status=self.status,
            reason=self.reason,
            steps=self.steps,
            energy_before=before,
            energy_after=self.energy if known else None,
            fmax=float(self.live.gradient_norm(self.gradient)) if known else None,
            seconds=self.seconds,
            atoms=bare(self.atoms),
            pulled=pulled,
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
            'origin': get_origin(self.target),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        for name in KEPT:
            setattr(self, name, state[name])
        self.gradient = np.array(self.gradient, float)
        put_origin(self.target, state['origin'])
        if state['learnt'] is not None:
            self.guarded.load_state_dict(state['learnt'])


def get_origin(target: Atoms | Filter) -> dict[str, np.ndarray]:
    """The cell that a filter measures strain from, and the strain that it keeps itself."""
    names = ('orig_cell', 'origcell', 'strain') if isinstance(target, Filter) else ()
    return {
        name: np.array(getattr(target, name)) for name in names if hasattr(target, name)
    }


def put_origin(target: Atoms | Filter, origin: dict[str, np.ndarray]) -> None:
    """Let a new filter measure strain as an earlier one did."""
    for name, value in origin.items():
        setattr(target, name, np.array(value, float))
