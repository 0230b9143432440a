"""Tables of errors on pairs, as `evaluate` and `evaluate_all` find them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ase_deeprelax.compare.evaluate import cuts
from ase_deeprelax.compare.evaluation_schema import (
    AnyEvaluation,
    MethodFigures,
    ModelRecord,
    models_of,
)
from ase_deeprelax.compare.metrics import ERRORS, SHARES
from ase_deeprelax.compare.schema import check_version
from ase_deeprelax.compare.tables import DASH, Table, number

# Errors in tables of text, which are 100 columns wide, with unit and format; and shares.
SHOWN = {
    'coord_mae': ('A', '.4f'),
    'internal_mae': ('A', '.4f'),
    'bond_mae': ('A', '.4f'),
    'lattice_mae': ('A', '.4f'),
    'volume_mae': ('A^3', '.2f'),
}
SHOWN_SHARES = ('match_rate', 'rmsd', 'spacegroup_kept')
INTERVALS = ('position', 'lattice', 'volume')
# This line stands below tables in which a figure has no meaning.
FOOTNOTE = (
    '-: not scored: the cell is fixed, there is vacuum (volume, match, rmsd), or dummy is '
    'right (cut)'
)


def evaluation_text(result: AnyEvaluation, *, markdown: bool = False) -> str:
    """Tables of the errors that `evaluate` or `evaluate_all` found, a row for each method.

    Of all pairs, of those marked ok where these are not all, and of each kind where there
    are several: errors as mean / median; by how many percent they lie below Dummy's;
    shares, and time and failures of each model. A dash stands for what has no meaning.

    Parameters
    ----------
    result : Evaluation or ManyEvaluation
    markdown : bool
        Tables of Markdown instead of text; default False.

    Returns
    -------
    str

    Examples
    --------
    >>> print(evaluation_text(evaluate(pairs)))  # doctest: +SKIP
    """
    check_version(result)
    tables: list[Table] = []
    for part, (n, figures) in parts_of(result).items():
        models = models_of(result) if part == 'all' else {}
        tables += _error_tables(figures, f'{part}, {n:,}')
        tables.append(_share_table(figures, models))
    if any(record.get('coverage_90') for record in models_of(result).values()):
        tables.append(uncertainty_table(result))
    text = [table.as_markdown() if markdown else table.as_text() for table in tables]
    if any(None in row for table in tables for row in table.rows):
        text.append(FOOTNOTE)
    return '\n\n'.join(text)


def parts_of(result: AnyEvaluation) -> dict[str, tuple[int, MethodFigures]]:
    """Number and figures of all pairs, of those marked ok, and of those of each kind.

    Only parts that differ from the whole.
    """
    parts = {'all': (result['n'], result['all'])}
    if 0 < result['n_ok'] < result['n']:
        parts['ok'] = result['n_ok'], result['ok']
    if len(result['kinds']) > 1:
        parts |= {kind: (one['n'], one['all']) for kind, one in result['kinds'].items()}
    return parts


def errors_by_method(
    caption: str, section: MethodFigures, names: Mapping[str, str]
) -> Table:
    """All errors and shares in rows, with a column for each method.

    Parameters
    ----------
    caption : str
    section : dict
        Figures by method.
    names : dict of str to str
        How to call each method.

    Returns
    -------
    Table
        With a further column for each method: by how many percent errors are below Dummy's.
    """
    cut = {key: cuts(section, key) for key in section if key != 'dummy'}
    rows: list[list[str | None]] = [
        [
            error,
            *(mean_and_median(figures[error], '.4f') for figures in section.values()),
            *(mean_and_median(below[error], 'z.1f') for below in cut.values()),
        ]
        for error in ERRORS
    ]
    empty = [''] * len(cut)
    rows += [
        [share, *(number(figures[share], '.4f') for figures in section.values()), *empty]
        for share in SHARES
    ]
    heads = ['measure', *(names[key] for key in section)]
    heads += [f'{names[key]}, cut / %' for key in cut]
    return Table(heads, rows, caption=caption)


def uncertainty_table(result: AnyEvaluation) -> Table:
    """How well the uncertainties of models tell their errors; a row for each kind too.

    Returns
    -------
    Table
        The part of all coordinate errors that the most uncertain 20 % of the structures
        have, %, and how often 90 % intervals hold the true value, %.
    """
    rows: list[list[str | None]] = []
    kinds = result['kinds'] if len(result['kinds']) > 1 else {}
    for method, record in models_of(result).items():
        found = [(method, record.get('uncertain_20'), record.get('coverage_90'))]
        found += [
            (f'{method}, {kind}', None, one.get('coverage_90', {}).get(method))
            for kind, one in kinds.items()
        ]
        for name, uncertain, coverage in found:
            shares = [uncertain, *((coverage or {}).get(key) for key in INTERVALS)]
            percent = (None if x is None else f'{100 * x:.1f}' for x in shares)
            rows.append([name, *percent])
    inside = (f'coverage_90 ({key})' for key in INTERVALS)
    return Table(['share/%', 'uncertain_20', *inside], rows)


def mean_and_median(values: Mapping[str, float | None] | None, form: str) -> str | None:
    """'mean / median'; None where there is no value.

    >>> mean_and_median({'mean': 0.25, 'median': 0.2}, '.2f')
    '0.25 / 0.20'
    """
    if values is None:
        return None
    mean, median = (number(values[which], form) or DASH for which in ('mean', 'median'))
    return f'{mean} / {median}'


def _error_tables(section: MethodFigures, title: str) -> list[Table]:
    """Errors, and by how many percent they are below Dummy's; a row for each method."""
    errors = [
        [method, *(mean_and_median(figures[key], form) for key, (_, form) in SHOWN.items())]
        for method, figures in section.items()
    ]
    below = [
        [method, *(mean_and_median(cuts(section, method)[key], 'z.1f') for key in SHOWN)]
        for method in section
        if method != 'dummy'
    ]
    units = [f'{key}/{unit}' for key, (unit, _) in SHOWN.items()]
    return [Table([title, *units], errors), Table(['cut below dummy/%', *SHOWN], below)]


def _share_table(section: MethodFigures, models: Mapping[str, ModelRecord]) -> Table:
    """Shares, and time and failures of each model."""
    known = ('n_failed', 'ms_per_structure', 'spearman_sigma') if models else ()
    rows: list[list[str | None]] = []
    for method, figures in section.items():
        record: Mapping[str, Any] = models.get(method, {})
        row = [method, *(number(figures[key], '.4f') for key in SHOWN_SHARES)]
        for key in known:
            value = record.get(key)
            form = '.2f' if isinstance(value, float) else ''
            row.append('' if value is None else f'{value:{form}}')
        rows.append(row)
    return Table(['', *SHOWN_SHARES, *known], rows)
