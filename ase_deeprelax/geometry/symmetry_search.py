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

from ase_deeprelax.geometry.crystal_images import (
    Crystal,
    mean_by_label,
    partners_of,
    survivors,
)
from ase_deeprelax.geometry.lattice import (
    lattice_misfit,
    lattice_symmetries,
    reduced_basis,
)

# Atoms that all trials for translations are tested on before a lattice is tried.
_FIRST = 64
# Atoms that all translations of a lattice are tested on first.
_FEW = 8
# Misfits closer than this are equal, A.
_EQUAL = 1e-6
# Atoms of products that are compared at a time: bounds the memory.
_CHUNK = 1_000_000


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
class Folded:
    """A crystal laid into the cell of a lattice of translations.

    Attributes
    ----------
    labels : (n_atoms,) int64
        The atom of the small cell that each atom is an image of.
    primitive : (3, 3), A
        Reduced.
    generators : (3, n_atoms) int64
        Where the translations by the three vectors carry each atom.
    off : (n_atoms, 3), A
        From the mean place of all images of the same atom.
    """

    labels: np.ndarray
    primitive: np.ndarray
    generators: np.ndarray
    off: np.ndarray

    @cached_property
    def powers(self) -> list[np.ndarray]:
        """Powers of each generator, (n, n_atoms); their products are all translations."""
        seen, powers = np.zeros(1, np.int64), []  # where products carry the first atom
        for generator in self.generators:
            power = [np.arange(len(self.labels))]
            carried = [seen]
            while (after := generator[power[-1]])[0] not in seen:
                power.append(after)
                carried.append(after[seen])
            powers.append(np.array(power))
            seen = np.concatenate(carried)
        return powers

    def images(self, which: np.ndarray, atoms: np.ndarray) -> np.ndarray:
        """(n_which, n_given): where translations carry atoms; 0 is the identity."""
        exponents = np.unravel_index(which, [len(power) for power in self.powers])
        for power, exponent in zip(self.powers, exponents, strict=True):
            atoms = power[exponent[:, None], atoms]
        return atoms

    def fitting(
        self, permutation: np.ndarray, left: np.ndarray, most: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """The translations that fit behind an operation, and their misfits, A.

        Parameters
        ----------
        permutation : (n_atoms,)
            Where the operation carries the atoms.
        left : (n_atoms, 3), A
            How far the atoms there are off, without their own scatter.
        most : float, A
            Largest misfit. Atoms that are far off come first: most translations end with
            them.
        """
        order = np.argsort(-np.einsum('ax,ax->a', left, left), kind='stable')
        which = np.arange(math.prod(len(power) for power in self.powers))
        misfit = np.zeros(len(which))
        start, size = 0, _FEW
        while start < len(order) and len(which):
            some = order[start : start + size]
            off = left[some] + self.off[self.images(which, permutation[some])]
            square = np.einsum('nax,nax->na', off, off).max(axis=1)
            misfit = np.maximum(misfit, np.sqrt(square))
            which, misfit = which[misfit <= most], misfit[misfit <= most]
            start, size = start + size, 2 * size
        return which, misfit


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
    return _best_translations(crystal, symprec, *_candidates(crystal, symprec))


def _best_translations(
    crystal: Crystal, symprec: float, shift: np.ndarray, folded: Folded | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """`find_translations` among candidates."""
    if len(shift) < 2:
        return None
    if folded is None:
        eye = np.eye(3)[None]
        permutations, delta = crystal.images(np.arange(len(crystal)), eye, shift)
        misfit = _misfit(delta)
        misfit[~_one_to_one(permutations)] = np.inf
    else:
        if np.linalg.norm(folded.off, axis=1).max() <= symprec / 2:
            return folded.labels, folded.primitive
        atoms = np.arange(len(crystal))
        which, misfit = folded.fitting(atoms, -folded.off, symprec)
        permutations = folded.images(which, atoms)
        shift = crystal.frac[permutations[:, 0]] - crystal.frac[0]
    ranked = np.argsort(misfit, kind='stable')[: np.sum(misfit <= symprec)]
    for count in _counts(misfit[ranked]):
        group = ranked[:count]
        if len(crystal) % count == 0 and _is_closed(permutations[group]):
            labels = np.unique(permutations[group].min(axis=0), return_inverse=True)[1]
            primitive = _primitive_cell(crystal, shift[group])
            return None if primitive is None else (labels, primitive)
    return None


def _candidates(crystal: Crystal, symprec: float) -> tuple[np.ndarray, Folded | None]:
    """Shifts (n, 3) of all translations that may be within the tolerance, and more.

    Where they are all translations of one lattice, the crystal folded into its cell.
    """
    # Translations permute the atoms of each element without fixed points.
    if math.gcd(*crystal.elements[1].tolist()) == 1:
        return np.zeros((1, 3)), None
    reference, partners, order = partners_of(crystal, symprec)
    shift = crystal.frac[partners] - crystal.frac[reference]
    eye = np.eye(3)[None]
    # A wide limit first, so that no translation of a lattice with scatter is missing.
    shift = shift[survivors(crystal, order[:_FIRST], eye, shift, 4 * symprec)]
    folded = _fold(crystal, shift)
    if folded is None and len(shift) > 1:
        shift = shift[survivors(crystal, order, eye, shift, 2 * symprec)]
        folded = _fold(crystal, shift)
    return shift, folded


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


def _fold(crystal: Crystal, shift: np.ndarray) -> Folded | None:
    """None where the shifts are not all translations of one lattice and nothing else."""
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
    off = off - mean_by_label(off, labels)[labels]
    return Folded(labels, primitive, generators, off)


def _is_closed(permutations: np.ndarray) -> bool:
    """Whether the translations, known by where they carry one atom, form a group."""
    orbit = permutations[:, 0]
    if len(np.unique(orbit)) < len(orbit):
        return False
    return bool(np.isin(permutations[:, orbit], orbit).all())


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


def find_operations(
    crystal: Crystal, symprec: float
) -> tuple[np.ndarray, np.ndarray, Operations]:
    """The primitive cell of a crystal and the operations of it, the identity among them.

    Returns
    -------
    labels, primitive
        As `find_translations` returns them; of a primitive cell the atoms and the cell.
    operations : Operations
        Of the primitive atoms.
    """
    labels = np.arange(len(crystal))
    shift, folded = _candidates(crystal, symprec)
    found = _best_translations(crystal, symprec, shift, folded)
    if found is not None:
        labels, primitive = found
        crystal = crystal.folded(labels, primitive)
        folded = _candidates(crystal, symprec)[1]
    return labels, crystal.cell, _primitive_operations(crystal, symprec, folded)


def _primitive_operations(
    crystal: Crystal, symprec: float, folded: Folded | None
) -> Operations:
    """The operations of a primitive cell.

    Translations that the crystal nearly has, as where the atoms of a supercell are off
    their sites by more than the tolerance, are not tried one by one: each operation is
    found once and multiplied with all of them.
    """
    matrices = lattice_symmetries(crystal.cell, symprec).astype(float)
    reference, partners, order = partners_of(crystal, symprec)
    limit = 2 * symprec
    if folded is not None:
        partners = partners[np.unique(folded.labels[partners], return_index=True)[1]]
        limit += 4 * np.linalg.norm(folded.off, axis=1).max()
    shift = crystal.frac[partners] - (crystal.frac[reference] @ matrices)[:, None]
    trials = np.repeat(matrices, len(partners), axis=0)
    shift = shift.reshape(-1, 3)
    which = survivors(crystal, order, trials, shift, limit)
    trials = trials[which]
    permutations, delta = crystal.images(np.arange(len(crystal)), trials, shift[which])
    misfit = np.maximum(_misfit(delta), lattice_misfit(crystal.cell, trials))
    found = Operations(trials, permutations, misfit)
    if folded is not None:
        found = _multiplied(crystal, found, delta, folded=folded, most=symprec)
    good = found[(found.misfit <= symprec) & _one_to_one(found.permutations)]
    good = good[np.argsort(good.misfit, kind='stable')]
    for count in _counts(good.misfit):
        if _is_group(good.matrices[:count], good.permutations[:count]):
            return good[np.arange(count)]
    return Operations(np.eye(3)[None], np.arange(len(crystal))[None], np.zeros(1))


def _multiplied(
    crystal: Crystal,
    operations: Operations,
    delta: np.ndarray,
    *,
    folded: Folded,
    most: float,
) -> Operations:
    """All products of operations with the translations of a lattice, up to a misfit.

    ``delta`` (n, n_atoms, 3) leads from the image of each atom to the atom that stands
    there, A. Because a product carries the atoms to all places once, its mean shift is
    known before, and any atom that is too far off ends it.
    """
    atoms = np.arange(len(crystal))
    identity = (operations.matrices == np.eye(3)).all(axis=(1, 2))
    found = []
    # The identity comes first: no operation counts that is worse than the best pure
    # translation, since with that one each rotation would be there twice.
    for k in np.argsort(~identity, kind='stable'):
        permutation = operations.permutations[k]
        left = delta[k] - delta[k].mean(axis=0) - folded.off[permutation]
        which, misfit = folded.fitting(permutation, left, most)
        products = folded.images(which, permutation)
        if identity[k]:
            worse = misfit[(products != atoms).any(axis=1)]
            most = min(most, worse.min(initial=np.inf) - _EQUAL)
        keep = np.flatnonzero(misfit <= most)
        shape = lattice_misfit(crystal.cell, operations.matrices[k][None])
        rotated = np.repeat(operations.matrices[k][None], len(keep), axis=0)
        found.append((rotated, products[keep], np.maximum(misfit[keep], shape)))
    return Operations(*(np.concatenate(part) for part in zip(*found, strict=True)))


def _misfit(delta: np.ndarray) -> np.ndarray:
    """(n,): misfits of operations whose images lie off by delta (n, n_atoms, 3), A."""
    return np.linalg.norm(delta - delta.mean(axis=1, keepdims=True), axis=2).max(axis=1)


def _one_to_one(permutations: np.ndarray) -> np.ndarray:
    """(n,) bool: whether each row holds every atom once."""
    return (np.sort(permutations, axis=1) == np.arange(permutations.shape[1])).all(axis=1)


def _is_group(matrices: np.ndarray, permutations: np.ndarray) -> bool:
    """Whether each rotation is there once, and its products with all others."""
    n = len(matrices)
    products = matrices.reshape(-1, 3) @ matrices.transpose(1, 0, 2).reshape(3, -1)
    if np.abs(products).max() > 1:
        return False
    digits = 3.0 ** np.arange(9).reshape(3, 3)  # a number for each matrix of -1, 0, 1
    codes = matrices.reshape(n, 9) @ digits.ravel()
    ranked = np.argsort(codes)
    ordered = codes[ranked]
    if (ordered[1:] == ordered[:-1]).any():
        return False
    # One product of matrices gives the codes of all products a b: digits[i, j] * b[k, j] is
    # summed over j first.
    right = np.einsum('ij,hkj->ikh', digits, matrices).reshape(9, n)
    of_products = matrices.reshape(n, 9) @ right
    place = np.minimum(np.searchsorted(ordered, of_products), n - 1)
    if not np.array_equal(ordered[place], of_products):
        return False
    # Matrices act on rows: in products[g, h], g comes first.
    position = ranked[place]
    step = max(1, _CHUNK // permutations.size)
    for first in range(0, n, step):
        some = slice(first, first + step)
        both = permutations[:, permutations[some]].transpose(1, 0, 2)
        if not np.array_equal(both, permutations[position[some]]):
            return False
    return True
