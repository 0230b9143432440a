"""Figures of the errors of predictions with known answers.

Like those of `plot`, the functions return a ``matplotlib.figure.Figure`` of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from ase_deeprelax.compare.evaluation_schema import AnyEvaluation, models_of
from ase_deeprelax.data.one_line import count
from ase_deeprelax.report.style import (
    BLUE,
    DASHED,
    DASHES,
    GREY,
    INK,
    MANY,
    MORE,
    ORANGE,
    legend,
    log,
    nothing,
    panels,
    parity,
    plain,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BASELINES = {'dummy': GREY, 'scaled_dummy': ORANGE}
# Errors with their labels; those below the number, such as the zeros that symmetry
# makes, are drawn at it.
_ERRORS = {
    'coord_mae': ('coordinates: mean absolute error / Å', 1e-3),
    'lattice_mae': ('lattice matrix: mean absolute error / Å', 1e-3),
    'volume_mae': ('cell volume: absolute error / Å³', 1e-2),
}
_LATTICE = ('a / Å', 'b / Å', 'c / Å', 'alpha / °', 'beta / °', 'gamma / °')


def method_name(evaluation: AnyEvaluation, method: str) -> str:
    """The name of a method in reports: Dummy, scaled Dummy, or that of a model."""
    if method in _BASELINES:
        return method.replace('_', ' ').replace('dummy', 'Dummy')
    if 'models' in evaluation:
        return method
    return models_of(evaluation)['model']['model']


def model_key(evaluation: AnyEvaluation, method: str | None) -> str:
    """The key of a model in the rows of an evaluation.

    Parameters
    ----------
    evaluation : dict
        As `evaluate` or `evaluate_all` gives it.
    method : str or None
        Its key; None for the first model.

    Raises
    ------
    ValueError
        The evaluation has no such model.
    """
    keys = list(models_of(evaluation))
    if method is None:
        return keys[0]
    if method not in keys:
        known = ', '.join(map(repr, keys))
        raise ValueError(f'the evaluation has no model {method!r}; it has {known}')
    return method


@styled
def error_distributions(evaluation: AnyEvaluation) -> Figure:
    """Shares of structures whose errors are smaller than each value.

    The errors of Fig. 2 of the DeepRelax paper; curves of several methods can be told apart
    where histograms hide each other.

    Parameters
    ----------
    evaluation : dict
        As `evaluate` or `evaluate_all` gives it.

    Returns
    -------
    matplotlib.figure.Figure
        Coordinates, lattice and volume; Dummy, scaled Dummy and the models. A curve
        crosses the dashed line at its median.

    Examples
    --------
    >>> error_distributions(evaluate(pairs)).savefig('errors.png')  # doctest: +SKIP
    """
    rows, methods = evaluation['structures'], _methods(evaluation)
    figure, [axes] = panels(1, 3, shape=0.85)
    for ax, (key, (label, floor)) in zip(axes, _ERRORS.items(), strict=True):
        errors = {
            method: np.maximum(_known(row['errors'][method][key] for row in rows), floor)
            for method in methods
        }
        ax.set(xlabel=label)
        if rows and not any(map(len, errors.values())):
            nothing(ax, 'not scored')
            continue
        top = max((values.max(initial=0) for values in errors.values()), default=0)
        for (method, (name, color)), dashes in zip(
            methods.items(), cycle(DASHES), strict=False
        ):
            if len(values := errors[method]):
                ax.ecdf(values, color=color, lw=1.3, ls=dashes, label=plain(name))
        ax.axhline(0.5, color=INK, lw=0.7, ls=DASHED)
        ax.set(xlim=(floor, max(1.1 * top, 10 * floor)), ylim=(0, 1))
        log(ax, 'x')
    axes[0].set(ylabel='share of structures')
    legend(figure, axes[0])
    return figure


@styled
def calibration(evaluation: AnyEvaluation, method: str | None = None) -> Figure:
    """Predicted uncertainty against the error of each structure.

    Parameters
    ----------
    evaluation : dict
        As `evaluate` or `evaluate_all` gives it.
    method : str, optional
        Which model, by its key in the rows; default the first one.

    Returns
    -------
    matplotlib.figure.Figure
        One point per structure; on the diagonal the mean error equals sigma, the Laplace
        scale. Large points are means over structures of similar sigma.

    Raises
    ------
    ValueError
        The evaluation has no such model.
    """
    method = model_key(evaluation, method)
    rows = [row for row in evaluation['structures'] if row['sigma'][method] is not None]
    figure, [[ax]] = panels(1, 1)
    if not rows:
        nothing(ax, 'no structure has a sigma')
        return figure
    sigma = np.array([row['sigma'][method] for row in rows])
    error = np.maximum([row['bond_error'][method] for row in rows], 1e-3)
    dots = ax.scatter(sigma, error, 5, BLUE, alpha=0.35, lw=0, label='structures')
    dots.set_rasterized(len(rows) > MANY)
    groups = np.array_split(np.argsort(sigma), min(10, max(1, len(rows) // 5)))
    means = np.array(
        [[values[part].mean() for part in groups] for values in (sigma, error)]
    )
    ax.plot(*means, 'o-', color=MORE[0], label='means of similar sigma')
    ends = np.array([sigma.min() / 1.3, sigma.max() * 1.3])
    ax.plot(ends, ends, color=INK, lw=0.7, ls=DASHED, label='error = sigma')
    ax.set(xlim=ends, xlabel='sigma of the structure / Å')
    ax.set(ylabel='mean error of its distances / Å')
    log(ax, 'x', 'y')
    rank = models_of(evaluation)[method]['spearman_sigma']
    if rank is not None:
        ax.set_title(f'rank correlation {rank:.2f}, {count(len(rows))}')
    legend(figure, ax)
    return figure


@styled
def lattice_parameters(evaluation: AnyEvaluation) -> Figure:
    """Lattice parameters of inputs and of predictions against those of the references.

    Parameters
    ----------
    evaluation : dict
        As `evaluate` or `evaluate_all` gives it.

    Returns
    -------
    matplotlib.figure.Figure
        A panel each for a, b, c, alpha, beta and gamma, in which every structure is a point
        for Dummy, which predicts the input, and one for each model. Fixed cells, and what
        the vacuum vector of a layer has a part in, are left out.
    """
    methods = _methods(evaluation)
    del methods['scaled_dummy']  # its angles are the input's
    free = [
        row
        for row in evaluation['structures']
        if row['errors']['dummy']['lattice_mae'] is not None
    ]
    figure, axes = panels(2, 3)
    for k, (ax, label) in enumerate(zip(axes.flat, _LATTICE, strict=True)):
        ax.set(xlabel=f'reference: {label}', ylabel=f'predicted: {label}')
        rows = [row for row in free if row['relaxed_lattice'][k] is not None]
        if not rows:
            nothing(ax, 'no cell relaxes')
            continue
        parity(
            ax,
            np.array([row['relaxed_lattice'][k] for row in rows]),
            (
                (name, np.array([row['lattice'][method][k] for row in rows]), color)
                for method, (name, color) in methods.items()
            ),
            unit=label.split(' / ')[1],
        )
    legend(figure, axes[0, 0])
    return figure


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _methods(evaluation: AnyEvaluation) -> dict[str, tuple[str, str]]:
    """The name and the color of each method."""
    models = iter((BLUE, *MORE))
    return {
        method: (
            method_name(evaluation, method),
            _BASELINES.get(method) or next(models, INK),
        )
        for method in evaluation['all']
    }
