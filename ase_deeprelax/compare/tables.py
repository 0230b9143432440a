"""Tables that are composed once, and written as text, as Markdown or into a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ase_deeprelax.compare.schema import Quartiles

# Terminals and Markdown files get plain letters.
_ASCII = str.maketrans({'Å': 'A', '²': '^2', '³': '^3', '⁻': '^-', '¹': '1', '→': '->'})
# A cell without a value: in text, and in a report.
DASH = '-'
WIDE_DASH = '\N{EN DASH}'


class Link(NamedTuple):
    """A name, and its place in the list of a report's viewer."""

    text: str
    scene: int

    def __str__(self) -> str:
        return self.text


# None is drawn as a dash.
Cell = str | int | Link | None


@dataclass(frozen=True)
class Table:
    """Rows of cells under their heads.

    The template of the report draws a table from its attributes.

    Parameters
    ----------
    heads : sequence of str
    rows : sequence of sequences
        Of text, whole numbers, links and None.
    text_columns : tuple of int
        Columns that are flush left; default the first. The others are flush right.
    caption : str
    folded : bool
        Whether the reader of a report has to open it; default no.

    Examples
    --------
    >>> table = Table(['model', 'error / Å'], [['dummy', '0.11'], ['mine', None]])
    >>> print(table.as_text())
    model  error / A
    dummy       0.11
    mine           -
    >>> print(table.as_markdown())
    | model | error / A |
    |---|--:|
    | dummy | 0.11 |
    | mine | - |
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    text_columns: tuple[int, ...] = (0,)
    caption: str = ''
    folded: bool = False

    def as_text(self) -> str:
        """Columns in line, two spaces apart, under the caption if there is one."""
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [self.caption.translate(_ASCII)] if self.caption else []
        for row in cells:
            padded = [
                cell.ljust(width) if k in self.text_columns else cell.rjust(width)
                for k, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append('  '.join(padded).rstrip())
        return '\n'.join(lines)

    def as_markdown(self) -> str:
        """A table of Markdown, under the caption if there is one."""
        safe = ([cell.replace('|', r'\|') for cell in row] for row in self._cells())
        lines = [f'| {" | ".join(row)} |' for row in safe]
        rules = ('---' if k in self.text_columns else '--:' for k in range(len(self.heads)))
        caption = [self.caption.translate(_ASCII), ''] if self.caption else []
        return '\n'.join([*caption, lines[0], f'|{"|".join(rules)}|', *lines[1:]])

    def without_empty_columns(self) -> Table:
        """The same without columns in which no row has a value.

        >>> Table(['what', 'price'], [['salt', None]]).without_empty_columns().heads
        ['what']
        """
        kept = [
            k
            for k in range(len(self.heads))
            if not self.rows or any(row[k] not in (None, '') for row in self.rows)
        ]
        return replace(
            self,
            heads=[self.heads[k] for k in kept],
            rows=[[row[k] for k in kept] for row in self.rows],
            text_columns=tuple(at for at, k in enumerate(kept) if k in self.text_columns),
        )

    def _cells(self) -> list[list[str]]:
        rows = [[DASH if cell is None else str(cell) for cell in row] for row in self.rows]
        return [[head.translate(_ASCII) for head in self.heads], *rows]


def number(value: float | None, form: str) -> str | None:
    """A number as text; None for what does not exist or is no number.

    >>> number(0.4567, '.2f'), number(float('nan'), '.2f')
    ('0.46', None)
    """
    return None if value is None or math.isnan(value) else f'{value:{form}}'


def percent(share: float | None) -> str | None:
    """A share as text; None for what does not exist.

    >>> percent(0.554), percent(None)
    ('55 %', None)
    """
    return None if share is None else f'{100 * share:.0f} %'


def quartiles_text(values: Quartiles | None, form: str, unit: float = 1) -> str | None:
    """Median and quartiles times ``unit``; None without values.

    >>> quartiles_text({'n': 3, 'q25': 1, 'median': 2, 'q75': 3}, '.0f')
    '2 (1 to 3)'
    """
    if values is None:
        return None
    numbers = [values['q25'], values['median'], values['q75']]
    # z: a number that rounds to zero has no sign.
    low, middle, high = (x if x is None else f'{unit * x:z{form}}' for x in numbers)
    return None if middle is None else f'{middle} ({low} to {high})'


def counts_text(values: Quartiles | None) -> str | None:
    """Median and quartiles of whole numbers, to the nearest half; None without values.

    >>> counts_text({'n': 2, 'q25': 3.25, 'median': 3.5, 'q75': 3.75})
    '3.5 (3 to 4)'
    """
    if values is None:
        return None
    numbers = (values['median'], values['q25'], values['q75'])
    # A median of whole numbers may be a half, which rounding to even would hide.
    texts = [f'{round(2 * x) / 2:z.10g}' for x in numbers if x is not None]
    return f'{texts[0]} ({texts[1]} to {texts[2]})' if texts else None
