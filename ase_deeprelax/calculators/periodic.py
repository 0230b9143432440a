"""Cells as potentials want them: periodic in three ways, and right-handed."""

from __future__ import annotations

import numpy as np
from ase import Atoms

from ase_deeprelax.errors import StructureError

# Between a layer and its image lies at least so much vacuum when a potential that knows
# only periodic crystals is asked, A: more than the cutoff of any of them.
BOX_VACUUM = 12.0


def check_box(atoms: Atoms) -> None:
    """Refuse a structure without three lattice vectors, which such a potential needs.

    Raises
    ------
    StructureError
        A vector is missing, as in a molecule without a box.

    Examples
    --------
    >>> from ase.build import bulk
    >>> check_box(bulk('Cu'))
    """
    if atoms.cell.rank < 3:
        raise StructureError(
            'this structure has no box, which a potential for crystals needs; put it into '
            'one, as atoms.center(vacuum=8) does, or use a potential for molecules'
        )


def periodic_box(atoms: Atoms) -> Atoms:
    """The structure for a potential that knows only crystals: periodic along all vectors.

    matgl takes a structure that is not periodic along each vector for a molecule.

    Parameters
    ----------
    atoms : ase.Atoms

    Returns
    -------
    ase.Atoms
        The same positions. Vectors along which the structure was not periodic are
        lengthened, where they have to be, until `BOX_VACUUM` lies between the images.

    Raises
    ------
    StructureError
        See `check_box`.

    Examples
    --------
    >>> from ase.build import mx2
    >>> box = periodic_box(mx2('MoS2', vacuum=2))
    >>> box.pbc.all(), round(float(box.cell[2, 2]), 2)
    (np.True_, 15.19)
    """
    check_box(atoms)
    if atoms.pbc.all():
        return atoms
    box = Atoms(atoms.numbers, cell=atoms.cell, positions=atoms.positions, pbc=True)
    for k in np.flatnonzero(~atoms.pbc):
        cell = box.cell.array
        normal = np.cross(cell[k - 2], cell[k - 1])
        normal /= np.linalg.norm(normal)
        needed = float(np.ptp(box.positions @ normal)) + BOX_VACUUM
        cell[k] *= max(1.0, needed / abs(cell[k] @ normal))
        box.cell = cell
    return box


def right_handed(atoms: Atoms) -> Atoms:
    """The same structure with lattice vectors that form a right-handed system.

    CHGNet divides by a volume with a sign, so that its stress pulls where it should push
    when the vectors are left-handed, as they are in many files.

    Parameters
    ----------
    atoms : ase.Atoms
        With three lattice vectors.

    Returns
    -------
    ase.Atoms
        The same positions; where need be, the first two vectors change places.

    Examples
    --------
    >>> left = Atoms('Cu', cell=[[0, 3, 0], [3, 0, 0], [0, 0, 3]], pbc=True)
    >>> right_handed(left).cell.handedness
    1
    """
    if atoms.cell.handedness > 0:
        return atoms
    order = [1, 0, 2]
    cell, pbc = atoms.cell.array[order], atoms.pbc[order]
    return Atoms(atoms.numbers, cell=cell, positions=atoms.positions, pbc=pbc)
