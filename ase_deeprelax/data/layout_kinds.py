"""Kinds of the papers' data sets, whose files say neither vacuum nor what was held."""

from dataclasses import replace

import numpy as np
from ase import Atoms

from ase_deeprelax.data.pair import Pair
from ase_deeprelax.errors import StructureError
from ase_deeprelax.geometry.vacuum import Layer, find_layer

# Cells that differ by less than this, A, were held: files are written with few digits.
SAME_CELL = 1e-4


def as_layers(unrelaxed: Atoms, relaxed: Atoms) -> tuple[Atoms, Atoms]:
    """Both halves of a pair as layers in boxes of one height, where there is vacuum.

    Parameters
    ----------
    unrelaxed, relaxed : ase.Atoms
        The same atoms in the same order; not changed.

    Returns
    -------
    unrelaxed, relaxed : ase.Atoms
        Where the unrelaxed structure has vacuum along one vector of its cell: not periodic
        along it, and the relaxed structure with the vacuum vector of the unrelaxed one.
        Otherwise the structures as given.

    Examples
    --------
    >>> from ase.build import mx2
    >>> halves = [mx2(a=3.2, vacuum=vacuum) for vacuum in (15, 9)]
    >>> for half in halves:
    ...     half.pbc = True
    >>> a, b = as_layers(*halves)
    >>> a.pbc.tolist(), float(b.cell.lengths()[2] - a.cell.lengths()[2])
    ([True, True, False], 0.0)
    """
    layer = _layer(unrelaxed)
    if layer is None:
        return unrelaxed, relaxed
    # Of the vectors of the cell, the plane of the layer has a part of all but one.
    across = ~layer.basis[:2].any(axis=0)
    if not across.any():
        return unrelaxed, relaxed
    unrelaxed, relaxed = unrelaxed.copy(), relaxed.copy()
    unrelaxed.pbc = relaxed.pbc = ~across
    unrelaxed_layer, relaxed_layer = _layer(unrelaxed), _layer(relaxed)
    if unrelaxed_layer is not None and relaxed_layer is not None:
        relaxed.positions = relaxed_layer.in_one_piece(relaxed)
        parts = np.linalg.solve(
            _plane_and_normal(unrelaxed, unrelaxed_layer).T, unrelaxed.cell[across][0]
        )
        cell = relaxed.cell.array.copy()
        cell[across] = parts @ _plane_and_normal(relaxed, relaxed_layer)
        relaxed.set_cell(cell)
    return unrelaxed, relaxed


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


def _layer(atoms: Atoms) -> Layer | None:
    """The layer that a structure is; None for all else, usable or not."""
    if atoms.cell.rank < 3:
        return None
    try:
        return find_layer(atoms)
    except StructureError:
        return None


def _plane_and_normal(atoms: Atoms, layer: Layer) -> np.ndarray:
    """(3, 3): the two vectors of the layer, and the unit vector across it."""
    return np.array([*(layer.basis[:2] @ atoms.cell.array), layer.normal])
