"""The filter with which an ordinary relaxation moves what a prediction may move."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.cell import Cell
from ase.filters import Filter, FrechetCellFilter

from ase_deeprelax.geometry.constraints import SUPPORTED
from ase_deeprelax.geometry.degrees_of_freedom import find_freedom
from ase_deeprelax.geometry.free_strain import RelaxCell
from ase_deeprelax.geometry.layer import Layer
from ase_deeprelax.geometry.motion import (
    STRAIN_BASIS,
    in_plane_strains,
    project_strain,
    strain_projection,
)


def free_cell(atoms: Atoms, relax_cell: RelaxCell | None = True) -> Atoms | Filter:
    """The atoms themselves where the cell is fixed, else a cell filter around them.

    Constraints that a prediction cannot honour are left to the atoms, which honour them in
    every step of an ordinary relaxation.

    Parameters
    ----------
    atoms : ase.Atoms
    relax_cell : bool, str or array, optional
        See `find_freedom`.

    Returns
    -------
    ase.Atoms or ase.filters.FrechetCellFilter
        Of a layer, only its two lattice vectors change.

    Raises
    ------
    StructureError
        See `find_freedom`.

    Examples
    --------
    >>> from ase.build import bulk, mx2
    >>> type(free_cell(bulk('Cu'))).__name__, type(free_cell(mx2(vacuum=9))).__name__
    ('FrechetCellFilter', 'FreeCellFilter')
    """
    known = atoms.copy()
    known.set_constraint([c for c in atoms.constraints if type(c) in SUPPORTED])
    freedom = find_freedom(known, relax_cell)
    if freedom.strain is None:
        return atoms
    free_strain, layer = freedom.strain.projection(), freedom.layer
    if layer is None and np.array_equal(free_strain, np.eye(6)):
        return FrechetCellFilter(atoms)
    if layer is not None:
        # What makes the layer thicker are the moves of its atoms here.
        flat = strain_projection(in_plane_strains(layer.normal, thickness=False))
        free_strain = flat @ free_strain @ flat
    return FreeCellFilter(atoms, free_strain, layer)


class FreeCellFilter(FrechetCellFilter):
    """ASE's ``FrechetCellFilter`` of which only some strains are free.

    Its ``mask`` can hold entries of the strain in Cartesian axes; here the plane of a layer
    may have any orientation. Of a layer, the vacuum vector stays, and atoms that are
    written beyond it follow the strain with their layer.

    Parameters
    ----------
    atoms : ase.Atoms
    free_strain : (6, 6)
        Projection on the free strains, see `motion.Motion`.
    layer : Layer, optional
        What `find_layer` found; default none, a crystal.

    Attributes
    ----------
    volume : float, A^3
        Of the solid, without vacuum: what stiffness is proportional to.
    """

    def __init__(self, atoms: Atoms, free_strain: np.ndarray, layer: Layer | None = None):
        super().__init__(atoms)
        self.free_strain, self.layer = free_strain, layer
        images = [project_strain(free_strain, strain) for strain in STRAIN_BASIS]
        self._touched = np.abs(images).max(axis=0) > 1e-9
        self.volume = float(atoms.cell.volume)
        if layer is not None:
            self.volume = layer.solid_volume(atoms)
            self.orig_cell = self._upright()

    def get_positions(self) -> np.ndarray:
        """(n_atoms + 3, 3): positions before the strain, and the strain's logarithm.

        The logarithm is multiplied by ``exp_cell_factor``. It is zero at the first cell,
        where that of ``FrechetCellFilter`` is log(n_atoms), no strain that could be held.
        """
        atoms = self.atoms
        stretch = np.linalg.solve(self.orig_cell, self._upright())
        positions = atoms.positions
        if self.layer is not None:
            positions = self.layer.in_one_piece(atoms)
        before = np.linalg.solve(stretch.T, positions.T).T
        return np.concatenate([before, self.exp_cell_factor * self.logm(stretch)])

    def set_positions(self, new: np.ndarray, **kwargs: Any) -> None:
        """Positions, and the logarithm of the strain as far as it is free."""
        atoms, layer = self.atoms, self.layer
        new = self._projected(new)
        stretch = self.expm(new[-3:] / self.exp_cell_factor)
        positions, rows = new[:-3] @ stretch, self.orig_cell @ stretch
        # As in ASE, all atoms follow the cell, and constraints act on what is left.
        if layer is None:
            atoms.set_cell(rows, scale_atoms=True)
        else:
            vacuum = layer.basis[2] @ atoms.cell.array
            turns = layer.turns[:, None] * vacuum
            step = np.linalg.solve(self._upright(), rows)
            following = layer.in_one_piece(atoms) @ step - turns
            atoms.set_positions(following, apply_constraint=False)
            rows[2] = vacuum
            back = np.rint(np.linalg.inv(layer.basis))
            atoms.set_cell(back @ rows, apply_constraint=False)
            positions = positions - turns
        atoms.set_positions(positions, **kwargs)

    def get_forces(self, **kwargs: Any) -> np.ndarray:
        """(n_atoms + 3, 3): forces, and those on the free strains of the cell."""
        stress = self.atoms.get_stress(**kwargs)
        rows, _ = self._utility.get_forces_frechet(
            self.atoms.get_forces(**kwargs),
            stress,
            Cell(self._upright()),
            self.exp_cell_factor,
        )
        return self._projected(rows)

    def _upright(self) -> np.ndarray:
        """(3, 3): the cell; of a layer, with the height of the box as its third vector."""
        rows = self.atoms.cell.array.copy()
        if self.layer is not None:
            rows = self.layer.basis @ rows
            rows[2] = (rows[2] @ self.layer.normal) * self.layer.normal
        return rows

    def _projected(self, rows: np.ndarray) -> np.ndarray:
        rows = np.array(rows)
        # Rounding must not move what is fixed.
        rows[-3:] = project_strain(self.free_strain, rows[-3:]) * self._touched
        return rows
