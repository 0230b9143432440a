"""Rattled and strained crystals: does a model bring them back?

The relaxed halves of a seeded sample of pairs are strained (by a symmetric strain whose
entries have the given deviation) and rattled (each coordinate by the given deviation), and
predicted with ``symmetry='free'``, since a rattled crystal has none to keep. Prints a
markdown table: mean / median error against where they came from, beside that of taking the
input for the answer.

    python benchmarks/perturbed.py pairs_wbm_dev.jsonl.gz --limit 500
"""

import argparse
from pathlib import Path

import numpy as np
from iterative import sample

from ase_deeprelax import Predictor, available_models
from ase_deeprelax.compare.baselines import Dummy
from ase_deeprelax.compare.metrics import Reference, summarise
from ase_deeprelax.compare.tables import Table, percent
from ase_deeprelax.data.pair import make_pair

LEVELS = ((0.0, 0.05), (0.0, 0.15), (0.03, 0.0), (0.08, 0.0), (0.03, 0.05), (0.08, 0.15))
SHOWN = {
    'coord_mae': 'coord_mae/A',
    'lattice_mae': 'lattice_mae/A',
    'volume_mae': 'volume_mae/A^3',
}


def perturbed(pair, strain, rattle, rng):
    """A pair whose unrelaxed half is the relaxed one, strained and rattled."""
    start = pair.relaxed.copy()
    change = rng.normal(0.0, strain, (3, 3)) if strain else np.zeros((3, 3))
    stretch = np.eye(3) + (change + change.T) / 2
    start.set_cell(start.cell.array @ stretch, scale_atoms=True)
    start.positions += rng.normal(0.0, rattle, start.positions.shape) if rattle else 0.0
    return make_pair(pair.id, start, pair.relaxed)


def main():
    """Perturb, predict, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('pairs', type=Path)
    parser.add_argument('--limit', type=int, default=500, metavar='N')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--model', action='append', help='default: all that are shipped')
    options = parser.parse_args()

    pairs = sample(options.pairs, options.limit, options.seed, ok_only=True)
    methods = {'dummy': Dummy()}
    for name in options.model or available_models():
        methods[name] = Predictor(name, symmetry='free').relax
    rows = []
    for strain, rattle in LEVELS:
        rng = np.random.default_rng(options.seed)
        cases = [perturbed(pair, strain, rattle, rng) for pair in pairs]
        references = [Reference(case) for case in cases]
        for name, relax in methods.items():
            predicted = [
                getattr(a, 'atoms', a) for a in relax([c.unrelaxed for c in cases])
            ]
            both = zip(references, predicted, strict=True)
            found = summarise([reference.errors(atoms) for reference, atoms in both])
            cells = [
                f'{found[key]["mean"]:.4f} / {found[key]["median"]:.4f}' for key in SHOWN
            ]
            rows.append([percent(strain), f'{rattle:g} A', name, *cells])
    print(Table(['strain', 'rattle', '', *SHOWN.values()], rows, (0, 1, 2)).as_markdown())


if __name__ == '__main__':
    main()
