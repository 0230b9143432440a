"""Tutorials: the notebooks are their scripts, run today."""

import ast
import contextlib
import io
import logging
import re
import tempfile
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import jupytext
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from ase.io import read

FOLDER = Path(__file__).parents[1] / 'tutorials'
SCRIPTS = sorted(FOLDER.glob('[0-9]*.py'))
MEND = 'run `make tutorials` and look at what changed'
CLOCK = re.compile(r'\d\d:\d\d:\d\d')
NUMBER = re.compile(r'[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?')


# What a tutorial cannot do without.
NEEDS = {
    '02_compare_with_iterative_optimizers': ('chgnet', 'phonopy', 'matplotlib', 'jinja2'),
    '03_chain_to_a_potential_and_dft': ('chgnet', 'matplotlib'),
    '06_point_defects': ('chgnet', 'matplotlib'),
    '07_screen_thousands_and_pick_candidates': (
        'chgnet',
        'jinja2',
        'matplotlib',
        'pandas',
        'pyarrow',
    ),
    '09_phonons_of_a_predicted_structure': ('chgnet', 'phonopy', 'matplotlib'),
    '10_a_model_of_your_own': ('lightning', 'matplotlib'),
}


def cells(path):
    return jupytext.read(path).cells


def shown(cell):
    """What a cell of the notebook printed."""
    return ''.join(output.get('text', '') for output in cell.outputs)


def pictures(cell):
    """How many figures a cell of the notebook shows."""
    return sum('image/png' in output.get('data', {}) for output in cell.outputs)


def measured(cell):
    """Whether what a cell prints depends on the machine, or on what is installed there."""
    return 'measured' in cell.metadata.get('tags', [])


def run_cell(source, name, namespace):
    """Run it as a notebook does: what its last line gives is handed back."""
    tree, last = ast.parse(source), None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)
    exec(compile(tree, name, 'exec'), namespace)
    return last and eval(compile(last, name, 'eval'), namespace)


def comparison_keeps_its_promises(namespace):
    """Converged everywhere, calls saved, no end lost; reports that can be read."""
    result, names = namespace['result'], namespace['crystals']
    assert {run['structure'] for run in result['runs']} == set(names)
    assert all(run['converged'] for run in result['runs'])
    assert {run['spacegroup_kept'] for run in result['runs']} == {True}
    for row in result['summary']:
        assert row['both']['n'] == len(names)
        assert row['both']['calls_ratio']['median'] < 0.9
        assert abs(row['both']['energy_difference']['median']) < 2e-3
    calls = dict.fromkeys(('unrelaxed', 'prediction'), 0)
    for run in result['runs']:
        calls[run['start']] += run['calls']
    assert calls['prediction'] < 0.85 * calls['unrelaxed']
    for prediction, unrelaxed in zip(
        result['predictions'], result['runs'][::6], strict=True
    ):
        assert unrelaxed['start'] == 'unrelaxed'
        assert prediction['energy_per_atom']['chgnet'] < unrelaxed['curve'][0][0]
    loose, tight = (
        [r['energy_per_atom'] for r in namespace[key]['runs'] if r['structure'] == layered]
        for layered in namespace['layered']
        for key in ('result', 'strict')
    )
    assert max(tight) - min(tight) < 5e-4
    assert max(tight) < min(loose) + 1e-3
    phonons = namespace['tight']['phonons']
    assert [one['kind'] for one in phonons] == ['predicted', 'refined', 'iterative']
    assert all(one['ok'] and one['imaginary']['n'] == 0 for one in phonons)
    predicted, refined, iterative = (np.max(one['bands']['frequencies']) for one in phonons)
    assert refined == pytest.approx(iterative, rel=0.02)
    assert predicted == pytest.approx(refined, rel=0.35)
    text = namespace['report'].read_text()
    HTMLParser().feed(text)
    for name in names:
        assert name in text
    assert 'imaginary' in (namespace['folder'] / 'phonons.html').read_text()


def chain_keeps_its_promises(namespace):
    """The last calculator converged, and what failed or was skipped says so."""
    stages = namespace['atoms'].optimizer.stages
    assert [stage.status for stage in stages] == 3 * ['converged']
    calculator = 'gpaw' if find_spec('gpaw') else 'chgnet'
    assert [stage.name for stage in stages] == ['prediction', 'chgnet', calculator]
    assert all(stage.spacegroup == 216 for stage in stages)
    assert stages[-1].fmax < 0.02
    assert abs(namespace['difference']) < 4e-3
    failed = namespace['sulphide'].optimizer.stages[1]
    assert (failed.name, failed.status) == ('emt', 'failed')
    assert 'No EMT-potential' in failed.reason
    assert 0 < namespace['before_kill'] < namespace['in_the_end'] - 1
    one, other = namespace['restarted'], namespace['in_one_go']
    np.testing.assert_allclose(one.cell.array, other.cell.array, atol=1e-6)
    assert namespace['film'].cell.lengths()[0] == pytest.approx(3.70, abs=1e-9)


def layers_keep_their_promises(namespace):
    """Lattice constants near PBE's; what is held is as it was."""
    for result, pbe in zip(namespace['results'], namespace['PBE'].values(), strict=True):
        assert result.atoms.cell.lengths()[0] == pytest.approx(pbe, rel=0.015)
    assert not namespace['moves'][namespace['bottom']].any()
    assert namespace['fixed'].atoms.cell.lengths()[2] == pytest.approx(12.29, abs=1e-9)
    a, _, c = namespace['relax'](namespace['bulk_mos2'](1.03)).atoms.cell.lengths()
    assert a == pytest.approx(3.16, rel=0.006)
    assert c == pytest.approx(1.06 * 12.29, rel=0.01)


def defects_keep_their_promises(namespace):
    """Neighbours of Ca go where CHGNet puts them; a prediction that costs is taken back."""
    assert namespace['neighbours']['one shot'] == pytest.approx(
        namespace['neighbours']['CHGNet'], abs=0.05
    )
    unrelaxed, _, relaxed, from_prediction = namespace['energies']
    assert from_prediction < relaxed + 5e-3
    assert namespace['safe'].get_potential_energy() < unrelaxed
    for before, answer in zip(namespace['distorted'], namespace['answers'], strict=True):
        start, end = (namespace['distance_to_perfect'](x) for x in (before, answer.atoms))
        assert end < start / 3


def screen_keeps_its_promises(namespace):
    """All are relaxed; the network and CHGNet agree on most; the page can be read."""
    done, rows, best = (namespace[key] for key in ('done', 'rows', 'best'))
    assert done.n_done == len(namespace['candidates']) > 1000
    assert done.n_quarantined == 0
    known = {'SrTiO3': 3.94, 'BaZrO3': 4.24, 'KTaO3': 4.03, 'KMgF3': 4.06}  # with PBE, Å
    for name, pbe in known.items():
        assert rows.a[rows.name == name].item() == pytest.approx(pbe, rel=0.015)
    assert set(best.name) < set(rows.name[namespace['trusted']])
    assert len(namespace['kept']) > len(best) / 2
    assert (best.mismatch - best.after).abs().nlargest(2).iloc[1] < 0.02  # all but one
    text = namespace['page'].read_text()
    HTMLParser().feed(text)
    assert f'{len(rows):,} structures relaxed' in text


def phonons_keep_their_promises(namespace):
    """The predicted crystal is stable, and nearly as stiff; a saddle point is left."""
    found = namespace['found']
    assert [found[name]['imaginary']['n'] for name in ('predicted', 'refined')] == [0, 0]
    tops = [np.max(found[k]['bands']['frequencies']) for k in ('predicted', 'refined')]
    assert tops[0] == pytest.approx(tops[1], rel=0.05)
    predicted, refined = (
        namespace['ends'][k].cell.lengths() for k in ('predicted', 'refined')
    )
    np.testing.assert_allclose(predicted, refined, rtol=0.01)
    assert namespace['unstable']['imaginary']['n'] > 0
    assert namespace['gain'] > 5


PROMISES = {
    '05_monolayers_slabs_layered_crystals': layers_keep_their_promises,
    '06_point_defects': defects_keep_their_promises,
    '07_screen_thousands_and_pick_candidates': screen_keeps_its_promises,
    '09_phonons_of_a_predicted_structure': phonons_keep_their_promises,
    '02_compare_with_iterative_optimizers': comparison_keeps_its_promises,
    '03_chain_to_a_potential_and_dft': chain_keeps_its_promises,
}


def same_text(one, two):
    """Equal but for clock times and the last digits of numbers."""
    one, two = (CLOCK.sub('', text).strip() for text in (one, two))
    words = [re.sub(r'\s+', ' ', NUMBER.sub('#', text)) for text in (one, two)]
    numbers = [np.array(NUMBER.findall(text), dtype=float) for text in (one, two)]
    return words[0] == words[1] and np.allclose(*numbers, rtol=0.01, atol=2e-3)


def test_there_are_tutorials():
    assert SCRIPTS


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.stem)
def test_notebook_holds_the_cells_of_the_script(script):
    notebook = cells(script.with_suffix('.ipynb'))
    found = [(cell.cell_type, cell.source) for cell in notebook]
    assert found == [(cell.cell_type, cell.source) for cell in cells(script)], MEND


@pytest.fixture
def loggers_as_before():
    """A tutorial quietens loggers for its process; here other tests follow."""
    loggers = [logging.getLogger(name) for name in ('ase_deeprelax', 'lightning.pytorch')]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.mark.usefixtures('loggers_as_before')
@pytest.mark.timeout(900)  # a minute or two each, on a machine with nothing else to do
@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.stem)
def test_script_runs_and_prints_what_the_notebook_shows(script, tmp_path, monkeypatch):
    for package in NEEDS.get(script.stem, ()):
        pytest.importorskip(package, reason=f'{script.stem} needs {package}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    mpl.use('agg')
    monkeypatch.setattr(plt, 'show', lambda: None)  # figures stay open, to be counted
    namespace = {'__name__': '__main__'}
    for number, cell in enumerate(cells(script.with_suffix('.ipynb'))):
        if cell.cell_type != 'code':
            continue
        kinds = {getattr(output, 'name', output.output_type) for output in cell.outputs}
        assert kinds <= {'stdout', 'display_data', 'execute_result'}, (
            f'cell {number} of the notebook shows {kinds}'
        )
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            last = run_cell(cell.source, f'{script.name}[{number}]', namespace)
        text = printed.getvalue()
        assert measured(cell) or same_text(text, shown(cell)), (
            f'cell {number} prints\n{text}\n{MEND}'
        )
        drawn = len(plt.get_fignums()) + isinstance(last, mpl.figure.Figure)
        assert drawn == pictures(cell), f'figures of cell {number}; {MEND}'
        plt.close('all')
    if script.stem in PROMISES:
        PROMISES[script.stem](namespace)


def test_text_comparison_sees_a_change():
    assert same_text('Step 12:00:00 a = 3.905', 'Step 13:01:02 a = 3.906')
    assert not same_text('a = 3.905 in all', 'a = 3.955 in all')
    assert not same_text('kept: True', 'kept: False')


def test_demo_writes_its_crystals(tmp_path):
    namespace = {'__name__': 'demo'}
    exec((FOLDER / 'demo.py').read_text(), namespace)
    namespace['main'](tmp_path)
    found = {path.stem: read(path) for path in tmp_path.glob('*.extxyz')}
    assert set(found) == set(namespace['CRYSTALS'])
    expected = {'SrTiO3': 5, 'SrZrO3': 20, 'WSe2': 6, 'SnO2': 6, 'ZnS': 4, 'NaCl': 16}
    for name, atoms in found.items():
        formula = atoms.get_chemical_formula('metal', empirical=True)
        assert name.startswith(formula)
        assert len(atoms) == expected.pop(formula)
        distances = atoms.get_all_distances(mic=True)[~np.eye(len(atoms), dtype=bool)]
        assert 1.7 < distances.min() < 3.0, f'{name}: nearest atoms at {distances.min()} A'
    assert not expected
