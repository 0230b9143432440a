"""The search for vacuum: which structures are layers, and which are none."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from numpy.typing import ArrayLike

from ase_deeprelax.errors import StructureError
from ase_deeprelax.geometry.lattice import reduced_basis
from ase_deeprelax.geometry.layer import Layer
from ase_deeprelax.geometry.neighbors import neighbor_list

# A wider gap between planes of nuclei is vacuum, A. The widest gaps by benchmarks/vacuum.py
# are 7.3 to 43 A in 31,635 layers, at most 4.4 A in 909 porous crystals, and at most 6.9 A
# in 3,397 layered ones, save stacks (see below) and 349 that hold vacuum (58 below 10 A).
VACUUM_GAP = 7.0
# A gap between this and `VACUUM_GAP` is doubtful: 20 of 11,243 unrelaxed crystals of the
# Materials Project, of WBM and of Pandey et al. have one, A.
DOUBTFUL_GAP = 5.0
# Parts of a layer that lie farther apart than this are two layers, A. Gaps within those
# 31,635 are at most 5.2 A, save six of 9 A and more between two sheets.
LAYER_GAP = 6.0
# Like sheets with equal gaps up to this are a crystal with open galleries, A. DFT closes
# the galleries of 137 of 143 such inputs (Pandey et al.).
STACK_GAP = 9.0
# Gaps that differ by no more than this are equal, A.
EQUAL_GAPS = 0.5
# Rounding, also that of a file, makes a gap wider by at most this, A.
ROUNDING = 5e-4
# Atoms closer than this many times the sum of their covalent radii are bonded.
BOND = 1.3

# Cells in which a plane with a larger Miller index could be vacuum are reduced first.
_SMALL_INDEX = 4
# The largest index that is searched in the reduced cell: that of all planes more than
# `VACUUM_GAP` apart, unless a reduced vector is longer than 140 A.
_LARGEST_INDEX = 20
# A gap between all atoms is a gap between some of them: so many are looked at first.
_FEW_ATOMS = 64


def find_layer(atoms: Atoms) -> Layer | None:
    """The layer that a structure with vacuum along one lattice vector is.

    Where pbc is False along one vector, there is a layer whatever the box. Where pbc is
    True along all three, planes of nuclei with a gap wider than `VACUUM_GAP` tell a layer,
    whatever the choice of lattice vectors.

    Parameters
    ----------
    atoms : ase.Atoms
        Periodic along three or two vectors, at least one atom, a cell with a volume.

    Returns
    -------
    Layer or None
        None for a crystal: no vacuum, or a stack of several sheets of one composition with
        equal gaps up to `STACK_GAP`.

    Raises
    ------
    StructureError
        Vacuum along more than one vector (a wire, a molecule, a cluster), more than one
        layer in the cell, or no box along the vector whose pbc is False.

    Examples
    --------
    >>> from ase.build import bulk, mx2
    >>> find_layer(bulk('Cu')) is None
    True
    >>> layer = find_layer(mx2('MoS2', vacuum=10))
    >>> layer.found_by, layer.normal.round(6).tolist()
    ('pbc', [0.0, 0.0, 1.0])
    """
    open_axes = np.flatnonzero(~atoms.pbc)
    if len(open_axes) > 1:
        what = 'a wire' if len(open_axes) == 2 else 'a molecule or cluster'
        raise StructureError(
            f'pbc is {atoms.pbc.tolist()}: this is {what}; the models relax crystals '
            '(pbc True along all vectors) and layers (along two); set atoms.pbc if this '
            'is one'
        )
    if len(open_axes) == 1:
        return _layer_by_pbc(atoms, int(open_axes[0]))
    planes, gaps = _planes_apart(atoms.positions, atoms.cell.array)
    if len(planes) == 0:
        return None
    if len(planes) > 1:
        raise StructureError(_no_layer(planes, gaps, 3))
    return _layer_by_vacuum(atoms, planes[0])


def layer_or_none(atoms: Atoms) -> Layer | None:
    """As `find_layer`, but None for all that is no layer, whether usable or not.

    >>> from ase.build import molecule, mx2
    >>> layer_or_none(mx2('MoS2', vacuum=10)).normal.round(6).tolist()
    [0.0, 0.0, 1.0]
    >>> layer_or_none(molecule('H2O')) is None
    True
    """
    if atoms.cell.rank < 3:
        return None
    try:
        return find_layer(atoms)
    except StructureError:
        return None


def doubtful_gap(atoms: Atoms) -> float:
    """The widest gap in a crystal that may be vacuum, A, or 0.

    It is nearly as wide as `VACUUM_GAP`, or one of the equal gaps of a stack.

    Examples
    --------
    >>> from ase.build import bulk, fcc111
    >>> slab = fcc111('Cu', (1, 1, 4), vacuum=3.2, periodic=True)
    >>> doubtful_gap(bulk('Cu')), round(doubtful_gap(slab), 6)
    (0.0, 6.4)
    """
    _, gaps = _planes_apart(atoms.positions, atoms.cell.array, DOUBTFUL_GAP)
    return float(gaps.max(initial=0.0))


def split_at_widest_gap(fractions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gaps between planes of atoms, and turns that join all atoms across the other gaps.

    Parameters
    ----------
    fractions : (n_atoms,)
        Heights in units of the period.

    Returns
    -------
    gaps : (n_atoms,)
        Periodic images included, in units of the period.
    turns : (n_atoms,) int64
        Periods to add to each; zeros where the atoms are in one piece already.

    Examples
    --------
    >>> gaps, turns = split_at_widest_gap(np.array([0.1, 0.9]))
    >>> gaps.round(6).tolist(), turns.tolist()
    ([0.8, 0.2], [1, 0])
    """
    places = np.sort(fractions % 1.0)
    gaps = np.append(places[1:], places[0] + 1.0) - places
    widest = int(gaps.argmax())
    middle = places[widest] + gaps[widest] / 2
    turns = -np.floor(fractions - middle).astype(np.int64)
    return gaps, turns - turns.min()


def _wider(gaps: ArrayLike, least: float) -> np.ndarray:
    """Whether gaps are wider than a limit, A, by more than rounding makes them.

    Vacuum of just 7 A is common, and its rounding errors depend on the orientation.
    """
    return np.asarray(gaps) > least + ROUNDING


def _layer_by_vacuum(atoms: Atoms, plane: np.ndarray) -> Layer | None:
    """The layer along a lattice plane, (3,) Miller indices, or None for a stack."""
    cell = atoms.cell.array
    basis = _basis_of(plane, cell)
    normal, height = _across(basis @ cell)
    gaps, turns = split_at_widest_gap(atoms.positions @ normal / height)
    gaps *= height
    layer = Layer(basis, normal, turns, float(gaps.max()), 'vacuum')
    apart = gaps[_wider(gaps, LAYER_GAP)]
    if len(apart) == 1:
        return layer
    equal = not _wider(np.ptp(apart), EQUAL_GAPS)
    if equal and not _wider(apart.max(), STACK_GAP) and _alike(atoms, layer):
        return None
    raise StructureError(_several_layers(apart))


def _alike(atoms: Atoms, layer: Layer) -> bool:
    """Whether the sheets that wide gaps part have the same composition."""
    heights = layer.in_one_piece(atoms) @ layer.normal
    order = heights.argsort()
    borders = np.flatnonzero(_wider(np.diff(heights[order]), LAYER_GAP)) + 1
    sheets = [np.sort(sheet) for sheet in np.split(atoms.numbers[order], borders)]
    return all(np.array_equal(sheet, sheets[0]) for sheet in sheets)


def _layer_by_pbc(atoms: Atoms, axis: int) -> Layer:
    """The layer of a structure that is not periodic along the cell vector ``axis``."""
    basis = np.roll(np.eye(3, dtype=np.int64), 2 - axis, axis=0)
    rows = basis @ atoms.cell.array
    normal, height = _across(rows)
    if height < 1e-6:
        raise StructureError(
            f'pbc is {atoms.pbc.tolist()}, and there is no box along cell vector '
            f'{"abc"[axis]} ({atoms.cell.array[axis].tolist()}); make one with '
            f'atoms.center(vacuum=10, axis={axis})'
        )
    heights = atoms.positions @ normal
    inner = np.diff(np.sort(heights))
    apart = inner[_wider(inner, LAYER_GAP)]
    vacuum = height - float(np.ptp(heights))
    layer = Layer(basis, normal, np.zeros(len(atoms), dtype=np.int64), vacuum, 'pbc')
    if len(apart) > 0:  # The border of the box may cut the layer.
        gaps, turns = split_at_widest_gap(heights / height)
        gaps *= height
        layer = Layer(basis, normal, turns, float(gaps.max()), 'pbc')
        if not _bonded_across(atoms, layer):
            raise StructureError(_several_layers(apart, 1))
        apart = gaps[_wider(gaps, LAYER_GAP)]
        if len(apart) > 1:
            raise StructureError(_several_layers(apart))
    if not _wider(layer.vacuum, VACUUM_GAP):
        layer = replace(layer, vacuum=np.inf)
    in_plane = np.array([rows[0], rows[1], normal])  # One A high: no room for a gap.
    planes, gaps = _planes_apart(layer.in_one_piece(atoms), in_plane)
    if len(planes) > 0:
        raise StructureError(_no_layer(planes, gaps, 2))
    return layer


def _bonded_across(atoms: Atoms, layer: Layer) -> bool:
    """Whether bonds hold together what the border of the box cuts."""
    radii = BOND * covalent_radii[atoms.numbers]
    longest = 2 * radii.max()
    positions, cell = layer.standard_box(atoms, 2 * longest)
    i, j, offset = neighbor_list(positions, cell, longest)
    across = layer.turns[i] != layer.turns[j]
    i, j, offset = i[across], j[across], offset[across]
    vectors = positions[j] + offset @ cell - positions[i]
    return bool((np.linalg.norm(vectors, axis=1) < radii[i] + radii[j]).any())


def _no_layer(planes: np.ndarray, gaps: np.ndarray, dimensions: int) -> str:
    """The message for vacuum that leaves a structure less than two dimensions."""
    left = dimensions - np.linalg.matrix_rank(planes)
    what = 'a wire' if left == 1 else 'a molecule or cluster in a box'
    where = 'within the layer' if dimensions == 2 else 'along several lattice vectors'
    return (
        f'there is vacuum {where} (a gap of {gaps.max():.1f} A between atoms, more than '
        f'{VACUUM_GAP:g} A is vacuum): this is {what}; the models relax crystals and '
        'layers; if this is one, make its cell smaller'
    )


def _several_layers(gaps: np.ndarray, more: int = 0) -> str:
    """The message for more than one layer; ``more`` than there are gaps between them."""
    return (
        f'{len(gaps) + more} layers share this cell, with gaps of '
        f'{", ".join(f"{gap:.1f}" for gap in gaps)} A between them (more than '
        f'{LAYER_GAP:g} A parts two layers, or a molecule from a slab); relax each alone, '
        'or move the atoms of one layer into one piece'
    )


def _across(rows: np.ndarray) -> tuple[np.ndarray, float]:
    """Unit vector across the first two rows, and how far the third goes along it, A."""
    normal = np.cross(rows[0], rows[1])
    area = np.linalg.norm(normal)
    if area == 0:
        raise StructureError(
            f'the cell vectors {rows[0].tolist()} and {rows[1].tolist()} of the layer '
            'span no plane; set a cell'
        )
    normal /= area
    height = float(normal @ rows[2])
    return (normal, height) if height >= 0 else (-normal, -height)


def _planes_apart(
    positions: np.ndarray, cell: np.ndarray, least: float = VACUUM_GAP
) -> tuple[np.ndarray, np.ndarray]:
    """Lattice planes between which there is a gap wider than ``least``.

    No gap is wider than the period of its planes. The Miller indices of planes with a long
    period are small: for most crystals there are none to look at.

    Parameters
    ----------
    positions : (n_atoms, 3), A
    cell : (3, 3), A
    least : float, A

    Returns
    -------
    planes : (n, 3) int64
        Miller indices without a common factor, one of each pair (hkl), (-h-k-l).
    gaps : (n,), A
    """
    nothing = np.zeros((0, 3), dtype=np.int64), np.zeros(0)
    reach = (np.sqrt(np.einsum('ij,ij->i', cell, cell)) / least).astype(np.int64)
    if not reach.any():
        return nothing
    basis = None
    if reach.max() > _SMALL_INDEX:
        basis = reduced_basis(cell)
        cell = basis @ cell
        reach = (np.sqrt(np.einsum('ij,ij->i', cell, cell)) / least).astype(np.int64)
    planes = _miller_indices(*reach.clip(max=_LARGEST_INDEX).tolist())
    reciprocal = planes @ _inverse(cell).T
    periods = 1 / np.sqrt(np.einsum('ij,ij->i', reciprocal, reciprocal))
    chosen = np.flatnonzero(periods > least)
    for every in dict.fromkeys((1 + len(positions) // _FEW_ATOMS, 1)):
        if len(chosen) == 0:
            return nothing
        places = np.sort(positions[::every] @ reciprocal[chosen].T % 1.0, axis=0)
        gaps = places[0] + 1.0 - places[-1]
        if len(places) > 1:
            gaps = np.maximum(gaps, (places[1:] - places[:-1]).max(axis=0))
        gaps *= periods[chosen]
        wide = _wider(gaps, least)
        chosen, gaps = chosen[wide], gaps[wide]
    planes = planes[chosen]
    if basis is not None:
        planes = planes @ np.rint(np.linalg.inv(basis)).astype(np.int64).T
    return planes, gaps


def _inverse(cell: np.ndarray) -> np.ndarray:
    try:
        return np.linalg.inv(cell)
    except np.linalg.LinAlgError:
        raise StructureError(
            f'the cell {cell.tolist()} has no volume; set a cell'
        ) from None


@cache
def _miller_indices(*largest: int) -> np.ndarray:
    """(n, 3) int64: those up to ``largest``, without a common factor, one of each pair."""
    sides = [2 * k + 1 for k in largest]
    every = np.indices(sides).reshape(3, -1).T - np.array(largest)
    half = every[len(every) // 2 + 1 :]  # those after (0, 0, 0)
    return half[np.gcd.reduce(half, axis=1) == 1]


def _basis_of(plane: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Two lattice vectors in a lattice plane and one that leads to the next plane.

    Those of the cell where two of its vectors lie in the plane, otherwise short ones.
    """
    if np.abs(plane).sum() == 1:
        axis = int(np.abs(plane).argmax())
        return np.roll(np.eye(3, dtype=np.int64), 2 - axis, axis=0)
    normal = _inverse(cell) @ plane
    normal /= np.linalg.norm(normal)
    # Once the lattice is drawn out along the normal, vectors in the plane are the shortest.
    return reduced_basis(cell + 99 * np.outer(cell @ normal, normal))
