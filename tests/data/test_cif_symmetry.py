"""Symmetry operations of space groups that a file names and does not list."""

import numpy as np
import pytest
from ase.spacegroup import Spacegroup
from ase.spacegroup.spacegroup import parse_sitesym

from ase_deeprelax.data.cif_symmetry import operations_of
from ase_deeprelax.errors import StructureError

RIGHT = (90, 90, 90)
# The groups with two origins.
TWO_ORIGINS = {48, 50, 59, 68, 70, 85, 86, 88, 125, 126, 129, 130, 133, 134, 137, 138}
TWO_ORIGINS |= {141, 142, 201, 203, 222, 224, 227, 228}


def angles_of(number):
    """Of a cell that any group of this number may have, with axes as most files have."""
    if 3 <= number <= 15:
        return 90, 105, 90
    return (90, 90, 120) if 143 <= number <= 194 else RIGHT


def as_set(pairs):
    """Operations in a form that can be compared."""
    return {
        (*rotation.astype(int).ravel(), *np.rint(24 * (shift % 1)).astype(int) % 24)
        for rotation, shift in pairs
    }


@pytest.mark.parametrize('by_symbol', [False, True])
def test_standard_settings_are_those_of_ase(by_symbol):
    for number in range(1, 231):
        group = Spacegroup(number)
        symbol = group.symbol if by_symbol else None
        if number in TWO_ORIGINS or (by_symbol and number == 67):
            with pytest.raises(StructureError, match='may mean any of'):
                operations_of(number, symbol, angles_of(number))
            continue
        found, operations = operations_of(number, symbol, angles_of(number))
        assert found == number
        found = zip(*parse_sitesym(operations), strict=True)
        assert as_set(found) == as_set(group.get_symop()), (number, symbol)


@pytest.mark.parametrize('number', sorted(TWO_ORIGINS - {68}))  # that has settings, too
@pytest.mark.parametrize('marks', [(':1', ':2'), (' S', ' Z'), (' O1', ' O2')])
def test_a_mark_behind_the_symbol_chooses_the_origin(number, marks):
    """The second one is a centre of inversion, the first one is none."""
    for mark, is_centre in zip(marks, (False, True), strict=True):
        symbol = Spacegroup(number).symbol + mark
        _, operations = operations_of(number, symbol, RIGHT)
        assert ('-x,-y,-z' in operations) == is_centre


@pytest.mark.parametrize(
    ('symbol', 'angles', 'expected'),
    [
        ('P 21/n', (90, 100, 90), '-x+1/2,y+1/2,-z+1/2'),
        ('P 1 21/n 1', RIGHT, '-x+1/2,y+1/2,-z+1/2'),
        ('P 21/n', (90, 90, 100), '-x+1/2,-y+1/2,z+1/2'),
        ('P21/a', (90, 100, 90), '-x+1/2,y+1/2,-z'),
        ('I 2/a', (90, 95, 90), '-x+1/2,y,-z'),
        ('B 2/b', (90, 90, 95), '-x,-y+1/2,z'),
        ('P b n m', RIGHT, '-x+1/2,y+1/2,z'),
        ('C m c a', RIGHT, '-x,-y+1/2,z+1/2'),
        ('F m 3 m', RIGHT, 'z,x,y'),
        ('R -3 m', (57, 57, 57), 'z,x,y'),
        ('R -3 m H', (57, 57, 57), '-y,x-y,z'),
    ],
)
def test_symbols_of_other_settings_are_known(symbol, angles, expected):
    assert expected in operations_of(None, symbol, angles)[1]


@pytest.mark.parametrize(
    ('number', 'symbol'), [(62, 'P 21/c'), (None, '?'), (2, 'F -1'), (231, None)]
)
def test_what_is_no_group_is_refused(number, symbol):
    with pytest.raises(StructureError, match='is no space group; add the operations'):
        operations_of(number, symbol, RIGHT)
