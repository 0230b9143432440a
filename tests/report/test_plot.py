import copy
import itertools
import pickle
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

from ase_deeprelax.compare.baselines import Dummy, ScaledDummy
from ase_deeprelax.compare.metrics import Reference
from ase_deeprelax.compare.phonons import compare_phonons
from ase_deeprelax.compare.savings import compare
from ase_deeprelax.data.pairs import make_pair
from ase_deeprelax.errors import MissingDependencyError

mpl = pytest.importorskip('matplotlib', reason='matplotlib is not installed')
pytest.importorskip('phonopy', reason='phonopy is not installed')

from ase_deeprelax.report import (  # noqa: E402
    plot,
    plot_accuracy,
    plot_phonons,
    plot_relaxations,
)
from ase_deeprelax.report.style import (  # noqa: E402
    BLUE,
    MANY,
    PIXELS,
    legend,
    panels,
    parity,
    styled,
    to_svg,
)

STEPS = 30


def alloys():
    """Stretched alloys, one of which is too far away for so few steps."""
    crystals = {}
    for k, symbol in enumerate(('Au', 'Ag', 'Pd')):
        atoms = bulk('Cu', cubic=True)
        atoms.symbols[0] = symbol
        atoms.rattle(0.05 + 0.3 * (k == 2), seed=k)
        crystals[f'{symbol} $x$ </script>'] = atoms
    return crystals


def nearer(structures):
    """Cells closer to EMT's, so that there is something to save."""
    return [scaled(atoms, 1.01) for atoms in structures]


def scaled(atoms, factor):
    atoms = atoms.copy()
    atoms.set_cell(factor * atoms.cell.array, scale_atoms=True)
    return atoms


@pytest.fixture(scope='module')
def comparison():
    return compare(
        alloys(), {'emt': EMT()}, optimizers=['FIRE', 'BFGS'], model=nearer, steps=STEPS
    )


@pytest.fixture(scope='module')
def phonons():
    """One atom per cell, so that few displacements are needed."""
    crystals = {'Cu': bulk('Cu', a=3.7)}
    result = compare(crystals, {'emt': EMT()}, model=nearer, steps=STEPS)
    return {**result, 'phonons': compare_phonons(result, {'emt': EMT()}, min_length=5.0)}


@pytest.fixture(scope='module')
def evaluation():
    """As `evaluate` gives it."""
    pairs = [
        make_pair(f'p{k}', scaled(atoms, 1 + 0.01 * k), scaled(atoms, 1.05))
        for k, atoms in enumerate(alloys().values())
    ]
    inputs = [pair.unrelaxed for pair in pairs]
    methods = {'dummy': Dummy(), 'scaled_dummy': ScaledDummy(), 'model': nearer}
    answers = {name: relax(inputs) for name, relax in methods.items()}
    structures = [
        {
            'id': pair.id,
            'errors': {
                name: Reference(pair).errors(atoms[k]) for name, atoms in answers.items()
            },
            'lattice': {
                name: atoms[k].cell.cellpar().tolist() for name, atoms in answers.items()
            },
            'relaxed_lattice': pair.relaxed.cell.cellpar().tolist(),
            'sigma': {'model': None if k == 1 else 0.01 * (k + 1)},
            'bond_error': {'model': 0.02 * (k + 1)},
        }
        for k, pair in enumerate(pairs)
    ]
    return {
        'model': 'nearer',
        'spearman_sigma': 1.0,
        'all': dict.fromkeys(methods),
        'structures': structures,
    }


def runs(comparison, start, optimizer='FIRE'):
    return [
        run
        for run in comparison['runs']
        if (run['start'], run['optimizer']) == (start, optimizer)
    ]


def converged(comparison, optimizer='FIRE'):
    both = zip(
        *(runs(comparison, start, optimizer) for start in ('unrelaxed', 'prediction')),
        strict=True,
    )
    return [pair for pair in both if all(run['converged'] for run in pair)]


def points(ax, k=0):
    return np.asarray(ax.collections[k].get_offsets())


def text_of(figure):
    texts = figure.findobj(mpl.text.Text)
    return ' '.join(text.get_text() for text in texts if text.get_visible())


def test_calls_are_those_of_the_runs_that_converged_from_both_starts(comparison):
    emt, ratio = plot.calls_saved(comparison).axes
    for k, optimizer in enumerate(('FIRE', 'BFGS')):
        pairs = converged(comparison, optimizer)
        calls = [[run['calls'] for run in pair] for pair in pairs]
        np.testing.assert_array_equal(points(emt, k), calls)
        ratios = [b / a for a, b in calls]
        np.testing.assert_allclose(points(ratio, k)[:, 0], ratios)
    assert emt.get_xlim() == emt.get_ylim()


def test_energies_are_above_the_end_of_the_full_relaxation(comparison):
    figure = plot.energy_boxes(comparison)
    pairs = converged(comparison)
    ends = np.array([a['energy_per_atom'] for a, _ in pairs])
    predicted = {
        p['structure']: p['energy_per_atom']['emt'] for p in comparison['predictions']
    }
    expected = (
        [a['curve'][0][0] for a, _ in pairs],
        [predicted[a['structure']] for a, _ in pairs],
        [b['energy_per_atom'] for _, b in pairs],
    )
    for k, energies in enumerate(expected):
        meV = 1000 * (np.array(energies) - ends)
        np.testing.assert_allclose(points(figure.axes[0], k)[:, 1], meV, atol=1e-6)
    assert points(figure.axes[0], 0)[:, 1].min() > 1


def test_curves_begin_where_the_runs_do_and_the_median_goes_on_to_the_end(comparison):
    energy, _, force, _ = plot.convergence(comparison, 'emt').axes
    pairs = converged(comparison)
    thin = force.collections[0].get_segments()
    for line, run in zip(thin, [a for a, _ in pairs], strict=True):
        np.testing.assert_allclose(line[:, 1], np.array(run['curve'])[:, 1])
    medians = [line for line in force.lines if line.get_linewidth() > 1.5]
    assert len(medians) == 2
    for line, start in zip(medians, (0, 1), strict=True):
        last = [pair[start]['curve'][-1][1] for pair in pairs]
        assert line.get_ydata()[-1] == pytest.approx(np.median(last))
        assert line.get_ydata()[-1] < comparison['settings']['fmax']
    for curves in energy.collections[::2]:
        assert min(line[:, 1].min() for line in curves.get_segments()) >= 0.1


def test_one_structure_has_two_curves(comparison):
    name = converged(comparison)[0][0]['structure']
    figure = plot.convergence(comparison, 'emt', name)
    assert [len(c.get_segments()) for c in figure.axes[0].collections[::2]] == [1, 1]


def test_a_run_of_one_call_is_a_point(comparison):
    known = copy.deepcopy(comparison)
    for run in known['runs']:
        run['curve'] = run['curve'][-1:]
    force = plot.convergence(known, 'emt').axes[2]
    for start, dots in enumerate(force.collections[1::2]):
        last = [pair[start]['curve'][-1][1] for pair in converged(known)]
        np.testing.assert_allclose(dots.get_offsets(), [(1, value) for value in last])


def test_lattices_are_compared_with_what_the_calculator_relaxed(comparison):
    figure = plot.lattice_parity(comparison)
    truth = [run for run in runs(comparison, 'unrelaxed') if run['converged']]
    predicted = {p['structure']: p for p in comparison['predictions']}
    for ax, part in zip(figure.axes[:2], (slice(0, 3), slice(3, 6)), strict=True):
        x = np.ravel([run['lattice'][part] for run in truth])
        y = np.ravel([predicted[run['structure']]['lattice'][part] for run in truth])
        np.testing.assert_allclose(points(ax, 1), np.transpose([x, y]))
        head, _, last = ax.get_title('left').split('\n')
        assert head == f'mean error / {"°" if ax is figure.axes[1] else "Å"}'
        assert last == f'prediction: {np.abs(x - y).mean():.3f}'
    volumes = points(figure.axes[2], 1)[:, 0]
    np.testing.assert_allclose(volumes, [run['volume'] / 4 for run in truth])
    assert figure.axes[2].get_title('left').startswith('mean error / Å³ per atom\n')


def test_fixed_cells_and_vacuum_are_no_lattice_parameters():
    layer = fcc111('Cu', (1, 1, 3), a=3.7, vacuum=8)
    layer.pbc = (True, True, False)
    slab = layer.copy()
    slab.set_constraint(FixAtoms([0]))
    inputs = {'layer': layer, 'slab': slab, 'crystal': bulk('Cu', a=3.7)}

    def copies(structures, **_):
        return [atoms.copy() for atoms in structures]

    found = compare(inputs, EMT(), optimizers='ElasticBFGS', model=copies)
    lengths, angles, volumes = plot.lattice_parity(found).axes
    assert [len(points(ax)) for ax in (lengths, angles, volumes)] == [2 + 3, 1 + 3, 1]
    for row in found['structures']:  # the layer in a box that is hardly higher than it
        if row['id'] == 'layer':
            row['cell'][2][2] -= 13
    lengths, *_ = plot.lattice_parity(found).axes
    assert len(points(lengths)) == 2 + 3
    slabs = compare({'slab': slab}, EMT(), optimizers='ElasticBFGS', model=copies)
    assert text_of(plot.lattice_parity(slabs)).count('nothing to compare') == 3


def test_references_are_preferred_to_a_calculator(comparison):
    known = copy.deepcopy(comparison)
    known['settings']['has_reference'] = True
    for structure, reference in zip(known['structures'], (True, False, True), strict=True):
        structure['reference'] = (
            {'lattice': 6 * [7.0], 'volume': 4.0} if reference else None
        )
    lengths, *_ = plot.lattice_parity(known).axes
    assert len(points(lengths)) == 6
    assert set(points(lengths)[:, 0]) == {7.0}
    assert lengths.get_xlabel().startswith('reference')


def test_a_curve_of_errors_rises_by_one_structure_at_each_of_them(evaluation):
    figure = plot_accuracy.error_distributions(evaluation)
    for ax, key in zip(
        figure.axes, ('coord_mae', 'lattice_mae', 'volume_mae'), strict=True
    ):
        *curves, half = ax.lines
        assert set(half.get_ydata()) == {0.5}
        for curve, method in zip(curves, evaluation['all'], strict=True):
            x, y = curve.get_data()
            errors = [row['errors'][method][key] for row in evaluation['structures']]
            low = ax.get_xlim()[0]  # below the axis: at its end
            np.testing.assert_allclose(x[1:], np.maximum(np.sort(errors), low))
            np.testing.assert_allclose(np.diff(y), 1 / 3)
    assert 'nearer' in text_of(figure)


def test_structures_without_a_sigma_are_left_out_of_the_calibration(evaluation):
    [ax] = plot_accuracy.calibration(evaluation).axes
    np.testing.assert_allclose(points(ax), [[0.01, 0.02], [0.03, 0.06]])
    assert '2 structures' in ax.get_title()


def test_every_structure_is_a_point_in_each_panel_of_lattice_parameters(evaluation):
    figure = plot_accuracy.lattice_parameters(evaluation)
    rows = evaluation['structures']
    true = np.array([row['relaxed_lattice'] for row in rows])
    assert len(figure.axes) == 6
    for k, ax in enumerate(figure.axes):
        for at, method in enumerate(('dummy', 'model')):
            y = [row['lattice'][method][k] for row in rows]
            np.testing.assert_allclose(points(ax, at), np.transpose([true[:, k], y]))
            head, *errors = ax.get_title('left').split('\n')
            assert head == f'mean error / {"Å" if k < 3 else "°"}'
            assert errors[at].endswith(f': {np.abs(y - true[:, k]).mean():.3f}')
        inside = points(ax, 0)[:, 1]
        assert ax.get_ylim()[0] < inside.min() <= inside.max() < ax.get_ylim()[1]
    assert 'nearer' in text_of(figure)


def test_very_many_points_are_an_image_within_the_page():
    sizes = {}
    for n in (MANY, MANY + 1):
        figure, [[ax]] = panels(1, 1)
        values = np.random.default_rng(0).uniform(1, 2, n)
        parity(ax, values, [('prediction', values + 0.1, BLUE)])
        sizes[n] = svg = to_svg(figure, 'many')
        links = [v for e in ET.fromstring(svg).iter() for k, v in e.items() if 'href' in k]
        images = [link for link in links if link.startswith('data:image/png')]
        assert len(images) == (n > MANY)
        assert all(link.startswith(('#', 'data:image/png')) for link in links)
    assert len(sizes[MANY + 1]) < len(sizes[MANY]) / 2


def test_very_many_runs_are_an_image_too(comparison, monkeypatch):
    for draw in (plot.calls_saved, lambda found: plot.convergence(found, 'emt')):
        images = []
        for many in (3, 1):
            monkeypatch.setattr(plot, 'MANY', many)
            images.append(to_svg(draw(comparison), 'runs').count('data:image/png'))
        assert images[0] == 0 < images[1]


def test_of_very_many_runs_some_are_drawn_and_the_median_is_that_of_all(
    comparison, monkeypatch
):
    """A hundred thousand lines took minutes, and covered each other."""
    whole = plot.convergence(comparison, 'emt')
    monkeypatch.setattr(plot, 'MANY', 1)
    part = plot.convergence(comparison, 'emt')
    for all_drawn, ax in zip(whole.axes, part.axes, strict=True):
        assert [len(c.get_segments()) for c in ax.collections[::2]] == [1, 1]
        assert len(ax.lines) == len(all_drawn.lines)
        for line, same in zip(ax.lines, all_drawn.lines, strict=True):
            np.testing.assert_array_equal(line.get_xydata(), same.get_xydata())


def test_very_many_sigmas_are_an_image_too(evaluation):
    row = evaluation['structures'][0]
    sizes = [
        len(to_svg(plot_accuracy.calibration({**evaluation, 'structures': n * [row]}), ''))
        for n in (MANY, 3 * MANY)
    ]
    assert sizes[1] < sizes[0] / 2


@pytest.mark.parametrize('name', ['_mine', '$a$ b', r'a$\frac{$b', 'caf\udce9'])
def test_names_of_any_kind_stand_in_legends(name):
    figure, [[ax]] = panels(1, 1)
    parity(ax, np.ones(3), [(name, np.ones(3), BLUE)])
    legend(figure, ax)
    svg = to_svg(figure, 'names')
    drawn = ''.join(ET.fromstring(svg).itertext())
    assert drawn.count(name.encode(errors='backslashreplace').decode()) == 2  # and title


def test_phonons_of_each_way_have_a_panel_with_the_same_wave_vectors(phonons):
    figure = plot_phonons.phonon_bands(phonons, 'Cu', 'emt')
    *panels, dos = figure.axes
    kinds = [entry['kind'] for entry in phonons['phonons']]
    assert len(panels) == len(dos.lines) - 1 == len(kinds) == 3
    for ax, entry in zip(panels, phonons['phonons'], strict=True):
        assert ax.get_title().startswith(f'{entry["kind"]}\n')
        assert ax.get_ylim() == dos.get_ylim()
        # a band is drawn in pieces, which no line joins across a break of the path
        drawn = [len(line.get_xdata()) for line in ax.lines[:-1]]
        assert sum(drawn) == np.size(entry['bands']['frequencies'])
        assert len(drawn) == 3 * (1 + len(entry['bands']['breaks']))


def test_thermal_properties_are_per_atom_and_in_meV(phonons):
    figure = plot_phonons.thermal_properties(phonons, 'Cu', 'emt')
    free, _, heat = figure.axes
    entry = phonons['phonons'][0]['thermal']
    np.testing.assert_allclose(
        free.lines[0].get_ydata(), 1000 * np.array(entry['free_energy'])
    )
    # Dulong and Petit: 3 R
    assert heat.lines[0].get_ydata()[-1] == pytest.approx(24.9, rel=0.03)


def test_thermal_properties_say_how_many_modes_are_left_out(phonons):
    def names(found):
        figure = plot_phonons.thermal_properties(found, 'Cu', 'emt')
        return [text.get_text() for text in figure.legends[0].get_texts()]

    assert names(phonons) == ['predicted', 'refined', 'iterative']
    unstable = copy.deepcopy(phonons)
    unstable['phonons'][0]['thermal']['left_out'] = 0.124
    assert names(unstable)[0] == 'predicted, without 12 % of the modes'
    assert names(unstable)[1:] == names(phonons)[1:]


def test_names_that_are_not_there_are_told_from_runs_that_failed(comparison, evaluation):
    for draw in (
        lambda: plot.convergence(comparison, 'chgnet'),
        lambda: plot.lattice_parity(comparison, 'chgnet'),
    ):
        with pytest.raises(ValueError, match=r"no calculator 'chgnet'; it has 'emt'"):
            draw()
    with pytest.raises(ValueError, match="no structure 'nowhere'; it has"):
        plot.convergence(comparison, 'emt', 'nowhere')
    with pytest.raises(ValueError, match="no optimizer 'LBFGS'; it has 'FIRE', 'BFGS'"):
        plot.energy_boxes(comparison, 'LBFGS')
    with pytest.raises(ValueError, match="no model 'mine'; it has 'model'"):
        plot_accuracy.calibration(evaluation, 'mine')


def test_phonons_that_are_not_there_are_named(comparison):
    with pytest.raises(ValueError, match="no phonons of structure 'Cu' with 'emt'"):
        plot_phonons.phonon_bands(comparison, 'Cu', 'emt')


def test_where_nothing_converged_the_panels_say_so(comparison):
    lost = copy.deepcopy(comparison)
    for run in lost['runs']:
        run.update(ok=False, converged=False, energy_per_atom=None, curve=[], lattice=None)
    for figure in (
        plot.calls_saved(lost),
        plot.energy_boxes(lost),
        plot.convergence(lost, 'emt'),
    ):
        assert 'no structure converged\nfrom both starts' in text_of(figure)
        figure.draw_without_rendering()
    assert 'nothing to compare' in text_of(plot.lattice_parity(lost))


@pytest.mark.parametrize('lost', ['metals', 'salts'])
def test_a_panel_without_a_line_leaves_its_neighbours_their_ticks(comparison, lost):
    several = with_calculators(comparison, ['metals', 'salts'])
    for run in several['runs']:
        if run['calculator'] == lost or run['optimizer'] == 'FIRE':
            run['converged'] = False
    good = {'metals': 'salts', 'salts': 'metals'}[lost]
    for figure in (plot.energy_boxes(several, 'BFGS'), plot.convergence(several, good)):
        figure.draw_without_rendering()
        for ax in figure.axes:
            assert len(ax.get_yticks()) > 1


def with_calculators(comparison, names):
    """The runs of one calculator again, as if others had made them, too."""
    found = copy.deepcopy(comparison)
    found['settings']['calculators'] = dict.fromkeys(names, '')
    found['runs'] = [
        {**run, 'calculator': name} for name in names for run in comparison['runs']
    ]
    for row in found['predictions']:
        row['energy_per_atom'] = dict.fromkeys(names, row['energy_per_atom']['emt'])
    return found


def test_long_names_have_room_in_all_panels(comparison, evaluation):
    names = ['chgnet', *(f'tensornet:/models of the group/{k}/TensorNet' for k in 'abc')]
    several = with_calculators(comparison, names)
    renamed = {**evaluation, 'model': names[1]}
    for figure in (
        plot.calls_saved(several),
        plot.energy_boxes(several),
        plot.convergence(several, names[1]),
        plot.lattice_parity(several, names[1]),
        plot_accuracy.lattice_parameters(renamed),
    ):
        figure.draw_without_rendering()
        page = figure.bbox.width
        words = [[], []]  # in titles and letters, and under the axes
        for ax in figure.axes:
            title = max((ax.title, ax._left_title), key=lambda text: len(text.get_text()))
            words[0] += [title, *ax.texts]
            words[1] += [ax.xaxis.label]
        for texts in words:
            boxes = {text: text.get_window_extent() for text in texts if text.get_text()}
            assert not [t for t, box in boxes.items() if box.x0 < 0 or box.x1 > page]
            for one, other in itertools.combinations(boxes, 2):
                assert not boxes[one].overlaps(boxes[other]), (one, other)


def test_the_ratios_of_many_calculators_have_a_row_of_their_own(comparison):
    names = ['a', 'b', 'c', 'd']
    figure = plot.calls_saved(with_calculators(comparison, names))
    figure.draw_without_rendering()
    *single, ratios = figure.axes
    assert [ax.get_title() for ax in single] == names
    assert [text.get_text() for ax in figure.axes for text in ax.texts] == [*'abcde']
    assert ratios.get_position().width > 2 * single[0].get_position().width
    assert ratios.get_position().y1 < min(ax.get_position().y0 for ax in single)


def test_a_figure_leaves_settings_and_pyplot_alone():
    code = """
import sys, matplotlib
def settings():  # but for the back end, which pyplot is asked for
    keys = matplotlib.rcParams.keys() - {'backend'}
    return {key: matplotlib.rcParams[key] for key in keys}
before = settings()
from ase_deeprelax.report import plot_accuracy
from ase_deeprelax.report.style import to_svg
row = {'errors': {'dummy': {'coord_mae': 0.1, 'lattice_mae': 0.1, 'volume_mae': 1.0}}}
found = {'models': {}, 'all': {'dummy': {}}, 'structures': [row]}
figure = plot_accuracy.error_distributions(found)
to_svg(figure, 'errors')
assert settings() == before
assert 'matplotlib.pyplot' not in sys.modules
"""
    subprocess.run([sys.executable, '-c', code], check=True)


def test_figures_can_be_pickled(comparison, evaluation):
    for figure in (
        plot.calls_saved(comparison),
        plot.energy_boxes(comparison),
        plot_accuracy.error_distributions(evaluation),
    ):
        assert text_of(pickle.loads(pickle.dumps(figure))) == text_of(figure)


def test_threads_leave_settings_alone():
    before, inside = dict(mpl.rcParams), threading.Event()

    @styled
    def first():
        other.start()
        inside.wait(0.5)  # the other one would come in here, and end later

    @styled
    def second():
        inside.set()
        thread.join(0.5)

    thread, other = threading.Thread(target=first), threading.Thread(target=second)
    thread.start()
    thread.join()
    other.join()
    assert inside.is_set()
    assert dict(mpl.rcParams) == before


def test_svg_stands_in_a_page(comparison):
    svg = to_svg(plot.calls_saved(comparison), 'calls "saved" <here>')
    root = ET.fromstring(svg)
    assert root.get('role') == 'img'
    assert root.get('aria-label') == 'calls "saved" <here>'
    tags = {element.tag.rpartition('}')[2] for element in root.iter()}
    assert tags.isdisjoint({'style', 'metadata', 'script', 'image'})
    assert 'currentColor' in svg
    assert BLUE not in svg
    ids = [element.get('id') for element in root.iter() if element.get('id')]
    assert len(ids) == len(set(ids))
    other = to_svg(plot.calls_saved(comparison), 'another')
    assert not set(ids) & {element.get('id') for element in ET.fromstring(other).iter()} - {
        None
    }


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch, comparison):
    for name in [name for name in sys.modules if name.partition('.')[0] == 'matplotlib']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    with pytest.raises(
        MissingDependencyError, match=r"pip install 'ase-deeprelax\[plot\]'"
    ):
        plot.calls_saved(comparison)


def test_a_notebook_shows_a_figure_without_pyplot(comparison):
    figure = plot.calls_saved(comparison)
    png = figure._repr_png_()
    assert png.startswith(b'\x89PNG')
    width = int.from_bytes(png[16:20], 'big')
    assert width == pytest.approx(PIXELS * figure.get_figwidth(), abs=1)


def test_the_last_wave_vector_of_a_path_is_named(phonons):
    figure = plot_phonons.phonon_bands(phonons, 'Cu', 'emt')
    for ax in figure.axes[:-1]:
        assert ax.get_xticks()[-1] == ax.get_xlim()[1]


def test_all_energies_and_calls_lie_inside_their_panels(comparison):
    [ax] = plot.energy_boxes(comparison).axes
    low, high = ax.get_ylim()
    for k in range(3):
        energies = points(ax, k)[:, 1]
        assert low < energies.min()
        assert energies.max() < high
    for ax in plot.convergence(comparison, 'emt').axes[2:]:
        segments = ax.collections[0].get_segments() + ax.collections[2].get_segments()
        assert max(line[-1, 0] for line in segments) <= ax.get_xlim()[1]


def test_angles_that_differ_by_rounding_share_one_number(comparison):
    known = copy.deepcopy(comparison)
    for k, run in enumerate(known['runs']):
        run['lattice'] = [*run['lattice'][:3], 60, 60 + 1e-6 * k, 60] if run['ok'] else None
    for one in known['structures'] + known['predictions']:
        one['lattice'] = [*one['lattice'][:3], 60, 60, 60]
    figure = plot.lattice_parity(known)
    figure.draw_without_rendering()
    low, high = figure.axes[1].get_xlim()
    assert high - low > 1
    assert figure.axes[1].xaxis.get_major_formatter().get_offset() == ''


def test_figures_fit_the_columns_of_journals_and_name_their_panels(
    comparison, evaluation, phonons
):
    drawn = {
        plot.calls_saved(comparison): (183, 'ab'),
        plot.energy_boxes(comparison): (89, ''),
        plot.lattice_parity(comparison): (183, 'abc'),
        plot_accuracy.error_distributions(evaluation): (183, 'abc'),
        plot_accuracy.lattice_parameters(evaluation): (183, 'abcdef'),
        plot_accuracy.calibration(evaluation): (89, ''),
        plot_phonons.phonon_bands(phonons, 'Cu', 'emt'): (183, 'abcd'),
    }
    for figure, (wide, letters) in drawn.items():
        assert 25.4 * figure.get_figwidth() == pytest.approx(wide)
        found = [text for text in figure.findobj(mpl.text.Annotation) if text.get_text()]
        assert [text.get_text() for text in found] == list(letters)
        figure.draw_without_rendering()
        page = figure.bbox
        for text in found:  # on the figure, and on no other text
            place = text.get_window_extent()
            assert page.x0 <= place.x0
            assert place.y1 <= page.y1
            hit = [other.get_text() for other in shown(figure) if overlap(place, other)]
            assert not hit, (text.get_text(), hit)
        for text in figure.findobj(mpl.text.Text):
            assert text.get_fontsize() <= 8


def shown(figure):
    """Titles, and labels of axes and of ticks inside their axes."""
    for ax in figure.axes:
        yield ax.title
        for axis in (ax.xaxis, ax.yaxis):
            yield axis.label
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=False)
            yield from (label for at, label in ticks if low <= at <= high)


def overlap(box, text):
    other = text.get_window_extent()
    if not text.get_text().strip() or not text.get_visible():
        return False
    inside = (box.x0 < other.x1 and other.x0 < box.x1, box.y0 < other.y1, other.y0 < box.y1)
    return all(inside)


def test_every_axis_that_needs_one_has_a_unit(comparison, evaluation, phonons):
    """A slash before the unit; counts, shares and ratios of like things have none."""
    plain = ('structures', 'calls', 'volume, predicted over input', 'sigma of the')
    figures = [
        plot.calls_saved(comparison),
        plot.energy_boxes(comparison),
        plot.convergence(comparison, 'emt'),
        plot.lattice_parity(comparison),
        plot_accuracy.error_distributions(evaluation),
        plot_accuracy.lattice_parameters(evaluation),
        plot_phonons.phonon_bands(phonons, 'Cu', 'emt'),
        plot_phonons.thermal_properties(phonons, 'Cu', 'emt'),
    ]
    labels = {
        label
        for figure in figures
        for ax in figure.axes
        for label in (ax.get_xlabel(), ax.get_ylabel())
        if label and label != 'input or prediction'
    }
    without = {label for label in labels if ' /' not in label}
    assert all(any(word in label for word in plain) for label in without), without


def test_where_a_path_of_phonons_jumps_both_points_are_named():
    bands = {'x': [0.0, 0.5, 1.0], 'ticks': [0, 0.5, 0.5, 1], 'labels': list('GXQG')}
    places, labels = plot_phonons._ticks(bands)
    assert (places, labels) == ([0, 0.5, 1], ['Γ', 'X|Q', 'Γ'])


def test_distributions_count_every_structure_whose_value_is_known():
    columns = {
        'volume_ratio': [*(1 + k / 1000 for k in range(2000)), 50.0],
        'dmax': [*(k * 1e-22 for k in range(2000)), None],
        'error': 2001 * [np.nan],
    }
    volumes, moves = plot_relaxations.distributions(columns).axes
    heights = [[bar.get_height() for bar in ax.patches] for ax in (volumes, moves)]
    assert [sum(heights[0]), sum(heights[1])] == [2001, 2000]
    assert max(heights[0]) < 100  # the one far away leaves room for the others
    assert max(heights[1]) == 2000  # nothing moved
    for nothing in ({}, {'dmax': [None, float('nan')]}):
        assert 'nothing is known' in text_of(plot_relaxations.distributions(nothing))
    few = plot_relaxations.distributions({'dmax': [0.1, 0.1, 0.2]}).axes[0]
    assert (few.get_yticks() % 1 == 0).all()
