# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Train on your own pairs
#
# If you have relaxed crystals, you have training data: the structure before and after each
# relaxation. This notebook makes such pairs and trains a network on them, first from random
# weights, then from the shipped model. It then tests both on structures that neither has
# seen. It takes two minutes on one core; the same lines with more data make a real model.

# %%
import csv
import logging
import shutil
import tempfile
import warnings
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from ase_deeprelax import load_model, relax
from ase_deeprelax.compare.evaluate import evaluate_all
from ase_deeprelax.compare.metrics import Reference
from ase_deeprelax.data.pairs import make_pair, read_pairs, write_pairs
from ase_deeprelax.errors import DeepRelaxError, DeepRelaxWarning
from ase_deeprelax.train.run import train

SIZE = 1  # 5: five times as many pairs and training steps
folder = Path(tempfile.mkdtemp())

# Lightning has something to say about runs as short as these, and the model about
# structures outside its training range, which come up below.
warnings.filterwarnings('ignore', module='lightning')
warnings.filterwarnings('ignore', category=DeepRelaxWarning)
logging.getLogger('lightning.pytorch').setLevel(logging.WARNING)

# %% [markdown]
# ## Pairs
#
# A pair is a structure before and after its relaxation. You find yours in trajectories, as
# the first and the last frame: `make_pair(name, frames[0], frames[-1])`. Here they are
# made: alloys of two metals in the cell of one of them, strained and rattled, and relaxed
# with EMT, ASE's simple potential for metals, in the place of DFT.


# %%
def unrelaxed_alloy(host, guest, rng):
    """Four or eight atoms in the cubic cell of the host, some of them replaced."""
    atoms = bulk(host, cubic=True)
    if rng.random() < 0.5:
        atoms = atoms.repeat((1, 1, 2))
    n_guests = rng.integers(1, len(atoms))
    atoms.symbols[rng.choice(len(atoms), n_guests, replace=False)] = guest
    strain = 0.03 * rng.normal(size=(3, 3))
    cell = atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2)
    atoms.set_cell(cell, scale_atoms=True)
    atoms.rattle(0.1, rng=rng)
    return atoms


def relaxed(atoms):
    atoms = atoms.copy()
    atoms.calc = EMT()
    if not BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.05, steps=200):
        raise RuntimeError(f'{atoms.symbols} did not converge: not a pair to learn from')
    return atoms


# %% [markdown]
# Each pair belongs to one split. The network learns from `train`; `val` decides which
# weights are kept and when to stop; `test` is used once, at the end. Split by chemistry and
# not at random: if structures of one alloy were in all three, the test would only ask what
# the model was told. Five of the fifteen systems are kept from training.

# %%
SPLITS = {
    **dict.fromkeys([('Cu', 'Pt'), ('Pd', 'Ag')], 'val'),
    **dict.fromkeys([('Ni', 'Pd'), ('Cu', 'Au'), ('Pt', 'Ag')], 'test'),
}
systems = list(combinations(['Ni', 'Cu', 'Pd', 'Pt', 'Ag', 'Au'], 2))
rng = np.random.default_rng(0)
pairs = []
for k in range(120 * SIZE):
    system = systems[k % len(systems)]
    before = unrelaxed_alloy(*rng.permutation(system), rng)
    split = SPLITS.get(system, 'train')
    pairs.append(make_pair(f'alloy-{k}', before, relaxed(before), split=split))

write_pairs(folder / 'pairs.jsonl.gz', pairs)
for split in ('train', 'val', 'test'):
    print(f'{split:<5}', len(read_pairs(folder / 'pairs.jsonl.gz', split)))

# %% [markdown]
# Look at the data before you train: how much do the cells and the atoms change? Check the
# extremes. A pair whose volume doubles, or with an atom that moves by two Å, is more often
# wrong than useful.

# %%
targets = [pair.targets() for pair in pairs]
volumes = [np.linalg.det(deformation) for deformation, _ in targets]
moves = np.concatenate([np.linalg.norm(shift, axis=1) for _, shift in targets])

_, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), layout='constrained')
left.hist(volumes, 30)
left.set(xlabel='volume after / before', ylabel='pairs')
right.hist(moves, 30)
right.set(xlabel='displacement / Å', ylabel='atoms')
plt.show()

# %% [markdown]
# ## From random weights
#
# One file holds all settings of a training; their names and their defaults are in
# `ase_deeprelax/train/config.py`. The network is small because the data are few. With
# 10,000 pairs and an hour, take `hidden: 128, layers: 4, cutoff: 5.0`, batches of 400
# atoms, a learning rate of 1e-3 and the default `ema`.

# %%
config = folder / 'config.yaml'
config.write_text(f"""
name: scratch
output: {folder / 'runs'}
model: {{architecture: paegnn, hidden: 32, layers: 2, cutoff: 4.5}}
data:
  pairs:
    - {{path: pairs.jsonl.gz, licence: mine}}
  batch_atoms: 64
  workers: 0
optimize:
  learning_rate: 5.0e-3
  max_steps: {400 * SIZE}
  warmup_steps: 20
  val_every_steps: {20 * SIZE}
  ema: 0.97
  threads: 1
""")
scratch = train(config, progress=False)
print(sorted(path.name for path in scratch.iterdir()))

# %% [markdown]
# From a shell this is `deeprelax train config.yaml`. What comes out is a folder, and the
# folder is the model: `relax(atoms, model=folder)`.
#
# The errors on the validation split are what to look at, in `runs/scratch/csv` or in
# TensorBoard. They should fall steeply at first and flatten as the learning rate goes to
# zero. If they still fall at the end, take more steps. If they rise while the training loss
# falls, take more data, a smaller network or more augmentation. The weights with the
# smallest validation error are kept, not the last ones.


# %%
def curve(name):
    """Steps, coordinate and lattice error of the latest run of this name."""
    log = max((folder / 'runs' / name).glob('csv/version_*/metrics.csv'))
    lines = csv.DictReader(log.read_text().splitlines())
    rows = [row for row in lines if row['val/coord_mae']]
    columns = ('step', 'val/coord_mae', 'val/lattice_mae')
    return np.array([[float(row[column]) for column in columns] for row in rows]).T


def plot_curves(*names):
    _, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout='constrained')
    for name in names:
        steps, *errors = curve(name)
        for axis, error in zip(axes, errors, strict=True):
            axis.plot(steps, error, '.-', label=name)
    for axis, label in zip(axes, ('coordinates', 'lattice'), strict=True):
        axis.set(xlabel='step', ylabel=f'error of the {label} / Å', ylim=0)
    axes[0].legend()
    plt.show()


plot_curves('scratch')

# %% [markdown]
# ## From the shipped model
#
# The shipped model has seen 82,000 DFT relaxations, and more by a potential, of everything
# from oxides to alloys. It knows bonds and volumes as DFT gives them, but not as EMT does;
# in the same way it does not know another functional, pressure, or your kind of defect. A
# training that starts from its weights needs fewer pairs and fewer steps. The learning rate
# should be lower, because large steps forget what was learned. The hyperparameters must be
# those of the shipped model: `start` copies the weights only.
#
# To see what this is worth, suppose that there were only eleven pairs to train on, one or
# two of each system. The orange and the green curve are trained on the same eleven pairs:

# %%
few = 'data.pairs.0.limit=11'
shipped = load_model('deeprelax')
network = {'architecture': shipped.architecture, **shipped.hyperparameters}
tuned = train(
    config,
    start='deeprelax',
    overrides=[
        'name=tuned',
        few,
        f'model={network}',
        'optimize.learning_rate=1.0e-3',
        'optimize.max_steps=60',
        'optimize.warmup_steps=5',
        'optimize.val_every_steps=5',
        'optimize.ema=0.9',
    ],
    progress=False,
)
scratch_few = train(config, overrides=['name=scratch-few', few], progress=False)
plot_curves('scratch', 'scratch-few', 'tuned')

# %% [markdown]
# From a shell:
# `deeprelax train config.yaml --from deeprelax --set optimize.learning_rate=1e-3 ...`
#
# ## Which is best?
#
# The test has three systems that no training has seen. *Dummy* takes the input for the
# answer, and shows how large the errors are without a model. `deeprelax evaluate
# test.jsonl.gz --model runs/scratch/model` prints these numbers and more: bond lengths,
# volumes, matches, space groups.

# %%
test = read_pairs(folder / 'pairs.jsonl.gz', 'test')
models = {
    'shipped': 'deeprelax',
    'scratch-few': scratch_few,
    'tuned': tuned,
    'scratch': scratch,
}
found = evaluate_all(test, models, workers=1)['all']
rows = {name: found[name] for name in ('dummy', *models)}

_, axes = plt.subplots(1, 2, figsize=(8, 2.4), sharey=True, layout='constrained')
for axis, key, label in zip(
    axes, ('coord_mae', 'lattice_mae'), ('coordinates', 'lattice'), strict=True
):
    errors = [row[key]['mean'] for row in rows.values()]
    bars = axis.barh(list(rows), errors, color=['0.7', '0.4', 'C1', 'C2', 'C0'])
    axis.bar_label(bars, fmt='%.3f', padding=3)
    axis.set(xlabel=f'mean error of the {label} / Å', xlim=(0, 1.2 * errors[0]))
axes[0].invert_yaxis()
plt.show()

# %% [markdown]
# The shipped model takes more than half of the error away without having seen a single EMT
# relaxation. Eleven pairs and sixty steps make it a little better. The small network that
# was trained on the same eleven pairs from random weights is far behind: it needs more
# pairs and steps. With eighty pairs it is the best of all, because this family of
# alloys is simple. The richer the chemistry and the fewer the pairs, the more it helps to
# start from the shipped model.
#
# A few pairs must cover what will be asked later. Trained on twelve pairs of only three of
# the systems, the shipped model became worse than it was, and the validation curve, of two
# systems, did not warn.

# %%
total = {
    name: row['coord_mae']['mean'] + row['lattice_mae']['mean']
    for name, row in rows.items()
}
learned = [name for name, error in total.items() if error < total['dummy'] * 2 / 3]
print('a third of the error gone:  ', ', '.join(learned))
worse = [name for name, error in total.items() if error > 1.2 * total['tuned']]
print('a fifth worse than tuned:   ', ', '.join(worse))
print('best of all:                ', min(total, key=total.get))

# %% [markdown]
# ## Which answers to trust
#
# A model says how sure it is: sigma, in Å, for each bond, atom and structure. It is learned
# with the distances, from the same pairs. On the test structures it should rise with the
# error. Here sigma has the right size on average, but it does not know the two worst
# structures: all these alloys are alike, and eighty pairs do not teach what makes one of
# them difficult. Look at this plot before you sort by sigma.

# %%
results = relax([pair.unrelaxed for pair in test], model=scratch)
errors = [
    Reference(pair).errors(result.atoms)['bond_mae']
    for pair, result in zip(test, results, strict=True)
]

_, axis = plt.subplots(figsize=(4, 2.8), layout='constrained')
axis.scatter([result.sigma for result in results], errors)
axis.axline((0, 0), slope=1, color='0.7')
axis.set(xlabel='sigma / Å', ylabel='mean error of the bonds / Å')
axis.set(xlim=(0, 0.05), ylim=0)
plt.show()

# %% [markdown]
# A model also knows what it was trained on, and says what lies outside: structures outside
# the range of sizes and densities are flagged, elements that it never saw refused.

# %%
dense = bulk('Cu', cubic=True)
dense.set_cell(0.8 * dense.cell.array, scale_atoms=True)
print(relax(dense, model=scratch).ood)
try:
    relax(bulk('NaCl', 'rocksalt', a=5.6), model=scratch)
except DeepRelaxError as error:
    print(error)

# %% [markdown]
# ## Use it
#
# Ordered Cu3Au in the cell of copper, relaxed by the network, which never saw these two
# elements together, and by EMT:

# %%
atoms = bulk('Cu', cubic=True)
atoms.symbols[0] = 'Au'
for name, answer in (
    ('network', relax(atoms, model=scratch).atoms),
    ('EMT', relaxed(atoms)),
):
    print(f'{name:<8} a = {answer.cell.volume ** (1 / 3):.2f} Å')

# %%
shutil.rmtree(folder)  # a model of your own you would keep
