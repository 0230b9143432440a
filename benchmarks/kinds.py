"""Models on monolayers, slabs, defects and alloys: how much of the input's error is cut.

What a pair says of its structure holds for the models too: a fixed cell is fixed, fixed
atoms are fixed, the vacuum stays. Prints one markdown table, cuts in % as mean / median; of
a layer only the two lattice vectors in its plane count.

    python benchmarks/kinds.py --layers pairs_2d.jsonl.gz --slabs pairs_slab.jsonl.gz \
        --defects pairs_defect.jsonl.gz --alloys pairs_alloy.jsonl.gz \
        --crystals pairs_mp.jsonl.gz --zintl pairs_pandey2021.jsonl.gz

Crystals are asked for their atoms alone, in the cell that DFT found: what DFT found for the
atoms is the answer there too.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from ase_deeprelax import available_models
from ase_deeprelax.compare.evaluate import cuts, evaluate_all
from ase_deeprelax.compare.evaluation_tables import mean_and_median
from ase_deeprelax.compare.tables import Table
from ase_deeprelax.data.pairs import read_pairs, spread

# File, what is shown, and the pairs of it: a split, or a collection.
SETS = (
    ('layers', 'monolayers', {'split': 'val'}),
    ('slabs', 'slabs with adsorbates, half fixed', {'split': 'val'}),
    ('slabs', 'PdPtAg(111), true starts', {'src': 'PdPtAg-111'}),
    ('defects', 'defects', {'split': 'val'}),
    ('defects', 'ShakeNBreak, true starts', {'src': 'ShakeNBreak'}),
    ('alloys', 'alloys, true starts', {'split': 'val'}),
    ('crystals', 'crystals of MP, cell fixed', {'split': 'val', 'at_relaxed_cell': True}),
    ('zintl', 'Zintl compounds, cell fixed', {'split': 'val', 'at_relaxed_cell': True}),
)
LIMIT = 1000  # pairs of a set
CUT = {'coord_mae': 'positions', 'lattice_mae': 'lattice', 'volume_mae': 'volume'}


def chosen(path, split=None, src=None, *, at_relaxed_cell=False):
    """Pairs of a file."""
    pairs = [pair for pair in read_pairs(path, split) if src in (None, pair.src)]
    pairs = spread(pairs, LIMIT)
    if at_relaxed_cell:
        pairs = [at_relaxed(pair) for pair in pairs if pair.ok]
    return pairs


def at_relaxed(pair):
    """The pair with its input in the cell that DFT found, which is fixed."""
    return replace(pair, cell0=pair.cell1, fixed_cell=True)


def main():
    """Evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for file in dict.fromkeys(file for file, *_ in SETS):
        parser.add_argument(f'--{file}', type=Path)
    parser.add_argument('--model', action='append', help='default: all that are shipped')
    options = parser.parse_args()
    models = options.model or list(available_models())
    rows = []
    for file, title, which in SETS:
        if (path := getattr(options, file)) is None:
            continue
        pairs = chosen(path, **which)
        held = all(pair.fixed_cell for pair in pairs)
        layers = all(not all(pair.unrelaxed.pbc) for pair in pairs)
        shown = ('coord_mae', *(('lattice_mae',) if not held else ()))
        shown += ('volume_mae',) if not (held or layers) else ()
        found = evaluate_all(pairs, {name: name for name in models}, workers=1)['all']
        for name in models:
            cut = cuts({'dummy': found['dummy'], 'model': found[name]})
            cells = [
                mean_and_median(cut[key], '.0f') if key in shown else '-' for key in CUT
            ]
            error = f'{found["dummy"]["coord_mae"]["mean"]:.4f}'
            rows.append([f'{title}, {len(pairs)}', name, error, *cells])
    heads = [
        'pairs',
        'model',
        'error of the input / A',
        *(f'cut {x}/%' for x in CUT.values()),
    ]
    print(Table(heads, rows, (0, 1)).as_markdown())


if __name__ == '__main__':
    main()
