"""A second look: what the network says of its own answer, where that is far from the input.

A network trained on relaxed structures too knows what to do with one that is almost there.
"""

import numpy as np

from ase_deeprelax.data.pair import polar

# Norms of the logarithmic strain between which the second answer gains weight, and the most
# it gets. Chosen on the validation parts of the training sets: its whole weight overshoots
# where volumes change by half.
STRAINS = 0.04, 0.08
MOST = 0.5


def second_weight(deformation):
    """How much of a second answer to add to a first one, 0 to `MOST`.

    Grows from 0 with the strain of the first, so that no answer jumps.

    Parameters
    ----------
    deformation : (3, 3)
        That of the first answer: symmetric, positive definite.

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
    return float(MOST * np.clip((strain - low) / (high - low), 0, 1))


def add_second(first, second, weight):
    """The first answer, and so much of the second one.

    Parameters
    ----------
    first, second : tuple of (3, 3) and (n_atoms, 3) array
        Deformation and displacement, A, each at the structure that the network was shown:
        the input, and what the first made of it. Deformations are symmetric, positive
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
    whole = polar(deformation @ (axes * stretches**weight) @ axes.T)[0]
    return whole, displacement + weight * second[1] @ np.linalg.inv(deformation)
