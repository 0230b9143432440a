"""Constraints in files: what a format can hold is kept, the rest is named."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian, FixScaled

log = logging.getLogger(__name__)

# The constraints that ASE writes into a format; other formats hold none.
EVERY = ('traj', 'json', 'db', 'bundletrajectory')
HELD: dict[str, tuple[type, ...]] = {
    'extxyz': (FixAtoms, FixCartesian),
    'vasp': (FixAtoms, FixScaled, FixCartesian),
}

_named: set[tuple[str, str]] = set()


def as_writable(atoms: Atoms, form: str) -> Atoms:
    """The atoms with the constraints that a file format can hold.

    Selective dynamics of POSCAR files (``FixScaled``) become ``FixCartesian`` for formats
    that know only that, where both mean the same: all directions are held, or the lattice
    vectors lie along x, y and z. What is left out is logged as a warning, once per kind.

    Parameters
    ----------
    atoms : ase.Atoms
        Not changed.
    form : str
        Name of the format as in ``ase.io.formats``: 'extxyz', 'vasp', 'traj', 'cif'.

    Returns
    -------
    ase.Atoms
        The same object where it needs no change.

    Examples
    --------
    >>> from ase.build import bulk
    >>> salt = bulk('NaCl', 'rocksalt', a=5.6, cubic=True)
    >>> salt.set_constraint(FixScaled([1, 2], [True, True, False]))
    >>> as_writable(salt, 'extxyz').constraints
    [FixCartesian(indices=[1, 2], [True, True, False])]
    """
    if not atoms.constraints or form in EVERY:
        return atoms
    held = HELD.get(form, ())
    kept, lost = [], []
    for constraint in atoms.constraints:
        if not isinstance(constraint, held):
            constraint = _cartesian(constraint, atoms)  # noqa: PLW2901
        if isinstance(constraint, held):
            kept.append(constraint)
        else:
            lost.append(type(constraint).__name__)
    for name in dict.fromkeys(lost):
        if (name, form) not in _named:
            _named.add((name, form))
            log.warning(
                'constraint %s of %s is not written: files of the format %s cannot hold '
                "it; write '.traj' or ase's '.json' to keep it",
                name,
                atoms.symbols,
                form,
            )
    if kept == atoms.constraints:
        return atoms
    atoms = atoms.copy()
    atoms.set_constraint(kept)
    return atoms


def _cartesian(constraint: Any, atoms: Atoms) -> Any:
    """``FixScaled`` as the constraint on x, y, z that means the same, if there is one."""
    if not isinstance(constraint, FixScaled):
        return constraint
    mask = np.array(constraint.mask, dtype=bool)
    cell = atoms.cell.array
    along = np.abs(cell) > 1e-9 * np.abs(cell).max()
    if mask.all():
        return FixAtoms(constraint.get_indices())
    if np.array_equal(along, np.eye(3, dtype=bool)):
        return FixCartesian(constraint.get_indices(), tuple(mask.tolist()))
    return constraint
