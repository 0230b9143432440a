"""How many steps do optimizers need, kind by kind of solid, and does any of them climb?

Textbook crystals, molecular crystals, layers, slabs, defects and molecules, strained by a
few percent and rattled, are relaxed with each optimizer, with the cell (in a
``FrechetCellFilter``) and at a fixed cell. The table says the steps to fmax and the largest
rise of the energy in one step, eV. One command makes it, with ASE's own potentials, CHGNet
and TensorNet; finished runs are kept in the JSON file, from which it goes on:

    python benchmarks/optimizers.py --potential classical --potential chgnet \\
        --potential tensornet:FOLDER --pairs unrelaxed.jsonl.gz --out optimizers.json

``--pairs`` adds unrelaxed crystals: JSON lines with ``id, numbers, cell0, frac0``.
``--optimizer`` takes names of ``ase.optimize``, 'ElasticBFGS', or ``module:Class``.
"""

import argparse
import gzip
import itertools
import json
import sys
import warnings
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk, fcc111, graphene, molecule, mx2
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.tersoff import Tersoff, TersoffParameters
from ase.filters import FrechetCellFilter
from ase.spacegroup import crystal

from ase_deeprelax.calculators.registry import get_calculator
from ase_deeprelax.optimize.relaxation_step import find_optimizer

FMAX, STEPS = 0.05, 150
STRETCH = np.array([[1.04, 0.01, 0.0], [0.01, 0.97, 0.01], [0.0, 0.01, 1.03]])
# Tersoff's parameters of 1989 (Phys. Rev. B 39, 5566); mixed ones as in his equations.
SINGLE = {
    'C': (1393.6, 346.74, 3.4879, 2.2119, 1.5724e-7, 0.72751, 38049.0, 4.3484, -0.57058),
    'Si': (1830.8, 471.18, 2.4799, 1.7322, 1.1e-6, 0.78734, 100390.0, 16.217, -0.59825),
}
REACH = {'C': (1.8, 2.1), 'Si': (2.7, 3.0)}


def tersoff():
    """Tersoff's potential of C and Si."""
    parameters = {}
    for a, b, c in itertools.product(SINGLE, repeat=3):
        one, two = SINGLE[a], SINGLE[b]
        inner, outer = (np.sqrt(x * y) for x, y in zip(REACH[a], REACH[c], strict=True))
        chi = 1.0 if a == b else 0.9776
        parameters[a, b, c] = TersoffParameters(
            m=3.0,
            gamma=1.0,
            lambda3=0.0,
            c=one[6],
            d=one[7],
            h=one[8],
            n=one[5],
            beta=one[4],
            lambda2=(one[3] + two[3]) / 2,
            B=chi * np.sqrt(one[1] * two[1]),
            R=(inner + outer) / 2,
            D=(outer - inner) / 2,
            lambda1=(one[2] + two[2]) / 2,
            A=np.sqrt(one[0] * two[0]),
        )
    return Tersoff(parameters)


def argon():
    """Lennard-Jones of argon."""
    return LennardJones(sigma=3.4, epsilon=0.0104, rc=8.5, smooth=True)


def molecular_crystals():
    """Crystals of molecules, from experiment."""
    return {
        'urea': crystal(
            'CONHH',
            [
                (0, 0.5, 0.326),
                (0, 0.5, 0.5953),
                (0.1459, 0.6459, 0.1766),
                (0.2575, 0.7575, 0.2827),
                (0.1441, 0.6441, -0.0380),
            ],
            spacegroup=113,
            cellpar=[5.565, 5.565, 4.684, 90, 90, 90],
        ),
        'benzene': crystal(
            'CCCHHH',
            [
                (-0.0569, 0.1387, -0.0054),
                (-0.1335, 0.0460, 0.1264),
                (-0.0774, -0.0925, 0.1295),
                (-0.0976, 0.2447, -0.0177),
                (-0.2409, 0.0794, 0.2218),
                (-0.1371, -0.1631, 0.2312),
            ],
            spacegroup=61,
            cellpar=[7.39, 9.42, 6.81, 90, 90, 90],
        ),
        'ice': crystal(
            'OOHHH',
            [
                (0, 0.6648, 0.0631),
                (0.5, 0.8255, -0.0631),
                (0, 0.6636, 0.1963),
                (0, 0.5363, 0.0183),
                (0.6766, 0.7748, -0.0183),
            ],
            spacegroup=36,
            cellpar=[4.465, 7.858, 7.292, 90, 90, 90],
            primitive_cell=True,
        ),
        'ammonia': crystal(
            'NH',
            [(0.2107, 0.2107, 0.2107), (0.3689, 0.2671, 0.1159)],
            spacegroup=198,
            cellpar=[5.1305] * 3 + [90] * 3,
        ),
        'CO2': crystal(
            'CO',
            [(0, 0, 0), (0.1185, 0.1185, 0.1185)],
            spacegroup=205,
            cellpar=[5.63] * 3 + [90] * 3,
        ),
    }


def layered():
    """Layered crystals, layers and slabs."""
    graphite = crystal(
        'CC', [(0, 0, 0.25), (1 / 3, 2 / 3, 0.25)], spacegroup=194,
        cellpar=[2.46, 2.46, 6.7, 90, 90, 120],
    )
    nitride = crystal(
        'BN', [(1 / 3, 2 / 3, 0.25), (2 / 3, 1 / 3, 0.25)], spacegroup=194,
        cellpar=[2.50, 2.50, 6.66, 90, 90, 120],
    )
    return {'graphite': graphite, 'h-BN': nitride}


def textbook():
    """Crystals of few atoms."""
    made = {
        'diamond': bulk('C', cubic=True),
        'diamond (2)': bulk('C'),
        'Si': bulk('Si', cubic=True),
        'SiC': bulk('SiC', 'zincblende', a=4.36, cubic=True),
        'BN': bulk('BN', 'zincblende', a=3.62, cubic=True),
        'GaAs': bulk('GaAs', 'zincblende', a=5.75),
        'NaCl': bulk('NaCl', 'rocksalt', a=5.69, cubic=True),
        'MgO': bulk('MgO', 'rocksalt', a=4.25, cubic=True),
        'LiF': bulk('LiF', 'rocksalt', a=4.07),
        'TiN': bulk('TiN', 'rocksalt', a=4.25),
        'Cu': bulk('Cu', cubic=True),
        'Al': bulk('Al', cubic=True),
        'Na': bulk('Na', cubic=True),
        'W': bulk('W', cubic=True),
        'Fe': bulk('Fe', cubic=True),
    }
    made['TiO2'] = crystal(
        'TiO', [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136,
        cellpar=[4.65, 4.65, 2.97, 90, 90, 90],
    )
    made['quartz'] = crystal(
        'SiO', [(0.4697, 0, 0), (0.4135, 0.2669, 0.1191)], spacegroup=152,
        cellpar=[4.916, 4.916, 5.405, 90, 90, 120],
    )
    made['SrTiO3'] = crystal(
        ['Sr', 'Ti', 'O'], [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)], spacegroup=221,
        cellpar=[3.94] * 3 + [90] * 3,
    )
    made['CaF2'] = crystal(
        ['Ca', 'F'], [(0, 0, 0), (0.25, 0.25, 0.25)], spacegroup=225,
        cellpar=[5.5] * 3 + [90] * 3, primitive_cell=True,
    )
    vacancy = bulk('MgO', 'rocksalt', a=4.25, cubic=True) * (2, 1, 1)
    del vacancy[0]
    made['MgO with a vacancy'] = vacancy
    return made


def boxed():
    """A molecule in a periodic cell, a layer and a slab with vacuum: at a fixed cell only."""
    made = {}
    for name in ('C6H6', 'H2O', 'CH3CH2OH'):
        atoms = molecule(name)
        atoms.center(vacuum=4)
        atoms.pbc = True
        made[f'{name} in a cell'] = atoms
    made['MoS2 layer'] = mx2('MoS2', vacuum=6)
    made['MoS2 layer'].pbc = True
    slab = fcc111('Al', (1, 2, 4), vacuum=6)
    slab.pbc = True
    made['Al(111) slab'] = slab
    sheet = graphene(vacuum=6, size=(2, 2, 1))
    sheet.pbc = True
    made['graphene'] = sheet
    return made


def classical():
    """Structures and the potential of ASE that knows them."""
    metals = {name: bulk(name, cubic=True) for name in ('Cu', 'Al', 'Pt')}
    alloy = bulk('Cu', cubic=True) * (2, 1, 1)
    alloy.symbols[::4] = 'Au'
    vacancy = bulk('Ag', cubic=True) * (2, 2, 1)
    del vacancy[0]
    metals |= {'Cu3Au': alloy, 'Ag with a vacancy': vacancy, 'Cu film': fcc111('Cu', (2, 2, 4))}
    metals['Cu film'].center(vacuum=6, axis=2)
    metals['Cu film'].pbc = True
    known = textbook()
    covalent = {name: known[name] for name in ('diamond', 'diamond (2)', 'Si', 'SiC')}
    hole = bulk('Si', cubic=True) * (2, 1, 1)
    del hole[0]
    covalent |= {'Si with a vacancy': hole, 'graphene': boxed()['graphene']}
    rare = {'Ar': bulk('Ar', 'fcc', a=5.26, cubic=True)}
    return [
        (f'{name}', atoms, make)
        for group, make in ((metals, EMT), (covalent, tersoff), (rare, argon))
        for name, atoms in group.items()
    ]


def disturbed(atoms, seed):
    """Strained by 3 to 4 % and rattled by 0.05 A; only rattled where there is vacuum."""
    atoms = atoms.copy()
    new = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    if seed is not None:
        new.set_cell(new.cell.array @ STRETCH, scale_atoms=True)
    new.rattle(0.05, seed=seed or 0)
    return new


def systems(pairs=None, limit=16):
    """Name, structure, and whether its cell may relax, for universal potentials."""
    for name, atoms in (textbook() | molecular_crystals() | layered()).items():
        yield name, disturbed(atoms, 1), True
    for name, atoms in boxed().items():
        yield name, disturbed(atoms, None), False
    if pairs is None:
        return
    with gzip.open(pairs, 'rt') as file:
        records = (json.loads(line) for line in file)
        small = (
            r for r in records
            if 3 <= len(r['numbers']) <= 10 and r.get('ok', True)
            and r.get('split', 'val') == 'val' and max(r['numbers']) < 84
        )
        for r in itertools.islice(small, 0, 40 * limit, 40):
            yield r['id'], Atoms(
                r['numbers'], cell=r['cell0'], scaled_positions=r['frac0'], pbc=True
            ), True
