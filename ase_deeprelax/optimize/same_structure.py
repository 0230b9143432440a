"""Whether two structures are the same, atom by atom in their order."""

from __future__ import annotations

import numpy as np
from ase import Atoms


def same_structure(one: Atoms, two: Atoms) -> bool:
    """Whether elements and periodic directions are the same, wherever the atoms are."""
    return np.array_equal(one.numbers, two.numbers) and np.array_equal(one.pbc, two.pbc)


def same_cell(one: Atoms, two: Atoms) -> bool:
    """Whether it is the `same_structure` in the same cell, bit for bit."""
    return same_structure(one, two) and np.array_equal(one.cell.array, two.cell.array)


def near(one: Atoms, two: Atoms) -> bool:
    """Whether cell and positions differ by no more than the digits of a file, 1e-5 A."""
    return np.allclose(one.cell.array, two.cell.array, rtol=0, atol=1e-5) and np.allclose(
        one.positions, two.positions, rtol=0, atol=1e-5
    )
