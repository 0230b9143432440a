"""Files of relaxed structures, without the unrelaxed ones that led there."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from ase_deeprelax.data.formula import Composition, composition
from ase_deeprelax.data.json_lines import check_text, first_record_has, read_json_lines
from ase_deeprelax.data.pair import Pair
from ase_deeprelax.errors import PairFileError


def read_relaxed(
    path: str | Path, excluded: Collection[Composition], max_atoms: float
) -> list[Pair]:
    """Relaxed structures of a file of JSON lines as pairs of themselves.

    Records hold ``id, formula, numbers, cell, frac``, or they are pairs, of which the
    relaxed structure is taken. Single structures with ``fmax`` are frames off equilibrium
    and are left out, as are excluded compositions and larger cells. In pairs it is the
    limit of their relaxation.

    Parameters
    ----------
    path : str or Path
        ``.jsonl`` or ``.jsonl.gz``.
    excluded : collection
        See `formula.composition`.
    max_atoms : float
        Larger structures are left out; ``math.inf`` leaves out none.

    Returns
    -------
    list of Pair
        In the order of the file.

    Raises
    ------
    PairFileError
        The file is missing or damaged, or holds something else.

    Examples
    --------
    >>> parents = read_relaxed('known.jsonl.gz', (), 20)  # doctest: +SKIP
    """
    relaxed, line = [], str(path)
    try:
        for line, r in read_json_lines(path):
            off_equilibrium = 'cell1' not in r and r.get('fmax') is not None
            if off_equilibrium or len(r['numbers']) > max_atoms:
                continue
            numbers = np.array(r['numbers'])
            if composition(numbers) in excluded:
                continue
            check_text(str(r['id']), 'id', line)
            cell = np.array(r.get('cell1', r.get('cell')), float)
            frac = np.array(r.get('frac1', r.get('frac')), float)
            relaxed.append(
                Pair(
                    r['id'],
                    numbers,
                    cell,
                    frac,
                    cell,
                    frac,
                    formula=r['formula'],
                    pbc=tuple(r.get('pbc', (True, True, True))),
                    src=r.get('src', ''),
                )
            )
    except PairFileError:
        raise
    except (OverflowError, ValueError, KeyError, TypeError) as error:
        raise PairFileError(
            f'{line}: cannot be read as relaxed structures: {error!r}'
        ) from error
    return relaxed


def holds_relaxed(path: str | Path) -> bool:
    """Whether a file of JSON lines is one of single structures, as `read_relaxed` takes.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    bool
        False for folders and all other files.

    Raises
    ------
    PairFileError
        A file of JSON lines is damaged.
    """
    return first_record_has(Path(path), 'frac')
