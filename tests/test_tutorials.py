"""Tutorials: the notebooks are their scripts, run today."""

import contextlib
import io
import re
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


def cells(path):
    return jupytext.read(path).cells


def shown(cell):
    """What a cell of the notebook printed."""
    return ''.join(output.get('text', '') for output in cell.outputs)


def pictures(cell):
    """How many figures a cell of the notebook shows."""
    return sum('image/png' in output.get('data', {}) for output in cell.outputs)


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


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.stem)
def test_script_runs_and_prints_what_the_notebook_shows(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mpl.use('agg')
    monkeypatch.setattr(plt, 'show', lambda: None)  # figures stay open, to be counted
    namespace = {'__name__': '__main__'}
    for number, cell in enumerate(cells(script.with_suffix('.ipynb'))):
        if cell.cell_type != 'code':
            continue
        kinds = {getattr(output, 'name', output.output_type) for output in cell.outputs}
        assert kinds <= {'stdout', 'display_data'}, (
            f'cell {number} of the notebook shows {kinds}'
        )
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(cell.source, f'{script.name}[{number}]', 'exec'), namespace)
        text = printed.getvalue()
        assert same_text(text, shown(cell)), f'cell {number} prints\n{text}\n{MEND}'
        assert len(plt.get_fignums()) == pictures(cell), f'figures of cell {number}; {MEND}'
        plt.close('all')


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
