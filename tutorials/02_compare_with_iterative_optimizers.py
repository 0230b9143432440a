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
# A prediction saves something where the relaxation after it needs fewer calls of the
# calculator and ends no higher. Both are measured here on six crystals, with CHGNet
# (`pip install 'ase-deeprelax[chgnet,phonopy,plot]'`) in the place of DFT: the same lines
# serve for your structures and your calculator. It takes a minute on one core.

# %%
import tempfile
import warnings
from pathlib import Path

from ase.build import bulk
from ase.spacegroup import crystal

from ase_deeprelax.compare.comparison_tables import comparison_text
from ase_deeprelax.compare.phonons import compare_phonons
from ase_deeprelax.compare.savings import compare
from ase_deeprelax.report import plot, plot_phonons
from ase_deeprelax.report.html import write_report

folder = Path(tempfile.mkdtemp())  # yours would be one that you keep
warnings.filterwarnings('ignore', module='chgnet')  # of how it makes its tensors

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
# ## Every way down
#
# Each crystal is relaxed with each optimizer, positions and cell, twice: from where it is,
# and from its prediction. Counted are calls of the calculator, the first one included: they
# are what costs, and they do not depend on what else your computer does. The time of the
# prediction is part of the time of the runs that start from it.
#
# `out` keeps every finished run: the same line, started again, goes on where it stopped,
# and more crystals, calculators and optimizers can be added to it.

# %% tags=["measured"]
optimizers = ['FIRE', 'BFGS', 'ElasticBFGS']
result = compare(
    crystals, ['chgnet'], optimizers=optimizers, fmax=0.05, out=folder / 'runs'
)
print(comparison_text(result))

# %% [markdown]
# Medians and quartiles are over converged runs; what failed or did not converge is counted
# apart, and whatever ended higher in energy than without a prediction is named. Before you
# believe a median, look at what it is made of:

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
# - Every run ends with a call that finds the forces small. KCl is predicted so well that
#   this one call is all there is; it cannot get better than that, nor much better than
#   the five or six calls of a cell with two atoms.
# - BFGS learns the shape of the valley on its way and leaves less to save than FIRE, which
#   starts each valley slowly. Compare with the optimizer that you would use.
# - ElasticBFGS, which `DeepRelaxOptimizer` takes by itself, begins with springs between
#   near atoms and needs a handful of calls from anywhere. From the unrelaxed structure to
#   the fewest calls it is the optimizer that saves most, and the prediction the rest.
# - With WSe2 BFGS and ElasticBFGS take more calls from the prediction than without it. Look
#   where they go before you count: below.
# - Two averages, two answers: the table compares the median number of calls with the median
#   number of calls, the line in the box is the median of each crystal's own ratio. Where
#   crystals differ as much as here, say which one you mean.
# - Six crystals say how to measure, not how much is saved on average. The page
#   docs/speed.md has that figure for hundreds, and `deeprelax compare` makes it for yours.
#
# The way down of one crystal:

# %%
plot.convergence(result, 'chgnet', 'SnSe in GeS')

# %% [markdown]
# With the prediction a curve begins where it is without one after some calls. The dashed
# line is fmax; a curve that ended above it would be an unconverged run.
#
# ## Did it end in the same place?
#
# Calls are worth nothing where the end is another one. Energies before, of the prediction
# alone, and of the relaxation from it, above the relaxation without it:

# %%
plot.energy_boxes(result)

# %% [markdown]
# The prediction alone has taken away most of the energy. After the relaxation the energies
# should agree to a few meV per atom. Where they do not, there are two explanations, and
# fmax tells them apart. The layers of WSe2 are held together by next to nothing in CHGNet,
# which knows no dispersion forces, so that forces are small long before the minimum, and
# two relaxations stop at different places of the same slope:


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
# With a smaller fmax both go all the way to the same minimum. (Its c is far above the 13 Å
# of the real crystal: that is CHGNet's answer, and the prediction, which learned from DFT
# relaxations, was nearer.) Had they stayed apart, they would lie in different minima:
# another tilt or another distortion. Then the lower one is the better answer, from
# whichever start it came, and the calls of the two should not be compared.
#
# How far the cells were off, before and after the prediction, as CHGNet sees it:

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
# All three are stable, and the two relaxed ones the same. The optical bands of the
# predicted cell lie within 30 % of theirs: good enough to ask whether a compound is
# stable, not for its thermal conductivity.
#
# ## The report
#
# Tables, figures and every crystal before and after, to be turned by hand, in one HTML file
# that needs no network:

# %%
report = write_report(folder / 'report.html', result)
write_report(folder / 'phonons.html', tight)
print(*sorted(path.name for path in folder.glob('*.html')))

# %% [markdown]
# Open it in any browser, by a double click or from Python with
# `webbrowser.open(report.as_uri())`. From a shell, all of the above is
#
# ```bash
# deeprelax compare unrelaxed/*.cif --calculators chgnet --optimizers FIRE,BFGS \
#     --phonons --html report.html --json result.json --out runs
# ```
#
# With `--batched` (in Python `batched=True`) relaxations of many structures share the
# forward passes of the potential. Where time and not the number of calls matters, that is
# the rival to beat.
