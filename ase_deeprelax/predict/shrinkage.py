"""Moves that are smaller than their own uncertainty are mostly not made.

The input is an estimate of the relaxed structure too. Where the network hardly moves it,
compared with how uncertain the network is, the input is the better one: a crystal that is
relaxed already, the atoms far from a defect. The weights are those of a Wiener filter.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ase_deeprelax.predict.passes import Move

# Ratios of move and uncertainty at which half of the move is left: of the strain, and of
# the displacement of an atom. Chosen on the validation parts of the training sets, on
# defects and on alloys, as the largest that leave the errors of crystals as they are.
STRAIN_RATIO = 0.15
DISPLACEMENT_RATIO = 0.3


def shrink(
    move: Move, sigma: float, sigma_atoms: np.ndarray, spacing: float, *, floating: bool
) -> Move:
    """A move without what is small compared with its uncertainty.

    A ratio ``x`` of a move and its uncertainty gives the weight ``x**2 / (x**2 + c**2)``:
    for the strain, ``x`` is its root mean square times ``spacing`` over ``sigma``, for each
    atom the length of its displacement over its own sigma.

    Parameters
    ----------
    move : tuple of (3, 3) and (n_atoms, 3) array
        Deformation (symmetric, positive definite) and displacement, A.
    sigma : float, A
        Of the structure.
    sigma_atoms : (n_atoms,), A
    spacing : float, A
        Typical distance of neighbours: the strain times this is what a bond changes by.
    floating : bool
        Whether no atom is fixed: rigid drift is then taken away.

    Returns
    -------
    deformation : (3, 3)
        Symmetric, positive definite.
    displacement : (n_atoms, 3), A

    Examples
    --------
    >>> move = 1.1 * np.eye(3), np.array([[0.2, 0.0, 0.0], [-0.2, 0.0, 0.0]])
    >>> sigma, sigma_atoms = 0.03, np.array([0.03, 0.03])
    >>> s, u = shrink(move, sigma, sigma_atoms, spacing=2.5, floating=True)
    >>> round(float(s[0, 0]), 3), round(float(u[0, 0]), 3)
    (1.1, 0.2)
    >>> s, u = shrink(move, 100 * sigma, 100 * sigma_atoms, spacing=2.5, floating=True)
    >>> round(float(s[0, 0]), 3), round(float(u[0, 0]), 3)
    (1.021, 0.009)
    """
    deformation, displacement = move
    stretches, axes = np.linalg.eigh(deformation)
    strain = np.sqrt(np.square(np.log(stretches)).mean())
    weight = _weight(strain * spacing, STRAIN_RATIO * sigma)
    lengths = np.linalg.norm(displacement, axis=1)
    weights = _weight(lengths, DISPLACEMENT_RATIO * sigma_atoms)
    displacement = weights[:, None] * displacement
    if floating:
        displacement = displacement - displacement.mean(axis=0)
    return (axes * stretches**weight) @ axes.T, displacement


def _weight(move: Any, half: Any) -> Any:
    """1 for moves much larger than ``half``, 0 for those that are much smaller."""
    move = np.maximum(move, 1e-12)  # no move and no uncertainty: the weight has no meaning
    return move**2 / (move**2 + half**2)
