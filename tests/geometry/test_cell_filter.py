"""FreeCellFilter: what of the cell relaxes in a refinement, and nothing else."""

import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixCartesian, FixSymmetry, Hookean
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from ase_deeprelax.errors import StructureError
from ase_deeprelax.geometry.cell_filter import FreeCellFilter, free_cell
from ase_deeprelax.optimize.elastic_bfgs import ElasticBFGS
from tests.layers import real_layers, rewrite

MASKS = {
    'in-plane': 'in-plane',
    'hydrostatic': 'hydrostatic',
    'shear': [1, 0, 1, 0, 1, 0],
    'one': [0, 0, 1, 0, 0, 0],
    'no shear': [1, 1, 1, 0, 0, 0],
}


def alloy():
    atoms = bulk('Cu', cubic=True, a=3.7)
    atoms.symbols[0] = 'Au'
    atoms.rattle(0.1, seed=2)
    atoms.calc = EMT()
    return atoms


def film(vacuum=15.0, a=3.75, **how):
    """A strained film of CuAu, written down in some way, see `rewrite`."""
    atoms = fcc111('Cu', (1, 2, 3), a=a, vacuum=vacuum / 2)
    atoms.symbols[0] = 'Au'
    atoms.rattle(0.05, seed=1)
    if how:
        atoms = rewrite(
            atoms, np.random.default_rng(how.pop('seed', 0)), vacuum=vacuum, **how
        )
    else:
        atoms.pbc = True
    atoms.calc = EMT()
    return atoms


def is_the_gradient(target, atoms):
    """Whether forces are the derivatives of the energy, at some place off the start."""
    rng = np.random.default_rng(0)
    scale = np.ones((len(target), 1))
    scale[-3:] = 0.3 * len(atoms)
    target.set_positions(
        target.get_positions() + scale * rng.normal(0, 0.03, (len(target), 3))
    )
    place = target.get_positions()
    forces, numerical = target.get_forces(), np.zeros_like(place)
    for index in np.ndindex(place.shape):
        energies = []
        for step in (1e-4, -1e-4):
            moved = place.copy()
            moved[index] += step
            target.set_positions(moved)
            energies.append(target.get_potential_energy())
        numerical[index] = (energies[1] - energies[0]) / 2e-4
    target.set_positions(place)
    np.testing.assert_allclose(target.get_positions(), place, atol=1e-9)
    np.testing.assert_allclose(forces, numerical, atol=1e-5)
    return np.abs(forces[-3:]).max() > 1e-2


@pytest.mark.parametrize('relax_cell', MASKS.values(), ids=MASKS)
def test_forces_are_derivatives_of_the_energy_of_a_crystal(relax_cell):
    atoms = alloy()
    target = free_cell(atoms, relax_cell)
    assert isinstance(target, FreeCellFilter)
    assert is_the_gradient(target, atoms)


@pytest.mark.parametrize('relax_cell', [True, 'hydrostatic'])
@pytest.mark.parametrize(
    'how',
    [{}, {'tilt': True, 'across': True}, {'tilt': True, 'pbc': False}],
)
def test_forces_are_derivatives_of_the_energy_of_a_layer(relax_cell, how):
    atoms = film(**how)
    assert is_the_gradient(free_cell(atoms, relax_cell), atoms)


def test_held_cells_and_whole_cells_need_no_filter_of_our_own():
    atoms = alloy()
    assert free_cell(atoms, False) is atoms
    assert type(free_cell(atoms)) is FrechetCellFilter
    assert type(free_cell(atoms, [1, 1, 1, 1, 1, 1])) is FrechetCellFilter
    slab = film()
    slab.set_constraint(FixAtoms([0]))
    assert free_cell(slab, None) is slab
    assert isinstance(free_cell(slab, True), FreeCellFilter)
    with pytest.raises(StructureError, match='molecule'):
        free_cell(molecule('H2O'))


@pytest.mark.parametrize('relax_cell', MASKS.values(), ids=MASKS)
def test_frozen_strains_stay_zero(relax_cell):
    atoms = alloy()
    start = atoms.cell.array.copy()
    optimizer = ElasticBFGS(free_cell(atoms, relax_cell), logfile=None)
    assert optimizer.run(fmax=0.01, steps=100)
    change = atoms.cell.array - start  # of a cube along the axes
    assert np.abs(change).max() > 1e-3
    if isinstance(relax_cell, list):
        xx, yy, zz, yz, xz, xy = relax_cell
        free = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]], dtype=bool)
        assert not change[~free].any()  # to the last bit
    elif relax_cell == 'in-plane':
        assert not change[2].any()
        assert not change[:, 2].any()
    else:
        np.testing.assert_allclose(change, change[0, 0] * np.eye(3), atol=1e-12)


@pytest.mark.parametrize('name', ['Cu(111)', 'Pt(111) + O', 'MoS2'])
@pytest.mark.parametrize('pbc', [True, False])
def test_the_vacuum_vector_stays_to_the_last_bit(name, pbc):
    """However the layer is written, and whatever the filter is told."""
    rng = np.random.default_rng(3)
    for across in (False, True):
        atoms = rewrite(real_layers()[name], rng, vacuum=18.0, across=across, pbc=pbc)
        target = free_cell(atoms)
        k = int(np.flatnonzero(np.abs(target.layer.basis[2]))[0])
        vacuum = atoms.cell.array[k].copy()
        for _ in range(3):
            rows = target.get_positions()
            target.set_positions(rows + rng.normal(0, 0.05 * len(atoms), rows.shape))
            assert np.array_equal(atoms.cell.array[k], vacuum)
        assert target.get_positions()[-3:].any()


def test_the_volume_of_a_layer_is_that_of_its_atoms():
    """Stiffness does not grow with the vacuum."""
    low, high = (free_cell(film(vacuum)).volume for vacuum in (10.0, 40.0))
    assert low == pytest.approx(high)
    bulk_volume = 3.75**3 / 4
    assert low == pytest.approx(6 * bulk_volume, rel=0.5)


def test_the_shape_of_a_layer_stays_where_only_its_area_is_free():
    rng = np.random.default_rng(0)
    for how in ({}, {'tilt': True, 'across': True}):
        atoms = film(**how)
        target = free_cell(atoms, 'hydrostatic')
        plane = (target.layer.basis @ atoms.cell.array)[:2]
        rows = target.get_positions()
        target.set_positions(rows + rng.normal(0, 0.05 * len(atoms), rows.shape))
        after = (target.layer.basis @ atoms.cell.array)[:2]
        ratio = np.linalg.norm(after[0]) / np.linalg.norm(plane[0])
        assert abs(ratio - 1) > 1e-3
        np.testing.assert_allclose(after, ratio * plane, atol=1e-9)


def test_the_way_a_layer_is_written_does_not_matter():
    """Steps and energy are those of the layer in an upright box."""
    found = []
    for how in ({}, {'seed': 1, 'tilt': True}, {'seed': 2, 'tilt': True, 'across': True}):
        atoms = film(**how)
        optimizer = ElasticBFGS(free_cell(atoms), logfile=None)
        assert optimizer.run(fmax=0.005, steps=60)
        found.append((optimizer.nsteps, atoms.get_potential_energy()))
    steps, energies = zip(*found, strict=True)
    assert len(set(steps)) == 1
    np.testing.assert_allclose(energies, energies[0], atol=1e-8)


def test_fixed_atoms_follow_the_cell_and_do_nothing_else():
    atoms = film(tilt=True, across=True)
    fixed = [1, 4]
    atoms.set_constraint([FixAtoms(fixed), FixCartesian([0], mask=(True, False, False))])
    target = free_cell(atoms, True)
    start = target.get_positions()
    assert ElasticBFGS(target, logfile=None).run(fmax=0.02, steps=100)
    end = target.get_positions()
    np.testing.assert_allclose(end[fixed], start[fixed], atol=1e-9)
    assert np.abs(end - start)[:-3].max() > 0.01
    assert np.abs(end - start)[-3:].max() > 0.01
    crystal = alloy()
    crystal.set_constraint(FixAtoms([2]))
    before = crystal.get_scaled_positions(wrap=False)
    BFGS(free_cell(crystal, 'in-plane'), logfile=None).run(fmax=0.02, steps=100)
    after = crystal.get_scaled_positions(wrap=False)
    np.testing.assert_allclose(after[2], before[2], atol=1e-12)


def test_constraints_that_a_prediction_cannot_honour_are_left_to_the_atoms():
    atoms = alloy()
    atoms.set_constraint(Hookean(0, 1, k=5.0, rt=2.3))
    assert type(free_cell(atoms)) is FrechetCellFilter
    target = free_cell(atoms, 'hydrostatic')
    ElasticBFGS(target, logfile=None).run(fmax=0.05, steps=50)
    assert len(atoms.constraints) == 1
    pulled = atoms.get_distance(0, 1, mic=True)
    atoms.set_constraint()
    ElasticBFGS(free_cell(atoms, 'hydrostatic'), logfile=None).run(fmax=0.05, steps=50)
    assert atoms.get_distance(0, 1, mic=True) > pulled


def test_a_constraint_of_ones_own_is_left_to_the_atoms():
    class Own(FixAtoms):
        pass

    atoms = alloy()
    atoms.set_constraint(Own([0]))
    assert type(free_cell(atoms)) is FrechetCellFilter
    assert type(atoms.constraints[0]) is Own


def test_symmetry_and_a_plane_together():
    atoms = bulk('Cu', cubic=True, a=3.8)
    atoms.set_constraint(FixSymmetry(atoms))
    atoms.calc = EMT()
    assert ElasticBFGS(free_cell(atoms, 'in-plane'), logfile=None).run(fmax=0.01, steps=60)
    # Cubic, and c held: nothing is left that could change.
    np.testing.assert_allclose(atoms.cell.array, 3.8 * np.eye(3), atol=1e-9)
