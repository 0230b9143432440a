"""The average volume of a crystal, from its elements alone.

The table ``element_volumes.json`` was written by::

    pairs = read_pairs('pairs_mp.jsonl.gz', 'train', ok_only=True)
    table = {'source': '...', 'unit': 'A^3', 'volumes': fit_element_volumes(pairs)}
    ELEMENT_VOLUMES.write_text(json.dumps(table, indent=1))
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import ArrayLike

ELEMENT_VOLUMES = Path(__file__).with_name('element_volumes.json')


def usual_volume(numbers: ArrayLike) -> float:
    """Sum of the volumes that the elements of a structure have on average, A^3.

    The table was fitted to relaxed crystals of the Materials Project.

    Parameters
    ----------
    numbers : (n_atoms,) int
        Atomic numbers.

    Returns
    -------
    float
        NaN where an element is not in the table.

    Examples
    --------
    >>> round(usual_volume([6, 6]), 1)  # diamond has 11.4 A^3
    12.5
    """
    return float(element_volumes()[np.asarray(numbers, dtype=int)].sum())


@cache
def element_volumes() -> np.ndarray:
    """(119,) A^3 per atom by atomic number; NaN where an element is not in the table."""
    return by_number(json.loads(ELEMENT_VOLUMES.read_text(encoding='utf-8'))['volumes'])


def by_number(volumes: Mapping[str, float]) -> np.ndarray:
    """(119,): volumes by chemical symbol as an array; NaN where there is none."""
    table = np.full(len(chemical_symbols), np.nan)
    for symbol, volume in volumes.items():
        table[atomic_numbers[symbol]] = volume
    return table
