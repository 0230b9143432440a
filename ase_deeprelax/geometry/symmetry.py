"""Space groups: find the operations of a crystal, project a prediction on them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import spglib
from ase import Atoms
from ase.geometry import minkowski_reduce
from numpy.typing import ArrayLike

from ase_deeprelax.geometry.crystal_images import Crystal, mean_by_label
from ase_deeprelax.geometry.lattice import INCLUSIVE, compact, reduced_basis
from ase_deeprelax.geometry.layer import Layer
from ase_deeprelax.geometry.motion import rotate_projection
from ase_deeprelax.geometry.symmetry_search import find_operations, find_translations
from ase_deeprelax.geometry.vacuum import VACUUM_GAP

SYMPREC = 1e-2  # A, default tolerance of all searches


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

    @property
    def n_primitive(self) -> int:
        """Number of atoms in the primitive cell."""
        return self.permutations.shape[1]

    def keeping(self, free_strain: np.ndarray) -> Symmetry:
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

    def project(
        self, deformation: ArrayLike, displacement: ArrayLike
    ) -> tuple[np.ndarray, np.ndarray]:
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
            displacement = mean_by_label(displacement, self.primitive)
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

    They do not depend on the order of the atoms, on the origin, nor on the cell that was
    chosen, also where atoms are off their sites by as much as the tolerance.

    Parameters
    ----------
    atoms : ase.Atoms
        Periodic along all three vectors.
    symprec : float, A
        How far an atom may lie from the image of another one, after the best shift of
        the whole operation; default 1e-2.
    labels : (n_atoms,) int, optional
        Atoms of different numbers are not equivalent, as free and fixed ones; 1 stands for
        fixed. Default: all alike.
    layer : Layer, optional
        What `find_layer` found; default none, a crystal.

    Returns
    -------
    Symmetry
        All operations up to the largest misfit, within ``symprec``, at which they form a
        group; at least the identity.

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
    numbers, floating = atoms.numbers, True
    if labels is not None:
        numbers = numbers + 1000 * np.unique(labels, return_inverse=True)[1]
        floating = not (labels == 1).any()
    crystal = Crystal(positions @ np.linalg.inv(cell), cell, numbers)
    primitive, cell, operations = find_operations(crystal, symprec * INCLUSIVE)
    matrices = np.linalg.solve(cell, operations.matrices @ cell)
    left, _, right = np.linalg.svd(matrices)
    return Symmetry(left @ right, operations.permutations, primitive, floating)


def primitive_size(
    atoms: Atoms, symprec: float = SYMPREC, *, layer: Layer | None = None
) -> int:
    """Number of atoms in the primitive cell of a crystal or layer.

    Parameters
    ----------
    atoms : ase.Atoms
        Its cell is taken as periodic along all three vectors.
    symprec : float, A
        Default 1e-2.
    layer : Layer, optional
        What `find_layer` found; default none, a crystal.

    Examples
    --------
    >>> from ase.build import bulk
    >>> primitive_size(bulk('Si', 'diamond', a=5.43, cubic=True) * (3, 3, 3))
    2
    """
    positions, cell = atoms.positions, atoms.cell.array
    if layer is not None:  # The box of one that is not periodic may repeat it seamlessly.
        positions, cell = layer.standard_box(atoms, VACUUM_GAP)
    cell = reduced_basis(cell) @ cell
    crystal = Crystal(positions @ np.linalg.inv(cell), cell, atoms.numbers)
    found = find_translations(crystal, symprec * INCLUSIVE)
    return len(atoms) if found is None else int(found[0].max()) + 1


def spacegroup_number(atoms: Atoms, symprec: float = SYMPREC) -> int:
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
    frac = positions @ np.linalg.inv(cell)
    dataset = symmetry_dataset((cell, frac, atoms.numbers), symprec)
    return 0 if dataset is None else int(dataset.number)


def symmetry_dataset(
    crystal: tuple[np.ndarray, np.ndarray, np.ndarray], symprec: float = SYMPREC
) -> spglib.SpglibDataset | None:
    """The symmetry of a crystal, as spglib finds it.

    Parameters
    ----------
    crystal : (3, 3), (n_atoms, 3) and (n_atoms,) arrays
        Cell, A; fractional coordinates; atomic numbers.
    symprec : float, A
        Default 1e-2.

    Returns
    -------
    spglib.SpglibDataset or None
        None where spglib cannot determine it.

    Examples
    --------
    >>> symmetry_dataset((4 * np.eye(3), np.zeros((1, 3)), np.array([29]))).international
    'Pm-3m'
    """
    # spglib 2 warns and returns None, spglib 3 raises; both mean "not determined".
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        try:
            # spglib declares sequences, and takes arrays.
            return spglib.get_symmetry_dataset(crystal, symprec=symprec)  # ty: ignore[invalid-argument-type]
        except spglib.SpglibError:
            return None
