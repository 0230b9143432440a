"""The picture of the README: a crystal before and after, and error against time.

    python benchmarks/figure.py          # writes docs/figure.svg

Beside the crystal stands what ``benchmarks/results/iterative.json`` measured.
"""

import matplotlib.pyplot as plt
import numpy as np
from ase.spacegroup import crystal
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Circle
from render import ROOT, load

from ase_deeprelax import relax

FILE = ROOT / 'docs' / 'figure.svg'
RADII = {'Ti': 0.75, 'Sn': 0.85, 'O': 0.55}
# Name, colour, and where it stands beside its point, in points.
METHODS = {
    'deeprelax': ('deeprelax', 'C2', (0, 7)),
    'ensemble': ('ensemble', 'C2', (0, -14)),
    'm3gnet': ('M3GNet', 'C1', (0, 7)),
    'tensornet': ('TensorNet', 'C1', (-4, -14)),
    'chgnet': ('CHGNet', 'C1', (8, 7)),
}


def unrelaxed():
    """SnO2 in the rutile cell of TiO2, with atoms displaced by some 0.2 Å."""
    atoms = crystal(
        ['Sn', 'O'],
        [(0, 0, 0), (0.3053, 0.3053, 0)],
        spacegroup=136,
        cellpar=[4.594, 4.594, 2.959, 90, 90, 90],
    )
    atoms = atoms.repeat((2, 2, 1))
    atoms.rattle(0.12, seed=3)
    return atoms


def draw(axis, atoms, colors, limits):
    """Atoms seen along c, circles in order of height, and the cell."""
    order = np.argsort(atoms.positions[:, 2])
    for k in order:
        radius = RADII[atoms[k].symbol]
        axis.add_patch(
            Circle(atoms.positions[k, :2], radius, facecolor=colors[k], edgecolor='0.25')
        )
    a, b = atoms.cell.array[:2, :2]
    corners = np.array([[0, 0], a, a + b, b, [0, 0]])
    axis.plot(*corners.T, color='0.4', linewidth=0.8)
    axis.set(xlim=limits, ylim=limits, aspect='equal')
    axis.axis('off')


def main():
    """Predict, draw, save."""
    before = unrelaxed()
    result = relax(before)
    after = result.atoms
    limits = (-1.2, after.cell.lengths()[0] + 1.2)
    plt.rcParams |= {'font.size': 9, 'axes.titlesize': 9, 'svg.hashsalt': 'figure'}
    figure, axes = plt.subplots(
        1, 3, figsize=(9, 3), width_ratios=[1, 1.2, 1.25], layout='constrained'
    )
    plain = ['0.55' if symbol == 'Sn' else '0.85' for symbol in before.symbols]
    draw(axes[0], before, plain, limits)
    axes[0].set_title(
        f'(a) SnO$_2$ in the cell of TiO$_2$,\nV = {before.cell.volume:.0f} Å$^3$'
    )
    sigma = result.sigma_atoms
    scale = ScalarMappable(Normalize(0.8 * sigma.min(), 1.05 * sigma.max()), 'viridis')
    draw(axes[1], after, scale.to_rgba(sigma), limits)
    axes[1].set_title(
        f'(b) one shot: V = {after.cell.volume:.0f} Å$^3$,\n'
        f'uncertainty {result.sigma:.2f} Å'
    )
    figure.colorbar(scale, ax=axes[1], shrink=0.8, label='uncertainty of an atom / Å')
    compare(axes[2])
    figure.savefig(FILE, metadata={'Date': None})
    print(f'{FILE.relative_to(ROOT)}: {FILE.stat().st_size / 1000:.0f} kB')


def compare(axis):
    """Median error of the lattice against CPU time, with the input's error as a line."""
    table = next(part for part in load('iterative')['parts'] if 'rows' in part)
    error, time = (table['columns'].index(x) for x in ('lattice_mae', 'CPU ms, one by one'))
    rows = {row[0]: row for row in table['rows']}
    medians = {name: float(row[error].split('/')[1]) for name, row in rows.items()}
    for name, (label, color, offset) in METHODS.items():
        point = float(rows[name][time]), medians[name]
        axis.plot(*point, 'o', color=color)
        style = {'textcoords': 'offset points', 'ha': 'center', 'color': color}
        axis.annotate(label, point, xytext=offset, **style)
    axis.axhline(medians['Dummy'], color='0.6', linestyle='--')
    axis.text(
        0.03,
        0.95 * medians['Dummy'],
        'unrelaxed input',
        va='top',
        color='0.4',
        transform=axis.get_yaxis_transform(),
    )
    axis.text(0.03, 0.05, 'one shot', color='C2', transform=axis.transAxes)
    axis.text(
        0.97, 0.05, 'full relaxation', color='C1', ha='right', transform=axis.transAxes
    )
    axis.set(xscale='log', xlim=(6, 6000), ylim=(0, 1.15 * medians['Dummy']))
    axis.set(xlabel='CPU time of one answer / ms', ylabel='error of lattice vectors / Å')
    axis.set_title('(c) median error against DFT,\n200 crystals')


if __name__ == '__main__':
    main()
