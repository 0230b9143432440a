"""Figures of uncertainties: what is drawn is what the numbers say."""

import numpy as np
import pytest
from ase.build import bulk, graphene

from ase_deeprelax import relax
from ase_deeprelax.compare.evaluate import evaluate, evaluate_all
from ase_deeprelax.data.pairs import read_pairs
from ase_deeprelax.errors import PredictionError
from ase_deeprelax.report import plot_uncertainty
from tests.regression.test_shipped import REAL


@pytest.fixture(scope='module')
def evaluation():
    """Of forty real pairs."""
    return evaluate(read_pairs(REAL)[:40], workers=1)


def test_every_structure_is_in_one_hexagon(evaluation):
    [ax, bar] = plot_uncertainty.error_density(evaluation).axes
    [hexagons] = ax.collections
    assert hexagons.get_array().sum() == 40
    assert hexagons.get_array().min() == 1
    assert min(hexagons.cmap(0.0)) < 0.8, 'one structure cannot be seen on white'
    assert (bar.get_yticks() % 1 == 0).all()
    assert f'{evaluation["spearman_sigma"]:.2f}' in ax.get_title()


def test_points_are_means_of_tenths(evaluation):
    [ax] = plot_uncertainty.reliability(evaluation).axes
    expected, error = ax.lines[0].get_data()
    assert len(expected) == 10
    assert (np.diff(expected) > 0).all()
    rows = evaluation['structures']
    errors = [row['errors']['model']['coord_mae'] for row in rows]
    assert np.mean(error) == pytest.approx(np.mean(errors))
    assert 'position' in ax.get_title()


def test_the_curve_ends_at_the_mean_error_and_the_best_order_is_below(evaluation):
    [ax] = plot_uncertainty.risk_coverage_curve(evaluation).axes
    curve, best = (line.get_ydata() for line in ax.lines)
    mean = evaluation['all']['model']['coord_mae']['mean']
    assert curve[-1] == pytest.approx(mean)
    assert best[-1] == pytest.approx(mean)
    assert (best <= np.array(curve) + 1e-12).all()
    assert (np.diff(best) >= 0).all()
    assert ax.get_legend_handles_labels()[1][0] == evaluation['model']


def test_bonds_have_their_own_colours():
    result = relax(bulk('ZnS', 'wurtzite', a=3.9, c=6.3))
    ax = plot_uncertainty.uncertain_bonds(result).axes[0]
    [lines] = [
        c
        for c in ax.collections
        if c.get_cmap().name == 'viridis'
        and len(c.get_segments() if hasattr(c, 'get_segments') else ())
    ]
    drawn = np.asarray(lines.get_array())
    assert set(drawn) <= set(result.sigma_bonds)
    assert len(drawn) == 8  # four bonds of each zinc atom
    failed = relax([bulk('Og', 'fcc', a=5.0)])[0]
    with pytest.raises(PredictionError, match='no prediction to draw'):
        plot_uncertainty.uncertain_bonds(failed)


def test_bonds_that_are_alike_have_one_colour_and_a_flat_layer_is_seen_from_above():
    from matplotlib.collections import LineCollection

    layer = graphene(a=2.6, vacuum=8)
    layer.pbc = (True, True, False)
    result = relax(layer)
    ax = plot_uncertainty.uncertain_bonds(result).axes[0]
    [lines] = [c for c in ax.collections if isinstance(c, LineCollection)]
    shares = lines.norm(np.asarray(lines.get_array()))
    assert np.ptp(shares) < 0.01
    lengths = [np.linalg.norm(b - a) for a, b in lines.get_segments()]
    bond = result.atoms.get_distance(0, 1, mic=True)
    assert min(lengths) == pytest.approx(bond, rel=0.01)


def test_densities_have_plain_numbers_on_their_axes(evaluation):
    figure = plot_uncertainty.error_density(evaluation)
    figure.draw_without_rendering()
    ax = figure.axes[0]
    labels = [text.get_text() for text in (*ax.get_xticklabels(), *ax.get_yticklabels())]
    assert all(float(label) > 0 for label in labels)


def test_without_uncertainties_the_figures_say_so():
    from ase_deeprelax.compare.baselines import Dummy

    found = evaluate_all(read_pairs(REAL)[:3], {'copy': Dummy()}, workers=1)
    for draw in (plot_uncertainty.error_density, plot_uncertainty.reliability):
        assert draw(found).axes[0].texts  # by default of the first model
    assert plot_uncertainty.risk_coverage_curve(found).axes[0].texts
