"""The picture of the README: a crystal before and after, and error against time.

    python benchmarks/figure.py          # writes docs/figure.svg

Beside the crystal stands what ``benchmarks/results/iterative.json`` measured.
"""

import numpy as np
from ase.spacegroup import crystal
from matplotlib.cm import ScalarMappable
from matplotlib.collections import EllipseCollection
from matplotlib.colors import Normalize, to_rgba
from render import ROOT, drawn_from, load

from ase_deeprelax import relax
from ase_deeprelax.report.style import (
    BLUE,
    DASHED,
    DOUBLE,
    GREY,
    INK,
    MORE,
    log,
    need_matplotlib,
    styled,
)

FILE = ROOT / 'docs' / 'figure.svg'
RADII = {'Sn': 0.85, 'O': 0.55}
GREYS = {'Sn': '0.55', 'O': '0.88'}
# The README is read on screens, also small ones: text is larger than in a journal.
TEXT = 8.5
ONE_SHOT, RELAXATION = (BLUE, 's'), (MORE[0], 'o')
# Name, colour and marker, and where it stands beside its point, in points.
METHODS = {
    'deeprelax': ('deeprelax', ONE_SHOT, (8, 8)),
    'ensemble': ('ensemble', ONE_SHOT, (2, -15)),
    'm3gnet': ('M3GNet', RELAXATION, (0, 8)),
    'tensornet': ('TensorNet', RELAXATION, (-10, -15)),
    'chgnet': ('CHGNet', RELAXATION, (12, 8)),
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


def outline(axis, atoms, **style):
    """The cell, seen along c."""
    a, b = atoms.cell.array[:2, :2]
    corners = np.array([[0, 0], a, a + b, b, [0, 0]])
    axis.plot(*corners.T, linewidth=0.9, **style)


def draw(axis, atoms, colors, limits):
    """Atoms seen along c, circles in order of height, and the cell."""
    outline(axis, atoms, color=INK)
    order = np.argsort(atoms.positions[:, 2])
    widths = np.array([2 * RADII[symbol] for symbol in atoms.symbols])[order]
    circles = EllipseCollection(
        widths,
        widths,
        np.zeros(len(order)),
        units='xy',
        offsets=atoms.positions[order, :2],
        offset_transform=axis.transData,
        facecolors=np.array(colors)[order],
        edgecolors=INK,
        linewidths=0.8,
        zorder=2,
        clip_on=False,
    )
    axis.add_collection(circles)
    axis.set(xlim=limits, ylim=limits, aspect='equal')
    axis.axis('off')


@styled
def main():
    """Predict, draw, save."""
    matplotlib = need_matplotlib()
    matplotlib.rcParams |= {
        'font.size': TEXT,
        'axes.titlesize': TEXT,
        'axes.titleweight': 'normal',
        'svg.hashsalt': 'figure',
        'svg.fonttype': 'path',
    }
    before = unrelaxed()
    result = relax(before)
    after = result.atoms
    limits = (-0.9, after.cell.lengths()[0] + 0.9)
    figure = matplotlib.figure.Figure((DOUBLE, 2.8), layout='constrained')
    axes = figure.subplots(1, 3, width_ratios=[1.1, 1.1, 1])
    for axis, letter in zip(axes, 'abc', strict=True):
        style = {'xycoords': 'axes fraction', 'textcoords': 'offset points'}
        axis.annotate(letter, (0, 1), (-13, 18), fontweight='bold', **style)
    draw(axes[0], before, [to_rgba(GREYS[x]) for x in before.symbols], limits)
    axes[0].set_title(
        f'before: SnO$_2$ in the cell\nof TiO$_2$, {before.cell.volume:.0f} Å$^3$',
        loc='left',
    )
    for k, (symbol, grey) in enumerate(GREYS.items()):
        axes[0].scatter([], [], [70, 30][k], grey, edgecolors=INK, lw=0.8, label=symbol)
    axes[0].legend(loc='upper center', bbox_to_anchor=(0.5, 0.02), ncols=2)
    sigma = result.sigma_atoms
    scale = ScalarMappable(Normalize(0.8 * sigma.min(), 1.05 * sigma.max()), 'viridis')
    outline(axes[1], before, color=GREY, linestyle=DASHED)
    draw(axes[1], after, scale.to_rgba(sigma), limits)
    axes[1].set_title(
        f'one shot: {after.cell.volume:.0f} Å$^3$,\nexpected error {result.error:.2f} Å',
        loc='left',
    )
    figure.colorbar(
        scale,
        ax=axes[1],
        orientation='horizontal',
        shrink=0.8,
        pad=0,
        aspect=25,
        label='uncertainty of an atom / Å',
    )
    compare(axes[2])
    drawn = {'Date': None, 'Description': drawn_from('iterative')}
    figure.savefig(FILE, metadata=drawn)
    print(f'{FILE.relative_to(ROOT)}: {FILE.stat().st_size / 1000:.0f} kB')


def compare(axis):
    """Median error of the lattice against CPU time, with the input's error as a line."""
    table = next(part for part in load('iterative')['parts'] if 'rows' in part)
    error, time = (table['columns'].index(x) for x in ('lattice_mae', 'CPU ms, one by one'))
    rows = {row[0]: row for row in table['rows']}
    medians = {name: float(row[error].split('/')[1]) for name, row in rows.items()}
    for name, (label, (color, marker), offset) in METHODS.items():
        point = float(rows[name][time]), medians[name]
        axis.plot(*point, marker, color=color, markersize=5)
        style = {'textcoords': 'offset points', 'ha': 'center', 'color': color}
        axis.annotate(label, point, xytext=offset, **style)
    axis.axhline(medians['Dummy'], color=GREY, linestyle=DASHED)
    axis.annotate(
        'input as it is',
        (0.97, medians['Dummy']),
        (0, -3),
        xycoords=axis.get_yaxis_transform(),
        textcoords='offset points',
        ha='right',
        va='top',
    )
    axis.text(0.03, 0.04, 'one shot', color=BLUE, transform=axis.transAxes)
    style = {'color': MORE[0], 'ha': 'right', 'transform': axis.transAxes}
    axis.text(0.97, 0.04, 'full relaxation', **style)
    axis.set(xlim=(4, 6000), ylim=(0, 1.15 * medians['Dummy']))
    log(axis, 'x')
    axis.set(xlabel='CPU time of one answer / ms', ylabel='error of lattice vectors / Å')
    axis.set_title('median error against\nDFT, 200 crystals', loc='left')


if __name__ == '__main__':
    main()
