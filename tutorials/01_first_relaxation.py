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
# # A first relaxation
#
# A crystal that is not in any database yet is usually made from one that is: other elements
# in a known structure. Its lattice constants and positions are then wrong, and finding the
# right ones is the first thing any calculation does. Here a network says them in one shot,
# and how far to trust it.

# %%
import numpy as np
from ase import Atoms
from ase.build import bulk

from ase_deeprelax import DeepRelaxOptimizer, relax

# %% [markdown]
# ## One crystal
#
# Cubic BaTiO3 has a lattice constant of 4.00 Å. Put strontium in the place of barium:

# %%
perovskite = Atoms(
    'SrTiO3',
    cell=[4.00, 4.00, 4.00],
    scaled_positions=[
        [0, 0, 0],
        [0.5, 0.5, 0.5],
        [0.5, 0.5, 0],
        [0.5, 0, 0.5],
        [0, 0.5, 0.5],
    ],
    pbc=True,
)

# %% [markdown]
# An optimizer that is assigned to atoms is theirs. It needs no calculator: the log shows
# the largest displacement that is still to be made and the uncertainty, both in Å. By
# default the space group is kept, and here it holds every atom in its place: only the cell
# changes.

# %%
atoms = perovskite.copy()
atoms.optimizer = DeepRelaxOptimizer()
atoms.optimizer.run()

print(f'a = {atoms.cell.lengths()[0]:.3f} Å, measured 3.905 Å; it was 4.000 Å')

# %% [markdown]
# What is known about the prediction travels with the atoms, also into `.extxyz` and `.traj`
# files: flat names that begin with `deeprelax_`.

# %%
for key in ('deeprelax_sigma', 'deeprelax_dmax', 'deeprelax_volume_ratio'):
    print(f'{key:<24} {atoms.info[key]:.3f}')

# %% [markdown]
# ## A record instead of a change
#
# `relax` leaves what it is given alone and returns a `Relaxation`. This wurtzite cell was
# rattled, so that its atoms move as well:

# %%
wurtzite = bulk('ZnS', 'wurtzite', a=3.25, c=5.21)
wurtzite.rattle(0.1, seed=1)
result = relax(wurtzite)

print(f'volume       {wurtzite.cell.volume:.1f} -> {result.atoms.cell.volume:.1f} Å^3')
print(f'largest move {result.dmax:.3f} Å')
print(f'sigma        {result.sigma:.3f} Å')
print('sigma of each atom', np.round(result.sigma_atoms, 3))

# %% [markdown]
# ## Many at once
#
# A list goes through the network in batches, which costs milliseconds each. Sigma ranks
# what comes back: look at the top of the list first, or send it to an ordinary relaxation.

# %%
compounds = ['NaCl', 'KBr', 'MgO', 'LiF', 'CaO', 'AgCl']
crystals = [bulk(name, 'rocksalt', a=5.3) for name in compounds]
results = relax(crystals)

print('         a / Å   sigma / Å')
for name, result in sorted(zip(compounds, results, strict=True), key=lambda x: -x[1].sigma):
    a = (4 * result.atoms.cell.volume) ** (1 / 3)
    print(f'{name:<6} {a:7.3f} {result.sigma:11.3f}')

# %% [markdown]
# ## A calculator decides
#
# With a calculator the prediction is the first step, and an ordinary ASE optimizer goes on
# from there, in the same `run`. Where the prediction raises the energy it is taken back, so
# that it can cost one step but not spoil a result. The calculator here is ASE's toy EMT, on
# an alloy in the cell of pure copper.

# %%
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter

alloy = bulk('Cu', cubic=True)
alloy.symbols = ['Au', 'Cu', 'Cu', 'Cu']
alloy.rattle(0.05, seed=2)
alloy.calc = EMT()

with DeepRelaxOptimizer(FrechetCellFilter(alloy)) as optimizer:
    converged = optimizer.run(fmax=0.01)
print(f'converged: {converged}, a = {alloy.cell.volume ** (1 / 3):.3f} Å')
