"""Figures of a comparison with iterative relaxation.

Every function returns a ``matplotlib.figure.Figure`` of its own (``figure.savefig(path)``)
and leaves pyplot alone. It is as wide as one column of a journal, 89 mm, or as two, 183 mm,
with a letter on each panel. Colours are Okabe and Ito's, which the colour-blind can tell
apart, and each always means the same: grey the input, blue the prediction, green
relaxations from the prediction, orange other methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms

from ase_deeprelax.compare.schema import Comparison, Geometry, RunRow, StructureRow
from ase_deeprelax.data.one_line import count
from ase_deeprelax.data.pairs import spread
from ase_deeprelax.report.style import (
    BLUE,
    DASHED,
    FEW,
    GREEN,
    GREY,
    INK,
    LONG,
    MANY,
    MARKERS,
    MORE,
    boxes,
    diagonal,
    legend,
    log,
    nothing,
    panels,
    panels_in_rows,
    parity,
    plain,
    short_number,
    shortened,
    styled,
)
from ase_deeprelax.report.viewer_data import periodic_vectors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NONE_CONVERGED = 'no structure converged\nfrom both starts'
STARTS = {'unrelaxed': ('unrelaxed', GREY), 'prediction': ('prediction', BLUE)}

_MEV = 1000
# A message lists at most so many names.
_MOST_NAMED = 10


@styled
def calls_saved(comparison: Comparison) -> Figure:
    """Calls of each calculator with the prediction against those without it.

    Parameters
    ----------
    comparison : dict
        As `savings.compare` gives it.

    Returns
    -------
    matplotlib.figure.Figure
        A panel per calculator with a point per structure that converged from both starts,
        and the ratio of the two for every calculator and optimizer.
    """
    calculators, optimizers = _settings(comparison)
    figure, axes = _calls_panels(len(calculators), len(optimizers))
    ratios, names, colors = [], [], []
    for ax, calculator in zip(axes, calculators, strict=False):
        everything = []
        for k, optimizer in enumerate(optimizers):
            both = list(_both(comparison, calculator, optimizer).values())
            calls = np.array([[run['calls'] for run in pair] for pair in both])
            calls = calls.reshape(-1, 2)
            color = (BLUE, *MORE)[k % 5]
            marker = MARKERS[k % len(MARKERS)]
            dots = ax.scatter(*calls.T, 11, color, marker=marker, label=optimizer)
            dots.set(alpha=0.6, linewidth=0, rasterized=len(calls) > MANY)
            everything.append(calls.ravel())
            ratios.append(calls[:, 1] / calls[:, 0])
            names.append(f'{shortened(calculator, LONG)}\n{optimizer}, {len(calls):,}')
            colors.append(color)
        everything = np.concatenate(everything)
        title = plain(shortened(calculator, LONG))
        ax.set(title=title, xlabel='calls without prediction')
        if not len(everything):
            nothing(ax, NONE_CONVERGED)
            continue
        diagonal(ax, everything)
        log(ax, 'x', 'y')
    axes[0].set(ylabel='calls with prediction')
    legend(figure, axes[0])
    last = axes[-1]
    last.set(title='ratio per structure', xlabel='calls with / calls without')
    if not any(map(len, ratios)):
        nothing(last, NONE_CONVERGED)
        return figure
    boxes(last, ratios, names, colors, vertical=False)
    last.axvline(1, color=INK, lw=0.7)
    last.set_xlim(0, None)
    return figure


def _calls_panels(calculators: int, optimizers: int) -> tuple[Figure, list[Axes]]:
    """A panel per calculator, and one that has room for the boxes of all."""
    boxes = calculators * optimizers
    if calculators < 3:
        shape = max(0.95, 0.12 * boxes + 0.3)
        return panels_in_rows(calculators + 1, shape=shape)
    return panels_in_rows(calculators, below=0.28 * boxes + 0.5)


@styled
def energy_boxes(comparison: Comparison, optimizer: str | None = None) -> Figure:
    """Energies before, predicted and refined, above the full relaxation's (as Fig. 4).

    Parameters
    ----------
    comparison : dict
        As `savings.compare` gives it.
    optimizer : str, optional
        Default its first.

    Returns
    -------
    matplotlib.figure.Figure
        A panel per calculator; structures that converged from both starts. The box holds
        the middle half, the line is the median, the whiskers reach from 5 to 95 %.

    Raises
    ------
    ValueError
        The comparison has no such optimizer.
    """
    calculators, optimizers = _settings(comparison)
    optimizer = optimizer or optimizers[0]
    _check_known('optimizer', optimizer, optimizers)
    figure, axes = panels_in_rows(len(calculators), sharey=True, shape=0.9)
    predicted = {p['structure']: p['energy_per_atom'] for p in comparison['predictions']}
    lowest, highest = -1, 1
    for ax, calculator in zip(axes, calculators, strict=True):
        both = _both(comparison, calculator, optimizer)
        name = f'{shortened(calculator, LONG)}\n{optimizer}, {count(len(both))}'
        ax.set_title(plain(name))
        if not both:
            nothing(ax, NONE_CONVERGED)
            continue
        rows = [
            (a['curve'][0][0], predicted[structure][calculator], b['energy_per_atom'])
            for structure, (a, b) in both.items()
        ]
        ends = np.array([a['energy_per_atom'] for a, _ in both.values()])
        above = _MEV * (np.array(rows, float) - ends[:, None])
        names = ['unrelaxed', 'predicted', 'predicted,\nthen relaxed']
        boxes(ax, above.T, names, [GREY, BLUE, GREEN])
        ax.axhline(0, color=INK, lw=0.7)
        ax.set_yscale('symlog', linthresh=1, linscale=0.6)
        # Axes are shared: wide enough for all panels.
        lowest, highest = (min(lowest, above.min()), max(highest, above.max()))
        ax.set_ylim(1.6 * lowest, 1.6 * highest)
        ax.yaxis.set_major_formatter(short_number)
    axes[0].set_ylabel('energy above full\nrelaxation / meV per atom')
    return figure


@styled
def convergence(
    comparison: Comparison, calculator: str, structure: str | None = None
) -> Figure:
    """Energy and largest force of relaxations, with and without the prediction.

    Parameters
    ----------
    comparison : dict
        As `savings.compare` gives it.
    calculator : str
    structure : str, optional
        Id of the only one to draw; default those that converged from both starts: 1,000 of
        them at most, spread over all, thin; and the median of all, where a relaxation that
        is over keeps its last value.

    Returns
    -------
    matplotlib.figure.Figure
        A column per optimizer. Energies are above the lower of the two ends; those below
        0.1 meV per atom are drawn there.

    Raises
    ------
    ValueError
        The comparison has no such calculator or structure.
    """
    calculators, optimizers = _settings(comparison)
    _check_known('calculator', calculator, calculators)
    if structure is not None:
        _check_known('structure', structure, [s['id'] for s in comparison['structures']])
    figure, axes = panels(2, len(optimizers), sharex='col', sharey='row', shape=0.7)
    for k, optimizer in enumerate(optimizers):
        both = _both(comparison, calculator, optimizer)
        if structure is not None:
            both = {key: pair for key, pair in both.items() if key == structure}
        axes[0, k].set_title(plain(f'{shortened(calculator, LONG)}\n{optimizer}'))
        if not both:
            for ax in axes[:, k]:
                nothing(ax, NONE_CONVERGED)
            continue
        _curves(list(axes[:, k]), list(both.values()), comparison['settings']['fmax'])
        longest = [max(run['calls'] for run in pair) for pair in both.values()]
        end = max(longest) if len(both) < FEW else np.quantile(longest, 0.9)
        axes[1, k].set(xlabel='calls of the calculator', xlim=(0, 1.03 * end))
        axes[1, k].locator_params(axis='x', integer=True)
    axes[0, 0].set(ylabel='energy above the end /\nmeV per atom')
    axes[1, 0].set(ylabel='largest force / eV Å⁻¹')
    legend(figure, axes[0, 0])
    return figure


def _curves(
    axes: Sequence[Axes], pairs: Sequence[tuple[RunRow, RunRow]], fmax: float
) -> None:
    n = max(len(run['curve']) for pair in pairs for run in pair)
    lw, alpha = (1.4, 1) if len(pairs) == 1 else (0.6, 0.5 if len(pairs) < FEW else 0.25)
    for at, (name, color) in enumerate(STARTS.values()):
        curves = [_above_the_end(pair, at) for pair in pairs]
        for k, ax in enumerate(axes):
            values = [curve[:, k] for curve in curves]
            _thin(ax, values, color=color, alpha=alpha, lw=lw, label=name)
            if len(pairs) > 1:
                whole = [np.append(one, [one[-1]] * (n - len(one))) for one in values]
                middle = np.median(whole, axis=0)
                ax.plot(np.arange(1, n + 1), middle, color=color, lw=1.8)
    for ax in axes:
        log(ax, 'y')
    axes[1].axhline(fmax, color=INK, lw=0.7, ls=DASHED)


def _above_the_end(pair: tuple[RunRow, RunRow], at: int) -> np.ndarray:
    """(calls, 2): energies above the lower end of both, meV per atom, and forces, eV/A."""
    curve = np.array(pair[at]['curve'], float)
    end = min(run['curve'][-1][0] for run in pair)
    curve[:, 0] = np.maximum(_MEV * (curve[:, 0] - end), 0.1)
    return curve


def _thin(
    ax: Axes,
    curves: Sequence[np.ndarray],
    *,
    color: str,
    alpha: float,
    lw: float,
    label: str,
) -> None:
    """A line for each curve, with values at 1, 2, ...; a point for a single value."""
    from matplotlib.collections import LineCollection

    # Thousands of lines as shapes make a page of megabytes. More lines than MANY would take
    # minutes to draw, and show nothing new.
    many = len(curves) > MANY
    shown = spread(curves, MANY)
    lines = [np.column_stack([np.arange(1, len(one) + 1), one]) for one in shown]
    drawn = LineCollection(lines, colors=color, lw=lw, alpha=alpha, label=label)
    drawn.set_rasterized(many)
    ax.add_collection(drawn)
    points = np.array([line[0] for line in lines if len(line) == 1]).reshape(-1, 2)
    ax.scatter(*points.T, 8, color, alpha=alpha, lw=0, rasterized=many)
    ax.autoscale_view()


@styled
def lattice_parity(comparison: Comparison, against: str | None = None) -> Figure:
    """Cells of inputs and of predictions against relaxed ones.

    Parameters
    ----------
    comparison : dict
        As `savings.compare` gives it.
    against : str, optional
        'reference', or the calculator that relaxed the unrelaxed structures (with the first
        optimizer); default the references where there are any, else the first calculator.

    Returns
    -------
    matplotlib.figure.Figure
        Lengths, angles and volumes; grey the input, blue the prediction, and their mean
        absolute errors. Fixed cells, and what the vacuum vector of a layer has a part in,
        are left out.

    Raises
    ------
    ValueError
        The comparison has no such calculator.
    """
    calculators, optimizers = _settings(comparison)
    if against is None:
        has = comparison['settings']['has_reference']
        against = 'reference' if has else calculators[0]
    _check_known('calculator', against, [*calculators, 'reference'])
    truth = _relaxed(comparison, against, optimizers[0])
    found = {p['structure']: p for p in comparison['predictions'] if p['ok']}
    compared = [
        s for s in comparison['structures'] if s['id'] in truth and s['id'] in found
    ]
    rows = [
        [_cell(one, s['n_atoms']) for one in (truth[s['id']], s, found[s['id']])]
        for s in compared
    ]
    true, given, predicted = np.array(rows, float).reshape(-1, 3, 7).transpose(1, 0, 2)
    relaxes = np.array([_relaxes(s) for s in compared], bool).reshape(-1, 7)
    by = against if against == 'reference' else f'relaxed by {shortened(against, LONG)}'
    shown = {
        'lengths / Å': slice(0, 3),
        'angles / °': slice(3, 6),
        'volume / Å³ per atom': slice(6, 7),
    }
    figure, [axes] = panels(1, 3)
    for ax, (label, part) in zip(axes, shown.items(), strict=True):
        ax.set(xlabel=f'{plain(by)}:\n{label}')
        if not relaxes[:, part].any():
            nothing(ax, 'nothing to compare')
            continue
        truths, *methods = (x[:, part][relaxes[:, part]] for x in (true, given, predicted))
        named = zip(('input', 'prediction'), methods, (GREY, BLUE), strict=True)
        parity(ax, truths, named, unit=label.split(' / ')[1])
    axes[0].set(ylabel='input or prediction')
    legend(figure, axes[0])
    return figure


def _settings(comparison: Comparison) -> tuple[list[str], list[str]]:
    settings = comparison['settings']
    return list(settings['calculators']), settings['optimizers']


def _check_known(what: str, name: str, names: Sequence[str]) -> None:
    """Refuse a name of which an empty figure would say that nothing converged."""
    if name not in names:
        more = ', ...' if len(names) > _MOST_NAMED else ''
        known = ', '.join(map(repr, names[:_MOST_NAMED])) + more
        raise ValueError(f'the comparison has no {what} {name!r}; it has {known}')


def _both(
    comparison: Comparison, calculator: str, optimizer: str
) -> dict[str, tuple[RunRow, RunRow]]:
    """Structure to its two runs, without and with prediction, where both converged."""
    runs: dict[str, dict[str, RunRow]] = {}
    for run in comparison['runs']:
        if (run['calculator'], run['optimizer']) == (calculator, optimizer):
            runs.setdefault(run['structure'], {})[run['start']] = run
    return {
        structure: (starts['unrelaxed'], starts['prediction'])
        for structure, starts in runs.items()
        if all(start in starts and starts[start]['converged'] for start in STARTS)
    }


def _relaxed(
    comparison: Comparison, against: str, optimizer: str
) -> Mapping[str, Geometry]:
    """Structure to the row with its relaxed cell."""
    if against == 'reference':
        return {s['id']: s['reference'] for s in comparison['structures'] if s['reference']}
    return {
        run['structure']: run
        for run in comparison['runs']
        if (run['calculator'], run['optimizer'], run['start'])
        == (against, optimizer, 'unrelaxed')
        and run['converged']
    }


def _cell(row: Any, n_atoms: int) -> list[float]:
    return [*row['lattice'], row['volume'] / n_atoms]


def _relaxes(row: StructureRow) -> list[bool]:
    """Which of the seven numbers of `_cell` are those of a cell that relaxes."""
    if 'cell fixed' in row['kind']:
        return [False] * 7
    atoms = Atoms(row['numbers'], cell=row['cell'], positions=row['positions'])
    atoms.pbc = row.get('pbc', True)
    a, b, c = periodic_vectors(atoms).tolist()
    return [a, b, c, b and c, a and c, a and b, a and b and c]
