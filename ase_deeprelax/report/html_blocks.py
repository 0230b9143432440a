"""What sections are made of: tables, figures, and numbers in words.

A section is ``title, text, tables, figures``, as the page's template takes them.
"""

import math
from typing import NamedTuple

from markupsafe import Markup

from ase_deeprelax.report.style import to_svg

NONE = '\N{EN DASH}'


class Link(NamedTuple):
    """A name, and its place in the viewer's list."""

    text: str
    scene: int


def section(title, text, tables, figures=()):
    """What stands under one heading."""
    return {'title': title, 'text': text, 'tables': tables, 'figures': figures}


def table(caption, heads, rows, *, words=(0,), folded=False):
    """Rows of cells under their heads, without the columns in which every cell is empty.

    Parameters
    ----------
    caption : str
    heads : list of str
    rows : list of list
        Of text, whole numbers, and what `link` gives.
    words : tuple of int
        The columns of text, which are flush left; default the first.
    folded : bool
        Whether the reader has to open it; default no.

    Examples
    --------
    >>> table('Prices', ['what', 'to whom', 'price'], [['salt', '', 2]], words=(0, 1))[
    ...     'heads'
    ... ]
    ['what', 'price']
    """
    columns = [
        k for k in range(len(heads)) if not rows or {row[k] for row in rows} - {NONE, ''}
    ]
    return {
        'caption': caption,
        'heads': [heads[k] for k in columns],
        'rows': [[row[k] for k in columns] for row in rows],
        'words': [at for at, k in enumerate(columns) if k in words],
        'folded': folded,
    }


def figure(drawn, caption):
    """A figure of matplotlib, with what is to be seen in it."""
    # Names in it were escaped by matplotlib.
    return {'svg': Markup(to_svg(drawn, caption)), 'caption': caption}  # noqa: S704


def places(scenes):
    """Where in the viewer's list a name is."""
    return {one['name']: place for place, one in enumerate(scenes)}


def link(name, places):
    """A name that, where there is a picture of it, opens that."""
    return Link(name, places[name]) if name in places else name


def number(value, form):
    """A number in words, a dash for what does not exist.

    >>> number(0.4567, '.2f'), number(0.5, '.0%'), number(None, '.2f')
    ('0.46', '50%', '–')
    """
    if value is None or math.isnan(value):
        return NONE
    return f'{value:{form}}'


def spread(values, form, unit=1):
    """Median and quartiles, times ``unit``.

    >>> spread({'n': 3, 'q25': 1, 'median': 2, 'q75': 3}, '.0f')
    '2 (1 to 3)'
    """
    if not values or not values['n']:
        return NONE
    # z: what rounds to zero has no sign
    low, middle, high = (
        f'{unit * values[key]:z{form}}' for key in ('q25', 'median', 'q75')
    )
    return f'{middle} ({low} to {high})'
