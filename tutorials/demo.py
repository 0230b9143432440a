"""Unrelaxed crystals, as they are made when a compound is not in any database.

Each takes the structure of a known compound, with its measured lattice constants, and puts
other elements in: what a screening for new materials does thousands of times.

Usage: python tutorials/demo.py FOLDER
"""

import sys
from pathlib import Path

from ase import Atoms
from ase.build import bulk
from ase.io import write
from ase.spacegroup import crystal


def substitute(parent, **swaps):
    """The parent with elements exchanged, in its own, wrong, cell."""
    child = parent.copy()
    child.symbols = [swaps.get(symbol, symbol) for symbol in parent.symbols]
    return child


def strontium_titanate():
    """SrTiO3 in the cubic cell of BaTiO3: 5 atoms, only the volume is wrong."""
    scaled = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    parent = Atoms('BaTiO3', cell=[4.00] * 3, scaled_positions=scaled, pbc=True)
    return substitute(parent, Ba='Sr')


def strontium_zirconate():
    """SrZrO3 in the orthorhombic cell of CaTiO3: 20 atoms, tilted octahedra."""
    parent = crystal(
        ['Ca', 'Ti', 'O', 'O'],
        [
            (0.0360, 0.25, -0.0068),
            (0.5, 0, 0),
            (0.4838, 0.25, 0.0714),
            (0.2888, 0.0371, 0.7108),
        ],
        spacegroup=62,
        cellpar=[5.4423, 7.6401, 5.3796, 90, 90, 90],
    )
    return substitute(parent, Ca='Sr', Ti='Zr')


def tungsten_diselenide():
    """Layered WSe2 in the cell of 2H-MoS2."""
    parent = crystal(
        ['Mo', 'S'],
        [(1 / 3, 2 / 3, 0.25), (1 / 3, 2 / 3, 0.621)],
        spacegroup=194,
        cellpar=[3.160, 3.160, 12.294, 90, 90, 120],
    )
    return substitute(parent, Mo='W', S='Se')


def tin_dioxide():
    """SnO2 in the cell of rutile TiO2."""
    parent = crystal(
        ['Ti', 'O'],
        [(0, 0, 0), (0.3053, 0.3053, 0)],
        spacegroup=136,
        cellpar=[4.594, 4.594, 2.959, 90, 90, 90],
    )
    return substitute(parent, Ti='Sn')


def zinc_sulphide():
    """ZnS in the wurtzite cell of ZnO."""
    parent = bulk('ZnO', 'wurtzite', a=3.250, c=5.207, u=0.382)
    return substitute(parent, O='S')


def rattled_salt():
    """NaCl, 2x2x2 supercell: too large by 4 % and every atom off by 0.1 A."""
    atoms = bulk('NaCl', 'rocksalt', a=5.64 * 1.04).repeat(2)
    atoms.rattle(0.1, seed=0)
    return atoms


CRYSTALS = {
    'SrTiO3-in-BaTiO3': strontium_titanate,
    'SrZrO3-in-CaTiO3': strontium_zirconate,
    'WSe2-in-MoS2': tungsten_diselenide,
    'SnO2-in-TiO2': tin_dioxide,
    'ZnS-in-ZnO': zinc_sulphide,
    'NaCl-rattled-2x2x2': rattled_salt,
}


def main(folder):
    """Write all of them as extxyz files."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, build in CRYSTALS.items():
        write(folder / f'{name}.extxyz', build())


if __name__ == '__main__':
    main(*sys.argv[1:])
