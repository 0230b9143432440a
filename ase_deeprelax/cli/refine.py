"""The work of ``deeprelax relax --refine``: one structure after another, stage by stage."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from time import perf_counter
from typing import Any

import numpy as np
from ase import Atoms

from ase_deeprelax import keys
from ase_deeprelax.cli.answers import structure_entries
from ase_deeprelax.errors import DeepRelaxWarning, reason_of
from ase_deeprelax.optimize.optimizer import DeepRelaxOptimizer
from ase_deeprelax.optimize.stage import Stage, StageRecord
from ase_deeprelax.optimize.target import find_target

PROPERTIES = ('energy', 'forces', 'stress')


@dataclass(frozen=True)
class Refiner:
    """From a structure to its refined one.

    Parameters
    ----------
    stages : list of Stage
        With calculators that are made.
    optimizer : callable
        Class of an ASE optimizer.
    fmax : float, eV/A
    how : dict
        ``model, symmetry, device, relax_cell``, as `DeepRelaxOptimizer` takes them.
    asked : list
        What else answers depend on.
    """

    stages: list[Stage]
    optimizer: Callable
    fmax: float
    how: dict[str, Any]
    _: KW_ONLY
    asked: list[Any]
    batch: int = 1

    @property
    def settings(self) -> list[Any]:
        """Model, potentials, optimizer, limits and freedom."""
        return [*self.asked, self.how['relax_cell']]

    def answer(self, structures: list[Atoms]) -> list[dict[str, Any]]:
        """See `refine`."""
        return [self.refine(atoms) for atoms in structures]

    def refine(self, atoms: Atoms) -> dict[str, Any]:
        """The answer for one structure, ready for JSON.

        Parameters
        ----------
        atoms : ase.Atoms
            Not changed.

        Returns
        -------
        dict
            ``problem``: why there is no structure, or ''; ``problems`` [text]: that, stages
            that failed, no convergence; ``stages``: dictionaries as of `StageRecord`,
            ``lines`` the same in words, ``way`` in few; ``energy`` (eV), ``fmax`` (eV/A) of
            the last stage that knew them, or None; the others as `OneShot.answer`.
        """
        begun, given, atoms, problem = perf_counter(), atoms, atoms.copy(), ''
        optimizer = DeepRelaxOptimizer(
            atoms,
            logfile=None,
            refine=self.stages,
            optimizer=self.optimizer,
            **self.how,
        )
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeepRelaxWarning)  # the records tell
            # ASE's filter causes it by rounding that is far below any step.
            warnings.filterwarnings('ignore', 'logm result may be inaccurate')
            try:
                optimizer.run(fmax=self.fmax)
            except Exception as error:  # noqa: BLE001 - files hold anything
                problem = reason_of(error)
        records = optimizer.stages
        if not problem and atoms == given and not any(r.converged for r in records):
            problem = '; '.join(_problems(records))
        if not problem and keys.KIND not in atoms.info:  # nothing had to be moved
            atoms.info[keys.KIND] = find_target(atoms, self.how['relax_cell']).kind
        known = [record for record in records if record.energy_after is not None]
        return {
            'problem': problem,
            'problems': [problem] if problem else list(_problems(records)),
            'stages': [record.to_dict() for record in records],
            'lines': [' '.join(str(record).split()) for record in records],
            'way': ' > '.join(map(_few_words, records)),
            'energy': known[-1].energy_after if known else None,
            'fmax': known[-1].fmax if known else None,
            'seconds': perf_counter() - begun,
            **structure_entries(atoms),
            'results': _results(atoms),
        }


def _problems(records: list[StageRecord]) -> Iterator[str]:
    """Stages that failed, and a last one that did not converge."""
    refined = [r for r in records if r.name != 'prediction' and r.status != 'skipped']
    for record in refined:
        if record.status == 'failed':
            yield f'{record.name} failed and was rolled back: {record.reason}'
    if refined and refined[-1].status in ('not converged', 'running'):
        yield f'{refined[-1].name} did not converge: {refined[-1].reason}'


def _few_words(record: StageRecord) -> str:
    """Such as ``chgnet 12`` for a stage that converged in twelve steps."""
    if not record.converged:
        return f'{record.name} {record.status}'
    return record.name if record.name == 'prediction' else f'{record.name} {record.steps}'


def _results(atoms: Atoms) -> dict[str, Any]:
    """Results of the last calculator for this very structure, without a new calculation."""
    calculator = atoms.calc
    if calculator is None or calculator.calculation_required(atoms, ['energy', 'forces']):
        return {}
    known = calculator.results
    return {name: np.asarray(known[name]).tolist() for name in PROPERTIES if name in known}
