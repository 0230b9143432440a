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
# right ones (relaxing the crystal) is the first step of almost every calculation. Here a
# network predicts them in one shot, and says how far to trust the prediction.

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
# An optimizer that is assigned to `atoms.optimizer` is bound to these atoms, and `run`
# changes them. It needs no calculator. The log shows what is still to be done: the largest
# displacement in Å and the strain in %; and sigma, the uncertainty in Å. By default the
# space group is kept. Here this leaves every atom in its place, and only the cell changes.

# %%
atoms = perovskite.copy()
atoms.optimizer = DeepRelaxOptimizer()
atoms.optimizer.run()

print(f'a = {atoms.cell.lengths()[0]:.3f} Å, with PBE 3.94 Å; it was 4.000 Å')

# %% [markdown]
# The network has learned from DFT with the functional PBE, and gives what PBE gives. The
# measured value is 3.905 Å.
#
# What is known about the prediction is written into `atoms.info`, under names that begin
# with `deeprelax_`. It stays there when the atoms are written to `.extxyz` and `.traj`
# files. `error` is the expected error of the coordinates in Å. `sigma` is the uncertainty
# that the network itself gives: it ranks structures, but it is not an error bar.

# %%
for name in ('error', 'sigma', 'dmax', 'volume_ratio'):
    key = f'deeprelax_{name}'
    print(f'{key:<24} {atoms.info[key]:.3f}')

# %% [markdown]
# ## A record instead of a change
#
# `relax` does not change its input. It returns a `Relaxation`, a record of the answer. The
# atoms of this wurtzite cell were displaced at random (rattled), so that not only the cell
# changes:

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
# A list goes through the network in batches, and each structure takes milliseconds. Sort
# the answers by sigma, and look first at those with the largest one, or relax them with a
# calculator.

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
# from there, in the same `run`. A prediction that raises the energy is rolled back: the
# atoms are again where they were, and one call of the calculator is lost. The calculator
# here is EMT, ASE's simple potential for a few metals, and the crystal is an alloy in the
# cell of pure copper.

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
