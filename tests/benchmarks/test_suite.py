"""The table of all figures is that of the results it is taken from."""

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


def test_an_aim_is_met_or_not(suite, monkeypatch):
    result = {
        'date': '2026-01-01',
        'commit': 'abc',
        'parts': [{'columns': ['', 'x'], 'rows': [['mine', '8.0'], ['other', '2']]}],
    }
    monkeypatch.setattr(suite, 'load', lambda name: result)

    def met(aim):
        figure = suite.Figure('a', 'r', lambda rows: suite.cell(rows, 'x', _0='mine'), aim)
        return figure.row()[1:4]

    assert met('>= 8') == ['8', '>= 8', 'yes']
    assert met('<= 8') == ['8', '<= 8', 'yes']
    assert met('>= 8.1')[2] == 'no'
    assert met('<= 7.9')[2] == 'no'
    assert met('')[2] == ''
    with pytest.raises(SystemExit, match='measure again'):
        suite.cell(suite.rows_of(result), 'y', _0='mine')


def test_figures_have_names_of_their_own(suite):
    names = [figure.name for figure in suite.FIGURES]
    assert len(set(names)) == len(names)
