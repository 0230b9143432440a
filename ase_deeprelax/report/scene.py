"""A relaxation as the numbers that a picture of it needs: what moved, where, how far.

Atoms are shown in the cell, those on its faces, edges and corners on all of them, as
crystals are usually drawn; a drawn atom is a *site*: an atom and a lattice translation.
"""

import itertools

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors

from ase_deeprelax.data.neighbors import neighbor_list

# Fractional distance below which an atom lies on a face of the cell.
ON_FACE = 2e-3
# A bond is drawn to the first shell of either atom, unless it is longer than a bond can be.
FIRST_SHELL = 1.15
LONGEST = 1.25
# As many digits as can be seen or read, in A.
DIGITS = 6


def scene(name, before, after, sigma=None, notes=None):
    """One crystal before and after a relaxation, ready for JSON.

    With rows as vectors, the site of atom ``k`` and the lattice translation ``o`` goes from
    ``positions[k] + o @ cell`` to ``(positions[k] + move[k] + o @ cell) @ deformation``.

    Parameters
    ----------
    name : str
    before, after : ase.Atoms
        Periodic along three vectors that span a volume; atoms in the same order and images.
    sigma : (n_atoms,) array, A, optional
        Uncertainty of each atom.
    notes : dict of str to str, optional
        What to tell beside the picture.

    Returns
    -------
    dict
        ``name, formula, volumes`` (before, after, A^3), ``notes``; ``cell, deformation``
        (3, 3); of atoms ``numbers, positions, move`` (A, at the cell before), ``distance``
        (the length of move), ``sigma`` (None without one); ``sites`` [[atom, three
        integers]]; ``bonds`` [[site, site]]; ``elements`` {number: {symbol, radius in A,
        color}}.

    Examples
    --------
    >>> from ase.build import bulk
    >>> cu = scene('Cu', bulk('Cu', a=3.5), bulk('Cu', a=3.6))
    >>> len(cu['sites']), cu['distance']
    (8, [0.0])
    """
    cell, positions = before.cell.array, before.positions
    deformation = np.linalg.solve(cell, after.cell.array)
    move = after.positions @ np.linalg.inv(deformation) - positions
    sites = _sites(positions, cell)
    return {
        'name': str(name),
        'formula': before.get_chemical_formula(),
        'volumes': [round(atoms.get_volume(), 3) for atoms in (before, after)],
        'notes': notes or {},
        'cell': _rounded(cell),
        'deformation': _rounded(deformation, 9),
        'numbers': before.numbers.tolist(),
        'positions': _rounded(positions),
        'move': _rounded(move),
        'distance': _rounded(np.linalg.norm(move, axis=1)),
        'sigma': None if sigma is None else _finite(sigma),
        'sites': sites,
        'bonds': _bonds(before, sites),
        'elements': {int(z): _element(z) for z in np.unique(before.numbers)},
    }


def _sites(positions, cell):
    """Each atom within the cell, and again on the faces opposite to those it lies on."""
    frac = np.linalg.solve(cell.T, positions.T).T
    home = -np.floor(frac + ON_FACE).astype(int)
    sites = []
    for atom, (inside, turn) in enumerate(zip(frac + home, home, strict=True)):
        both = [(0, 1) if abs(x) < ON_FACE else (0,) for x in inside]
        sites += [[atom, *(turn + more).tolist()] for more in itertools.product(*both)]
    return sites


def _bonds(atoms, sites):
    """Pairs of sites whose atoms are first neighbours in the crystal."""
    radii = covalent_radii[atoms.numbers]
    cell, positions = atoms.cell.array, atoms.positions
    i, j, offset = neighbor_list(positions, cell, 2 * LONGEST * radii.max())
    length = np.linalg.norm(positions[j] + offset @ cell - positions[i], axis=1)
    nearest = np.full(len(atoms), np.inf)
    np.minimum.at(nearest, i, length)
    first = length <= FIRST_SHELL * np.maximum(nearest[i], nearest[j])
    bonded = first & (length <= LONGEST * (radii[i] + radii[j]))
    number = {tuple(site): k for k, site in enumerate(sites)}
    partners = [[] for _ in atoms]
    for a, b, turn in zip(i[bonded], j[bonded], offset[bonded], strict=True):
        partners[a].append((int(b), turn))
    ends = (
        (k, number.get((b, *(np.array(turn) + more).tolist())))
        for k, (a, *turn) in enumerate(sites)
        for b, more in partners[a]
    )
    return [[k, m] for k, m in ends if m is not None and k < m]


def _element(number):
    rgb = (255 * jmol_colors[number]).round().astype(int).tolist()
    return {
        'symbol': chemical_symbols[number],
        'radius': round(float(np.clip(0.45 * covalent_radii[number], 0.25, 0.8)), 3),
        'color': rgb,
    }


def _rounded(array, digits=DIGITS):
    # Adding zero turns -0.0 into 0.0.
    return (np.asarray(array, float).round(digits) + 0.0).tolist()


def _finite(values):
    """Values with None for what is not a number; None where none is."""
    values = np.asarray(values, float)
    if not np.isfinite(values).any():
        return None
    return [round(v, DIGITS) if np.isfinite(v) else None for v in values.tolist()]
