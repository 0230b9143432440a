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
    """Relax each batch in a call of its own; print wall time and where it went."""
    parts = dict.fromkeys(predictor.timings, 0.0)
    start = perf_counter()
    for batch in batches:
        predictor.relax(batch)
        for part, seconds in predictor.timings.items():
            parts[part] += seconds
    wall = perf_counter() - start
    n = sum(map(len, batches))
    parts['rest'] = wall - sum(parts.values())
    shares = ', '.join(f'{part} {1e3 * seconds / n:.2f}' for part, seconds in parts.items())
    print(f'  {n / wall:7.1f} structures/s, {1e3 * wall / n:.2f} ms each: {shares}')


def main(pairs_file=None):
    """Each model both ways: all in one call, and one at a time."""
    atoms = structures(pairs_file)
    mean = sum(map(len, atoms)) / len(atoms)
    source = Path(pairs_file).name if pairs_file else 'prototypes'
    print(
        f'{torch.get_num_threads()} threads, {len(atoms)} structures of {mean:.1f} atoms '
        f'on average from {source}'
    )
    for name in available_models():
        predictor = Predictor(name, device='cpu')
        predictor.relax(atoms[:8])  # threads and caches are warm from here on
        print(f'{name}, one call')
        measure(predictor, [atoms])
        print(f'{name}, one structure at a time')
        measure(predictor, [[one] for one in atoms])


if __name__ == '__main__':
    main(*sys.argv[1:])
