"""Bases of a lattice: wrapping, reduction, and the bases that are equally good."""

from __future__ import annotations

import itertools

import numpy as np

from ase_deeprelax.errors import StructureError

# A basis vector longer than this many heights of its cell along it costs the neighbour
# list more than reducing the cell does.
SKEW = 2.5
# Cells are reduced in fewer steps, also where vectors are 1e6 times as long as they must be
# (six steps). In longer ones rounding may hide the lattice: the steps lead in a circle.
MOST_STEPS = 100

# A length that equals a tolerance is within the tolerance times this, so that rounding
# errors do not decide. They would do so often: many coordinates are given in round numbers.
INCLUSIVE = 1 + 1e-6

# The three pairs of different vectors.
_PAIRS = np.triu_indices(3, 1)
# Coefficients of the short vectors of a reduced basis: all its minimal vectors are here.
_SHORT = np.array([c for c in itertools.product((-1, 0, 1), repeat=3) if any(c)])
_DETERMINANT = np.einsum(
    'ix,jkx->ijk', _SHORT, np.cross(_SHORT[:, None], _SHORT[None]), dtype=np.int64
)


def compact(
    positions: np.ndarray, cell: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Wrap atoms into the cell, or into the reduced one where the cell is badly skewed.

    Parameters
    ----------
    positions : (n_atoms, 3) float64, A
        In any periodic image.
    cell : (3, 3) float64, A
        Row vectors, not singular.

    Returns
    -------
    positions : (n_atoms, 3), A
    cell : (3, 3), A
        ``basis @ cell``.
    basis : (3, 3) int64 or None
        None where the cell was kept.

    Examples
    --------
    >>> wrapped, _, _ = compact(np.array([[7.0, -1.0, 0.0]]), 2.0 * np.eye(3))
    >>> wrapped.tolist()
    [[1.0, 1.0, 0.0]]
    """
    inverse = np.linalg.inv(cell)
    lengths = np.sqrt(np.einsum('ij,ij->i', cell, cell))
    heights = np.sqrt(np.einsum('ij,ij->j', inverse, inverse))  # their reciprocals
    basis = None
    if (lengths * heights).max() > SKEW:
        basis = reduced_basis(cell)
        cell = basis @ cell
        inverse = np.linalg.inv(cell)
    frac = positions @ inverse
    frac -= np.floor(frac)
    return frac @ cell, cell, basis


def reduced_basis(cell: np.ndarray) -> np.ndarray:
    """Unimodular ``basis`` whose ``basis @ cell`` is Minkowski reduced, shortest first.

    Semaev's greedy algorithm; the three vectors are the shortest independent ones. ASE's
    ``minkowski_reduce`` finds the same in eight times the time (0.56 against 0.07 ms), and
    every structure comes here.

    Parameters
    ----------
    cell : (3, 3), A
        Row vectors, not singular.

    Returns
    -------
    (3, 3) int64

    Raises
    ------
    StructureError
        The vectors are so skewed that rounding hides the lattice.
    """
    basis = np.eye(3, dtype=np.int64)
    for _ in range(MOST_STEPS):
        vectors = basis @ cell
        metric = vectors @ vectors.T
        order = np.argsort(np.diag(metric), kind='stable')
        basis, metric = basis[order], metric[np.ix_(order, order)]
        step = _reducing_step(metric)
        if step is None:
            return basis
        row, coefficients = step
        basis[row] += coefficients @ basis
    raise too_skewed(cell)


def too_skewed(cell: np.ndarray) -> StructureError:
    """The error for a cell (3, 3), A, of which no reduced one can be found."""
    return StructureError(
        f'the cell {cell.tolist()} is too skewed to be reduced; write it with shorter '
        'vectors'
    )


def _reducing_step(metric: np.ndarray) -> tuple[int, np.ndarray] | None:
    """``(row, integers)`` to add to one vector to shorten it, or None if none does."""
    g = metric.tolist()
    tiny = 1e-10  # relative: rounding errors must not keep the loop alive
    n = round(g[0][1] / g[0][0])
    if n and n * (n * g[0][0] - 2 * g[0][1]) < -tiny * g[1][1]:
        return 1, np.array([-n, 0, 0])
    area = g[0][0] * g[1][1] - g[0][1] ** 2
    x = -(g[1][1] * g[0][2] - g[0][1] * g[1][2]) / area
    y = -(g[0][0] * g[1][2] - g[0][1] * g[0][2]) / area
    best, found = -tiny * g[2][2], None
    # of a reduced pair, the lattice point nearest to any point is a corner around it
    for p in (int(np.floor(x)), int(np.floor(x)) + 1):
        for q in (int(np.floor(y)), int(np.floor(y)) + 1):
            change = (
                p * p * g[0][0]
                + q * q * g[1][1]
                + 2 * (p * q * g[0][1] + p * g[0][2] + q * g[1][2])
            )
            if change < best:
                best, found = change, np.array([p, q, 0])
    return None if found is None else (2, found)


def _short_triples(cell: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """All bases as short as a reduced ``cell``: coefficients and dot products.

    Returns ``(n, 3, 3)`` integers and ``(n, 3)`` products ``v1.v2, v1.v3, v2.v3``.
    """
    vectors = _SHORT @ cell
    metric = vectors @ vectors.T
    lengths = np.sqrt(np.diag(metric))
    limits = np.sort(np.sqrt(np.einsum('ij,ij->i', cell, cell))) + tolerance
    i, j, k = (np.flatnonzero(lengths <= limit) for limit in limits)
    a, b, c = np.nonzero(np.abs(_DETERMINANT[np.ix_(i, j, k)]) == 1)
    i, j, k = i[a], j[b], k[c]
    products = np.stack([metric[i, j], metric[i, k], metric[j, k]], axis=1)
    return _SHORT[np.stack([i, j, k], axis=1)], products


def canonical_bases(cell: np.ndarray, tolerance: float) -> np.ndarray:
    """The bases of one agreed shape: shortest vectors, then the most acute angles.

    For a generic lattice two, one the inverse of the other; for a symmetric one as many
    as its point group has operations (at most 48). They do not depend on which reduced
    cell of the lattice is given.

    Parameters
    ----------
    cell : (3, 3), A
        Reduced, shortest vector first.
    tolerance : float, A
        Lengths closer than this are equal.

    Returns
    -------
    (n, 3, 3) int64
    """
    bases, products = _short_triples(cell, tolerance)
    slack = tolerance * np.linalg.norm(cell, axis=1).max()
    for column in range(3):
        keep = products[:, column] >= products[:, column].max() - slack
        bases, products = bases[keep], products[keep]
    return bases


def lattice_symmetries(cell: np.ndarray, tolerance: float) -> np.ndarray:
    """Unimodular ``w`` with ``w @ cell`` of the shape of ``cell``: its point operations.

    Parameters
    ----------
    cell : (3, 3), A
        Reduced, shortest vector first.
    tolerance : float, A
        How far the end of a basis vector may move.

    Returns
    -------
    (n, 3, 3) int64
        At most 48 where ``tolerance`` is small against the vectors.
    """
    bases, _ = _short_triples(cell, tolerance)
    return bases[lattice_misfit(cell, bases) <= tolerance]


def lattice_misfit(cell: np.ndarray, bases: np.ndarray) -> np.ndarray:
    """How far other bases of a lattice are from the shape of the given one, (n,) A.

    The largest difference of two lengths, or of two dot products per length.

    Parameters
    ----------
    cell : (3, 3), A
    bases : (n, 3, 3)
        ``bases[k] @ cell`` is compared with ``cell``.
    """
    vectors = bases @ cell
    lengths = np.linalg.norm(cell, axis=1)
    stretch = np.abs(np.linalg.norm(vectors, axis=2) - lengths)
    change = np.abs(vectors @ vectors.transpose(0, 2, 1) - cell @ cell.T)
    shear = change / (lengths[:, None] + lengths)
    return np.maximum(stretch.max(axis=1), shear[:, *_PAIRS].max(axis=1))
