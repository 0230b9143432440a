"""What a report says of errors on pairs with a known answer."""

from collections.abc import Mapping
from typing import Any

from ase_deeprelax.compare.evaluate import SHOWN, cuts
from ase_deeprelax.compare.metrics import ERRORS, SHARES
from ase_deeprelax.report import plot_accuracy
from ase_deeprelax.report.html_blocks import NONE, figure, number, section, table

# So many rows of single structures, the worst ones; JSON has all.
MOST_ROWS = 500
_UNITS = {'A': 'Å', 'A^3': 'Å³'}


def accuracy(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The section of errors on pairs."""
    models = evaluation.get('models') or {'model': evaluation}
    names = {key: plot_accuracy.called(evaluation, key) for key in evaluation['all']}
    text = [
        f'{names[key]}: {one["ms_per_structure"]:.2f} ms per structure on {one["device"]}, '
        f'{one["n_failed"]} failed, rank correlation of sigma with the error of the '
        f'distances {number(one["spearman_sigma"], ".2f")}.'
        for key, one in models.items()
    ]
    n, n_ok = evaluation['n'], evaluation['n_ok']
    tables = [_errors(f'All {n:,} pairs', evaluation['all'], names)]
    if 0 < n_ok < n:
        tables.append(_errors(f'{n_ok:,} pairs marked ok', evaluation['ok'], names))
    kinds = evaluation['kinds']
    if len(kinds) > 1:
        tables += [
            _errors(f'{kind}: {one["n"]:,} pairs', one['all'], names)
            for kind, one in kinds.items()
        ]
    tables += [_structures(evaluation, key, names[key]) for key in models]
    caption = (
        'Errors of single structures on a logarithmic axis; dashed: medians. The zeros '
        'that symmetry makes, and what else is below the axis, count in its first bin.'
    )
    figures = [
        figure(plot_accuracy.error_distributions(evaluation), caption),
        figure(
            plot_accuracy.lattice_parameters(evaluation),
            'Lattice parameters against those of the references; Dummy predicts the input. '
            'On the dashed line they agree.',
        ),
        *(
            figure(
                plot_accuracy.calibration(evaluation, key),
                f'{names[key]}: uncertainty and error of each structure. Points on the '
                'dashed line are calibrated, those above it too sure of themselves.',
            )
            for key, one in models.items()
            if one['spearman_sigma'] is not None
        ),
    ]
    return section('Accuracy on pairs with a known answer', text, tables, figures)


def _errors(
    which: str, found: Mapping[str, Any], names: Mapping[str, str]
) -> dict[str, Any]:
    """A column for each method, and one for how far it is below Dummy."""
    cut = {key: cuts(found, key) for key in found if key != 'dummy'}
    rows = [
        [
            error,
            *(_both(figures[error], '.4f') for figures in found.values()),
            *(_both(below[error], 'z.1f') for below in cut.values()),
        ]
        for error in ERRORS
    ]
    empty = [''] * len(cut)
    rows += [
        [share, *(number(figures[share], '.4f') for figures in found.values()), *empty]
        for share in SHARES
    ]
    heads = ['', *(names[key] for key in found)]
    heads += [f'{names[key]}, cut / %' for key in cut]
    caption = (
        f'{which}: mean / median of errors (Å, Å², Å³), by how much they are cut below '
        "Dummy's, and shares; a dash stands for what is not scored"
    )
    return table(caption, heads, rows)


def _both(values: Mapping[str, float] | None, form: str) -> str:
    if values is None:
        return NONE
    return f'{values["mean"]:{form}} / {values["median"]:{form}}'


def _structures(evaluation: Mapping[str, Any], model: str, name: str) -> dict[str, Any]:
    """A row for each structure, those with the worst coordinates first."""
    everything = evaluation['structures']
    worst = sorted(everything, key=lambda row: -row['errors'][model]['coord_mae'])
    rows = []
    for row in worst[:MOST_ROWS]:
        errors = row['errors'][model]
        rows.append(
            [
                *(row['id'], row['formula'], row['kind'], row['n_atoms']),
                number(row['sigma'][model], '.3f'),
                *(number(errors[key], form) for key, (_, form) in SHOWN.items()),
                number(errors['rmsd'], '.4f'),
                'yes' if errors['spacegroup_kept'] else 'no',
                'yes' if row['ok'] else 'no',
            ]
        )
    heads = ['structure', 'formula', 'kind', 'atoms', 'sigma / Å']
    heads += [f'{key} / {_UNITS[unit]}' for key, (unit, _) in SHOWN.items()]
    heads += ['rmsd', 'space group kept', 'marked ok']
    caption = f'{name}: structures, worst coordinates first'
    if len(rows) < len(everything):
        caption += f'; {len(rows)} of {len(everything):,}'
    return table(caption, heads, rows, words=(0, 1, 2))
