"""Structures of a comparison relaxed together, many per forward pass."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from ase_deeprelax.compare.cases import Case, geometry, timed_predictions
from ase_deeprelax.compare.named_calculators import NamedCalculator
from ase_deeprelax.compare.predictor_adapter import PredictorAdapter, atoms_of
from ase_deeprelax.compare.schema import STARTS, BatchRow, RunRow, Start
from ase_deeprelax.compare.summary import quartiles
from ase_deeprelax.errors import reason_of
from ase_deeprelax.journal import Journal
from ase_deeprelax.optimize.elastic_bfgs import ElasticBFGS

BATCH_ATOMS = 200


@dataclass(frozen=True)
class BatchedRuns:
    """Relaxations of all structures together with ElasticBFGS, from both starts.

    Parameters
    ----------
    adapter : PredictorAdapter
    calculators : dict of str to NamedCalculator
    fmax : float, eV/A
    steps : int
    journal : Journal
        Rows that are there are not computed again.
    """

    adapter: PredictorAdapter
    calculators: Mapping[str, NamedCalculator]
    fmax: float
    steps: int
    journal: Journal

    def relax_all(self, cases: Sequence[Case], runs: Iterable[RunRow]) -> list[BatchRow]:
        """A row for each calculator and start.

        Parameters
        ----------
        cases : list of Case
        runs : list of RunRow
            Structures that failed in one of them are left out.

        Returns
        -------
        list of BatchRow
        """
        failed = {(run['structure'], run['calculator']) for run in runs if not run['ok']}
        return [
            self._batch(
                [case for case in cases if (case.id, calculator) not in failed],
                calculator,
                start,
            )
            for calculator in self.calculators
            for start in STARTS
        ]

    def _batch(self, cases: Sequence[Case], calculator: str, start: Start) -> BatchRow:
        keys = repr([case.key for case in cases])
        digest = hashlib.sha256(keys.encode()).hexdigest()
        label = self.calculators[calculator].label
        key = ('batched', label, start, digest[:16])
        return self.journal.once(key, lambda: self._row(cases, calculator, start))

    def _row(self, cases: Sequence[Case], calculator: str, start: Start) -> BatchRow:
        row: BatchRow = {
            'calculator': calculator,
            'optimizer': ElasticBFGS.__name__,
            'start': start,
            'n': len(cases),
            'structures': [case.id for case in cases],
            'batch_atoms': BATCH_ATOMS,
            'problem': '',
            'converged': None,
            'calls': None,
            'seconds_per_structure': None,
            'one_pass': None,
        }
        if not cases:
            row['problem'] = 'each structure failed when it was relaxed alone'
            return row
        try:
            self._relax(row, cases)
        except Exception as error:  # noqa: BLE001 - potentials raise anything
            row['problem'] = reason_of(error)
        return row

    def _relax(self, row: BatchRow, cases: Sequence[Case]) -> None:
        from ase_deeprelax.calculators.batched import OnePass, batch_potential
        from ase_deeprelax.optimize.many import relax_batched

        def freedom(place: Any) -> Any:
            return cases[place].relax_cell

        potential = batch_potential(self.calculators[row['calculator']].calculator)
        with suppress(Exception):  # first calls take longer; the timed ones tell problems
            timed_predictions(self.adapter, cases[:1])
            potential([case.atoms for case in cases[:1]])
        inputs, seconds = [case.atoms for case in cases], 0.0
        if row['start'] == 'prediction':
            predicted, seconds = timed_predictions(self.adapter, cases)
            inputs = [
                case.at(geometry(atoms_of(one)))
                for case, one in zip(cases, predicted, strict=True)
            ]
        begin = perf_counter()
        ends = relax_batched(
            enumerate(inputs),
            potential,
            optimizer=ElasticBFGS,
            relax_cell=freedom,
            fmax=self.fmax,
            steps=self.steps,
            batch_atoms=BATCH_ATOMS,
        )
        good = [end.calls for _, end in ends if end.converged]
        seconds += perf_counter() - begin
        row['converged'], row['calls'] = len(good), quartiles(good)
        row['seconds_per_structure'] = seconds / len(cases)
        row['one_pass'] = isinstance(potential, OnePass)
