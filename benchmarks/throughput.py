"""How many structures per second the shipped models relax on this CPU, and on what.

Usage: python benchmarks/throughput.py [PAIRS]

PAIRS is a file of pairs, of which the unrelaxed halves are taken, spread over the file;
without it, crystals of random prototypes and elements are.
"""

import sys
from pathlib import Path
from time import perf_counter

import torch

from ase_deeprelax import Predictor, available_models
from ase_deeprelax.compare.tables import Table
from ase_deeprelax.data.pairs import read_pairs
from ase_deeprelax.testing import symmetric_crystals

N = 256


def structures(pairs_file=None):
    """``N`` of them."""
    if pairs_file is None:
        return symmetric_crystals(N)
    pairs = read_pairs(pairs_file)
    return [pair.unrelaxed for pair in pairs[:: len(pairs) // N][:N]]


def measure(predictor, batches):
    """Relax each batch in a call of its own; structures per second, and ms of each part."""
    parts = dict.fromkeys(predictor.timings, 0.0)
    start = perf_counter()
    for batch in batches:
        predictor.relax(batch)
        for part, seconds in predictor.timings.items():
            parts[part] += seconds
    wall = perf_counter() - start
    n = sum(map(len, batches))
    parts = {'all': wall, **parts, 'rest': wall - sum(parts.values())}
    shares = {f'{part} / ms': f'{1e3 * seconds / n:.2f}' for part, seconds in parts.items()}
    return {'structures / s': f'{n / wall:.1f}', **shares}


def main(pairs_file=None):
    """Each model both ways: all in one call, and one at a time."""
    atoms = structures(pairs_file)
    mean = sum(map(len, atoms)) / len(atoms)
    source = Path(pairs_file).name if pairs_file else 'prototypes'
    print(
        f'{torch.get_num_threads()} threads, {len(atoms)} structures of {mean:.1f} atoms '
        f'on average from {source}\n'
    )
    rows = []
    for name in available_models():
        predictor = Predictor(name, device='cpu')
        predictor.relax(atoms[:8])  # threads and caches are warm from here on
        for way, batches in (('one call', [atoms]), ('one by one', [[x] for x in atoms])):
            rows.append({'model': name, '': way, **measure(predictor, batches)})
    cells = [list(row.values()) for row in rows]
    print(Table(list(rows[0]), cells, (0, 1)).as_markdown())


if __name__ == '__main__':
    main(*sys.argv[1:])
