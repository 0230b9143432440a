"""Structures worth a DFT calculation: uncertain ones, and different ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ase_deeprelax.errors import ConfigError
from ase_deeprelax.result import Relaxation


def select(relaxations: Sequence[Relaxation], count: int) -> list[int]:
    """Choose predictions that are uncertain and unlike each other.

    The first one has the largest expected error. Each further one has the largest product
    of expected error and distance to the nearest one that is chosen already, in the space
    of fingerprints (farthest point sampling with weights): a model that learns from these
    gains on many structures.

    Parameters
    ----------
    relaxations : list of Relaxation
        Of a calibrated model. Those that failed are never chosen.
    count : int
        How many; fewer come back where there are fewer.

    Returns
    -------
    list of int
        Their places in the list, the most valuable one first.

    Raises
    ------
    ConfigError
        No prediction has an expected error: the model is not calibrated.

    Examples
    --------
    >>> results = relax(structures)  # doctest: +SKIP
    >>> [results[k].atoms for k in select(results, 50)]  # doctest: +SKIP
    """
    if count < 1:
        raise ConfigError(f'count is {count}; choose 1 structure or more')
    places = [k for k, one in enumerate(relaxations) if one.ok and np.isfinite(one.error)]
    if not places:
        raise ConfigError(
            'no prediction has an expected error; choose a calibrated model, or run '
            '"deeprelax calibrate" for this one'
        )
    errors = np.array([relaxations[k].error for k in places])
    prints = np.array([relaxations[k].fingerprint for k in places])
    chosen = [int(errors.argmax())]
    nearest = np.linalg.norm(prints - prints[chosen[0]], axis=1)
    while len(chosen) < min(count, len(places)):
        value = errors * nearest
        value[chosen] = -1.0
        chosen.append(int(value.argmax()))
        distance = np.linalg.norm(prints - prints[chosen[-1]], axis=1)
        nearest = np.minimum(nearest, distance)
    return [places[k] for k in chosen]
