"""Partial occupancy, in all forms in which it comes."""

import io
import json

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import read, write

from ase_deeprelax.data.disorder import check_ordered
from ase_deeprelax.errors import StructureError
from ase_deeprelax.optimize.optimizer import DeepRelaxOptimizer
from ase_deeprelax.optimize.refinable import check_refinable
from ase_deeprelax.predict import relax

CIF = """data_a
_cell_length_a 5.7
_cell_length_b 5.7
_cell_length_c 5.7
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_space_group_name_H-M_alt 'F m -3 m'
_space_group_IT_number 225
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Na1 Na 0 0 0 {}
{}Cl1 Cl 0.5 0.5 0.5 {}
"""


def from_cif(first, second=1, other=''):
    return read(io.BytesIO(CIF.format(first, other, second).encode()), format='cif')


def salt(**info):
    atoms = bulk('NaCl', 'rocksalt', a=5.6)
    atoms.info.update(info)
    return atoms


@pytest.mark.parametrize('share', ['?', '.', '1', '1.0', '1.000(2)', '0.9998', '1.'])
def test_whole_and_unknown_occupancies_of_a_file_are_ordered(share):
    check_ordered(from_cif(share, share))


@pytest.mark.parametrize('share', ['0.5', '0.98', '0.5(1)', '.5', '0'])
def test_partial_occupancies_of_a_file_are_refused(share):
    with pytest.raises(StructureError, match='site kind 0 is partially occupied'):
        check_ordered(from_cif(share))


def test_two_elements_on_one_site_are_refused():
    for shares in ((0.5, 0.5), ('?', '?'), (0.9, 0.1)):
        other = f'K1 K 0 0 0 {shares[1]}\n'
        with pytest.raises(StructureError, match=r'partially occupied \(Na .*, K '):
            check_ordered(from_cif(shares[0], other=other))


ORDERED = [
    {'0': {'Na': 1.0}, '1': {'Cl': 1}},
    {0: {'Na': None}, 1: {'Cl': np.float64(1)}},
    {'0': {'Na': 1.0, 'K': 0.0}},
    {'0': {'Na': float('nan')}},
    {'0': 1.0, 1: '?'},
    [1.0, 1.0],
    np.ones(2),
    [{'Na': 1}, {'Cl': 1}],
    '_JSON {"0": {"Na": 1.0}}',
    'full',
    {},
    1.0,
]
DISORDERED = [
    {'0': {'Na': 0.5}},
    {0: {'Na': 0.5, 'K': 0.5}},
    {'0': {'Na': '0.25(1)'}},
    {'0': 0.5},
    {'0': {}},
    [1.0, 0.5],
    np.array([0.2, 1.0]),
    [{'Na': 0.5, 'K': 0.5}, {'Cl': 1}],
    '_JSON {"0": {"Na": 0.5}}',
    '{"0": {"Na": 0.5}}',
    0.5,
    '0.5',
]


@pytest.mark.parametrize('occupancy', ORDERED, ids=str)
def test_forms_of_full_occupancy(occupancy):
    check_ordered(salt(occupancy=occupancy))


@pytest.mark.parametrize('occupancy', DISORDERED, ids=str)
def test_forms_of_partial_occupancy(occupancy):
    with pytest.raises(StructureError, match='partially occupied'):
        check_ordered(salt(occupancy=occupancy))


@pytest.mark.parametrize('name', ['occupancies', 'Occupancy', 'site_occupancy'])
def test_occupancies_per_atom_in_arrays(name):
    atoms = salt()
    atoms.set_array(name, np.array([1.0, 0.5]))
    with pytest.raises(StructureError, match=r'atom 1 \(Cl\) is partially occupied'):
        check_ordered(atoms)


def test_a_site_is_occupied_once():
    with pytest.raises(StructureError, match='site kind 0 is more than once occupied'):
        check_ordered(salt(occupancy={'0': {'Na': 1.5}}))


def test_an_occupancy_that_is_no_number_is_refused_by_name():
    with pytest.raises(StructureError, match="occupancy 'half' is no number"):
        check_ordered(salt(occupancy={'0': {'Na': 'half'}}))


def test_kinds_of_which_no_atom_is_left_do_not_matter():
    atoms = from_cif(0.5)
    check_ordered(atoms[atoms.arrays['spacegroup_kinds'] == 1])


@pytest.mark.parametrize('suffix', ['traj', 'extxyz'])
def test_files_keep_what_is_refused(tmp_path, suffix):
    write(tmp_path / f'a.{suffix}', from_cif(0.5))
    with pytest.raises(StructureError, match='partially occupied'):
        check_ordered(read(tmp_path / f'a.{suffix}'))


def test_what_is_not_predicted_is_not_refined_either(tiny_model):
    atoms = bulk('Cu', cubic=True)
    atoms.info['occupancy'] = {'0': {'Cu': 0.5, 'Ni': 0.5}}
    before = atoms.positions.tobytes(), json.dumps(atoms.info)
    with pytest.raises(StructureError, match='partially occupied'):
        relax(atoms, model=tiny_model)
    with pytest.raises(StructureError, match='partially occupied'):
        check_refinable(atoms)
    atoms.calc = EMT()
    with pytest.raises(StructureError, match='partially occupied'):
        DeepRelaxOptimizer(atoms, model=tiny_model, logfile=None).run(fmax=0.05)
    assert before == (atoms.positions.tobytes(), json.dumps(atoms.info))
