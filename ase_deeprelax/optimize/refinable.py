"""Structures are refused for which no calculator could give energy and forces."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.constraints import FixScaled

from ase_deeprelax.data.disorder import check_ordered
from ase_deeprelax.errors import StructureError, warn
from ase_deeprelax.geometry.neighbors import close_pairs
from ase_deeprelax.predict.structure_checks import first_not_finite, name_pair

# Atoms closer than this are on one site, A: calculators drop such pairs, or divide by zero.
SAME_SITE = 1e-3


def check_refinable(atoms: Atoms) -> None:
    """Refuse what no calculator can answer sensibly, molecules and slabs included.

    Parameters
    ----------
    atoms : ase.Atoms

    Raises
    ------
    StructureError
        No atoms, numbers that are not finite, a periodic cell without volume, two atoms on
        one site, partly occupied sites.

    Examples
    --------
    >>> from ase.build import molecule
    >>> check_refinable(molecule('H2O'))
    """
    if len(atoms) == 0:
        raise StructureError('0 atoms: there is nothing to relax')
    if not np.isfinite(atoms.cell).all():
        raise StructureError(f'cell {atoms.cell.tolist()} is not finite; set another one')
    if where := first_not_finite(atoms):
        raise StructureError(f'{where}; set it to a number')
    vectors = atoms.cell.array[atoms.pbc]
    if len(vectors) and np.linalg.matrix_rank(vectors) < len(vectors):
        raise StructureError(f'cell {atoms.cell.tolist()} has no volume; set another one')
    check_ordered(atoms)
    first, second, _ = close_pairs(atoms.positions, atoms.cell.array, SAME_SITE, atoms.pbc)
    for i, j in zip(first, second, strict=True):
        raise StructureError(
            f'{name_pair(atoms, i, j)} are on one site; remove or move one'
        )
    _warn_of_wrong_forces(atoms)


def _warn_of_wrong_forces(atoms: Atoms) -> None:
    """ASE projects forces under ``FixScaled`` as positions, which is right in few cells."""
    cell = atoms.cell.complete().array
    for constraint in atoms.constraints:
        if not isinstance(constraint, FixScaled) or constraint.mask.all():
            continue
        free = np.diag(~constraint.mask)
        taken, right = (c @ free @ np.linalg.inv(c) for c in (cell, cell.T))
        if not np.allclose(taken, right, atol=1e-3):
            first = constraint.index[0]
            warn(
                f'atom {first} ({atoms.symbols[first]}) is fixed along some vectors of a '
                'skew cell by FixScaled, and there the forces that ASE gives under this '
                'constraint are wrong: a relaxation with a calculator may not converge. '
                'Fix the atom along all vectors, or use FixCartesian'
            )
            return
