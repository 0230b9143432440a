"""Space groups: find the operations of a crystal, project a prediction on them."""

import math
import warnings
from dataclasses import dataclass, replace

import numpy as np
import spglib
from ase import Atoms
from ase.geometry import minkowski_reduce
from scipy.spatial import cKDTree

from ase_deeprelax.geometry.lattice import compact, lattice_symmetries, reduced_basis
from ase_deeprelax.geometry.motion import rotate_projection
from ase_deeprelax.geometry.vacuum import Layer

SYMPREC = 1e-2  # A, default tolerance of all searches
# Work (images x atoms) up to which the search here is faster than spglib's, which also
# identifies and standardizes the group.
_SMALL = 300_000


@dataclass(frozen=True, eq=False)
class Symmetry:
    """The space-group operations of a crystal, ready to project predictions.

    All operations of the crystal count, also those that the lattice of a supercell lacks:
    they are kept as pure translations and one operation of the primitive cell per
    rotation. It carries primitive atom ``a`` at ``x`` to ``x @ rotations[g] + t``, the
    place of primitive atom ``permutations[g, a]``.

    Attributes
    ----------
    rotations : (n_operations, 3, 3)
        Cartesian, orthogonal; positions are rows.
    permutations : (n_operations, n_primitive) int64
    primitive : (n_atoms,) int64
        The primitive atom that each atom is an image of.
    floating : bool
        Whether no atom is fixed, so that rigid drift has no meaning; default True.
    """

    rotations: np.ndarray
    permutations: np.ndarray
    primitive: np.ndarray
    floating: bool = True

    def keeping(self, free_strain: np.ndarray) -> 'Symmetry':
        """The operations that carry free strains into free strains.

        Parameters
        ----------
        free_strain : (6, 6)
            See `motion.Motion`.
        """
        if np.array_equal(free_strain, np.eye(6)) or not free_strain.any():
            return self
        same = [
            np.allclose(rotate_projection(free_strain, rotation), free_strain, atol=1e-3)
            for rotation in self.rotations
        ]
        return replace(
            self, rotations=self.rotations[same], permutations=self.permutations[same]
        )

    def project(self, deformation, displacement):
        """The part of a prediction that keeps the space group.

        Rigid drift is taken away where no atom is fixed.

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
        # pure translations are a normal subgroup: average over them first
        if self.permutations.shape[1] < len(displacement):
            displacement = _mean_by_label(displacement, self.primitive)
            displacement = (displacement[self.permutations] @ back).mean(axis=0)
            displacement = displacement[self.primitive]
        elif len(back) > 1:
            displacement = (displacement[self.permutations] @ back).mean(axis=0)
        if self.floating:
            displacement = displacement - displacement.mean(axis=0)
        return deformation, displacement


def find_symmetry(
    atoms: Atoms,
    symprec: float = SYMPREC,
    *,
    labels: np.ndarray | None = None,
    layer: Layer | None = None,
) -> Symmetry:
    """All space-group operations of a crystal, or those of a layer.

    Small cells are searched directly, larger ones, and those where the tolerance leaves
    doubt, with spglib.

    Parameters
    ----------
    atoms : ase.Atoms
        Periodic along all three vectors.
    symprec : float, A
        Default 1e-2.
    labels : (n_atoms,) int, optional
        Atoms of different numbers are not equivalent, as free and fixed ones; 1 stands for
        fixed. Default: all alike.
    layer : Layer, optional
        What `find_layer` found; default none, a crystal.

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
    positions, cell = atoms.positions, atoms.cell.array
    if layer is not None:
        # A box so high that no operation can carry its height into the plane.
        plane = np.array([*(layer.basis[:2] @ cell), layer.normal])
        plane = minkowski_reduce(plane, pbc=(True, True, False))[0]
        longest = np.linalg.norm(plane[:2], axis=1).max()
        longest += np.ptp(layer.in_one_piece(atoms) @ layer.normal)
        positions, cell = layer.standard_box(atoms, 3 * longest)
    cell = reduced_basis(cell) @ cell
    frac = positions @ np.linalg.inv(cell)
    numbers, floating = atoms.numbers, True
    if labels is not None:
        numbers = numbers + 1000 * np.unique(labels, return_inverse=True)[1]
        floating = not (labels == 1).any()
    primitive = np.arange(len(numbers))
    found = _find_primitive(frac, cell, numbers, symprec)
    if found is not None:
        primitive, cell, frac = found
        numbers = numbers[np.unique(primitive, return_index=True)[1]]
    found = _search(frac, cell, _species(numbers), symprec)
    if found is None:
        found = _spglib_operations(frac, cell, numbers, symprec)
    if found is None:
        found = np.eye(3)[None], np.arange(len(numbers))[None]
    matrices, permutations = found
    left, _, right = np.linalg.svd(np.linalg.inv(cell) @ matrices @ cell)
    return Symmetry(left @ right, permutations, primitive, floating)


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


def _species(numbers):
    """Indices of the atoms of each element, the rarest element first."""
    return sorted((np.flatnonzero(numbers == z) for z in np.unique(numbers)), key=len)


def _mean_by_label(values, labels):
    sums = np.zeros((labels.max() + 1, 3))
    np.add.at(sums, labels, values)
    return sums / np.bincount(labels)[:, None]


def _find_primitive(frac, cell, numbers, symprec):
    """Label of each atom, primitive cell and places in it; None where it is primitive."""
    species = _species(numbers)
    n = len(species[0])
    # translations permute the atoms of each element without fixed points
    if math.gcd(*map(len, species)) == 1:
        return None
    if n * len(numbers) ** 2 > _SMALL:
        dataset = _dataset(frac, cell, numbers, symprec)
        if dataset is None:
            return None
        labels = dataset.mapping_to_primitive
        primitive = dataset.primitive_lattice
    else:
        shift = frac[species[0]] - frac[species[0][0]]
        eye = np.broadcast_to(np.eye(3), (n, 3, 3))
        good, shift = _surviving(frac, cell, species, symprec, matrices=eye, shift=shift)
        n = len(shift)
        # n times a translation of a group of n is a lattice vector
        primitive = _shortest_basis(np.rint(shift * n) / n, cell)
        permutations = _permutations(frac, eye[good], shift, cell, species)
        labels = np.unique(permutations.min(axis=0), return_inverse=True)[1]
    count = labels.max() + 1
    ratio = abs(np.linalg.det(cell) / np.linalg.det(primitive))
    if count == len(numbers) or abs(ratio * count / len(numbers) - 1) > 1e-6:
        return None
    primitive = reduced_basis(primitive) @ primitive
    first = np.unique(labels, return_index=True)[1]
    return labels, primitive, frac[first] @ cell @ np.linalg.inv(primitive)


def _shortest_basis(shift, cell):
    """The shortest independent vectors among translations and their images, (3, 3)."""
    images = np.stack(np.meshgrid(*3 * [[-1, 0, 1]]), axis=-1).reshape(-1, 3)
    vectors = ((shift - np.rint(shift))[:, None] + images).reshape(-1, 3) @ cell
    lengths = np.linalg.norm(vectors, axis=1)
    order = np.argsort(lengths)
    vectors, lengths = vectors[order], lengths[order]
    vectors, lengths = vectors[lengths > 1e-3], lengths[lengths > 1e-3]
    a = vectors[0]
    normal = np.cross(a, vectors)
    second = np.argmax(np.linalg.norm(normal, axis=1) > 1e-3 * lengths[0] * lengths)
    height = np.abs(vectors @ normal[second]) / np.linalg.norm(normal[second])
    return np.array([a, vectors[second], vectors[np.argmax(height > 1e-3 * lengths)]])


def _surviving(frac, cell, species, symprec, *, matrices, shift):
    """Which of the operations ``frac @ matrix + shift`` carry the crystal onto itself.

    Returns their indices and shifts.
    """
    which = np.arange(len(shift))
    for atoms in species:
        images = frac[atoms] @ matrices[which] + shift[:, None]
        distance = _nearest(images, frac[atoms], cell)[1]
        good = distance.max(axis=1) <= symprec
        which, shift = which[good], shift[good]
    return which, shift


def _search(frac, cell, species, symprec):
    """Operations of a primitive cell by trial: lattice symmetries x places of an atom.

    Returns matrices (fractional rows times matrix) and permutations; None where the cell
    is too large or the tolerance makes the set no group.
    """
    matrices = lattice_symmetries(cell, symprec).astype(float)
    rarest = species[0]
    if len(matrices) * len(rarest) * max(map(len, species)) ** 2 > _SMALL:
        return None
    shift = frac[rarest] - (frac[rarest[0]] @ matrices)[:, None]
    trials = np.repeat(matrices, len(rarest), axis=0)
    which, shift = _surviving(
        frac, cell, species, symprec, matrices=trials, shift=shift.reshape(-1, 3)
    )
    matrices = trials[which]
    permutations = _permutations(frac, matrices, shift, cell, species)
    return (matrices, permutations) if _is_group(matrices, permutations) else None


def _is_group(matrices, permutations):
    """Whether each rotation is there once, its products too, and moves atoms one to one."""
    if len(matrices) == 0 or not _one_to_one(permutations):
        return False
    n = len(matrices)
    products = matrices.reshape(-1, 3) @ matrices.transpose(1, 0, 2).reshape(3, -1)
    products = products.reshape(n, 3, n, 3)
    digits = 3.0 ** np.arange(9).reshape(3, 3)  # a number for each matrix of -1, 0, 1
    codes = np.tensordot(matrices, digits, axes=2)
    codes_of_products = np.tensordot(products, digits, axes=([1, 3], [0, 1]))
    return (
        np.abs(products).max() <= 1
        and len(np.unique(codes)) == n
        and bool(np.isin(codes_of_products, codes).all())
    )


def _one_to_one(permutations):
    return (np.sort(permutations, axis=1) == np.arange(permutations.shape[1])).all()


def _spglib_operations(frac, cell, numbers, symprec):
    dataset = _dataset(frac, cell, numbers, symprec)
    if dataset is None:
        return None
    rotations, first = np.unique(dataset.rotations, axis=0, return_index=True)
    matrices = rotations.transpose(0, 2, 1).astype(float)  # spglib's act on columns
    shift = dataset.translations[first]
    permutations = _permutations(frac, matrices, shift, cell, _species(numbers))
    return (matrices, permutations) if _one_to_one(permutations) else None


def _permutations(frac, matrices, shift, cell, species):
    """The atom that stands where each operation carries each atom, (n, n_atoms)."""
    box = np.linalg.norm(cell, axis=1)  # the tree is periodic along orthogonal axes only
    images = (frac @ matrices + shift[:, None]) % 1.0 % 1.0  # -1e-20 % 1 is 1
    places = frac % 1.0 % 1.0
    permutations = np.empty(images.shape[:2], dtype=np.int64)
    for atoms in species:
        tree = cKDTree(places[atoms] * box, boxsize=box)
        permutations[:, atoms] = atoms[tree.query(images[:, atoms] * box)[1]]
    return permutations


def _nearest(images, frac, cell):
    """Index of the atom nearest to each image, and its distance in A."""
    delta = images[:, :, None] - frac
    delta -= np.rint(delta)
    square = np.square(delta @ cell).sum(axis=-1)
    index = square.argmin(axis=-1)
    return index, np.sqrt(np.take_along_axis(square, index[..., None], axis=-1)[..., 0])
