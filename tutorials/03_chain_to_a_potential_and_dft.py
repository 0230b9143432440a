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
# # A chain: prediction, potential, DFT
#
# A prediction costs milliseconds, a step of a potential some tenths of a second, one of DFT
# minutes. Each one saves steps of the next: the prediction brings a crystal near the
# minimum, the potential nearer, and DFT gives the final answer. This notebook relaxes a
# crystal with such a chain, skips stages where they are not needed, shows what happens when
# a calculator fails, and continues after an interruption.

# %%
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixSymmetry
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.optimize import FIRE

from ase_deeprelax import DeepRelaxOptimizer, ElasticBFGS, Stage
from ase_deeprelax.calculators.registry import get_calculator
from ase_deeprelax.errors import DeepRelaxWarning

folder = Path(tempfile.mkdtemp())
warnings.filterwarnings('ignore', module='chgnet')

# %% [markdown]
# ## The last calculator
#
# It is GPAW, a DFT code that installs from the package index (docs/chain.md says which
# system packages it needs). The settings are coarse, so that a step takes seconds; real
# work needs 500 eV and three times as many k-points along each axis. `dedecut` is needed
# where cells relax: it corrects the stress for the finite cutoff, without which an
# optimizer may go to a higher energy. Any other calculator of ASE can stand here: Quantum
# ESPRESSO, VASP, FHI-aims. Without GPAW the chain ends with CHGNet again, at smaller
# forces.

# %% tags=["measured"]
if find_spec('gpaw'):
    from gpaw import GPAW

    calculator = GPAW(
        mode={'name': 'pw', 'ecut': 340, 'dedecut': 'estimate'},
        xc='PBE',
        kpts={'size': (3, 3, 3), 'gamma': True},
        txt=None,
    )
else:
    calculator = get_calculator('chgnet')
    print('GPAW is not installed; CHGNet has the last word.')

# %% [markdown]
# ## One chain
#
# AlAs in the cell of ZnS, six per cent too small. Each stage has a calculator, given by
# name, as an object, or as a function that makes one. It may have its own fmax, optimizer
# and number of steps; otherwise those of `DeepRelaxOptimizer` and of `run` count.

# %% tags=["measured"]
atoms = bulk('AlAs', 'zincblende', a=5.41)
atoms.optimizer = DeepRelaxOptimizer(
    refine=[Stage('chgnet', optimizer=FIRE, fmax=0.1), Stage(calculator, fmax=0.02)],
    trajectory=folder / 'chain.traj',
)
print('converged:', atoms.optimizer.run())

# %% [markdown]
# The log is that of any ASE optimizer, with a line where a new stage begins. `stages` holds
# a record of each: energies (each calculator has its own zero), steps, largest force, space
# group, time, and the structure at its end.

# %% tags=["measured"]
records = atoms.optimizer.stages
for record in records:
    a = (4 * record.atoms.cell.volume) ** (1 / 3)
    print(f'{record.name:<10}  {record.status}, {record.steps:2} steps, a = {a:.3f} Å')

# %% [markdown]
# The trajectory holds the structure after every step. The prediction makes most of the
# change in one step, and CHGNet ends near 5.73 Å, the value of well converged PBE. GPAW,
# where it is installed, has another minimum with so few k-points, and the last stage moves
# the cell there: the result of a chain is as good as its last calculator.

# %%
frames = read(folder / 'chain.traj', ':')
lattice = [(4 * frame.cell.volume) ** (1 / 3) for frame in frames]
ends = [0]
_, axis = plt.subplots(figsize=(5, 3), layout='constrained')
axis.plot(lattice, color='0.7')
axis.plot(0, lattice[0], 's', color='0.4', label='unrelaxed')
for record, color in zip(records, ('C0', 'C2', 'C1'), strict=True):
    ends.append(ends[-1] + record.steps + (len(ends) > 2))
    steps = range(ends[-2] + 1, ends[-1] + 1)
    label = f'{record.name}, steps: {record.steps}'
    axis.plot(steps, [lattice[k] for k in steps], 'o', color=color, label=label)
axis.set(xlabel='frame of the trajectory', ylabel='lattice constant / Å')
axis.locator_params(axis='x', integer=True)
axis.legend()
plt.show()

# %% [markdown]
# Without prediction and potential, the last calculator does all of the work, here with the
# same optimizer. This crystal of two atoms has only its volume to find. Half a dozen calls
# find it from any start, so that there is little or nothing to save. docs/speed.md counts
# calls for more crystals.

# %% tags=["measured"]
alone = bulk('AlAs', 'zincblende', a=5.41)
alone.calc = calculator
iterative = ElasticBFGS(FrechetCellFilter(alone), logfile=None)
iterative.run(fmax=0.02)
difference = alone.get_potential_energy() - records[-1].energy_after

# A stage measures once before its first step, as every relaxation does.
print('calls of the last calculator, alone:       ', iterative.nsteps + 1)
print('calls of the last calculator, in the chain:', records[-1].steps + 1)
print(f'difference in energy: {difference:.3f} eV')

# %% [markdown]
# ## Only where it is needed
#
# Sigma is the uncertainty of the prediction, in Å. A stage with `min_sigma` is skipped
# where sigma is below this number: of thousands of crystals, only the uncertain ones go on
# to the potential. (`min_error` does the same with the expected error.)

# %% tags=["measured"]
for name, a in (('KCl', 5.64), ('AgCl', 5.2)):
    salt = bulk(name, 'rocksalt', a=a)
    salt.optimizer = DeepRelaxOptimizer(
        refine=Stage('chgnet', fmax=0.05, min_sigma=0.1), logfile=None
    )
    salt.optimizer.run()
    print(f'{name}, sigma {salt.info["deeprelax_sigma"]:.3f} Å')
    for record in salt.optimizer.stages:
        print(f'  {record.name}: {record.status} {record.reason}')

# %% [markdown]
# Where the prediction cannot be made, or was rolled back, no stage is skipped.
#
# ## When a calculator fails
#
# Calculators fail: an element is unknown, a self-consistency loop does not converge, a
# potential gives nonsense far from its training data. Here EMT, ASE's simple potential for
# a few metals, fails. A stage that fails is rolled back, a warning and its record say why,
# and the next stage goes on from there. In the same way, a prediction that raises the
# energy of the first calculator is rolled back.

# %%
sulphide = bulk('ZnS', 'wurtzite', a=3.250, c=5.207)  # in the cell of ZnO
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter('always')
    sulphide.optimizer = DeepRelaxOptimizer(
        refine=[EMT(), Stage('chgnet', fmax=0.05)], logfile=None
    )
    print('converged:', sulphide.optimizer.run())

for record in sulphide.optimizer.stages:
    print(f'{record.name:<10} {record.status:<9} {record.reason}')
print(*(entry.message for entry in said if issubclass(entry.category, DeepRelaxWarning)))

# %% [markdown]
# `run` returns True if the last stage that ran has converged. The records say whether all
# did, and `atoms.info['deeprelax_stage']`, which stays with the atoms, names the last
# stage.
#
# ## After an interruption
#
# A chain that ends with DFT runs for hours, and queues have limits. With `restart` the
# state is written to a file after every step. The script below is stopped in the middle of
# its first stage with CHGNet, as a queue would do, and then simply started again:


# %% tags=["measured"]
def script(killed_at=None):
    atoms = bulk('ZnS', 'wurtzite', a=3.250, c=5.207)
    with DeepRelaxOptimizer(
        atoms,
        restart=folder / 'chain.json',
        trajectory=folder / 'restarted.traj',
        append_trajectory=True,
        logfile=None,
        refine=[Stage('chgnet', optimizer=FIRE, fmax=0.02), Stage('chgnet', fmax=0.005)],
    ) as optimizer:

        def queue():
            if optimizer.nsteps == killed_at:
                raise KeyboardInterrupt

        optimizer.attach(queue)
        optimizer.run()
    return atoms, optimizer.stages


def tell(records):
    for record in records:
        title = f'{record.name:<10} {record.optimizer:<11}'
        print(f'{title} {record.status}, {record.steps} steps')


def n_written():
    return len(read(folder / 'restarted.traj', ':'))


try:
    script(killed_at=7)
except KeyboardInterrupt:
    before_kill = n_written()
    print(before_kill, 'structures, then killed')
restarted, records = script()
in_the_end = n_written()
print(in_the_end, 'structures in the end')
tell(records)

# %% [markdown]
# It continued in the middle of the stage, with all that the optimizer had learned, and ends
# at the same structure as without the interruption:

# %% tags=["measured"]
(folder / 'chain.json').unlink()
(folder / 'restarted.traj').unlink()
in_one_go, records = script()
tell(records)
print(f'largest difference: {abs(restarted.positions - in_one_go.positions).max():.3f} Å')

# %% [markdown]
# ## With constraints and filters
#
# Every stage keeps to the filter and the constraints of the atoms, and so does the
# prediction. A film of ZnS that grows on a substrate takes over the in-plane lattice of the
# substrate, and is free along the third direction only. A mask says so:

# %%
film = bulk('ZnS', 'wurtzite', a=3.70, c=5.80)
film.set_constraint(FixSymmetry(film))
strained = FrechetCellFilter(film, mask=[0, 0, 1, 0, 0, 0])
with DeepRelaxOptimizer(
    strained, refine=Stage('chgnet', fmax=0.05), logfile=None
) as optimizer:
    print('converged:', optimizer.run())

for record in optimizer.stages:
    a, _, c = record.atoms.cell.lengths()
    print(f'{record.name:<10}  a = {a:.2f} Å, c = {c:.2f} Å')

# %% [markdown]
# A stage can have its own rule for the cell: `relax_cell=False` fixes it, or a function
# that makes a filter, such as `partial(FrechetCellFilter, hydrostatic_strain=True)`. Here
# CHGNet first moves the atoms in the predicted cell, then everything:

# %% tags=["measured"]
both = bulk('ZnS', 'wurtzite', a=3.250, c=5.207)
both.optimizer = DeepRelaxOptimizer(
    refine=[
        Stage('chgnet', fmax=0.05, relax_cell=False),
        Stage('chgnet', fmax=0.05),
    ],
    logfile=None,
)
print('converged:', both.optimizer.run())
for record in both.optimizer.stages:
    a, _, c = record.atoms.cell.lengths()
    print(f'{record.name:<10}  {record.steps} steps, a = {a:.2f} Å, c = {c:.2f} Å')
