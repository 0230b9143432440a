"""The lines at the top of a report: what came out, in words."""

from __future__ import annotations

import numpy as np

from ase_deeprelax.compare.evaluate import cuts
from ase_deeprelax.compare.evaluation_schema import AnyEvaluation, models_of
from ase_deeprelax.compare.schema import Comparison
from ase_deeprelax.compare.tables import percent
from ase_deeprelax.data.one_line import count
from ase_deeprelax.report.plot_accuracy import method_name
from ase_deeprelax.report.plot_relaxations import Columns, finite


def of_relaxations(columns: Columns, failed: int, *, unconverged: int = 0) -> str:
    """How many structures were relaxed, and how sure the predictions are.

    Parameters
    ----------
    columns : mapping of str to sequence
        Of the structures that were relaxed; see `columns_of`.
    failed : int
        How many were not.
    unconverged : int
        Of how many the last calculator failed or did not converge; default 0.

    Examples
    --------
    >>> of_relaxations({'error': [0.02], 'ood': ['']}, 1)
    '1 structure relaxed, 1 refused. Expected error: 0.020 Å.'
    """
    line = f'{count(len(next(iter(columns.values()))))} relaxed'
    line += f', {failed:,} refused' if failed else ''
    line += f'. {unconverged:,} did not converge' if unconverged else ''
    for name, title in (('error', 'expected error'), ('sigma', 'sigma')):
        known = finite(columns.get(name, ()))
        if len(known):
            many = len(known) > 1
            of_what = f'Median {title} of the predictions' if many else title.capitalize()
            line += f'. {of_what}: {np.median(known):.3f} Å'
            break
    outside = sum(map(bool, columns.get('ood', ())))
    line += f'. {outside:,} outside the training range' if outside else ''
    return f'{line}.'


def of_comparison(comparison: Comparison) -> list[str]:
    """For each calculator and optimizer: the share of calls, and of equal energies."""
    lines = []
    for row in comparison['summary']:
        name, both = f'{row["calculator"]} with {row["optimizer"]}', row['both']
        if not both['n']:
            lines.append(f'{name}: no structure converged from both starts.')
            continue
        left_out = row['n'] - both['n']
        others = (
            f' that converged from both starts; {left_out:,} did not' if left_out else ''
        )
        lines.append(
            f'{name}: {percent(both["median_calls_ratio"])} of the calls with the '
            f'prediction, and the same energy in {percent(both["equal"])} of '
            f'{count(both["n"])}{others}.'
        )
    return lines


def of_evaluation(evaluation: AnyEvaluation) -> list[str]:
    """For each model: how much of the error of the input it takes away."""
    lines = []
    for key in models_of(evaluation):
        below = cuts(evaluation['all'], key)
        shown = [
            f'{cut["median"]:z.0f} % of the error of the {what}'
            for what, name in (('positions', 'coord_mae'), ('lattice', 'lattice_mae'))
            if (cut := below[name]) is not None and cut['median'] is not None
        ]
        if shown:
            lines.append(
                f'{method_name(evaluation, key)}: takes away {" and ".join(shown)} (median '
                f'of {count(evaluation["n"], "pair")}).'
            )
    return lines
