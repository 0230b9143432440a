"""The stages of one structure: the prediction, then the refinement with calculators."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import compare_atoms
from ase.filters import Filter
from ase.optimize import RestartError

from ase_deeprelax import keys
from ase_deeprelax.calculators.attached import has_calculator
from ase_deeprelax.errors import warn
from ase_deeprelax.geometry.degrees_of_freedom import unwrap
from ase_deeprelax.geometry.free_strain import RelaxCell
from ase_deeprelax.geometry.snapshot import assign
from ase_deeprelax.optimize.ase_optimizers import make_optimizer
from ase_deeprelax.optimize.one_shot import OneShotStage
from ase_deeprelax.optimize.options import Options
from ase_deeprelax.optimize.refinable import check_refinable
from ase_deeprelax.optimize.restart import (
    check_same_input,
    check_same_stage,
    held_atoms,
    stage_title,
)
from ase_deeprelax.optimize.same_structure import near, same_structure
from ase_deeprelax.optimize.stage import Stage, StageRecord, bare
from ase_deeprelax.optimize.stage_run import StageRun
from ase_deeprelax.optimize.target import Target, find_target, get_origin, put_origin
from ase_deeprelax.optimize.verify import Verification, failure, known_error, verify


class Chain:
    """The stages of one structure, one after another.

    Stage 0 is the prediction. A stage that fails (its calculator raises or returns numbers
    that are not finite, the structure explodes or ends above where the stage began) is
    undone, and the next one goes on from the best structure. Without stages of its own, the
    chain refines with the calculator that the atoms have: an ordinary relaxation, in which
    errors are raised. Where the atoms have none, the prediction is all there is.

    Parameters
    ----------
    given : ase.Atoms or ase.filters.Filter
        Not touched before `begin`.
    options : Options
    bound_later : bool
        Whether the optimizer was made without atoms.

    Attributes
    ----------
    one_shot : OneShotStage
    stages : list of Stage
        Those of the refinement, the one of an ordinary relaxation included.
    run : StageRun or None
        The present stage of the refinement; None: it has not begun, or is not needed.
    lines : list of str
        For the log, which takes them away.
    verification : Verification or None
        What the judge says of the prediction.
    """

    def __init__(self, given: Atoms | Filter, options: Options, *, bound_later: bool):
        self.given, self.atoms = given, unwrap(given)
        self._options, self._bound_later = options, bound_later
        self.lines: list[str] = []
        self.verification: Verification | None = None
        # The structure that the runs so far began with, the one that the last run ended
        # with, and what its constraints held then (`held_atoms`).
        self._start: Atoms | None = None
        self._left: Atoms | None = None
        self._held: list[int] = []
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.one_shot = OneShotStage(self.given, self._options, self._relax_cell)
        self._reset([])

    def _reset(self, stages: list[Stage]) -> None:
        self.stages = stages
        self.run: StageRun | None = None
        self._done: list[StageRecord] = []
        self._next = 0  # index of the stage to come
        self._target: Target | None = None

    # --- where it stands -----------------------------------------------------------------

    @property
    def present(self) -> OneShotStage | StageRun:
        """The present stage, through which ASE's dynamics sees the structure."""
        return self.one_shot if self.run is None else self.run

    @property
    def target(self) -> Target:
        """What relaxes in stages that do not choose for themselves."""
        return self._target or find_target(self.given, self._relax_cell())

    def _relax_cell(self) -> RelaxCell | None:
        """The part of the cell of bare atoms that may change, see `find_freedom`."""
        if self._options.relax_cell is not None:
            return self._options.relax_cell
        as_in_ase = not (self._bound_later or self._options.stages)
        return False if as_in_ase and has_calculator(self.atoms) else None

    @property
    def records(self) -> list[StageRecord]:
        """`StageRecord` of the prediction and of each stage so far."""
        records = [] if self.one_shot.record is None else [self.one_shot.record]
        records += self._done
        if self.run is not None and not self.run.over:
            records.append(self.run.record)
        return records

    @property
    def waiting(self) -> bool:
        """Whether a stage is over and another one is to come."""
        over = self.run is not None and self.run.over
        return over and self._next < len(self.stages)

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left to try: all ended, the last stage without convergence."""
        if self.one_shot.pending or self.waiting:
            return False
        run = self.run
        return run is None or (run.over and run.status != 'converged')

    # --- going on ------------------------------------------------------------------------

    def begin(self, fmax: float) -> None:
        """Start a run: at the first stage, or where the last run stopped.

        Atoms of other elements, of another number or with other periodic directions than
        before are another structure, for which everything begins anew.

        Raises
        ------
        StructureError
            No calculator could say anything about this structure.
        MissingDependencyError, ModelError
            A calculator is not there: known now, and not after hours in the stages before.
        ConfigError
            An optimizer cannot be made for this structure, or the error of the potential
            that is to verify the prediction is not known.
        """
        if self._left is not None and not same_structure(self.atoms, self._left):
            keys.strip(self.atoms)
            self._begin_anew()
        changed = compare_atoms(self._left, self.atoms)
        if self._start is None or changed or self._held != held_atoms(self.atoms):
            self._start = bare(self.atoms)
        self.one_shot.begin()
        if not self._find_stages():
            self._check_judge()
            return
        check_refinable(self.atoms)
        if self._options.judge is not None:
            warn(
                'verify is left out: the atoms have a calculator, which refines the '
                'prediction; atoms.calc = None has the prediction judged instead'
            )
        for stage in self._options.stages:
            stage.build_calculator()
        if self.run is None:
            self._enter_first(fmax)
        elif not self.waiting:
            self._go_on(self.run, fmax)

    def step(self, fmax: float) -> None:
        """Take the one step of the prediction; after it, a step of refinement."""
        if self._find_stages() and self.run is None and self._next < len(self.stages):
            self._enter_first(fmax)  # the calculator came after the run had begun
        if self.run is None:
            self.one_shot.accept()
            self._verify()
        elif self.waiting:
            run = self._enter(self._next)
            self._advance(run, fmax, moves=False)
            self.one_shot.note = f'{self._number(run.index)}, {run.title}'
        elif self.one_shot.pending:
            self._predict(self.run, fmax)
        elif not self.run.over:
            self._advance(self.run, fmax, moves=True)
        info, outcome = self.atoms.info, self.one_shot.outcome
        if keys.STAGE in info and outcome not in info[keys.STAGE]:
            info[keys.STAGE] += outcome

    def _find_stages(self) -> bool:
        """Whether there is something to refine with: a calculator may come and go."""
        stages = self._options.stages
        if not stages and has_calculator(self.atoms):
            stages = [self._options.ordinary]
        if len(stages) != len(self.stages):
            self._reset(stages)
        if stages and self._target is None:
            check_refinable(self.atoms)
            self._find_target()
        return bool(stages)

    def _find_target(self) -> Target:
        """What relaxes from here on: what it holds is held as the cell is now."""
        self._target = find_target(self.given, self._relax_cell())
        return self._target

    def _enter_first(self, fmax: float) -> None:
        """Enter the first stage that is needed, once optimizers for all can be made."""
        for stage in self.stages:  # to be made anew for the structure that a stage meets
            optimizer = stage.optimizer or self._options.optimizer
            make_optimizer(optimizer, self.target.fitted(optimizer).moving)
        self._done = []
        self._look_ahead(0)
        if self._next < len(self.stages):
            self._advance(self._enter(self._next), fmax, moves=False)

    def _enter(self, index: int) -> StageRun:
        run = StageRun(index, self.stages[index], self._find_target(), self._options)
        run.guide(self.one_shot.relaxation)
        self.run = run
        return run

    def _go_on(self, run: StageRun, fmax: float) -> None:
        """Go on with a stage that was over, or whose structure was changed by others."""
        if run.ordinary and not run.left_alone:
            if not run.over:
                self._done.append(run.record)
            run = self._enter(run.index)  # with the new calculator all begins anew
        elif run.over:
            former, run = run, self._enter(run.index)
            run.take_over(former)
        else:
            self.atoms.calc = run.calculator
            if run.disturbed:
                run.begin_here(self._find_target())
            run.guide(self.one_shot.relaxation)
        self._advance(run, fmax, moves=False)

    def _predict(self, run: StageRun, fmax: float) -> None:
        """Try the prediction; where it is not taken, refine."""
        # After the last stage no calculator is left that could check the energy.
        live = None if run.over else run.live
        accepted = self.one_shot.try_once(live, ordinary=run.ordinary)
        if run.over:
            return
        if accepted:
            self._go_on(run, fmax)
        else:
            self._advance(run, fmax, moves=True)

    def _advance(self, run: StageRun, fmax: float, *, moves: bool) -> None:
        """See `StageRun.advance`; a stage that is over then is closed."""
        run.advance(fmax, moves=moves)
        if run.over and not run.nothing_new:
            self._close(run)

    def _close(self, run: StageRun) -> None:
        """Record a stage that is over, and find the one to come."""
        number, record = self._number(run.index), run.record
        self._done.append(record)
        if not run.ordinary:
            self.lines.append(f'{number}, {record}')
        if record.status == 'failed':
            warn(f'{number} ({record.name}) failed and was rolled back: {record.reason}')
        self._look_ahead(run.index + 1)

    def _look_ahead(self, index: int) -> None:
        """Find the stage to come, from an index on; superfluous ones are recorded."""
        self._next = index
        for stage in self.stages[index:]:
            reason = self.one_shot.suffices(stage, refined=self.run is not None)
            if not reason:
                break
            record = StageRecord(stage.name, status='skipped', reason=reason)
            self._done.append(record)
            self.lines.append(f'{self._number(self._next)}, {record}')
            self._next += 1

    def _number(self, index: int) -> str:
        return f'stage {index + 1} of {len(self.stages)}'

    def _check_judge(self) -> None:
        """See to it that the judge, if there is one, can answer, before the atoms move."""
        judge = self._options.judge
        if judge is not None:
            known_error(judge.name, self._options.calibration)
            judge.build_calculator()

    def _verify(self) -> None:
        """Ask the judge, if there is one, about a prediction that is not refined."""
        judge = self._options.judge
        if judge is None:
            return
        calibration, calculator = self._options.calibration, judge.build_calculator()
        self.verification = None
        try:
            self.verification = verify(
                self.given, calculator, judge.name, calibration, self._relax_cell()
            )
            said = str(self.verification)
        except Exception as error:  # noqa: BLE001 - potentials raise anything
            said = failure(judge.name, error)
            warn(f'the prediction was not verified: {said}')
        self.atoms.info[keys.VERIFIED] = said
        self.lines.append(said)

    def release(self) -> None:
        """Leave the bare calculator in the atoms, with what it calculated last."""
        if self.run is not None:
            self.run.leave()
        self._left, self._held = bare(self.atoms), held_atoms(self.atoms)

    # --- restart and copies --------------------------------------------------------------

    def state_dict(self, *, copied: bool = False) -> dict[str, Any]:
        """What is needed to go on from here, ready for JSON.

        Parameters
        ----------
        copied : bool
            For a copy of the atoms: light, and tied to no starting point.
        """
        stages, run = None, self.run
        if self.stages:
            stages = {
                'index': -1 if run is None else run.index,
                'title': '' if run is None else self._title(run.index),
                'next': self._next,
                'held': held_atoms(self.atoms),
                'origin': get_origin(self.target.moving),
                'done': [record.to_state() for record in self._done],
                'run': None if run is None else run.state_dict(copied=copied),
            }
        needed = run is None or any(stage.guided for stage in self.stages)
        return {
            'began': None if copied else self._start,
            'atoms': bare(self.atoms),
            'info': keys.ours(self.atoms),
            'one_shot': self.one_shot.state_dict(needed=needed),
            'verification': self.verification and asdict(self.verification),
            'stages': stages,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Atoms that are as they were at the start are moved to where it stopped, so that the
        same script can be started again; those from the end of a trajectory are there. For
        others the state says nothing: they begin anew, with a warning.

        Raises
        ------
        RestartError
            It was another structure, it had other constraints, initial moments or charges,
            or the stage in which it stopped is another one here.
            A copy of the atoms that has become another structure begins anew.
        """
        atoms, there, stages = self.atoms, state['atoms'], state['stages']
        if not np.array_equal(there.numbers, atoms.numbers):
            if state['began'] is None:
                return
            raise RestartError(
                f'the restart file is of {there.symbols}, not of {atoms.symbols}: delete '
                'it or name another one'
            )
        places = state['began'], there
        if None not in places and not any(map(partial(near, atoms), places)):
            warn(
                'the restart file is of another start: these atoms are neither where that '
                'run began nor where it stopped; they begin anew, and the file is replaced'
            )
            return
        self._start, self._left = places
        self._held = (stages or {}).get('held', held_atoms(atoms))
        if self._start is not None and stages is not None and stages['run'] is not None:
            here = self._title(stages['index']) if self._find_stages() else ''
            check_same_stage(stages, here)
        if self._start is not None and near(atoms, self._start):
            check_same_input(self._start, self._held, atoms)
            assign(atoms, there.cell.array, there.positions)
            atoms.info.update(state['info'])
            keys.arrays_from_info(atoms)
        self.one_shot.load_state_dict(state['one_shot'])
        verification = state.get('verification')  # not in files of version 0.2
        self.verification = verification and Verification(**verification)
        if self._find_stages() and stages is not None:
            self._done = [StageRecord(**record) for record in stages['done']]
            put_origin(self.target.moving, stages['origin'])
            if stages['run'] is not None:
                self._enter(stages['index']).load_state_dict(stages['run'])
            self._next = stages['next']

    def _title(self, index: int) -> str:
        """See `stage_title`; '' where there is no stage of this number."""
        if index >= len(self.stages):
            return ''
        return stage_title(self.stages[index], self._options.optimizer, self.target.moving)
