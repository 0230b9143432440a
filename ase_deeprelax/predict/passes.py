"""Several passes: where a prediction is far from its input, the network sees it again.

A network that was trained on nearly relaxed structures, and on its own predictions, knows
how to move them. What it still wants to move is added, until that is little. No pass
strains farther than the one before: answers that run away are the network's mistakes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import polar

from ase_deeprelax.predict.forward import StructureOutput

# A deformation (3, 3) and displacements (n_atoms, 3), A, at the cell before it.
Move = tuple[np.ndarray, np.ndarray]

# Norms of the logarithmic strain of a pass between which the next one gains weight. Chosen
# on the validation parts of the training sets.
STRAINS = 0.03, 0.06
MAX_PASSES = 4


def strain_of(deformation: np.ndarray) -> float:
    """Norm of the logarithmic strain of a symmetric deformation (3, 3).

    >>> round(strain_of(np.diag([np.e, 1, 1])), 6)
    1.0
    """
    return float(np.linalg.norm(np.log(np.linalg.eigvalsh(deformation))))


def next_weight(strain: float) -> float:
    """Weight of the pass that follows one with a strain of this norm, 0 to 1.

    It grows from 0 with the strain, so that the prediction has no jumps.

    Examples
    --------
    >>> next_weight(0.02), next_weight(0.2)
    (0.0, 1.0)
    """
    low, high = STRAINS
    return float(np.clip((strain - low) / (high - low), 0, 1))


def part_of(move: Move, weight: float) -> Move:
    """A part of a move: of the strain and of the displacements.

    Parameters
    ----------
    move : tuple of (3, 3) and (n_atoms, 3) array
        Deformation, symmetric and positive definite, and displacement, A.
    weight : float
        0 to 1.

    Examples
    --------
    >>> move = part_of((1.21 * np.eye(3), np.ones((2, 3))), 0.5)
    >>> round(float(move[0][0, 0]), 6), float(move[1][0, 0])
    (1.1, 0.5)
    """
    stretches, axes = np.linalg.eigh(move[0])
    return (axes * stretches**weight) @ axes.T, weight * move[1]


def followed_by(first: Move, second: Move) -> Move:
    """One move after the other as a single move.

    Parameters
    ----------
    first, second : tuple of (3, 3) and (n_atoms, 3) array
        Deformation and displacement, A, each at the structure that the network saw: the
        input, and where the first move leads. Deformations are symmetric, positive
        definite.

    Returns
    -------
    deformation : (3, 3)
        Symmetric, positive definite: the rotation of the product is left out.
    displacement : (n_atoms, 3), A
        At the input's cell.

    Examples
    --------
    >>> first, second = ((s * np.eye(3), np.zeros((2, 3))) for s in (1.2, 1.1))
    >>> round(float(followed_by(first, second)[0][0, 0]), 6)
    1.32
    """
    deformation, displacement = first
    _, whole = polar(deformation @ second[0], side='left')
    return whole, displacement + second[1] @ np.linalg.inv(deformation)


@dataclass
class Passes:
    """The results of all passes for one structure.

    Attributes
    ----------
    output : StructureOutput
        Of the first pass.
    moves : list of Move
        From the input to the prediction of each pass.
    strain : float
        Norm of the strain of the latest pass; infinite before the first one.
    """

    output: StructureOutput
    moves: list[Move] = field(default_factory=list)
    strain: float = np.inf

    @property
    def next_weight(self) -> float:
        """Weight of the next pass."""
        return next_weight(self.strain)

    def add(self, move: Move) -> None:
        """Add the move of a pass, at the prediction of the pass before it."""
        move = part_of(move, self.next_weight)
        strain = strain_of(move[0])
        if strain > self.strain:
            move, strain = part_of(move, self.strain / strain), self.strain
        self.strain = strain
        self.moves.append(followed_by(self.moves[-1], move) if self.moves else move)
