"""Small molecules and atoms on the top of a slab."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.geometry import find_mic

# Positions relative to the atom that binds, which comes first, A.
ADSORBATES = {
    'H': [[0, 0, 0]],
    'O': [[0, 0, 0]],
    'N': [[0, 0, 0]],
    'C': [[0, 0, 0]],
    'S': [[0, 0, 0]],
    'F': [[0, 0, 0]],
    'Cl': [[0, 0, 0]],
    'OH': [[0, 0, 0], [0.78, 0, 0.57]],
    'CO': [[0, 0, 0], [0, 0, 1.15]],
    'NO': [[0, 0, 0], [0, 0, 1.17]],
    'NH': [[0, 0, 0], [0, 0, 1.03]],
    'CH': [[0, 0, 0], [0, 0, 1.10]],
    'OH2': [[0, 0, 0], [0.76, 0, 0.59], [-0.76, 0, 0.59]],
    'NH3': [[0, 0, 0], [0.94, 0, 0.38], [-0.47, 0.81, 0.38], [-0.47, -0.81, 0.38]],
    'CH3': [[0, 0, 0], [1.03, 0, 0.36], [-0.51, 0.89, 0.36], [-0.51, -0.89, 0.36]],
}
# These are drawn three times as often as the others.
COMMON = frozenset({'H', 'O', 'N', 'C', 'OH', 'CO', 'NO'})
# Atoms within this of the highest one are the surface, A.
SURFACE = 1.0


def add_adsorbate(slab: Atoms, elements: frozenset[int], rng: np.random.Generator) -> Atoms:
    """A copy of a slab with one adsorbate at a top, bridge or hollow site.

    The height follows from covalent radii: the binding atom touches the nearest atom of
    the surface.

    Parameters
    ----------
    slab : ase.Atoms
        Its layers are perpendicular to z, and there is vacuum above.
    elements : collection of int
        Atomic numbers that may occur.
    rng : numpy.random.Generator

    Returns
    -------
    ase.Atoms
        The atoms of the adsorbate come last. A plain copy of the slab where ``elements``
        allow no adsorbate.

    Examples
    --------
    >>> from ase.build import fcc111
    >>> slab = fcc111('Pt', (2, 2, 3), vacuum=8)
    >>> covered = add_adsorbate(slab, range(1, 84), np.random.default_rng(0))
    >>> len(covered) > len(slab)
    True
    """
    allowed = set(elements)
    known = [
        name for name in ADSORBATES if allowed.issuperset(Atoms(name).numbers.tolist())
    ]
    if not known:
        return slab.copy()
    weights = np.array([3.0 if name in COMMON else 1.0 for name in known])
    name = known[rng.choice(len(known), p=weights / weights.sum())]
    molecule = Atoms(name, positions=ADSORBATES[name])
    molecule.rotate(rng.uniform(0, 360), 'z')
    place = _site(slab, int(rng.integers(1, 4)), rng)
    place[2] = _contact_height(slab, place, molecule.numbers[0])
    molecule.translate(place)
    return slab + molecule


def _site(slab: Atoms, corners: int, rng: np.random.Generator) -> np.ndarray:
    """The middle of an atom of the surface and its nearest neighbours there.

    ``corners`` is 1 for a top site, 2 for a bridge and 3 for a hollow.
    """
    heights = slab.positions[:, 2]
    surface = np.flatnonzero(heights > heights.max() - SURFACE)
    first = slab.positions[rng.choice(surface)]
    shifts = np.array([[i, j, 0] for i in (-1, 0, 1) for j in (-1, 0, 1)])
    images = (slab.positions[surface][:, None] + shifts @ slab.cell.array).reshape(-1, 3)
    chosen = [first]
    while len(chosen) < corners:
        distances = np.array([np.linalg.norm(images - x, axis=1) for x in chosen])
        total = np.where(distances.min(axis=0) < 0.1, np.inf, distances.sum(axis=0))
        # Among neighbours that are equally near, one is drawn.
        near = np.flatnonzero(total < total.min() + 0.1)
        chosen.append(images[rng.choice(near)])
    return np.mean(chosen, axis=0)


def _contact_height(slab: Atoms, place: np.ndarray, number: int) -> float:
    """The height above ``place`` at which an atom first touches the slab, A."""
    shift = (slab.positions - place) * [1, 1, 0]
    sideways = np.linalg.norm(
        find_mic(shift, slab.cell, pbc=(True, True, False))[0][:, :2], axis=1
    )
    reach = covalent_radii[slab.numbers] + covalent_radii[number]
    touching = sideways < reach
    rise = np.sqrt(np.maximum(reach**2 - sideways**2, 0.0))
    heights = slab.positions[:, 2]
    return float((heights + rise)[touching].max(initial=heights.max()))
