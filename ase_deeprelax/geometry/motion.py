"""What may move: fixed atoms and free strains, as numbers that a graph carries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

R2, R3, R6 = np.sqrt([1 / 2, 1 / 3, 1 / 6])

# An orthonormal basis of the symmetric matrices, (6, 3, 3): the identity, then the five
# traceless ones in the order of `models.layers.symmetric_matrix`.
STRAIN_BASIS = np.array(
    [
        [[R3, 0, 0], [0, R3, 0], [0, 0, R3]],
        [[0, R2, 0], [R2, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 0, R2], [0, R2, 0]],
        [[0, 0, R2], [0, 0, 0], [R2, 0, 0]],
        [[R2, 0, 0], [0, -R2, 0], [0, 0, 0]],
        [[-R6, 0, 0], [0, -R6, 0], [0, 0, 2 * R6]],
    ]
)


@dataclass(frozen=True, eq=False)
class Motion:
    """Which atoms are fixed, and which strains of the cell are free.

    Attributes
    ----------
    fixed : (n_atoms,) bool
        Atoms that keep their fractional coordinates.
    free_strain : (6, 6)
        Orthogonal projection of logarithmic strains on the free ones, in `STRAIN_BASIS`
        and the Cartesian axes of the structure: the identity where the whole cell relaxes,
        zero where it is held.
    """

    fixed: np.ndarray
    free_strain: np.ndarray

    @property
    def all_free(self) -> bool:
        """Whether nothing is held."""
        return not self.fixed.any() and np.array_equal(self.free_strain, np.eye(6))


def everything_free(n_atoms: int) -> Motion:
    """The motion of an ordinary relaxation: all atoms and the whole cell.

    >>> everything_free(2).all_free
    True
    """
    return Motion(np.zeros(n_atoms, dtype=bool), np.eye(6))


def strain_projection(strains: np.ndarray) -> np.ndarray:
    """The orthogonal projection on the span of some strains.

    Parameters
    ----------
    strains : (n, 3, 3)
        Symmetric matrices; n may be 0.

    Returns
    -------
    (6, 6)
        In `STRAIN_BASIS`.

    Examples
    --------
    >>> hydrostatic = strain_projection(np.eye(3)[None])
    >>> hydrostatic.diagonal().round(6).tolist()
    [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    parts = np.tensordot(np.reshape(strains, (-1, 3, 3)), STRAIN_BASIS, ([1, 2], [1, 2]))
    left, size, _ = np.linalg.svd(parts.T, full_matrices=False)
    kept = left[:, size > 1e-9 * max(1.0, size.max(initial=0.0))]
    return kept @ kept.T


def in_plane_strains(normal: np.ndarray, *, thickness: bool) -> np.ndarray:
    """Strains that leave the plane across ``normal`` a plane.

    Parameters
    ----------
    normal : (3,)
        Unit vector.
    thickness : bool
        Whether the strain along the normal belongs to them, with which a layer gets
        thicker or thinner.

    Returns
    -------
    (3 or 4, 3, 3)
    """
    normal = np.asarray(normal, dtype=float)
    first = np.cross(normal, np.eye(3)[np.abs(normal).argmin()])
    first /= np.linalg.norm(first)
    second = np.cross(normal, first)
    strains = [np.outer(first, first), np.outer(second, second)]
    strains.append(np.outer(first, second) + np.outer(second, first))
    if thickness:
        strains.append(np.outer(normal, normal))
    return np.array(strains)


def project_strain(free_strain: np.ndarray, strain: np.ndarray) -> np.ndarray:
    """The free part of a symmetric logarithmic strain, (3, 3).

    >>> project_strain(np.zeros((6, 6)), np.eye(3)).any()
    np.False_
    """
    parts = free_strain @ np.tensordot(STRAIN_BASIS, strain, ([1, 2], [0, 1]))
    return np.tensordot(parts, STRAIN_BASIS, 1)


def rotate_projection(free_strain: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """The same free strains after a rotation of the structure.

    Parameters
    ----------
    free_strain : (6, 6)
    rotation : (3, 3)
        Orthogonal; ``vector @ rotation`` is the vector afterwards.

    Returns
    -------
    (6, 6)
    """
    turned = rotation.T @ STRAIN_BASIS @ rotation
    change = np.tensordot(STRAIN_BASIS, turned, ([1, 2], [1, 2]))
    return change @ free_strain @ change.T
