"""Savings of a prediction: structures are relaxed from the input and from a prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ase
from ase import Atoms

from ase_deeprelax import __version__
from ase_deeprelax.compare.batched_runs import BatchedRuns
from ase_deeprelax.compare.cases import (
    NO_END,
    Case,
    find_cases,
    timed_predictions,
)
from ase_deeprelax.compare.named_calculators import (
    NamedCalculator,
    by_name,
    named_calculators,
)
from ase_deeprelax.compare.predictor_adapter import PredictorAdapter
from ase_deeprelax.compare.relaxation_run import run_relaxation
from ase_deeprelax.compare.schema import (
    STARTS,
    VERSION,
    Comparison,
    PredictionRow,
    RunRow,
    RunSettings,
    Start,
)
from ase_deeprelax.compare.summary import ENERGY_TOLERANCE, summarise_runs
from ase_deeprelax.data.one_line import count, one_line
from ase_deeprelax.errors import ConfigError
from ase_deeprelax.geometry.free_strain import (
    RelaxCell,
    check_relax_cell,
    plain_relax_cell,
)
from ase_deeprelax.journal import Journal, Key
from ase_deeprelax.optimize.ase_optimizers import find_optimizer, optimizer_name
from ase_deeprelax.optimize.relaxation_step import check_limits


def compare(
    structures: Any,
    calculators: Any = 'chgnet',
    *,
    optimizers: str | Callable | Iterable[str | Callable] = 'FIRE',
    model: Any = 'default',
    fmax: float = 0.05,
    steps: int = 500,
    reference: Mapping[Any, Any] | Sequence[Any] | None = None,
    relax_cell: RelaxCell | None = None,
    batched: bool = False,
    out: str | Path | None = None,
    device: str = 'cpu',
    progress: bool = False,
) -> Comparison:
    """Relax structures as they are and from their predictions, and compare both.

    Positions and cell relax together, until no force on an atom or on what is free of the
    cell exceeds ``fmax``; the same is free in the predictions and in the relaxations.
    Constraints are honoured. A run that fails is a row of the result and changes no other.

    Parameters
    ----------
    structures : list or mapping, or a single one
        ``ase.Atoms``, pymatgen ``Structure`` or `Pair`, whose relaxed half is its
        reference. Those of a list, but for pairs, get their place in it as id; those of
        a mapping their key.
    calculators : list or mapping, or a single one
        What `get_calculator` takes; the keys of a mapping are what they are called.
    optimizers : list of str or classes, or a single one
        'FIRE', 'BFGS', 'ElasticBFGS' or another, see `find_optimizer`; default FIRE.
    model : str, path, RelaxationModel, Predictor or callable
        What predicts, as in `compare.evaluate.evaluate`; default 'default'.
    fmax : float, eV/A
        Default 0.05.
    steps : int
        At most so many for each run, default 500.
    reference : list or mapping, or a single one, optional
        Relaxed structures to be compared with: a list as long as the structures (None:
        without), or a mapping from ids; atoms and lattice vectors in the same order.
    relax_cell : bool, str or array, optional
        What of the cells relaxes, as `relax` takes it, with the same default: all of it, of
        a layer its plane. The cell of a pair with a fixed cell is fixed in any case.
    batched : bool
        Also relax all structures together, many per forward pass; default no.
    out : str or Path, optional
        Folder for ``runs.jsonl``, where each finished run becomes a line. What stands there
        is not done again; more structures, references, calculators and optimizers may be
        added. A calculator is known by its name and weights; one that is given as an
        object, also by the ``parameters`` that ASE keeps in it. A model that is a function
        is known by its name alone.
    device : str
        Where the model and potentials by name run; default 'cpu'.
    progress : bool
        Show a bar; default False.

    Returns
    -------
    Comparison
        A dict, ready for JSON; `schema.Comparison` explains its fields.

    Raises
    ------
    StructureError
        Two structures have the same id; a reference without its structure, or for a pair.
    PairFileError
        A reference does not hold its structure's atoms in its order.
    ModelError, MissingDependencyError
        The model or a potential is not there.
    ConfigError
        There is no such optimizer; two of one name; no structure, calculator or optimizer
        at all; ``out`` was written with another model or other options of it, fmax, steps
        or relax_cell; ``model`` is a function that does not take ``relax_cell``, and that
        has to be passed on.
    ValueError
        ``fmax``, ``steps`` or ``relax_cell`` makes no sense.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase.calculators.emt import EMT
    >>> def oracle(structures):
    ...     return [bulk('Cu', a=3.6) for _ in structures]
    >>> result = compare([bulk('Cu', a=3.9)], [EMT()], model=oracle)
    >>> [(run['start'], run['converged']) for run in result['runs']]
    [('unrelaxed', True), ('prediction', True)]
    >>> result['summary'][0]['both']['median_calls_ratio'] < 0.5
    True
    """
    import torch
    from tqdm.auto import tqdm

    check_limits(fmax, steps)
    if relax_cell is not None:
        relax_cell = check_relax_cell(relax_cell)
    cases = find_cases(structures, reference, relax_cell)
    if not cases:
        raise ConfigError('structures is empty; give one or more')
    if isinstance(optimizers, str) or callable(optimizers):
        optimizers = [optimizers]
    classes = [find_optimizer(optimizer) for optimizer in optimizers]
    named = by_name('optimizers', [optimizer_name(o) for o in classes], classes)
    if not named:
        raise ConfigError('optimizers is empty; give one or more, such as FIRE')
    made = named_calculators(calculators, device)
    adapter = PredictorAdapter(model, device=device)
    if any(case.relax_cell is not None for case in cases):
        adapter.check_accepts_relax_cell(
            'relax_cell was chosen, or the cells of some pairs are fixed'
        )
    decisive: RunSettings = {
        'model': adapter.name,
        'sha256': adapter.sha256,
        'model_options': adapter.options,
        'version': __version__,
        'fmax': fmax,
        'steps': steps,
        'relax_cell': plain_relax_cell(relax_cell),
    }
    path = None if out is None else Path(out) / 'runs.jsonl'
    with Journal(path, decisive) as journal:
        work = _Work(adapter, made, named, fmax, steps, journal)
        bar = tqdm(cases, 'compare', disable=not progress, unit='structures')
        done = [work.relax_case(case) for case in bar]
        runs = [run for _, rows in done for run in rows]
        batches = BatchedRuns(adapter, made, fmax, steps, journal)
        batch_rows = batches.relax_all(cases, runs) if batched else []
    predictions = [_with_energies(row, rows) for row, rows in done]
    result: Comparison = {
        'version': VERSION,
        'settings': {
            **decisive,
            'calculators': {name: one.made_from for name, one in made.items()},
            'optimizers': list(named),
            'energy_tolerance': ENERGY_TOLERANCE,
            'has_reference': any(case.pair is not None for case in cases),
            'device': device,
            'threads': torch.get_num_threads(),
            'ase': ase.__version__,
        },
        'structures': [
            case.row(row['sigma']) for case, row in zip(cases, predictions, strict=True)
        ],
        'predictions': predictions,
        'runs': runs,
        'batched': batch_rows,
        'summary': summarise_runs(predictions, runs),
    }
    what = f'{len(runs)} relaxations of {count(len(cases))}'
    return one_line(result, f'<comparison: {what}; comparison_text shows the tables>')


@dataclass(frozen=True)
class _Work:
    """The relaxations of every structure, kept in a journal."""

    adapter: PredictorAdapter
    calculators: dict[str, NamedCalculator]
    optimizers: dict[str, Callable]
    fmax: float
    steps: int
    journal: Journal
    # Names of calculators that have been called; '' stands for the model.
    warmed: set[str] = field(default_factory=set)

    def relax_case(self, case: Case) -> tuple[PredictionRow, list[RunRow]]:
        """The prediction of a structure, and its runs."""
        prediction: PredictionRow = self._once(
            case, ('prediction', *case.key), lambda: self._predict(case)
        )
        runs: list[RunRow] = [
            self._once(
                case,
                ('run', *case.key, calculator.label, optimizer, start),
                partial(self._run, case, prediction, calculator.name, optimizer, start),
            )
            for calculator in self.calculators.values()
            for optimizer in self.optimizers
            for start in STARTS
        ]
        return prediction, runs

    def _once(self, case: Case, key: Key, make: Callable[[], Any]) -> Any:
        """The row of a key, made where there is none, compared with today's reference."""
        row, rmsd = self.journal.once(key, make), None
        if case.reference_key and row['positions'] is not None:
            beside = ('rmsd', case.reference_key, *key)
            rmsd = self.journal.once(beside, lambda: case.rmsd(row))
        return {**row, 'rmsd_to_reference': rmsd}

    def _predict(self, case: Case) -> PredictionRow:
        self._warm('', lambda: timed_predictions(self.adapter, [case]))
        return case.prediction(self.adapter)

    def _run(
        self,
        case: Case,
        prediction: PredictionRow,
        calculator: str,
        optimizer: str,
        start: Start,
    ) -> RunRow:
        row: RunRow = {
            'structure': case.id,
            'calculator': calculator,
            'optimizer': optimizer,
            'start': start,
            'ok': False,
            'converged': False,
            'reason': '',
            'steps': 0,
            'calls': 0,
            'seconds': None,
            'energy_per_atom': None,
            'fmax': None,
            **NO_END,
            'curve': [],
        }
        if start == 'unrelaxed':
            row = self._relax(row, case, case.atoms)
        elif prediction['ok']:
            row = self._relax(row, case, case.at(prediction), prediction['seconds'] or 0)
        else:
            row['seconds'] = prediction['seconds']
            row['reason'] = f'no prediction: {prediction["problem"]}'
        return row

    def _relax(self, row: RunRow, case: Case, start: Atoms, seconds: float = 0) -> RunRow:
        """A row with the numbers of its run; ``seconds`` were spent before it."""
        calculator = self.calculators[row['calculator']].calculator
        fire = find_optimizer('FIRE')
        self._warm(
            row['calculator'],
            lambda: run_relaxation(
                case.atoms, calculator, optimizer=fire, fmax=0.0, steps=1
            ),
        )
        run = run_relaxation(
            start,
            calculator,
            optimizer=self.optimizers[row['optimizer']],
            fmax=self.fmax,
            steps=self.steps,
            initial=case.atoms,
            relax_cell=case.relax_cell,
        )
        row = {
            **row,
            'ok': run.ok,
            'converged': run.converged,
            'reason': run.reason,
            'steps': run.steps,
            'calls': run.calls,
            'seconds': run.seconds + seconds,
            'curve': run.curve,
        }
        if not run.ok:
            return row
        energy, force = run.curve[-1]
        return {**row, 'energy_per_atom': energy, 'fmax': force, **case.end(run.atoms)}

    def _warm(self, name: str, call: Callable[[], Any]) -> None:
        """Call once before the first call that is timed."""
        if name not in self.warmed:
            self.warmed.add(name)
            with suppress(Exception):  # the timed call will report it
                call()


def _with_energies(prediction: PredictionRow, runs: Sequence[RunRow]) -> PredictionRow:
    """With energy and force of the prediction, which is where runs began."""
    first = {
        run['calculator']: run['curve'][0]
        for run in runs
        if run['start'] == 'prediction' and run['curve']
    }
    return {
        **prediction,
        'energy_per_atom': {name: energy for name, (energy, _) in first.items()},
        'fmax': {name: force for name, (_, force) in first.items()},
    }
