"""Figures of how well the uncertainties of a model tell its errors.

Like those of `plot`, the functions return a ``matplotlib.figure.Figure`` of their own.
"""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, covalent_radii
from ase.data.colors import jmol_colors

from ase_deeprelax.compare.evaluation_schema import AnyEvaluation, models_of
from ase_deeprelax.compare.uncertainty import risk_coverage
from ase_deeprelax.data.formula import chemical_formula
from ase_deeprelax.data.one_line import count
from ase_deeprelax.errors import PredictionError
from ase_deeprelax.geometry.vacuum import layer_or_none
from ase_deeprelax.report.plot_accuracy import method_name, model_key
from ase_deeprelax.report.style import (
    BLUE,
    DASHED,
    DASHES,
    GREY,
    INK,
    MORE,
    legend,
    log,
    nothing,
    panels,
    plain,
    styled,
)
from ase_deeprelax.result import Relaxation

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# Errors below this are drawn at it, A.
SMALLEST = 1e-3
# Atoms closer than this times the sum of their covalent radii are drawn with a bond.
BONDED = 1.25
# Colours of bonds and atoms span at least this, A: what is less is not read off.
NARROWEST = 1e-3
# A layer that is thinner than this is drawn from above, A.
FLAT = 1.0


@styled
def error_density(evaluation: AnyEvaluation, method: str | None = None) -> Figure:
    """Sigma against the error of the distances, as a density (paper Fig. 5 a-c).

    Parameters
    ----------
    evaluation : dict
        As `evaluate` or `evaluate_all` gives it.
    method : str, optional
        Which model, by its key in the rows; default the first one.

    Returns
    -------
    matplotlib.figure.Figure
        Darker hexagons hold more structures; the title gives Spearman's rank correlation.

    Raises
    ------
    ValueError
        The evaluation has no such model.
    """
    from matplotlib.ticker import MaxNLocator

    method = model_key(evaluation, method)
    rows = [row for row in evaluation['structures'] if row['sigma'][method] is not None]
    figure, [[ax]] = panels(1, 1)
    if not rows:
        nothing(ax, 'no structure has a sigma')
        return figure
    sigma = np.maximum([row['sigma'][method] for row in rows], SMALLEST)
    error = np.maximum([row['bond_error'][method] for row in rows], SMALLEST)
    drawn = ax.hexbin(
        sigma, error, gridsize=28, xscale='log', yscale='log', mincnt=1, cmap=_counts()
    )
    drawn.set_clim(1, max(2, drawn.get_array().max()))
    ticks = MaxNLocator(integer=True, min_n_ticks=1)
    figure.colorbar(drawn, ax=ax, label='structures', ticks=ticks)
    ends = np.array([sigma.min(), sigma.max()])
    ax.plot(ends, ends, color=INK, lw=0.7, ls=DASHED)
    ax.set(xlabel='sigma of the structure / Å', ylabel='mean error of its distances / Å')
    log(ax, 'x', 'y')
    rank = models_of(evaluation)[method]['spearman_sigma']
    if rank is not None:
        ax.set_title(f'rank correlation {rank:.2f}, {count(len(rows))}')
    return figure


def _counts() -> Colormap:
    """From a light blue, so that a hexagon with one structure is seen, to a dark one."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list('counts', ['#bcd9ee', BLUE, '#062b55'])


@styled
def reliability(evaluation: AnyEvaluation, method: str | None = None) -> Figure:
    """Expected against actual errors of the coordinates.

    Parameters
    ----------
    evaluation : dict
    method : str, optional
        Which model, by its key in the rows; default the first one.

    Returns
    -------
    matplotlib.figure.Figure
        A point for each tenth of the structures, ordered by expected error. On the dashed
        line the expectation is right.

    Raises
    ------
    ValueError
        The evaluation has no such model.
    """
    method = model_key(evaluation, method)
    rows = _expected(evaluation, method)
    figure, [[ax]] = panels(1, 1)
    if not len(rows):
        nothing(ax, 'the model is not calibrated')
        return figure
    groups = np.array_split(rows[np.argsort(rows[:, 0])], min(10, len(rows)))
    means = np.array([group.mean(axis=0) for group in groups])
    ax.plot(*means.T, 'o-', color=BLUE)
    ends = np.array([means.min() / 1.2, means.max() * 1.2])
    ax.plot(ends, ends, color=INK, lw=0.7, ls=DASHED)
    ax.set(xlabel='expected error of the coordinates / Å', ylabel='mean error / Å')
    log(ax, 'x', 'y')
    coverage = models_of(evaluation)[method].get('coverage_90')
    if coverage is not None:
        shares = (
            f'{name} {100 * share:.0f} %'
            for name in ('position', 'lattice', 'volume')
            if (share := coverage[name]) is not None
        )
        ax.set_title(f'inside 90 % intervals:\n{", ".join(shares)}')
    return figure


@styled
def risk_coverage_curve(evaluation: AnyEvaluation) -> Figure:
    """Mean error of the structures that a model is most certain of.

    Parameters
    ----------
    evaluation : dict

    Returns
    -------
    matplotlib.figure.Figure
        A curve for each model; grey, what an order by the errors themselves would give to
        the first of them.
    """
    figure, [[ax]] = panels(1, 1)
    curves = {
        name: points
        for name, record in models_of(evaluation).items()
        if (points := record.get('risk_coverage'))
    }
    if not curves:
        nothing(ax, 'no model says how certain it is')
        return figure
    looks = zip(cycle((BLUE, *MORE)), cycle(DASHES), strict=False)
    for (name, points), (color, dashes) in zip(curves.items(), looks, strict=False):
        label = plain(method_name(evaluation, name))
        ax.plot(*_points(points), color=color, ls=dashes, label=label)
    first = next(iter(curves))
    errors = [row['errors'][first]['coord_mae'] for row in evaluation['structures']]
    best = risk_coverage(errors, errors)
    if best:
        ax.plot(*_points(best), color=GREY, ls=DASHED, label='best possible order')
    ax.set(xlabel='most certain structures / %', ylabel='mean error of coordinates / Å')
    ax.set(xlim=(0, 100), ylim=(0, None))
    legend(figure, ax)
    return figure


@styled
def uncertain_bonds(relaxation: Relaxation) -> Figure:
    """A predicted structure with bonds in colours of their uncertainty (Fig. 5 d-e).

    Parameters
    ----------
    relaxation : Relaxation

    Returns
    -------
    matplotlib.figure.Figure
        The cell and what is bonded to it, along the shortest lattice vector; a flat layer
        from above.

    Raises
    ------
    PredictionError
        The prediction failed.
    """
    if not relaxation.ok:
        raise PredictionError(f'there is no prediction to draw: {relaxation.problem}')
    from matplotlib.collections import LineCollection

    atoms = relaxation.atoms
    view = _view(atoms)
    ends, sigma, numbers, places = _drawn_bonds(relaxation)
    figure, [[ax]] = panels(1, 1, shape=0.88)
    flat = ends @ view
    lines = LineCollection(list(flat), array=sigma, cmap='viridis', linewidths=2, zorder=1)
    if len(sigma):
        lines.set_clim(sigma.min(), max(sigma.max(), sigma.min() + NARROWEST))
    ax.add_collection(lines)
    x, y = (places @ view).T
    sizes = 110 * covalent_radii[numbers] ** 2
    ax.scatter(x, y, sizes, jmol_colors[numbers], edgecolors=INK, lw=0.6, zorder=2)
    for symbol in sorted(set(atoms.get_chemical_symbols())):
        color = jmol_colors[atomic_numbers[symbol]]
        ax.scatter([], [], 30, [color], edgecolors=INK, lw=0.6, label=symbol)
    ax.legend(loc='upper left', bbox_to_anchor=(0, -0.02), ncols=6, frameon=False)
    ax.set_aspect('equal')
    ax.margins(0.12)
    ax.axis('off')
    figure.colorbar(lines, ax=ax, label='sigma of the bond / Å', shrink=0.8)
    ax.set_title(f'{chemical_formula(atoms)}, sigma {relaxation.sigma:.3f} Å')
    return figure


def _expected(evaluation: AnyEvaluation, method: str) -> np.ndarray:
    """(n, 2): expected and actual errors of the coordinates, A."""
    rows = [
        (row.get('expected_error', {}).get(method), row['errors'][method]['coord_mae'])
        for row in evaluation['structures']
    ]
    return np.array([row for row in rows if None not in row], float).reshape(-1, 2)


def _points(points: list) -> tuple[list[float], list[float]]:
    return [100 * p['share'] for p in points], [p['error'] for p in points]


def _view(atoms: Atoms) -> np.ndarray:
    """(3, 2): the projection along the shortest lattice vector, or onto a flat layer."""
    along = atoms.cell.array[atoms.cell.lengths().argmin()]
    layer = layer_or_none(atoms)
    if layer is not None and np.ptp(layer.in_one_piece(atoms) @ layer.normal) < FLAT:
        along = layer.normal
    axes = np.linalg.svd(along[None])[2]
    return axes[1:].T


def _drawn_bonds(
    relaxation: Relaxation,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ends (n, 2, 3) of the short bonds, their sigma, and the atoms at their ends."""
    atoms = relaxation.atoms
    i, j = relaxation.bonds.T
    start = atoms.positions[i]
    end = atoms.positions[j] + relaxation.bond_offsets @ atoms.cell.array
    radii = covalent_radii[atoms.numbers]
    near = np.linalg.norm(end - start, axis=1) < BONDED * (radii[i] + radii[j])
    ends = np.stack([start, end], axis=1)[near]
    numbers = np.concatenate([atoms.numbers, atoms.numbers[j[near]]])
    places = np.concatenate([atoms.positions, end[near]])
    return ends, relaxation.sigma_bonds[near], numbers, places
