"""What is refused: every message says what, where and what to do; nothing else is."""

import itertools
from contextlib import nullcontext

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule, mx2, niggli_reduce
from ase.spacegroup import crystal
from hypothesis import given
from hypothesis import strategies as st

from ase_deeprelax.errors import (
    StructureError,
    UnsupportedElementError,
)
from ase_deeprelax.geometry.symmetry import find_symmetry
from ase_deeprelax.geometry.vacuum import find_layer
from ase_deeprelax.predict import structure_checks
from ase_deeprelax.predict.prediction_checks import check_prediction
from ase_deeprelax.predict.structure_checks import (
    check_contents,
    check_structure,
    outside_ranges,
)
from tests.strategies import crystals, orthogonal, prototypes, quick


def perovskite():
    return prototypes()['SrTiO3']


def with_cell(cell):
    return Atoms('NaCl', positions=[[0, 0, 0], [2.8, 0, 0]], cell=cell, pbc=True)


# -- what is fine ----------------------------------------------------------------------


@quick
@given(crystals())
def test_crystals_in_any_disguise_are_fine(atoms):
    before = atoms.copy()
    check_structure(atoms)
    assert atoms.positions.tobytes() == before.positions.tobytes()
    assert atoms.cell.array.tobytes() == before.cell.array.tobytes()


@pytest.mark.parametrize('name', prototypes())
def test_real_crystals_are_within_the_training_range(name):
    assert check_structure(prototypes()[name]) == ''


def test_one_atom_left_hand_and_far_images_are_fine():
    atoms = bulk('Cu')
    atoms.set_cell(-atoms.cell.array)
    atoms.positions += 1e6
    assert check_structure(atoms) == ''


def test_celldisp_and_foreign_info_are_fine():
    atoms = perovskite()
    atoms.set_celldisp([50.0, -1e4, 3.0])
    atoms.info.update(occupancy='full', spacegroup=[1], data={'x': None})
    assert check_structure(atoms) == ''


def test_full_occupancies_of_a_cif_are_fine():
    atoms = bulk('NaCl', 'rocksalt', a=5.6)
    atoms.info['occupancy'] = {'0': {'Na': 1.0}, '1': {'Cl': 1}}
    assert check_structure(atoms) == ''


# -- items of the list of bad input, one by one -----------------------------------------


def test_no_atoms():
    with pytest.raises(StructureError, match='0 atoms'):
        check_structure(Atoms(cell=np.eye(3) * 4, pbc=True))


@quick
@given(
    crystals(min_atoms=2, max_atoms=20),
    st.sampled_from([np.nan, np.inf, -np.inf]),
    st.integers(0, 2),
    st.data(),
)
def test_positions_that_are_not_finite_are_named(atoms, value, axis, data):
    index = data.draw(st.integers(0, len(atoms) - 1))
    atoms.positions[index, axis] = value
    symbol = atoms.get_chemical_symbols()[index]
    text = rf'atom {index} \({symbol}\): position {"xyz"[axis]} is {value}'
    with pytest.raises(StructureError, match=text):
        check_structure(atoms)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_a_cell_that_is_not_finite_is_named(value):
    atoms = perovskite()
    atoms.cell[1, 2] = value
    with pytest.raises(StructureError, match=f'cell vector b: component z is {value}'):
        check_structure(atoms)


def test_coordinates_beyond_double_precision():
    atoms = perovskite()
    atoms.positions[3, 1] = -1e12
    with pytest.raises(StructureError, match=r'atom 3 \(O\): position y is -1e\+12'):
        check_structure(atoms)


@pytest.mark.parametrize(
    ('cell', 'text'),
    [
        (np.zeros((3, 3)), 'cell vector a is zero, cell volume 0; set a cell'),
        (np.diag([5, 0, 5]), 'cell vector b is zero'),
        ([[5, 0, 0], [0, 5, 0], [5, 5, 0]], 'cell volume 0.*one plane'),
        ([[5, 0, 0], [0, 5, 0], [5, 5, 0.05]], r'0\.625 A\^3 per atom.*unit'),
        (np.eye(3) * 0.5, r'0\.0625 A\^3 per atom'),
    ],
)
def test_cells_without_room(cell, text):
    with pytest.raises(StructureError, match=text):
        check_structure(with_cell(cell))


def test_slabs_wires_and_molecules():
    slab = fcc111('Al', (1, 1, 3), vacuum=5.0)
    assert check_structure(slab) == ''
    slab.pbc = True
    assert check_structure(slab) == ''
    slab.cell[2] = 0
    slab.pbc = True, True, False
    with pytest.raises(StructureError, match=r'vector c is zero.*vacuum=10, axis=2'):
        check_structure(slab)
    wire = fcc111('Al', (1, 1, 3), vacuum=5.0)
    wire.pbc = True, False, False
    with pytest.raises(StructureError, match='a wire'):
        check_structure(wire)
    with pytest.raises(StructureError, match='crystals and layers'):
        check_structure(molecule('H2O'))
    with pytest.raises(StructureError, match='a molecule or cluster in a box'):
        check_structure(molecule('H2O', vacuum=8.0, pbc=True))


@pytest.mark.parametrize('height', [0.0, 0.3, 30.0])
def test_the_box_of_an_open_layer_brings_no_atoms_together(height):
    slab = fcc111('Cu', (1, 1, 4), vacuum=0)  # The lowest plane is right below the top one.
    slab.cell[2, 2] = np.ptp(slab.positions[:, 2]) + height
    assert check_structure(slab) == ''
    check_prediction(slab, slab, layer=find_layer(slab))
    slab.pbc = True
    if height < 1:
        with pytest.raises(StructureError, match=r'atom 0 \(Cu\) and atom 3 \(Cu\)'):
            check_structure(slab)


@quick
@given(crystals(min_atoms=2, max_atoms=15), st.data())
def test_two_atoms_on_one_site_are_both_named(atoms, data):
    a, b = sorted(data.draw(st.permutations(range(len(atoms))))[:2])
    image = np.array(data.draw(st.tuples(*3 * [st.integers(-5, 5)])))
    atoms.positions[b] = atoms.positions[a] + image @ atoms.cell.array
    with pytest.raises(StructureError, match=rf'atom {a} \(.*atom {b} \(.*one site'):
        check_structure(atoms)


@quick
@given(crystals(min_atoms=2, max_atoms=10), st.floats(0.01, 0.95), st.data())
def test_the_smallest_distance_decides(atoms, distance, data):
    a, b = data.draw(st.permutations(range(len(atoms))))[:2]
    direction = orthogonal(data.draw(st.integers(0, 1000)))[0]
    atoms.positions[b] = atoms.positions[a] + distance * direction
    closest = smallest_distance(atoms)
    if abs(closest - 0.5) < 1e-6:
        return
    if closest < 0.5:
        for check in (check_structure, lambda atoms: check_contents(atoms, None)):
            with pytest.raises(StructureError, match=rf'{closest:.3f} A .*less than 0\.5'):
                check(atoms)
    else:
        check_structure(atoms)
    check_structure(atoms, min_distance=closest - 1e-6)
    check_structure(atoms, min_distance=0)


def test_atoms_just_as_far_apart_as_the_limit_are_fine_in_all_orientations():
    hydrogen = Atoms('H2', [[0, 0, 0], [0, 0, 0.5]], cell=3 * np.eye(3), pbc=True)
    for seed in range(20):
        rotation = orthogonal(seed)
        atoms = hydrogen.copy()
        atoms.set_cell(hydrogen.cell.array @ rotation)
        atoms.positions = hydrogen.positions @ rotation
        check_structure(atoms)


def smallest_distance(atoms):
    images = np.array(list(itertools.product(range(-2, 3), repeat=3)))
    reduced = atoms.copy()
    niggli_reduce(reduced)
    cell = reduced.cell.array
    delta = reduced.positions[:, None] - reduced.positions
    lengths = np.linalg.norm(delta[..., None, :] + images @ cell, axis=-1)
    return lengths[lengths > 1e-9].min()


def test_an_atom_on_its_own_image():
    atoms = Atoms('Cu', cell=[0.4, 6, 6], pbc=True)
    with pytest.raises(
        StructureError, match=r'atom 0 \(Cu\) and its own periodic image are 0\.400 A'
    ):
        check_structure(atoms)


def test_dummy_atoms():
    atoms = Atoms('CuX', positions=[[0, 0, 0], [2, 2, 2]], cell=[4, 4, 4], pbc=True)
    with pytest.raises(UnsupportedElementError, match=r'atom 1 .* 0 \(X\).*remove'):
        check_structure(atoms)
    atoms.numbers[1] = 130
    with pytest.raises(UnsupportedElementError, match=r'atom 1 .* 130'):
        check_structure(atoms)


@pytest.mark.parametrize(('number', 'known'), [(1, True), (118, True), (119, False)])
def test_the_first_and_the_last_element_are_elements(number, known):
    atoms = Atoms([number], cell=[4, 4, 4], pbc=True)
    refused = pytest.raises(UnsupportedElementError, match='no element')
    with nullcontext() if known else refused:
        check_structure(atoms)


def test_elements_that_training_has_not_seen_are_listed():
    atoms = perovskite()
    assert check_structure(atoms, elements=[8, 22, 38]) == ''
    with pytest.raises(UnsupportedElementError, match=r'Ti, Sr \(first: atom 1\)'):
        check_structure(atoms, elements={8, 26})


def test_partial_occupancy():
    mixed = crystal(
        ['Na', 'Cl'],
        [(0, 0, 0), (0.5, 0.5, 0.5)],
        spacegroup=225,
        cellpar=[5.6] * 3 + [90] * 3,
        occupancies=[0.7, 1.0],
    )
    with pytest.raises(StructureError, match=r'partially occupied \(Na 0\.7'):
        check_structure(mixed)
    mixed.info['occupancy'] = {'0': {'Na': 0.5, 'K': 0.5}}
    with pytest.raises(StructureError, match=r'Na 0\.5, K 0\.5'):
        check_structure(mixed)


def test_more_than_fits_into_memory(monkeypatch):
    atoms = bulk('Cu', cubic=True) * (11, 11, 11)
    check_structure(atoms)
    sizes = {'SC_PHYS_PAGES': 500_000, 'SC_PAGE_SIZE': 4096}  # a machine of 2 GB
    monkeypatch.setattr(structure_checks.os, 'sysconf', sizes.__getitem__)
    with pytest.raises(StructureError, match=r'5324 atoms need about \d GB, this .* 2 GB'):
        check_structure(atoms)
    check_structure(bulk('Cu', cubic=True) * (5, 5, 5))
    monkeypatch.delattr(structure_checks.os, 'sysconf')  # as on Windows
    check_structure(atoms)


def test_what_lies_outside_the_training_range_is_said():
    assert 'volume 37.31 times' in check_structure(bulk('Cu', a=12.0))
    assert 'volume 0.23 times' in check_structure(bulk('Cu', a=2.2))
    assert check_structure(bulk('C', 'diamond', a=3.57)) == ''  # 5.7 A^3 per atom
    assert check_structure(bulk('Cs', 'bcc', a=6.2)) == ''  # 119 A^3 per atom
    large = bulk('Cu', cubic=True) * (3, 3, 3)
    assert check_structure(large) == ''  # The crystal has one atom in its primitive cell.
    large.positions[0] += 0.1
    assert check_structure(large) == '108 atoms, in training 1 to 64'
    assert check_structure(large, ranges={'n_atoms': [1, 200]}) == ''
    ranges = {'n_atoms': [1, 20], 'volume_ratio': [1.5, 2]}
    assert check_structure(large, ranges=ranges).count(';') == 1


@pytest.mark.parametrize('vacuum', [5.2, 6.4, 6.9])
def test_little_vacuum_in_a_periodic_box_is_pointed_at(vacuum):
    slab = fcc111('Cu', (1, 1, 4), vacuum=vacuum / 2, periodic=True)
    assert find_layer(slab) is None
    assert f'a gap of {vacuum} A between planes' in outside_ranges(slab, None)
    slab.pbc = True, True, False
    assert 'gap' not in outside_ranges(slab, find_layer(slab))


@pytest.mark.parametrize('pbc', [True, False])
@pytest.mark.parametrize('known', [True, False])
def test_a_supercell_counts_as_what_it_repeats(pbc, known):
    sheet = mx2('MoS2', vacuum=10) * (5, 5, 1)
    # A crystal in this box would repeat one plane.
    slab = fcc111('Cu', (5, 5, 3), vacuum=0)
    slab.cell[2] = [0.0, 0.0, 1.5 * slab.positions[-1, 2]]
    for atoms, size in ((sheet, 3), (slab, 3)):
        atoms.pbc = True, True, pbc and atoms is sheet
        layer = find_layer(atoms)
        symmetry = find_symmetry(atoms, layer=layer) if known else None
        few = {'n_atoms': (1, size)}
        assert outside_ranges(atoms, layer, few, symmetry) == ''
        fewer = {'n_atoms': (1, size - 1)}
        said = outside_ranges(atoms, layer, fewer, symmetry)
        assert said == f'{size} atoms, in training 1 to {size - 1}'
