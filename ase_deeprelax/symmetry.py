"""Space groups: find the operations of a crystal, project a prediction on them."""

import warnings
from dataclasses import dataclass

import numpy as np
import spglib
from scipy.spatial import cKDTree

from ase_deeprelax.data.lattice import compact, lattice_symmetries, reduced_basis

SYMPREC = 1e-2  # A, default tolerance of all searches
# Atom triples (operations x origins x pairs) up to which the search here is faster than
# spglib's, which also identifies and standardizes the group.
_SMALL = 300_000


@dataclass(frozen=True, eq=False)
class Symmetry:
    """The space-group operations of a crystal, ready to project predictions.

    An operation carries atom ``a`` at ``x`` to ``x @ rotations[g] + t``, the place of atom
    ``permutations[g, a]``. Operations that differ by a pure translation are kept once.

    Attributes
    ----------
    rotations : (n_operations, 3, 3)
        Cartesian, orthogonal; positions are rows.
    permutations : (n_operations, n_atoms) int64
    primitive : (n_atoms,) int64
        Atoms that pure translations carry into each other have the same number here.
    """

    rotations: np.ndarray
    permutations: np.ndarray
    primitive: np.ndarray

    def project(self, deformation, displacement):
        """The part of a prediction that keeps the space group, without rigid drift.

        The average over all operations. It looks at the prediction alone: zero stays
        zero, and a crystal that has its symmetry only within ``symprec`` is not moved
        onto the ideal sites.

        Parameters
        ----------
        deformation : (3, 3)
            Symmetric, positive definite; the average keeps both.
        displacement : (n_atoms, 3), A

        Returns
        -------
        deformation : (3, 3) float64 array
        displacement : (n_atoms, 3) float64 array, A

        Examples
        --------
        >>> from ase.build import bulk
        >>> nacl = bulk('NaCl', 'rocksalt', a=5.6)
        >>> strain, moves = np.diag([1.0, 1.0, 1.3]), np.ones((2, 3))
        >>> s, u = find_symmetry(nacl).project(strain, moves)
        >>> bool(np.allclose(s, 1.1 * np.eye(3))), bool(np.allclose(u, 0))
        (True, True)
        """
        deformation = np.asarray(deformation, dtype=float)
        displacement = np.asarray(displacement, dtype=float)
        back = self.rotations.transpose(0, 2, 1)
        if len(back) > 1:
            deformation = (back @ deformation @ self.rotations).mean(axis=0)
        # pure translations are a normal subgroup: average over them first, then over one
        # operation of each coset
        count = np.bincount(self.primitive)
        if count.max() > 1:
            sums = np.zeros((len(count), 3))
            np.add.at(sums, self.primitive, displacement)
            displacement = (sums / np.maximum(count, 1)[:, None])[self.primitive]
        if len(back) > 1:
            displacement = (displacement[self.permutations] @ back).mean(axis=0)
        return deformation, displacement - displacement.mean(axis=0)


def find_symmetry(atoms, symprec=SYMPREC):
    """All space-group operations of a crystal.

    Small cells are searched directly, larger ones, and those where the tolerance leaves
    doubt, with spglib.

    Parameters
    ----------
    atoms : ase.Atoms
        Periodic along all three vectors.
    symprec : float, A
        Default 1e-2.

    Returns
    -------
    Symmetry
        Of the identity alone where the group cannot be determined.

    Examples
    --------
    >>> from ase.build import bulk
    >>> len(find_symmetry(bulk('Si', 'diamond', a=5.43)).rotations)
    48
    """
    cell = atoms.cell.array
    cell = reduced_basis(cell) @ cell
    frac = atoms.positions @ np.linalg.inv(cell)
    frac = frac % 1.0 % 1.0  # -1e-20 % 1 is 1
    elements, numbers = np.unique(atoms.numbers, return_inverse=True)
    species = [np.flatnonzero(numbers == k) for k in range(len(elements))]
    found = _search(frac, cell, species, symprec)
    if found is None:
        found = _spglib_operations(frac, cell, numbers, species, symprec)
    if found is None:
        n = len(numbers)
        return Symmetry(np.eye(3)[None], np.arange(n)[None], np.arange(n))
    matrices, permutations, primitive = found
    left, _, right = np.linalg.svd(np.linalg.inv(cell) @ matrices @ cell)
    return Symmetry(left @ right, permutations, primitive)


def spacegroup_number(atoms, symprec=SYMPREC):
    """International number of the space group, 0 where spglib cannot determine it.

    Parameters
    ----------
    atoms : ase.Atoms
        Periodic along all three vectors.
    symprec : float, A
        Default 1e-2.

    Returns
    -------
    int

    Examples
    --------
    >>> from ase.build import bulk
    >>> spacegroup_number(bulk('Si', 'diamond', a=5.43))
    227
    """
    positions, cell, _ = compact(atoms.positions, atoms.cell.array)
    dataset = _dataset(positions @ np.linalg.inv(cell), cell, atoms.numbers, symprec)
    return 0 if dataset is None else int(dataset.number)


def _dataset(frac, cell, numbers, symprec):
    # spglib 2 warns and returns None, spglib 3 raises; for us both mean "not determined"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        try:
            return spglib.get_symmetry_dataset((cell, frac, numbers), symprec=symprec)
        except spglib.SpglibError:
            return None


def _search(frac, cell, species, symprec):
    """Operations by trial: point operations of the lattice x places of a rare atom.

    Returns matrices (fractional rows times matrix), permutations and primitive numbers;
    None where the cell is too large or the tolerance makes the set no group.
    """
    rarest = min(species, key=len)
    matrices = lattice_symmetries(cell, symprec).astype(float)
    if len(matrices) * len(rarest) * len(rarest) ** 2 > _SMALL:
        return None
    # where the first rare atom may go
    turned = frac[rarest] @ matrices  # (n_matrices, n_rare, 3)
    shift = frac[rarest] - turned[:, :1]
    which = np.repeat(np.arange(len(matrices)), len(rarest))
    shift = shift.reshape(-1, 3)
    for atoms in sorted(species, key=len):
        images = frac[atoms] @ matrices[which] + shift[:, None]
        if len(which) * len(atoms) ** 2 > _SMALL:
            return None
        _, distance = _nearest(images, frac[atoms], cell)
        good = distance.max(axis=1) <= symprec
        which, shift = which[good], shift[good]
    permutations = _permutations(frac, matrices[which], shift, cell, species)
    return _as_group(matrices, which, permutations)


def _as_group(matrices, which, permutations):
    """One operation per coset of the pure translations, or None if it is no group."""
    matrices_used, first, count = np.unique(which, return_index=True, return_counts=True)
    rows = np.arange(permutations.shape[1])
    if permutations.size == 0 or (np.sort(permutations, axis=1) != rows).any():
        return None
    if (count != count[0]).any():
        return None
    point_group = matrices[matrices_used]
    n = len(point_group)
    products = point_group.reshape(-1, 3) @ point_group.transpose(1, 0, 2).reshape(3, -1)
    products = products.reshape(n, 3, n, 3)
    if np.abs(products).max() > 1:
        return None
    digits = 3.0 ** np.arange(9).reshape(3, 3)  # a number for each matrix of -1, 0, 1
    codes = np.tensordot(point_group, digits, axes=2)
    if not np.isin(np.tensordot(products, digits, axes=([1, 3], [0, 1])), codes).all():
        return None
    identity = np.flatnonzero((point_group == np.eye(3)).all(axis=(1, 2)))
    translations = permutations[which == matrices_used[identity[0]]]
    primitive = np.unique(translations.min(axis=0), return_inverse=True)[1]
    return point_group, permutations[first], primitive


def _spglib_operations(frac, cell, numbers, species, symprec):
    dataset = _dataset(frac, cell, numbers, symprec)
    if dataset is None:
        return None
    rotations, first = np.unique(dataset.rotations, axis=0, return_index=True)
    matrices = rotations.transpose(0, 2, 1)  # spglib's act on columns
    permutations = _permutations(frac, matrices, dataset.translations[first], cell, species)
    if (np.sort(permutations, axis=1) != np.arange(len(frac))).any():
        return None
    return matrices, permutations, dataset.mapping_to_primitive


def _permutations(frac, matrices, shift, cell, species):
    """The atom that stands where each operation carries each atom, (n, n_atoms)."""
    box = np.linalg.norm(cell, axis=1)  # the tree is periodic along orthogonal axes only
    images = (frac @ matrices + shift[:, None]) % 1.0 % 1.0
    permutations = np.empty(images.shape[:2], dtype=np.int64)
    for atoms in species:
        tree = cKDTree(frac[atoms] * box, boxsize=box)
        permutations[:, atoms] = atoms[tree.query(images[:, atoms] * box)[1]]
    return permutations


def _nearest(images, frac, cell):
    """Index of the atom nearest to each image, and its distance in A."""
    delta = images[:, :, None] - frac
    delta -= np.rint(delta)
    square = np.square(delta @ cell).sum(axis=-1)
    index = square.argmin(axis=-1)
    return index, np.sqrt(np.take_along_axis(square, index[..., None], axis=-1)[..., 0])
