"""Neighbour lists: deterministic order, whole shells, safe in boxes of any shape."""

from __future__ import annotations

import itertools

import numpy as np
from ase.geometry import complete_cell, minkowski_reduce
from scipy.spatial import KDTree
from vesin import NeighborList

from ase_deeprelax.errors import StructureError
from ase_deeprelax.geometry.lattice import INCLUSIVE, too_skewed

# Neighbours whose distances differ by no more than this belong to one shell, A.
SHELL_TOLERANCE = 1e-3 * INCLUSIVE
# vesin divides the box into cells of the size of the cutoff, 100,000 at most. Where a long
# and thin box has more, it rounds their number along the thin side down to zero and divides
# by it, which ends the process (SIGFPE). This far below the limit it is safe.
MOST_BOXES = 50_000
# A search takes 0.1 ms; on a busy machine, to start a second thread and wait for it takes
# ten times as long.
THREADS = 1
# Periodic images of each atom that a search looks at, at most. More are needed only for
# cells with a vector much shorter than any distance between atoms.
MOST_IMAGES = 2_000
# Beyond this a coordinate in double precision no longer resolves 1e-3 A, A.
FARTHEST = 1e12
# Trees of SciPy are split in the middle, not at the median: where many coordinates are zero
# and the processor takes the tiniest numbers for zero (torch.set_flush_denormal), a split
# at the median never ends, and the process dies.
BALANCED = False


def neighbor_list(
    positions: np.ndarray,
    cell: np.ndarray,
    cutoff: float,
    max_neighbors: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Periodic neighbours within ``cutoff``, sorted by centre, neighbour, offset.

    Parameters
    ----------
    positions : (n_atoms, 3), A
    cell : (3, 3), A
    cutoff : float, A
    max_neighbors : int, optional
        Keep whole shells until this many neighbours per centre are reached; a shell is
        never cut, so that symmetric sites keep symmetric neighbourhoods.

    Returns
    -------
    i, j : (n_edges,) int64
        Centre and neighbour.
    offset : (n_edges, 3) int64
        The neighbour sits at ``positions[j] + offset @ cell``.

    Raises
    ------
    StructureError
        The cell has no volume, or is so thin that it has too many images in the cutoff.
    """
    if _is_safe(cell, cutoff):
        finder = NeighborList(cutoff=float(cutoff), full_list=True, n_threads=THREADS)
        i, j, offset, distance = finder.compute(
            points=positions, box=cell, periodic=True, quantities='ijSd', copy=True
        )
        i, j, offset = i.astype(np.int64), j.astype(np.int64), offset.astype(np.int64)
    else:
        periodic = np.ones(3, dtype=bool)
        i, j, offset, distance = _pairs_by_tree(positions, cell, cutoff, periodic)
    order = np.lexsort((*offset.T[::-1], j, i))
    i, j, offset, distance = i[order], j[order], offset[order], distance[order]
    if max_neighbors is not None:
        keep = whole_shells(i, distance, max_neighbors, len(positions))
        i, j, offset = i[keep], j[keep], offset[keep]
    return i, j, offset


def close_pairs(
    positions: np.ndarray,
    cell: np.ndarray,
    cutoff: float,
    periodic: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of atoms within a short cutoff, each once, nearest first.

    This is the search for structures of which nothing is known but that their numbers are
    finite: boxes of any size and shape are answered or refused, where a bare call of vesin
    may end the process. Pairs of an atom and its own periodic images are among them.

    Parameters
    ----------
    positions : (n_atoms, 3), A
        In any periodic image.
    cell : (3, 3), A
        Vectors of no length are allowed where the structure is not periodic along them.
    cutoff : float, A
    periodic : (3,) bool, optional
        Along which vectors; default all.

    Returns
    -------
    i, j : (n_pairs,) int64
    distance : (n_pairs,), A

    Raises
    ------
    StructureError
        The cell has no volume, or is so thin that it has too many images in the cutoff.

    Examples
    --------
    >>> positions = np.array([[0.0, 0.0, 0.0], [0.0, 2.9, 0.0]])
    >>> i, j, distance = close_pairs(positions, np.diag([700.0, 3.0, 700.0]), 1.5)
    >>> i.tolist(), j.tolist(), distance.round(6).tolist()
    ([0], [1], [0.1])
    """
    positions = np.asarray(positions, dtype=float)
    periodic = np.ones(3, dtype=bool) if periodic is None else np.asarray(periodic, bool)
    if periodic.all() and _is_safe(cell, cutoff):
        finder = NeighborList(cutoff=float(cutoff), full_list=False, n_threads=THREADS)
        i, j, distance = finder.compute(
            points=positions, box=cell, periodic=True, quantities='ijd', copy=True
        )
    else:
        i, j, offset, distance = _pairs_by_tree(positions, cell, cutoff, periodic)
        # Of a pair and its mirror image, the one with the smaller first atom; of the two
        # images of one atom, the one whose first translation is positive.
        a, b, c = offset.T
        upper = (a > 0) | ((a == 0) & ((b > 0) | ((b == 0) & (c > 0))))
        once = (i < j) | ((i == j) & upper)
        i, j, distance = i[once], j[once], distance[once]
    order = np.argsort(distance, kind='stable')
    return i[order].astype(np.int64), j[order].astype(np.int64), distance[order]


def _heights(cell: np.ndarray) -> np.ndarray:
    """(3,): distances between opposite faces, A; raises where the cell has no volume."""
    with np.errstate(all='ignore'):  # The check below finds what has no finite result.
        try:
            inverse = np.linalg.inv(cell)
        except np.linalg.LinAlgError:
            inverse = np.full((3, 3), np.nan)
        heights = 1 / np.sqrt(np.einsum('ij,ij->j', inverse, inverse))
    if not (np.isfinite(heights).all() and (heights > 0).all()):
        raise StructureError(
            f'the cell {np.asarray(cell).tolist()} has no volume; set a cell'
        )
    return heights


def _is_safe(cell: np.ndarray, cutoff: float) -> bool:
    """Whether vesin can search this box: neither many boxes nor many images."""
    ratios = _heights(np.asarray(cell, dtype=float)) / cutoff
    boxes = np.maximum(np.floor(ratios), 1.0).prod()
    images = (2 * np.ceil(1 / ratios) + 1).prod()
    return bool(boxes <= MOST_BOXES and images <= MOST_IMAGES)


def _pairs_by_tree(
    positions: np.ndarray, cell: np.ndarray, cutoff: float, periodic: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Centres, neighbours, offsets, distances of all pairs, by a tree of atoms and images.

    Slower than vesin for usual cells; time and memory do not depend on the size of the box.
    """
    cell = complete_cell(np.where(periodic[:, None], cell, 0.0))
    if not max(np.abs(cell).max(), np.abs(positions).max(initial=0.0)) < FARTHEST:
        raise StructureError(
            f'the cell or the positions reach beyond {FARTHEST:g} A, too far for double '
            'precision; check them and their unit (A)'
        )
    _heights(cell)
    try:  # In the reduced cell the least images are near.
        cell, basis = minkowski_reduce(cell, periodic)
    except RuntimeError as error:
        raise too_skewed(cell) from error
    margins = np.where(periodic, cutoff / _heights(cell), 0.0)
    fractions = positions @ np.linalg.inv(cell)
    turns = np.where(periodic, np.floor(fractions), 0.0)
    inside = fractions - turns
    reach = np.ceil(margins)
    if (2 * reach + 1).prod() > MOST_IMAGES:
        raise StructureError(
            f'the cell {cell.tolist()} is too thin: an atom has more than {MOST_IMAGES:,} '
            f'periodic images near {cutoff:g} A; check the cell'
        )
    atoms, shifts = [], []
    for shift in itertools.product(*(np.arange(-r, r + 1) for r in reach)):
        moved = inside + shift
        near = ((moved >= -margins - 1e-9) & (moved <= 1 + margins + 1e-9)) | ~periodic
        found = np.flatnonzero(near.all(axis=1))
        atoms.append(found)
        shifts.append(np.broadcast_to(np.array(shift), (len(found), 3)))
    image_of, shift_of = np.concatenate(atoms), np.concatenate(shifts)
    images = (inside[image_of] + shift_of) @ cell
    tree = KDTree(images, balanced_tree=BALANCED)
    found = tree.query_ball_point(inside @ cell, cutoff)
    i = np.repeat(np.arange(len(positions)), [len(row) for row in found])
    image = np.concatenate([np.asarray(row, dtype=np.int64) for row in found])
    j, offset = image_of[image], shift_of[image]
    distance = np.linalg.norm(images[image] - (inside @ cell)[i], axis=1)
    # Offsets refer to the atoms as they were given.
    other = (i != j) | offset.any(axis=1)
    offset = np.rint((offset - turns[j] + turns[i]) @ basis).astype(np.int64)
    return i[other], j[other], offset[other], distance[other]


def intra_cell_pairs(
    positions: np.ndarray, max_neighbors: int
) -> tuple[np.ndarray, np.ndarray]:
    """The paper's intra-cell edges: pairs i != j as written, no cutoff, no images.

    Returns centre and neighbour, ``(n_pairs,)`` int64 each.
    """
    n = len(positions)
    i, j = np.divmod(np.arange(n * n), n)
    i, j = i[i != j], j[i != j]
    distance = np.linalg.norm(positions[j] - positions[i], axis=1)
    keep = whole_shells(i, distance, max_neighbors, n)
    return i[keep], j[keep]


def whole_shells(
    centre: np.ndarray, distance: np.ndarray, max_neighbors: int, n_atoms: int
) -> np.ndarray:
    """Boolean mask of the edges within the shell that holds the ``max_neighbors``-th."""
    order = np.lexsort((distance, centre))
    counts = np.bincount(centre, minlength=n_atoms)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    limit = np.full(n_atoms, np.inf)
    full = counts > max_neighbors
    limit[full] = distance[order][first[full] + max_neighbors - 1] + SHELL_TOLERANCE
    return distance <= limit[centre]
