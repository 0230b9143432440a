"""What a screen costs beside bare predictions, how much memory it takes, and kills.

    python benchmarks/screening.py SEEDS

SEEDS are JSON lines of relaxed structures (numbers, cell, frac), gzipped, which are
strained and displaced here; without them, crystals of random prototypes and elements are
taken. Screens and bare calls of ``Predictor.relax`` take the same structures in turn.
"""

import argparse
import gzip
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.io import write

from ase_deeprelax import Predictor, screen
from ase_deeprelax.compare.tables import Table
from ase_deeprelax.predict.stream import WINDOW
from ase_deeprelax.screening import Results
from ase_deeprelax.testing import symmetric_crystals

ROOT = Path(__file__).parents[1]
# How often screens and bare predictions are compared, each time with other structures.
TURNS = 4


def structures(file, n):
    """``n`` unrelaxed structures."""
    if file is None:
        return symmetric_crystals(n)
    rng = np.random.default_rng(0)
    with gzip.open(file, 'rt') as lines:
        records = [json.loads(line) for line in lines]
    found = []
    for k in range(n):
        one = records[k % len(records)]
        atoms = Atoms(
            one['numbers'], cell=one['cell'], scaled_positions=one['frac'], pbc=True
        )
        strain = rng.uniform(0.95, 1.07) * (np.eye(3) + rng.uniform(-0.03, 0.03, (3, 3)))
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        found.append(atoms)
    return found


def timed(work):
    """Wall time and processor time of a call, s."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return np.array([time.perf_counter() - wall, time.process_time() - cpu])


def compare(atoms, model, folder):
    """Rates of bare predictions and of screens of the same structures, in turn."""
    predictor = Predictor(model, device='cpu')
    predictor.relax(atoms[:64])
    bare, screened = np.zeros(2), np.zeros(2)
    for k in range(TURNS):
        part = atoms[k::TURNS]
        file, out = folder / f'{k}.extxyz', folder / f'{k}'
        write(file, part)
        bare += timed(lambda part=part: predictor.relax(part))
        screened += timed(
            lambda file=file, out=out: screen(file, out, model=model, device='cpu')
        )
    lines = [
        [name, *(f'{rate:.1f}' for rate in len(atoms) / seconds)]
        for name, seconds in (('relax', bare), ('screen', screened))
    ]
    lines.append(['screen over relax', *(f'{ratio:.3f}' for ratio in bare / screened)])
    size = np.mean([len(one) for one in atoms])
    print(
        f'{len(atoms):,} structures of {size:.1f} atoms on average in {TURNS} screens, '
        f'model {predictor.name!r}, {torch.get_num_threads()} threads\n'
    )
    heads = ['', 'structures per s of wall time', 'structures per s of processor time']
    print(Table(heads, lines).as_markdown(), flush=True)


def begin(source, out, options):
    """A screen in a process of its own, which prints its peak memory, kB."""
    # At least ten packs, so that there is something to kill.
    pack = min(WINDOW, max(1, options.structures // 10))
    code = (
        'import sys; from ase_deeprelax import screen; '
        f'screen(*sys.argv[1:], model={options.model!r}, pack={pack}, device="cpu"); '
        'print(*(line.split()[1] for line in open("/proc/self/status") '
        'if line.startswith("VmHWM")))'
    )
    return subprocess.Popen(  # noqa: S603
        [sys.executable, '-c', code, str(source), str(out)],
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def finished(process):
    """Peak memory, MB, of a process that ends well."""
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit('a screen failed')
    return int(output) / 1024


def memory(atoms, folder, options):
    """Peak memory of screens of more and more structures, the last one of all."""
    n, lines = len(atoms), []
    for count in (1, n // 20, n // 4, n):
        write(folder / 'source.extxyz', atoms[:count])
        screened = begin(folder / 'source.extxyz', folder / f'whole{count}', options)
        lines.append([f'{count:,}', f'{finished(screened):.0f}'])
    print('\nMemory of the process, with Python, torch and the model\n')
    heads = ['structures', 'peak / MB']
    print(Table(heads, lines, text_columns=()).as_markdown(), flush=True)


def kill_twice(source, out, options):
    """Screen a file, killed after a third and after two thirds of its packs."""
    process = begin(source, out, options)
    for share in (1 / 3, 2 / 3):
        while not started(out) or done(out) < share:
            if process.poll() is not None:
                raise SystemExit('a screen ended before it was killed')
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = begin(source, out, options)
    finished(process)


def started(out):
    """Whether a screen has a manifest."""
    return (out / 'manifest.json').exists()


def done(out):
    """Share of a screen that is done."""
    found = Results(out)
    return len(found) / found.plan.n_structures


def same(one, other):
    """Print whether two screens have the same ids, and how far their numbers differ."""
    numbers = ['volume_ratio', 'dmax', 'sigma']
    first, second = (
        Results(out).table(columns=['id', *numbers]).to_pydict() for out in (one, other)
    )
    ids = first['id'] == second['id'] and len(set(first['id'])) == len(first['id'])
    apart = max(np.abs(np.subtract(first[name], second[name])).max() for name in numbers)
    packs = list((other / 'packs').iterdir())
    size = sum(file.stat().st_size for file in packs) / len(Results(other))
    print(
        f'\nKilled twice on the way and begun again: the same ids, each once: '
        f'{"yes" if ids else "no"}; largest difference of a number: {apart:.2g}; '
        f'quarantined: {Results(one).n_quarantined} and {Results(other).n_quarantined}; '
        f'{len(packs)} packs, {size:.0f} bytes per structure'
    )


def main():
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('seeds', nargs='?')
    parser.add_argument(
        '--structures', type=int, default=20_000, help='of the longest screen'
    )
    parser.add_argument(
        '--compared', type=int, default=4096, help='beside bare predictions'
    )
    parser.add_argument('--model', default='default')
    options = parser.parse_args()
    atoms = structures(options.seeds, max(options.structures, options.compared))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compare(atoms[: options.compared], options.model, folder)
        atoms = atoms[: options.structures]
        memory(atoms, folder, options)
        kill_twice(folder / 'source.extxyz', folder / 'killed', options)
        same(folder / f'whole{len(atoms)}', folder / 'killed')


if __name__ == '__main__':
    main()
