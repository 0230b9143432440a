"""What a prediction saves a relaxation with DFT: calls, time; at what energy?

Small crystals of a pair file are relaxed with GPAW (PBE, plane waves), positions and cell
together, from where they are and from the prediction, to 0.05 eV/A. One call is one
self-consistent cycle.

Which crystals does not depend on any result: those marked ok, of four atoms at most,
without elements that may carry a moment (V to Ni, lanthanides, actinides), in order of what
a call costs, which is about their valence electrons in GPAW's datasets over the rotations
of their space group; half of ``--limit`` are cubic, where symmetry leaves little to relax
but the volume, half are not.

    python benchmarks/dft.py pairs_wbm_dev.jsonl.gz --out FOLDER

The settings are coarse, so that a call takes seconds on one core: 400 eV, 2.5 k-points per
1/A. ``OUT/runs.jsonl`` holds a line for each finished run, ``OUT/dft.json`` all results; a
run that was stopped goes on where it was.
"""

import argparse
import json
from functools import cache, partial
from pathlib import Path

import numpy as np
import spglib
import torch
from ase.data import chemical_symbols

from ase_deeprelax.calculators.registry import get_calculator
from ase_deeprelax.compare.comparison_tables import comparison_text
from ase_deeprelax.compare.savings import compare
from ase_deeprelax.compare.tables import Table
from ase_deeprelax.data.pairs import read_pairs

FMAX, STEPS, MOST_ATOMS = 0.05, 60, 4
MAGNETIC = {*range(23, 29), *range(58, 72), *range(89, 104)}
COARSE = {
    'mode': {'name': 'pw', 'ecut': 400, 'dedecut': 'estimate'},
    'kpts': {'density': 2.5, 'gamma': True},
    # Moves forces by a few meV/A, and saves a third of the time.
    'convergence': {'density': 1e-3, 'eigenstates': 4e-6},
}


@cache
def valence(number):
    """Electrons of an element in GPAW's PBE dataset, None where there is none."""
    from gpaw.setup_data import SetupData

    try:
        return SetupData(chemical_symbols[number], 'PBE').Nv
    except FileNotFoundError:
        return None


def cheapest(pairs, limit):
    """The crystals by the rule above."""
    cubic, others = [], []
    for pair in pairs:
        atoms = pair.unrelaxed
        numbers = atoms.numbers.tolist()
        if len(numbers) > MOST_ATOMS or MAGNETIC & set(numbers):
            continue
        electrons = [valence(number) for number in numbers]
        if None in electrons:
            continue
        cell = (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers)
        facts = spglib.get_symmetry_dataset(cell, symprec=1e-2)
        group = cubic if facts.number >= 195 else others
        cost = sum(electrons) / len(np.unique(facts.rotations, axis=0))
        group.append((cost, pair.id, pair))
    best = [sorted(group, key=lambda row: row[:2]) for group in (cubic, others)]
    return [pair for group in best for *_, pair in group[: limit // 2]]


def by_structure(result):
    """One line for each crystal and optimizer."""
    ends = {
        (run['structure'], run['optimizer'], run['start']): run for run in result['runs']
    }
    facts = {structure['id']: structure for structure in result['structures']}
    titles = ['crystal', 'atoms', 'optimizer', 'calls', 'calls after prediction']
    titles += ['time / s', 'time after prediction / s', 'energy difference / meV per atom']
    titles += ['RMSD', 'RMSD after prediction', 'RMSD of prediction']
    titles += ['V / V(reference)', 'V(prediction) / V(reference)']
    shots = {shot['structure']: shot for shot in result['predictions']}
    lines = []
    for (id, optimizer, start), before in ends.items():
        if start != 'unrelaxed':
            continue
        after, shot, fact = ends[id, optimizer, 'prediction'], shots[id], facts[id]
        volume = fact['reference']['volume']
        both = before['ok'] and after['ok']
        lines.append(
            [
                fact['formula'],
                str(fact['n_atoms']),
                optimizer,
                *(_count(run) for run in (before, after)),
                *(f'{run["seconds"]:.0f}' for run in (before, after)),
                f'{1000 * (after["energy_per_atom"] - before["energy_per_atom"]):.2f}'
                if both
                else '-',
                *(_number(run['rmsd_to_reference']) for run in (before, after, shot)),
                *(
                    _number(run['volume'] and run['volume'] / volume)
                    for run in (after, shot)
                ),
            ]
        )
    return Table(titles, lines, (0, 1, 2)).as_text()


def _count(run):
    return str(run['calls']) if run['converged'] else f'{run["calls"]} (not converged)'


def _number(value):
    return '-' if value is None else f'{value:.3f}'


def main():
    """Relax, then print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('pairs', type=Path)
    parser.add_argument('--out', type=Path, default=Path('dft'))
    parser.add_argument('--limit', type=int, default=12, metavar='N')
    parser.add_argument('--optimizer', action='append', help='default: BFGS')
    parser.add_argument('--model', default='default')
    options = parser.parse_args()
    torch.set_num_threads(1)

    result = compare(
        cheapest(read_pairs(options.pairs, ok_only=True), options.limit),
        {'gpaw': partial(get_calculator, 'gpaw', **COARSE)},
        optimizers=options.optimizer or ['BFGS'],
        model=options.model,
        fmax=FMAX,
        steps=STEPS,
        out=options.out,
        progress=True,
    )
    (options.out / 'dft.json').write_text(json.dumps(result, allow_nan=False) + '\n')
    print(f'{options.pairs.name}: {comparison_text(result)}\n\n{by_structure(result)}')


if __name__ == '__main__':
    main()
