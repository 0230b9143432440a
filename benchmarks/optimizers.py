r"""How many steps do optimizers need, kind by kind of solid, and does any of them climb?

Textbook crystals, molecular crystals, layers, slabs, defects and molecules, strained by a
few percent and rattled, are relaxed with each optimizer to 0.05 eV/A, with the cell (see
`free_cell`) and at a fixed cell. The tables say the steps, and the largest rise of the
energy in one step where it is over 0.1 eV. An optimizer that takes soft directions for
stiff ones stops where others still go down; so one row counts the steps to the energy, to
10 meV, at which BFGS stops. One command makes them, with ASE's own
potentials (EMT, Tersoff, Lennard-Jones), CHGNet and TensorNet; finished runs stand in a
file of JSON lines, from which it goes on:

    python benchmarks/optimizers.py --potential classical --potential chgnet \
        --potential tensornet:FOLDER --pairs unrelaxed.jsonl.gz --out optimizers.jsonl

``--pairs`` adds unrelaxed crystals: JSON lines with ``id, numbers, cell0, frac0``.
``--optimizer`` takes names as `find_optimizer` does, or ``module:Class``.
"""

import argparse
import gzip
import itertools
import json
import warnings
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk, fcc111, graphene, molecule, mx2
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.tersoff import Tersoff, TersoffParameters
from ase.spacegroup import crystal

from ase_deeprelax.calculators.registry import get_calculator
from ase_deeprelax.compare.tables import Table
from ase_deeprelax.geometry.cell_filter import free_cell
from ase_deeprelax.journal import Journal
from ase_deeprelax.optimize.ase_optimizers import find_optimizer

FMAX, STEPS = 0.05, 150
KINDS = ['ElasticBFGS', 'BFGS', 'LBFGS', 'FIRE']
# A rise of the energy that the tables name, eV.
CLIMB = 0.1
# Molecules in a box, which has no size to relax.
BOXED = {f'{name} in a cell': name for name in ('C6H6', 'H2O', 'CH3CH2OH')}
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
        'CC',
        [(0, 0, 0.25), (1 / 3, 2 / 3, 0.25)],
        spacegroup=194,
        cellpar=[2.46, 2.46, 6.7, 90, 90, 120],
    )
    nitride = crystal(
        'BN',
        [(1 / 3, 2 / 3, 0.25), (2 / 3, 1 / 3, 0.25)],
        spacegroup=194,
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
        'TiO',
        [(0, 0, 0), (0.305, 0.305, 0)],
        spacegroup=136,
        cellpar=[4.65, 4.65, 2.97, 90, 90, 90],
    )
    made['quartz'] = crystal(
        'SiO',
        [(0.4697, 0, 2 / 3), (0.4135, 0.2669, 0.7858)],
        spacegroup=154,
        cellpar=[4.916, 4.916, 5.405, 90, 90, 120],
    )
    made['SrTiO3'] = crystal(
        ['Sr', 'Ti', 'O'],
        [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)],
        spacegroup=221,
        cellpar=[3.94] * 3 + [90] * 3,
    )
    made['CaF2'] = crystal(
        ['Ca', 'F'],
        [(0, 0, 0), (0.25, 0.25, 0.25)],
        spacegroup=225,
        cellpar=[5.5] * 3 + [90] * 3,
        primitive_cell=True,
    )
    vacancy = bulk('MgO', 'rocksalt', a=4.25, cubic=True) * (2, 1, 1)
    del vacancy[0]
    made['MgO with a vacancy'] = vacancy
    return made


def boxed():
    """A molecule in a periodic cell, layers and a slab with vacuum."""
    made = {}
    for name, formula in BOXED.items():
        made[name] = molecule(formula)
        made[name].center(vacuum=4)
        made[name].pbc = True
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
    """Structures, each with the potential of ASE that knows it."""
    metals = {name: bulk(name, cubic=True) for name in ('Cu', 'Al', 'Pt')}
    alloy = bulk('Cu', cubic=True) * (2, 1, 1)
    alloy.symbols[::4] = 'Au'
    vacancy = bulk('Ag', cubic=True) * (2, 2, 1)
    del vacancy[0]
    metals |= {
        'Cu3Au': alloy,
        'Ag with a vacancy': vacancy,
        'Cu film': fcc111('Cu', (2, 2, 4)),
    }
    metals['Cu film'].center(vacuum=6, axis=2)
    metals['Cu film'].pbc = True
    known = textbook()
    covalent = {name: known[name] for name in ('diamond', 'diamond (2)', 'Si', 'SiC')}
    hole = bulk('Si', cubic=True) * (2, 1, 1)
    del hole[0]
    covalent |= {'Si with a vacancy': hole, 'graphene': boxed()['graphene']}
    rare = {'Ar': bulk('Ar', 'fcc', a=5.26, cubic=True)}
    for group, make in ((metals, EMT), (covalent, tersoff), (rare, argon)):
        for name, atoms in group.items():
            yield name, disturbed(atoms), make()


def disturbed(atoms):
    """Strained by 3 to 4 % and rattled by 0.05 A; only rattled where there is vacuum."""
    new = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    if new.cell.volume < 30 * len(new):
        new.set_cell(new.cell.array @ STRETCH, scale_atoms=True)
    new.rattle(0.05, seed=1)
    return new


def universal(calculator, pairs, limit):
    """Structures for a universal potential."""
    made = layered() | boxed() | molecular_crystals() | textbook()
    for name, atoms in made.items():
        yield name, disturbed(atoms), calculator
    if pairs is None:
        return
    with gzip.open(pairs, 'rt') as file:
        records = (json.loads(line) for line in file)
        small = (
            record
            for record in records
            if 3 <= len(record['numbers']) <= 10
            and record.get('ok', True)
            and record.get('split', 'val') == 'val'
            and max(record['numbers']) < 84
        )
        for record in itertools.islice(small, 0, 40 * limit, 40):
            atoms = Atoms(
                record['numbers'],
                cell=record['cell0'],
                scaled_positions=record['frac0'],
                pbc=True,
            )
            yield record['id'], atoms, calculator


def relax(kind, atoms, calculator, *, cell):
    """Steps, None without convergence, and the energies before them and at the end, eV."""
    atoms = atoms.copy()
    atoms.calc = calculator
    target = free_cell(atoms) if cell else atoms
    energies, converged = [], False
    try:
        for converged in kind(target, logfile=None).irun(fmax=FMAX, steps=STEPS):  # noqa: B007
            energies.append(float(target.get_potential_energy()))
    except Exception as error:  # noqa: BLE001  An error is a result; the others go on.
        return {'steps': None, 'energies': energies, 'error': repr(error)[:200]}
    return {'steps': len(energies) - 1 if converged else None, 'energies': energies}


def find_class(name):
    """An optimizer by its name, or from a module."""
    module, _, wanted = name.rpartition(':')
    return getattr(import_module(module), wanted) if module else find_optimizer(name)


def rise(run):
    """The largest rise of the energy in one step, eV."""
    return float(max(np.diff(run['energies']), default=0.0))


def steps_to(run, energy):
    """Steps after which the energy is as low, to 10 meV; all where it never is."""
    low = np.flatnonzero(np.array(run['energies']) <= energy + 0.01)
    if len(low):
        return int(low[0])
    return STEPS if run['steps'] is None else run['steps']


def show(runs, names, title):
    """One table as text: steps by structure and optimizer, and what they come to."""

    def cell(run):
        if run is None or run['steps'] is None:
            return None if run is None else 'failed'
        climbs = rise(run) > CLIMB
        return f'{run["steps"]} (+{rise(run):.1f})' if climbs else str(run['steps'])

    rows = [
        [key, *(cell(found.get(name)) for name in names)] for key, found in runs.items()
    ]
    # Where the file is not yet whole, sums are over what all optimizers have done.
    whole = [found for found in runs.values() if all(name in found for name in names)]
    steps, rises, same = [], [], []
    for name in names:
        mine = [found[name] for found in whole]
        steps.append(sum(STEPS if run['steps'] is None else run['steps'] for run in mine))
        rises.append(max(map(rise, mine), default=0.0))
        if 'BFGS' in names:
            same.append(sum(steps_to(f[name], f['BFGS']['energies'][-1]) for f in whole))
    rows.append([f'sum of {len(whole)}', *map(str, steps)])
    if same:
        rows.append(["sum to BFGS's energy", *map(str, same)])
    rows.append(['largest rise, eV', *(f'{value:.2f}' for value in rises)])
    print(f'\n{Table([title, *names], rows).as_text()}')


def main():
    """Relax what is not yet in the file, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--potential', action='append', help='default: classical')
    parser.add_argument('--optimizer', action='append', help='default: ' + ', '.join(KINDS))
    parser.add_argument('--pairs', type=Path, help='unrelaxed crystals, .jsonl.gz')
    parser.add_argument('--limit', type=int, default=16, help='how many of the pairs')
    parser.add_argument('--max-atoms', type=int, default=50)
    parser.add_argument('--out', type=Path, default=Path('optimizers.jsonl'))
    options = parser.parse_args()
    names = options.optimizer or KINDS
    warnings.filterwarnings('ignore')

    settings = {'fmax': FMAX, 'steps': STEPS}
    tables = {}
    with Journal(options.out, settings) as journal:
        for potential in options.potential or ['classical']:
            if potential == 'classical':
                structures = list(classical())
            else:
                calculator = get_calculator(potential)
                structures = list(universal(calculator, options.pairs, options.limit))
            short = potential.split(':')[0]
            for (structure, atoms, calculator), cell, name in itertools.product(
                structures, (True, False), names
            ):
                if len(atoms) > options.max_atoms or (cell and structure in BOXED):
                    continue
                key = short, 'cell' if cell else 'fixed cell', structure, name
                make = partial(relax, find_class(name), atoms, calculator, cell=cell)
                table = tables.setdefault(
                    ' at '.join(key[:2]).replace('at cell', '+ cell'), {}
                )
                table.setdefault(structure, {})[name] = journal.once(key, make)
    for title, runs in tables.items():
        show(runs, names, title)


if __name__ == '__main__':
    main()
