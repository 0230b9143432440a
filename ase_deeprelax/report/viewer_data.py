"""The data of the viewer: atoms, cells, displacements and bonds of a relaxation.

Atoms are shown in the cell, those on its faces, edges and corners on all of them, as
crystals are usually drawn; a drawn atom is a *site*: an atom and a lattice translation.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors
from ase.symbols import symbols2numbers

from ase_deeprelax.data.formula import chemical_formula
from ase_deeprelax.data.pair import fixed_atoms
from ase_deeprelax.geometry.layer import Layer
from ase_deeprelax.geometry.neighbors import neighbor_list
from ase_deeprelax.geometry.vacuum import layer_or_none

# An atom lies on a face of the cell, and is drawn on the opposite one too, within so many
# A of it, so that a crystal with displaced atoms is drawn whole; at most this part of the
# height of the cell.
NEAR_FACE = 0.3
NEAR_FACE_PART = 0.1
# A bond is drawn to the first shell of either atom, unless it is longer than a bond can be.
FIRST_SHELL = 1.15
LONGEST = 1.25
# Two of these elements have a bond whenever they are as near as in a molecule: the C-C bond
# of ethane is far longer than its C-H bonds, which are the first shell of both carbons.
NONMETALS = symbols2numbers('HBCNOFSiPSClAsSeBrTeI')
# The cell of a layer is drawn at least so high, A.
THINNEST = 1.0
# As many digits as can be seen or read, in A.
DIGITS = 6


def scene(
    name: str,
    before: Atoms,
    after: Atoms,
    sigma: Sequence[float] | np.ndarray | None = None,
    notes: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """One structure before and after a relaxation, ready for JSON.

    With rows as vectors, the site of atom ``k`` and the lattice translation ``o`` goes from
    ``positions[k] + o @ cell`` to ``(positions[k] + move[k] + o @ cell) @ deformation``.
    A layer is drawn in one piece, without images across its vacuum, in a cell whose vacuum
    vector is replaced: it is as long as the layer is thick, and the layer's middle plane
    lies at half of it. A wire or a molecule is drawn without images across its vacuum, in
    the middle of its cell.

    Parameters
    ----------
    name : str
    before, after : ase.Atoms
        With a cell; atoms in the same order and images.
    sigma : (n_atoms,) array, A, optional
        Uncertainty of each atom.
    notes : dict of str to str, optional
        Facts shown beside the crystal.

    Returns
    -------
    dict
        ``name, formula, notes``; ``cell, deformation`` (3, 3) and ``periodic`` (3,); of
        atoms ``numbers, positions, move`` (A, at the cell before), ``distance`` (the
        length of move), ``sigma`` (None without one), ``fixed`` (None where none is);
        ``sites`` [[atom, three integers]]; ``bonds`` [[site, site]]; ``elements``
        {number: {symbol, radius in A, color}}; ``files``: the two structures as they are,
        [{cell, positions, pbc}], or None for a crystal.

    Examples
    --------
    >>> from ase.build import bulk
    >>> cu = scene('Cu', bulk('Cu', a=3.5), bulk('Cu', a=3.6))
    >>> len(cu['sites']), cu['distance']
    (8, [0.0])
    """
    drawn = _drawn(before, after)
    deformation = np.linalg.solve(drawn.cell, drawn.cell_after)
    move = drawn.positions_after @ np.linalg.inv(deformation) - drawn.positions
    sites = _sites(drawn)
    fixed = fixed_atoms(before)
    return {
        'name': str(name),
        'formula': chemical_formula(before),
        'notes': notes or {},
        'cell': _rounded(drawn.cell),
        'deformation': _rounded(deformation, 9),
        'periodic': drawn.periodic.tolist(),
        'numbers': before.numbers.tolist(),
        'positions': _rounded(drawn.positions),
        'move': _rounded(move),
        'distance': _rounded(np.linalg.norm(move, axis=1)),
        'sigma': None if sigma is None else _finite(sigma),
        'fixed': fixed.tolist() if fixed.any() else None,
        'sites': sites,
        'bonds': _bonds(before.numbers, drawn, sites),
        'elements': {int(z): _element(z) for z in np.unique(before.numbers)},
        # Crystals are drawn as they are, others in another cell or another place.
        'files': None if drawn.periodic.all() else [_file(x) for x in (before, after)],
    }


@dataclass(frozen=True, eq=False)
class _Drawn:
    """A structure before and after, in the cells that are drawn."""

    positions: np.ndarray
    cell: np.ndarray
    positions_after: np.ndarray
    cell_after: np.ndarray
    periodic: np.ndarray


def periodic_vectors(atoms: Atoms) -> np.ndarray:
    """(3,) bool: vectors of the cell that are drawn, all but those along a vacuum.

    >>> from ase.build import bulk, mx2
    >>> [periodic_vectors(x).tolist() for x in (bulk('Cu'), mx2('MoS2', vacuum=10))]
    [[True, True, True], [True, True, False]]
    """
    return _periodic(atoms, layer_or_none(atoms))


def _periodic(atoms: Atoms, layer: Layer | None) -> np.ndarray:
    if layer is None:
        return atoms.pbc.copy()
    # Of all vectors but one, the plane of the layer has a part. In a badly skewed cell,
    # where it has a part of all three, the last one is left out.
    periodic = layer.basis[:2].any(axis=0)
    return np.array([True, True, False]) if periodic.all() else np.asarray(periodic)


def _drawn(before: Atoms, after: Atoms) -> _Drawn:
    layer = layer_or_none(before)
    periodic = _periodic(before, layer)
    if layer is None:
        to_middle = 0.5 - before.get_scaled_positions(wrap=False).mean(axis=0)
        lift = np.where(periodic, 0, to_middle)
        cells = before.cell.array, after.cell.array
        positions, ends = (
            before.positions + lift @ cells[0],
            after.positions + lift @ cells[1],
        )
        return _Drawn(positions, cells[0], ends, cells[1], periodic)
    positions = layer.in_one_piece(before)
    thickness = max(THINNEST, float(np.ptp(positions @ layer.normal)))
    lift = thickness / 2 - layer.middle(positions)
    drawn = []
    for atoms in (before, after):
        vectors = layer.basis[:2] @ atoms.cell.array
        normal = np.cross(*vectors)
        normal *= np.sign(normal @ layer.normal) / np.linalg.norm(normal)
        cell = np.empty((3, 3))
        cell[periodic] = _in_plane(layer, periodic, atoms.cell.array)
        cell[~periodic] = thickness * normal
        drawn += [layer.in_one_piece(atoms) + lift * normal, cell]
    return _Drawn(*drawn, periodic)


def _in_plane(layer: Layer, periodic: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """(2, 3): the vectors of the cell in the plane of the layer, in their order."""
    if layer.basis[:2, ~periodic].any():
        return layer.basis[:2] @ cell
    return cell[periodic]


def _sites(drawn: _Drawn) -> list[list[int]]:
    """Each atom within the cell, and again on the faces opposite to those it lies on.

    There is no other side across a vacuum.
    """
    to_frac = np.linalg.inv(drawn.cell)
    frac = drawn.positions @ to_frac
    # A column of the inverse has the length of one over a height of the cell.
    near = np.minimum(NEAR_FACE * np.linalg.norm(to_frac, axis=0), NEAR_FACE_PART)
    home = -np.floor(frac + near).astype(int) * drawn.periodic
    sites = []
    for atom, (inside, turn) in enumerate(zip(frac + home, home, strict=True)):
        on_face = (np.abs(inside) < near) & drawn.periodic
        both = [(0, 1) if on else (0,) for on in on_face]
        sites += [[atom, *(turn + more).tolist()] for more in itertools.product(*both)]
    return sites


def _bonds(
    numbers: np.ndarray, drawn: _Drawn, sites: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Pairs of sites whose atoms are first neighbours, or bonded as in a molecule."""
    radii = covalent_radii[numbers]
    reach = 2 * LONGEST * radii.max()
    cell, positions = drawn.cell.copy(), drawn.positions
    across = cell[~drawn.periodic]
    lengths = np.linalg.norm(across, axis=1, keepdims=True)
    cell[~drawn.periodic] += 2 * reach * across / lengths
    i, j, offset = neighbor_list(positions, cell, reach)
    length = np.linalg.norm(positions[j] + offset @ cell - positions[i], axis=1)
    nearest = np.full(len(numbers), np.inf)
    np.minimum.at(nearest, i, length)
    first = length <= FIRST_SHELL * np.maximum(nearest[i], nearest[j])
    usual, nonmetal = radii[i] + radii[j], np.isin(numbers, NONMETALS)
    as_in_molecules = nonmetal[i] & nonmetal[j] & (length <= FIRST_SHELL * usual)
    bonded = as_in_molecules | (first & (length <= LONGEST * usual))
    number = {tuple(site): k for k, site in enumerate(sites)}
    partners = [[] for _ in numbers]
    for a, b, turn in zip(i[bonded], j[bonded], offset[bonded], strict=True):
        partners[a].append((int(b), turn))
    ends = (
        (k, number.get((b, *(np.array(turn) + more).tolist())))
        for k, (a, *turn) in enumerate(sites)
        for b, more in partners[a]
    )
    return [[k, m] for k, m in ends if m is not None and k < m]


def _file(atoms: Atoms) -> dict[str, Any]:
    return {
        'cell': _rounded(atoms.cell.array),
        'positions': _rounded(atoms.positions),
        'pbc': atoms.pbc.tolist(),
    }


def _element(number: int) -> dict[str, Any]:
    rgb = (255 * jmol_colors[number]).round().astype(int).tolist()
    return {
        'symbol': chemical_symbols[number],
        'radius': round(float(np.clip(0.45 * covalent_radii[number], 0.25, 0.8)), 3),
        'color': rgb,
    }


def _rounded(array: np.ndarray, digits: int = DIGITS) -> list[Any]:
    # Adding zero turns -0.0 into 0.0.
    return (np.asarray(array, float).round(digits) + 0.0).tolist()


def _finite(values: Sequence[float] | np.ndarray) -> list[float | None] | None:
    """Values with None for what is not a number; None where none is."""
    numbers = np.asarray(values, float)
    if not np.isfinite(numbers).any():
        return None
    return [round(v, DIGITS) if np.isfinite(v) else None for v in numbers.tolist()]
