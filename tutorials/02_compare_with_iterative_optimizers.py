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
# # Is it worth it? A comparison with iterative optimizers
#
# A prediction is worth it if the relaxation after it needs fewer calls of the calculator,
# and does not end at a higher energy. Both are measured here on six crystals, with the
# potential CHGNet in the place of DFT (`pip install 'ase-deeprelax[chgnet,phonopy,plot]'`).
# Use the same lines for your structures and your calculator. It takes a minute on one core.

# %%
import tempfile
import warnings
from pathlib import Path

from ase.build import bulk
from ase.spacegroup import crystal

from ase_deeprelax.compare.phonons import compare_phonons
from ase_deeprelax.compare.savings import compare
from ase_deeprelax.compare.tables import percent
from ase_deeprelax.report import plot, plot_phonons
from ase_deeprelax.report.html import write_report

folder = Path(tempfile.mkdtemp())  # yours would be one that you keep
warnings.filterwarnings('ignore', module='chgnet')

# %% [markdown]
# ## Six crystals to relax
#
# As in a screening: other elements in a known structure, whose lattice constants are those
# of the old compound. Two of these six have no freedom but their volume, one is layered,
# and one is soft.


# %%
def substitute(parent, **swaps):
    """The parent with elements exchanged, in its own, wrong, cell."""
    child = parent.copy()
    child.symbols = [swaps.get(symbol, symbol) for symbol in parent.symbols]
    return child


halite = bulk('NaCl', 'rocksalt', a=5.64)
wurtzite = bulk('ZnO', 'wurtzite', a=3.250, c=5.207, u=0.382)
fluorite = crystal(
    ['Ca', 'F'],
    [(0, 0, 0), (0.25, 0.25, 0.25)],
    spacegroup=225,
    cellpar=[5.463] * 3 + [90] * 3,
    primitive_cell=True,
)
rutile = crystal(
    ['Ti', 'O'],
    [(0, 0, 0), (0.3053, 0.3053, 0)],
    spacegroup=136,
    cellpar=[4.594, 4.594, 2.959, 90, 90, 90],
)
molybdenite = crystal(
    ['Mo', 'S'],
    [(1 / 3, 2 / 3, 0.25), (1 / 3, 2 / 3, 0.621)],
    spacegroup=194,
    cellpar=[3.160, 3.160, 12.294, 90, 90, 120],
)
germanium_sulphide = crystal(
    ['Ge', 'S'],
    [(0.1216, 0.25, 0.1057), (0.8507, 0.25, 0.4976)],
    spacegroup=62,
    cellpar=[10.47, 3.641, 4.30, 90, 90, 90],
)

crystals = {
    'KCl in NaCl': substitute(halite, Na='K'),
    'Mg2Sn in CaF2': substitute(fluorite, Ca='Sn', F='Mg'),
    'ZnS in ZnO': substitute(wurtzite, O='S'),
    'SnO2 in TiO2': substitute(rutile, Ti='Sn'),
    'WSe2 in MoS2': substitute(molybdenite, Mo='W', S='Se'),
    'SnSe in GeS': substitute(germanium_sulphide, Ge='Sn', S='Se'),
}

# %% [markdown]
# ## Relax each crystal in every way
#
# Each crystal is relaxed with each optimizer, positions and cell, twice: from the unrelaxed
# structure, and from its prediction. What counts is the number of calls of the calculator,
# the first one included. They are what costs time, and their number does not depend on what
# else your computer does.
#
# `out` is a folder that keeps every finished run. If the cell is stopped and run again, it
# continues there, and more crystals, calculators and optimizers can be added. Printed is
# how many calls the relaxations from the prediction take, in per cent of those without it,
# and how often they end at the same energy (within 2 meV per atom), at a lower or at a
# higher one. `ase_deeprelax.compare.comparison_tables.comparison_text(result)` gives all
# tables.

# %% tags=["measured"]
optimizers = ['FIRE', 'BFGS', 'ElasticBFGS']
result = compare(
    crystals, ['chgnet'], optimizers=optimizers, fmax=0.05, out=folder / 'runs'
)
for row in result['summary']:
    both = row['both']
    print(
        f'{row["optimizer"]:<11} {percent(both["median_calls_ratio"])} of the calls; '
        f'energies: same {percent(both["equal"])}, lower {percent(both["lower"])}, '
        f'higher {percent(both["higher"])}'
    )

# %% [markdown]
# These are medians over six crystals. Before you believe a median, look at the numbers
# behind it:

# %% tags=["measured"]
calls = {
    (run['structure'], run['optimizer'], run['start']): run['calls']
    for run in result['runs']
}
print('calls without -> with  FIRE      BFGS  ElasticBFGS')
for name in crystals:
    print(f'{name:<20}', end='')
    for optimizer in optimizers:
        without, with_it = (
            calls[name, optimizer, start] for start in ('unrelaxed', 'prediction')
        )
        print(f'{without:4} -> {with_it:2}', end='')
    print()

# %%
plot.calls_saved(result)

# %% [markdown]
# How to read it:
#
# - Every run needs at least one call, which finds that the forces are small. A cell with
#   two atoms, such as that of KCl, needs only four to six calls without a prediction, so
#   that there is not much to save.
# - BFGS learns the curvature of the energy from its steps, and so there is less to save
#   than with FIRE, which starts slowly. Compare with the optimizer that you would use.
# - ElasticBFGS, the default of `DeepRelaxOptimizer`, begins with a model of the curvature
#   (springs between near atoms) and needs few calls from any start. Most of what is saved
#   beside FIRE is saved by this optimizer, and the rest by the prediction.
# - With BFGS, the prediction costs calls for WSe2. The reason is shown below: the two
#   relaxations end at different structures.
# - There are two averages: the numbers above divide the median number of calls with the
#   prediction by the median number without it, and the line in the box is the median of the
#   ratios of the single crystals. Where crystals differ as much as here, say which one you
#   mean.
# - Six crystals show how to measure, not how much is saved on average. The page
#   docs/speed.md has the numbers for a hundred crystals, and `deeprelax compare` measures
#   them for yours.
#
# Energy and forces during the relaxations of one crystal:

# %%
plot.convergence(result, 'chgnet', 'SnSe in GeS')

# %% [markdown]
# The curve from the prediction begins at an energy that the other one reaches only after
# several calls. The dashed line is fmax: a curve that ends above it would be a run that did
# not converge.
#
# ## Did it end in the same place?
#
# Fewer calls are worth nothing if the relaxation ends at another structure. This figure
# shows energies: of the unrelaxed structure, of the prediction alone, and after the
# relaxation from the prediction. Zero is the relaxation without a prediction.

# %%
plot.energy_boxes(result)

# %% [markdown]
# The prediction alone is near zero already. After the relaxation the energies should agree
# to a few meV per atom. If they do not, there are two explanations, and a smaller fmax
# tells them apart. One is a flat energy: CHGNet knows no dispersion forces, so that almost
# nothing holds the layers of WSe2 together. Forces are below fmax long before the minimum,
# and two relaxations stop at different distances of the layers:


# %% tags=["measured"]
def ends_of(result, name, optimizer):
    for run in result['runs']:
        if (run['structure'], run['optimizer']) == (name, optimizer):
            energy, c = run['energy_per_atom'], run['lattice'][2]
            print(f'  from {run["start"]:<10}  {energy:.4f} eV/atom, c = {c:.2f} Å')


layered = {'WSe2 in MoS2': crystals['WSe2 in MoS2']}
strict = compare(layered, ['chgnet'], optimizers=['BFGS'], fmax=0.01)
print('fmax 0.05')
ends_of(result, 'WSe2 in MoS2', 'BFGS')
print('fmax 0.01')
ends_of(strict, 'WSe2 in MoS2', 'BFGS')

# %% [markdown]
# With a smaller fmax both reach the same minimum. (Its c is far above the 13 Å of the real
# crystal: that is CHGNet's answer, and the prediction, which learned from DFT relaxations,
# was nearer.) The other explanation is two different minima, such as another tilt of
# octahedra. Then the lower one is the better answer, whichever start it came from, and the
# calls of the two should not be compared.
#
# How far the cells were off before and after the prediction, beside the cells that CHGNet
# finds:

# %%
plot.lattice_parity(result)

# %% [markdown]
# ## Phonons
#
# Small forces do not make a minimum. Phonons show whether there is one, and how much a
# property changes between the prediction alone (*predicted*), the relaxation from it
# (*refined*) and that without it (*iterative*). They need tight relaxations: with fmax 0.05
# the two relaxed cells would differ by enough to move bands. One crystal is enough here, in
# a supercell of about 9 Å; take larger ones for real work.

# %% tags=["measured"]
name = 'Mg2Sn in CaF2'
tight = compare({name: crystals[name]}, ['chgnet'], optimizers=['BFGS'], fmax=0.005)
tight['phonons'] = compare_phonons(tight, ['chgnet'], min_length=9)

for phonon in tight['phonons']:
    found, thermal = phonon['imaginary'], phonon['thermal']
    room = thermal['temperatures'].index(300)
    print(
        f'{phonon["kind"]:<9}  {found["n"]} of {found["n_modes"]} modes imaginary, '
        f'free energy at 300 K {1000 * thermal["free_energy"][room]:6.1f} meV/atom'
    )

# %%
plot_phonons.phonon_bands(tight, name, 'chgnet')

# %%
plot_phonons.thermal_properties(tight, name, 'chgnet')

# %% [markdown]
# All three are stable, and the two relaxed ones are the same. The optical bands of the
# predicted cell are higher by up to a tenth. This is good enough to ask whether a compound
# is stable, but not for its thermal conductivity.
#
# ## The report
#
# One HTML file holds the tables, the figures, and every crystal before and after, to be
# turned with the mouse. It opens without a network:

# %%
report = write_report(folder / 'report.html', result)
write_report(folder / 'phonons.html', tight)
print(*sorted(path.name for path in folder.glob('*.html')))

# %% [markdown]
# Open it in any browser, by a double click or from Python with
# `webbrowser.open(report.as_uri())`. From a shell, all of the above is
#
# ```bash
# deeprelax compare unrelaxed/*.cif --calculators chgnet \
#     --optimizers FIRE,BFGS,ElasticBFGS --phonons \
#     --html report.html --json result.json --out runs
# ```
#
# With `--batched` (in Python `batched=True`) many structures are relaxed together, in
# shared forward passes of the potential. If time and not the number of calls matters,
# compare with these.
