"""The rate of a screen against its workers, and what a million structures take.

    python benchmarks/screening_workers.py SEEDS
    python benchmarks/screening_workers.py SEEDS --workers 4 16 --device cuda

Every screen runs in a process of its own, each worker with one thread. Its rate is that
after the start: the wall time of a screen with as many workers, and a structure for each,
is taken off. It needs a machine that nothing else works on, with a core for each worker.

What more cores take is arithmetic: the start, one pass over the source to count and hash
it, and the structures shared out evenly at the rate that a worker had here beside the
others. Workers that share a GPU do not scale so, and of them only this is calculated: what
a million structures take on this machine.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from ase.io import write
from cpu_time import cpu_timings, timed
from screening import ROOT, structures

from ase_deeprelax import Predictor
from ase_deeprelax.compare.tables import Table
from ase_deeprelax.predict.stream import WINDOW
from ase_deeprelax.screening import open_source
from ase_deeprelax.screening.sources import scan
from ase_deeprelax.screening.store import Store
from ase_deeprelax.screening.work import relax_pack

MILLION = 1_000_000
# Nodes on paper: how many, and cores of each.
NODES = ((1, 16), (1, 64), (16, 64))
CODE = (
    'import sys; from ase_deeprelax import screen\n'
    'if __name__ == "__main__":\n'
    '    source, out, model, device, workers, pack = sys.argv[1:]\n'
    '    workers, pack = int(workers), int(pack)\n'
    '    screen(source, out, model=model, workers=workers, pack=pack, device=device)\n'
)


def screened(file, folder, options, workers, pack):
    """Wall time and processor time of a screen in processes of its own, s."""
    script = folder / 'run.py'
    script.write_text(CODE)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        words = [script, file, f'{out}/out', options.model, options.device, workers, pack]
        environment = {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': str(workers)}
        wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(  # noqa: S603
            [sys.executable, *map(str, words)], env=os.environ | environment, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return np.array([time.perf_counter() - wall, spent])


def rates(atoms, folder, options):
    """Seconds to start, structures/s, and processor time of each in ms, by workers."""
    few, many = folder / 'few.extxyz', folder / 'all.extxyz'
    write(many, atoms)
    # Each worker has four packs at least.
    pack = max(1, min(WINDOW, len(atoms) // (4 * max(options.workers))))
    found = {workers: [] for workers in options.workers}
    for _ in range(options.repeats):
        for workers, seconds in found.items():
            write(few, atoms[:workers])
            start = screened(few, folder, options, workers, 1)
            seconds.append((start, screened(many, folder, options, workers, pack)))
    rows = {}
    for workers, seconds in found.items():
        start, whole = np.median(seconds, axis=0)
        wall, spent = (whole - start) / (len(atoms) - workers)
        rows[workers] = (start[0], 1 / wall, 1e3 * spent)
    return rows


def parts(atoms, folder, options):
    """Processor time of a structure on one thread, ms, by what it is spent on."""
    torch.set_num_threads(1)
    source = open_source(folder / 'all.extxyz')
    predictor = Predictor(options.model, device=options.device)
    predictor.relax(atoms[:64])
    _, scanned = timed(lambda: scan(source))
    items = list(islice(enumerate(source.items()), WINDOW))
    _, read = timed(lambda: [item.load() for _, item in items])
    with cpu_timings():
        rows, whole = timed(lambda: relax_pack(items, predictor))
    store = Store(folder / 'store')
    store.packs.mkdir(parents=True)
    _, written = timed(lambda: store.write(0, rows))
    spent = {'read': read, **predictor.timings}
    spent['rows'] = whole - sum(spent.values())
    spent['write'] = written
    spent = {part: 1e3 * seconds / len(items) for part, seconds in spent.items()}
    return {'count and hash': 1e3 * scanned / len(atoms), **spent}


def million(measured, spent, nodes):
    """Rows: where, workers, structures/s, hours and hours of cores for a million."""
    most = max(measured)
    start, rate, _ = measured[most]
    each = rate / most
    found = [
        (f'this machine, {workers} of its cores', workers, workers, measured[workers][1])
        for workers in measured
    ]
    for count, cores in nodes:
        name = f'{cores} cores' if count == 1 else f'{count} nodes of {cores} cores'
        found.append(
            (f'{name}, on paper', count * cores, count * cores, count * cores * each)
        )
    lines = []
    for name, workers, cores, of_all in found:
        hours = (start + MILLION * (1e-3 * spent['count and hash'] + 1 / of_all)) / 3600
        lines.append(
            [name, f'{workers}', f'{of_all:.0f}', f'{hours:.2f}', f'{hours * cores:.0f}']
        )
    return lines


def main():
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('seeds', nargs='?', help='see screening.py')
    parser.add_argument('--structures', type=int, default=8192, help='of each screen')
    parser.add_argument('--workers', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--repeats', type=int, default=3, help='medians of so many turns')
    parser.add_argument('--model', default='default')
    parser.add_argument('--device', default='cpu')
    options = parser.parse_args()
    atoms = structures(options.seeds, options.structures)
    with tempfile.TemporaryDirectory() as name:
        measured = rates(atoms, Path(name), options)
        spent = parts(atoms, Path(name), options)
    size = np.mean([len(one) for one in atoms])
    print(
        f'{len(atoms):,} structures of {size:.1f} atoms on average, one thread per worker\n'
    )
    first = measured[min(measured)]
    lines = [
        [f'{n}', f'{start:.1f}', f'{rate:.1f}', f'{rate / first[1]:.2f}', f'{ms:.2f}']
        for n, (start, rate, ms) in measured.items()
    ]
    heads = [
        'workers',
        'start / s',
        'structures/s',
        f'x {min(measured)} worker',
        'CPU ms each',
    ]
    print(Table(heads, lines, text_columns=()).as_markdown())
    total = sum(spent.values())
    lines = [[part, f'{ms:.2f}', f'{100 * ms / total:.0f}'] for part, ms in spent.items()]
    print('\nProcessor time of a structure, one process\n')
    print(Table(['part', 'CPU ms each', '%'], lines).as_markdown())
    print('\nA million structures\n')
    nodes = NODES if options.device == 'cpu' else ()
    heads = ['where', 'workers', 'structures/s', 'hours', 'hours of cores']
    print(Table(heads, million(measured, spent, nodes)).as_markdown())


if __name__ == '__main__':
    main()
