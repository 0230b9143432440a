"""The canonical frame: one way of writing down a crystal, whoever wrote it down before.

Networks that see the choice of cell (unit cell offset encoding, raw lattice head,
intra-cell pairs) get every crystal in this frame, so that their answer cannot depend on
the user's orientation, handedness, origin, lattice vectors, periodic images or atom order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ase_deeprelax.geometry.lattice import INCLUSIVE, canonical_bases, reduced_basis

# Coordinates closer than this are the same, A.
TOLERANCE = 1e-3
# Candidates compared at a time: bounds the memory that large supercells take.
_CHUNK = 4_000_000
# Bins of coordinates start at an irrational place, so that rounding errors of fractions
# such as 1/2 or 1/16 never decide between two bins.
_BIN_OFFSET = 0.38196601125


@dataclass(frozen=True, eq=False)
class CanonicalCrystal:
    """A crystal in the canonical frame, and how it came there from the given one.

    Attributes
    ----------
    numbers : (n_atoms,) int64
    positions : (n_atoms, 3), A
        Within the cell, up to the tolerance; an atom of the rarest species is the origin.
    cell : (3, 3), A
        Lower triangular with positive diagonal: a along x, b in the xy plane.
    order : (n_atoms,) int64
        Canonical atom ``k`` is the given atom ``order[k]``.
    rotation : (3, 3)
        Orthogonal, improper where the handedness changed; ``given @ rotation`` is a
        vector in the canonical frame.
    basis : (3, 3) int64
        ``cell`` is ``basis @ given_cell @ rotation``.
    shift : (n_atoms, 3) int64
        Cells (of the canonical lattice) that each atom moved beside the common origin.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    order: np.ndarray
    rotation: np.ndarray
    basis: np.ndarray
    shift: np.ndarray


def canonicalize(
    numbers: ArrayLike,
    positions: np.ndarray,
    cell: np.ndarray,
    fixed: np.ndarray | None = None,
) -> CanonicalCrystal:
    """Write a crystal in the canonical frame.

    The cell is Minkowski reduced with the most acute angles; of all its equivalent bases,
    and all atoms of the rarest species as origin, the choice falls on the one whose list
    of wrapped and sorted atoms, rounded to 1e-3 A, comes first in lexicographic order.
    Mirror images share one frame (`CanonicalCrystal.rotation` is then improper).

    Any two ways of writing one crystal give the same numbers, positions and cell. Where
    the crystal has symmetry operations of its own, several choices are equally good: the
    way back (order, rotation) is then unique up to one of these operations, and an answer
    carried back is unique once it is projected on the space group.

    Parameters
    ----------
    numbers : (n_atoms,) int
    positions : (n_atoms, 3), A
        In any periodic image.
    cell : (3, 3), A
        Row vectors of either handedness.
    fixed : (n_atoms,) bool, optional
        Fixed atoms, which count as another species than free ones; default none.

    Returns
    -------
    CanonicalCrystal

    Examples
    --------
    >>> from ase.build import bulk
    >>> cubic = bulk('NaCl', 'rocksalt', a=5.6)
    >>> cubic.rotate(40, (1, 2, 3), rotate_cell=True)
    >>> canonicalize(cubic.numbers, cubic.positions, cubic.cell.array).cell.round(
    ...     2
    ... ).tolist()
    [[3.96, 0.0, 0.0], [1.98, 3.43, 0.0], [1.98, 1.14, 3.23]]
    """
    numbers = np.asarray(numbers, dtype=np.int64)
    first = reduced_basis(cell)
    reduced = first @ cell
    bases = canonical_bases(reduced, TOLERANCE * INCLUSIVE)
    inverses = np.rint(np.linalg.inv(bases))
    frac = (positions @ np.linalg.inv(reduced)) @ inverses  # (n_bases, n_atoms, 3)

    species = _species(numbers if fixed is None else numbers + 1000 * fixed)
    lengths = np.linalg.norm(reduced, axis=1)
    choice, origin = _first_in_order(frac, species, lengths)
    frac = frac[choice] - frac[choice, origin]
    floor = np.floor(frac + TOLERANCE / lengths)
    frac -= floor
    keys = _keys(frac, lengths)
    order = np.concatenate([atoms[np.argsort(keys[atoms])] for atoms in species])

    basis = bases[choice] @ first
    chosen = basis @ cell
    standard = np.linalg.cholesky(chosen @ chosen.T)
    return CanonicalCrystal(
        numbers=numbers[order],
        positions=frac[order] @ standard,
        cell=standard,
        order=order,
        rotation=np.linalg.solve(chosen, standard),
        basis=basis,
        shift=-floor[order].astype(np.int64),
    )


def _species(numbers: np.ndarray) -> list[np.ndarray]:
    """Indices of the atoms of each species, the rarest species first."""
    elements, counts = np.unique(numbers, return_counts=True)
    return [np.flatnonzero(numbers == elements[k]) for k in np.lexsort((elements, counts))]


def _keys(frac: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """One integer per atom, in lexicographic order of its binned coordinates."""
    bins = np.floor(frac * (lengths / TOLERANCE) + _BIN_OFFSET).astype(np.int64)
    base = np.int64(1 << 20)  # room for vectors of 1000 A
    return (bins[..., 0] * base + bins[..., 1]) * base + bins[..., 2]


def _first_in_order(
    frac: np.ndarray, species: list[np.ndarray], lengths: np.ndarray
) -> tuple[np.integer, np.integer]:
    """Of all bases and origins, the pair whose list of atoms comes first.

    Species are compared one after the other, so that most candidates drop out while the
    lists are short.
    """
    rarest = species[0]
    choice, origin = np.divmod(np.arange(len(frac) * len(rarest)), len(rarest))
    origin = rarest[origin]
    for atoms in species:
        step = max(1, _CHUNK // len(atoms))
        best, kept = None, []
        for start in range(0, len(choice), step):
            c, o = choice[start : start + step], origin[start : start + step]
            local = frac[c[:, None], atoms] - frac[c, o][:, None]
            local -= np.floor(local + TOLERANCE / lengths)
            lists = np.sort(_keys(local, lengths), axis=1)
            first = _lexicographic_minima(lists)
            smallest = lists[first[0]].tolist()
            if best is None or smallest < best:
                best, kept = smallest, []
            if smallest == best:
                kept.append(first + start)
        kept = np.concatenate(kept)
        choice, origin = choice[kept], origin[kept]
        if len(choice) == 1:
            break
    return choice[0], origin[0]


def _lexicographic_minima(lists: np.ndarray) -> np.ndarray:
    """Rows that equal the smallest row."""
    rows = np.arange(len(lists))
    for column in range(lists.shape[1]):
        values = lists[rows, column]
        rows = rows[values == values.min()]
        if len(rows) == 1:
            break
    return rows
