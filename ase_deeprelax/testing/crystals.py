"""Crystals to try a model on: generic ones, and ones of high symmetry."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from ase.spacegroup import crystal

# Of larger atoms alone, the crystals here would be too dense, A.
_LARGEST_RADIUS = 1.6


def room_for(elements: Sequence[int]) -> float:
    """Factor on lengths that gives crystals of large atoms alone their room.

    Examples
    --------
    >>> room_for([8, 55]), round(room_for([55]), 2)
    (1.0, 1.52)
    """
    return max(1.0, float(covalent_radii[list(elements)].min()) / _LARGEST_RADIUS)


def generic_crystals(
    elements: Sequence[int] = (8, 12, 22, 38), seed: int = 0
) -> list[Atoms]:
    """A few small crystals without symmetry, in skewed cells.

    Returns
    -------
    list of ase.Atoms
        One, two, five and eight atoms.
    """
    rng = np.random.default_rng(seed)
    room = room_for(elements)
    a, b, c, d = (tuple(elements) * 4)[:4]
    crystals = [
        bulk('Cu', 'fcc', a=4.0),
        bulk('CuO', 'zincblende', a=4.6),
        _perovskite(d, c, a, 3.95),
        bulk('CuO', 'rocksalt', a=4.3, cubic=True),
    ]
    crystals[0].numbers[:] = c
    crystals[1].numbers[:] = [b, a]
    crystals[3].numbers[:] = [b, a] * 3 + [d, a]
    for atoms in crystals:
        strain = np.eye(3) + 0.08 * rng.standard_normal((3, 3))
        atoms.set_cell(room * atoms.cell.array @ strain, scale_atoms=True)
        atoms.positions += 0.12 * rng.standard_normal(atoms.positions.shape)
    return crystals


def symmetric_crystals(
    n: int, elements: Sequence[int] = (3, 8, 12, 13, 22, 26, 38, 50), seed: int = 0
) -> list[Atoms]:
    """Crystals of random prototypes, elements and lattice constants.

    Prototypes of more than the given elements are left out; one element is enough.

    Returns
    -------
    list of ase.Atoms
        Of up to 14 atoms, 10 to 20 A^3 each (more where all elements are large), none much
        closer than covalent radii.
    """
    rng = np.random.default_rng(seed)
    room = room_for(elements)
    found = []
    while len(found) < n:
        prototype = _PROTOTYPES[rng.integers(len(_PROTOTYPES))]
        atoms = prototype(*rng.uniform(size=3))
        if len(set(atoms.numbers)) > len(elements):
            continue
        chosen = rng.choice(elements, size=len(set(atoms.numbers)), replace=False)
        known = np.unique(atoms.numbers, return_inverse=True)[1]
        atoms.numbers[:] = chosen[known]
        factor = (rng.uniform(10, 20) * len(atoms) / atoms.cell.volume) ** (1 / 3)
        atoms.set_cell(atoms.cell.array * (room * factor), scale_atoms=True)
        i, j, distance = neighbor_list('ijd', atoms, 4.0 * room)
        radii = covalent_radii[atoms.numbers]
        if (distance / (radii[i] + radii[j])).min() > 0.7:
            found.append(atoms)
    return found


def _perovskite(a_site: int, b_site: int, anion: int, a: float) -> Atoms:
    positions = [[0.5, 0.5, 0.5], [0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]]
    numbers = [a_site, b_site, anion, anion, anion]
    return Atoms(numbers, cell=a * np.eye(3), scaled_positions=positions, pbc=True)


def _wyckoff(
    symbols: list[str],
    basis: Sequence[Sequence[float]],
    group: int,
    cell: list[float],
    setting: int = 1,
) -> Atoms:
    return crystal(
        symbols, basis, spacegroup=group, setting=setting, cellpar=cell, primitive_cell=True
    )


# Each takes three free parameters between 0 and 1.
_PROTOTYPES: tuple[Callable[[float, float, float], Atoms], ...] = (
    lambda *_: bulk('Cu', 'fcc', a=3.6),
    lambda *_: bulk('W', 'bcc', a=2.9),
    lambda x, *_: bulk('Mg', 'hcp', a=3.2, c=3.2 * (1.5 + 0.3 * x)),
    lambda *_: bulk('Si', 'diamond', a=5.4),
    lambda *_: bulk('NaCl', 'rocksalt', a=5.6),
    lambda *_: bulk('NaCl', 'rocksalt', a=5.6, cubic=True),
    lambda *_: bulk('ZnS', 'zincblende', a=5.4),
    lambda *_: bulk('CsCl', 'cesiumchloride', a=4.1),
    lambda *_: bulk('CaF2', 'fluorite', a=5.5),
    lambda x, y, _: bulk('ZnS', 'wurtzite', a=3.8, c=6 + 0.4 * x, u=0.36 + 0.03 * y),
    lambda *_: _perovskite(38, 22, 8, 3.9),
    lambda x, y, _: _wyckoff(  # rutile
        ['Ti', 'O'],
        [(0, 0, 0), (0.28 + 0.05 * x,) * 2 + (0,)],
        136,
        [4.6, 4.6, 2.8 + 0.4 * y, 90, 90, 90],
    ),
    lambda x, y, _: _wyckoff(  # anatase
        ['Ti', 'O'],
        [(0, 0, 0), (0, 0, 0.19 + 0.03 * x)],
        141,
        [3.8, 3.8, 9 + y, 90, 90, 90],
    ),
    lambda x, y, _: _wyckoff(  # layered CdI2
        ['Cd', 'I'],
        [(0, 0, 0), (1 / 3, 2 / 3, 0.2 + 0.06 * x)],
        164,
        [4.2, 4.2, 6 + 1.5 * y, 90, 90, 120],
    ),
    lambda x, y, _: _wyckoff(  # ThCr2Si2
        ['Th', 'Cr', 'Si'],
        [(0, 0, 0), (0, 0.5, 0.25), (0, 0, 0.35 + 0.05 * x)],
        139,
        [4.0, 4.0, 9.5 + 2 * y, 90, 90, 90],
    ),
    lambda x, *_: _wyckoff(  # NiAs
        ['Ni', 'As'],
        [(0, 0, 0), (1 / 3, 2 / 3, 0.25)],
        194,
        [3.6, 3.6, 5 + x, 90, 90, 120],
    ),
    lambda x, y, z: _wyckoff(  # corundum
        ['Al', 'O'],
        [(0, 0, 0.34 + 0.02 * x), (0.29 + 0.04 * y, 0, 0.25)],
        167,
        [4.8, 4.8, 12.5 + z, 90, 90, 120],
    ),
    lambda x, y, z: _wyckoff(  # alpha quartz
        ['Si', 'O'],
        [(0.45 + 0.04 * x, 0, 1 / 3), (0.4 + 0.02 * y, 0.27, 0.77 + 0.02 * z)],
        152,
        [4.9, 4.9, 5.4, 90, 90, 120],
    ),
    lambda x, *_: _wyckoff(  # spinel
        ['Al', 'Mg', 'O'],
        [(0.5, 0.5, 0.5), (0.125, 0.125, 0.125), (0.255 + 0.015 * x,) * 3],
        227,
        [8.1, 8.1, 8.1, 90, 90, 90],
        setting=2,
    ),
)
