"""Two-pass prediction: where it is far from the input, the network sees its own prediction.

A network that was trained on relaxed structures too knows how to move one that is nearly
relaxed.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import polar

# A deformation (3, 3) and displacements (n_atoms, 3), A, at the cell before it.
Move = tuple[np.ndarray, np.ndarray]

# Norms of the logarithmic strain between which the second pass gains weight, and its
# largest weight. Chosen on the validation parts of the training sets: with weight one it
# overshoots where volumes change by half.
STRAINS = 0.04, 0.08
LARGEST_WEIGHT = 0.5


def second_weight(deformation: np.ndarray) -> float:
    """Weight of the second pass, 0 to `LARGEST_WEIGHT`.

    It grows from 0 with the strain of the first pass, so that the prediction has no jumps.

    Parameters
    ----------
    deformation : (3, 3)
        That of the first pass: symmetric, positive definite.

    Returns
    -------
    float

    Examples
    --------
    >>> second_weight(1.01 * np.eye(3)), second_weight(1.2 * np.eye(3))
    (0.0, 0.5)
    """
    strain = np.linalg.norm(np.log(np.linalg.eigvalsh(deformation)))
    low, high = STRAINS
    return float(LARGEST_WEIGHT * np.clip((strain - low) / (high - low), 0, 1))


def add_second(first: Move, second: Move, weight: float) -> Move:
    """The move of the first pass followed by a part of that of the second.

    Parameters
    ----------
    first, second : tuple of (3, 3) and (n_atoms, 3) array
        Deformation and displacement, A, each at the structure that the network saw: the
        input, and the prediction of the first pass. Deformations are symmetric, positive
        definite.
    weight : float

    Returns
    -------
    deformation : (3, 3)
        Symmetric, positive definite: the rotation of the product is left out.
    displacement : (n_atoms, 3), A
        At the input's cell.

    Examples
    --------
    >>> first, second = ((s * np.eye(3), np.zeros((2, 3))) for s in (1.2, 1.21))
    >>> round(float(add_second(first, second, 0.5)[0][0, 0]), 6)
    1.32
    """
    deformation, displacement = first
    stretches, axes = np.linalg.eigh(second[0])
    product = deformation @ (axes * stretches**weight) @ axes.T
    _, whole = polar(product, side='left')
    return whole, displacement + weight * second[1] @ np.linalg.inv(deformation)
