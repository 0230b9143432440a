"""CIF files: each data block with sites gives a structure, or the reason why not.

ASE parses the files and applies the symmetry. This module finds what ASE would take for
another crystal than the file means: settings of space groups, symbols in capitals, two
elements on one place, and formulas with elements that no site has.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from typing import IO, Any

from ase import Atoms
from ase.data import atomic_numbers
from ase.geometry import find_mic
from ase.io.cif import CIFBlock, parse_cif

from ase_deeprelax.data.cif_sites import KINDS, merge_rounded
from ase_deeprelax.data.cif_symmetry import group_of, operations_of
from ase_deeprelax.data.formula import element_counts
from ase_deeprelax.errors import StructureError

# How a CIF file says that something is not known, or does not apply.
UNKNOWN = ('?', '.')
SYMBOL, LABEL = '_atom_site_type_symbol', '_atom_site_label'
OCCUPANCY = '_atom_site_occupancy'
# These columns tell sites that are no atoms, and hydrogen atoms that have no site.
FLAG, HYDROGENS = '_atom_site_calc_flag', '_atom_site_attached_hydrogens'
FRACTIONAL, CARTESIAN = (
    [f'_atom_site_{kind}_{axis}' for axis in 'xyz'] for kind in ('fract', 'cartn')
)
FORMULA = '_chemical_formula_sum'
# These tags give the space group. In each tuple, the first one that a file has counts.
OPERATIONS = ('_space_group_symop_operation_xyz', '_symmetry_equiv_pos_as_xyz')
NUMBER = ('_space_group_it_number', '_symmetry_int_tables_number')
NAME = (
    '_space_group_name_h-m_alt',
    '_symmetry_space_group_name_h-m',
    '_space_group_name_h-m_full',
)
HALL = ('_space_group_name_hall', '_symmetry_space_group_name_hall')
# All tags on symmetry begin so. Those that count sites or operations say nothing of it.
SYMMETRY = ('_space_group_', '_symmetry_')
COUNTING = ('_id', '_multiplicity', '_order')
# ASE warns of these tags, although the operations say the same.
SETTING = (
    '_space_group_crystal_system',
    '_symmetry_cell_setting',
    '_symmetry_space_group_setting',
)


def read_cif(file: IO[bytes]) -> list[Atoms | StructureError]:
    """The structure of each data block that has sites, or why there is none.

    Parameters
    ----------
    file : file object

    Returns
    -------
    list of ase.Atoms or StructureError
        Partial occupancies are kept as ASE keeps them, see `disorder.check_ordered`. Images
        of a site that rounding has parted are one atom, see `cif_sites.merge_rounded`.
    """
    found: list[Atoms | StructureError] = []
    try:
        for block in parse_cif(file):
            known = _known_tags(block)
            if known.keys() & {*FRACTIONAL, *CARTESIAN}:
                found.append(_structure_or_reason(known))
    except AssertionError:  # as the parser says it
        found.append(StructureError('no CIF file: it does not begin with data_'))
    except (IndexError, RuntimeError, ValueError) as error:
        reason = 'it ends within a text' if isinstance(error, IndexError) else error
        found.append(StructureError(f'the CIF file is damaged ({reason})'))
    return found


def _known_tags(block: Mapping[str, Any]) -> dict[str, Any]:
    """The tags with a value, as files of the first form of CIF write them.

    Later ones have a point in place of the first underscore, as in ``_cell.length_a``.
    """
    tags: dict[str, Any] = {}
    for tag, value in block.items():
        name = tag.replace('.', '_', 1)
        # A space group whose name is '?' is there, but not known.
        if value not in UNKNOWN or name in NAME:
            tags.setdefault(name, value)
    return tags


def _structure_or_reason(tags: dict[str, Any]) -> Atoms | StructureError:
    try:
        return merge_rounded(_structure(tags))
    except StructureError as error:
        return error
    except Exception as error:  # noqa: BLE001 - the reader raises anything
        reason = StructureError(f'cannot be read ({type(error).__name__}: {error})')
        reason.__cause__ = error
        return reason


def _structure(tags: dict[str, Any]) -> Atoms:
    """The structure of a data block whose unknown values are left out."""
    _check_sites(tags)
    block = CIFBlock('', tags)
    if block.get_cellpar() is not None:
        block = CIFBlock('', _with_operations(tags, block.get_cell().angles().tolist()))
    elif FRACTIONAL[0] in tags:
        raise StructureError('its cell is incomplete: _cell_length_a to _cell_angle_gamma')
    _check_formula(tags.get(FORMULA), set(block.get_symbols()))
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'scaled_positions')  # told by `_check_places`
        atoms = block.get_atoms()
    if OCCUPANCY not in tags and KINDS in atoms.arrays:
        _check_places(block, atoms)
    return atoms


def _check_sites(tags: Mapping[str, Any]) -> None:
    """Refuse sites without an element or without coordinates."""
    columns = [tags.get(name, []) for name in FRACTIONAL]
    if not all(columns):
        columns = [tags.get(name, []) for name in CARTESIAN]
    kinds = tags.get(SYMBOL, tags.get(LABEL, []))
    if not all((kinds, *columns)):
        raise StructureError('its sites have no elements or no coordinates')
    labels = tags.get(LABEL, kinds)
    for label, flag in zip(labels, tags.get(FLAG, ()), strict=False):
        if flag == 'dum':
            raise StructureError(f'site {label} is a dummy ({FLAG}); leave it out')
    for label, more in zip(labels, tags.get(HYDROGENS, ()), strict=False):
        if str(more) not in ('0', *UNKNOWN):
            raise StructureError(
                f'site {label}: {more} atoms of hydrogen are attached to it ({HYDROGENS}), '
                'and have no places; add their sites'
            )
    for label, kind, *place in zip(labels, kinds, *columns, strict=True):
        _check_element(str(kind), label, by_symbol=SYMBOL in tags)
        for value in place:
            if isinstance(value, str):
                raise StructureError(
                    f'site {label}: the coordinate {value!r} is no number; write one, or '
                    'leave out the site where the crystal is meant without it'
                )


def _check_element(kind: str, label: Any, *, by_symbol: bool) -> None:
    """Refuse what is no element, and two capitals that may be one element or two."""
    found = re.search('[A-Z][a-z]?', kind)
    symbol = found[0] if found else kind
    if symbol not in atomic_numbers and symbol != 'D':
        raise StructureError(
            f'site {label}: {symbol!r} is no element; write one in the column {SYMBOL}'
        )
    capitals = re.match('[A-Z]{2}', kind) if by_symbol else None
    if capitals and capitals[0].title() in atomic_numbers:
        raise StructureError(
            f'site {label}: {capitals[0]} may be {capitals[0].title()} or {symbol}; write '
            f'one of them in the column {SYMBOL}'
        )


def _check_formula(formula: Any, symbols: set[str]) -> None:
    """Refuse a structure without an element that the formula of the file has."""
    named = element_counts(str(formula)).keys() & atomic_numbers.keys()
    if missing := sorted(named - symbols):
        raise StructureError(
            f'its formula {formula!r} has {", ".join(missing)}, and no site has; add the '
            f'sites, or correct {FORMULA}'
        )


def _with_operations(tags: Mapping[str, Any], angles: list[float]) -> dict[str, Any]:
    """The tags with number and operations of the space group, and no other words on it."""
    number = next((int(tags[tag]) for tag in NUMBER if tag in tags), None)
    hall = next((str(tags[tag]) for tag in HALL if tag in tags), None)
    symbols = [str(tags[tag]) for tag in NAME if tag in tags]
    known = [symbol for symbol in symbols if symbol not in UNKNOWN]
    nothing_else = number is None and hall is None
    symbol = next(iter(known or (symbols if nothing_else else ())), None)
    operations = next((tags[tag] for tag in OPERATIONS if tags.get(tag)), None)
    others = {*NAME, *NUMBER, *HALL, *OPERATIONS, *SETTING}
    if operations is not None:
        number = number or (group_of(symbol) if symbol else None) or 1
    elif not nothing_else or symbol is not None:
        number, operations = operations_of(number, symbol, angles, hall)
    else:
        _check_no_symmetry(tags.keys() - others)
        number, operations = 1, ['x,y,z']
    sites = {tag: value for tag, value in tags.items() if tag not in others}
    # The names by which ASE knows them.
    return {**sites, '_space_group.it_number': number, OPERATIONS[0]: operations}


def _check_no_symmetry(tags: Collection[str]) -> None:
    """Refuse tags on symmetry that are not read: without it the crystal is another one."""
    for tag in sorted(tags):
        if tag.startswith(SYMMETRY) and not tag.endswith(COUNTING):
            raise StructureError(
                f'its symmetry is given by {tag} alone, which is not read; add the '
                f'operations ({OPERATIONS[0]})'
            )


def _check_places(block: CIFBlock, atoms: Atoms) -> None:
    """Refuse two elements on one place, of which ASE keeps the first."""
    sites = block.get_unsymmetrized_structure()
    for kind in set(range(len(sites))) - set(atoms.arrays[KINDS].tolist()):
        apart = atoms.positions - sites.positions[kind]
        nearest = find_mic(apart, atoms.cell, pbc=True)[1].argmin()
        there, here = atoms.symbols[nearest], sites.symbols[kind]
        if there != here:
            label = block.get(LABEL, sites.symbols)[kind]
            raise StructureError(
                f'site {label}: {here} lies where {there} is; leave out one of them, or '
                f'give their shares in the column {OCCUPANCY}'
            )
