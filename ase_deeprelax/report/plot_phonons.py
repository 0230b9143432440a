"""Figures of phonons of one crystal that was relaxed in several ways.

Like those of `plot`, the functions return a ``matplotlib.figure.Figure`` of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ase_deeprelax.compare.schema import Bands, Comparison, PhononRow
from ase_deeprelax.compare.tables import percent
from ase_deeprelax.report.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    TEXT,
    legend,
    panels,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Color, width and dashes: lines that lie upon each other must all be seen.
KINDS: dict[str, tuple[str, float, Any]] = {
    'predicted': (BLUE, 1.1, '-'),
    'refined': (GREEN, 2.1, '-'),
    'iterative': (ORANGE, 1.1, (0, (3, 1.5))),
}
# A smaller share of imaginary modes does not change thermal properties visibly; the three
# translations of a mesh are less.
LEFT_OUT = 0.01


@styled
def phonon_bands(comparison: Comparison, structure: str, calculator: str) -> Figure:
    """Phonon bands side by side, and the densities of states over each other.

    Parameters
    ----------
    comparison : dict
        As `savings.compare` gives it, with ``phonons``.
    structure, calculator : str

    Returns
    -------
    matplotlib.figure.Figure
        A panel per way of relaxing that has phonons; what is below zero is imaginary.
    """
    found = _phonons(comparison, structure, calculator)
    widths = [*[1.0] * len(found), 0.7]
    figure, [axes] = panels(1, len(widths), shape=1.5, sharey=True, width_ratios=widths)
    for ax, (kind, row) in zip(axes, found.items(), strict=False):
        bands = row['bands']
        x, y = np.array(bands['x']), np.array(bands['frequencies'])
        for part in np.split(np.arange(len(x)), bands['breaks']):
            ax.plot(x[part], y[part], color=KINDS[kind][0], lw=0.9)
        ax.set_xticks(*_ticks(bands))
        # The point before the last one is often close to it.
        ax.get_xticklabels()[-1].set_horizontalalignment('left')
        ax.tick_params(axis='x', labelsize=TEXT - 1)
        ax.grid(visible=False, axis='y')
        n, modes = row['imaginary']['n'], row['imaginary']['n_modes']
        ax.set(title=f'{kind}\n{n} of {modes} imaginary', xlim=(x[0], x[-1]))
    for kind, row in found.items():
        dos = row['dos']
        _line(axes[-1], dos['density'], dos['frequencies'], kind)
    for ax in axes:
        ax.axhline(0, color=INK, lw=0.7)
    axes[0].set(ylabel='frequency / THz')
    axes[-1].set(title='density of states', xlabel='per atom / THz⁻¹', xlim=(0, None))
    legend(figure, axes[-1])
    return figure


@styled
def thermal_properties(comparison: Comparison, structure: str, calculator: str) -> Figure:
    """Free energy, entropy and heat capacity of harmonic phonons over temperature.

    Parameters
    ----------
    comparison : dict
        As `savings.compare` gives it, with ``phonons``.
    structure, calculator : str

    Returns
    -------
    matplotlib.figure.Figure
        A line per way of relaxing that has phonons. The legend says what share of the modes
        is left out, because they are imaginary, where that is one percent or more.
    """
    found = _phonons(comparison, structure, calculator)
    shown = {
        'free_energy': ('free energy / meV per atom', 1000),
        'entropy': ('entropy / J K⁻¹ mol⁻¹', 1),
        'heat_capacity': ('heat capacity / J K⁻¹ mol⁻¹', 1),
    }
    figure, [axes] = panels(1, 3)
    for ax, (key, (label, unit)) in zip(axes, shown.items(), strict=True):
        for kind, row in found.items():
            thermal = cast('Mapping[str, list[float]]', row['thermal'])
            _line(ax, thermal['temperatures'], unit * np.array(thermal[key], float), kind)
        ax.set(xlabel='temperature / K', ylabel=label)
    for line, row in zip(axes[0].lines, found.values(), strict=True):
        if (share := row['thermal']['left_out']) >= LEFT_OUT:
            line.set_label(f'{line.get_label()}, without {percent(share)} of the modes')
    legend(figure, axes[0])
    return figure


def _ticks(bands: Bands) -> tuple[list[float], list[str]]:
    """Places and labels; X|Q where the path jumps from X to Q."""
    places: dict[float, list[str]] = {}
    end = bands['x'][-1]
    for x, label in zip(bands['ticks'], bands['labels'], strict=True):
        places.setdefault(round(x, 6), []).append(label.replace('G', 'Γ'))
    # Rounded up, the last one would lie outside the axis and not be drawn.
    ticks = [min(place, end) for place in places]
    return ticks, ['|'.join(labels) for labels in places.values()]


def _line(
    ax: Axes, x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, kind: str
) -> None:
    color, width, dashes = KINDS[kind]
    ax.plot(x, y, color=color, lw=width, ls=dashes, label=kind)


def _phonons(
    comparison: Comparison, structure: str, calculator: str
) -> dict[str, PhononRow]:
    wanted = (structure, calculator)
    rows = {
        row['kind']: row
        for row in comparison.get('phonons', [])
        if (row['structure'], row['calculator']) == wanted and row['ok']
    }
    if not rows:
        raise ValueError(
            f'there are no phonons of structure {structure!r} with {calculator!r}; '
            'call compare_phonons, and see the problem in its rows'
        )
    return {kind: rows[kind] for kind in KINDS if kind in rows}
