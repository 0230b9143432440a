"""Trainings side by side: baselines, ablation, learning curve, transfer.

Each study trains a handful of networks on the same data, with the same budget and the same
rule of selection, and prints their validation errors beside Dummy's, on 800 pairs spread
over the split. Options after the budget go to every training, as `deeprelax train --set`
takes them. A model that is already in its folder is not trained again, so that a study that
was stopped goes on where it was.

    python benchmarks/studies.py baselines --minutes 15
    python benchmarks/studies.py ablation --minutes 15
    python benchmarks/studies.py curve --minutes 15
    python benchmarks/studies.py transfer --minutes 5 --from runs/curve-all/model

`transfer` wants a model that has not seen Pandey's pairs; `curve-all` is one.
"""

import argparse
import json
from pathlib import Path

import ase_deeprelax
from ase_deeprelax.compare.evaluate import evaluate_all
from ase_deeprelax.compare.tables import Table
from ase_deeprelax.data.pairs import read_pairs, spread
from ase_deeprelax.models.paegnn import PUBLISHED
from ase_deeprelax.train.config import load_config
from ase_deeprelax.train.run import train

CONFIG = Path(ase_deeprelax.__file__).parent / 'train/configs/deeprelax.yaml'
ARCHITECTURES = ('painn', 'egnn', 'paegnn', 'e3relax-h2')
COLUMNS = {
    'coordinates': 'coord_mae',
    'bond length': 'bond_mae',
    'lattice': 'lattice_mae',
    'volume': 'volume_mae',
}
# The paper's form at a width that trains in minutes.
SMALL_PUBLISHED = PUBLISHED | {'hidden': 128, 'num_rbf': 32, 'offset_encoding': 32}


def source(folder, name, **settings):
    """One entry of ``data.pairs``."""
    return {'path': str(Path(folder).resolve() / f'{name}.jsonl.gz'), **settings}


def baselines(_folder):
    """The networks of the DeepRelax paper's tables, and E3Relax-H2."""
    for name in ARCHITECTURES:
        yield f'baselines-{name}', {'model': {'architecture': name}}, None


def ablation(_folder):
    """Table 4: unit cell offset encoding (UCOE) and Laplace scales (BLDU), on and off."""
    for name, encoding, scales in (
        ('vanilla', None, False),
        ('UCOE', SMALL_PUBLISHED['offset_encoding'], False),
        ('BLDU', None, True),
        ('full', SMALL_PUBLISHED['offset_encoding'], True),
    ):
        model = SMALL_PUBLISHED | {'architecture': 'paegnn', 'offset_encoding': encoding}
        loss = {'scales': scales, 'distance': 1.0, 'cross_distance': 1.0}
        # A training cannot make graphs of the paper's form again.
        changes = {'model': model, 'loss': loss, 'data.recycle': 0}
        yield f'ablation-{name}', changes, None


def curve(folder):
    """Error against the number of pairs."""
    for limit in (2_000, 10_000, None):
        pairs = [source(folder, 'pairs_mp', val_limit=800, limit=limit)]
        yield (
            f'curve-{limit or "all"}',
            {'data.pairs': pairs, 'data.relaxed_structures': []},
            None,
        )


def transfer(folder, start):
    """Table 3: a small set alone, and after a large one."""
    for limit in (200, 1_000, None):
        pairs = [source(folder, 'pairs_pandey2021', limit=limit)]
        changes = {'data.pairs': pairs, 'data.relaxed_structures': []}
        for how, model in (('scratch', None), ('transfer', start)):
            yield f'transfer-{limit or "all"}-{how}', changes, model


def main():
    """Run one study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('study', choices=('baselines', 'ablation', 'curve', 'transfer'))
    parser.add_argument('--minutes', type=float, default=15)
    parser.add_argument('--data', default='../shared/data')
    parser.add_argument('--from', dest='start')
    parser.add_argument('--set', action='append', default=[], dest='overrides')
    arguments = parser.parse_args()
    folder = arguments.data
    if arguments.study == 'transfer':
        if arguments.start is None:
            parser.error('transfer needs --from MODEL')
        runs = transfer(folder, arguments.start)
        tested = 'pairs_pandey2021'
    else:
        runs = globals()[arguments.study](folder)
        tested = 'pairs_mp'
    models = {}
    for name, changes, start in runs:
        overrides = [f'{key}={json.dumps(value)}' for key, value in changes.items()]
        overrides += [f'name={name}', f'optimize.max_minutes={arguments.minutes}']
        overrides += arguments.overrides
        models[name] = load_config(CONFIG, overrides).output / name / 'model'
        if not (models[name] / 'config.json').exists():
            train(CONFIG, overrides=overrides, start=start, progress=False)
    pairs = spread(read_pairs(source(folder, tested)['path'], 'val'), 800)
    found = evaluate_all(pairs, models)['all']
    steps = {
        name: json.loads((model / 'config.json').read_text())['training']['steps']
        for name, model in models.items()
    }
    titles = ['', *COLUMNS, 'match', 'steps']
    print(Table(titles, [row(name, found[name], steps) for name in found]).as_markdown())


def row(name, errors, steps):
    """One line of the table: mean / median."""
    cells = [
        f'{errors[key]["mean"]:.4f} / {errors[key]["median"]:.4f}'
        for key in COLUMNS.values()
    ]
    return [name, *cells, f'{errors["match_rate"]:.3f}', str(steps.get(name, ''))]


if __name__ == '__main__':
    main()
