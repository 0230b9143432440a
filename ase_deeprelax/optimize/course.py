"""What happens to one structure: a prediction, then stages of refinement."""

import numpy as np
from ase.optimize import RestartError

from ase_deeprelax import keys
from ase_deeprelax.geometry.degrees_of_freedom import unwrap
from ase_deeprelax.optimize.chain import Chain
from ase_deeprelax.optimize.plan import has_calculator
from ase_deeprelax.optimize.prediction import Prediction
from ase_deeprelax.optimize.relaxation_step import check_refinable
from ase_deeprelax.optimize.stage import Stage, bare
from ase_deeprelax.optimize.target import Target, find_target


class Course:
    """Step by step from an unrelaxed structure to a refined one.

    Parameters
    ----------
    given : ase.Atoms or ase.filters.Filter
        Not touched before `begin`.
    stages : list of Stage
        Empty: where the atoms have a calculator, a refinement with that.
    optimizer : callable
        Of stages that have none.
    gate : float or None, eV/atom
        How much a prediction may raise the energy.
    relax_cell : callable
        Says what of the cell of bare atoms may change, see `find_freedom`.
    predict : callable
        Returns a `Plan` for the atoms as they are.
    """

    def __init__(self, given, stages, *, optimizer, gate, relax_cell, predict):
        self.atoms = unwrap(given)
        self.prediction = Prediction(self.atoms, predict)
        self.chain = None
        self._given, self._stages, self._optimizer = given, stages, optimizer
        self._gate, self._relax_cell = gate, relax_cell
        self._began = None

    @property
    def shown(self):
        """What ASE's dynamics sees: the `Chain`, or the prediction where there is none."""
        chain = self.chain
        return self.prediction.one_shot if chain is None or chain.idle else chain

    @property
    def target(self) -> Target:
        """The target of all stages that do not choose their own."""
        if self.chain is not None:
            return self.chain.target
        return find_target(self._given, self._relax_cell())

    @property
    def over(self):
        """Whether the last stage ended, did not converge, and all else was tried."""
        chain = self.chain
        failed = chain is not None and chain.ended and not chain.attempt.converged
        return failed and self.prediction.tried

    @property
    def records(self):
        """`StageRecord` of the prediction and of each stage so far."""
        first = [] if self.prediction.record is None else [self.prediction.record]
        return first + ([] if self.chain is None else self.chain.records)

    def begin(self, fmax):
        """At the start of a run.

        Raises
        ------
        StructureError
            Nothing can be refined here.
        """
        if self._began is None:
            self._began = bare(self.atoms)
        if self._find_chain():
            check_refinable(self.atoms)
            self.chain.begin(fmax)

    def step(self, fmax):
        """The prediction; once that is done, a step of refinement."""
        self.look(fmax)
        chain, prediction = self.chain, self.prediction
        if self.shown is prediction.one_shot:
            prediction.write()
        elif chain.waiting:
            chain.turn(fmax)
            prediction.note = chain.title
        elif prediction.tried or not self._predict(fmax):
            chain.step(fmax)
        info, outcome = self.atoms.info, prediction.outcome
        if keys.STAGE in info and outcome not in info[keys.STAGE]:
            info[keys.STAGE] += outcome

    def look(self, fmax):
        """Whether there is something to refine with now; then `shown` is that."""
        if self._find_chain() and self.chain.attempt is None and not self.chain.idle:
            self.chain.begin(fmax)

    def _find_chain(self):
        stages = self._stages or ([Stage(None)] if has_calculator(self.atoms) else [])
        if not stages:
            self.chain = None
        elif self.chain is None:
            check_refinable(self.atoms)
            target, sigma = self.target, self.prediction.sigma
            self.chain = Chain(target, stages, self._optimizer, sigma)
        return self.chain is not None

    def _predict(self, fmax):
        chain = self.chain
        # Where all stages ended, no calculator could say anything about this structure.
        live = None if chain.ended else chain.attempt.live
        kept = self.prediction.try_on(live, self._gate, ordinary=chain.ordinary)
        if kept:
            chain.moved(fmax)
        return kept

    def remember(self):
        """What another process needs to go on from here, ready for JSON."""
        info = self.atoms.info
        return {
            'began': self._began,
            'atoms': bare(self.atoms),
            'info': {k: v for k, v in info.items() if k.startswith(keys.PREFIX)},
            'prediction': self.prediction.remember(),
            'chain': None if self.chain is None else self.chain.remember(),
        }

    def travel(self):
        """As `remember`, for a copy of the atoms: light, and tied to no starting point."""
        data = self.remember() | {'began': None}
        if data['chain'] is not None and data['chain']['attempt'] is not None:
            data['chain']['attempt']['memory'] = None
        return data

    def recall(self, data):
        """Go on from what `remember` gave.

        Atoms that are as they were at the very start are moved to where it stopped, so that
        the same script can be started again; others, as from the end of a trajectory, stay
        where they are.

        Raises
        ------
        RestartError
            It was another structure. A copy of the atoms that has become one begins anew.
        """
        atoms, there = self.atoms, data['atoms']
        if not np.array_equal(there.numbers, atoms.numbers):
            if data['began'] is None:
                return
            raise RestartError(
                f'the restart file is of {there.symbols}, not of {atoms.symbols}: delete '
                'it or name another one'
            )
        self._began = data['began']
        if self._began is not None and _same(atoms, self._began):
            atoms.set_cell(there.cell, apply_constraint=False)
            atoms.set_positions(there.positions, apply_constraint=False)
            atoms.info.update(data['info'])
            if keys.SIGMA_ATOMS in atoms.info:
                atoms.arrays[keys.SIGMA] = np.array(atoms.info[keys.SIGMA_ATOMS])
        self.prediction.recall(data['prediction'])
        if self._find_chain() and data['chain'] is not None:
            self.chain.recall(data['chain'])


def _same(one, two):
    return np.allclose(one.cell.array, two.cell.array, rtol=0, atol=1e-8) and np.allclose(
        one.positions, two.positions, rtol=0, atol=1e-8
    )
