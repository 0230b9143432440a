"""Layered van der Waals crystals: lattice constants a and c against a reference set.

Models predict from the reference cell strained by 3 % in each direction, shorter and
longer; potentials relax from the reference cell itself. Prints a markdown table of errors
in % (of the model's two answers the larger one), and how many a lie within 1.5 %. The
models and potentials answer for PBE, which binds layers too weakly: a c that is too long
is PBE's.

    python benchmarks/layered.py layered_lm26.jsonl.gz --model default --potential chgnet
"""

import argparse
import gzip
import json
import warnings
from pathlib import Path

import numpy as np
from ase import Atoms

from ase_deeprelax import Predictor
from ase_deeprelax.compare.iterative import Iterative
from ase_deeprelax.compare.tables import Table

STRAINS = (-0.03, 0.03)
RIGHT = 1.5


def read(path):
    """Names and reference structures."""
    with gzip.open(path, 'rt') as lines:
        records = [json.loads(line) for line in lines]
    return {
        r['id'].partition('-')[2]: Atoms(
            r['numbers'], cell=r['cell'], scaled_positions=r['frac'], pbc=True
        )
        for r in records
    }


def strained(atoms, strain):
    """A copy with all lengths changed alike."""
    atoms = atoms.copy()
    atoms.set_cell(atoms.cell.array * (1 + strain), scale_atoms=True)
    return atoms


def errors(relaxed, reference):
    """Of a and c, %."""
    new, old = (np.linalg.norm(x.cell.array, axis=1)[[0, 2]] for x in (relaxed, reference))
    return 100 * (new / old - 1)


def main():
    """Predict, relax, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('crystals', type=Path)
    parser.add_argument('--model', action='append', default=[])
    parser.add_argument('--potential', action='append', default=[])
    options = parser.parse_args()

    references = read(options.crystals)
    found = {}
    for model in options.model:
        inputs = [strained(x, strain) for x in references.values() for strain in STRAINS]
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', '.*outside the training range')
            results = iter(Predictor(model).relax(inputs))
        found[model] = [
            max((errors(next(results).atoms, x) for _ in STRAINS), key=lambda e: abs(e[0]))
            for x in references.values()
        ]
    for potential in options.potential:
        results = Iterative(potential)(list(references.values()))
        both = zip(results, references.values(), strict=True)
        found[potential.partition(':')[0]] = [errors(r.atoms, x) for r, x in both]
    rows = [
        [name, *(f'{e:+.1f}' for method in found.values() for e in method[k])]
        for k, name in enumerate(references)
    ]
    titles = [f'{method}: {axis}' for method in found for axis in ('a/%', 'c/%')]
    print(Table(['', *titles], rows).as_markdown())
    for method, values in found.items():
        right = sum(abs(e[0]) <= RIGHT for e in values)
        mean = np.mean(values, axis=0)
        print(
            f'\n{method}: a within {RIGHT} % for {right} of {len(values)}; '
            f'mean error of a {mean[0]:+.1f} %, of c {mean[1]:+.1f} %'
        )


if __name__ == '__main__':
    main()
