import pytest

from ase_deeprelax.compare.comparison_tables import comparison_text
from ase_deeprelax.compare.evaluation_tables import evaluation_text
from ase_deeprelax.compare.schema import VERSION, check_version
from ase_deeprelax.compare.summary import quartiles
from ase_deeprelax.compare.tables import (
    Link,
    Table,
    counts_text,
    number,
    percent,
    quartiles_text,
)
from ase_deeprelax.data.one_line import count
from ase_deeprelax.errors import ConfigError


def test_text_and_markdown_hold_the_same_cells():
    table = Table(
        ['name', 'remark', 'error / Å²', 'n'],
        [[Link('a', 3), 'x|y', None, 12], ['long', '', '1.5', 3]],
        text_columns=(0, 1),
    )
    assert table.as_text().splitlines() == [
        'name  remark  error / A^2   n',
        'a     x|y               -  12',
        'long                  1.5   3',
    ]
    assert table.as_markdown().splitlines() == [
        '| name | remark | error / A^2 | n |',
        '|---|---|--:|--:|',
        r'| a | x\|y | - | 12 |',
        '| long |  | 1.5 | 3 |',
    ]


def test_empty_columns_go_and_the_others_keep_their_side():
    table = Table(['a', 'b', 'c'], [['x', None, 'y'], ['x', '', None]], (0, 2))
    kept = table.without_empty_columns()
    assert kept.heads == ['a', 'c']
    assert kept.text_columns == (0, 1)
    empty = Table(['a', 'b'], [])
    assert empty.without_empty_columns().heads == ['a', 'b']


def test_numbers_in_words():
    assert count(1) == '1 structure'
    assert count(1234, 'pair') == '1,234 pairs'
    assert number(float('nan'), '.1f') is None
    assert [percent(x) for x in (0.0, 0.554, 1.0, None)] == ['0 %', '55 %', '100 %', None]
    nothing = {'n': 0, 'q25': None, 'median': None, 'q75': None}
    assert quartiles_text(nothing, '.0f') is None
    assert quartiles_text({'n': 1, 'q25': -0.01, 'median': 0, 'q75': 1}, '.0f') == (
        '0 (0 to 1)'
    )


def test_halves_of_counts_are_written():
    assert counts_text(quartiles([3, 4])) == '3.5 (3 to 4)'
    assert counts_text(quartiles([2, 3])) == '2.5 (2 to 3)'
    assert counts_text(quartiles([-1, 0, 1_234_567])) == '0 (-0.5 to 617283.5)'
    assert counts_text(quartiles([])) is counts_text(None) is None


def test_results_of_a_later_version_are_refused_with_the_way_out():
    check_version({})
    check_version({'version': VERSION})
    for later in (VERSION + 1, '3.0', None):
        with pytest.raises(ConfigError, match='install a newer ase-deeprelax'):
            check_version({'version': later})
    for draw in (comparison_text, evaluation_text):
        with pytest.raises(ConfigError, match='newer'):
            draw({'version': VERSION + 1})
