"""The first stage of every run: one prediction, accepted, rolled back or skipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import Filter
from ase.utils.abc import Optimizable

from ase_deeprelax import keys
from ase_deeprelax.errors import (
    PredictionError,
    StructureError,
    UnsupportedConstraintError,
    warn,
)
from ase_deeprelax.geometry.degrees_of_freedom import Freedom, find_freedom, unwrap
from ase_deeprelax.geometry.free_strain import RelaxCell
from ase_deeprelax.optimize.options import Options
from ase_deeprelax.optimize.relaxation_step import energy_of, own_energy
from ase_deeprelax.optimize.same_structure import same_cell
from ase_deeprelax.optimize.stage import Stage, StageRecord, bare
from ase_deeprelax.result import Relaxation

# After these errors a structure can still be refined, without a prediction.
SKIPPED = (PredictionError, StructureError, UnsupportedConstraintError)
# Atoms within this distance of their predicted places count as being there, A.
ROUNDING = 1e-8


@dataclass(frozen=True, eq=False)
class ProposedMove:
    """A checked prediction that is not yet written into its structure.

    Attributes
    ----------
    freedom : Freedom
        Of the structure, which is ``freedom.atoms``.
    relaxation : Relaxation
        The answer of the model, within constraints and filters.
    """

    freedom: Freedom
    relaxation: Relaxation

    @property
    def strain(self) -> float:
        """Largest change of a length in the crystal, %, whatever its direction."""
        stretches = np.linalg.svd(self.relaxation.deformation, compute_uv=False)
        return 100 * float(np.abs(stretches - 1).max())

    @property
    def note(self) -> str:
        """For the log line of its step."""
        made = self.relaxation
        return f'prediction, volume x {made.volume_ratio:.3f}, sigma {made.sigma:.3f} A'

    def apply(self) -> None:
        """Move the atoms and their cell, and nothing else."""
        after = self.relaxation.atoms
        self.freedom.write(after.cell.array, after.positions)

    def apply_if_lower(
        self, optimizable: Optimizable, gate: float | None
    ) -> tuple[str, dict[str, float]]:
        """Move the atoms, and back again bit for bit where energy or forces say no.

        Parameters
        ----------
        optimizable : ase.utils.abc.Optimizable
            Gives energy and forces of the atoms.
        gate : float or None, eV/atom
            How much the energy may rise; None: any finite amount.

        Returns
        -------
        reason : str
            Why the atoms are where they were, or ''.
        energies : dict
            ``energy_before`` and ``energy_after``, eV, see `own_energy`.
        """
        atoms, snapshot = self.freedom.atoms, self.freedom.snapshot()
        before, energies = energy_of(optimizable), {'energy_before': own_energy(atoms)}
        try:
            self.apply()
            after = energy_of(optimizable)
            energies['energy_after'] = own_energy(atoms)
            rise, reason = (after - before) / len(atoms), ''
            if not np.isfinite(rise):
                reason = f'the energy is {after} eV'
            elif not np.isfinite(optimizable.get_gradient()).all():
                reason = 'the forces are not finite'
            elif gate is not None and rise > gate:
                reason = f'energy {rise:+.6f} eV/atom'
        except BaseException:
            self.freedom.restore(snapshot)
            raise
        if reason:
            self.freedom.restore(snapshot)
        return reason, energies

    def write_info(self) -> None:
        """Write the names of `keys`, and drop stored results of the former structure."""
        atoms, predicted = self.freedom.atoms, self.relaxation.atoms
        if isinstance(atoms.calc, SinglePointCalculator):
            atoms.calc = None
        keys.strip(atoms)
        atoms.info.update(keys.ours(predicted))
        keys.arrays_from_info(atoms)


class OneShotStage(Optimizable):
    """State of the one-shot stage: pending, accepted, rolled back or skipped.

    Where nothing is refined, ASE's dynamics sees the structure through this class:
    coordinates are positions and cell, and the gradient is minus the displacement that is
    still to be made, in A. The prediction is made when it is first needed, and anew for
    atoms that were changed since.

    Parameters
    ----------
    target : ase.Atoms or ase.filters.Filter
    options : Options
    relax_cell : callable
        Returns what of the cell of bare atoms may change, see `find_freedom`.

    Attributes
    ----------
    record : StageRecord or None
        None: pending.
    outcome : str
        Why the atoms do not hold the prediction, for ``atoms.info``; '' where they do.
    note : str
        For the next line of the log.
    relaxation : Relaxation or None
        The prediction that was accepted last.
    """

    def __init__(
        self,
        target: Atoms | Filter,
        options: Options,
        relax_cell: Callable[[], RelaxCell | None],
    ):
        self.target, self.atoms = target, unwrap(target)
        self._options, self._relax_cell = options, relax_cell
        self.record, self.outcome, self.note = None, '', ''
        self.relaxation: Relaxation | None = None
        self.pending = True
        self._move: ProposedMove | None = None

    @property
    def move(self) -> ProposedMove:
        """The `ProposedMove` that fits the atoms as they are now."""
        if self._move is None or not self._at(self._move.relaxation.initial):
            self._move = self._propose()
        return self._move

    def begin(self) -> None:
        """Forget a prediction that is not in the atoms yet.

        Since it was made, something else may have fixed atoms, or the cell.
        """
        self._move = None

    @property
    def in_place(self) -> bool:
        """Whether the prediction that was accepted is in the atoms, in any of their images.

        An observer may wrap them, which changes their last bits too.
        """
        atoms, known = self.atoms, self.relaxation
        if known is None or not same_cell(known.atoms, atoms):
            return False
        moved = atoms.cell.scaled_positions(atoms.positions - known.atoms.positions)
        moved -= np.rint(moved) * atoms.pbc
        return bool((np.abs(moved @ atoms.cell.array) < ROUNDING).all())

    @property
    def prediction(self) -> Relaxation:
        """The prediction that is in the atoms, or else one for the atoms as they are."""
        known = self.relaxation
        return known if known is not None and self.in_place else self.move.relaxation

    def _propose(self) -> ProposedMove:
        """Predict, within what filters and constraints leave free.

        Raises
        ------
        StructureError, UnsupportedConstraintError, PredictionError
            The structure is as it was.
        """
        relax_cell = self._relax_cell()
        [relaxation] = self._options.predictor.relax(
            [self.target], relax_cell=relax_cell, on_bad='raise'
        )
        return ProposedMove(find_freedom(self.target, relax_cell), relaxation)

    @property
    def left(self) -> tuple[float, float]:
        """The largest displacement, A, and strain, %, that are still to be made."""
        if self.in_place:
            return 0.0, 0.0
        return self.move.relaxation.dmax, self.move.strain

    def suffices(self, stage: Stage, *, refined: bool) -> str:
        """Why the prediction is good enough without a stage, or ''.

        Parameters
        ----------
        stage : Stage
            It has limits on sigma and error, or none.
        refined : bool
            Whether the atoms were moved since; else the prediction is made if need be.
        """
        limits = [
            ('sigma', 'sigma', stage.min_sigma),
            ('error', 'the expected error', stage.min_error),
        ]
        for name, title, limit in limits:
            if limit is None:
                continue
            value = self._uncertainty(name, refined=refined)
            if value < limit:
                return f'{title} {value:.4f} A is below {limit:g} A'
        return ''

    def _uncertainty(self, name: str, *, refined: bool) -> float:
        """Sigma or error, A; infinite where no prediction vouches for the structure."""
        if refined:
            # The numbers in the atoms are those of an earlier structure as long as this
            # prediction has not been tried.
            info = {} if self.pending else self.atoms.info
            key = keys.SIGMA if name == 'sigma' else keys.ERROR
            return np.inf if keys.OOD in info else info.get(key, np.inf)
        try:
            relaxation = self.prediction
        except SKIPPED:
            return np.inf
        # NaN, the error of a model that is not calibrated, is below no limit.
        return np.inf if relaxation.ood else getattr(relaxation, name)

    def accept(self) -> None:
        """Move the atoms without looking at an energy."""
        move = self.move
        move.apply()
        self._accepted(move, seconds=sum(move.relaxation.timings.values()))

    def try_once(self, live: Optimizable | None, *, ordinary: bool) -> bool:
        """Accept the prediction, or roll it back where energy or forces say no.

        Parameters
        ----------
        live : ase.utils.abc.Optimizable or None
            Gives energy and forces of the atoms; None: skip the energy check.
        ordinary : bool
            Whether errors of the calculator are raised; else the prediction is rolled back.

        Returns
        -------
        bool
            Whether it is in the atoms.
        """
        begun = perf_counter()
        try:
            move = self.move
        except SKIPPED as error:
            warn(f'relaxed without a prediction: {error}')
            self._refused('skipped', ' (not predicted)', 'no prediction', str(error))
            return False
        reason, energies = '', {}
        try:
            if live is None:
                move.apply()
            else:
                reason, energies = move.apply_if_lower(live, self._options.energy_gate)
        except Exception as error:
            if ordinary:
                raise
            reason = f'{type(error).__name__}: {error}'
        numbers = {'seconds': perf_counter() - begun, **energies}
        if reason:
            note = f'prediction rolled back, {reason}'
            self._refused('failed', ' (prediction rolled back)', note, reason, **numbers)
        else:
            self._accepted(move, **numbers)
        return not reason

    def _accepted(self, move: ProposedMove, **numbers: float) -> None:
        move.write_info()
        self.note, self.outcome = move.note, ''
        self.relaxation = move.relaxation
        self._close('converged', steps=1, **numbers)

    def _refused(
        self, status: str, outcome: str, note: str, reason: str, **numbers: float
    ) -> None:
        keys.strip(self.atoms)
        self.outcome, self.note = outcome, note
        self._close(status, reason=reason, **numbers)

    def _close(self, status: str, **values: Any) -> None:
        self.pending = False
        self.record = StageRecord(
            'prediction', status=status, atoms=bare(self.atoms), **values
        )

    def state_dict(self, *, needed: bool) -> dict[str, Any]:
        """What a restart needs, ready for JSON.

        Parameters
        ----------
        needed : bool
            Whether the prediction itself will be needed again.
        """
        record = None if self.record is None else self.record.to_state()
        state = {'pending': self.pending, 'outcome': self.outcome, 'record': record}
        if needed and self.relaxation is not None:
            state['relaxation'] = self.relaxation.as_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.pending, self.outcome = state['pending'], state['outcome']
        record = state['record']
        self.record = None if record is None else StageRecord(**record)
        known = state.get('relaxation')
        self.relaxation = None if known is None else Relaxation.from_dict(known)

    def _at(self, structure: Atoms) -> bool:
        same = np.array_equal(structure.positions, self.atoms.positions)
        return same and same_cell(structure, self.atoms)

    # --- ASE's Optimizable ---------------------------------------------------------------

    def ndofs(self) -> int:
        return 3 * len(self.atoms) + 9

    def get_x(self) -> np.ndarray:
        return np.concatenate([self.atoms.positions, self.atoms.cell.array]).ravel()

    def set_x(self, x: np.ndarray) -> None:
        rows = x.reshape(-1, 3)
        self.atoms.set_cell(rows[-3:], apply_constraint=False)
        self.atoms.set_positions(rows[:-3], apply_constraint=False)

    def get_gradient(self) -> np.ndarray:
        after = self.prediction.atoms
        return self.get_x() - np.concatenate([after.positions, after.cell.array]).ravel()

    def get_value(self) -> float:
        """Half the square of the gradient, A^2."""
        return 0.5 * float(np.square(self.get_gradient()).sum())

    def iterimages(self) -> Any:
        return self.atoms.iterimages()

    def converged(self, gradient: np.ndarray, fmax: float) -> bool:  # noqa: ARG002
        """Whether the prediction is in the atoms; ``fmax`` is a force, not a length."""
        return self.in_place
