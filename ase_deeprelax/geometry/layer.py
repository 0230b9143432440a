"""Layers and slabs: periodic along two lattice vectors, vacuum along the third."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase import Atoms

# Room above and below a layer that counts as its own, together, A: about the gap between
# the layers of a layered crystal.
LAYER_ROOM = 3.0


@dataclass(frozen=True, eq=False, repr=False)
class Layer:
    """A layer or slab: periodic along two lattice vectors, vacuum along the third.

    Found by `vacuum.find_layer`.

    Attributes
    ----------
    basis : (3, 3) int64
        ``basis @ cell`` are the two lattice vectors of the layer and the vacuum vector.
    normal : (3,)
        Unit vector across the layer.
    turns : (n_atoms,) int64
        Vacuum vectors to add to each atom, so that the layer is in one piece.
    vacuum : float, A
        Width of the vacuum; infinite where the box ends with the layer.
    found_by : 'pbc' or 'vacuum'
        Whether the structure says that it is not periodic along the vacuum vector, or a
        wide gap between its atoms does.
    """

    basis: np.ndarray
    normal: np.ndarray
    turns: np.ndarray
    vacuum: float
    found_by: str

    def __repr__(self) -> str:
        n = len(self.turns)
        return f'Layer({n} atoms, vacuum {self.vacuum:.1f} A, by {self.found_by})'

    def in_one_piece(self, atoms: Atoms) -> np.ndarray:
        """(n_atoms, 3): positions, A, with the layer in one piece."""
        vacuum_vector = self.basis[2] @ atoms.cell.array
        return atoms.positions + self.turns[:, None] * vacuum_vector

    def middle(self, positions: np.ndarray) -> float:
        """Height of the layer's middle plane along the normal, A."""
        heights = positions @ self.normal
        return float(heights.min() + heights.max()) / 2

    def standard_box(self, atoms: Atoms, vacuum: float) -> tuple[np.ndarray, np.ndarray]:
        """The layer in a box of agreed height: positions and cell.

        Neither the height of the box, nor the place of the layer in it, nor a tilt of the
        vacuum vector is left in the result.

        Parameters
        ----------
        atoms : ase.Atoms
        vacuum : float, A

        Returns
        -------
        positions : (n_atoms, 3), A
            The middle plane lies at half the height.
        cell : (3, 3), A
            The layer's lattice vectors, and ``thickness + vacuum`` along the normal.
        """
        positions = self.in_one_piece(atoms)
        heights = positions @ self.normal
        height = float(np.ptp(heights)) + vacuum
        cell = self.basis @ atoms.cell.array
        cell[2] = height * self.normal
        lift = height / 2 - self.middle(positions)
        return positions + lift * self.normal, cell

    def solid_volume(self, atoms: Atoms) -> float:
        """Volume of the layer, A^3, with `LAYER_ROOM` in place of the vacuum."""
        return float(abs(np.linalg.det(self.standard_box(atoms, LAYER_ROOM)[1])))

    def strain(
        self, atoms: Atoms, deformation: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cell and positions after a strain of the layer; the vacuum vector stays.

        Parameters
        ----------
        atoms : ase.Atoms
        deformation : (3, 3)
            Acts on row vectors from the right; mixes no in-plane vector with the normal.

        Returns
        -------
        cell : (3, 3), A
        positions : (n_atoms, 3), A
            In the images of ``atoms``; strained about the point where the vacuum vector
            meets the middle plane, so that no drift depends on the origin.
        """
        rows = self.basis @ atoms.cell.array
        rows[:2] = rows[:2] @ deformation
        cell = np.rint(np.linalg.inv(self.basis)) @ rows
        positions = self.in_one_piece(atoms)
        centre = self.middle(positions) / (self.normal @ rows[2]) * rows[2]
        moved = (positions - centre) @ deformation + centre
        return cell, moved - self.turns[:, None] * rows[2]
