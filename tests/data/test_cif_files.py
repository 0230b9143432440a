"""CIF files as they are: every crystal is the one that the file means, or is refused."""

import gzip
import io
import warnings

import numpy as np
import pytest

from ase_deeprelax.data.cif_files import read_cif
from ase_deeprelax.data.disorder import check_ordered
from ase_deeprelax.data.structure_files import StructureFile, read_each
from ase_deeprelax.data.structure_writing import write_structures
from ase_deeprelax.errors import StructureError

CUBE = (5.64, 5.64, 5.64, 90, 90, 90)
ROCKSALT = 'Na1 Na 0 0 0\nCl1 Cl 0.5 0.5 0.5'
MAGNETIC = 'loop_\n_space_group_symop_magn_operation.xyz\nx,y,z,+1\n-x,-y,-z,-1\n'
FCC = "_symmetry_space_group_name_H-M 'F m -3 m'"


def cif(sites=ROCKSALT, symmetry=FCC, cell=CUBE, *, name='x', columns=()):
    names = ('length_a', 'length_b', 'length_c', 'angle_alpha', 'angle_beta', 'angle_gamma')
    lines = [f'data_{name}']
    lines += [f'_cell_{key} {value}' for key, value in zip(names, cell, strict=True)]
    columns = ('label', 'type_symbol', 'fract_x', 'fract_y', 'fract_z', *columns)
    heads = [f'_atom_site_{column}' for column in columns]
    return '\n'.join([*lines, symmetry, 'loop_', *heads, sites, ''])


def found_in(text):
    return read_cif(io.BytesIO(text.encode()))


def crystal(*args, **kwargs):
    [atoms] = found_in(cif(*args, **kwargs))
    assert not isinstance(atoms, StructureError), atoms
    return atoms


def fingerprint(atoms):
    """Distances of each atom to the others: the same for the same crystal in one cell."""
    return np.sort(np.sort(atoms.get_all_distances(mic=True), axis=1), axis=0)


def named(symbol):
    return f"_symmetry_space_group_name_H-M '{symbol}'"


def test_either_origin_of_a_spinel_is_the_same_crystal():
    cell = (8.08, 8.08, 8.08, 90, 90, 90)
    first = 'Mg1 Mg 0 0 0\nAl1 Al 0.625 0.625 0.625\nO1 O 0.3876 0.3876 0.3876'
    second = 'Mg1 Mg 0.125 0.125 0.125\nAl1 Al 0.5 0.5 0.5\nO1 O 0.2626 0.2626 0.2626'
    crystals = [
        crystal(sites, named(f'F d -3 m {mark}'), cell)
        for sites, marks in ((first, 'S :1'), (second, 'Z :2'))
        for mark in marks.split()
    ]
    for atoms in crystals:
        assert atoms.symbols.formula.count() == {'Mg': 8, 'Al': 16, 'O': 32}
        np.testing.assert_allclose(fingerprint(atoms), fingerprint(crystals[0]), atol=1e-6)


def test_either_setting_of_a_perovskite_is_the_same_crystal():
    sites = (
        'Ca1 Ca 0.0359 0.25 -0.0065\nTi1 Ti 0 0 0.5\n'
        'O1 O 0.4839 0.25 0.0711\nO2 O 0.2893 0.0371 0.7108'
    )
    turned = '\n'.join(  # a, b, c of the one are c, a, b of the other
        f'{label} {symbol} {z} {x} {y}'
        for label, symbol, x, y, z in map(str.split, sites.splitlines())
    )
    one = crystal(sites, named('P n m a'), (5.44, 7.64, 5.38, 90, 90, 90))
    number = '\n_symmetry_Int_Tables_number 62'
    other = crystal(turned, named('P b n m') + number, (5.38, 5.44, 7.64, 90, 90, 90))
    assert len(one) == len(other) == 20
    assert other.info['spacegroup'].no == 62
    np.testing.assert_allclose(fingerprint(one), fingerprint(other), atol=1e-6)


@pytest.mark.parametrize('mark', ['', ' R', ':R'])
def test_the_cell_tells_the_axes_of_a_rhombohedral_crystal(mark):
    sites = 'Bi1 Bi {x} {x} 0.4\nTe1 Te 0 0 0\nTe2 Te {y} {y} 0.2095'
    setting = '\n_symmetry_Int_Tables_number 166\n_symmetry_cell_setting trigonal'
    hexagonal = crystal(
        sites.format(x=0, y=0),
        named(f'R -3 m{mark.replace("R", "H")}') + setting,
        (4.38, 4.38, 30.49, 90, 90, 120),
    )
    rhombohedral = crystal(
        sites.format(x=0.4, y=0.2095),
        named(f'R -3 m{mark}') + setting,
        (10.473, 10.473, 10.473, 24.14, 24.14, 24.14),
    )
    assert str(rhombohedral.symbols) == 'Bi2Te3'
    assert len(hexagonal) == 15
    nearest = [
        np.sort(x.get_all_distances(mic=True)[0])[1] for x in (hexagonal, rhombohedral)
    ]
    assert nearest[0] == pytest.approx(nearest[1], abs=0.01)


def test_a_crystal_system_is_no_reason_for_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for name in ('_symmetry_cell_setting', '_space_group_crystal_system'):
            assert len(crystal(symmetry=f'{FCC}\n{name} cubic')) == 8


@pytest.mark.parametrize(
    'symmetry',
    [
        "_space_group.name_H-M_alt 'F m -3 m'",
        "_symmetry.space_group_name_H-M 'F m -3 m'",
        "_space_group_name_H-M_full 'F 4/m -3 2/m'",
        "_space_group_name_Hall '-F 4 2 3'",
        "_symmetry_space_group_name_Hall '-F  4  2  3'\n_space_group_IT_number 225",
        '_space_group.IT_number 225',
    ],
)
def test_a_space_group_is_known_by_any_of_its_names(symmetry):
    atoms = crystal(symmetry=symmetry)
    np.testing.assert_allclose(fingerprint(atoms), fingerprint(crystal()), atol=1e-6)


def test_a_symbol_of_hall_says_the_setting():
    """Where the number alone stands for the standard one, and two origins are possible."""
    sites, cell = 'Na1 Na 0.1 0.2 0.3\nCl1 Cl 0.4 0.25 0.8', (6, 7, 8, 90, 105, 90)
    atoms = crystal(
        sites, "_space_group_name_Hall '-P 2yn'\n_space_group_IT_number 14", cell
    )
    expected = crystal(sites, named('P 1 21/n 1'), cell)
    np.testing.assert_allclose(fingerprint(atoms), fingerprint(expected), atol=1e-6)
    cube = (8.08, 8.08, 8.08, 90, 90, 90)
    for hall, mark in (('F 4d 2 3 -1d', ':1'), ('-F 4vw 2vw 3', ':2')):
        symbols = f"{named('F d -3 m')}\n_symmetry_space_group_name_Hall '{hall}'"
        atoms = crystal('Mg1 Mg 0.1 0.1 0.1', symbols, cube)
        expected = crystal('Mg1 Mg 0.1 0.1 0.1', named(f'F d -3 m {mark}'), cube)
        np.testing.assert_allclose(fingerprint(atoms), fingerprint(expected), atol=1e-6)


def test_tags_may_have_points():
    text = cif().replace('_cell_', '_cell.').replace('_atom_site_', '_atom_site.')
    [atoms] = found_in(text)
    np.testing.assert_allclose(fingerprint(atoms), fingerprint(crystal()), atol=1e-6)


def test_listed_operations_need_no_name_of_the_group():
    listed = "loop_\n_symmetry_equiv_pos_as_xyz\n'x,y,z'\n'-x,-y,-z'\n"
    glide = "'1/2-x,1/2+y,1/2-z'\n'1/2+x,1/2-y,1/2+z'"
    sites, cell = 'Na1 Na 0.1 0.2 0.3\nCl1 Cl 0.4 0.25 0.8', (6, 7, 8, 90, 105, 90)
    unknown = '_symmetry_space_group_name_H-M ?\n_symmetry_Int_Tables_number ?\n'
    expected = crystal(sites, named('P 21/n'), cell)
    for names in ('', unknown, named('P 1 21/n 1') + '\n', named('of my own') + '\n'):
        atoms = crystal(sites, names + listed + glide, cell)
        np.testing.assert_allclose(fingerprint(atoms), fingerprint(expected), atol=1e-6)
    assert len(crystal(sites, '', cell)) == 2


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        (cif(f'{ROCKSALT}\nH1 H ? ? ?'), r"site H1: the coordinate '\?' is no number"),
        (cif('Mg1 Mg 1/3 2/3 0'), "site Mg1: the coordinate '1/3' is no number"),
        (cif(ROCKSALT.replace(' Na', ' NA')), 'site Na1: NA may be Na or N'),
        (cif(ROCKSALT.replace(' Na', ' Va')), "site Na1: 'Va' is no element"),
        (cif(ROCKSALT.replace(' Na', ' ?')), r"site Na1: '\?' is no element"),
        (cif(f'{ROCKSALT}\nK1 K 0 0 0'), 'site K1: K lies where Na is'),
        (cif(f'{ROCKSALT}\nK1 K 0.5 0.5 0'), 'site K1: K lies where Na is'),
        (cif(symmetry=f"{FCC}\n_chemical_formula_sum 'Cl H4 Na O2'"), 'has H, O, and no'),
        (cif(symmetry=named('F d -3 m')), 'may mean any of 2 origins'),
        (cif(symmetry='_symmetry_space_group_name_H-M ?'), r"'\?' is no space group"),
        (cif(symmetry='_space_group_name_Schoenflies Oh^5'), 'schoenflies alone, which is'),
        (cif(symmetry="_space_group_name_Hall 'F 4 2'"), "'F 4 2' is no space group"),
        (cif(symmetry=MAGNETIC), 'magn_operation_xyz alone, which is not read'),
        (
            cif('O1 O 0 0 0 1\nNa1 Na 0.5 0.5 0.5 0', columns=['attached_hydrogens']),
            'site O1: 1 atoms of hydrogen are attached',
        ),
        (cif('Na1 Na 0 0 0 d\nX1 O 0 0.5 0 dum', columns=['calc_flag']), 'X1 is a dummy'),
        (cif(cell=('?', *CUBE[1:])), 'its cell is incomplete'),
        (cif('').strip(), 'no elements or no coordinates'),
        (cif()[:-8], 'the CIF file is damaged .*incomplete row'),
        (f'{cif()}_text\n;\ncut', r'the CIF file is damaged \(it ends within a text\)'),
        ('<html>not found</html>', 'no CIF file: it does not begin with data_'),
    ],
)
def test_what_would_be_another_crystal_is_refused_by_name(text, reason):
    [error] = found_in(text)
    assert isinstance(error, StructureError)
    with pytest.raises(StructureError, match=reason):
        raise error


@pytest.mark.parametrize(
    ('sites', 'formula', 'expected'),
    [
        (f'{ROCKSALT}\nNa2 Na 0 0.5 0.5', 'Cl Na', 'Na4Cl4'),
        (ROCKSALT.replace(' Na', ' Na1+').replace(' Cl', ' Cl1-'), 'Cl Na', 'Na4Cl4'),
        (ROCKSALT.replace(' Cl', ' D'), 'D Na', 'Na4H4'),
        (ROCKSALT, 'NA CL', 'Na4Cl4'),
        (ROCKSALT, '(Na,K) Cl', 'Na4Cl4'),
    ],
)
def test_other_ways_to_write_a_crystal_are_read(sites, formula, expected):
    symmetry = f"{FCC}\n_chemical_formula_sum '{formula}'"
    assert str(crystal(sites, symmetry).symbols) == expected


def test_a_bad_data_block_loses_no_other_one(tmp_path):
    blocks = [
        'data_global\n_journal_year 1999\n',
        cif(name='first'),
        cif(f'{ROCKSALT}\nH1 H ? ? ?', name='second'),
        cif(name='third'),
        'data_fourth\n_text\n;\ncut',
    ]
    for name, opener in (('a.cif', open), ('a.cif.gz', gzip.open)):
        with opener(tmp_path / name, 'wb') as file:
            file.write('\r\n'.join(blocks).encode('latin-1'))
        first, second, third, fourth = read_each(StructureFile(tmp_path / name))
        assert str(first.symbols) == str(third.symbols) == 'Na4Cl4'
        assert 'site H1' in str(second)
        assert 'damaged' in str(fourth)
        [chosen] = read_each(StructureFile(tmp_path / name, '2'))
        assert chosen == third


def test_an_element_that_shares_a_site_is_one_of_the_formula():
    sites = 'Na1 Na 0 0 0 0.4\nK1 K 0 0 0 0.6\nCl1 Cl 0.5 0.5 0.5 1'
    symmetry = f"{FCC}\n_chemical_formula_sum 'Cl K0.6 Na0.4'"
    with pytest.raises(StructureError, match='site kind 0 is partially occupied'):
        check_ordered(crystal(sites, symmetry, columns=['occupancy']))


def test_an_occupancy_that_is_not_known_can_be_written(tmp_path):
    sites = 'Na1 Na 0 0 0 1\nCl1 Cl 0.5 0.5 0.5 ?'
    atoms = crystal(sites, columns=['occupancy'])
    assert not write_structures(tmp_path / 'a.cif', [atoms], 'cif')
    [found] = read_each(StructureFile(tmp_path / 'a.cif'))
    assert str(found.symbols) == 'Na4Cl4'
    assert atoms.info['occupancy']['1'] == {'Cl': '?'}
