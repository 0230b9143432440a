"""Atoms of CIF files that are there several times because coordinates were rounded."""

import numpy as np
import pytest
from ase.build import bulk
from ase.spacegroup import crystal

from ase_deeprelax.data.cif_sites import merge_rounded
from ase_deeprelax.data.structure_files import StructureFile, read_structures
from ase_deeprelax.errors import StructureError

WURTZITE = """data_AlN
_cell_length_a 3.11
_cell_length_b 3.11
_cell_length_c 4.98
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 120
_symmetry_space_group_name_H-M 'P 63 m c'
loop_
_atom_site_label
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Al1 {x} {y} 0.0
N1 {x} {y} 0.381
"""


@pytest.mark.parametrize(
    ('x', 'y'), [(0.3333, 0.6667), (0.333, 0.667), (0.333, 0.666), (0.33, 0.67)]
)
@pytest.mark.parametrize('occupied', [False, True])
def test_rounded_sites_are_one_atom(tmp_path, x, y, occupied):
    text = WURTZITE.format(x=x, y=y)
    if occupied:
        text = text.replace('fract_z\n', 'fract_z\n_atom_site_occupancy\n')
        text = text.replace(' 0.0\n', ' 0.0 1.0\n').replace('381', '381 1.0')
    (tmp_path / 'AlN.cif').write_text(text)
    [atoms] = read_structures(StructureFile(tmp_path / 'AlN.cif'))
    assert str(atoms.symbols) == 'Al2N2'
    ideal = np.array([[1 / 3, 2 / 3], [2 / 3, 1 / 3]] * 2)
    places = atoms.get_scaled_positions()[:, :2]
    off = np.abs(places[np.lexsort(places.T)] - ideal[np.lexsort(ideal.T)]).max()
    # A coordinate of an image is the difference of two that were rounded.
    assert off < 2.1 * max(abs(x - 1 / 3), abs(y - 2 / 3))


def test_other_structures_are_given_back_as_they_are():
    salt = bulk('NaCl', 'rocksalt', a=5.6)
    assert merge_rounded(salt) is salt
    spinel = crystal(
        'O', [(0.38, 0.38, 0.38)], spacegroup=227, cellpar=[8.1] * 3 + [90] * 3
    )
    assert merge_rounded(spinel) is spinel


def test_split_sites_of_different_lines_stay():
    """Two lines of a file on one place are a fault, or disorder; that is said elsewhere."""
    atoms = crystal(['Fe', 'Co'], [(0, 0, 0), (0.01, 0, 0)], cellpar=[4, 4, 4, 90, 90, 90])
    assert len(merge_rounded(atoms)) == 2


def test_what_is_no_element_is_named(tmp_path):
    (tmp_path / 'w.cif').write_text(WURTZITE.format(x=0, y=0).replace('Al1', 'Wat'))
    with pytest.raises(StructureError, match="'Wa' is no element"):
        read_structures(StructureFile(tmp_path / 'w.cif'))
