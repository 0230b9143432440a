"""Calls and time that a prediction saves relaxations with real potentials, and energies.

A seeded sample of pairs; each unrelaxed half is relaxed with each potential and optimizer,
positions and cell together, as it is and from the prediction, to 0.05 eV/A. Prints
`compare`'s tables, and names structures that ended higher or converged only from the
unrelaxed one.

    python benchmarks/savings.py pairs_wbm_dev.jsonl.gz --weights FOLDER --out FOLDER

With ``--perfect`` the relaxed halves are the predictions: these are the savings of a model
without errors, for potentials whose minima differ from those of DFT.

``--weights`` is a folder that holds matgl models, one folder each; TensorNet is taken from
the one whose name begins so. ``OUT/runs.jsonl`` holds a line for each finished run, and
``OUT/savings.json`` all results; a run that was stopped goes on where it was, and a larger
``--limit`` adds to what a smaller one did.
"""

import argparse
import json
from pathlib import Path

import torch
from iterative import located, sample

from ase_deeprelax.compare.comparison_tables import comparison_text
from ase_deeprelax.compare.savings import compare

FMAX, STEPS = 0.05, 500


def perfect(pairs):
    """A model that knows the relaxed structures of these pairs."""
    known = {pair.unrelaxed.positions.tobytes(): pair.relaxed for pair in pairs}

    def relaxed_half(structures):
        return [known[atoms.positions.tobytes()] for atoms in structures]

    return relaxed_half


def main():
    """Relax, then print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('pairs', type=Path)
    parser.add_argument('--out', type=Path, default=Path('savings'))
    parser.add_argument('--weights', type=Path)
    parser.add_argument('--limit', type=int, default=100, metavar='N')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--potential', action='append', help='default: chgnet, tensornet')
    parser.add_argument('--optimizer', action='append', help='default: FIRE, BFGS')
    parser.add_argument('--model', default='default')
    parser.add_argument('--perfect', action='store_true', help='predict the relaxed half')
    parser.add_argument('--batched', action='store_true', help='also many at a time')
    options = parser.parse_args()
    torch.set_num_threads(1)

    names = options.potential or ['chgnet', 'tensornet']
    pairs = sample(options.pairs, options.limit, options.seed, ok_only=True)
    result = compare(
        pairs,
        {name: located(name, options.weights) for name in names},
        optimizers=options.optimizer or ['FIRE', 'BFGS'],
        model=perfect(pairs) if options.perfect else options.model,
        fmax=FMAX,
        steps=STEPS,
        batched=options.batched,
        out=options.out,
        progress=True,
    )
    (options.out / 'savings.json').write_text(json.dumps(result, allow_nan=False) + '\n')
    print(f'{options.pairs.name}, seed {options.seed}: {comparison_text(result)}')


if __name__ == '__main__':
    main()
