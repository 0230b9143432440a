"""Objects and large results are shown as one line in a Python session."""

from __future__ import annotations

from typing import Any, TypeVar, cast

T = TypeVar('T')


class _OneLine(dict[Any, Any]):
    line: str

    def __repr__(self) -> str:
        return self.line


def count(n: int, noun: str = 'structure') -> str:
    """A number of things, in words.

    >>> count(1), count(2, 'pair')
    ('1 structure', '2 pairs')
    """
    return f'{n:,} {noun}{"" if n == 1 else "s"}'


def one_line(record: T, line: str) -> T:
    """A dictionary whose ``repr`` is one line; in all else it is an ordinary one.

    Parameters
    ----------
    record : dict
    line : str
        What it holds, and how all of it is shown.

    Examples
    --------
    >>> one_line({'runs': list(range(1000))}, '<1000 runs>')
    <1000 runs>
    """
    short = _OneLine(cast('Any', record))
    short.line = line
    return cast('T', short)
