"""One HTML page on a screen: distributions, uncertain structures, quarantine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ase_deeprelax.compare.tables import Cell, Table, count, number
from ase_deeprelax.report.html import write_page
from ase_deeprelax.report.html_blocks import Section, figure_block, link, places
from ase_deeprelax.report.style import BLUE, panels, styled
from ase_deeprelax.report.viewer_data import scene
from ase_deeprelax.screening import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# So many of the most uncertain structures can be turned by hand.
TURNED = 12
# Columns that are drawn, with their labels.
DRAWN = {
    'volume_ratio': 'volume, predicted over input',
    'sigma': 'sigma / Å',
    'deeprelax_error': 'expected error / Å',
    'dmax': 'largest displacement / Å',
    'seconds': 'time per structure / s',
}
# Columns of the table of uncertain structures.
SHOWN = ('n_atoms', 'kind', 'volume_ratio', 'dmax', 'sigma', 'ood')


def write_screen_page(path: str | Path, results: Results) -> Path:
    """Write a page on a screen, in one HTML file that needs no network.

    Parameters
    ----------
    path : str or Path
        Overwritten; its folder is made.
    results : Results
        Of a screen that has a pack at least.

    Returns
    -------
    Path

    Raises
    ------
    ConfigError
        There is no pack yet.
    MissingDependencyError
        matplotlib is not there.
    """
    known = [name for name in DRAWN if name in results.columns]
    numbers = results.table(columns=known).to_pydict()
    worst = results.table(sort='sigma', descending=True, limit=TURNED)
    scenes, rows = _worst(results, worst)
    where = places(scenes)
    first: dict[str, Any] = next(iter(rows), {})
    done = f'{count(len(results))} of {results.plan.n_structures:,} done'
    made = f'model {first.get("model", "")!r}, package {first.get("version", "")}'
    about = [f'{done}, {results.n_quarantined:,} of them quarantined; {made}.']
    figures = [
        figure_block(
            distributions(numbers), 'How the structures that were relaxed are distributed.'
        )
    ]
    table = Table(
        ['structure', *SHOWN],
        [[link(row['id'], where), *(_cell(row[name]) for name in SHOWN)] for row in rows],
        (0, 2, 6),
        'The most uncertain structures',
    )
    parts = [
        Section('Distributions', [], [], figures),
        Section('Most uncertain', ['The largest sigma first.'], [table]),
    ]
    reasons = results.quarantine()
    if reasons:
        lines = [[reason, str(n)] for reason, n in reasons.items()]
        left_out = Table(['reason', 'structures'], lines, (0,), 'Quarantine by reason')
        parts.append(Section('Quarantine', ['Numbers in reasons stand as #.'], [left_out]))
    return write_page(path, f'Screen {results.store.out.name}', about, scenes, parts)


@styled
def distributions(numbers: dict[str, list[float]]) -> Figure:
    """Histograms of the columns of a screen.

    Parameters
    ----------
    numbers : dict of str to list of float
        By names of `DRAWN`.
    """
    figure, [axes] = panels(1, len(numbers))
    for ax, (name, values) in zip(np.atleast_1d(axes), numbers.items(), strict=True):
        known = np.array(values, dtype=float)
        known = known[np.isfinite(known)]
        if len(known):  # a few far ones would leave one bar for all others
            low, high = np.quantile(known, [0.001, 0.999])
            ax.hist(np.clip(known, low, high), bins=40, color=BLUE)
        ax.set(xlabel=DRAWN[name], ylabel='structures')
    return figure


def _worst(results: Results, table: Any) -> tuple[list[dict[str, Any]], list[Any]]:
    scenes, rows = [], []
    for row, atoms in results.structures(table):
        before = results.initial(row['position'], atoms)
        notes = {
            'atoms': f'{len(atoms)}',
            'relaxed as': row['kind'],
            'volume ratio': f'{row["volume_ratio"]:.3f}',
            'sigma / Å': f'{row["sigma"]:.3f}',
        }
        sigma = atoms.arrays.get('deeprelax_sigma')
        scenes.append(scene(row['id'], before, atoms, sigma, notes))
        rows.append(row)
    return scenes, rows


def _cell(value: Any) -> Cell:
    return number(value, '.3f') if isinstance(value, float) else value
