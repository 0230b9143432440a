"""The table, the headline and the choice of structures that all pages share."""

import math

import pytest

from ase_deeprelax.compare.tables import Link
from ase_deeprelax.report.headlines import of_relaxations
from ase_deeprelax.report.relax_page import TURNED, worth_a_look
from ase_deeprelax.report.relaxation_table import relaxation_table
from ase_deeprelax.report.relaxations import (
    MOST_ROWS,
    columns_of,
    relaxed_section,
)


def row(**more):
    known = {'formula': 'NaCl', 'n_atoms': 2, 'ok': True, 'volume_ratio': 1.0}
    return {**known, 'dmax': 0.1, 'sigma': 0.02, 'error': 0.03, **more}


def column(table, head):
    at = list(table.heads).index(head)
    return [cells[at] for cells in table.rows]


def test_what_is_known_of_no_structure_has_no_column():
    table = relaxation_table([('a', row(error=math.nan)), ('b', row(error=None))])
    assert 'expected error / Å' not in table.heads
    assert 'remark' not in table.heads
    assert column(table, 'sigma / Å') == ['0.020', '0.020']


def test_a_refused_structure_has_its_reason_and_no_numbers_of_a_relaxation():
    refused = row(ok=False, problem='atoms 0 and 1 overlap')
    table = relaxation_table([('good', row(volume_ratio=0.9)), ('bad', refused)])
    assert column(table, 'relaxed') == ['yes', 'refused']
    assert column(table, 'change of volume / %') == ['-10.0', None]
    assert column(table, 'largest displacement / Å') == ['0.100', None]
    assert column(table, 'remark') == ['', 'atoms 0 and 1 overlap']


def test_flags_are_told_in_words():
    flagged = row(kind='layer', ood='70 atoms', verified='chgnet agrees')
    [remark] = column(relaxation_table([('a', flagged)]), 'remark')
    assert remark == 'layer; ! 70 atoms; chgnet agrees'
    [remark] = column(
        relaxation_table([('a', row(kind='bulk')), ('b', flagged)]), 'remark'
    )[:1]
    assert remark == ''


def test_a_terminal_gets_the_same_structures_in_fewer_letters():
    rows = [('a.cif', row(volume_before=40.0, volume=44.0, seconds=0.0123))]
    titles, line = relaxation_table(rows, short=True).as_text().splitlines()
    heads = ['structure', 'formula', 'atoms', 'V0/A^3', 'V/A^3', 'dmax/A', 'error/A']
    assert titles.split() == [*heads, 'sigma/A', 'ms']
    cells = ['a.cif', 'NaCl', '2', '40.00', '44.00', '0.100', '0.030', '0.020', '12']
    assert line.split() == cells


def test_the_headline_prefers_the_expected_error_and_counts_flags():
    rows = [row(error=0.01), row(error=0.03, ood='70 atoms'), row(error=0.02)]
    line = of_relaxations(columns_of(rows), 2)
    assert line.startswith(
        '3 structures relaxed, 2 refused. Median expected error of the predictions: 0.020 Å'
    )
    assert line.endswith('1 outside the training range.')
    alone = of_relaxations(columns_of([row(error=None)]), 0)
    assert alone == '1 structure relaxed. Sigma: 0.020 Å.'
    assert of_relaxations(columns_of([]), 1) == '0 structures relaxed, 1 refused.'


def test_the_viewer_gets_the_least_certain_and_the_most_changed():
    rows = {f's{k}': row() for k in range(100)}
    rows['uncertain'] = row(error=0.5)
    rows['uncalibrated'] = row(error=math.nan, sigma=0.4)
    rows['moved'] = row(dmax=2.0)
    rows['squeezed'] = row(volume_ratio=0.5)
    chosen = worth_a_look(rows)
    assert {'uncertain', 'uncalibrated', 'moved', 'squeezed'} <= set(chosen)
    assert len(chosen) == len(set(chosen)) <= 3 * TURNED
    few = dict(list(rows.items())[: 3 * TURNED])
    assert worth_a_look(few) == list(few)


@pytest.mark.parametrize('n', [3, MOST_ROWS + 7])
def test_the_least_certain_ones_stay_where_a_page_cannot_hold_all(n):
    rows = {f's{k}': row(error=k / 1000) for k in range(n)}
    [table] = relaxed_section(rows, [{'name': 's2'}]).tables
    names = column(table, 'structure')
    if n <= MOST_ROWS:
        assert names == ['s0', 's1', Link('s2', 0)]
    else:
        assert names == [f's{k}' for k in range(n - 1, 6, -1)]
        assert f'{MOST_ROWS} of {n}' in table.caption
