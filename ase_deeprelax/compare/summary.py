"""What the rows of a comparison say together: medians and spread, never of failures."""

import numpy as np

from ase_deeprelax.compare.tables import as_text

# Final energies closer than this are equal, eV per atom.
ENERGY_TOLERANCE = 0.002
COSTS = ('steps', 'calls', 'seconds')
# What `table` calls the three ways down.
WAYS = {
    'unrelaxed': 'from unrelaxed',
    'alone': 'prediction alone',
    'prediction': 'from prediction',
}
_MEV = 1000


def spread(values):
    """Number, quartiles and median of numbers; None for those of nothing.

    >>> spread([1, 2, 3, 4, 10])
    {'n': 5, 'q25': 2.0, 'median': 3.0, 'q75': 4.0}
    """
    values = [value for value in values if value is not None]
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]) if values else 3 * [np.nan]
    names = {'q25': low, 'median': middle, 'q75': high}
    return {'n': len(values)} | {
        name: float(value) if values else None for name, value in names.items()
    }


def summary(result):
    """The rows of ``summary``, as `savings` explains them.

    Parameters
    ----------
    result : dict
        With ``settings``, ``predictions`` and ``runs``.

    Returns
    -------
    list of dict
    """
    settings, groups = result['settings'], {}
    predictions = {row['structure']: row for row in result['predictions']}
    for run in result['runs']:
        group = groups.setdefault((run['calculator'], run['optimizer']), {})
        group.setdefault(run['start'], {})[run['structure']] = run
    return [
        {
            'calculator': calculator,
            'optimizer': optimizer,
            'n': len(group['unrelaxed']),
            **{start: _one_start(list(runs.values())) for start, runs in group.items()},
            'alone': _alone(predictions, group['unrelaxed'], calculator),
            **_both_starts(**group, tolerance=settings['energy_tolerance']),
        }
        for (calculator, optimizer), group in groups.items()
    ]


def _one_start(runs):
    good = [run for run in runs if run['converged']]
    failed = sum(not run['ok'] for run in runs)
    kept = [run['spacegroup_kept'] for run in good]
    return {
        'failed': failed,
        'unconverged': len(runs) - failed - len(good),
        'converged': len(good),
        'converged_share': _share(run['converged'] for run in runs),
        **{cost: spread(run[cost] for run in good) for cost in COSTS},
        'spacegroup_kept': _share(kept),
        'rmsd_to_reference': spread(run['rmsd_to_reference'] for run in good),
    }


def _alone(predictions, unrelaxed, calculator):
    good = [row for row in predictions.values() if row['ok']]
    above = [
        row['energy_per_atom'][calculator] - run['energy_per_atom']
        for id, run in unrelaxed.items()
        if run['converged'] and calculator in (row := predictions[id])['energy_per_atom']
    ]
    return {
        'failed': len(predictions) - len(good),
        'seconds': spread(row['seconds'] for row in good),
        'spacegroup_kept': _share(row['spacegroup_kept'] for row in good),
        'rmsd_to_reference': spread(row['rmsd_to_reference'] for row in good),
        'energy_difference': spread(above),
    }


def _both_starts(unrelaxed, prediction, tolerance):
    ends = {
        id: (run, prediction[id])
        for id, run in unrelaxed.items()
        if run['converged'] and prediction[id]['converged']
    }
    difference = {
        id: after['energy_per_atom'] - before['energy_per_atom']
        for id, (before, after) in ends.items()
    }
    higher = [id for id, energy in difference.items() if energy > tolerance]
    lower = [id for id, energy in difference.items() if energy < -tolerance]
    calls = [(before['calls'], after['calls']) for before, after in ends.values()]
    medians = np.median(calls, axis=0) if calls else None
    begun = [
        (run['curve'][0][0], prediction[id]['curve'][0][0])
        for id, run in unrelaxed.items()
        if run['curve'] and prediction[id]['curve']
    ]
    n = len(ends)
    return {
        'both': {
            'n': n,
            **{
                f'{cost}_saved': spread(a[cost] - b[cost] for a, b in ends.values())
                for cost in COSTS
            },
            'calls_ratio': spread(after / before for before, after in calls),
            'median_calls_ratio': float(medians[1] / medians[0]) if calls else None,
            'energy_difference': spread(difference.values()),
            'equal': _share(abs(energy) <= tolerance for energy in difference.values()),
            'lower': len(lower) / n if n else None,
            'higher': len(higher) / n if n else None,
            'lower_structures': lower,
            'higher_structures': higher,
            'uphill': _share(after > before for before, after in begun),
        },
        'only_unrelaxed': _only(unrelaxed, prediction),
        'only_prediction': _only(prediction, unrelaxed),
    }


def _only(runs, others):
    return [
        id for id, run in runs.items() if run['converged'] and not others[id]['converged']
    ]


def _share(values):
    values = list(values)
    return sum(values) / len(values) if values else None


def table(result):
    """A comparison as text: median (quartiles) of converged runs, failures apart.

    Energies are above those of the relaxation from the unrelaxed structure.

    >>> print(table(compare(structures)))  # doctest: +SKIP
    """
    settings, rows = result['settings'], result['summary']
    head = (
        f'{len(result["structures"])} structures, model {settings["model"]!r}, to '
        f'{settings["fmax"]:g} eV/A in {settings["steps"]} steps at most, '
        f'{settings["threads"]} threads'
    )
    parts = [head, as_text(*_costs(rows), left=3), as_text(*_ends(rows), left=3)]
    if any(row['both']['n'] for row in rows):
        caption = 'from the prediction, beside from the unrelaxed structure'
        parts.append(f'{caption}\n{as_text(*_beside(rows), left=2)}')
    parts += [line for row in rows for line in _warnings(row)]
    parts += [_batch_line(batch) for batch in result['batched']]
    return '\n\n'.join(parts)


def _costs(rows):
    """Titles and rows of what it cost to converge."""
    counts, costs = ('converged', 'unconverged', 'failed'), ('calls', 'steps', 's')
    lines = [
        [
            *(row['calculator'], row['optimizer'], start),
            *(str(row[start][key]) for key in counts),
            *(_cell(row[start][cost], '.0f') for cost in ('calls', 'steps')),
            _cell(row[start]['seconds'], '.2f'),
        ]
        for row in rows
        for start in ('unrelaxed', 'prediction')
    ]
    return ['calculator', 'optimizer', 'start', *counts, *costs], lines


def _ends(rows):
    """Titles and rows of where it led, by all three ways."""
    lines = []
    for row in rows:
        above = row['alone'], row['both']
        for (way, title), energy in zip(WAYS.items(), (None, *above), strict=True):
            one = row[way]
            lines.append(
                [
                    *(row['calculator'], row['optimizer'], title),
                    _percent(one.get('converged_share')),
                    _cell(energy and energy['energy_difference'], '.1f', _MEV),
                    _cell(one['rmsd_to_reference'], '.3f'),
                    _percent(one['spacegroup_kept']),
                ]
            )
    titles = ['calculator', 'optimizer', 'way', 'converged', 'energy/meV per atom']
    return [*titles, 'RMSD to reference', 'space group kept'], lines


def _beside(rows):
    """Titles and rows of structures that converged from both starts."""
    lines = []
    for row in rows:
        both = row['both']
        names = (row['calculator'], row['optimizer'], str(both['n']))
        shares = (_percent(both[key]) for key in ('equal', 'lower', 'higher'))
        calls = _percent(both['median_calls_ratio'])
        lines.append([*names, calls, _cell(both['calls_saved'], '.0f'), *shares])
    titles = ['calculator', 'optimizer', 'both converged', 'calls', 'calls saved']
    return [*titles, 'same energy', 'lower', 'higher'], lines


def _warnings(row):
    """Lines on structures that the prediction did no good."""
    name = f'{row["calculator"]} + {row["optimizer"]}'
    if higher := row['both']['higher_structures']:
        yield f'{name} from the prediction ended higher: {", ".join(higher)}'
    if lost := row['only_unrelaxed']:
        yield f'{name} from the prediction did not converge: {", ".join(lost)}'


def _batch_line(batch):
    name = f'{batch["calculator"]}, batched {batch["optimizer"]}, {batch["start"]}'
    if batch['problem']:
        return f'{name}: failed ({batch["problem"]})'
    return (
        f'{name}: {batch["converged"]} of {batch["n"]} converged, calls '
        f'{_cell(batch["calls"], ".0f")}, {batch["seconds_per_structure"]:.3f} s each'
    )


def _percent(share):
    return '-' if share is None else f'{share:.0%}'


def _cell(values, form, unit=1):
    """Median and quartiles; z: what rounds to zero has no sign."""
    if not values or not values['n']:
        return '-'
    low, middle, high = (f'{unit * values[k]:z{form}}' for k in ('q25', 'median', 'q75'))
    return f'{middle} ({low} to {high})'
