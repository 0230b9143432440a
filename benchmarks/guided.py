"""One shot, a potential, and both together, against DFT.

A seeded sample of pairs. Each is predicted in one shot; relaxed with the potential from the
unrelaxed structure and from the prediction; and relaxed under potential and prediction at
once (guided), with the strength that the model was calibrated with, to 0.05 eV/A. Prints a
markdown table: by how many percent the errors lie below those of the input, mean and
median, and the calls of the potential.

    python benchmarks/guided.py PAIRS --potential chgnet --limit 500
"""

import argparse
from pathlib import Path

import numpy as np
from iterative import sample

from ase_deeprelax.calculators.batched import batch_potential
from ase_deeprelax.calculators.registry import get_calculator
from ase_deeprelax.compare.evaluate import cuts
from ase_deeprelax.compare.metrics import Reference, summarise
from ase_deeprelax.compare.tables import Table
from ase_deeprelax.optimize.elastic_bfgs import ElasticBFGS
from ase_deeprelax.optimize.guide import pull_of, strength_for
from ase_deeprelax.optimize.many import relax_batched
from ase_deeprelax.predict import Predictor

FMAX, STEPS = 0.05, 200
QUANTITIES = ('coord_mae', 'lattice_mae', 'volume_mae')


def relaxed(structures, potential, held, guide=None):
    """The relaxed structures, and the calls that each took."""
    ends = dict(
        relax_batched(
            enumerate(structures),
            batch_potential(potential),
            optimizer=ElasticBFGS,
            relax_cell=lambda k: not held[k],
            fmax=FMAX,
            steps=STEPS,
            guide=guide,
        )
    )
    places = range(len(structures))
    return [ends[k].atoms for k in places], [ends[k].calls for k in places]


def answers(pairs, predictor, name, potential, strength=None):
    """Structures and calls by way, and the strength (eV/A) of each kind of structure."""
    held = [pair.fixed_cell for pair in pairs]
    inputs = [pair.unrelaxed for pair in pairs]
    predictions = [
        predictor.relax([atoms], relax_cell=not cell_fixed)[0]
        for atoms, cell_fixed in zip(inputs, held, strict=True)
    ]
    calibration = predictor.model.calibration
    strengths = {
        kind: strength or strength_for(name, kind, calibration)
        for kind in sorted({one.kind for one in predictions if one.ok})
    }

    def guide(k):
        one = predictions[k]
        return pull_of(one, strengths[one.kind]) if one.ok else None

    starts = [one.atoms for one in predictions]
    ways: dict = {'one shot': (starts, [0] * len(pairs))}
    ways[f'{name}, from the input'] = relaxed(inputs, potential, held)
    ways[f'{name}, from the prediction'] = relaxed(starts, potential, held)
    ways[f'{name}, guided'] = relaxed(starts, potential, held, guide)
    return ways, strengths


def compared(pairs, ways):
    """Of each way: name, cuts of the mean and of the median, median of the calls."""
    references = [Reference(pair) for pair in pairs]

    def errors_of(structures):
        both = zip(references, structures, strict=True)
        return summarise([reference.errors(atoms) for reference, atoms in both])

    found = {way: errors_of(structures) for way, (structures, _) in ways.items()}
    found['dummy'] = errors_of([pair.unrelaxed for pair in pairs])
    rows = []
    for way, (_, calls) in ways.items():
        below = cuts(found, way)
        means, medians = (
            ' / '.join(
                '-' if below[q] is None else f'{below[q][w]:.1f}' for q in QUANTITIES
            )
            for w in ('mean', 'median')
        )
        rows.append([way, means, medians, f'{np.median(calls):.0f}'])
    return rows


def main():
    """Relax, then print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('pairs', type=Path)
    parser.add_argument('--potential', default='chgnet')
    parser.add_argument('--model', default='default')
    parser.add_argument('--limit', type=int, default=500)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--split', help='default: all pairs of the file')
    parser.add_argument('--strength', type=float, help='eV/A; default: as calibrated')
    arguments = parser.parse_args()
    pairs = sample(arguments.pairs, arguments.limit, arguments.seed, split=arguments.split)
    predictor = Predictor(arguments.model)
    potential = get_calculator(arguments.potential)
    name = arguments.potential.partition(':')[0]
    ways, strengths = answers(pairs, predictor, name, potential, arguments.strength)
    pulls = ', '.join(f'{strength:g} eV/A ({kind})' for kind, strength in strengths.items())
    print(f'{len(pairs)} pairs, model {predictor.name}, strength {pulls}\n')
    heads = ["cut of the input's error, %", 'mean', 'median', 'calls, median']
    print(Table(heads, compared(pairs, ways)).as_markdown())


if __name__ == '__main__':
    main()
