"""Where a trial operation carries the atoms of a crystal, and which trials are worth it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial import KDTree

from ase_deeprelax.geometry.neighbors import BALANCED, neighbor_list

# Atoms whose nearest neighbours are compared before images are looked for.
_NEIGHBORS = 16
_CUTOFF = 4.5  # A
# Fewer atoms of the rarest element than this need no comparison of neighbours.
_FEW = 8
# Images looked up in one call: bounds the memory.
_CHUNK = 500_000
# Distance between the sheets of a tree that hold different elements, A.
_APART = 1e3


@dataclass(frozen=True, eq=False)
class Crystal:
    """Atoms in a reduced cell, ready for the search.

    Attributes
    ----------
    frac : (n_atoms, 3)
        Fractional coordinates, in any image.
    cell : (3, 3), A
        Reduced.
    species : (n_atoms,) int
        Atoms of different numbers are never equivalent.
    """

    frac: np.ndarray
    cell: np.ndarray
    species: np.ndarray

    def __len__(self) -> int:
        return len(self.frac)

    @cached_property
    def elements(self) -> tuple[np.ndarray, np.ndarray]:
        """The element of each atom as 0, 1, ..., and how many atoms each one has."""
        return np.unique(self.species, return_inverse=True, return_counts=True)[1:]

    @cached_property
    def box(self) -> np.ndarray:
        """(4,): where the tree repeats, A; elements lie on sheets that do not repeat."""
        return np.append(np.linalg.norm(self.cell, axis=1), 0.0)

    @cached_property
    def tree(self) -> KDTree:
        points = self._points(self.frac, self.species)
        return KDTree(points, boxsize=self.box, balanced_tree=BALANCED)

    def _points(self, frac: np.ndarray, species: np.ndarray) -> np.ndarray:
        points = np.empty((*frac.shape[:-1], 4))
        points[..., :3] = (frac % 1.0 % 1.0) * self.box[:3]  # -1e-20 % 1 is 1
        points[..., 3] = _APART * species
        return points

    def images(
        self, atoms: np.ndarray, matrices: np.ndarray, shift: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where atoms are carried: the nearest atom, (n, n_given), and the way on, A."""
        images = self.frac[atoms] @ matrices + shift[:, None]
        index = self.tree.query(self._points(images, self.species[atoms]))[1]
        delta = self.frac[index] - images
        delta -= np.rint(delta)
        return index, delta @ self.cell

    def folded(self, labels: np.ndarray, primitive: np.ndarray) -> Crystal:
        """The primitive cell (3, 3), its atoms at the mean places of their images."""
        _, first, index = np.unique(labels, return_index=True, return_inverse=True)
        frac = self.frac @ self.cell @ np.linalg.inv(primitive)
        off = frac - frac[first][index]
        off -= np.rint(off)
        places = frac[first] + mean_by_label(off, labels)
        return Crystal(places, primitive, self.species[first])

    def neighbor_distances(self) -> np.ndarray:
        """(n_atoms, 16): sorted distances to the nearest neighbours, A."""
        positions = self.frac @ self.cell
        i, j, offset = neighbor_list(positions, self.cell, _CUTOFF)
        distance = np.linalg.norm(positions[j] + offset @ self.cell - positions[i], axis=1)
        order = np.lexsort((distance, i))
        i, distance = i[order], distance[order]
        rank = np.arange(len(i)) - np.searchsorted(i, i)
        near = rank < _NEIGHBORS
        result = np.full((len(self), _NEIGHBORS), _CUTOFF)
        result[i[near], rank[near]] = distance[near]
        return result


def partners_of(crystal: Crystal, symprec: float) -> tuple[int, np.ndarray, np.ndarray]:
    """An atom with few like it, the atoms it may be carried to, and all atoms, rare first.

    Any atom leads to the same operations; a rare one to fewer trials. Atoms are alike
    where the sorted distances to their neighbours are: an operation within the tolerance
    changes none of them by more than three times the tolerance.
    """
    index, counts = crystal.elements
    rarity = counts[index]
    if counts.min() < _FEW:
        order = np.argsort(rarity, kind='stable')
        reference = int(order[0])
        return reference, np.flatnonzero(index == index[reference]), order
    distances, slack = crystal.neighbor_distances(), 3 * symprec
    for element in range(len(counts)):
        atoms = np.flatnonzero(index == element)
        for column in distances[atoms].T:
            ranked = np.sort(column)
            alike = np.searchsorted(ranked, column + slack, 'right')
            alike -= np.searchsorted(ranked, column - slack, 'left')
            rarity[atoms] = np.minimum(rarity[atoms], alike)
    order = np.argsort(rarity, kind='stable')
    reference = int(order[0])
    alike = np.abs(distances - distances[reference]).max(axis=1) <= slack
    return reference, np.flatnonzero(alike & (index == index[reference])), order


def survivors(
    crystal: Crystal,
    atoms: np.ndarray,
    matrices: np.ndarray,
    shift: np.ndarray,
    limit: float,
) -> np.ndarray:
    """Indices of the trials that carry the given atoms close to atoms of their element.

    ``limit`` is twice the tolerance at least, A: the shift of a trial is that of one atom,
    which may lie off the mean shift by the tolerance, and another one on the other side.
    """
    which, start, size = np.arange(len(shift)), 0, 2
    while start < len(atoms) and len(which):
        some = atoms[start : start + size]
        step = max(1, _CHUNK // len(some))
        good = []
        for first in range(0, len(which), step):
            part = which[first : first + step]
            turned = matrices if len(matrices) == 1 else matrices[part]
            delta = crystal.images(some, turned, shift[part])[1]
            square = np.einsum('nax,nax->na', delta, delta).max(axis=1)
            good.append(part[square <= limit**2 * (1 + 1e-9)])
        which = np.concatenate(good)
        start, size = start + size, 4 * size
    return which


def mean_by_label(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n_labels, 3): means of the rows of values (n, 3) that have the same label."""
    sums = np.zeros((labels.max() + 1, 3))
    np.add.at(sums, labels, values)
    return sums / np.bincount(labels)[:, None]
