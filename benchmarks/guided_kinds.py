"""A potential, and prediction and potential together, on layers, slabs, defects and alloys.

The sets of `kinds.py`, in samples that are spread over each, and crystals in the cell that
DFT found. Each structure is predicted in one shot; relaxed with the potential from the
input and from the prediction; and relaxed under both at once (guided), to 0.05 eV/A. Prints
a markdown table: by how many percent the errors lie below those of the input, as mean /
median, and the calls of the potential.

    python benchmarks/guided_kinds.py --potential tensornet:FOLDER \
        --slabs pairs_slab.jsonl.gz --defects pairs_defect.jsonl.gz \
        --alloys pairs_alloy.jsonl.gz --crystals PAIRS

What is fixed in a pair is fixed in all relaxations.
"""

import argparse
from pathlib import Path

import kinds
from guided import answers, compared

from ase_deeprelax.calculators.registry import get_calculator
from ase_deeprelax.compare.tables import Table
from ase_deeprelax.data.pairs import spread
from ase_deeprelax.predict import Predictor

# The strength in a fixed cell was fitted to the crystals of `kinds.py`: others are taken.
SETS = (
    *(one for one in kinds.SETS if 'at_relaxed_cell' not in one[-1]),
    ('crystals', 'crystals, cell fixed', {'at_relaxed_cell': True}),
)


def main():
    """Relax, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for file in dict.fromkeys(file for file, *_ in SETS):
        parser.add_argument(f'--{file}', type=Path)
    parser.add_argument('--potential', default='chgnet')
    parser.add_argument('--model', default='default')
    parser.add_argument('--limit', type=int, default=60, help='pairs of each set')
    options = parser.parse_args()
    predictor = Predictor(options.model)
    potential = get_calculator(options.potential)
    name = options.potential.partition(':')[0]
    rows = []
    for file, title, which in SETS:
        if (path := getattr(options, file)) is None:
            continue
        pairs = spread(kinds.chosen(path, **which), options.limit)
        ways, strengths = answers(pairs, predictor, name, potential)
        pulls = ', '.join(f'{strength:g} eV/A' for strength in strengths.values())
        head = f'{title}, {len(pairs)}'
        for way, *cells in compared(pairs, ways):
            rows.append([head, way, *cells, pulls if way.endswith('guided') else ''])
    heads = ['pairs', "cut of the input's error, %", 'mean', 'median', 'calls, median']
    print(Table([*heads, 'strength'], rows, (0, 1)).as_markdown())


if __name__ == '__main__':
    main()
