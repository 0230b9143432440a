"""One stage at work on a structure, and back to the best structure where it goes wrong."""

from time import perf_counter

import numpy as np

from ase_deeprelax import keys
from ase_deeprelax.calculators.batched import RUNAWAY
from ase_deeprelax.errors import DeepRelaxError, RefinementError
from ase_deeprelax.geometry.degrees_of_freedom import unwrap
from ase_deeprelax.optimize.relaxation_step import (
    Refinement,
    calculator_name,
    check_finite,
    get_origin,
    get_state,
    optimizer_name,
    put_origin,
    put_state,
)
from ase_deeprelax.optimize.stage import StageRecord, bare

# Forces are out of hand above this, eV/A, and above so many times those of the start.
EXPLOSION = 100.0, 10.0
# What a stage may end above its start, eV/atom: energies have noise, and basis sets that
# depend on the cell.
UPHILL = 1e-3

# What of an attempt a restart needs.
KEPT = ('status', 'reason', 'steps', 'seconds', 'value', 'gradient', 'start', 'best')
KEPT += ('memory', 'seen')


class Attempt:
    """A stage on its way: steps, what was measured, the best structure so far.

    Parameters
    ----------
    stage : Stage
    target : Target
        Its atoms have the calculator of the stage.
    optimizer : callable
    checked : bool
        Whether energies and forces are looked at, and what is wrong with them ends the
        stage, as `fail` does.
    before : ase Calculator, optional
        That of the stage before, for where nothing of this one is kept.

    Attributes
    ----------
    status, reason : str
        See `StageRecord`.
    value, gradient : float, eV; array, eV/A
        At the present structure.
    best : dict or None
        The structure to go back to, that of lowest energy, as of `get_state`, with what was
        measured there.
    start : dict or None
        The same of where the stage began, with volume and largest force.
    seen : ase.Atoms or None
        The structure that was measured last.
    """

    def __init__(self, stage, target, optimizer, *, checked, before=None):
        self.stage, self.checked = stage, checked
        self._aim(target)
        self.atoms = unwrap(self.target)
        self.status, self.reason, self.steps, self.seconds = 'running', '', 0, 0.0
        self.value, self.gradient = np.nan, np.full(self.live.ndofs(), np.nan)
        self.start = self.best = self.memory = self.seen = None
        self._optimizer = optimizer
        self._before = before
        self._refinement = None

    @property
    def converged(self):
        """Whether ``status`` says so."""
        return self.status == 'converged'

    @property
    def title(self):
        """For the log and for ``atoms.info``."""
        name = optimizer_name(self._optimizer)
        return f'{self.stage.name}, {name}' if self.checked else name

    @property
    def refinement(self):
        """The `Refinement`, made when it is first asked for."""
        if self._refinement is None:
            self._refinement = Refinement(
                self.target, self._optimizer, self._keep, self.memory
            )
        return self._refinement

    def _keep(self, memory):
        self.memory = memory

    def measure(self):
        """Energy and forces of the structure as it is.

        Raises
        ------
        RefinementError
            They are not finite, or the structure exploded.
        """
        begun, self.seen = perf_counter(), bare(self.atoms)
        try:
            value, gradient = self.live.get_value(), self.live.get_gradient()
        finally:
            self.seconds += perf_counter() - begun
        norm, volume = self.live.gradient_norm(gradient), abs(self.atoms.cell.volume)
        if self.checked:
            self._check(value, gradient, norm, volume)
        self.value, self.gradient = float(value), gradient
        if self.best is None or value < self.best['value']:
            self.best = {
                'value': self.value,
                'gradient': gradient.copy(),
                'state': get_state(self.target),
                'info': self._told(),
                'steps': self.steps,
            }
        if self.start is None:
            self.start = self.best | {'volume': volume, 'norm': float(norm)}

    def _check(self, value, gradient, norm, volume):
        if not np.isfinite(value):
            raise RefinementError(f'the energy is {value}')
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

    def step(self, fmax):
        """A step of the stage's optimizer, and its measurement."""
        begun = perf_counter()
        try:
            self.refinement.step(fmax)
        finally:
            self.seconds += perf_counter() - begun
        self.steps += 1
        self.atoms.info |= {keys.STAGE: self.title, keys.KIND: self.kind}
        self.measure()

    def take_over(self, last):
        """Filter and optimizer, with all it has learnt, of an attempt that is over."""
        self.target, self.live = last.target, last.live
        self.memory, self._refinement = last.memory, last.refinement

    def begin_here(self, target=None):
        """Forget where it began: the structure was moved by something else.

        Parameters
        ----------
        target : Target, optional
            One that measures strain from here; default the present one.
        """
        self.start = self.best = None
        if target is not None:
            self._aim(target)

    def _aim(self, target):
        self.target, self.kind = target.moving, target.kind
        self.live = self.target.__ase_optimizable__()

    def end(self, fmax, steps):
        """Give the stage its status where it is over.

        Parameters
        ----------
        fmax : float or None, eV/A
        steps : int or None
            As many it may take.
        """
        if fmax is not None and self.live.converged(self.gradient, fmax):
            self.status, self.reason = 'converged', ''
        elif steps is not None and self.steps >= steps:
            self.status = 'not converged'
            self.reason = f'no more than {steps} steps were allowed'
            self.atoms.info[keys.STAGE] = f'{self.title} (not converged)'
        else:
            return
        rise = (self.value - self.start['value']) / len(self.atoms)
        if self.checked and rise > UPHILL:
            self.fail(f'went uphill by {rise:.6f} eV/atom')

    def fail(self, error):
        """End it, and go back to the best structure.

        Parameters
        ----------
        error : Exception or str
        """
        self.status, self.reason = 'failed', _reason(error)
        self.memory = self._refinement = None
        if self.best is None or self.best['steps'] == 0:
            self.atoms.calc = self._before
        if self.best is None:
            return
        put_state(self.target, self.best['state'])
        self.value, self.gradient = self.best['value'], np.array(self.best['gradient'])
        for name in self._told():
            del self.atoms.info[name]
        self.atoms.info.update(self.best['info'])

    def _told(self):
        """What the atoms say of the step that they are from."""
        info = self.atoms.info
        return {name: info[name] for name in (keys.STAGE, keys.KIND) if name in info}

    @property
    def record(self):
        """A `StageRecord`."""
        known = self.start is not None
        return StageRecord(
            name=self.stage.name if self.checked else calculator_name(self.atoms.calc),
            optimizer=optimizer_name(self._optimizer),
            status=self.status,
            reason=self.reason,
            steps=self.steps,
            energy_before=self.start['value'] if known else None,
            energy_after=self.value if known else None,
            fmax=float(self.live.gradient_norm(self.gradient)) if known else None,
            seconds=self.seconds,
            atoms=bare(self.atoms),
        )

    def remember(self):
        """What a restart needs, ready for JSON."""
        data = {name: getattr(self, name) for name in KEPT}
        return data | {'origin': get_origin(self.target)}

    def recall(self, data):
        """Go on from what `remember` gave."""
        for name in KEPT:
            setattr(self, name, data[name])
        self.gradient = np.array(self.gradient, float)
        put_origin(self.target, data['origin'])


def _reason(error):
    if isinstance(error, (str, DeepRelaxError)):
        return str(error)
    return f'{type(error).__name__}: {error}'
