"""Which degrees of freedom vacuum, filters and constraints leave to a prediction.

What is held is held in the coordinates of ``ase.filters.FrechetCellFilter``, so that a
prediction and a refinement through that filter move in the same space:

* the cell changes by a deformation whose logarithm is projected on what ``relax_cell``,
  ``mask``, ``hydrostatic_strain``, ``constant_volume`` and ``FixSymmetry`` allow;
* all atoms, fixed ones too, follow the cell (they keep their fractional coordinates), and
  a constraint acts on the step that is left. Where the cell is fixed, a fixed atom
  therefore stays where it was, to the last bit;
* the vacuum vector of a layer stays, and its atoms follow the strain about its middle
  plane. Where nothing else is asked for, this strain may make the layer thicker.

A crystal has no origin: where constraints hold some atoms in part, the prediction is first
shifted rigidly to the place where they have least to take away.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixSymmetry
from ase.filters import Filter, StrainFilter, UnitCellFilter
from ase.stress import full_3x3_to_voigt_6_strain

from ase_deeprelax.errors import UnsupportedConstraintError
from ase_deeprelax.geometry.constraints import Frozen, check_constraints, constraint_labels
from ase_deeprelax.geometry.free_strain import (
    RelaxCell,
    StrainRule,
    check_relax_cell,
    filter_settings,
)
from ase_deeprelax.geometry.layer import Layer
from ase_deeprelax.geometry.motion import (
    Motion,
    in_plane_strains,
    strain_projection,
)
from ase_deeprelax.geometry.snapshot import Snapshot, assign, innermost, interrupts_wait
from ase_deeprelax.geometry.vacuum import find_layer

# The values that `Freedom.kind` can have.
KINDS = ('bulk', 'layer', 'bulk, cell fixed', 'layer, cell fixed')


def unwrap(target: Atoms | Filter) -> Atoms:
    """The ``Atoms`` inside filters.

    Raises
    ------
    UnsupportedConstraintError
        There is none: a NEB, a dimer, a bare Optimizable.
    TypeError
        Not something an optimizer can be given.
    """
    inner = innermost(target)
    if isinstance(inner, Atoms):
        return inner
    name = type(inner).__name__
    if hasattr(inner, '__ase_optimizable__'):
        raise UnsupportedConstraintError(
            f'{name} is not one structure on its way into a minimum; a prediction needs '
            "Atoms or a filter around Atoms. Use one of ASE's own optimizers here"
        )
    raise TypeError(
        f'an optimizer works on Atoms or a filter around Atoms, not on {name}; '
        'ase_deeprelax.relax() takes pymatgen structures and lists'
    )


@dataclass(frozen=True, eq=False, repr=False)
class Freedom:
    """The directions in which a structure may move.

    Made by `find_freedom`.

    Attributes
    ----------
    atoms : ase.Atoms
        The structure itself, inside all filters.
    layer : Layer or None
        What `find_layer` found.
    cell_filter : StrainFilter, UnitCellFilter or None
        The filter that frees the cell.
    strain : StrainRule or None
        Which strains are free; None where the cell is fixed.
    labels : (n_atoms,) int64
        0 for free atoms, 1 for fixed ones, else see `constraint_labels`.
    movable : (n_atoms,) bool
        Atoms whose fractional coordinates may change, before constraints.
    """

    atoms: Atoms
    layer: Layer | None
    cell_filter: StrainFilter | UnitCellFilter | None
    strain: StrainRule | None
    labels: np.ndarray
    movable: np.ndarray

    def __repr__(self) -> str:
        n_fixed = int((self.labels != 0).sum())
        return f'Freedom({self.kind}, {len(self.labels)} atoms, {n_fixed} of them not free)'

    @cached_property
    def motion(self) -> Motion:
        """Fixed atoms and free strains, as the network is told.

        What ``FixSymmetry`` holds counts as free: a network that keeps the symmetry by
        itself need not be told.
        """
        free = np.zeros((6, 6))
        if self.strain is not None:
            free = replace(self.strain, rotations=[]).projection()
        return Motion(self.labels == 1, free)

    @cached_property
    def all_free(self) -> bool:
        """Whether all atoms and the whole cell of a crystal may move."""
        return (
            self.strain is not None
            and self.cell_filter is None
            and self.strain.frees_all
            and not self.atoms.constraints
        )

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        kind = 'bulk' if self.layer is None else 'layer'
        return f'{kind}, cell fixed' if self.strain is None else kind

    def allowed(
        self, deformation: np.ndarray, displacement: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The structure that is as close to a prediction as the freedom allows.

        Parameters
        ----------
        deformation : (3, 3)
            Symmetric, positive definite; acts on row vectors from the right.
        displacement : (n_atoms, 3), A
            At the present cell.

        Returns
        -------
        cell : (3, 3), A
        positions : (n_atoms, 3), A

        Raises
        ------
        UnsupportedConstraintError
            The constraints contradict each other.
        """
        atoms = self.atoms
        old, step = atoms.cell.array, np.array(displacement, float)
        if self.all_free:
            return old @ deformation, (atoms.positions + step) @ deformation
        cell, positions = old.copy(), atoms.positions.astype(float)
        if self.strain is not None:
            cell = self.strain.relaxed_cell(np.asarray(deformation, float))
        if (cell != old).any():
            change = np.linalg.solve(old, cell)
            step = step @ change
            if self.layer is None:
                positions = positions @ change
            else:
                cell, positions = self.layer.strain(atoms, change)
        if self.movable.all() and not atoms.constraints:
            return cell, positions + step
        frozen = Frozen(atoms, cell, positions, self.labels != 1)
        return cell, frozen.move(step + frozen.best_shift(step))

    @property
    def _innermost_filter(self) -> Atoms | Filter:
        return self.atoms if self.cell_filter is None else self.cell_filter

    def snapshot(self) -> Snapshot:
        """Copies of all that `write` changes, for `restore`."""
        return Snapshot.take(self._innermost_filter)

    def write(self, cell: np.ndarray, positions: np.ndarray) -> None:
        """Put a structure into the atoms; constraints were seen to by `allowed`."""
        with interrupts_wait():
            if isinstance(self.cell_filter, StrainFilter):
                # This filter keeps its strain itself and would fall back to it.
                total = np.linalg.solve(self.cell_filter.origcell, cell)
                self.cell_filter.strain[:] = full_3x3_to_voigt_6_strain(total)
            assign(self.atoms, cell, positions)

    def restore(self, snapshot: Snapshot) -> None:
        """Undo `write`, bit for bit."""
        snapshot.restore(self._innermost_filter)


def find_freedom(target: Atoms | Filter, relax_cell: RelaxCell | None = False) -> Freedom:
    """What filters, constraints and vacuum let a structure do.

    Parameters
    ----------
    target : ase.Atoms or ase.filters.Filter
        Filters may be nested.
    relax_cell : bool, str or array, optional
        For bare Atoms: what of the cell may change, see `check_relax_cell`. Default False,
        as everywhere in ASE. None: the whole cell, or none of it for a layer with fixed
        atoms, which is how slabs are relaxed.

    Returns
    -------
    Freedom

    Raises
    ------
    UnsupportedConstraintError
        A filter or constraint that a prediction cannot honour exactly, by name.
    StructureError
        Neither a crystal nor one layer, see `find_layer`.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase.filters import FrechetCellFilter
    >>> cu = bulk('Cu')
    >>> freedom = find_freedom(FrechetCellFilter(cu, hydrostatic_strain=True))
    >>> cell, positions = freedom.allowed(np.diag([1.0, 1.0, 1.331]), np.zeros((1, 3)))
    >>> round(float(np.linalg.det(cell) ** (1 / 3) / cu.cell.volume ** (1 / 3)), 6)
    1.1
    """
    atoms = unwrap(target)
    cell_filter, movable = _look_through(target, atoms)
    check_constraints(atoms)
    layer = find_layer(atoms)
    labels = constraint_labels(atoms, movable[: len(atoms)])
    if cell_filter is not None:
        relax_cell = bool(movable[-1])
    elif target is not atoms:
        relax_cell = False
    elif relax_cell is None:
        relax_cell = layer is None or not (labels == 1).any()
    relax_cell = check_relax_cell(relax_cell)
    strain = None
    if relax_cell is not False:
        is_mask = isinstance(relax_cell, np.ndarray)
        thickness = cell_filter is None and relax_cell is True and not atoms.constraints
        strain = StrainRule(
            cell=atoms.cell.array.copy(),
            free_strain=_free_strain(atoms, layer, relax_cell, thickness=thickness),
            mask=relax_cell.astype(float) if is_mask else np.ones((3, 3)),
            rotations=[
                c.rotations
                for c in atoms.constraints
                if isinstance(c, FixSymmetry) and c.do_adjust_cell
            ],
        )
        strain = replace(strain, **filter_settings(cell_filter))
        if np.abs(strain.projection()).max() < 1e-12:  # a mask that leaves nothing free
            strain = None
    return Freedom(atoms, layer, cell_filter, strain, labels, movable[: len(atoms)])


def _look_through(
    target: Any, atoms: Atoms
) -> tuple[StrainFilter | UnitCellFilter | None, np.ndarray]:
    """The cell filter, and which atoms, and three rows of the cell, filters let move."""
    chain = []
    while target is not atoms:
        chain.append(target)
        target = target.atoms
    rows, cell_filter = np.arange(len(atoms)), None  # what is visible, the cell's rows last
    for layer in reversed(chain):  # from the atoms outwards
        if type(layer) is Filter:
            rows = rows[layer.index]
        elif isinstance(layer, UnitCellFilter) and layer.atoms is atoms:
            _check_pressure(layer)
            cell_filter = layer
            rows = np.arange(len(atoms) + 3)
        elif isinstance(layer, StrainFilter) and len(chain) == 1:
            cell_filter = layer
            rows = np.arange(len(atoms), len(atoms) + 3)
        else:
            raise _refusal(layer, layer.atoms)
    movable = np.isin(np.arange(len(atoms) + 3), rows)
    if cell_filter is not None and movable[-3:].any() != movable[-3:].all():
        raise _refusal(chain[0], cell_filter)
    return cell_filter, movable


def _free_strain(
    atoms: Atoms,
    layer: Layer | None,
    relax_cell: bool | str | np.ndarray,
    *,
    thickness: bool,
) -> np.ndarray | None:
    """(6, 6): projection on the strains that layer and ``relax_cell`` leave; None: all."""
    if layer is None and not isinstance(relax_cell, str):
        return None
    normal = _normal(atoms) if layer is None else layer.normal
    if isinstance(relax_cell, str) and relax_cell == 'hydrostatic':
        flat = np.eye(3) if layer is None else np.eye(3) - np.outer(normal, normal)
        return strain_projection(flat[None])
    plane = in_plane_strains(normal, thickness=thickness)
    return strain_projection(plane)


def _normal(atoms: Atoms) -> np.ndarray:
    """(3,): the unit vector across the plane of the lattice vectors a and b."""
    normal = np.cross(atoms.cell[0], atoms.cell[1])
    return normal / np.linalg.norm(normal)


def _check_pressure(cell_filter: UnitCellFilter) -> None:
    pressure = cell_filter.scalar_pressure
    if pressure != 0.0:
        raise UnsupportedConstraintError(
            f'{type(cell_filter).__name__} has scalar_pressure={pressure} eV/A^3, but the '
            'models are trained at 0 GPa. With a calculator such a structure is relaxed '
            'ordinarily; without one, set the pressure to 0'
        )


def _refusal(outer: Filter, inner: Atoms | Filter) -> UnsupportedConstraintError:
    return UnsupportedConstraintError(
        f'{type(outer).__name__} around {type(inner).__name__}: what it leaves free is not '
        'known to a prediction; use Filter, StrainFilter, UnitCellFilter, ExpCellFilter or '
        'FrechetCellFilter, and cell filters directly around Atoms'
    )
