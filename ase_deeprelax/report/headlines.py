"""The lines at the top of a report: what came out, in words."""

from __future__ import annotations

from ase_deeprelax.compare.evaluate import cuts
from ase_deeprelax.compare.evaluation_schema import AnyEvaluation
from ase_deeprelax.compare.evaluation_schema import models_of as methods_of
from ase_deeprelax.compare.schema import Comparison
from ase_deeprelax.data.one_line import count
from ase_deeprelax.report.plot_accuracy import method_name


def of_comparison(comparison: Comparison) -> list[str]:
    """For each calculator and optimizer: the share of calls, and of equal energies."""
    return [
        f'{row["calculator"]} with {row["optimizer"]}: '
        f'{row["both"]["median_calls_ratio"]:.0%} of the calls with the prediction, and '
        f'the same energy in {row["both"]["equal"]:.0%} of {count(row["both"]["n"])}.'
        for row in comparison['summary']
        if row['both']['n']
    ]


def of_evaluation(evaluation: AnyEvaluation) -> list[str]:
    """For each model: how much of the error of the input it takes away."""
    lines = []
    for key in methods_of(evaluation):
        below = cuts(evaluation['all'], key)
        shown = [
            f'{cut["median"]:.0f} % of the error of the {what}'
            for what, name in (('positions', 'coord_mae'), ('lattice', 'lattice_mae'))
            if (cut := below[name]) is not None
        ]
        if shown:
            lines.append(
                f'{method_name(evaluation, key)}: takes away {" and ".join(shown)} (median '
                f'of {count(evaluation["n"], "pair")}).'
            )
    return lines
