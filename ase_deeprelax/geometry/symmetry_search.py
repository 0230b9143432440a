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
from scipy.spatial import KDTree

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
# Misfits closer than this are equal, A.
_EQUAL = 1e-6
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
    def tree(self) -> KDTree:
        return KDTree(self._points(self.frac, self.species), boxsize=self.box)

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
    eye = np.eye(3)[None]
    shift = shift[_survivors(crystal, order[:_FIRST], eye, shift, symprec)]
    folded = _fold(crystal, shift)
    if folded is None and len(shift) > 1:
        shift = shift[_survivors(crystal, order[_FIRST:], eye, shift, symprec)]
        folded = _fold(crystal, shift)
    if len(shift) < 2:
        return None
    if folded is None:
        permutations, _, misfit = _whole_misfit(crystal, eye, shift)
        misfit[~_one_to_one(permutations)] = np.inf
    else:
        labels, primitive, generators, off = folded
        if np.linalg.norm(off, axis=1).max() <= symprec / 2:
            return labels, primitive
        permutations = _generated(generators)
        shift = crystal.frac[permutations[:, 0]] - crystal.frac[0]
        misfit = np.array(
            [np.linalg.norm(off[p] - off, axis=1).max() for p in permutations]
        )
    ranked = np.argsort(misfit, kind='stable')[: np.sum(misfit <= symprec)]
    for count in _counts(misfit[ranked]):
        group = ranked[:count]
        if len(crystal) % count == 0 and _is_closed(permutations[group]):
            labels = np.unique(permutations[group].min(axis=0), return_inverse=True)[1]
            primitive = _primitive_cell(crystal, shift[group])
            return None if primitive is None else (labels, primitive)
    return None


def _counts(misfit: np.ndarray) -> list[int]:
    """How many operations to try, most first: equally good ones stay together."""
    last = np.append(np.diff(misfit) > _EQUAL, True)
    return [int(k) + 1 for k in np.flatnonzero(last)[::-1] if k > 0]


def _primitive_cell(crystal: Crystal, shift: np.ndarray) -> np.ndarray | None:
    """(3, 3): the reduced basis of a group of translations; None if they span another."""
    basis = _shortest_basis(shift, crystal.cell)
    # The cell is a whole multiple of the primitive one, which removes all scatter.
    multiple = np.rint(crystal.cell @ np.linalg.inv(basis))
    if round(abs(np.linalg.det(multiple))) != len(shift):
        return None
    primitive = np.linalg.solve(multiple, crystal.cell)
    return reduced_basis(primitive) @ primitive


def _fold(
    crystal: Crystal, shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """The crystal laid into the primitive cell that all the shifts together belong to.

    Returns
    -------
    labels : (n_atoms,) int64
    primitive : (3, 3), A
    generators : (3, n_atoms) int64
        Where the translations by the primitive vectors carry each atom.
    off : (n_atoms, 3), A
        From the mean place of all images of the same primitive atom.

    None where the shifts are not all translations of one lattice and nothing else.
    """
    primitive = _primitive_cell(crystal, shift) if len(shift) > 1 else None
    if primitive is None:
        return None
    atoms = np.arange(len(crystal))
    to_primitive = crystal.cell @ np.linalg.inv(primitive)
    generators = crystal.images(atoms, np.eye(3)[None], np.linalg.inv(to_primitive))[0]
    if not _one_to_one(generators).all():
        return None
    edges = np.tile(atoms, 3), generators.ravel()
    graph = coo_array((np.ones(len(edges[0])), edges), shape=(len(atoms), len(atoms)))
    labels = connected_components(graph, directed=False)[1].astype(np.int64)
    if (np.bincount(labels) != len(shift)).any():
        return None
    first = np.unique(labels, return_index=True)[1][labels]
    off = (crystal.frac - crystal.frac[first]) @ to_primitive
    off = (off - np.rint(off)) @ primitive
    return labels, primitive, generators, off - mean_by_label(off, labels)[labels]


def _generated(generators: np.ndarray) -> np.ndarray:
    """(n, n_atoms): all products of commuting permutations without fixed points."""
    elements = np.arange(generators.shape[1])[None]
    for generator in generators:
        blocks, power = [elements], generator
        while power[0] not in elements[:, 0]:
            blocks.append(power[elements])
            power = generator[power]
        elements = np.concatenate(blocks)
    return elements


def _is_closed(permutations: np.ndarray) -> bool:
    """Whether the translations, known by where they carry one atom, form a group."""
    orbit = permutations[:, 0]
    if len(np.unique(orbit)) < len(orbit):
        return False
    return bool(np.isin(permutations[:, orbit], orbit).all())


def mean_by_label(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n_labels, 3): means of the rows of values (n, 3) that have the same label."""
    sums = np.zeros((labels.max() + 1, 3))
    np.add.at(sums, labels, values)
    return sums / np.bincount(labels)[:, None]


def _shortest_basis(shift: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """(3, 3): the shortest independent vectors among translations and their images, A."""
    images = np.stack(np.meshgrid(*3 * [[-1, 0, 1]]), axis=-1).reshape(-1, 3)
    vectors = ((shift - np.rint(shift))[:, None] + images).reshape(-1, 3) @ cell
    lengths = np.linalg.norm(vectors, axis=1)
    order = np.argsort(lengths)
    vectors, lengths = vectors[order], lengths[order]
    vectors, lengths = vectors[lengths > 0.1], lengths[lengths > 0.1]
    a = vectors[0]
    normal = np.cross(a, vectors)
    # Scatter of the positions makes the same vector twice: it is not independent.
    second = np.argmax(np.linalg.norm(normal, axis=1) > 0.1 * lengths[0] * lengths)
    height = np.abs(vectors @ normal[second]) / np.linalg.norm(normal[second])
    return np.array([a, vectors[second], vectors[np.argmax(height > 0.1 * lengths)]])


def find_operations(crystal: Crystal, symprec: float) -> Operations:
    """The operations of a primitive cell, the identity among them."""
    matrices = lattice_symmetries(crystal.cell, symprec).astype(float)
    reference, partners, order = _partners(crystal, symprec)
    shift = crystal.frac[partners] - (crystal.frac[reference] @ matrices)[:, None]
    trials = np.repeat(matrices, len(partners), axis=0)
    shift = shift.reshape(-1, 3)
    which = _survivors(crystal, order, trials, shift, symprec)
    trials, shift = trials[which], shift[which]
    permutations, _, misfit = _whole_misfit(crystal, trials, shift)
    misfit = np.maximum(misfit, lattice_misfit(crystal.cell, trials))
    found = Operations(trials, permutations, misfit)
    found = found[(misfit <= symprec) & _one_to_one(permutations)]
    found = found[np.argsort(found.misfit, kind='stable')]
    for count in _counts(found.misfit):
        if _is_group(found.matrices[:count], found.permutations[:count]):
            return found[np.arange(count)]
    return Operations(np.eye(3)[None], np.arange(len(crystal))[None], np.zeros(1))


def _partners(crystal: Crystal, symprec: float) -> tuple[int, np.ndarray, np.ndarray]:
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


def _whole_misfit(
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


def _one_to_one(permutations: np.ndarray) -> np.ndarray:
    """(n,) bool: whether each row holds every atom once."""
    return (np.sort(permutations, axis=1) == np.arange(permutations.shape[1])).all(axis=1)


def _is_group(matrices: np.ndarray, permutations: np.ndarray) -> bool:
    """Whether each rotation is there once, and its products with all others."""
    n = len(matrices)
    products = matrices.reshape(-1, 3) @ matrices.transpose(1, 0, 2).reshape(3, -1)
    products = products.reshape(n, 3, n, 3)
    if np.abs(products).max() > 1:
        return False
    digits = 3.0 ** np.arange(9).reshape(3, 3)  # a number for each matrix of -1, 0, 1
    codes = np.tensordot(matrices, digits, axes=2)
    ranked = np.argsort(codes)
    if len(np.unique(codes)) < n:
        return False
    of_products = np.tensordot(products, digits, axes=([1, 3], [0, 1]))
    if not np.isin(of_products, codes).all():
        return False
    # Matrices act on rows: in products[g, h], g comes first.
    position = ranked[np.searchsorted(codes[ranked], of_products)]
    return all(
        np.array_equal(permutations[:, permutations[g]], permutations[position[g]])
        for g in range(n)
    )
