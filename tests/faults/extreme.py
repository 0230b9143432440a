"""Cells that are thin, long, flat, skewed, huge, tiny or not finite."""

import numpy as np
from ase import Atoms

KINDS = ('thin', 'long', 'flat', 'skewed', 'huge', 'tiny', 'not finite', 'any')
NUMBERS = (np.nan, np.inf, -np.inf, 1e300, -1e300, 1e-300)


def extreme_cells(seed, n):
    """``n`` structures of up to five atoms, some not periodic along all vectors."""
    rng = np.random.default_rng(seed)
    return [_one(rng, KINDS[k % len(KINDS)]) for k in range(n)]


def _one(rng, kind):
    cell, axes = np.diag(rng.uniform(2, 6, 3)), rng.permutation(3)
    if kind == 'thin':
        cell[axes[0]] *= 10 ** rng.uniform(-9, -0.3)
    elif kind == 'long':
        cell[axes[0]] *= 10 ** rng.uniform(0, 9)
    elif kind == 'flat':
        cell[axes[:2]] *= 10 ** rng.uniform(0, 8, (2, 1))
    elif kind == 'skewed':
        shear = np.eye(3)
        shear[axes[0], axes[1]] = rng.choice([-1, 1]) * 10 ** rng.uniform(0, 7)
        shear[axes[1], axes[2]] = 10 ** rng.uniform(0, 4)
        cell = shear @ cell
    elif kind == 'huge':
        cell *= 10 ** rng.uniform(0, 10)
    elif kind == 'tiny':
        cell *= 10 ** rng.uniform(-10, 0)
    elif kind == 'not finite':
        cell[axes[0], axes[1]] = rng.choice(NUMBERS)
    else:
        cell = rng.normal(size=(3, 3)) * 10 ** rng.uniform(-4, 6, (3, 1))
    if rng.random() < 0.05:
        cell[axes[0]] = 0
    n = rng.integers(1, 6)
    with np.errstate(all='ignore'):
        positions = rng.random((n, 3)) @ cell
    if rng.random() < 0.3:
        positions = rng.uniform(-5, 5, (n, 3))
    pbc = True if rng.random() < 0.6 else rng.random(3) < 0.6
    return Atoms(rng.integers(1, 90, n), positions, cell=cell, pbc=pbc)
