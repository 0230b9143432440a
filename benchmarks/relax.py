"""Speed of relax(): many structures in one call, and one at a time.

    python benchmarks/relax.py [--model default] [--device cpu] [--n 256]

Structures are spread over the development set in ``../shared/data`` where that is at hand,
else perovskites, rock salts and metals built in code, rattled so that no two are alike.
"""

import argparse
import warnings
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from ase.build import bulk
from ase.spacegroup import crystal

from ase_deeprelax.data.pairs import read_pairs
from ase_deeprelax.predict import Predictor

PAIRS = Path(__file__).parents[1] / '../shared/data/pairs_wbm_dev.jsonl.gz'


def structures(n):
    """``n`` structures, and where they come from."""
    if PAIRS.exists():
        pairs = read_pairs(PAIRS)
        step = max(1, len(pairs) // n)
        return [pair.unrelaxed for pair in pairs[::step][:n]], PAIRS.name
    perovskite = crystal(
        ['Sr', 'Ti', 'O'],
        [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)],
        spacegroup=221,
        cellpar=[3.9, 3.9, 3.9, 90, 90, 90],
    )
    salt = bulk('NaCl', 'rocksalt', a=5.7)
    seeds = [
        perovskite,
        perovskite * (1, 1, 2),
        salt,
        salt * (1, 1, 2),
        bulk('Cu') * (2, 2, 1),
    ]
    chosen = []
    for k in range(n):
        atoms = seeds[k % len(seeds)].copy()
        atoms.set_cell(atoms.cell * (0.95 + 0.1 * k / n), scale_atoms=True)
        atoms.rattle(0.02, seed=k)
        chosen.append(atoms)
    return chosen, 'built-in crystals'


def report(title, seconds, timings, n):
    """One line per part, in ms per structure."""
    print(
        f'{title}: {n / seconds:.1f} structures/s, {1e3 * seconds / n:.2f} ms per structure'
    )
    rest = seconds - sum(timings.values())
    for part, spent in {**timings, 'rest': rest}.items():
        print(f'  {part:<10}{1e3 * spent / n:8.2f} ms {spent / seconds:7.1%}')


def main():
    """Measure both ways and print."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--model', default='default')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--n', type=int, default=256)
    options = parser.parse_args()
    # Structures outside the training range are as fast as any; no warning for each.
    warnings.filterwarnings('ignore', message='.*outside the training range')

    predictor = Predictor(options.model, device=options.device)
    atoms_list, source = structures(options.n)
    n = len(atoms_list)
    sizes = [len(atoms) for atoms in atoms_list]
    print(
        f'{n} structures of {source}, {np.mean(sizes):.1f} atoms on average; model '
        f'{predictor.name!r} on {predictor.device}, {torch.get_num_threads()} threads'
    )
    predictor.relax(atoms_list[:8])  # first calls allocate and compile

    start = perf_counter()
    predictor.relax(atoms_list)
    report('in one call', perf_counter() - start, predictor.timings, n)

    totals = dict.fromkeys(predictor.timings, 0.0)
    start = perf_counter()
    for atoms in atoms_list:
        predictor.relax([atoms])
        for part, spent in predictor.timings.items():
            totals[part] += spent
    report('one at a time', perf_counter() - start, totals, n)


if __name__ == '__main__':
    main()
