"""Structures that cannot be predicted, and those unlike all in training."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from ase_deeprelax.data.disorder import check_ordered
from ase_deeprelax.errors import StructureError, UnsupportedElementError
from ase_deeprelax.geometry.element_volumes import usual_volume
from ase_deeprelax.geometry.lattice import compact
from ase_deeprelax.geometry.layer import Layer
from ase_deeprelax.geometry.neighbors import close_pairs
from ase_deeprelax.geometry.symmetry import Symmetry, primitive_size
from ase_deeprelax.geometry.vacuum import doubtful_gap, find_layer

# Less room than this is no crystal but a flat or missing cell, A^3 per atom.
SMALLEST_VOLUME = 1.0
# Beyond this a coordinate in double precision no longer resolves 1e-6 A, A.
FARTHEST = 1e9
# What the training sets hold (targets and inputs together, without 0.1 % of outliers).
Ranges = Mapping[str, Collection[float]]
TRAINED: Ranges = {'n_atoms': (1, 64), 'volume_ratio': (0.4, 3.0)}
# Memory that a network of width 128 takes at its peak, measured, bytes per edge, and the
# radius that edges are estimated with, A.
BYTES_PER_EDGE = 6_000
EDGE_RADIUS = 6.0

# The search for close pairs is fastest with this radius, A.
SEARCH_RADIUS = 1.5


def check_structure(
    atoms: Atoms,
    elements: Collection[int] | None = None,
    *,
    ranges: Ranges | None = None,
    min_distance: float = 0.5,
) -> str:
    """Refuse what cannot be relaxed; say what lies outside the training range.

    Parameters
    ----------
    atoms : ase.Atoms
    elements : collection of int, optional
        Atomic numbers that the model was trained on; default: all of the periodic table.
    ranges : dict of str to (low, high), optional
        Range of ``n_atoms`` and ``volume_ratio`` seen in training, see `ModelCard`;
        default `TRAINED`. A supercell counts as the primitive cell that it repeats.
    min_distance : float, A
        Atoms closer than this are refused; default 0.5.

    Returns
    -------
    str
        Why the structure lies outside the training range, or ''.

    Raises
    ------
    UnsupportedElementError
        Atoms without an element, or of elements never seen in training.
    StructureError
        No atoms; neither a crystal nor one layer (see `find_layer`); numbers that are not
        finite; no volume; disorder; atoms on top of each other; more than fits into memory.

    Examples
    --------
    >>> from ase.build import bulk
    >>> check_structure(bulk('Cu'))
    ''
    >>> check_structure(bulk('Cu', a=12.0))
    'volume 37.31 times that which crystals of these elements have on average, ...'
    """
    check_cell(atoms)
    layer = find_layer(atoms)
    check_contents(atoms, layer, elements, min_distance=min_distance)
    return outside_ranges(atoms, layer, ranges)


def check_cell(atoms: Atoms) -> None:
    """The part of `check_structure` that comes before `find_layer`.

    Raises
    ------
    StructureError
        No atoms, no periodic vector, numbers that are not finite, or no volume.
    """
    if len(atoms) == 0:
        raise StructureError('0 atoms: there is nothing to relax')
    if not atoms.pbc.any():
        raise StructureError(
            'pbc is False along all vectors: the models relax crystals and layers; set '
            'atoms.pbc = True if this is one'
        )
    _check_numbers(atoms)
    _check_volume(atoms)


def check_contents(
    atoms: Atoms,
    layer: Layer | None,
    elements: Collection[int] | None = None,
    *,
    min_distance: float = 0.5,
) -> None:
    """The part of `check_structure` that comes after `find_layer` and refuses.

    Parameters
    ----------
    atoms : ase.Atoms
        It passed `check_cell`.
    layer : Layer or None
        What `find_layer` found.
    elements, min_distance
        As in `check_structure`.

    Raises
    ------
    UnsupportedElementError, StructureError
    """
    _check_elements(atoms.numbers, elements)
    check_ordered(atoms)
    _check_size(len(atoms), room(atoms, layer))
    _check_distances(atoms, *close_box(atoms, layer), min_distance)


def outside_ranges(
    atoms: Atoms,
    layer: Layer | None,
    ranges: Ranges | None = None,
    symmetry: Symmetry | None = None,
) -> str:
    """Why a structure lies outside the training range, or ''.

    Parameters
    ----------
    atoms : ase.Atoms
        It passed `check_contents`.
    layer : Layer or None
        What `find_layer` found.
    ranges
        As in `check_structure`.
    symmetry : Symmetry, optional
        That of the structure, if it is known already: to search a large one takes time.
    """
    ranges = TRAINED if ranges is None else ranges
    size = len(atoms)
    if size > max(ranges.get('n_atoms', (math.inf,))):
        # A supercell is the crystal, or the layer, that it repeats.
        size = symmetry.n_primitive if symmetry else primitive_size(atoms, layer=layer)
    reasons = []
    low, high = ranges.get('n_atoms', (0, math.inf))
    if not low <= size <= high:
        reasons.append(f'{size} atoms, in training {low:g} to {high:g}')
    low, high = ranges.get('volume_ratio', TRAINED['volume_ratio'])
    ratio = volume_ratio(atoms, layer)
    if ratio < low or ratio > high:  # not where an element has no usual volume: it is NaN
        reasons.append(
            f'volume {ratio:.2f} times that which crystals of these elements have on '
            f'average, in training {low:g} to {high:g} times'
        )
    gap = doubtful_gap(atoms) if layer is None else 0.0
    if gap:
        reasons.append(
            f'a gap of {gap:.1f} A between planes of atoms is taken for a part of the '
            'crystal; if it is vacuum, set atoms.pbc to False along it'
        )
    return '; '.join(reasons)


def room(atoms: Atoms, layer: Layer | None) -> float:
    """Volume of a crystal, A^3, or of a layer without its vacuum."""
    return float(atoms.cell.volume) if layer is None else layer.solid_volume(atoms)


def volume_ratio(atoms: Atoms, layer: Layer | None) -> float:
    """`room` over the volume that crystals of these elements have on average, or NaN."""
    return room(atoms, layer) / usual_volume(atoms.numbers)


def close_box(atoms: Atoms, layer: Layer | None) -> tuple[np.ndarray, np.ndarray]:
    """Wrapped positions and the cell that close pairs are searched in, A."""
    if layer is None:
        return compact(atoms.positions, atoms.cell.array)[:2]
    return compact(*layer.standard_box(atoms, 2 * EDGE_RADIUS))[:2]


def _label(atoms: Atoms, index: int) -> str:
    return f'atom {index} ({_symbol(atoms.numbers[index])})'


def _symbol(number: int) -> str:
    return (
        chemical_symbols[number] if 0 <= number < len(chemical_symbols) else f'Z={number}'
    )


def first_not_finite(atoms: Atoms) -> str:
    """'atom 17 (O): position x is nan' for the first such number, or ''."""
    bad = np.argwhere(~np.isfinite(atoms.positions))
    if len(bad) == 0:
        return ''
    atom, axis = bad[0]
    value = atoms.positions[atom, axis]
    return f'{_label(atoms, atom)}: position {"xyz"[axis]} is {value}'


def _check_numbers(atoms: Atoms) -> None:
    cell, positions = atoms.cell.array, atoms.positions
    if not np.isfinite(cell).all():
        row, axis = np.argwhere(~np.isfinite(cell))[0]
        raise StructureError(
            f'cell vector {"abc"[row]}: component {"xyz"[axis]} is {cell[row, axis]}; set '
            'a finite cell'
        )
    largest = np.abs(positions).max()
    if largest < FARTHEST:  # False for nan
        return
    where = first_not_finite(atoms)
    if where:
        raise StructureError(f'{where}; set it or remove the atom')
    atom, axis = np.argwhere(np.abs(positions) >= FARTHEST)[0]
    raise StructureError(
        f'{_label(atoms, atom)}: position {"xyz"[axis]} is {positions[atom, axis]:.3g} A, '
        'too far from the cell for double precision; use atoms.wrap() before saving'
    )


def _check_volume(atoms: Atoms) -> None:
    cell = atoms.cell.array
    volume = abs(np.linalg.det(cell))
    lengths = np.sqrt(np.einsum('ij,ij->i', cell, cell))
    if lengths.min() == 0:
        row = int(lengths.argmin())
        remedy = 'set a cell'
        if not atoms.pbc[row]:
            remedy = f'make a box with atoms.center(vacuum=10, axis={row})'
        raise StructureError(f'cell vector {"abc"[row]} is zero, cell volume 0; {remedy}')
    if volume <= 1e-12 * lengths.prod():
        raise StructureError('cell volume 0: its vectors lie in one plane; set a cell')
    room = volume / len(atoms)
    if room < SMALLEST_VOLUME:
        raise StructureError(
            f'cell volume is {room:.3g} A^3 per atom, less than {SMALLEST_VOLUME:g}; check '
            'the cell and its unit (A)'
        )


def _check_elements(numbers: np.ndarray, elements: Collection[int] | None) -> None:
    dummies = np.flatnonzero((numbers < 1) | (numbers >= len(chemical_symbols)))
    if len(dummies):
        index = dummies[0]
        raise UnsupportedElementError(
            f'atom {index} has atomic number {numbers[index]} ({_symbol(numbers[index])}), '
            'no element; remove dummy atoms'
        )
    if elements is None:
        return
    known = set(elements)
    unseen = sorted(set(numbers.tolist()) - known)
    if unseen:
        names = ', '.join(chemical_symbols[z] for z in unseen)
        index = int(np.flatnonzero(numbers == unseen[0])[0])
        raise UnsupportedElementError(
            f'never seen in training: {names} (first: atom {index}); the model knows '
            f'{len(known)} elements, train or choose one that knows these'
        )


def _check_size(n: int, volume: float) -> None:
    edges = n * n / volume * 4 / 3 * math.pi * EDGE_RADIUS**3
    needed = edges * BYTES_PER_EDGE
    # Every machine that runs torch has 1 GB, and to look up how much it has takes time.
    if needed < 1e9:
        return
    if not hasattr(os, 'sysconf'):  # Windows does not say how much memory there is.
        return
    there = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    if needed > there:
        raise StructureError(
            f'{n} atoms need about {needed / 1e9:.0f} GB, this machine has '
            f'{there / 1e9:.0f} GB; use a smaller cell'
        )


def name_pair(atoms: Atoms, i: int, j: int) -> str:
    """'atom 3 (O) and atom 17 (Ti)', as errors name two atoms."""
    if i == j:
        return f'{_label(atoms, i)} and its own periodic image'
    first, second = sorted((i, j))
    return f'{_label(atoms, first)} and {_label(atoms, second)}'


def _check_distances(
    atoms: Atoms, positions: np.ndarray, cell: np.ndarray, min_distance: float
) -> None:
    i, j, distance = close_pairs(positions, cell, max(min_distance, SEARCH_RADIUS))
    # Rounding errors do not decide about a distance that is just the limit.
    if len(i) == 0 or round(distance[0], 6) >= min_distance:
        return
    pair = name_pair(atoms, i[0], j[0])
    if distance[0] < 1e-3:
        raise StructureError(
            f'{pair} sit on one site (periodic images count); remove one of them'
        )
    raise StructureError(
        f'{pair} are {distance[0]:.3f} A apart, less than {min_distance:g} A; remove one '
        'or move them apart'
    )
