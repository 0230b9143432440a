"""Rows of a comparison in summary: medians and quartiles, failures counted apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ase_deeprelax.compare.schema import (
    BothSummary,
    End,
    PredictionRow,
    PredictionSummary,
    Quartiles,
    RunRow,
    StartSummary,
    SummaryRow,
)

# Final energies closer than this are equal, eV per atom.
ENERGY_TOLERANCE = 0.002

# Runs of one start by structure.
Runs = dict[str, RunRow]


def quartiles(values: Iterable[float | None]) -> Quartiles:
    """Number, quartiles and median of the values that are there.

    >>> quartiles([1, 2, None, 3, 4, 10])
    {'n': 5, 'q25': 2.0, 'median': 3.0, 'q75': 4.0}
    """
    known = [value for value in values if value is not None]
    if not known:
        return {'n': 0, 'q25': None, 'median': None, 'q75': None}
    low, middle, high = (float(x) for x in np.quantile(known, [0.25, 0.5, 0.75]))
    return {'n': len(known), 'q25': low, 'median': middle, 'q75': high}


def summarise_runs(
    predictions: Sequence[PredictionRow], runs: Iterable[RunRow]
) -> list[SummaryRow]:
    """A row for each calculator and optimizer.

    Parameters
    ----------
    predictions : list of PredictionRow
    runs : list of RunRow
        With both starts for each structure, calculator and optimizer.

    Returns
    -------
    list of SummaryRow
    """
    groups: dict[tuple[str, str], dict[str, Runs]] = {}
    by_structure = {row['structure']: row for row in predictions}
    for run in runs:
        group = groups.setdefault((run['calculator'], run['optimizer']), {})
        group.setdefault(run['start'], {})[run['structure']] = run
    rows: list[SummaryRow] = []
    for (calculator, optimizer), group in groups.items():
        unrelaxed, prediction = group['unrelaxed'], group['prediction']
        rows.append(
            {
                'calculator': calculator,
                'optimizer': optimizer,
                'n': len(unrelaxed),
                'unrelaxed': _one_start(unrelaxed),
                'prediction': _one_start(prediction),
                'alone': _predictions_alone(by_structure, unrelaxed, calculator),
                'both': _both_starts(unrelaxed, prediction),
                'only_unrelaxed': _only(unrelaxed, prediction),
                'only_prediction': _only(prediction, unrelaxed),
            }
        )
    return rows


def _one_start(by_structure: Runs) -> StartSummary:
    runs = list(by_structure.values())
    good = [run for run in runs if run['converged']]
    failed = sum(not run['ok'] for run in runs)
    return {
        'failed': failed,
        'unconverged': len(runs) - failed - len(good),
        'converged': len(good),
        'converged_share': _share([run['converged'] for run in runs]),
        'steps': quartiles(run['steps'] for run in good),
        'calls': quartiles(run['calls'] for run in good),
        'seconds': quartiles(run['seconds'] for run in good),
        'spacegroup_kept': _share_kept(good),
        'rmsd_to_reference': quartiles(run['rmsd_to_reference'] for run in good),
    }


def _predictions_alone(
    predictions: Mapping[str, PredictionRow], unrelaxed: Runs, calculator: str
) -> PredictionSummary:
    good = [row for row in predictions.values() if row['ok']]
    above = [
        _difference(row['energy_per_atom'][calculator], run['energy_per_atom'])
        for id, run in unrelaxed.items()
        if run['converged'] and calculator in (row := predictions[id])['energy_per_atom']
    ]
    return {
        'failed': len(predictions) - len(good),
        'seconds': quartiles(row['seconds'] for row in good),
        'spacegroup_kept': _share_kept(good),
        'rmsd_to_reference': quartiles(row['rmsd_to_reference'] for row in good),
        'energy_difference': quartiles(above),
    }


def _both_starts(unrelaxed: Runs, prediction: Runs) -> BothSummary:
    ends = {
        id: (run, prediction[id])
        for id, run in unrelaxed.items()
        if run['converged'] and prediction[id]['converged']
    }
    pairs = list(ends.values())
    differences = {
        id: _difference(after['energy_per_atom'], before['energy_per_atom'])
        for id, (before, after) in ends.items()
    }
    equal = [x is not None and abs(x) <= ENERGY_TOLERANCE for x in differences.values()]
    higher = [id for id, x in differences.items() if x is not None and x > ENERGY_TOLERANCE]
    lower = [id for id, x in differences.items() if x is not None and x < -ENERGY_TOLERANCE]
    calls = [(before['calls'], after['calls']) for before, after in pairs]
    medians = np.median(calls, axis=0) if calls else None
    starts = [
        (run['curve'][0][0], prediction[id]['curve'][0][0])
        for id, run in unrelaxed.items()
        if run['curve'] and prediction[id]['curve']
    ]
    n = len(ends)
    return {
        'n': n,
        'steps_saved': quartiles(a['steps'] - b['steps'] for a, b in pairs),
        'calls_saved': quartiles(a['calls'] - b['calls'] for a, b in pairs),
        'seconds_saved': quartiles(
            _difference(a['seconds'], b['seconds']) for a, b in pairs
        ),
        'calls_ratio': quartiles(after / before for before, after in calls),
        'median_calls_ratio': None if medians is None else float(medians[1] / medians[0]),
        'energy_difference': quartiles(differences.values()),
        'equal': _share(equal),
        'lower': len(lower) / n if n else None,
        'higher': len(higher) / n if n else None,
        'lower_structures': lower,
        'higher_structures': higher,
        'uphill': _share([after > before for before, after in starts]),
    }


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _only(runs: Runs, others: Runs) -> list[str]:
    return [
        id for id, run in runs.items() if run['converged'] and not others[id]['converged']
    ]


def _share_kept(ends: Iterable[End]) -> float | None:
    """The share of crystals, among predictions or runs, that kept their space group."""
    return _share([kept for row in ends if (kept := row['spacegroup_kept']) is not None])


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None
