"""Stages one after another, and how ASE's dynamics sees them."""

from functools import partial

from ase.utils.abc import Optimizable

from ase_deeprelax.errors import warn
from ase_deeprelax.geometry.degrees_of_freedom import unwrap
from ase_deeprelax.optimize.relaxation_step import get_origin, put_origin
from ase_deeprelax.optimize.stage import StageRecord
from ase_deeprelax.optimize.stage_run import Attempt
from ase_deeprelax.optimize.target import find_target


class Chain(Optimizable):
    """A refinement in stages; energy and gradient are those of the present stage.

    A stage that fails (its calculator raises or returns what is not finite, the structure
    explodes or ends above where the stage began) is undone, and the next one goes on from
    the best structure. The ordinary refinement, with the calculator that the atoms have, is
    a chain of one stage without a calculator of its own; there nothing is caught.

    Parameters
    ----------
    target : Target
        What relaxes where a stage does not say.
    stages : list of Stage
    optimizer : callable
        Where a stage has none.
    sigma : callable
        As `Prediction.sigma`.

    Attributes
    ----------
    records : list of StageRecord
        Of the stages so far, the present one last.
    lines : list of str
        For the log, which takes them away.
    """

    def __init__(self, target, stages, optimizer, sigma):
        self.target, self.stages = target, stages
        self.atoms = unwrap(target.moving)
        self.ordinary = stages[0].calculator is None
        self.lines = []
        self._optimizer, self._sigma = optimizer, sigma
        self._done = []
        self._attempt, self._index, self._upcoming = None, -1, 0
        self._again_converged = False  # is the present stage one that converged before

    # --- what goes on ------------------------------------------------------------------

    @property
    def records(self):
        running = self._attempt is not None and self._attempt.status == 'running'
        return self._done + ([self._attempt.record] if running else [])

    @property
    def waiting(self):
        """Whether a stage is over and another one to come."""
        return self._is_over() and self._upcoming < len(self.stages)

    @property
    def idle(self):
        """Whether sigma makes all stages superfluous."""
        return self._attempt is None and self._upcoming == len(self.stages)

    @property
    def ended(self):
        """Whether there is nothing left to do."""
        return self._is_over() and not self.waiting

    @property
    def title(self):
        """Of the present stage, for the log."""
        return f'{self._number(self._index)}, {self._attempt.title}'

    @property
    def attempt(self):
        """The present `Attempt`."""
        return self._attempt

    def _is_over(self):
        return self._attempt is not None and self._attempt.status != 'running'

    # --- going on ----------------------------------------------------------------------

    def begin(self, fmax):
        """At the start of a run: the first stage, or where the last run stopped.

        Raises
        ------
        MissingDependencyError, ModelError
            A potential is not there: known now, and not after hours in the stages before.
        """
        if not self.ordinary:
            for stage in self.stages:
                stage.made  # noqa: B018 - made here, kept there
        if self._attempt is None:
            self._done = []
            self._look_ahead()
            if not self.idle:
                self.turn(fmax)
        elif not self.waiting:
            if self.ended:
                self._again()
            elif self.atoms != self._attempt.seen:  # moved between two runs, by the user
                self._attempt.begin_here()
            self._guard(self._attempt.measure, fmax)

    def turn(self, fmax):
        """To the next stage."""
        self._enter(self._upcoming)
        self._guard(self._attempt.measure, fmax)

    def step(self, fmax):
        """One step of the present stage, unless it is over."""
        if not self._is_over():
            own = self._own_fmax(fmax)
            self._guard(partial(self._attempt.step, own), fmax)

    def moved(self, fmax):
        """The prediction was written into the atoms: the stage begins there."""
        if not self._is_over():
            # What a stage freezes is frozen at the predicted cell, not at that before it.
            own = self._attempt.stage.relax_cell is not None and self._attempt.steps == 0
            self._attempt.begin_here(self._target(self._attempt.stage) if own else None)
            self._guard(self._attempt.measure, fmax)

    def _target(self, stage):
        target = self.target
        if stage.relax_cell is not None:
            target = find_target(self.atoms, stage.relax_cell)
        return target.fitted(stage.optimizer or self._optimizer)

    def _enter(self, index):
        self._index, self._again_converged = index, False
        stage, before = self.stages[index], self.atoms.calc
        if not self.ordinary:
            self.atoms.calc = stage.made
        self._attempt = Attempt(
            stage,
            self._target(stage),
            stage.optimizer or self._optimizer,
            checked=not self.ordinary,
            before=before,
        )

    def _again(self):
        """The last stage anew, with what its optimizer has learnt, for another run."""
        last = self._attempt
        self._enter(self._index)
        if last.status != 'failed':
            self._attempt.take_over(last)
        self._again_converged = last.status == 'converged'

    def _guard(self, act, fmax):
        """Do it; what goes wrong ends the stage, and so does success."""
        attempt = self._attempt
        try:
            act()
        except Exception as error:
            if self.ordinary:
                raise
            attempt.fail(error)
        else:
            attempt.end(self._own_fmax(fmax), attempt.stage.steps)
        idly = self._again_converged and attempt.converged and attempt.steps == 0
        if attempt.status != 'running' and not idly:
            self._close()

    def _close(self):
        record, number = self._attempt.record, self._number(self._index)
        self._done.append(record)
        if not self.ordinary:
            self.lines.append(f'{number}, {record}')
        if record.status == 'failed':
            warn(f'{number} ({record.name}) failed and was rolled back: {record.reason}')
        self._look_ahead()

    def _look_ahead(self):
        """Find the next stage to run; those that sigma makes superfluous are recorded."""
        self._upcoming = self._index + 1
        for stage in self.stages[self._upcoming :]:
            if stage.min_sigma is None:
                break
            sigma = self._sigma(refined=self._attempt is not None)
            if sigma >= stage.min_sigma:
                break
            reason = f'sigma {sigma:.4f} A is below {stage.min_sigma:g} A'
            record = StageRecord(stage.name, status='skipped', reason=reason)
            self._done.append(record)
            self.lines.append(f'{self._number(self._upcoming)}, {record}')
            self._upcoming += 1

    def _number(self, index):
        return f'stage {index + 1} of {len(self.stages)}'

    def _own_fmax(self, fmax):
        own = self.stages[self._index].fmax
        return fmax if own is None else own

    # --- restart -----------------------------------------------------------------------

    def remember(self):
        """What a restart needs, ready for JSON."""
        return {
            'index': self._index,
            'upcoming': self._upcoming,
            'origin': get_origin(self.target.moving),
            'done': [record.remember() for record in self._done],
            'attempt': None if self._attempt is None else self._attempt.remember(),
        }

    def recall(self, data):
        """Go on from what `remember` gave; the atoms are where they were then."""
        self._done = [StageRecord(**record) for record in data['done']]
        put_origin(self.target.moving, data['origin'])
        if data['attempt'] is not None:
            self._enter(data['index'])
            self._attempt.recall(data['attempt'])
        self._upcoming = data['upcoming']

    # --- ASE's interface ---------------------------------------------------------------

    def get_value(self):
        if self.ordinary:
            return self._attempt.live.get_value()
        return self._attempt.value

    def get_gradient(self):
        # Measured once: a calculator that failed is not asked again, by the log either.
        if self.ordinary:
            return self._attempt.live.get_gradient()
        return self._attempt.gradient

    def converged(self, gradient, fmax):
        """Whether the last stage is, and none is to come."""
        if self.ordinary:
            return self._attempt.live.converged(gradient, fmax)
        return self._attempt.converged and not self.waiting

    def gradient_norm(self, gradient):
        return self._attempt.live.gradient_norm(gradient)

    def ndofs(self):
        return self._attempt.live.ndofs()

    def get_x(self):
        return self._attempt.live.get_x()

    def set_x(self, x):
        self._attempt.live.set_x(x)

    def iterimages(self):
        return self.atoms.iterimages()
