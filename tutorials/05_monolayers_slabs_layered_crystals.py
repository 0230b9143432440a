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
# # Monolayers, slabs and layered crystals
#
# A structure with vacuum needs care: the vacuum must stay, some atoms may be fixed to a
# substrate, and the stress along the vacuum means nothing. The network is told what may
# move, and what is fixed is not changed at all.

# %%
import matplotlib.pyplot as plt
import numpy as np
from ase.build import add_adsorbate, fcc111, mx2
from ase.constraints import FixAtoms
from ase.spacegroup import crystal

from ase_deeprelax import relax
from ase_deeprelax.errors import DeepRelaxError

# %% [markdown]
# ## Monolayers
#
# Six compounds in the cell of MoS2. `mx2` makes a layer with `pbc` False along the vacuum.
# In a POSCAR all three directions are periodic: there a layer is recognised by a gap of
# more than 7 Å between its atoms.

# %%
PBE = {'MoS2': 3.18, 'MoSe2': 3.32, 'MoTe2': 3.55, 'WS2': 3.19, 'WSe2': 3.32, 'WTe2': 3.55}
layers = [mx2(name, a=3.18, thickness=3.13, vacuum=8) for name in PBE]
results = relax(layers)

print('        a / Å   PBE / Å   sigma / Å   vacuum vector / Å')
for (name, pbe), result in zip(PBE.items(), results, strict=True):
    a, _, c = result.atoms.cell.lengths()
    print(f'{name:<6} {a:6.3f} {pbe:9.2f} {result.sigma:10.3f} {c:14.3f}')
print('kind:', results[0].kind)

# %%
_, axis = plt.subplots(figsize=(3.4, 3), layout='constrained')
axis.axline((3.1, 3.1), slope=1, color='0.7')
for (name, pbe), result, marker in zip(PBE.items(), results, 'osD^vP', strict=True):
    axis.plot(pbe, result.atoms.cell.lengths()[0], marker, label=name)
axis.axhline(3.18, color='0.7', linestyle='--')
axis.set(xlabel='a by PBE / Å', ylabel='a predicted from 3.18 Å / Å')
axis.legend()
plt.show()

# %% [markdown]
# The answer does not depend on the height of the box, nor on where the layer is in it:

# %%
for vacuum in (6, 20):
    layer = mx2('WSe2', a=3.18, thickness=3.13, vacuum=vacuum)
    layer.positions[:, 2] += 2.5
    layer.wrap()
    print(f'vacuum {vacuum:2} Å: a = {relax(layer).atoms.cell.lengths()[0]:.4f} Å')

# %% [markdown]
# ## A slab with an adsorbate
#
# Oxygen on Pt(111). The two lower layers are fixed, as is usual, to stand for the bulk.
# With fixed atoms the cell is fixed too.

# %%
slab = fcc111('Pt', (2, 2, 4), a=3.98, vacuum=8)
add_adsorbate(slab, 'O', 1.6, 'fcc')
bottom = slab.get_tags() >= 3
slab.set_constraint(FixAtoms(mask=bottom))
result = relax(slab)

moves = result.atoms.positions - slab.positions
print('kind:', result.kind)
print('largest move of a fixed atom / Å:', np.abs(moves[bottom]).max())
print('change of the cell / Å:          ', np.abs(result.atoms.cell - slab.cell).max())
oxygen = result.atoms.symbols == 'O'
top = slab.get_tags() == 1
height = result.atoms.positions[oxygen, 2] - result.atoms.positions[top, 2].mean()
print(f'oxygen above the surface: {height[0]:.2f} Å; it was put at 1.60 Å')

# %%
_, axis = plt.subplots(figsize=(4, 2.8), layout='constrained')
axis.axvline(0, color='0.7')
adsorbed = slab.symbols == 'O'
for label, which, look in (
    ('fixed', bottom, {'color': '0.6', 'marker': 's'}),
    ('metal', ~bottom & ~adsorbed, {'color': 'C0', 'marker': 'o'}),
    ('oxygen', adsorbed, {'color': 'C3', 'marker': '^'}),
):
    axis.scatter(moves[which, 2], slab.positions[which, 2], label=label, **look)
axis.set(xlabel='move along z / Å', ylabel='height of the atom / Å')
axis.locator_params(axis='x', nbins=5)
axis.legend()
plt.show()

# %% [markdown]
# Without constraints a slab is treated as a layer whose cell may change in the plane. For a
# surface of a crystal this is not what you want: fix the lower layers, or the cell, with
# `relax_cell=False`.

# %%
free = fcc111('Pt', (1, 1, 4), a=3.98, vacuum=8)
for relax_cell in (None, False):
    result = relax(free, relax_cell=relax_cell)
    print(f'{result.kind:<24} a = {result.atoms.cell.lengths()[0]:.3f} Å')

# %% [markdown]
# ## Layered crystals
#
# A crystal of stacked layers has no vacuum. Its bonds within a layer are strong; between
# layers there is dispersion, which PBE, and so the training data, describes badly. Bulk
# MoS2 from cells that are 3 % too small and too large along all directions:


# %%
def bulk_mos2(scale):
    return crystal(
        ['Mo', 'S'],
        [(1 / 3, 2 / 3, 1 / 4), (1 / 3, 2 / 3, 0.621)],
        spacegroup=194,
        cellpar=[3.16 * scale, 3.16 * scale, 12.29 * scale, 90, 90, 120],
    )


print('measured:             a = 3.160 Å, c = 12.29 Å')
for scale in (0.97, 1.03):
    a, _, c = relax(bulk_mos2(scale)).atoms.cell.lengths()
    print(f'from {scale:.2f} times that: a = {a:.3f} Å, c = {c:.2f} Å')

# %% [markdown]
# *a* is right to 0.3 %, *c* is 6 % too long, as in PBE. Both depend little on the start.
# For other layered crystals *c* depends more on it. If you know *c*, fix it with a mask of
# strains (xx, yy, zz, yz, xz, xy). If not, refine with a calculator that has a dispersion
# correction.

# %%
fixed = relax(bulk_mos2(1.0), relax_cell=[1, 1, 0, 0, 0, 1])
print(f'{fixed.kind}: c = {fixed.atoms.cell.lengths()[2]:.2f} Å')

# %% [markdown]
# ## What is refused
#
# Wires, molecules and two separate layers in one cell are outside the training data. They
# are refused by an error that says what was found:

# %%
wire = mx2('MoS2', vacuum=8)
wire.center(vacuum=8, axis=(1, 2))
wire.pbc = (True, False, False)
try:
    relax(wire)
except DeepRelaxError as error:
    print(error)
