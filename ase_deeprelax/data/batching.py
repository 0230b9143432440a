"""Which graphs share a batch: packs under an edge budget."""

import numpy as np


def pack(n_atoms, n_edges, budget):
    """Group graphs of similar size so that no pack holds more than ``budget`` edges.

    Networks pad neighbours per atom, so graphs are sorted by atoms, then edges, and packs
    are runs of that order: little padding, and the same packs for the same input.

    Parameters
    ----------
    n_atoms, n_edges : (n,) int
        Sizes of the graphs.
    budget : int
        Most edges of a pack; a graph that has more gets a pack of its own.

    Returns
    -------
    list of (n_in_pack,) int arrays
        Indices of the graphs; each index occurs once.

    Examples
    --------
    >>> [p.tolist() for p in pack([2, 9, 2, 3], [10, 90, 10, 30], 50)]
    [[0, 2, 3], [1]]
    """
    n_edges = np.asarray(n_edges, dtype=np.int64)
    return runs(np.lexsort((n_edges, np.asarray(n_atoms))), n_edges, budget)


def runs(order, sizes, budget):
    """Cut ``order`` into runs whose ``sizes`` add up to ``budget`` at most.

    Parameters
    ----------
    order : (n,) int array
        Indices into ``sizes``.
    sizes : int array
    budget : int
        What is larger by itself gets a run of its own.

    Returns
    -------
    list of int arrays

    Examples
    --------
    >>> [run.tolist() for run in runs(np.array([2, 0, 1]), np.array([3, 5, 2]), 5)]
    [[2, 0], [1]]
    """
    parts, start, total = [], 0, 0
    for position, size in enumerate(sizes[order]):
        if position > start and total + size > budget:
            parts.append(order[start:position])
            start, total = position, 0
        total += size
    if start < len(order):
        parts.append(order[start:])
    return parts


def halve(indices):
    """The two halves of a pack that did not fit into memory."""
    middle = len(indices) // 2
    return indices[:middle], indices[middle:]
