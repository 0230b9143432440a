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
# # Phonons of a predicted structure
#
# At a minimum of the energy no phonon frequency is imaginary. So phonons test a predicted
# structure in a way that lattice constants do not: are its atoms in a minimum of the
# potential, and is this minimum as stiff as it should be? Here CHGNet gives the forces, and
# phonopy calculates the phonons from them.

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms
from ase.build import bulk

from ase_deeprelax import DeepRelaxOptimizer, Stage, relax
from ase_deeprelax.calculators.registry import get_calculator
from ase_deeprelax.compare.phonon_calculation import phonons

warnings.filterwarnings('ignore', module='chgnet')
chgnet = get_calculator('chgnet')

# %% [markdown]
# ## Predicted and refined
#
# MgO in the cell of CaO: as it is, predicted in one shot, and refined by CHGNet until the
# forces are small. The supercell is small, so that this takes seconds; real work needs 10 Å
# or more.

# %% tags=["measured"]
unrelaxed = bulk('MgO', 'rocksalt', a=4.81)
predicted = relax(unrelaxed).atoms
refined = unrelaxed.copy()
refined.optimizer = DeepRelaxOptimizer(refine=Stage(chgnet, fmax=0.005), logfile=None)
print('converged:', refined.optimizer.run())

found = {}
ends = {'as it was': unrelaxed, 'predicted': predicted, 'refined': refined}
for name, atoms in ends.items():
    found[name] = phonons(atoms, chgnet, min_length=8.0, initial=unrelaxed)
    a = (4 * atoms.cell.volume) ** (1 / 3)
    top = np.max(found[name]['bands']['frequencies'])
    imaginary = found[name]['imaginary']['n']
    print(f'{name:<10} a = {a:.3f} Å, highest {top:5.2f} THz, imaginary modes: {imaginary}')


# %% [markdown]
# In the cell of CaO, which is 13 % too long, many modes are imaginary: phonons mean nothing
# before a relaxation. The lattice constant of the prediction is within 1 % of CHGNet's, and
# its frequencies within some per cent. Frequencies follow the volume, so refine before you
# publish a phonon. The prediction is enough here to see that the crystal is stable.


# %%
def plot_bands(found):
    _, axis = plt.subplots(figsize=(5, 3), layout='constrained')
    axis.axhline(0, color='0.5', linewidth=0.5)
    for (name, one), color in zip(found.items(), ('0.7', 'C2', 'C0'), strict=True):
        bands = one['bands']
        lines = axis.plot(bands['x'], bands['frequencies'], color=color)
        lines[0].set_label(name)
    ticks = {}  # where the path jumps from U to K, both are at one place
    for x, label in zip(bands['ticks'], bands['labels'], strict=True):
        ticks.setdefault(round(x, 6), []).append(label.replace('G', 'Γ'))
    axis.set_xticks(list(ticks), ['|'.join(labels) for labels in ticks.values()])
    axis.set(ylabel='frequency / THz', xlim=(0, bands['x'][-1]))
    axis.legend(ncols=3, loc='lower left', bbox_to_anchor=(0, 1), frameon=False)
    plt.show()


plot_bands(found)

# %% [markdown]
# ## An imaginary mode, and what to do
#
# Cubic BaTiO3 is no minimum at low temperature: titanium moves off its centre. A prediction
# keeps the space group of its input, and so it stays cubic. The phonons show that this is
# no minimum.

# %% tags=["measured"]
cubic = Atoms(
    'BaTiO3',
    cell=[4.1, 4.1, 4.1],
    scaled_positions=[
        [0, 0, 0],
        [0.5, 0.5, 0.5],
        [0.5, 0.5, 0],
        [0.5, 0, 0.5],
        [0, 0.5, 0.5],
    ],
    pbc=True,
)
cubic.optimizer = DeepRelaxOptimizer(refine=Stage(chgnet, fmax=0.005), logfile=None)
cubic.optimizer.run()
unstable = phonons(cubic, chgnet, min_length=7.5)
print('space group:', relax(cubic).spacegroup)
print('imaginary modes:', unstable['imaginary']['n'])
print(f'lowest: {np.min(unstable["bands"]["frequencies"]):.1f} THz (negative: imaginary)')

# %% [markdown]
# The remedy is to leave the saddle point: displace the atoms a little, do not enforce the
# symmetry, and relax again.

# %% tags=["measured"]
broken = cubic.copy()
broken.rattle(0.05, seed=1)
broken.optimizer = DeepRelaxOptimizer(
    symmetry='free', refine=Stage(chgnet, fmax=0.005, steps=300), logfile=None
)
print('converged:', broken.optimizer.run())
cubic.calc = broken.calc = chgnet
gain = 1000 * (cubic.get_potential_energy() - broken.get_potential_energy()) / len(cubic)
print(f'energy: {gain:.1f} meV per atom below the cubic one')
off_centre = (broken.get_scaled_positions()[1] - broken.get_scaled_positions()[0]) % 1
print('Ti, in units of the cell from Ba:', off_centre.round(3))
