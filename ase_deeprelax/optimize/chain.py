"""The stages of one structure: the prediction, then the refinement with calculators."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from ase import Atoms
from ase.filters import Filter
from ase.optimize import RestartError

from ase_deeprelax import keys
from ase_deeprelax.errors import warn
from ase_deeprelax.geometry.degrees_of_freedom import unwrap
from ase_deeprelax.geometry.free_strain import RelaxCell
from ase_deeprelax.geometry.snapshot import assign
from ase_deeprelax.optimize.one_shot import OneShotStage
from ase_deeprelax.optimize.one_shot_model import OneShotModel
from ase_deeprelax.optimize.relaxation_step import (
    GuardedOptimizer,
    check_refinable,
    find_optimizer,
    has_calculator,
)
from ase_deeprelax.optimize.stage import Stage, StageRecord, bare
from ase_deeprelax.optimize.stage_run import StageRun, get_origin, put_origin
from ase_deeprelax.optimize.target import Target, find_target


class Chain:
    """The stages of one structure, and how ASE's dynamics sees them.

    Stage 0 is the prediction. A stage that fails (its calculator raises or returns numbers
    that are not finite, the structure explodes or ends above where the stage began) is
    undone, and the next one goes on from the best structure. Without stages of its own, the
    chain refines with the calculator that the atoms have: an ordinary relaxation, in which
    errors are raised. Where the atoms have none, the prediction is all there is.

    Parameters
    ----------
    given : ase.Atoms or ase.filters.Filter
        Not touched before `begin`.
    stages : list of Stage
        Empty: an ordinary relaxation, or the prediction alone.
    optimizer : callable
        Of stages that have none.
    gate : float or None, eV/atom
        How much a prediction may raise the energy.
    relax_cell : callable
        Returns what of the cell of bare atoms may change, see `find_freedom`.
    model : OneShotModel
    guided : bool or float
        Of an ordinary relaxation, see `Stage`; default False.

    Attributes
    ----------
    one_shot : OneShotStage
    run : StageRun or None
        The present stage of the refinement; None: it has not begun, or is not needed.
    lines : list of str
        For the log, which takes them away.
    verification : Verification or None
        What a potential says of the prediction.
    """

    def __init__(
        self,
        given: Atoms | Filter,
        stages: list[Stage],
        *,
        optimizer: Callable,
        gate: float | None,
        relax_cell: Callable[[], RelaxCell | None],
        model: OneShotModel,
        guided: bool | float = False,
    ):
        self.given, self.atoms = given, unwrap(given)
        self._model, self.verification = model, None
        self.one_shot = OneShotStage(self.atoms, lambda: model.propose(given, relax_cell()))
        self.lines: list[str] = []
        self._chosen, self._optimizer, self._gate = stages, optimizer, gate
        self._relax_cell, self._guided = relax_cell, guided
        self._start: Atoms | None = None
        self._reset([])

    def _reset(self, stages: list[Stage]) -> None:
        self.stages = stages
        self.run: StageRun | None = None
        self._done: list[StageRecord] = []
        self._index, self._next = -1, 0  # of the present stage, and of the one to come
        self._target: Target | None = None
        self._goes_on = False  # whether the present stage had converged in an earlier run

    # --- where it stands -----------------------------------------------------------------

    @property
    def ordinary(self) -> bool:
        """Whether it refines with the calculator that the atoms have."""
        return not self._chosen

    @property
    def target(self) -> Target:
        """What relaxes in stages that do not choose for themselves."""
        return self._target or find_target(self.given, self._relax_cell())

    @property
    def records(self) -> list[StageRecord]:
        """`StageRecord` of the prediction and of each stage so far."""
        records = [] if self.one_shot.record is None else [self.one_shot.record]
        records += self._done
        if self.run is not None and self.run.status == 'running':
            records.append(self.run.record)
        return records

    @property
    def waiting(self) -> bool:
        """Whether a stage is over and another one is to come."""
        over = self.run is not None and self.run.status != 'running'
        return over and self._next < len(self.stages)

    @property
    def over(self) -> bool:
        """Whether the last stage ended without convergence, and all else was tried."""
        failed = self.run is not None and self.run.status not in ('running', 'converged')
        return failed and not self.waiting and not self.one_shot.pending

    @property
    def _is_needed(self) -> bool:
        """Whether there is a stage that is not superfluous."""
        return self.run is not None or self._next < len(self.stages)

    # --- going on ------------------------------------------------------------------------

    def begin(self, fmax: float) -> None:
        """Start a run: at the first stage, or where the last run stopped.

        Raises
        ------
        StructureError
            No calculator could say anything about this structure.
        MissingDependencyError, ModelError
            A calculator is not there: known now, and not after hours in the stages before.
        """
        if self._start is None:
            self._start = bare(self.atoms)
        if self._find_stages():
            check_refinable(self.atoms)
            self._begin_stages(fmax)

    def step(self, fmax: float) -> None:
        """Take the one step of the prediction; after it, a step of refinement."""
        if self._find_stages() and self.run is None and self._is_needed:
            self._begin_stages(fmax)
        if self.run is None:
            self.one_shot.accept()
            self._verify()
        elif self.waiting:
            title = self._enter_next(fmax).title
            self.one_shot.note = f'{self._number(self._index)}, {title}'
        elif self.one_shot.pending and self._predict(self.run, fmax):
            pass
        elif self.run.status == 'running':
            self._guard(self.run, partial(self.run.step, self._own_fmax(fmax)), fmax)
        info, outcome = self.atoms.info, self.one_shot.outcome
        if keys.STAGE in info and outcome not in info[keys.STAGE]:
            info[keys.STAGE] += outcome

    def _find_stages(self) -> bool:
        """Whether there is something to refine with: a calculator may come and go."""
        stages = self._chosen
        if not stages and has_calculator(self.atoms):
            stages = [Stage(None, guided=self._guided)]
        if len(stages) != len(self.stages):
            self._reset(stages)
        if stages and self._target is None:
            check_refinable(self.atoms)
            self._target = self.target
        return bool(stages)

    def _begin_stages(self, fmax: float) -> None:
        if not self.ordinary:
            for stage in self.stages:
                stage.build_calculator()
        if self.run is None:
            self._check_optimizers()
            self._done, self._index = [], -1
            self._look_ahead()
            if self._is_needed:
                self._enter_next(fmax)
        elif not self.waiting:
            if self.run.status != 'running':
                self._enter_again(self.run)
            else:
                self.run.guide(self.one_shot.relaxation)
                if self.atoms != self.run.measured:  # the user moved them meanwhile
                    self.run.begin_here()
            self._guard(self.run, self.run.measure, fmax)

    def _check_optimizers(self) -> None:
        """Refuse what cannot be made before anything moves."""
        for stage in self.stages:
            optimizer = find_optimizer(stage.optimizer or self._optimizer)
            GuardedOptimizer(self.target.fitted(optimizer).moving, optimizer)

    def _predict(self, run: StageRun, fmax: float) -> bool:
        """Try the prediction; whether it is in the atoms."""
        # Where all stages ended, no calculator could say anything about this structure.
        running = run.status == 'running'
        live = run.live if running else None
        accepted = self.one_shot.try_once(live, self._gate, ordinary=self.ordinary)
        if accepted and running:
            run.begin_here()
            run.guide(self.one_shot.relaxation)
            self._guard(run, run.measure, fmax)
        return accepted

    def _verify(self) -> None:
        self.verification = self._model.verify(self.atoms, self._relax_cell())
        if self.verification is not None:
            self.atoms.info[keys.VERIFIED] = str(self.verification)
            self.lines.append(str(self.verification))

    def release(self) -> None:
        """Leave the bare calculator in the atoms, with what it calculated last."""
        if self.run is not None:
            self.run.leave()

    def _enter(self, index: int) -> StageRun:
        self._index, self._goes_on = index, False
        self.run = StageRun(
            self.stages[index],
            self.target,
            self._optimizer,
            self._model,
            ordinary=self.ordinary,
        )
        self.run.guide(self.one_shot.relaxation)
        return self.run

    def _enter_next(self, fmax: float) -> StageRun:
        run = self._enter(self._next)
        self._guard(run, run.measure, fmax)
        return run

    def _enter_again(self, last: StageRun) -> None:
        """Enter the last stage anew for another run, with what its optimizer has learnt."""
        run = self._enter(self._index)
        if last.status != 'failed':
            run.take_over(last)
        self._goes_on = last.status == 'converged'

    def _guard(self, run: StageRun, act: Callable[[], None], fmax: float) -> None:
        """Act in the present stage: an error ends it, and so does success."""
        try:
            act()
        except Exception as error:
            if self.ordinary:
                raise
            run.fail(error)
        else:
            run.end(self._own_fmax(fmax))
        nothing_new = self._goes_on and run.status == 'converged' and run.steps == 0
        if run.status != 'running' and not nothing_new:
            self._close(run.record)

    def _close(self, record: StageRecord) -> None:
        number = self._number(self._index)
        self._done.append(record)
        if not self.ordinary:  # else ASE still looks at forces, until the run is over
            self.release()
            self.lines.append(f'{number}, {record}')
        if record.status == 'failed':
            warn(f'{number} ({record.name}) failed and was rolled back: {record.reason}')
        self._look_ahead()

    def _look_ahead(self) -> None:
        """Find the next stage to run; those that are superfluous are recorded."""
        self._next = self._index + 1
        for stage in self.stages[self._next :]:
            limits = {'sigma': stage.min_sigma, 'error': stage.min_error}
            reason = self.one_shot.suffices(limits, refined=self.run is not None)
            if not reason:
                break
            record = StageRecord(stage.name, status='skipped', reason=reason)
            self._done.append(record)
            self.lines.append(f'{self._number(self._next)}, {record}')
            self._next += 1

    def _number(self, index: int) -> str:
        return f'stage {index + 1} of {len(self.stages)}'

    def _own_fmax(self, fmax: float) -> float:
        own = self.stages[self._index].fmax
        return fmax if own is None else own

    # --- restart and copies --------------------------------------------------------------

    def state_dict(self, *, copied: bool = False) -> dict[str, Any]:
        """What is needed to go on from here, ready for JSON.

        Parameters
        ----------
        copied : bool
            For a copy of the atoms: light, and tied to no starting point.
        """
        stages = None
        if self.stages:
            stages = {
                'index': self._index,
                'next': self._next,
                'origin': get_origin(self.target.moving),
                'done': [record.to_state() for record in self._done],
                'run': None if self.run is None else self.run.state_dict(copied=copied),
            }
        return {
            'began': None if copied else self._start,
            'atoms': bare(self.atoms),
            'info': keys.ours(self.atoms),
            'one_shot': self.one_shot.state_dict(
                guides=any(stage.guided for stage in self.stages)
            ),
            'stages': stages,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Atoms that are as they were at the very start are moved to where it stopped, so that
        the same script can be started again; others, as from the end of a trajectory, stay
        where they are.

        Raises
        ------
        RestartError
            It was another structure. A copy of the atoms that has become one begins anew.
        """
        atoms, there = self.atoms, state['atoms']
        if not np.array_equal(there.numbers, atoms.numbers):
            if state['began'] is None:
                return
            raise RestartError(
                f'the restart file is of {there.symbols}, not of {atoms.symbols}: delete '
                'it or name another one'
            )
        self._start = state['began']
        if self._start is not None and _same_place(atoms, self._start):
            assign(atoms, there.cell.array, there.positions)
            atoms.info.update(state['info'])
            if keys.SIGMA_ATOMS in atoms.info:
                atoms.arrays[keys.SIGMA] = np.array(atoms.info[keys.SIGMA_ATOMS])
        self.one_shot.load_state_dict(state['one_shot'])
        stages = state['stages']
        if self._find_stages() and stages is not None:
            self._done = [StageRecord(**record) for record in stages['done']]
            put_origin(self.target.moving, stages['origin'])
            if stages['run'] is not None:
                self._enter(stages['index']).load_state_dict(stages['run'])
            self._next = stages['next']

    # --- ASE's Optimizable: that of the present stage ------------------------------------

    def __getattr__(self, name: str) -> Any:
        return getattr(self.one_shot if self.run is None else self.run, name)

    def converged(self, gradient: np.ndarray, fmax: float) -> bool:
        """Whether the last stage is, and none is to come."""
        present = self.one_shot if self.run is None else self.run
        return present.converged(gradient, fmax) and not self.waiting

    def iterimages(self) -> Any:
        return self.atoms.iterimages()


def _same_place(one: Atoms, two: Atoms) -> bool:
    return np.allclose(one.cell.array, two.cell.array, rtol=0, atol=1e-8) and np.allclose(
        one.positions, two.positions, rtol=0, atol=1e-8
    )
