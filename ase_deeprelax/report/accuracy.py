"""The section of a report on errors on pairs with a known answer."""

from __future__ import annotations

from collections.abc import Mapping

from ase_deeprelax.compare.evaluation_schema import AnyEvaluation, MethodFigures, models_of
from ase_deeprelax.compare.evaluation_tables import SHOWN, errors_by_method, parts_of
from ase_deeprelax.compare.tables import WIDE_DASH, Cell, Table, number
from ase_deeprelax.data.one_line import count
from ase_deeprelax.report import plot_accuracy, plot_uncertainty
from ase_deeprelax.report.html_blocks import FigureBlock, Section, figure_block

# Most rows of single structures, the worst ones; JSON has all.
MOST_ROWS = 500
MEANING = (
    'Mean absolute errors: coord_mae of the positions, with cells aligned and without '
    'drift; internal_mae of the displacements at the reference cell; bond_mae of the '
    'distances; lattice_mae of the lattice vectors; volume_mae of the volume of the cell; '
    'relative_volume of the volume, as a share of it; metric_error of the products of the '
    'lattice vectors with each other. match_rate is the share of structures that pymatgen '
    'finds equal to the reference, rmsd the distance of their atoms in units of the cube '
    'root of the volume per atom (1 without a match), spacegroup_kept and spacegroup_right '
    'the shares with the space group of the input and of the reference. Dummy takes the '
    'input for the answer; scaled Dummy gives its cell the volume that its elements have '
    'on average.'
)
_UNITS = {'A': 'Å', 'A^3': 'Å³'}


def accuracy(evaluation: AnyEvaluation) -> Section:
    """The section of errors on pairs."""
    models = models_of(evaluation)
    names = {key: plot_accuracy.method_name(evaluation, key) for key in evaluation['all']}
    text = [
        f'{names[key]}: {one["ms_per_structure"]:.2f} ms per structure on {one["device"]}, '
        f'{one["n_failed"]} failed, rank correlation of sigma with the error of the '
        f'distances {number(one["spearman_sigma"], ".2f") or WIDE_DASH}.'
        for key, one in models.items()
    ]
    text.append(MEANING)
    tables = [
        _errors(part, n, figures, names)
        for part, (n, figures) in parts_of(evaluation).items()
    ]
    tables += [_structures(evaluation, key, names[key]) for key in models]
    caption = (
        'Share of the structures whose error is smaller, on a logarithmic axis; a curve '
        'crosses the dashed line at its median. The zeros that symmetry makes, and what '
        'else is below the axis, count at its left end.'
    )
    figures = [figure_block(plot_accuracy.error_distributions(evaluation), caption)]
    if evaluation['all']['dummy']['lattice_mae']:  # None where all cells are fixed
        figures.append(
            figure_block(
                plot_accuracy.lattice_parameters(evaluation),
                'Lattice parameters against those of the references; Dummy predicts the '
                'input. On the dashed line they agree.',
            )
        )
    figures += [
        figure_block(
            plot_accuracy.calibration(evaluation, key),
            f'{names[key]}: uncertainty and error of each structure. Points on the '
            'dashed line are calibrated; above it, the uncertainty is too small.',
        )
        for key, one in models.items()
        if one['spearman_sigma'] is not None
    ]
    figures += _uncertainty(evaluation, names)
    return Section('Accuracy on pairs with a known answer', text, tables, figures)


def _uncertainty(evaluation: AnyEvaluation, names: Mapping[str, str]) -> list[FigureBlock]:
    """Figures of models that say how certain they are."""
    models = models_of(evaluation)
    figures = [
        figure_block(
            plot_uncertainty.reliability(evaluation, key),
            f'{names[key]}: expected and actual errors, a point for each tenth of the '
            'structures. On the dashed line the expectation is right.',
        )
        for key, one in models.items()
        if one.get('coverage_90') is not None
    ]
    if any(one.get('risk_coverage') for one in models.values()):
        figures.append(
            figure_block(
                plot_uncertainty.risk_coverage_curve(evaluation),
                'Mean error of the structures that a model is most certain of.',
            )
        )
    return figures


def _errors(part: str, n: int, section: MethodFigures, names: Mapping[str, str]) -> Table:
    pairs = count(n, 'pair')
    titles = {'all': f'All {pairs}', 'ok': f'{pairs} marked ok'}
    caption = (
        f'{titles.get(part, f"{part}: {pairs}")}: mean / median of errors (Å, Å², Å³), by '
        "how much they are cut below Dummy's, and shares; a dash stands for what is not "
        'scored'
    )
    return errors_by_method(caption, section, names).without_empty_columns()


def _structures(evaluation: AnyEvaluation, model: str, name: str) -> Table:
    """A row for each structure, those with the worst coordinates first."""
    everything = evaluation['structures']
    worst = sorted(everything, key=lambda row: -(row['errors'][model]['coord_mae'] or 0))
    rows: list[list[Cell]] = []
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
    table = Table(heads, rows, (0, 1, 2), caption)
    return table.without_empty_columns()
