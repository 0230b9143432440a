"""Atoms of CIF files that are there several times because coordinates were rounded."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list

# Images of one site that are nearer than this, A, are one atom on a special position:
# 0.33 in place of 1/3 in a cell of 10 A parts them by so much.
ONE_ATOM = 0.1
# The array in which ASE's reader says which line of the file an atom came from.
KINDS = 'spacegroup_kinds'


def merge_rounded(atoms: Atoms) -> Atoms:
    """Each atom once, where symmetry operations gave several images nearly on one place.

    A site at (0.333, 0.667, z) of a hexagonal crystal is meant to be at (1/3, 2/3, z). Its
    images under the threefold axis are 0.003 A apart.

    Parameters
    ----------
    atoms : ase.Atoms
        As ``ase.io`` reads them from a CIF file; others are given back as they are.

    Returns
    -------
    ase.Atoms
        The first image of each site stays, at the mean place of those near it.

    Examples
    --------
    >>> from ase.spacegroup import crystal
    >>> cell = (3.1, 3.1, 5.0, 90, 90, 120)
    >>> found = crystal('Al', [(0.333, 0.667, 0)], spacegroup=186, cellpar=cell)
    >>> len(found), len(merge_rounded(found))
    (6, 2)
    """
    if KINDS not in atoms.arrays or atoms.cell.rank != 3:
        return atoms
    kinds = atoms.arrays[KINDS]
    if len(np.unique(kinds)) == len(atoms):
        return atoms
    first, second, apart = neighbor_list('ijD', atoms, ONE_ATOM, self_interaction=False)
    same = (kinds[first] == kinds[second]) & (first != second)
    if not same.any():
        return atoms
    merged, dropped = atoms.copy(), np.zeros(len(atoms), bool)
    for index in np.unique(first[same]):
        if dropped[index]:
            continue
        near = same & (first == index)
        dropped[second[near]] = True
        merged.positions[index] += apart[near].sum(axis=0) / (near.sum() + 1)
    del merged[dropped]
    return merged
