"""What the rows of a comparison say together: medians and spread, never of failures."""

import numpy as np

from ase_deeprelax.compare.table import as_text

# Final energies closer than this are equal, eV per atom.
ENERGY_TOLERANCE = 0.002
COSTS = ('steps', 'calls', 'seconds')


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
        With ``settings`` and ``runs``.

    Returns
    -------
    list of dict
    """
    settings, groups = result['settings'], {}
    for run in result['runs']:
        group = groups.setdefault((run['calculator'], run['optimizer']), {})
        group.setdefault(run['start'], {})[run['structure']] = run
    return [
        {
            'calculator': calculator,
            'optimizer': optimizer,
            'n': len(group['unrelaxed']),
            **{start: _one_start(list(runs.values())) for start, runs in group.items()},
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
        'only_unrelaxed': _alone(unrelaxed, prediction),
        'only_prediction': _alone(prediction, unrelaxed),
    }


def _alone(runs, others):
    return [
        id for id, run in runs.items() if run['converged'] and not others[id]['converged']
    ]


def _share(values):
    values = list(values)
    return sum(values) / len(values) if values else None


def table(result):
    """A comparison as text: median (quartiles) of converged runs, failures apart.

    >>> print(table(compare(structures)))  # doctest: +SKIP
    """
    settings, rows = result['settings'], result['summary']
    head = (
        f'{len(result["structures"])} structures, model {settings["model"]!r}, to '
        f'{settings["fmax"]:g} eV/A in {settings["steps"]} steps at most, '
        f'{settings["threads"]} threads'
    )
    counts = ['converged', 'unconverged', 'failed']
    titles = ['calculator', 'optimizer', 'start', *counts, 'calls', 'steps', 's']
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
    parts = [head, as_text(titles, lines, left=3)]
    titles = ['calculator', 'optimizer', 'both converged', 'calls', 'calls saved']
    titles += ['same energy', 'lower', 'higher', 'space group kept']
    lines = [_beside(row) for row in rows if row['both']['n']]
    if lines:
        caption = 'from the prediction, beside from the unrelaxed structure'
        parts.append(f'{caption}\n{as_text(titles, lines, left=2)}')
    parts += [line for row in rows for line in _warnings(row)]
    parts += [_batch_line(batch) for batch in result['batched']]
    return '\n\n'.join(parts)


def _beside(row):
    both, kept = row['both'], row['prediction']['spacegroup_kept']
    shares = (
        both['median_calls_ratio'],
        both['equal'],
        both['lower'],
        both['higher'],
        kept,
    )
    first, *others = (f'{100 * share:.0f} %' for share in shares)
    names = (row['calculator'], row['optimizer'], str(both['n']))
    return [*names, first, _cell(both['calls_saved'], '.0f'), *others]


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


def _cell(values, form):
    if not values['n']:
        return '-'
    return f'{values["median"]:{form}} ({values["q25"]:{form}}-{values["q75"]:{form}})'
