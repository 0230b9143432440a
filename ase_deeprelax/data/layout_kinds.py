"""Kinds of the papers' data sets, whose files say neither vacuum nor what was held."""

from dataclasses import replace

import numpy as np

from ase_deeprelax.data.pair import Pair

# Cells that differ by less than this, A, were held: files are written with few digits.
SAME_CELL = 1e-4


def with_kinds(pairs: list[Pair], name: str) -> list[Pair]:
    """Pairs of a data set with the kind, and whether their cell was held.

    Parameters
    ----------
    pairs : list of Pair
    name : str
        What the data set is called, such as 'vdW' or 'defects'.

    Returns
    -------
    list of Pair
        The cell is fixed, and the kind is 'defect', where both cells are equal within
        `SAME_CELL`: for each pair in a set whose name speaks of defects, else only if it
        is so for all pairs. Other layers are of kind 'monolayer', and other crystals of a
        set whose name speaks of vdW of kind 'layered'.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase_deeprelax.data.pair import make_pair
    >>> [pair] = with_kinds([make_pair('x', bulk('Cu'), bulk('Cu'))], 'defects')
    >>> pair.fixed_cell, pair.kind
    (True, 'defect')
    """
    name = name.lower()
    fixed = [bool(np.abs(pair.cell1 - pair.cell0).max() < SAME_CELL) for pair in pairs]
    if 'defect' not in name and not all(fixed):
        fixed = [False] * len(pairs)
    crystal = 'layered' if 'vdw' in name else ''
    return [
        replace(pair, fixed_cell=True, kind='defect', cell1=pair.cell0.copy())
        if cell_is_fixed
        else replace(pair, kind=crystal if all(pair.pbc) else 'monolayer')
        for pair, cell_is_fixed in zip(pairs, fixed, strict=True)
    ]
