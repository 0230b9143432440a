"""The search for the space-group operations of a crystal, in any order of its atoms.

An operation is measured as a whole: its shift is the mean over all atoms, and its misfit
the largest distance that is left between an atom's image and the atom that stands there.
Neither knows which atom is written first, where the origin lies or which cell was chosen.
The operations that count are those up to the largest misfit, within ``symprec``, at which
they form a group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ase_deeprelax.geometry.lattice import (
    lattice_misfit,
    lattice_symmetries,
    reduced_basis,
)
from ase_deeprelax.geometry.neighbors import neighbor_list

# Atoms whose nearest neighbours are compared before images are looked for.
_NEIGHBORS = 16
_CUTOFF = 4.5  # A
# Fewer atoms of the rarest element than this need no comparison of neighbours.
_FEW = 8
# Images looked up in one call: bounds the memory.
_CHUNK = 500_000
# Atoms that all trials for translations are tested on before a lattice is tried.
_FIRST = 64
# Distance between the sheets of a tree that hold different elements, A.
_APART = 1e3


@dataclass(frozen=True, eq=False)
class Operations:
    """Operations ``frac @ matrix + shift`` that carry a crystal onto itself.

    Attributes
    ----------
    matrices : (n, 3, 3)
        Of fractional coordinates as rows.
    permutations : (n, n_atoms) int64
        The atom that stands where each operation carries each atom.
    misfit : (n,), A
    """

    matrices: np.ndarray
    permutations: np.ndarray
    misfit: np.ndarray

    def __getitem__(self, which: np.ndarray) -> Operations:
        return Operations(
            self.matrices[which], self.permutations[which], self.misfit[which]
        )


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
    def box(self) -> np.ndarray:
        """(4,): where the tree repeats, A; elements lie on sheets that do not repeat."""
        return np.append(np.linalg.norm(self.cell, axis=1), 0.0)

    @cached_property
    def tree(self) -> cKDTree:
        return cKDTree(self._points(self.frac, self.species), boxsize=self.box)

    def _points(self, frac: np.ndarray, species: np.ndarray) -> np.ndarray:
        points = np.empty((*frac.shape[:-1], 4))
        points[..., :3] = (frac % 1.0 % 1.0) * self.box[:3]  # -1e-20 % 1 is 1
        points[..., 3] = _APART * species
        return points

    def images(
        self, atoms: np.ndarray, matrices: np.ndarray, shift: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where operations carry atoms: the nearest atom, (n, n_given), and the way on, A."""
        images = self.frac[atoms] @ matrices + shift[:, None]
        index = self.tree.query(self._points(images, self.species[atoms]))[1]
        delta = self.frac[index] - images
        delta -= np.rint(delta)
        return index, delta @ self.cell

    def neighbor_distances(self) -> np.ndarray:
        """(n_atoms, 16): sorted distances to the nearest neighbours, A."""
        positions = self.frac @ self.cell
        i, j, offset = neighbor_list(positions, self.cell, _CUTOFF)
        distance = np.linalg.norm(
            positions[j] + offset @ self.cell - positions[i], axis=1
        )
        order = np.lexsort((distance, i))
        i, distance = i[order], distance[order]
        rank = np.arange(len(i)) - np.searchsorted(i, i)
        near = rank < _NEIGHBORS
        result = np.full((len(self), _NEIGHBORS), _CUTOFF)
        result[i[near], rank[near]] = distance[near]
        return result


def find_translations(
    crystal: Crystal, symprec: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """The primitive cell of a crystal.

    Returns
    -------
    labels : (n_atoms,) int64
        The primitive atom that each atom is an image of.
    primitive : (3, 3), A
        Reduced.
    None where the cell is primitive.
    """
    # Translations permute the atoms of each element without fixed points.
    if math.gcd(*np.unique(crystal.species, return_counts=True)[1].tolist()) == 1:
        return None
    reference, partners, order = _partners(crystal, symprec)
    shift = crystal.frac[partners] - crystal.frac[reference]
    eye = np.eye(3)
    shift = shift[_survivors(crystal, order[:_FIRST], eye[None], shift, symprec)]
    if len(crystal) > _FIRST:
        group = _lattice_group(crystal, shift, symprec)
        if group is None:
            rest = order[_FIRST:]
            shift = shift[_survivors(crystal, rest, eye[None], shift, symprec)]
            group = _lattice_group(crystal, shift, symprec)
    else:
        group = _lattice_group(crystal, shift, symprec)
    while group is None and len(shift) > 1:
        # The candidates are no group: the worst of them goes.
        misfit = _misfit(crystal, eye[None], shift)[2]
        shift = shift[misfit < misfit.max() * (1 - 1e-9)]
        group = _lattice_group(crystal, shift, symprec)
    return group


def find_operations(crystal: Crystal, symprec: float) -> Operations:
    """The operations of a primitive cell, the identity among them."""
    matrices = lattice_symmetries(crystal.cell, symprec).astype(float)
    reference, partners, order = _partners(crystal, symprec)
    shift = crystal.frac[partners] - (crystal.frac[reference] @ matrices)[:, None]
    trials = np.repeat(matrices, len(partners), axis=0)
    shift = shift.reshape(-1, 3)
    which = _survivors(crystal, order, trials, shift, symprec)
    trials, shift = trials[which], shift[which]
    permutations, _, misfit = _misfit(crystal, trials, shift)
    misfit = np.maximum(misfit, lattice_misfit(crystal.cell, trials))
    found = Operations(trials, permutations, misfit)
    found = found[(misfit <= symprec) & _one_to_one(permutations)]
    found = found[np.argsort(found.misfit, kind='stable')]
    for count in range(len(found.misfit), 1, -1):
        if _is_group(found.matrices[:count], found.permutations[:count]):
            return found[np.arange(count)]
    return Operations(np.eye(3)[None], np.arange(len(crystal))[None], np.zeros(1))


def _partners(
    crystal: Crystal, symprec: float
) -> tuple[int, np.ndarray, np.ndarray]:
    """An atom with few like it, the atoms it may be carried to, and all atoms, rare first.

    Any atom leads to the same operations; a rare one to fewer trials. Atoms are alike
    where the sorted distances to their neighbours are: an operation within the tolerance
    changes none of them by more than three times the tolerance.
    """
    _, index, counts = np.unique(crystal.species, return_inverse=True, return_counts=True)
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


def _survivors(
    crystal: Crystal,
    atoms: np.ndarray,
    matrices: np.ndarray,
    shift: np.ndarray,
    symprec: float,
) -> np.ndarray:
    """Indices of the trials that carry the given atoms close to atoms of their element.

    The shift of a trial is that of one atom, so it may lie off the mean by ``symprec``,
    and another atom off by twice as much.
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
            good.append(part[square <= (2 * symprec) ** 2 * (1 + 1e-9)])
        which = np.concatenate(good)
        start, size = start + size, 2 * size
    return which


def _misfit(
    crystal: Crystal, matrices: np.ndarray, shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Permutations, mean ways on (A) and misfits (A) of whole operations."""
    atoms = np.arange(len(crystal))
    permutations = np.empty((len(shift), len(atoms)), dtype=np.int64)
    mean, misfit = np.empty((len(shift), 3)), np.empty(len(shift))
    step = max(1, _CHUNK // len(atoms))
    for first in range(0, len(shift), step):
        part = slice(first, first + step)
        turned = matrices if len(matrices) == 1 else matrices[part]
        permutations[part], delta = crystal.images(atoms, turned, shift[part])
        mean[part] = delta.mean(axis=1)
        misfit[part] = np.linalg.norm(delta - mean[part, None], axis=2).max(axis=1)
    return permutations, mean, misfit


def _lattice_group(
    crystal: Crystal, shift: np.ndarray, symprec: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """Labels and primitive cell where the shifts are the translations of a lattice.

    Of those the largest group within the tolerance counts.
    """
    if len(shift) < 2:
        return None
    primitive = _shortest_basis(shift, crystal.cell)
    while primitive is not None:
        # The cell is a whole multiple of the primitive one, which removes the scatter.
        multiple = np.rint(crystal.cell @ np.linalg.inv(primitive))
        order = round(abs(np.linalg.det(multiple)))
        if order < 2 or order > len(shift):
            return None
        primitive = np.linalg.solve(multiple, crystal.cell)
        primitive = reduced_basis(primitive) @ primitive
        found = _fold(crystal, primitive, 2 * symprec)
        if found is None or np.bincount(found[0]).max() != order:
            return None
        labels, off = found
        if np.linalg.norm(off, axis=1).max() <= symprec / 2:
            return (labels, primitive) if order == len(shift) else None
        misfit, cells = _translation_misfits(crystal, primitive, multiple, labels, off)
        keep = _largest_group(misfit, cells, symprec)
        if keep.all():
            return (labels, primitive) if order == len(shift) else None
        if keep.sum() < 2:
            return None
        shift = cells[keep]
        primitive = _shortest_basis(shift, crystal.cell)
    return None
