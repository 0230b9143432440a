"""The one prediction in the life of an optimizer, and what became of it."""

from time import perf_counter

import numpy as np

from ase_deeprelax import keys
from ase_deeprelax.errors import (
    PredictionError,
    StructureError,
    UnsupportedConstraintError,
    warn,
)
from ase_deeprelax.optimize.plan import OneShot
from ase_deeprelax.optimize.stage import StageRecord, bare

# What a structure that is going to be refined can do without a prediction.
SKIPPED = (PredictionError, StructureError, UnsupportedConstraintError)


class Prediction:
    """A prediction that is to be written into atoms, once.

    Parameters
    ----------
    atoms : ase.Atoms
    predict : callable
        Returns a `Plan` for the atoms as they are.

    Attributes
    ----------
    one_shot : OneShot
        How ASE's dynamics sees it where nothing is refined.
    tried : bool
        Whether it had its chance.
    outcome : str
        What became of it, where it is not in the atoms.
    note : str
        For the log line of its step.
    record : StageRecord or None
    """

    def __init__(self, atoms, predict):
        self.atoms = atoms
        self.one_shot = OneShot(atoms, predict)
        self.tried, self.outcome, self.note, self.record = False, '', '', None

    def sigma(self, *, refined):
        """Uncertainty of the structure, A; infinite where no prediction vouches for it.

        Parameters
        ----------
        refined : bool
            Whether the atoms were moved since; else the prediction is made if need be.
        """
        if refined:
            said = {} if self.outcome else self.atoms.info
            return np.inf if keys.OOD in said else said.get(keys.SIGMA, np.inf)
        try:
            relaxation = self.one_shot.plan.relaxation
        except SKIPPED:
            return np.inf
        return np.inf if relaxation.ood else relaxation.sigma

    def write(self):
        """Put it into the atoms, whatever their energy."""
        self.one_shot.write()
        plan = self.one_shot.plan
        self.note = plan.note
        self._record('converged', seconds=sum(plan.relaxation.timings.values()))

    def try_on(self, live, gate, *, ordinary):
        """`write`, but back again where the energy says no, or where it cannot be made.

        Parameters
        ----------
        live : ase.utils.abc.Optimizable or None
            Gives energy and forces of the atoms; None: nobody is asked.
        gate : float or None, eV/atom
            How much the energy may rise; None: any amount.
        ordinary : bool
            Whether errors of the calculator are raised; else the prediction is rolled back.

        Returns
        -------
        bool
            Whether it is in the atoms.
        """
        begun = perf_counter()
        try:
            plan = self.one_shot.plan
        except SKIPPED as error:
            warn(f'relaxed without a prediction: {error}')
            return self._without('skipped', ' (not predicted)', 'no prediction', str(error))
        reason, energies = '', {}
        try:
            if live is None:
                plan.put()
            else:
                reason, energies = self._compare(plan, live, gate)
        except Exception as error:
            if ordinary:
                raise
            reason = f'{type(error).__name__}: {error}'
        energies['seconds'] = perf_counter() - begun
        if reason:
            note = f'prediction rolled back, {reason}'
            outcome = ' (prediction rolled back)'
            return self._without('failed', outcome, note, reason, **energies)
        plan.sign()
        self.note = plan.note
        return self._record('converged', **energies)

    def _compare(self, plan, live, gate):
        """Why the prediction was taken back, or '', and the energies."""
        before = live.get_value()
        kept, rise = plan.try_on(live, gate)
        after = before + rise * len(self.atoms)
        energies = {'energy_before': float(before), 'energy_after': float(after)}
        return '' if kept else f'energy {rise:+.6f} eV/atom', energies

    def _without(self, status, outcome, note, reason, **numbers):
        keys.strip(self.atoms)
        self.outcome, self.note = outcome, note
        self._record(status, reason=reason, **numbers)
        return False

    def _record(self, status, **numbers):
        self.tried, steps = True, int(status == 'converged')
        self.record = StageRecord(
            'prediction', status=status, steps=steps, atoms=bare(self.atoms), **numbers
        )
        return True

    def remember(self):
        """What a restart needs, ready for JSON."""
        record = None if self.record is None else self.record.remember()
        return {'tried': self.tried, 'outcome': self.outcome, 'record': record}

    def recall(self, data):
        """Go on from what `remember` gave."""
        self.tried, self.outcome = data['tried'], data['outcome']
        self.record = None if data['record'] is None else StageRecord(**data['record'])
