import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule, mx2
from ase.constraints import FixAtoms
from ase.neighborlist import build_neighbor_list

from ase_deeprelax.report.relaxations import notes
from ase_deeprelax.report.viewer_data import scene


def pair(seed=0, n=7):
    """Atoms in any images, before and after they and their cell moved."""
    rng = np.random.default_rng(seed)
    cell = 5 * np.eye(3) + rng.uniform(-1, 1, (3, 3))
    frac = rng.uniform(-2, 3, (n, 3))
    before = Atoms(f'O{n}', scaled_positions=frac, cell=cell, pbc=True)
    after = before.copy()
    after.positions += rng.uniform(-0.2, 0.2, (n, 3))
    after.set_cell(cell @ (np.eye(3) + rng.uniform(-0.1, 0.1, (3, 3))), scale_atoms=True)
    return before, after


def drawn(picture, *, after):
    """Where the formula of the docstring puts the sites."""
    cell, S = (np.array(picture[key]) for key in ('cell', 'deformation'))
    sites = np.array(picture['sites'])
    places = np.array(picture['positions'])[sites[:, 0]] + sites[:, 1:] @ cell
    if not after:
        return places
    return (places + np.array(picture['move'])[sites[:, 0]]) @ S


@pytest.mark.parametrize('seed', range(4))
def test_sites_are_the_atoms_before_and_after_up_to_lattice_translations(seed):
    before, after = pair(seed)
    picture = scene('x', before, after)
    atoms = [site[0] for site in picture['sites']]
    assert set(atoms) == set(range(7))
    for structure, places in (
        (before, drawn(picture, after=False)),
        (after, drawn(picture, after=True)),
    ):
        turns = np.linalg.solve(
            structure.cell.array.T, (places - structure.positions[atoms]).T
        )
        np.testing.assert_allclose(turns, turns.round(), atol=1e-5)
    inside = np.linalg.solve(before.cell.array.T, drawn(picture, after=False).T)
    heights = 1 / np.linalg.norm(np.linalg.inv(before.cell.array), axis=0)
    outside = np.maximum(-inside, inside - 1) * heights[:, None]
    assert outside.max() < 0.3  # A


def test_atoms_on_the_boundary_are_drawn_on_all_of_it():
    picture = scene('NaCl', *2 * [bulk('NaCl', 'rocksalt', a=5.6, cubic=True)])
    # 14 of the faces and corners, 13 of the edges and the centre
    assert len(picture['sites']) == 27
    ends = drawn(picture, after=False)[np.array(picture['bonds'])]
    lengths = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1)
    np.testing.assert_allclose(lengths, 2.8, atol=1e-4)
    assert len(lengths) == 54


def test_a_displaced_crystal_is_drawn_whole():
    atoms = bulk('NaCl', 'rocksalt', a=5.6, cubic=True)
    atoms.rattle(0.08, seed=1)
    assert len(scene('NaCl', atoms, atoms)['sites']) == 27


def test_bonds_of_a_perovskite_join_metals_to_oxygen_only():
    sites = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
    atoms = Atoms('SrTiO3', scaled_positions=sites, cell=3 * [3.9], pbc=True)
    atoms.rattle(0.02, seed=0)
    picture = scene('SrTiO3', atoms, atoms)
    ends = np.array(picture['sites'])[np.array(picture['bonds'])][:, :, 0]
    symbols = {tuple(sorted(atoms.symbols[pair])) for pair in ends}
    assert symbols == {('O', 'Ti'), ('O', 'Sr')}


@pytest.mark.parametrize('name', ['CH3CH2OH', 'C6H6', 'H2O2', 'CH3NO2'])
def test_molecules_have_all_their_bonds(name):
    """Bonds with hydrogen are the first shell of most atoms, and the shortest by far."""
    atoms = molecule(name, vacuum=5)
    connected = build_neighbor_list(atoms, self_interaction=False, bothways=False)
    bonds = scene(name, atoms, atoms)['bonds']
    assert len(bonds) == connected.get_connectivity_matrix().nnz
    assert len(bonds) >= len(atoms) - 1


def test_numbers_without_a_value_are_none():
    before, after = pair(n=2)
    assert scene('x', before, after, [np.nan, 0.1])['sigma'] == [None, 0.1]
    assert scene('x', before, after, [np.nan, np.nan])['sigma'] is None
    assert scene('x', before, after)['sigma'] is None


def test_the_length_of_a_move_is_that_at_the_cell_before():
    before, _ = pair()
    after = before.copy()
    after.positions[3] += (0.3, 0, 0.4)
    after.set_cell(1.1 * before.cell.array, scale_atoms=True)
    picture = scene('x', before, after)
    np.testing.assert_allclose(picture['distance'], [0, 0, 0, 0.5, 0, 0, 0], atol=1e-6)


@pytest.mark.parametrize('axis', [0, 1, 2])
@pytest.mark.parametrize('lift', [0, 8])
def test_a_layer_is_drawn_in_one_piece_without_its_vacuum(axis, lift):
    before = mx2(a=3.18, thickness=3.13, size=(2, 1, 1), vacuum=8)
    before.rattle(0.05, seed=0)
    before.positions[:, 2] = (before.positions[:, 2] + lift) % before.cell[2, 2]
    before.set_cell(np.roll(before.cell.array, axis - 2, axis=0))
    before.pbc = np.arange(3) != axis
    after = before.copy()
    after.set_cell(before.cell.array * [1.05, 1.02, 1], scale_atoms=True)
    picture = scene('MoS2', before, after)
    assert picture['periodic'] == before.pbc.tolist()
    for done in (False, True):
        heights = drawn(picture, after=done)[:, 2]
        assert np.ptp(heights) < 3.6
        assert abs(heights.max() + heights.min() - picture_height(picture, axis)) < 0.02
    # Nothing has moved beside what the cell did.
    assert max(picture['distance']) < 1e-5
    assert all(site[1 + axis] == 0 for site in picture['sites'])
    bonds = drawn(picture, after=False)[np.array(picture['bonds'])]
    lengths = np.linalg.norm(bonds[:, 1] - bonds[:, 0], axis=1)
    assert len(lengths) >= 6  # each of the two Mo to S above and below, in the cell
    assert 2.2 < lengths.min() <= lengths.max() < 2.7


def picture_height(picture, axis):
    return picture['cell'][axis][2]


def test_a_wide_gap_is_a_vacuum_for_the_viewer_as_for_the_models():
    before = mx2(a=3.18, thickness=3.13, vacuum=12)
    before.pbc = True
    assert scene('MoS2', before, before)['periodic'] == [True, True, False]


@pytest.mark.parametrize('pbc', [False, (True, False, False)])
def test_wires_and_molecules_are_drawn_in_one_piece_in_the_middle(pbc):
    before = molecule('C2H6', cell=[9, 8, 7], pbc=pbc)  # around a corner of its cell
    after = before.copy()
    after.rattle(0.05, seed=0)
    picture = scene('ethane', before, after)
    assert picture['periodic'] == before.pbc.tolist()
    atoms = [atom for atom, *_ in picture['sites']]
    lift = (before.cell.lengths() / 2 - before.positions.mean(axis=0))[~before.pbc]
    for structure, places in (
        (before, drawn(picture, after=False)),
        (after, drawn(picture, after=True)),
    ):
        moved = (places - structure.positions[atoms])[:, ~before.pbc]
        np.testing.assert_allclose(moved, np.tile(lift, (len(atoms), 1)), atol=1e-5)
    hydrogens = [before.numbers[atoms[k]] for bond in picture['bonds'] for k in bond].count(
        1
    )
    assert hydrogens >= 6
    [first, _] = picture['files']
    np.testing.assert_allclose(first['positions'], before.positions, atol=1e-5)
    facts = notes(before, after, 0.1)
    assert 'volume / Å³' not in facts
    assert ('a / Å' in facts) == before.pbc[0]


def test_fixed_atoms_are_marked():
    before = bulk('NaCl', 'rocksalt', a=5.6)
    assert scene('NaCl', before, before)['fixed'] is None
    before.set_constraint(FixAtoms([1]))
    assert scene('NaCl', before, before)['fixed'] == [False, True]
