"""Fit the calibration of a shipped model, and write it into the model's folder.

    python benchmarks/calibrate.py DATA --labels LABELS --potential chgnet

``DATA`` is the folder of the pair files that the README names, ``LABELS`` that of the
labelled ones. Pairs that the model was never trained on are fitted to: the validation
parts, and files of which nothing was used in training, all with a stated open licence;
and new compounds, which another potential than that of the training has relaxed (the
errors of the training's own are those of the model too):

    deeprelax label LABELS/substituted.jsonl --kind bulk --count 1000 --seed 77 \
        --relaxed DATA/seeds_mp.jsonl.gz --exclude DATA/exclude_formulas.txt \
        --no-hubbard --start none --steps 100 --potential chgnet

Of these, the ones with one element replaced by a similar one count, as in WBM, and none
whose composition is among the labels of the training.
Prints, for each file, the share of errors inside their 90 % intervals where each half of
the file was covered by a fit to the other halves. Potentials are fitted to 200 pairs of
the Materials Project, to 200 of them in the cell that DFT found, to 200 of monolayers, and
to PdPtAg(111). With ``--potentials-only`` nothing else is fitted.
"""

import argparse
import gzip
import json
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
from ase import Atoms
from kinds import at_relaxed
from pymatgen.core import Element

from ase_deeprelax.calculators.registry import get_calculator
from ase_deeprelax.compare.calibrate import calibrate, coverage_table
from ase_deeprelax.compare.calibrate_potentials import calibrate_potential
from ase_deeprelax.data.formula import composition
from ase_deeprelax.data.pairs import read_pairs
from ase_deeprelax.models.folders import find_model
from ase_deeprelax.models.store import load_model
from ase_deeprelax.predict import Predictor

# Name, file, split, collections (all: None).
UNSEEN = (
    ('Materials Project', 'pairs_mp', 'val', None),
    ('Pandey', 'pairs_pandey2021', 'val', None),
    ('2DMatPedia', 'pairs_2d', 'val', ['2dmatpedia']),
    ('MXenes', 'pairs_2d', 'val', ['mxene-db']),
    ('PdPtAg(111)', 'pairs_slab', None, ['PdPtAg-111']),
    ('ShakeNBreak', 'pairs_defect', None, ['ShakeNBreak']),
    ('doped', 'pairs_defect', None, ['doped:CdTe', 'doped:CdTe2', 'doped:MgO', 'doped:v']),
)
# Structures of the training: pair files (their inputs), and files of relaxed structures.
SEEN = ('pairs_mp', 'pairs_pandey2021', 'pairs_2d', 'seeds_mp', 'seeds_inorganic')
LABELLED = ('bulk', 'monolayer', 'slab', 'defect', 'fixed-cell', 'alloy')
# Elements whose Mendeleev numbers differ by this much at most are similar: about a column
# of the periodic table.
SIMILAR = 12


def unseen(data, name, split, sources):
    """The sane pairs of a file."""
    pairs = read_pairs(data / f'{name}.jsonl.gz', split)
    return [p for p in pairs if p.ok and (sources is None or p.src in sources)]


def new_compounds(data, path):
    """Labelled pairs in which one element of a known crystal became a similar one."""
    with gzip.open(data / 'seeds_mp.jsonl.gz', 'rt') as lines:
        parents = {entry['id']: set(entry['numbers']) for entry in map(json.loads, lines)}
    for pair in read_pairs(path):
        parent = parents[pair.id.partition('-substitution-')[0]]
        child = set(pair.unrelaxed.numbers.tolist())
        if len(parent - child) != 1 or len(child - parent) != 1:
            continue  # two elements, or a part of the sites of one
        old, new = (
            Element.from_Z(*z).mendeleev_no for z in (parent - child, child - parent)
        )
        if abs(old - new) <= SIMILAR:
            yield pair


def inputs(path, split='train'):
    """The structures of a file, as they were given to the network."""
    opened = gzip.open if path.suffix == '.gz' else open
    with opened(path, 'rt') as lines:
        for line in lines:
            entry = json.loads(line)
            if entry.get('split', split) != split:
                continue
            cell, frac = (entry.get(f'{key}0', entry.get(key)) for key in ('cell', 'frac'))
            yield Atoms(
                entry['numbers'],
                cell=cell,
                scaled_positions=np.array(frac),
                pbc=entry.get('pbc', True),
            )


def calibrated(arguments, files, predictor):
    """The calibration, without what is known about potentials."""
    labelled = []
    if arguments.labels:
        for name in LABELLED:
            labelled += inputs(arguments.labels / f'{name}.jsonl')
        trained = {composition(atoms.numbers) for atoms in labelled}
        path = arguments.labels / 'substituted.jsonl'
        files['new compounds'] = [
            pair
            for pair in new_compounds(arguments.data, path)
            if composition(pair.numbers) not in trained
        ]
    paths = [arguments.data / f'{name}.jsonl.gz' for name in SEEN]
    known = chain(chain.from_iterable(map(inputs, paths)), labelled)
    return calibrate(files, predictor, known=known)


def main():
    """Fit, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path)
    parser.add_argument('--labels', type=Path)
    parser.add_argument('--model', default='default')
    parser.add_argument('--potential', action='append', default=[])
    parser.add_argument('--potentials-only', action='store_true')
    arguments = parser.parse_args()
    files = {name: unseen(arguments.data, *rest) for name, *rest in UNSEEN}
    predictor = Predictor(load_model(arguments.model))
    if arguments.potentials_only:
        found = predictor.model.calibration
    else:
        found = calibrated(arguments, files, predictor)
        print(coverage_table(found).as_markdown())
    crystals_and_layers = ('Materials Project', '2DMatPedia', 'MXenes')
    beside = [pair for name in crystals_and_layers for pair in files[name]]
    beside += map(at_relaxed, files['Materials Project'])
    beside += files['PdPtAg(111)']
    potentials = dict(found.potentials)
    for potential in arguments.potential:
        name = potential.partition(':')[0]
        print(f'\n{name}')
        potentials[name] = calibrate_potential(
            beside, predictor, get_calculator(potential), tell=print
        )
        print(potentials[name])
    found = replace(found, potentials=potentials)
    found.save(find_model(arguments.model), predictor.sha256)


if __name__ == '__main__':
    main()
