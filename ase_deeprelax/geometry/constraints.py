"""What constraints on atoms leave of a step, and which atoms they fix altogether."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.constraints import (
    FixAtoms,
    FixCartesian,
    FixCom,
    FixConstraint,
    FixedLine,
    FixedMode,
    FixedPlane,
    FixScaled,
    FixSubsetCom,
    FixSymmetry,
)

from ase_deeprelax.errors import StructureError, UnsupportedConstraintError

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
# Several constraints act one after the other, at most so often, until none changes a step.
MAX_SWEEPS = 500


def check_constraints(atoms: Atoms) -> None:
    """Refuse constraints that are not in `SUPPORTED`, or were made for other atoms.

    Raises
    ------
    UnsupportedConstraintError, StructureError
    """
    for constraint in atoms.constraints:
        if type(constraint) not in SUPPORTED:
            raise UnsupportedConstraintError(
                f'constraint {type(constraint).__name__} cannot be honoured exactly by a '
                'prediction in one step. With a calculator such a structure is relaxed '
                'ordinarily; without one, remove the constraint'
            )
        count = _atoms_of(constraint)
        if count not in (None, len(atoms)):
            raise StructureError(
                f'constraint {type(constraint).__name__} was made for {count} atoms, and '
                f'there are {len(atoms)}; set it anew'
            )
        index = getattr(constraint, 'index', None)
        if not isinstance(index, np.ndarray):
            continue
        absent = index[(index >= len(atoms)) | (index < -len(atoms))]
        if len(absent):
            raise StructureError(
                f'constraint {type(constraint).__name__} names atom {absent[0]}, and there '
                f'are {len(atoms)} atoms, from 0 to {len(atoms) - 1}; set it anew'
            )


def _atoms_of(constraint: FixConstraint) -> int | None:
    """How many atoms a constraint on all atoms was made for; None for other constraints."""
    if isinstance(constraint, FixedMode):
        return len(constraint.mode) // 3
    if isinstance(constraint, FixSymmetry):
        return len(constraint.symm_map[0])
    return None


def constraint_labels(atoms: Atoms, movable: np.ndarray) -> np.ndarray:
    """(n_atoms,) int64: 0 for free atoms, 1 for fixed ones, and a number for each other set
    of constraints, so that atoms of different numbers are not equivalent.

    One constraint on many atoms counts as many constraints on one atom each, as files of
    VASP with selective dynamics are read.

    Parameters
    ----------
    atoms : ase.Atoms
    movable : (n_atoms,) bool
        False for atoms that a filter hides: they are fixed.

    Examples
    --------
    >>> from ase.build import bulk
    >>> si = bulk('Si')
    >>> si.set_constraint([FixCartesian(k, [True, True, False]) for k in range(2)])
    >>> constraint_labels(si, np.ones(2, dtype=bool)).tolist()
    [2, 2]
    """
    labels = np.zeros(len(atoms), dtype=np.int64)
    fixed = ~movable
    holders: dict[tuple, np.ndarray] = {}
    for k, constraint in enumerate(atoms.constraints):
        index = getattr(constraint, 'index', None)
        if index is None:
            continue
        if isinstance(constraint, FixAtoms) or (
            isinstance(constraint, (FixScaled, FixCartesian)) and np.all(constraint.mask)
        ):
            fixed[index] = True
        else:
            held = holders.setdefault(_hold(constraint, k), np.zeros(len(atoms), bool))
            held[index] = True
    if holders:
        sets = np.array(list(holders.values()))
        numbers = np.unique(sets, axis=1, return_inverse=True)[1].ravel()
        labels = np.where(sets.any(axis=0), 2 + numbers, 0)
    labels[fixed] = 1
    return labels


def _hold(constraint: FixConstraint, k: int) -> tuple:
    """A key that is equal for constraints that hold each of their atoms in the same way.

    A constraint that ties atoms to each other has a key of its own, with its number ``k``.
    """
    if isinstance(constraint, (FixScaled, FixCartesian)):
        return type(constraint), *np.asarray(constraint.mask).tolist()
    if isinstance(constraint, (FixedLine, FixedPlane)):
        return type(constraint), *np.asarray(constraint.dir).tolist()
    return type(constraint), k


class Frozen:
    """Constraints at the new cell; atoms that are not movable stay to the last bit."""

    def __init__(
        self, atoms: Atoms, cell: np.ndarray, positions: np.ndarray, movable: np.ndarray
    ):
        self.constraints = atoms.constraints
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

    def move(self, step: np.ndarray) -> np.ndarray:
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
            f'found no step that satisfies these constraints together: {names}; remove one '
            'of them'
        )

    def best_shift(self, step: np.ndarray) -> np.ndarray:
        """(3,): the rigid shift after which least of the step is taken away, A."""
        taken = [
            (s - (self.move(s) - self.start.positions)).ravel()
            for s in (*(np.ones((len(step), 1)) * axis for axis in np.eye(3)), step)
        ]
        axes = np.array(taken[:3]).T
        axes[np.abs(axes) < 1e-9] = 0.0  # rounding must not look like a direction
        return np.linalg.lstsq(axes, -taken[3], rcond=1e-8)[0]
