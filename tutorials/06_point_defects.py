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
# # Point defects
#
# A vacancy or a foreign atom moves its neighbours by tenths of an Å and the rest of the
# crystal hardly at all. The cell is that of the crystal and is fixed. Here a substitution
# and a vacancy are predicted in one shot and compared with a relaxation by CHGNet, a
# universal potential. It also shows where a prediction should not be used: for atoms that
# are right already.

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np
from ase.build import bulk
from ase.optimize import FIRE

from ase_deeprelax import DeepRelaxOptimizer, ElasticBFGS, Stage, relax
from ase_deeprelax.calculators.registry import get_calculator

warnings.filterwarnings('ignore', module='chgnet')

# %% [markdown]
# ## The crystal first
#
# Make the defect in a crystal that was relaxed with the same method that relaxes the
# defect. Otherwise the whole cell is under stress, and the relaxation shows this stress and
# not the defect. Here MgO is relaxed by CHGNet:

# %% tags=["measured"]
chgnet = get_calculator('chgnet')
unit = bulk('MgO', 'rocksalt', a=4.25, cubic=True)
unit.optimizer = DeepRelaxOptimizer(refine=Stage(chgnet, fmax=0.01), logfile=None)
unit.optimizer.run()
print(f'a = {unit.cell.lengths()[0]:.3f} Å')
host = unit.repeat(2)
host.calc = None

# %% [markdown]
# ## A substitution
#
# Calcium takes the place of magnesium, and it is larger. `relax_cell=False` fixes the cell.

# %% tags=["measured"]
substituted = host.copy()
substituted.symbols[0] = 'Ca'
predicted = relax(substituted, relax_cell=False)


def by_chgnet(atoms):
    """A relaxed copy, and how often CHGNet was called."""
    atoms = atoms.copy()
    atoms.calc = chgnet
    optimizer = ElasticBFGS(atoms, logfile=None)
    optimizer.run(fmax=0.03, steps=100)
    return atoms, optimizer.nsteps + 1


relaxed, calls = by_chgnet(substituted)
print('kind:', predicted.kind, ' space group:', predicted.spacegroup)
print(f'sigma of Ca {predicted.sigma_atoms[0]:.3f} Å, of all {predicted.sigma:.3f} Å')


# %%
def outwards(atoms, start, centre):
    """Distance of each atom from the defect, and its move away from it, Å."""
    vectors = start.get_distances(centre, range(len(start)), mic=True, vector=True)
    distances = np.linalg.norm(vectors, axis=1)
    moves = atoms.positions - start.positions
    moves -= moves[distances > distances.max() - 1].mean(axis=0)
    far = distances > 0.1
    unit_vectors = vectors[far] / distances[far, None]
    return distances[far], np.sum(moves[far] * unit_vectors, axis=1)


def plot_moves(start, centre, ends):
    _, axis = plt.subplots(figsize=(4.5, 3), layout='constrained')
    axis.axhline(0, color='0.7')
    for (name, atoms), marker in zip(ends.items(), 'o+', strict=True):
        axis.plot(*outwards(atoms, start, centre), marker, label=name)
    axis.set(xlabel='distance from the defect / Å', ylabel='move outwards / Å')
    axis.legend()
    plt.show()


ends = {'one shot': predicted.atoms, 'CHGNet': relaxed}
plot_moves(substituted, 0, ends)

# %% tags=["measured"]
neighbours = {}
for name, atoms in ends.items():
    distances, moves = outwards(atoms, substituted, 0)
    neighbours[name] = moves[distances < 2.3].mean()
    print(f'{name:<9} moves the neighbours outwards by {neighbours[name]:.3f} Å')

# %% [markdown]
# Both push the six oxygen neighbours of calcium outwards, by about the same distance.
# Farther out the moves are small. The errors there are small in Å, but not in per cent of
# the move.
#
# ## A vacancy
#
# One oxygen atom is taken away. The network is not told that there is a defect: it sees
# atoms that lack a neighbour.

# %% tags=["measured"]
vacancy = host.copy()
oxygen = next(atom.index for atom in vacancy if atom.symbol == 'O')
centre = vacancy.positions[oxygen].copy()
del vacancy[oxygen]
predicted = relax(vacancy, relax_cell=False)
relaxed, calls = by_chgnet(vacancy)

from_prediction, fewer = by_chgnet(predicted.atoms)
energies = []
for atoms in (vacancy, predicted.atoms, relaxed, from_prediction):
    atoms.calc = chgnet
    energies.append(atoms.get_potential_energy())
names = ('unrelaxed', 'one shot', 'CHGNet', 'CHGNet from it')
for name, energy in zip(names, energies, strict=True):
    print(f'{name:<15} {energy - energies[2]:7.3f} eV above the relaxed one')
print('calls of CHGNet:', calls, 'from the unrelaxed cell,', fewer, 'from the prediction')

# %% [markdown]
# Look at the line of the one-shot answer before you use a prediction of a dilute defect.
# The cell holds 63 atoms, of which 57 were right already. A network that is wrong by 0.02 Å
# for each of these loses more energy than it gains at the other six. With a calculator
# attached this cannot happen: a prediction that raises the energy is rolled back.

# %% tags=["measured"]
safe = vacancy.copy()
safe.calc = chgnet
optimizer = DeepRelaxOptimizer(safe, logfile=None)
with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # it says what was taken back
    print('converged:', optimizer.run(fmax=0.03, steps=100))
for record in optimizer.stages:
    print(f'{record.name:<12} {record.status:<12} {record.steps} steps')

# %% [markdown]
# ## Distorted starts
#
# Many defects break the symmetry of their site. Relaxations from the perfect positions miss
# such structures, so people begin from several distorted ones (as ShakeNBreak does). A
# prediction then does the first, coarse part of the relaxation. Here the atoms near the
# vacancy are displaced by up to 0.3 Å, in five ways, and one call answers all five.

# %%
rng = np.random.default_rng(0)
distorted = []
for _ in range(5):
    atoms = vacancy.copy()
    atoms.calc = None
    atoms.append('X')  # where the vacancy is, to measure distances
    atoms.positions[-1] = centre
    near = atoms.get_distances(-1, range(len(atoms) - 1), mic=True) < 3.2
    del atoms[-1]
    atoms.positions[near] += rng.uniform(-0.3, 0.3, (near.sum(), 3))
    distorted.append(atoms)

answers = relax(distorted, relax_cell=False, symmetry='free')
perfect = predicted.atoms.positions


def distance_to_perfect(atoms):
    moves = atoms.positions - perfect
    return np.linalg.norm(moves - moves.mean(axis=0), axis=1)[near].mean()


print('distance of the neighbours from the symmetric answer / Å')
for before, answer in zip(distorted, answers, strict=True):
    pair = distance_to_perfect(before), distance_to_perfect(answer.atoms)
    print(f'before {pair[0]:.3f}   after {pair[1]:.3f}   sigma {answer.sigma:.3f}')

# %% [markdown]
# Most of the distortion is gone after one shot. A potential or DFT has to say which of the
# structures is lowest in energy: refine the answers, here the first one with FIRE and
# CHGNet.

# %% tags=["measured"]
last = answers[0].atoms
last.calc = chgnet
print('converged:', FIRE(last, logfile=None).run(fmax=0.05, steps=200))
print(f'{last.get_potential_energy() - energies[2]:.3f} eV from the symmetric end')
