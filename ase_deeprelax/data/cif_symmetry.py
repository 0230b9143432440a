"""Symmetry operations of CIF files that only name their space group.

Symbols of Hermann and Mauguin such as P b n m, P 21/n and F d -3 m :2 stand for other axes,
or another origin, than the standard ones of the group. With the standard ones the crystal
would be another. Symbols of Hall always say the setting.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import spglib

from ase_deeprelax.errors import StructureError

# An origin, or the axes of a rhombohedral group, may follow a symbol.
SUFFIX = re.compile(
    r'(?P<symbol>.+?)\s*'
    r'(?:(?::\s*|O|\(origin choice )(?P<origin>[12])\)?|:?\s*(?P<letter>[HRSZ]))',
    re.IGNORECASE,
)
# The origins that the letters of the ICSD stand for.
ORIGINS = {'S': '1', 'Z': '2'}
# The number of a group alone stands for these of its settings.
STANDARD = ('', 'b', 'b1', 'c', 'c1', '1', '2', 'H', 'R')
MONOCLINIC, CUBIC = range(3, 16), range(195, 231)
# Angles of a cell that are nearer than this are equal, degrees.
SAME_ANGLE = 0.05


class Setting(NamedTuple):
    """A setting of a space group.

    Attributes
    ----------
    hall : int
        Its number in the table of spglib.
    group : int
        Number of the space group.
    choice : str
        Origin (1 or 2), axes (H or R), or the axis and cell of a monoclinic group.
    names : frozenset of str
        Symbols of Hermann and Mauguin that mean it, as `_plain` writes them.
    symbol : str
        That of Hall, as `_spaced` writes it.
    """

    hall: int
    group: int
    choice: str
    names: frozenset[str]
    symbol: str


def operations_of(
    number: int | None,
    symbol: str | None,
    angles: Sequence[float],
    hall: str | None = None,
) -> tuple[int, list[str]]:
    """The operations of a space group, in the setting that its symbols and the cell say.

    Parameters
    ----------
    number : int or None
        Of the space group, where it is known.
    symbol : str or None
        Of Hermann and Mauguin, where it is known. Without it, the standard setting.
    angles : sequence of 3 float, degrees
        Of the cell. They tell the unique axis of a monoclinic, and the axes of a
        rhombohedral group.
    hall : str, optional
        Symbol of Hall, where it is known; it goes before the other one.

    Returns
    -------
    number : int
    operations : list of str
        Such as ``'-x,y+1/2,-z'``.

    Raises
    ------
    StructureError
        There is no such group; it has two origins and no symbol names one of them; or only
        the setting is not known.

    Examples
    --------
    >>> number, operations = operations_of(None, 'P 21/n', (90, 105, 90))
    >>> number, operations[2]
    (14, '-x+1/2,y+1/2,-z+1/2')
    >>> operations_of(None, 'F d -3 m', (90, 90, 90))
    Traceback (most recent call last):
    ...
    ase_deeprelax.errors.StructureError: it lists no symmetry operations, and 'F d -3 m' ...
    """
    found, called = [] if hall is None else _of_hall(number, hall), repr(hall)
    if not found and (hall is None or symbol is not None):
        found, called = _named(number, symbol)
    if not found:
        raise StructureError(
            f'it lists no symmetry operations, and {called} is no space group; add the '
            'operations'
        )
    group = found[0].group
    if group in MONOCLINIC and len(found) > 1:
        found = [one for one in found if _may_have(one, angles)] or found
        found = sorted(found, key=lambda one: 'bca'.index(one.choice.strip('-')[0]))[:1]
    elif {one.choice for one in found} == {'H', 'R'}:
        axes = 'H' if _equal(angles, (90, 90, 120)) else 'R'
        found = [one for one in found if one.choice == axes]
    if len(found) > 1:
        raise StructureError(
            f'it lists no symmetry operations, and {called} may mean any of {len(found)} '
            "origins or settings; add the operations, or to the symbol ':1' or ':2'"
        )
    with _without_warnings():
        table: Any = spglib.get_symmetry_from_database(found[0].hall)
    return group, list(map(_operation, table['rotations'], table['translations']))


def group_of(symbol: str) -> int | None:
    """The number of the space group that a symbol means, in any setting.

    >>> group_of('P b n m'), group_of('P 63/m m c'), group_of('unknown')
    (62, 194, None)
    """
    found, _ = _named(None, symbol)
    return found[0].group if found else None


def _named(number: int | None, symbol: str | None) -> tuple[list[Setting], str]:
    """The settings that a number and a symbol may mean, and both in words."""
    known = [one for one in _settings() if number in (None, one.group)]
    if symbol is None:
        return [one for one in known if one.choice in STANDARD], f'number {number}'
    called = repr(symbol) if number is None else f'{symbol!r} with the number {number}'
    match = SUFFIX.fullmatch(symbol.strip())
    name = _plain(match['symbol'] if match else symbol)
    found = [one for one in known if name in one.names]
    if match:
        letter = (match['letter'] or match['origin']).upper()
        choice = ORIGINS.get(letter, letter)
        found = [one for one in found if one.choice.startswith(choice)] or found
    return found, called


def _of_hall(number: int | None, hall: str) -> list[Setting]:
    """A list of the setting that a symbol of Hall means; empty for an unknown symbol."""
    wanted = _spaced(hall)
    known = (one for one in _settings() if number in (None, one.group))
    return [one for one in known if one.symbol == wanted][:1]


def _spaced(hall: str) -> str:
    return ' '.join(hall.replace('_', ' ').split()).lower()


def _plain(symbol: str) -> str:
    return re.sub(r'[\s_]', '', symbol).lower()


@cache
def _settings() -> list[Setting]:
    """All settings of all space groups."""
    with _without_warnings():
        kinds: list[Any] = [spglib.get_spacegroup_type(hall) for hall in range(1, 531)]
    return [
        Setting(
            hall,
            kind.number,
            kind.choice,
            frozenset(map(_plain, _names(kind))),
            _spaced(kind.hall_symbol),
        )
        for hall, kind in enumerate(kinds, start=1)
    ]


@contextmanager
def _without_warnings() -> Generator[None]:
    """Silence the warnings of spglib that it will tell errors in another way."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        yield


def _names(kind: Any) -> Iterator[str]:
    """The symbols of a setting, with those of former editions of the tables."""
    if kind.number in MONOCLINIC:
        # The first is that of the group: P 2_1/c = P 1 2_1/n 1.
        for name in kind.international.split(' = ')[1:]:
            yield from (name, re.sub(r' 1\b(?!/)', '', name))
        return
    for name in (kind.international, kind.international_full):
        yield name
        if kind.number in CUBIC:  # F m 3 m
            yield name.replace('-3', '3')
        yield from (name.replace('e', glide) for glide in 'abc')  # C m c a is C m c e


def _may_have(setting: Setting, angles: Sequence[float]) -> bool:
    """Whether a cell of these angles can be that of a monoclinic setting."""
    unique = 'abc'.index(setting.choice.strip('-')[0])
    others = [angle for axis, angle in enumerate(angles) if axis != unique]
    return _equal(others, (90, 90))


def _equal(angles: Sequence[float], expected: Sequence[float]) -> bool:
    return bool(np.allclose(angles, expected, rtol=0, atol=SAME_ANGLE))


def _operation(rotation: np.ndarray, translation: np.ndarray) -> str:
    """An operation as CIF files have it, such as ``-x,y+1/2,-z``."""
    words = []
    for row, shift in zip(rotation.tolist(), translation.tolist(), strict=True):
        parts = zip(row, 'xyz', strict=True)
        terms = ''.join(f'{"-" if n < 0 else "+"}{axis}' for n, axis in parts if n)
        part = Fraction(shift).limit_denominator(12)
        words.append(terms.removeprefix('+') + (f'+{part}' if part else ''))
    return ','.join(words)
