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
    order = np.lexsort((n_edges, np.asarray(n_atoms)))
    packs, start, total = [], 0, 0
    for position, size in enumerate(n_edges[order]):
        if position > start and total + size > budget:
            packs.append(order[start:position])
            start, total = position, 0
        total += size
    if start < len(order):
        packs.append(order[start:])
    return packs


def halve(indices):
    """The two halves of a pack that did not fit into memory."""
    middle = len(indices) // 2
    return indices[:middle], indices[middle:]
