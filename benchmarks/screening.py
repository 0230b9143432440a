"""What a screen costs beside bare predictions, how much memory it takes, and kills.

Usage: python benchmarks/screening.py [STRUCTURES [N [MODEL]]]

STRUCTURES are JSON lines of relaxed structures (numbers, cell, frac), gzipped, which are
strained and displaced here; without them, crystals of random prototypes and elements are
taken. N, 20000 by default, is how many the longest screen has. With MODEL the long screens
are made with another model than the default one: a small one shows memory and kills sooner.
"""

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
from ase_deeprelax.screening import Results
from ase_deeprelax.testing import symmetric_crystals

ROOT = Path(__file__).parents[1]
# Structures of a comparison with bare predictions (a whole pack), and how often it is made.
COMPARED, TIMES = 1024, 4


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


def compare(atoms, folder):
    """Rates of bare predictions and of screens of the same structures, in turn."""
    predictor = Predictor(device='cpu')
    predictor.relax(atoms[:64])
    bare, screened = np.zeros(2), np.zeros(2)
    for k in range(TIMES):
        part = atoms[k * COMPARED : (k + 1) * COMPARED]
        write(folder / f'{k}.extxyz', part)
        bare += timed(lambda part=part: predictor.relax(part))
        screened += timed(
            lambda k=k: screen(folder / f'{k}.extxyz', folder / f'{k}', device='cpu')
        )
    n = TIMES * COMPARED
    print(f'{n} structures of {np.mean([len(a) for a in atoms]):.1f} atoms on average')
    for name, seconds in (('relax', bare), ('screen', screened)):
        wall, cpu = n / seconds
        print(f'  {name:7} {wall:6.1f} structures/s of wall time, {cpu:6.1f} of processor')
    wall, cpu = bare / screened
    print(
        f'  screen over relax: {wall:.3f} by wall time, {cpu:.3f} by processor time',
        flush=True,
    )


def begin(source, out, model):
    """A screen in a process of its own, which prints its peak memory, kB, and time, s."""
    code = (
        'import sys, time; from ase_deeprelax import screen; '
        'screen(sys.argv[1], sys.argv[2], model=sys.argv[3], device="cpu"); '
        'print(*(line.split()[1] for line in open("/proc/self/status") '
        'if line.startswith("VmHWM")), time.process_time())'
    )
    return subprocess.Popen(  # noqa: S603
        [sys.executable, '-c', code, str(source), str(out), model],
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def finished(process):
    """Peak memory, MB, and processor time, s, of a process that ends well."""
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit('a screen failed')
    peak, seconds = output.split()
    return int(peak) / 1024, float(seconds)


def memory(source, out, model, n):
    """Screen a file; print peak memory and rate."""
    start = time.perf_counter()
    peak, cpu = finished(begin(source, out, model))
    wall = time.perf_counter() - start
    print(
        f'  {n:6} structures: {peak:5.0f} MB, {wall:5.0f} s of wall time, {cpu:5.0f} s of '
        f'processor time: {n / cpu:5.1f} structures/s of it',
        flush=True,
    )


def kill_twice(source, out, model, n):
    """Screen a file, killed after a third and after two thirds."""
    for share in (1 / 3, 2 / 3):
        process = begin(source, out, model)
        while len(list((out / 'packs').glob('[0-9]*'))) < share * n / 1024:
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished(begin(source, out, model))


def same(one, other):
    """Whether two screens have the same ids, and how far their numbers differ."""
    names = ['id', 'ok', 'problem', 'volume_ratio', 'dmax', 'sigma']
    first, second = (Results(out).table(columns=names).to_pydict() for out in (one, other))
    ids = first['id'] == second['id'] and len(set(first['id'])) == len(first['id'])
    apart = max(
        np.abs(np.subtract(first[name], second[name])).max()
        for name in ('volume_ratio', 'dmax', 'sigma')
    )
    bad = [Results(out).n_quarantined for out in (one, other)]
    print(f'  same ids, each once: {ids}; largest difference of a number: {apart:.1e}')
    print(f'  quarantined: {bad[0]} and {bad[1]}')


def main(file=None, n='20000', model='default'):
    """All of it."""
    n = int(n)
    print(f'{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}')
    atoms = structures(file, n)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compare(atoms, folder)
        print(f'peak memory, with Python, torch and the model {Path(model).name}')
        for count in (1, n // 20, n // 4, n):
            write(folder / 'source.extxyz', atoms[:count])
            memory(folder / 'source.extxyz', folder / f'whole{count}', model, count)
        del atoms
        print('killed twice on the way')
        kill_twice(folder / 'source.extxyz', folder / 'killed', model, n)
        same(folder / f'whole{n}', folder / 'killed')
        packs = list((folder / 'killed/packs').iterdir())
        size = sum(file.stat().st_size for file in packs)
        print(f'  {len(packs)} packs, {size / n:.0f} bytes per structure')


if __name__ == '__main__':
    main(*sys.argv[1:])
