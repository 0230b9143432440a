"""Neighbour lists: deterministic order, whole shells."""

import numpy as np
from vesin import NeighborList

# Neighbours whose distances differ by less than this belong to one shell, A.
SHELL_TOLERANCE = 1e-3


def neighbor_list(positions, cell, cutoff, max_neighbors=None):
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
    """
    finder = NeighborList(cutoff=float(cutoff), full_list=True)
    i, j, offset, distance = finder.compute(
        points=positions, box=cell, periodic=True, quantities='ijSd', copy=True
    )
    i, j, offset = i.astype(np.int64), j.astype(np.int64), offset.astype(np.int64)
    order = np.lexsort((*offset.T[::-1], j, i))
    i, j, offset, distance = i[order], j[order], offset[order], distance[order]
    if max_neighbors is not None:
        keep = whole_shells(i, distance, max_neighbors, len(positions))
        i, j, offset = i[keep], j[keep], offset[keep]
    return i, j, offset


def intra_cell_pairs(positions, max_neighbors):
    """The paper's intra-cell edges: pairs i != j as written, no cutoff, no images.

    Returns centre and neighbour, ``(n_pairs,)`` int64 each.
    """
    n = len(positions)
    i, j = np.divmod(np.arange(n * n), n)
    i, j = i[i != j], j[i != j]
    distance = np.linalg.norm(positions[j] - positions[i], axis=1)
    keep = whole_shells(i, distance, max_neighbors, n)
    return i[keep], j[keep]


def whole_shells(centre, distance, max_neighbors, n_atoms):
    """Boolean mask of the edges within the shell that holds the ``max_neighbors``-th."""
    order = np.lexsort((distance, centre))
    counts = np.bincount(centre, minlength=n_atoms)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    limit = np.full(n_atoms, np.inf)
    full = counts > max_neighbors
    limit[full] = distance[order][first[full] + max_neighbors - 1] + SHELL_TOLERANCE
    return distance <= limit[centre]
