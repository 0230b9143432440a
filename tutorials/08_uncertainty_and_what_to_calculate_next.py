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
# # Read the uncertainty, calibrate it, choose what to calculate next
#
# A prediction is useful only if you know how far to trust it. This notebook looks at the
# numbers that come with each prediction, fits them anew to your own structures, and picks
# the candidates whose DFT relaxation would teach the network most.

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from ase_deeprelax import Predictor, load_model, relax
from ase_deeprelax.compare.calibrate import calibrate
from ase_deeprelax.data.pairs import make_pair
from ase_deeprelax.errors import DeepRelaxWarning
from ase_deeprelax.predict.select import select
from ase_deeprelax.report.plot_uncertainty import uncertain_bonds

# Some of the crystals below are out of distribution, which is what this is about.
warnings.filterwarnings('ignore', category=DeepRelaxWarning)

# %% [markdown]
# ## The numbers that come with a prediction
#
# `error` is the expected mean error of the coordinates. The intervals hold the true value
# in 90 % of all cases. A `novelty` above 1 means that some atoms are unlike those that the
# network has seen.

# %%
PBE = {'NaCl': 5.70, 'KBr': 6.73, 'MgO': 4.26, 'AgCl': 5.61, 'SrO': 5.20, 'TiN': 4.25}
salts = [bulk(name, 'rocksalt', a=5.3) for name in PBE]
results = relax(salts)
print('       error / Å   a / Å   90 % interval   PBE   novelty')
for (name, pbe), result in zip(PBE.items(), results, strict=True):
    low, high = np.sqrt(2) * result.lattice_90[0]
    a = np.sqrt(2) * result.atoms.cell.lengths()[0]
    print(
        f'{name:<6} {result.error:9.3f} {a:7.2f}   {low:.2f} to {high:.2f} {pbe:7.2f} '
        f'{result.novelty:8.2f}'
    )

# %% [markdown]
# Some bonds of a structure are less certain than others. In zincite (ZnO) with one Cd atom,
# those around this atom are the least certain.

# %%
zincite = bulk('ZnO', 'wurtzite', a=3.25, c=5.2, u=0.38).repeat((2, 2, 1))
zincite.symbols[0] = 'Cd'
uncertain_bonds(relax(zincite))

# %% [markdown]
# ## Structures of your own
#
# The shipped numbers were fitted to DFT of the Materials Project and others. Where your
# structures or your functional differ, fit them anew. Here EMT, ASE's simple potential for
# metals, stands for another functional: its alloys differ from those of PBE, so that the
# intervals have to be wider.


# %%
def alloy(seed):
    """A random ordered alloy of two metals, strained, and its relaxed structure."""
    rng = np.random.default_rng(seed)
    host, guest = rng.choice(['Cu', 'Ag', 'Au', 'Ni', 'Pd', 'Pt'], 2, replace=False)
    atoms = bulk(str(host), cubic=True)
    atoms.symbols[: rng.integers(1, 4)] = str(guest)
    atoms.set_cell(atoms.cell * rng.uniform(0.96, 1.04), scale_atoms=True)
    atoms.rattle(0.05, seed=seed)
    relaxed = atoms.copy()
    relaxed.calc = EMT()
    BFGS(FrechetCellFilter(relaxed), logfile=None).run(fmax=0.01, steps=200)
    return make_pair(f'{seed}', atoms, relaxed)


pairs = [alloy(seed) for seed in range(160)]
predictor = Predictor(load_model('default'))


def inside(predictor, pairs):
    """How many true volumes lie inside their 90 % intervals, %."""
    found = predictor.relax([pair.unrelaxed for pair in pairs])
    volumes = np.array([pair.relaxed.cell.volume for pair in pairs])
    low, high = np.array([one.volume_90 for one in found]).T
    return 100 * np.mean((low <= volumes) & (volumes <= high))


before = inside(predictor, pairs[80:])
predictor.model.calibration = calibrate({'EMT': pairs[:80]}, predictor)
after = inside(predictor, pairs[80:])
print(f'true volumes inside their 90 % intervals: {before:.0f} %, calibrated {after:.0f} %')

# %% [markdown]
# From a shell this is `deeprelax calibrate mine.jsonl --out my-model`, which writes a copy
# of the model with the new numbers.
#
# ## What to calculate next
#
# Of many candidates, `select` picks uncertain ones that differ from each other.
# `deeprelax select candidates/*.cif --count 50` writes them as POSCAR files.

# %%
metals = 'Ti', 'V', 'Cr', 'Mn', 'Fe', 'Co', 'Ni', 'Cu'
candidates = [bulk(metal + x, 'rocksalt', a=4.4) for metal in metals for x in 'NOSF']
found = relax(candidates)
chosen = select(found, 6)
for k in chosen:
    print(f'{candidates[k].symbols!s:<6} expected error {found[k].error:.3f} Å')

# %%
places = np.array([one.fingerprint for one in found])
_, axes = np.linalg.eigh(np.cov(places.T))
x, y = (places @ axes[:, [-1, -2]]).T
_, ax = plt.subplots(figsize=(4.4, 3.6), layout='constrained')
points = ax.scatter(x, y, c=[one.error for one in found], cmap='viridis')
ax.scatter(x[chosen], y[chosen], 120, facecolors='none', edgecolors='k')
for k in chosen:
    ax.annotate(
        str(candidates[k].symbols), (x[k], y[k]), (6, 6), textcoords='offset points'
    )
plt.colorbar(points, label='expected error / Å')
ax.set(xlabel='fingerprint, first direction', ylabel='second direction')
plt.show()
