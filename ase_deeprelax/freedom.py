"""Which degrees of freedom filters and constraints leave to a one-shot prediction.

What is frozen is frozen in the coordinates of ``ase.filters.FrechetCellFilter``, so that
a prediction and a refinement through that filter move in the same space:

* the cell changes by a deformation whose logarithm is projected on what ``mask``,
  ``hydrostatic_strain``, ``constant_volume`` and ``FixSymmetry`` allow;
* all atoms, fixed ones too, follow the cell (they keep their fractional coordinates), and
  a constraint acts on the step that is left. Where the cell stays, a fixed atom therefore
  stays where it was, to the last bit.

A crystal has no origin: where constraints hold some atoms, the prediction is first shifted
rigidly to the place where they have least to take away.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import (
    FixAtoms,
    FixCartesian,
    FixCom,
    FixedLine,
    FixedMode,
    FixedPlane,
    FixScaled,
    FixSubsetCom,
    FixSymmetry,
)
from ase.filters import Filter, StrainFilter, UnitCellFilter
from ase.spacegroup.symmetrize import symmetrize_rank2
from ase.stress import full_3x3_to_voigt_6_strain, voigt_6_to_full_3x3_stress

from ase_deeprelax.errors import UnsupportedConstraintError

# Linear in the step, so that projecting a single large one is exact.
SUPPORTED = (
    FixAtoms,
    FixCartesian,
    FixCom,
    FixedLine,
    FixedMode,
    FixedPlane,
    FixScaled,
    FixSubsetCom,
    FixSymmetry,
)
MAX_SWEEPS = 500


def unwrap(target):
    """The ``Atoms`` inside filters.

    Raises
    ------
    UnsupportedConstraintError
        There is none: a NEB, a dimer, a bare Optimizable.
    TypeError
        Not something an optimizer can be given.
    """
    inner = target
    while isinstance(inner, Filter):
        inner = inner.atoms
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


@dataclass(frozen=True, eq=False)
class Freedom:
    """The directions in which a structure may move.

    Made by `find_freedom`.

    Attributes
    ----------
    atoms : ase.Atoms
        The structure itself, inside all filters.
    cell_filter : StrainFilter, UnitCellFilter or None
        The filter that frees the cell.
    movable : (n_atoms,) bool
        Atoms whose fractional coordinates may change, before constraints.
    cell_moves : bool
    """

    atoms: Atoms
    cell_filter: Any
    movable: np.ndarray
    cell_moves: bool

    def allowed(self, deformation, displacement):
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
        cell = self._allowed_cell(np.asarray(deformation, float))
        positions = atoms.positions.astype(float)
        if (cell != atoms.cell.array).any():
            change = np.linalg.solve(atoms.cell.array, cell)
            positions, step = positions @ change, displacement @ change
        else:
            step = np.array(displacement, float)
        frozen = _Frozen(atoms, cell, positions, self.movable)
        return cell, frozen.move(step + frozen.best_shift(step))

    def state(self):
        """Copies of all that `write` changes, for `restore`."""
        strain = getattr(self.cell_filter, 'strain', None)
        return (
            self.atoms.cell.array.copy(),
            self.atoms.positions.copy(),
            None if strain is None else strain.copy(),
        )

    def write(self, cell, positions):
        """Put a structure into the atoms; constraints were seen to by `allowed`."""
        if isinstance(self.cell_filter, StrainFilter):
            # This filter keeps its strain itself and would fall back to it.
            total = np.linalg.solve(self.cell_filter.origcell, cell)
            self.cell_filter.strain[:] = full_3x3_to_voigt_6_strain(total)
        _assign(self.atoms, cell, positions)

    def restore(self, state):
        """Undo `write`, bit for bit."""
        cell, positions, strain = state
        if strain is not None:
            self.cell_filter.strain[:] = strain
        _assign(self.atoms, cell, positions)

    def _allowed_cell(self, deformation):
        cell = self.atoms.cell.array.copy()
        if not self.cell_moves:
            return cell
        cell_filter = self.cell_filter
        if isinstance(cell_filter, StrainFilter):
            origin, mask = (
                cell_filter.origcell,
                voigt_6_to_full_3x3_stress(cell_filter.mask),
            )
        elif cell_filter is not None:
            origin, mask = cell_filter.orig_cell, cell_filter.mask
        else:
            origin, mask = cell, np.ones((3, 3))
        origin = np.asarray(origin, float)
        # Exactly nothing where nothing happened, so that such a cell stays to the last bit.
        same = np.array_equal(origin, cell)
        start = np.zeros((3, 3)) if same else np.linalg.solve(origin, cell) - np.eye(3)
        rule = _StrainRule(
            mask=np.asarray(mask, float),
            hydrostatic=getattr(cell_filter, 'hydrostatic_strain', False),
            constant_volume=getattr(cell_filter, 'constant_volume', False),
            symmetric=isinstance(cell_filter, StrainFilter),
            start=start,
            rotations=[
                c.rotations
                for c in self.atoms.constraints
                if isinstance(c, FixSymmetry) and c.do_adjust_cell
            ],
            cell=cell,
        )
        total = rule.total(_symmetric(np.log, deformation))
        return cell + origin @ (total - start)


def find_freedom(target, cell_moves=False):
    """What filters and constraints let a structure do.

    Parameters
    ----------
    target : ase.Atoms or ase.filters.Filter
        Filters may be nested.
    cell_moves : bool
        For bare Atoms: whether the cell may change (default no, as everywhere in ASE).

    Returns
    -------
    Freedom

    Raises
    ------
    UnsupportedConstraintError
        A filter or constraint that a prediction cannot honour exactly, by name.

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
    if cell_filter is not None:
        if movable[-3:].any() != movable[-3:].all():
            raise _refusal(chain[0], cell_filter)
        cell_moves = movable[-1]
    for constraint in atoms.constraints:
        if type(constraint) not in SUPPORTED:
            raise UnsupportedConstraintError(
                f'constraint {type(constraint).__name__} cannot be honoured exactly by a '
                'prediction in one step; remove it, or attach a calculator, with which '
                'such a structure is relaxed ordinarily'
            )
    return Freedom(atoms, cell_filter, movable[: len(atoms)], bool(cell_moves))


@dataclass(frozen=True, eq=False)
class _StrainRule:
    """Which strains a cell filter allows, on the logarithm of the deformation."""

    mask: np.ndarray  # (3, 3), entries of the deformation from the filter's first cell
    hydrostatic: bool
    constant_volume: bool
    symmetric: bool
    start: np.ndarray  # (3, 3), deformation so far from the filter's first cell, less 1
    rotations: list  # of FixSymmetry, in fractional coordinates
    cell: np.ndarray

    def total(self, strain):
        """(3, 3): deformation from the filter's first cell less 1, given a log strain."""
        # Each projection may disturb the other's subspace: alternate until neither does.
        for _ in range(MAX_SWEEPS):
            projected = self._by_filter(self._by_symmetry(strain))
            if np.abs(projected - strain).max() < 1e-15:
                break
            strain = projected
        if not self.constant_volume:
            return self._apply(strain)
        # The exponential of a traceless strain keeps the volume, its masked part does so
        # only to first order: finish with Newton steps along what the mask leaves.
        diagonal = self.mask * np.eye(3)
        target = np.linalg.det(np.eye(3) + self.start)
        for _ in range(20):
            total = self._apply(strain)
            excess = np.log(np.linalg.det(np.eye(3) + total) / target)
            if abs(excess) < 1e-14 or not diagonal.any():
                break
            strain = strain - diagonal * excess / diagonal.sum()
        return total if abs(excess) < 1e-12 else self.start

    def _apply(self, strain):
        change = _symmetric(np.expm1, strain)
        total = self.start + change + self.start @ change
        if self.symmetric:
            total = (total + total.T) / 2
        return total * self.mask

    def _by_filter(self, strain):
        strain = strain * ((self.mask != 0) & (self.mask.T != 0))
        diagonal = (self.mask != 0) * np.eye(3)
        if not (self.hydrostatic or self.constant_volume) or not diagonal.any():
            return np.zeros((3, 3)) if self.hydrostatic else strain
        mean = (strain * diagonal).sum() / diagonal.sum() * diagonal
        if self.hydrostatic:
            return np.zeros((3, 3)) if self.constant_volume else mean
        return strain - mean

    def _by_symmetry(self, strain):
        for rotations in self.rotations:
            strain = symmetrize_rank2(
                self.cell, np.linalg.inv(self.cell), strain, rotations
            )
            strain = (strain + strain.T) / 2
        return strain


class _Frozen:
    """Constraints and hidden atoms, at the new cell."""

    def __init__(self, atoms, cell, positions, movable):
        # What is wholly fixed comes last, and stays to the last bit.
        self.constraints = sorted(atoms.constraints, key=lambda c: type(c) is FixAtoms)
        self.movable = movable
        self.tolerance = 1e-12 * max(1.0, np.abs(positions).max(initial=0.0))
        # Constraints ask for masses, cell and the positions that they start from.
        self.start = Atoms(
            numbers=atoms.numbers,
            positions=positions,
            cell=cell,
            pbc=atoms.pbc,
            masses=atoms.get_masses(),
        )

    def move(self, step):
        """(n_atoms, 3): positions after as much of the step as is allowed, A."""
        start = self.start.positions
        new = start + np.where(self.movable[:, None], step, 0.0)
        for _ in range(MAX_SWEEPS):
            before = new.copy()
            for constraint in self.constraints:
                constraint.adjust_positions(self.start, new)
            new[~self.movable] = start[~self.movable]
            if np.abs(new - before).max(initial=0.0) < self.tolerance:
                return new
        names = ', '.join(type(c).__name__ for c in self.constraints)
        raise UnsupportedConstraintError(
            f'no step satisfies these constraints together: {names}; remove one of them'
        )

    def best_shift(self, step):
        """(3,): the rigid shift after which least of the step is taken away, A."""
        if len(step) == 0 or (self.movable.all() and not self.constraints):
            return np.zeros(3)
        taken = [
            (s - (self.move(s) - self.start.positions)).ravel()
            for s in (*(np.ones((len(step), 1)) * axis for axis in np.eye(3)), step)
        ]
        axes = np.array(taken[:3]).T
        axes[np.abs(axes) < 1e-9] = 0.0  # rounding must not look like a direction
        return np.linalg.lstsq(axes, -taken[3], rcond=1e-8)[0]


def _symmetric(function, matrix):
    """A function of a symmetric matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * function(values)) @ vectors.T


def _assign(atoms, cell, positions):
    atoms.set_cell(cell, apply_constraint=False)
    current = atoms.arrays['positions']
    if current.flags.writeable and current.dtype == positions.dtype:
        current[...] = positions  # in place, as ASE's optimizers do
    else:
        atoms.arrays['positions'] = positions.copy()


def _check_pressure(cell_filter):
    pressure = cell_filter.scalar_pressure
    if pressure != 0.0:
        raise UnsupportedConstraintError(
            f'{type(cell_filter).__name__} has scalar_pressure={pressure} eV/A^3, but the '
            'models are trained at 0 GPa; set it to 0, or attach a calculator, with which '
            'such a structure is relaxed ordinarily'
        )


def _refusal(outer, inner):
    return UnsupportedConstraintError(
        f'{type(outer).__name__} around {type(inner).__name__}: what it leaves free is not '
        'known to a prediction; use Filter, StrainFilter, UnitCellFilter, ExpCellFilter or '
        'FrechetCellFilter, and cell filters directly around Atoms'
    )
