"""Figures of many relaxed structures, of which no answer is known.

Like those of `plot`, the functions return a ``matplotlib.figure.Figure`` of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ase_deeprelax.report.style import BLUE, nothing, panels, panels_in_rows, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Columns of a table, by name.
Columns = Mapping[str, Sequence[Any] | np.ndarray]
# Values that differ only in further digits are one: what symmetry holds moves 1e-22 A.
DIGITS = 6
# The axis of values that are all equal is so wide, A or without unit.
SMALLEST = 0.01
# Quantities with a histogram: their names in `Relaxation.to_row`, and labels of the axes.
DRAWN = {
    'volume_ratio': 'volume, predicted over input',
    'dmax': 'largest displacement / Å',
    'error': 'expected error / Å',
    'sigma': 'sigma / Å',
}


@styled
def distributions(columns: Columns) -> Figure:
    """Histograms of volume ratios, displacements and uncertainties.

    Parameters
    ----------
    columns : mapping of str to sequence
        By names of `Relaxation.to_row`, as far as they are known; other names do not
        matter.

    Returns
    -------
    matplotlib.figure.Figure
        A panel for each that is known. The outermost thousandth on either side counts in
        the first or last bar.
    """
    values = {name: finite(columns.get(name, ())).round(DIGITS) for name in DRAWN}
    drawn = {name: found for name, found in values.items() if len(found)}
    if not drawn:
        figure, [[ax]] = panels(1, 1)
        nothing(ax, 'nothing is known of these structures')
        return figure
    figure, axes = panels_in_rows(len(drawn), most=2, shape=0.6)
    for ax, (name, found) in zip(axes, drawn.items(), strict=True):
        low, high = np.quantile(found, [0.001, 0.999])
        high = max(high, low + SMALLEST)
        ax.hist(np.clip(found, low, high), bins=40, range=(low, high), color=BLUE)
        ax.set(xlabel=DRAWN[name], ylabel='structures')
        ax.locator_params(axis='y', integer=True)
    return figure


def finite(values: Sequence[Any] | np.ndarray) -> np.ndarray:
    """The values that are finite numbers.

    >>> finite([0.5, None, float('nan')]).tolist()
    [0.5]
    """
    numbers = np.array(values, float)
    return numbers[np.isfinite(numbers)]
