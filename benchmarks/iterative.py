"""One-shot models beside full iterative relaxation with real potentials, against DFT.

A seeded sample of pairs; each potential relaxes cell and positions of the unrelaxed halves
with FIRE to 0.05 eV/A in at most 200 steps. Prints two markdown tables, of all pairs and
of those marked ok: errors as mean / median, how far they lie below those of taking the
input as the prediction, and CPU time on one thread, in which other programs do not count.
What fails counts as its input.

    python benchmarks/iterative.py pairs_wbm_dev.jsonl.gz --weights FOLDER --out FOLDER

``--weights`` is a folder that holds matgl models, one folder each; of those whose names
begin with M3GNet or TensorNet the potentials take theirs. If a file ``legacy_m3gnet.py``
is beside them, M3GNet runs inside its ``legacy_aggregation()``: weights of an old matgl.

Each relaxation is one line of ``OUT/POTENTIAL.jsonl``. A run that was stopped goes on where
it was, and a larger ``--limit`` adds to what a smaller one did.
"""

import argparse
import importlib.util
from contextlib import ExitStack, nullcontext
from pathlib import Path
from time import process_time

import numpy as np
import torch
from ase.build import bulk
from tqdm import tqdm

from ase_deeprelax import Predictor, available_models
from ase_deeprelax.compare.baselines import Dummy, ScaledDummy
from ase_deeprelax.compare.evaluate import cuts
from ase_deeprelax.compare.evaluation_tables import mean_and_median
from ase_deeprelax.compare.iterative import Iterative
from ase_deeprelax.compare.metrics import Reference, summarise
from ase_deeprelax.compare.tables import Table
from ase_deeprelax.data.pairs import read_pairs
from ase_deeprelax.journal import Journal

POTENTIALS = ('m3gnet', 'tensornet', 'chgnet')
FMAX, STEPS = 0.05, 200
SHOWN = ('coord_mae', 'internal_mae', 'lattice_mae', 'volume_mae')
CUT = ('coord_mae', 'lattice_mae', 'volume_mae')


def sample(path, limit, seed, *, ok_only=False, split=None):
    """``limit`` pairs; those of a smaller limit come first in those of a larger one."""
    pairs = read_pairs(path, split, ok_only=ok_only)
    order = np.random.default_rng(seed).permutation(len(pairs))
    return [pairs[k] for k in order[:limit]]


def located(name, weights):
    """'NAME:FOLDER' where the folder of weights holds a model of that name."""
    folders = sorted(weights.iterdir()) if weights else ()
    found = [folder for folder in folders if folder.name.lower().startswith(name)]
    return f'{name}:{found[0].resolve()}' if found else name


def aggregation(weights):
    """What M3GNet has to run inside of."""
    helper = weights / 'legacy_m3gnet.py' if weights else None
    if helper is None or not helper.exists():
        return nullcontext()
    spec = importlib.util.spec_from_file_location(helper.stem, helper)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.legacy_aggregation()


def journal_of(name, out, weights):
    """The relaxations with a potential that are done, all with the same weights."""
    settings = {'potential': located(name, weights), 'fmax': FMAX, 'steps': STEPS}
    return Journal(out / f'{name}.jsonl', settings)


def relax_all(pairs, potentials, out, weights):
    """Relax what is not done yet, structure by structure, so that all advance alike.

    Returns a dict of potential to a dict of the pair's id to the record of `relax_one`.
    """
    with ExitStack() as stack:
        journals = {
            name: stack.enter_context(journal_of(name, out, weights)) for name in potentials
        }
        missing = [
            (pair, name)
            for pair in pairs
            for name in potentials
            if (pair.id,) not in journals[name]
        ]
        made = {
            name: Iterative(located(name, weights), fmax=FMAX, steps=STEPS)
            for name in potentials
            if any(name == other for _, other in missing)
        }
        for iterative in made.values():  # threads and caches are warm from here on
            iterative([bulk('NaCl', 'rocksalt', a=5.6)])
        for pair, name in tqdm(missing, 'relax', unit='runs'):
            journals[name].add((pair.id,), relax_one(made[name], pair))
        return {
            name: {pair.id: journals[name][pair.id,] for pair in pairs}
            for name in potentials
        }


def relax_one(iterative, pair):
    """The record of one relaxation."""
    start = process_time()
    [result] = iterative([pair.unrelaxed])
    seconds = process_time() - start
    return {
        'id': pair.id,
        'n_atoms': len(pair),
        'ok': result.ok,
        'converged': result.converged,
        'reason': result.reason,
        'steps': result.steps,
        'cpu_seconds': seconds,
        'wall_seconds': result.timings['relax'],
        'cell': result.atoms.cell.array.tolist(),
        'positions': result.atoms.positions.tolist(),
        'errors': Reference(pair).errors(result.atoms),
    }


def relaxed_rows(records):
    """A method's errors, CPU ms one by one, and how its relaxations ended."""
    good = [record for record in records if record['ok']]
    return {
        'rows': [record['errors'] for record in records],
        'single': 1e3 * np.mean([record['cpu_seconds'] for record in records]),
        'ends': f'{len(records) - len(good)} failed, '
        f'{sum(not record["converged"] for record in good)} unconverged, median '
        f'{np.median([record["steps"] for record in records]):.0f} steps',
    }


def predicted_rows(name, pairs, references):
    """The same of a model, which is timed one by one and all at once."""
    predictor = Predictor(name, device='cpu')
    inputs = [pair.unrelaxed for pair in pairs]
    predictor.relax(inputs[:8])
    start = process_time()
    for atoms in inputs:
        predictor.relax([atoms])
    middle = process_time()
    results = predictor.relax(inputs)
    end = process_time()
    both = zip(references, results, strict=True)
    return {
        'rows': [reference.errors(result.atoms) for reference, result in both],
        'single': 1e3 * (middle - start) / len(inputs),
        'batch': 1e3 * (end - middle) / len(inputs),
        'ends': f'{sum(not result.ok for result in results)} failed',
    }


def free_rows(make, pairs, references):
    """The same of a prediction that costs nothing."""
    predicted = make([pair.unrelaxed for pair in pairs])
    both = zip(references, predicted, strict=True)
    return {'rows': [reference.errors(atoms) for reference, atoms in both]}


def table(methods, chosen):
    """Markdown for the structures at the indices ``chosen``."""
    sections = {
        name: summarise([method['rows'][k] for k in chosen])
        for name, method in methods.items()
    }
    heads = ['', *SHOWN, *(f'cut {key} / %' for key in CUT)]
    heads += ['CPU ms, one by one', 'CPU ms, one call', 'ends']
    rows = []
    for name, section in sections.items():
        cut = cuts({'dummy': sections['Dummy'], 'model': section})
        row = [name, *(mean_and_median(section[key], '.4f') for key in SHOWN)]
        row += [mean_and_median(cut[key], '.1f') for key in CUT]
        times = (methods[name].get(key) for key in ('single', 'batch'))
        row += ['' if ms is None else f'{ms:.1f}' for ms in times]
        rows.append([*row, methods[name].get('ends', '')])
    return Table(heads, rows, (0, len(heads) - 1)).as_markdown()


def main():
    """Relax, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('pairs', type=Path)
    parser.add_argument('--out', type=Path, default=Path('iterative'))
    parser.add_argument('--weights', type=Path)
    parser.add_argument('--limit', type=int, default=200, metavar='N')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--potential', action='append', choices=POTENTIALS)
    parser.add_argument('--model', action='append', help='default: all that are shipped')
    options = parser.parse_args()
    torch.set_num_threads(1)

    pairs = sample(options.pairs, options.limit, options.seed)
    potentials = options.potential or POTENTIALS
    with ExitStack() as stack:
        if 'm3gnet' in potentials:
            stack.enter_context(aggregation(options.weights))
        done = relax_all(pairs, potentials, options.out, options.weights)
    references = [Reference(pair) for pair in pairs]
    methods = {
        'Dummy': free_rows(Dummy(), pairs, references),
        'scaled Dummy': free_rows(ScaledDummy(), pairs, references),
    }
    for name in options.model or available_models():
        methods[name] = predicted_rows(name, pairs, references)
    for name in potentials:
        methods[name] = relaxed_rows([done[name][pair.id] for pair in pairs])
    ok = [k for k, pair in enumerate(pairs) if pair.ok]
    print(
        f'{len(pairs)} of {options.pairs.name}, seed {options.seed}, '
        f'{np.mean([len(pair) for pair in pairs]):.1f} atoms on average, '
        f'one thread; FIRE to {FMAX} eV/A in {STEPS} steps at most'
    )
    for title, chosen in (('all', range(len(pairs))), ('ok', ok)):
        if not chosen:
            continue
        print(f'\n{title}, {len(chosen)}\n\n{table(methods, chosen)}')


if __name__ == '__main__':
    main()
