"""The table of all figures is that of the results it is taken from."""

from functools import partial
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture
def suite(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import suite

    return suite


def test_the_table_is_that_of_the_results(suite, capsys):
    import measure

    suite.main()
    parts = suite.load('suite')['parts']
    assert measure.parse(capsys.readouterr().out) == parts, 'run benchmarks/suite.py'


def test_a_figure_is_one_cell_and_says_where_it_is_from(suite, monkeypatch):
    result = {
        'date': '2026-01-01',
        'commit': 'abc',
        'parts': [{'columns': ['', 'x'], 'rows': [['mine', '8.04'], ['other', '2']]}],
    }
    monkeypatch.setattr(suite, 'load', lambda name: result)
    value = partial(suite.cell, column='x', _0='mine')
    row = suite.Figure('a', 'r', value, ' %').row()
    assert row == ['a', '8.04 %', 'r, 2026-01-01, abc']
    for column, first in (('y', 'mine'), ('x', 'nobody')):
        with pytest.raises(SystemExit, match='measure again'):
            suite.cell(suite.rows_of(result), column, _0=first)


def test_figures_have_names_of_their_own(suite):
    names = [figure.name for figure in suite.FIGURES]
    assert len(set(names)) == len(names)
