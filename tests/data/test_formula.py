"""Formulas are printed in one order, that of IUPAC, whatever the order of the atoms."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from pymatgen.core import Element

from ase_deeprelax.data.formula import ORDER, chemical_formula, read_compositions
from ase_deeprelax.errors import PairFileError

KNOWN = 'NaCl SrTiO3 LaAlO3 SiC SiO2 GaAs Na2SO4 NH4Cl MoS2 PtTe2 Cs2AgBiBr6 UO2 Bi2Te3'


def test_order_is_that_of_iupac():
    elements = [Element(symbol) for symbol in ORDER.split()]
    assert sorted(element.Z for element in elements) == list(range(1, 104))
    places = [element.iupac_ordering for element in elements]
    assert places == sorted(places)


@pytest.mark.parametrize('name', KNOWN.split())
def test_formula_is_the_one_people_write(name):
    atoms = Atoms(name)
    shuffled = Atoms(numbers=np.random.default_rng(0).permutation(4 * [*atoms.numbers]))
    assert chemical_formula(atoms) == chemical_formula(shuffled) == name


def test_whole_cell_is_counted_where_asked():
    assert chemical_formula(bulk('NaCl', 'rocksalt', a=5.6, cubic=True)) == 'NaCl'
    assert chemical_formula(Atoms('O108Mg107'), reduced=False) == 'Mg107O108'


def test_what_is_no_element_has_a_name_too():
    assert chemical_formula(Atoms()) == ''
    atoms = Atoms('XCu')
    assert chemical_formula(atoms) == 'CuX'
    atoms.numbers[:] = -1, 130
    assert chemical_formula(atoms) == 'X'


def test_a_list_of_formulas_may_come_from_windows(tmp_path):
    path = tmp_path / 'formulas.txt'
    path.write_bytes('\ufeffNaCl\r\nO2Ti\r\n'.encode())
    assert read_compositions(path) == {((11, 1), (17, 1)), ((8, 2), (22, 1))}


@pytest.mark.parametrize('content', [b'NaCl Zz2', b'NaCl {"id":', b'NaCl \xff\xff'])
def test_what_is_no_list_of_formulas_is_named(tmp_path, content):
    path = tmp_path / 'formulas.txt'
    path.write_bytes(content)
    with pytest.raises(PairFileError, match=r'formulas\.txt: not a list of formulas'):
        read_compositions(path)
