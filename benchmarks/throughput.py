"""How long the shipped models take for a structure, and for what.

Each model relaxes the structures in one call, and some of them one by one, with one thread
of torch and with more, and in one call with worker processes of one thread each, which were
started before. Every repeat goes through all ways once, and medians are shown. The parts
are wall times, as ``Predictor.timings`` has them; CPU time, in which other programs do not
count, stands beside where there is one process. The ratios hold within the run.

    python benchmarks/throughput.py PAIRS --threads 1 2 --workers 2
    python benchmarks/throughput.py PAIRS --device cuda --workers 16

Models that `deeprelax compile` has compiled for this machine have rows with their machine
code too, and those with workers are with it. PAIRS is a file of pairs, of which the
unrelaxed halves are taken, spread over the file; without it, crystals of random prototypes
and elements are.
"""

import argparse
import os
import tempfile
from pathlib import Path
from time import perf_counter, process_time
from unittest import mock

import numpy as np
import torch

from ase_deeprelax import Predictor, available_models
from ase_deeprelax.compare.tables import Table
from ase_deeprelax.data.pairs import read_pairs, spread
from ase_deeprelax.models.compiled import code_file
from ase_deeprelax.predict.prepare import PARTS
from ase_deeprelax.testing import symmetric_crystals

N, SINGLE = 256, 64


def structures(pairs_file=None):
    """``N`` of them."""
    if pairs_file is None:
        return symmetric_crystals(N)
    return [pair.unrelaxed for pair in spread(read_pairs(pairs_file), N)]


def with_and_without_code(names, device):
    """Predictors by name; machine code, where there is some, makes a second one."""
    with (
        tempfile.TemporaryDirectory() as empty,
        mock.patch.dict(os.environ, XDG_CACHE_HOME=empty),
    ):
        found = {name: Predictor(name, device=device) for name in names}
    for name in names:
        file = code_file(found[name].model)
        if file is not None and file.exists():
            found[f'{name}, compiled'] = Predictor(name, device=device)
    return found


def measure(predictor, batches, workers=1):
    """Relax each batch in a call of its own: wall time, CPU time and parts, ms each."""
    parts = np.zeros(len(PARTS))
    start, begun = perf_counter(), process_time()
    for batch in batches:
        predictor.relax(batch, workers=workers)
        parts += [predictor.timings[part] for part in PARTS]
    times = [perf_counter() - start, process_time() - begun, *parts]
    return 1e3 * np.array(times) / sum(map(len, batches))


def main():
    """Each model both ways, with each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('pairs', type=Path, nargs='?')
    parser.add_argument('--threads', type=int, nargs='+', default=[1])
    parser.add_argument('--workers', type=int, default=1, help='default: no row of them')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--model', action='append', help='default: all that are shipped')
    parser.add_argument('--device', default='cpu')
    options = parser.parse_args()
    atoms = structures(options.pairs)
    names = options.model or list(available_models())
    predictors = with_and_without_code(names, options.device)
    ways = {'one call': [atoms], 'one by one': [[x] for x in spread(atoms, SINGLE)]}
    hows = [(way, n, 1) for way in ways for n in options.threads]
    if options.workers != 1:
        hows.append(('one call', 1, options.workers))
    found = {
        (model, *how): []
        for model in predictors
        for how in hows
        # Workers find the machine code by themselves.
        if how[2] == 1 or f'{model}, compiled' not in predictors
    }
    for predictor in predictors.values():
        predictor.relax(atoms[:8])  # caches are warm from here on
        predictor.relax(atoms, workers=options.workers)
    for _ in range(options.repeats):
        for (model, way, threads, workers), times in found.items():
            torch.set_num_threads(threads)
            times.append(measure(predictors[model], ways[way], workers))
    mean = sum(map(len, atoms)) / len(atoms)
    source = options.pairs.name if options.pairs else 'prototypes'
    print(
        f'{len(atoms)} structures of {mean:.1f} atoms on average from {source}, one by one '
        f'{len(ways["one by one"])} of them; medians of {options.repeats}\n'
    )
    medians = {key: np.median(times, axis=0) for key, times in found.items()}
    rows = []
    for (model, way, threads, workers), (wall, cpu, *parts) in medians.items():
        single = medians[model, way, options.threads[0], 1][0]
        shown = [f'{ms:.2f}' for ms in (wall, cpu, *parts, wall - sum(parts))]
        name = way if workers == 1 else f'{way}, {workers} workers'
        if workers != 1:
            shown[1] = shown[-1] = '-'  # of this process alone
        row = [model, name, f'{threads}', *shown]
        rows.append([*row, f'{single / wall:.2f}', f'{1e3 / wall:.0f}'])
    heads = ['model', '', 'threads', 'ms each', 'CPU ms each']
    heads += [f'{part} / ms' for part in PARTS]
    heads += ['rest / ms', f'x {options.threads[0]} threads', 'structures / s']
    print(Table(heads, rows, (0, 1)).as_markdown())


if __name__ == '__main__':
    main()
