"""How long one answer takes: one shot, and relaxations with potentials, in one run.

A seeded sample of pairs. The shipped models answer all of them in one call and one by one.
Each potential relaxes cell and positions to 0.05 eV/A, with FIRE, the field's habit, and
with ElasticBFGS, the quickest here: one by one, and as many per forward pass as hold 256
atoms, a crystal that has converged making room for the next. Prints a markdown table of CPU
time on one thread, in which other programs do not count.

    python benchmarks/rivals.py pairs_wbm_dev.jsonl.gz --weights FOLDER --limit 40

``--weights`` as in `iterative.py`.
"""

import argparse
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from ase.optimize import FIRE
from cpu_time import medians, timed
from iterative import FMAX, POTENTIALS, STEPS, aggregation, located, sample

from ase_deeprelax import ElasticBFGS, Predictor, available_models
from ase_deeprelax.calculators.batched import batch_potential
from ase_deeprelax.compare.iterative import Iterative
from ase_deeprelax.compare.tables import Table
from ase_deeprelax.optimize.many import relax_batched

BATCH_ATOMS = 256
# One-shot answers are so quick that the median of repeats is taken.
REPEATS = 5
# The models whose one call all ways are compared with.
FIRST = ('deeprelax', 'ensemble')


def one_shot(name, inputs):
    """Rows of a shipped model."""
    predictor = Predictor(name, device='cpu')
    predictor.relax(inputs[:8])  # caches are warm from here on
    ways = {
        'one call': lambda: predictor.relax(inputs),
        'one by one': lambda: [predictor.relax([atoms]) for atoms in inputs],
    }
    for way, seconds in medians(ways, REPEATS).items():
        yield name, way, [0 for _ in inputs], seconds


def relaxed(name, weights, inputs):
    """Rows of a potential."""
    for optimizer in (FIRE, ElasticBFGS):
        title = f'{name}, {optimizer.__name__}'
        iterative = Iterative(
            located(name, weights), optimizer=optimizer, fmax=FMAX, steps=STEPS
        )
        potential = batch_potential(iterative.calculator)
        potential(inputs[:2])
        iterative(inputs[:1])
        results, seconds = timed(lambda: iterative(inputs))  # noqa: B023 - called at once
        yield title, 'one by one', [result.steps + 1 for result in results], seconds
        together = relax_batched(
            enumerate(inputs),
            potential,
            optimizer=optimizer,
            fmax=FMAX,
            steps=STEPS,
            batch_atoms=BATCH_ATOMS,
        )
        ends, seconds = timed(lambda: list(together))  # noqa: B023
        yield title, 'batched', [outcome.calls for _, outcome in ends], seconds


def main():
    """Time all ways, then print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('pairs', type=Path)
    parser.add_argument('--weights', type=Path)
    parser.add_argument('--limit', type=int, default=40, metavar='N')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--potential', action='append', choices=POTENTIALS)
    options = parser.parse_args()
    torch.set_num_threads(1)

    inputs = [pair.unrelaxed for pair in sample(options.pairs, options.limit, options.seed)]
    rows = [row for name in available_models() for row in one_shot(name, inputs)]
    with ExitStack() as stack:
        stack.enter_context(aggregation(options.weights))
        for name in options.potential or POTENTIALS:
            rows += relaxed(name, options.weights, inputs)
    times = {(name, way): seconds for name, way, _, seconds in rows}
    firsts = {f'x {name}, one call': times[name, 'one call'] for name in FIRST}
    firsts['x ensemble, one by one'] = times['ensemble', 'one by one']
    titles = ['', '', 'calls, median', 'CPU ms each', *firsts]
    lines = [
        [
            name,
            way,
            f'{np.median(calls):.0f}',
            f'{1e3 * seconds / len(inputs):.1f}',
            *(f'{seconds / first:.1f}' for first in firsts.values()),
        ]
        for name, way, calls, seconds in rows
    ]
    size = np.mean([len(atoms) for atoms in inputs])
    print(f'{len(inputs)} of {options.pairs.name}, {size:.1f} atoms on average\n')
    print(Table(titles, lines, text_columns=(0, 1)).as_markdown())


if __name__ == '__main__':
    main()
