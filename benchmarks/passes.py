"""Gain and cost of several passes through the network.

Each model predicts the same pairs in one pass and in more (where the prediction is far from
the input), on the CPU. Prints a markdown table: cuts below Dummy's errors, mean /
median, and the time of all structures together.

    python benchmarks/passes.py pairs_wbm_dev.jsonl.gz
"""

import argparse
from pathlib import Path

from ase_deeprelax import Predictor, available_models
from ase_deeprelax.compare.evaluate import cuts, evaluate_all
from ase_deeprelax.compare.tables import Table
from ase_deeprelax.data.pairs import read_pairs, spread
from ase_deeprelax.predict.passes import MAX_PASSES

SHOWN = ('coord_mae', 'bond_mae', 'lattice_mae', 'volume_mae')


def main():
    """Predict both ways, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('pairs', type=Path)
    parser.add_argument('--split', help='of the file; default: all of it')
    parser.add_argument('--limit', type=int, default=500, metavar='N')
    options = parser.parse_args()

    methods = {}
    for name in available_models():
        for passes in (1, 2, MAX_PASSES):
            methods[f'{name}, {passes}'] = predictor = Predictor(name, device='cpu')
            predictor.max_passes = passes
    pairs = spread(read_pairs(options.pairs, options.split), options.limit)
    found = evaluate_all(pairs, methods)
    rows = []
    for name, record in found['models'].items():
        cut = cuts(found['all'], name)
        shown = (f'{cut[key]["mean"]:.1f} / {cut[key]["median"]:.1f}' for key in SHOWN)
        rows.append([name, *shown, f'{record["ms_per_structure"]:.1f}'])
    titles = ['model, passes at most', *(f'{key}, cut/%' for key in SHOWN), 'ms']
    print(Table(titles, rows).as_markdown())


if __name__ == '__main__':
    main()
