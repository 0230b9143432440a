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
# # Screen thousands of candidates, and pick some
#
# Which cubic perovskites ABX₃ grow on strontium titanate without strain? Their lattice
# constants have to agree within half a percent. This notebook writes about a thousand
# candidates, relaxes them all in one shot, keeps the answers that can be trusted, relaxes
# the most promising ones further with a potential, and chooses what DFT should calculate
# first.

# %%
import tempfile
import warnings
from itertools import product
from pathlib import Path
from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii
from ase.io import write

from ase_deeprelax import relax, screen
from ase_deeprelax.calculators.batched import batch_potential
from ase_deeprelax.calculators.registry import get_calculator
from ase_deeprelax.errors import DeepRelaxWarning
from ase_deeprelax.predict.select import select
from ase_deeprelax.report.plot_relaxations import distributions
from ase_deeprelax.report.screen_page import write_screen_page
from ase_deeprelax.screening.refine import refine

folder = Path(tempfile.mkdtemp())
# Some candidates are out of distribution: rows and answers say so.
warnings.filterwarnings('ignore', category=DeepRelaxWarning)
warnings.filterwarnings('ignore', category=UserWarning, module='chgnet')

# %% [markdown]
# ## The candidates
#
# All combinations whose charges add up to zero, in cells that follow from atomic radii:
# some of them are wrong by 20 % in length.

# %%
SITES = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
CHARGES = {
    'O S Se': [
        ('Li Na K Rb Cs Ag Tl', 'V Nb Ta Sb'),
        ('Mg Ca Sr Ba Cd Sn Pb Eu', 'Ti Zr Hf V Cr Mn Ge Sn Mo Ru Ir Ce'),
        ('Y La Ce Pr Nd Sm Gd Dy Bi', 'Sc Ti V Cr Mn Fe Co Ni Al Ga In Rh'),
    ],
    'F Cl Br I': [('Li Na K Rb Cs Ag Tl', 'Mg Ca Sr Ba Mn Fe Co Ni Cu Zn Cd Ge Sn Pb')],
}


def perovskite(a, b, x):
    """A cubic perovskite, its B and X atoms about in touch."""
    length = 1.9 * sum(covalent_radii[atomic_numbers[name]] for name in (b, x))
    return Atoms([a, b, x, x, x], scaled_positions=SITES, cell=3 * [length], pbc=True)


candidates = [
    perovskite(a, b, x)
    for anions, families in CHARGES.items()
    for first, second in families
    for a, b, x in product(first.split(), second.split(), anions.split())
]
write(folder / 'candidates.extxyz', candidates)
print(len(candidates), 'candidates')

# %% [markdown]
# ## The screen
#
# From a shell this is `deeprelax screen candidates.extxyz run1`. It reads the file as a
# stream and writes its answers in packs: after a stop, whatever the reason, the same
# command goes on where it was. `workers=8` makes eight processes; the tasks of a job
# array share one folder.

# %%
begin = perf_counter()
done = screen(folder / 'candidates.extxyz', folder / 'run1')
seconds = perf_counter() - begin
print(f'{done.n_done} of {done.n_structures} done, {done.n_quarantined} quarantined')

# %% tags=["measured"]
rate = done.n_done / seconds
hours = 1e6 / rate / 3600
print(f'{rate:.0f} structures per second on this machine, set-up included')
print(f'a million: {hours:.1f} hours, or {60 * hours / 32:.0f} minutes on 32 machines')

# %% [markdown]
# ## The results
#
# The results are a table with a row for each structure (of pyarrow, turned into pandas
# here). The structures themselves are read when they are asked for.

# %%
table = done.results.table()
rows = table.to_pandas()
rows['name'] = [atoms.get_chemical_formula('reduce') for atoms in candidates]
rows['a'] = np.cbrt(5 * rows.volume_per_atom)
rows[['name', 'a', 'error', 'novelty', 'ood']].head(4).round(3)

# %%
distributions(table.to_pydict())

# %% [markdown]
# ## Two conditions: a trusted answer, and a lattice that fits
#
# An answer is trusted (it passes the *gate*) if its expected error is small and the
# structure is not out of distribution. It fits if its lattice constant lies in a *window*
# around that of SrTiO₃, which the same network predicts, so that a common error of the
# functional cancels. In the figure each dot is a candidate; those in colour pass the gate
# and lie in the window.

# %%
GATE, WINDOW = 0.05, 0.005
substrate = relax(perovskite('Sr', 'Ti', 'O')).atoms.cell.lengths()[0]
rows['mismatch'] = rows.a / substrate - 1
trusted = (rows.error < GATE) & (rows.ood == '')
fits = trusted & (rows.mismatch.abs() < WINDOW)
print(f'SrTiO3: {substrate:.3f} Å')
print(f'{trusted.sum()} of {len(rows)} pass the gate, {fits.sum()} of them fit')

# %%
_, ax = plt.subplots(figsize=(6, 3.6), layout='constrained')
ax.axvspan(-100 * WINDOW, 100 * WINDOW, color='0.9')
ax.axhline(GATE, color='0.4', lw=0.8, ls='--')
ax.scatter(100 * rows.mismatch, rows.error, 6, '0.6', lw=0)
ax.scatter(100 * rows.mismatch[fits], rows.error[fits], 14, '#0072b2', lw=0)
ax.set(xlabel='mismatch with SrTiO₃ / %', ylabel='expected error / Å')
ax.set(yscale='log', xlim=(-8, 12))
plt.show()

# %% [markdown]
# From a shell, conditions choose rows, and `--export` writes their structures:
#
# `deeprelax results run1 --where 'error < 0.05' --where 'volume_per_atom > 12.2' --where
# 'volume_per_atom < 12.5' --export best.db`
#
# ## The promising part, refined
#
# CHGNet relaxes the candidates that fit, and the substrate, many at a time. It starts from
# the predictions. Lattice constants are compared to a tenth of a per cent here, and so the
# forces have to be small: at the usual 0.05 eV/Å, a third of the predictions would count as
# relaxed, and CHGNet would only repeat them. From a shell, with 0.05 eV/Å: `deeprelax
# results run1 ... --refine chgnet --export refined.db`.

# %%
best = rows[fits | (rows.name == 'SrTiO3')].sort_values('error')[:24]
chosen = table.take(best.position.to_numpy())
potential = batch_potential(get_calculator('chgnet', device='cpu'))
journal = folder / 'refined.jsonl'
ends = refine(done.results, chosen, potential, journal, name='chgnet', fmax=0.005)
refined = {id: atoms for id, atoms, problem in ends if not problem}
print(f'{len(refined)} of {len(best)} converged')

# %%
length = {id: atoms.cell.lengths()[0] for id, atoms in refined.items()}
best = best[best.id.isin(length)].assign(refined=lambda x: x.id.map(length))
own = best.refined[best.name == 'SrTiO3'].item()
best['after'] = best.refined / own - 1
for row in best[:12].itertuples():
    one_shot, after = 100 * row.mismatch, 100 * row.after
    print(f'{row.name:<7} {one_shot:+.3f} %, with CHGNet {after:+.3f} %')
kept = best[best.after.abs() < WINDOW]
print(f'{len(kept)} of {len(best)} still fit, SrTiO3 itself among them')

# %% [markdown]
# The bars are the 90 % intervals of the predictions. Where the value of CHGNet lies
# outside, one of the two is probably wrong, and DFT has to say which.

# %%
_, ax = plt.subplots(figsize=(6, 3.8), layout='constrained')
places = np.arange(len(best))
volumes = best[['volume_low', 'volume_high']].to_numpy().T
low, high = 100 * (np.cbrt(volumes) / substrate - 1)
ax.axhspan(-100 * WINDOW, 100 * WINDOW, color='0.9')
ax.vlines(places, low, high, color='#0072b2', alpha=0.5)
ax.plot(places, 100 * best.mismatch, 'o', color='#0072b2', ms=4, label='one shot')
ax.plot(places, 100 * best.after, 's', color='#d55e00', ms=4, label='CHGNet')
ax.set_xticks(places, best.name, rotation=90)
ax.set(ylabel='mismatch with SrTiO₃ / %')
ax.legend(loc='lower center', bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
plt.show()

# %% [markdown]
# ## What the network does not know
#
# The least certain candidates did not pass the gate, and some of them may fit. `select`
# picks those whose DFT relaxations would teach the network most: uncertain ones that are
# unlike each other. From a shell, `deeprelax select uncertain/*.cif --count 6` writes them
# as POSCAR files; with DFT they become the pairs of the next training (tutorial 4).

# %%
doubtful = done.results.table(sort='error', descending=True, limit=100)
structures = [
    done.results.initial(row['position'], atoms)
    for row, atoms in done.results.structures(doubtful)
]
answers = relax(structures)
for k in select(answers, 6):
    name = structures[k].get_chemical_formula('reduce')
    print(f'{name:<7} {answers[k].error:.3f} Å  {answers[k].ood}')

# %% [markdown]
# ## A page for colleagues
#
# One file with distributions, and the most uncertain structures to turn with the mouse.
# From a shell: `deeprelax results run1 --html screen.html`.

# %%
page = write_screen_page(folder / 'screen.html', done.results)
print(page.name, 'written')
