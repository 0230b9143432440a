"""The table of relaxed structures, which the terminal and all pages show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ase_deeprelax.compare.tables import Cell, Link, Table, number


class Column(NamedTuple):
    """A column; ``head`` on a page, ``short`` in a terminal, None where it is not shown."""

    key: str
    head: str | None
    short: str | None
    form: str = ''


COLUMNS = (
    Column('formula', 'formula', 'formula'),
    Column('n_atoms', 'atoms', 'atoms'),
    Column('relaxed', 'relaxed', None),
    Column('volume_before', None, 'V0/Å³', '.2f'),
    Column('volume', None, 'V/Å³', '.2f'),
    Column('change', 'change of volume / %', None, '+z.1f'),
    Column('dmax', 'largest displacement / Å', 'dmax/Å', '.3f'),
    Column('error', 'expected error{} / Å', 'error/Å', '.3f'),
    Column('sigma', 'sigma{} / Å', 'sigma/Å', '.3f'),
    Column('spacegroup', 'space group', None),
    Column('energy', 'energy / eV', 'E/eV', '.4f'),
    Column('fmax', 'largest force / eV Å⁻¹', 'fmax/eV/Å', '.4f'),
    Column('s', None, 's', '.1f'),
    Column('ms', None, 'ms', '.0f'),
    Column('way', 'stages', 'stages'),
    Column('remark', 'remark', 'remark'),
)
WORDS = ('formula', 'relaxed', 'spacegroup', 'way', 'remark')


def relaxation_table(
    rows: Iterable[tuple[str | Link, Mapping[str, Any]]],
    caption: str = '',
    *,
    short: bool = False,
) -> Table:
    """A table with a row for each structure, without columns of which nothing is known.

    Parameters
    ----------
    rows : iterable of (str or Link, mapping)
        A name, and what is known: entries of `Relaxation.to_row`; ``volume_before`` and
        ``volume`` (A^3), ``spacegroup`` (text), ``verified`` (what a potential says), and
        of a refinement ``energy`` (eV), ``fmax`` (eV/A), ``way`` (stages in few words).
    caption : str
    short : bool
        For a terminal; default False, for a page.

    Examples
    --------
    >>> row = {'formula': 'NaCl', 'n_atoms': 2, 'ok': True, 'volume_ratio': 1.08}
    >>> print(relaxation_table([('a.cif', row)]).as_text())
    structure  formula  atoms  change of volume / %
    a.cif      NaCl         2                  +8.0
    """
    rows = list(rows)
    whole = all(row['ok'] for _, row in rows)
    chosen = [(column, column.short if short else column.head) for column in COLUMNS]
    shown = [(column, head) for column, head in chosen if head is not None]
    cells = [[name, *_cells(row, [c for c, _ in shown], whole)] for name, row in rows]
    # Uncertainties of structures that were relaxed on are those of their predictions.
    whose = ' of prediction' if any('way' in row for _, row in rows) else ''
    heads = ['structure', *(head.format(whose) for _, head in shown)]
    words = [k for k, (column, _) in enumerate(shown, start=1) if column.key in WORDS]
    return Table(heads, cells, (0, *words), caption).without_empty_columns()


def _cells(row: Mapping[str, Any], columns: Sequence[Column], whole: bool) -> list[Cell]:
    """The cells of a row, None for what is not known; ``whole``: no row was refused."""
    ok, ratio, seconds = row['ok'], row.get('volume_ratio'), row.get('seconds')
    known: dict[str, Any] = {
        **row,
        'relaxed': None if whole else 'yes' if ok else 'refused',
        'change': None if ratio is None else 100 * (ratio - 1),
        'remark': _remark(row) if ok else row.get('problem'),
    }
    if seconds is not None:
        known |= {'s': seconds} if 'way' in row else {'ms': 1e3 * seconds}
    if not ok:  # a structure that was refused did not move
        known |= dict.fromkeys(('volume', 'change', 'dmax'))
    return [
        number(known.get(c.key), c.form) if c.form else known.get(c.key) for c in columns
    ]


def _remark(row: Mapping[str, Any]) -> str:
    """Remarks on a structure: its kind, warnings, the verdict of a potential; or ''."""
    kind, ood = row.get('kind') or 'bulk', row.get('ood')
    notes = [] if kind == 'bulk' else [kind]
    notes += [f'! {ood}'] if ood else []
    notes += [row['verified']] if row.get('verified') else []
    return '; '.join(notes)


def uncertainty_of(row: Mapping[str, Any]) -> float:
    """Expected error, or sigma where there is none, A; 0 where neither is known."""
    for key in ('error', 'sigma'):
        value = row.get(key)
        if value is not None and not math.isnan(value):
            return float(value)
    return 0.0
