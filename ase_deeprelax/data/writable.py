"""Constraints, info and arrays are fitted to a file format; what is lost is named."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_properties
from ase.constraints import FixAtoms, FixCartesian, FixScaled
from ase.db.core import object_to_bytes
from ase.io.extxyz import key_val_dict_to_str, key_val_str_to_dict
from ase.io.jsonio import encode

from ase_deeprelax import keys
from ase_deeprelax.data.cif_sites import KINDS
from ase_deeprelax.data.disorder import share_of
from ase_deeprelax.data.formula import chemical_formula
from ase_deeprelax.data.structure_files import DATABASES
from ase_deeprelax.geometry.vacuum import layer_or_none

log = logging.getLogger(__name__)

# The constraints that ASE writes into a format; other formats hold none.
EVERY = ('traj', 'json', 'db', 'bundletrajectory')
HELD: dict[str, tuple[type, ...]] = {
    'extxyz': (FixAtoms, FixCartesian),
    'vasp': (FixAtoms, FixScaled),
}

# Names that extxyz files use for the structure itself and for results of a calculation. A
# reader would take what the input had under them for results of the relaxed structure.
RESERVED = {'Lattice', 'Properties', 'pbc', 'pos', 'species', 'move_mask', *all_properties}
# The names that a line of an extxyz file can hold, and the characters that it cannot.
NAME = re.compile(r'[A-Za-z_][\w.\-]*')
ODD = re.compile(r'[\x00-\x1f\x7f-\x9f\ud800-\udfff]')
# Where ASE's reader of CIF files keeps the shares of elements.
OCCUPANCY = 'occupancy'
# Formats that keep info as JSON.
AS_JSON = ('traj', 'bundletrajectory')
# Formats that keep those arrays alone that ASE knows by name, and these.
FEW_ARRAYS = ('traj', *DATABASES)
ARRAYS = {'numbers', 'positions', 'tags', 'momenta', 'masses'}
ARRAYS |= {'initial_magmoms', 'initial_charges'}

# Formats that keep the pbc of a structure.
PERIODIC = (*EVERY, 'extxyz')
# A name for what is told of vacuum, beside those of info and arrays.
THIN = 'vacuum'

_named: set[tuple[str, str]] = set()


def writable(atoms: Atoms, form: str) -> Atoms:
    r"""The atoms with what a format can hold of constraints, info and arrays.

    What is left out is logged as a warning, once for each name. ``FixScaled``, the
    selective dynamics of POSCAR files, and ``FixCartesian`` stand in for each other in
    formats that know one of them, where both mean the same: all directions are fixed, or
    the lattice vectors lie along x, y and z. Line breaks in text become blanks for extxyz,
    occupancies that are not known become 1 for CIF, and objects of ASE, as a space group,
    become dictionaries for databases.

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
    >>> salt = bulk('NaCl', 'rocksalt', a=5.6)
    >>> salt.info = {'title': 'two\nlines', 'source': 'a paper'}
    >>> writable(salt, 'extxyz').info
    {'title': 'two lines', 'source': 'a paper'}
    >>> salt = bulk('NaCl', 'rocksalt', a=5.6, cubic=True)
    >>> salt.set_constraint(FixScaled([1, 2], [True, True, False]))
    >>> writable(salt, 'extxyz').constraints
    [FixCartesian(indices=[1, 2], [True, True, False])]
    """
    _warn_of_thin_vacuum(atoms, form)
    atoms = _with_held_constraints(atoms, form)
    info, arrays = dict(atoms.info), dict(atoms.arrays)
    if form == 'extxyz':
        info = {name: _readable(value) for name, value in info.items()}
        info = {name: value for name, value in info.items() if _in_a_line(name, value)}
        arrays = {name: x for name, x in arrays.items() if _in_columns(name, x)}
    elif form in DATABASES:
        info = {name: _plain(value) for name, value in info.items()}
        info = {name: value for name, value in info.items() if _is_data(name, value)}
    elif form in AS_JSON:
        info = {name: value for name, value in info.items() if _is_json(name, value)}
    elif form == 'cif' and isinstance(info.get(OCCUPANCY), Mapping):
        info[OCCUPANCY] = _with_numbers(info[OCCUPANCY])
    if form in FEW_ARRAYS:
        arrays = {name: x for name, x in arrays.items() if name in ARRAYS or _is_kept(name)}
    lost = [f'info {str(name)!r:.40}' for name in atoms.info if name not in info]
    lost += [f'array {str(name)!r:.40}' for name in atoms.arrays if name not in arrays]
    if untold := [name for name in lost if (name, form) not in _named]:
        _named.update((name, form) for name in untold)
        log.warning(
            '%s: %s files cannot hold %s; it is left out, of other structures as well',
            chemical_formula(atoms),
            form,
            ', '.join(untold),
        )
    if not lost and all(info[name] is value for name, value in atoms.info.items()):
        return atoms
    calculator, atoms = atoms.calc, atoms.copy()
    atoms.info, atoms.arrays, atoms.calc = info, arrays, calculator
    return atoms


def _warn_of_thin_vacuum(atoms: Atoms, form: str) -> None:
    """Warn of a layer that a reader of the file will take for a crystal."""
    if form in PERIODIC or (~atoms.pbc).sum() != 1 or layer_or_none(atoms) is None:
        return
    read = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
    if layer_or_none(read) is None and (THIN, form) not in _named:
        _named.add((THIN, form))
        log.warning(
            '%s: %s files say that all vectors are periodic, and this layer has too little '
            'vacuum to be known as one without its pbc; widen the box of layers before '
            'other programs read the file: atoms.center(vacuum=10, axis=2)',
            chemical_formula(atoms),
            form,
        )


def _readable(value: Any) -> Any:
    """Text without signs that no line can hold; anything else as it is."""
    return ODD.sub(' ', value).strip() if isinstance(value, str) else value


def _with_numbers(occupancy: Any) -> Any:
    """Shares of elements on kinds of sites, as numbers; anything else as it is."""
    if isinstance(occupancy, Mapping):
        return {name: _with_numbers(shares) for name, shares in occupancy.items()}
    return share_of(occupancy) if isinstance(occupancy, str) else occupancy


def _in_a_line(name: Any, value: Any) -> bool:
    """Whether an extxyz file can hold an entry of ``info``, and what follows it."""
    if not isinstance(name, str) or not NAME.fullmatch(name) or name in RESERVED:
        return False
    if value is None or (isinstance(value, str) and not value):
        return False
    if isinstance(value, np.ndarray) and not value.size:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # ASE warns and writes nothing
            line = key_val_dict_to_str({name: value, 'beside': 1})
        read = key_val_str_to_dict(line)
    except Exception:  # noqa: BLE001 - values are of any kind
        return False
    return '\n' not in line and read.keys() == {name, 'beside'} and read['beside'] == 1


def _in_columns(name: str, array: np.ndarray) -> bool:
    """Whether an extxyz file gives an array of the atoms back."""
    if name in ('numbers', 'positions'):
        return True
    if not NAME.fullmatch(name) or name in RESERVED or array.ndim > 2 or not array.size:
        return False
    if array.dtype.kind in 'SU' or all(isinstance(word, str) for word in array.flat):
        words = array.ravel().astype(str)
        return all(word and not re.search(r'\s', word) for word in words)
    if array.dtype.kind == 'i':  # the reader knows no larger ones
        return bool((np.abs(array) <= np.iinfo(np.int32).max).all())
    return array.dtype.kind in 'bf'


def _is_kept(name: Any) -> bool:
    """Whether an array was made by a reader of files, or is in ``info`` as well."""
    return name == KINDS or keys.is_ours(name)


def _plain(value: Any) -> Any:
    """A value as databases take it: numbers of Python, dictionaries of ASE's objects."""
    if isinstance(value, np.generic):
        return value.item()
    return value.todict() if hasattr(value, 'todict') else value


def _is_data(name: Any, value: Any) -> bool:
    """Whether a row of a database can hold an entry of ``info``."""
    try:
        object_to_bytes(value)
    except Exception:  # noqa: BLE001 - values are of any kind
        return False
    return isinstance(name, str)


def _is_json(name: Any, value: Any) -> bool:
    """Whether an entry of ``info`` can be written as JSON."""
    try:
        encode({name: value})
    except Exception:  # noqa: BLE001 - values are of any kind
        return False
    return True


def _with_held_constraints(atoms: Atoms, form: str) -> Atoms:
    """The atoms with the constraints that a file format can hold."""
    if not atoms.constraints or form in EVERY:
        return atoms
    held = HELD.get(form, ())
    kept, lost = [], []
    for constraint in atoms.constraints:
        if _holds_nothing(constraint):  # ASE reads one per atom from extxyz files
            continue
        if not isinstance(constraint, held):
            constraint = _equivalent(constraint, atoms)  # noqa: PLW2901
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
                chemical_formula(atoms),
                form,
            )
    if kept == atoms.constraints:
        return atoms
    atoms = atoms.copy()
    atoms.set_constraint(kept)
    return atoms


def _holds_nothing(constraint: Any) -> bool:
    """Whether a constraint fixes atoms along none of the axes."""
    known = isinstance(constraint, (FixScaled, FixCartesian))
    return known and not np.any(constraint.mask)


def _equivalent(constraint: Any, atoms: Atoms) -> Any:
    """``FixScaled`` or ``FixCartesian`` as another one that means the same, if there is."""
    if not isinstance(constraint, (FixScaled, FixCartesian)):
        return constraint
    indices, mask = constraint.get_indices(), np.array(constraint.mask, dtype=bool)
    if mask.all():
        return FixAtoms(indices)
    cell = atoms.cell.array
    along = np.abs(cell) > 1e-9 * np.abs(cell).max()
    if not np.array_equal(along, np.eye(3, dtype=bool)):
        return constraint
    other = FixCartesian if isinstance(constraint, FixScaled) else FixScaled
    return other(indices, tuple(mask.tolist()))
