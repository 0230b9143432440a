"""Predictions that are no plausible structures."""

from __future__ import annotations

import math

import numpy as np
from ase import Atoms
from ase.data import covalent_radii

from ase_deeprelax.errors import PredictionError
from ase_deeprelax.geometry.layer import Layer
from ase_deeprelax.geometry.neighbors import close_pairs
from ase_deeprelax.predict.structure_checks import (
    close_box,
    first_not_finite,
    name_pair,
)

# Predictions beyond these are refused. Of 69,000 sane training pairs (DFT, inputs not
# rescaled) volumes change by 0.45-3.0 and lengths by 0.31-2.8 at most; all but one target
# keeps every distance above half the sum of the covalent radii.
VOLUME_RATIO = (0.3, 4.0)
STRETCH = (0.25, 3.0)
CONTACT = 0.5
# Trained models leave a residual near 0 A, untrained ones 0.1 to 1 A.
RESIDUAL = 1.0
_KEPT = 'the input was kept'


def check_prediction(
    initial: Atoms, relaxed: Atoms, *, residual: float = 0.0, layer: Layer | None = None
) -> None:
    """Refuse a relaxed structure that is no plausible crystal.

    It looks at what `check_change` does, and at contacts between atoms.

    Parameters
    ----------
    initial : ase.Atoms
        The input, which passed `check_structure`.
    relaxed : ase.Atoms
        The same atoms in the same order.
    residual : float, A
        Mean violation of the predicted distances' bounds that the solver left; default 0.
    layer : Layer, optional
        What `find_layer` found in ``initial``; default none, a crystal.

    Raises
    ------
    PredictionError
        Numbers that are not finite; handedness, volume or a length of the cell changed
        beyond `VOLUME_RATIO` and `STRETCH`; atoms closer than `CONTACT` times the sum of
        their covalent radii and closer than they were; distances that contradict each
        other by more than `RESIDUAL`.

    Examples
    --------
    >>> from ase.build import bulk
    >>> check_prediction(bulk('Cu', a=3.9), bulk('Cu', a=3.6))
    """
    check_change(initial, relaxed, residual=residual)
    _check_contacts(initial, relaxed, layer)


def check_change(initial: Atoms, relaxed: Atoms, *, residual: float = 0.0) -> None:
    """The part of `check_prediction` that looks at no distances between atoms.

    Parameters
    ----------
    initial, relaxed, residual
        As in `check_prediction`.

    Raises
    ------
    PredictionError
    """
    old, new = initial.cell.array, relaxed.cell.array
    if not (np.isfinite(new).all() and np.isfinite(relaxed.positions).all()):
        where = first_not_finite(relaxed) or 'cell'
        raise PredictionError(f'relaxed {where}; {_KEPT}')
    ratio = np.linalg.det(new) / np.linalg.det(old)
    low, high = VOLUME_RATIO
    if ratio <= 0:
        raise PredictionError(f'the relaxed cell is turned inside out; {_KEPT}')
    if not low <= ratio <= high:
        raise PredictionError(
            f'relaxed volume is {ratio:.3g} times that of the input, outside {low:g} to '
            f'{high:g}; rescale the input to a plausible volume. {_KEPT}'
        )
    stretches = np.linalg.svd(np.linalg.solve(old, new), compute_uv=False)
    low, high = STRETCH
    if stretches[-1] < low or stretches[0] > high:
        raise PredictionError(
            f'relaxed cell is stretched by {stretches[-1]:.3g} to {stretches[0]:.3g}, '
            f'outside {low:g} to {high:g}; {_KEPT}'
        )
    if not residual <= RESIDUAL:
        raise PredictionError(
            f'predicted distances contradict each other by {residual:.3g} A on average, '
            f'more than {RESIDUAL:g} A; use another model. {_KEPT}'
        )


def _check_contacts(initial: Atoms, relaxed: Atoms, layer: Layer | None) -> None:
    radii = CONTACT * covalent_radii[relaxed.numbers]
    cutoff = 2 * radii.max()
    i, j, distance = close_pairs(*close_box(relaxed, layer), cutoff)
    close = distance < radii[i] + radii[j]
    if not close.any():
        return
    before = _smallest_by_pair(close_box(initial, layer), cutoff)
    for a, b, d in zip(i[close], j[close], distance[close], strict=True):
        d0 = before.get((min(a, b), max(a, b)), math.inf)
        if d < d0 - 1e-6:
            was = 'farther' if d0 == math.inf else f'{d0:.3f} A'
            raise PredictionError(
                f'relaxed {name_pair(relaxed, a, b)} are {d:.3f} A apart, less than '
                f'{CONTACT:g} times the sum of their covalent radii (before: {was}); '
                f'{_KEPT}'
            )


def _smallest_by_pair(
    box: tuple[np.ndarray, np.ndarray], cutoff: float
) -> dict[tuple[int, int], float]:
    """Distance of the nearest images of each pair within the cutoff, A."""
    smallest: dict[tuple[int, int], float] = {}
    for a, b, d in zip(*close_pairs(*box, cutoff), strict=True):
        smallest.setdefault((min(a, b), max(a, b)), d)
    return smallest
