"""Layers and molecules for potentials that know only structures periodic in three ways."""

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
