"""CPU time per atom and peak memory, from 8 to 10,648 atoms.

Supercells of rock salt, one structure at a time: as they are, with all atoms displaced at
random, with atoms so little displaced that the search for symmetry finds it hard to say
whether they are equivalent, and with one atom missing. Parts of the time are those of
``Predictor.timings``, as CPU time on one thread; where a structure is small, medians of
repeats. Memory is the highest resident set since the start of a process of its own, less
what it was after a first small structure.

    python benchmarks/scaling.py --model deeprelax
"""

import argparse
import multiprocessing
import os
import resource
import sys
import warnings

import numpy as np
import torch
from ase.build import bulk
from cpu_time import cpu_timings, timed

from ase_deeprelax import Predictor
from ase_deeprelax.compare.tables import Table
from ase_deeprelax.predict.prepare import PARTS, prepare

SIZES = (1, 2, 3, 4, 6, 8, 11)  # cubic cells along each vector
FLAT = 3  # the size whose cost per atom others are compared with: 216 atoms
REPEATED, REPEATS = 1_000, 3  # atoms below which the median of repeats is taken
# Random displacements, A; where None, one atom is taken out.
KINDS = {'symmetric': 0.0, 'displaced': 0.1, 'nearly symmetric': 0.003, 'vacancy': None}
MB = 1e6


def crystal(kind, n):
    """A supercell of 8 n^3 atoms."""
    atoms = bulk('MgO', 'rocksalt', a=4.3, cubic=True).repeat((n, n, n))
    if (scale := KINDS[kind]) is None:
        del atoms[0]
    elif scale:
        atoms.rattle(scale, seed=n)
    return atoms


def resident():
    """Highest resident set of this process so far, MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == 'darwin' else 1024) / MB


def measure(kind, sizes, model):
    """Rows of numbers, smallest first, so that each peak is that of its own structure."""
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')  # cells of this size were not trained on
    predictor = Predictor(model, device='cpu')
    predictor.relax([crystal('displaced', 1)])
    before = resident()
    rows = []
    for n in sizes:
        atoms = crystal(kind, n)
        repeats = REPEATS if len(atoms) < REPEATED else 1
        seconds, parts = [], []
        with cpu_timings():
            for _ in range(repeats):
                _, spent = timed(lambda: predictor.relax([atoms], on_bad='raise'))  # noqa: B023
                seconds.append(spent)
                parts.append(list(predictor.timings.values()))
        memory = resident() - before
        edges = prepare(atoms, predictor.settings).graph.num_edges
        per_atom = 1e3 / len(atoms)
        parts = per_atom * np.median(parts, axis=0)
        rows.append((len(atoms), edges, per_atom * np.median(seconds), *parts, memory))
    return rows


def main():
    """A process for each kind, then the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='deeprelax')
    parser.add_argument('--sizes', type=int, nargs='+', default=SIZES)
    parser.add_argument('--kind', action='append', choices=KINDS)
    options = parser.parse_args()
    lines = []
    # The CPU time of a process is that of NumPy's threads too, which never rest.
    os.environ['OPENBLAS_NUM_THREADS'] = '1'
    for kind in options.kind or KINDS:
        with multiprocessing.get_context('spawn').Pool(1) as pool:
            rows = pool.apply(measure, (kind, sorted(options.sizes), options.model))
        flat = min(rows, key=lambda row: abs(row[0] - 8 * FLAT**3))[2]
        for n_atoms, edges, total, *parts, memory in rows:
            line = [kind, f'{n_atoms}', f'{total:.3f}', f'{total / flat:.2f}']
            line += [f'{part:.3f}' for part in parts]
            per_edge = f'{memory / edges * MB:.0f}' if n_atoms >= REPEATED else ''
            lines.append([*line, f'{memory:.0f}', per_edge])
    heads = ['supercells of MgO', 'atoms', 'ms per atom', f'x {8 * FLAT**3} atoms']
    heads += [f'{part} / ms' for part in PARTS]
    heads += ['peak / MB', 'MB per million edges']
    print(f'{options.model}, one structure at a time, CPU time on one thread\n')
    print(Table(heads, lines, text_columns=(0,)).as_markdown())


if __name__ == '__main__':
    main()
