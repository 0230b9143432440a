"""The prediction as a potential."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.mep import NEB
from ase.optimize import BFGS, FIRE

from ase_deeprelax import relax
from ase_deeprelax.errors import PredictionError, StructureError
from ase_deeprelax.geometry.cell_filter import free_cell
from ase_deeprelax.predict import edg_solver
from ase_deeprelax.predict.edg_calculator import EDGCalculator
from ase_deeprelax.predict.edg_solver import solve_edg
from tests.layers import real_layers, rewrite

TOLERANCES = (0.0, 0.02, 'sigma')


def rocksalt():
    """Rattled, sheared, and in other periodic images than those within the cell."""
    atoms = bulk('MgO', 'rocksalt', a=4.3) * (2, 1, 1)
    atoms.rattle(0.08, seed=1)
    atoms.set_cell(atoms.cell.array @ SHEAR, scale_atoms=True)
    atoms.positions[1] += atoms.cell[0] - 2 * atoms.cell[2]
    return atoms


SHEAR = np.array([[1.02, 0.01, 0.0], [0.0, 0.99, 0.03], [-0.02, 0.0, 1.0]])


@pytest.fixture(scope='module')
def relaxation(tiny_model):
    """A prediction whose bonds are as sure as those of a trained model."""
    result = relax(rocksalt(), model=tiny_model, dtype='float64', symmetry='free')
    return replace(result, sigma_bonds=0.03 * result.sigma_bonds / result.sigma)


def disturbed(relaxation, seed=0, size=0.1):
    atoms = relaxation.atoms.copy()
    atoms.rattle(size, seed=seed)
    atoms.set_cell(atoms.cell.array @ np.linalg.inv(SHEAR), scale_atoms=True)
    return atoms


def potential(relaxation, atoms, **parameters):
    atoms.calc = EDGCalculator(relaxation, **parameters)
    return atoms


def distances(relaxation, atoms):
    """Lengths of the bonds, worked out from what the record says of them."""
    i, j = relaxation.bonds.T
    ends = atoms.positions[j] + relaxation.bond_offsets @ atoms.cell.array
    return np.linalg.norm(ends - atoms.positions[i], axis=1)


def away(atoms, target):
    """Largest distance of an atom from its place in the target, without drift, A."""
    delta = atoms.get_scaled_positions(wrap=False) - target.get_scaled_positions(wrap=False)
    delta -= delta.mean(axis=0)
    return np.linalg.norm(delta @ target.cell.array, axis=1).max()


@pytest.mark.parametrize('tolerance', TOLERANCES)
@pytest.mark.parametrize('size', [0.01, 0.1])
def test_forces_and_stress_are_derivatives_of_the_energy(relaxation, tolerance, size):
    atoms = disturbed(relaxation, size=size)
    potential(relaxation, atoms, tolerance=tolerance, force_constant=0.7, knee=0.05)
    assert np.abs(atoms.get_forces()).max() > 0.05
    forces = calculate_numerical_forces(atoms, eps=1e-5)
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-5)
    stress = calculate_numerical_stress(atoms, eps=1e-6)
    np.testing.assert_allclose(atoms.get_stress(), stress, atol=1e-6)
    assert np.abs(stress).max() > 1e-3
    np.testing.assert_allclose(atoms.get_forces().sum(axis=0), 0, atol=1e-12)


@pytest.mark.parametrize('knee', [edg_solver.HUBER, 0.1])
@pytest.mark.parametrize('tolerance', TOLERANCES)
def test_energy_is_the_objective_of_the_solver(relaxation, tolerance, knee):
    """Eq. 16 written down again, for bonds far out of their bounds and next to them."""
    atoms = potential(relaxation, disturbed(relaxation), tolerance=tolerance, knee=knee)
    width = relaxation.sigma_bonds if tolerance == 'sigma' else tolerance
    excess = np.abs(distances(relaxation, atoms) - distances(relaxation, relaxation.atoms))
    excess = np.maximum(excess - width, 0)
    near = excess < knee
    assert near.any()
    assert not near.all()
    energy = np.where(near, excess**2 / 2, knee * (excess - knee / 2)).sum()
    assert atoms.get_potential_energy() == pytest.approx(energy, rel=1e-10)
    # The solver, from there on, ends where this potential is flat.
    cell = torch.from_numpy(relaxation.atoms.cell.array)
    atoms.set_cell(cell.numpy(), scale_atoms=True)
    start = torch.from_numpy(atoms.positions)
    lengths = torch.from_numpy(distances(relaxation, relaxation.atoms))
    solution = solve_edg(
        start,
        cell[None],
        torch.zeros(len(atoms), dtype=torch.long),
        torch.from_numpy(relaxation.bonds.T[::-1].copy()),
        torch.from_numpy(relaxation.bond_offsets).double(),
        lengths - torch.as_tensor(width),
        lengths + torch.as_tensor(width),
    )
    before = atoms.get_potential_energy()
    atoms.positions += (solution.pos - start).numpy()
    assert atoms.get_potential_energy() < 1e-5 * before


def test_prediction_is_the_minimum(relaxation):
    atoms = potential(relaxation, relaxation.atoms.copy())
    assert atoms.get_potential_energy() == pytest.approx(0, abs=1e-20)
    np.testing.assert_allclose(atoms.get_forces(), 0, atol=1e-12)
    np.testing.assert_allclose(atoms.get_stress(), 0, atol=1e-12)
    for seed in range(5):
        for size in (1e-4, 0.3):
            moved = disturbed(relaxation, seed, size)
            assert potential(relaxation, moved).get_potential_energy() > 0


@pytest.mark.parametrize('optimizer', [BFGS, FIRE])
def test_optimizers_walk_from_the_input_to_the_prediction(relaxation, optimizer):
    atoms = potential(relaxation, relaxation.initial.copy())
    target = relaxation.atoms
    assert away(atoms, target) > 0.01
    assert optimizer(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-4, steps=300)
    assert away(atoms, target) < 1e-4
    # but for a rotation: metric tensors
    found, wanted = (a.cell.array @ a.cell.array.T for a in (atoms, target))
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_constraints_hold_on_the_way(relaxation, tiny_model):
    """At fixed cell, with atoms that stay: to the prediction that knew of them."""
    fixed = rocksalt()
    fixed.set_constraint(FixAtoms([0, 2]))
    known = relax(fixed, model=tiny_model, dtype='float64', symmetry='free')
    atoms = fixed.copy()
    atoms.set_cell(known.atoms.cell, scale_atoms=True, apply_constraint=False)
    before = atoms.positions.copy()
    potential(known, atoms)
    assert BFGS(atoms, logfile=None).run(fmax=1e-4, steps=100)
    np.testing.assert_array_equal(atoms.positions[[0, 2]], before[[0, 2]])
    np.testing.assert_allclose(atoms.positions, known.atoms.positions, atol=1e-4)
    assert np.abs(atoms.positions - before).max() > 0.004  # the network knew of them
    # To one that did not, as near as the constraint lets them.
    atoms = fixed.copy()
    potential(relaxation, atoms)
    energy = atoms.get_potential_energy()
    assert BFGS(atoms, logfile=None).run(fmax=1e-3, steps=100)
    np.testing.assert_array_equal(atoms.positions[[0, 2]], fixed.positions[[0, 2]])
    assert 0 < atoms.get_potential_energy() < energy


@pytest.mark.parametrize('relax_cell', [True, False])
@pytest.mark.parametrize('fixed', [(), (0, 3)])
@pytest.mark.parametrize('name', ['MoS2, two sheets', 'Cu(111)', 'Pt(111) + O'])
def test_layers_and_fixed_atoms_rest_at_the_prediction(tiny_model, name, fixed, relax_cell):
    """However the layer is written: tilted, across the border of its box, in any image."""
    rng = np.random.default_rng(4)
    for across, pbc in ((False, False), (False, True), (True, True)):
        atoms = rewrite(real_layers()[name], rng, vacuum=16.0, across=across, pbc=pbc)
        atoms.rattle(0.05, seed=0)
        atoms.set_constraint(FixAtoms(fixed))
        known = relax(atoms, model=tiny_model, dtype='float64', relax_cell=relax_cell)
        # Bonds are those of the graph, not of images across the vacuum.
        assert distances(known, known.initial).max() < 6.5
        start = potential(known, known.initial.copy())
        assert start.get_potential_energy() > 0
        there = potential(known, known.atoms.copy())
        assert there.get_potential_energy() < 1e-20
        np.testing.assert_allclose(there.get_forces(apply_constraint=False), 0, atol=1e-10)
        np.testing.assert_allclose(there.get_stress(apply_constraint=False), 0, atol=1e-10)
        # From the input through the freedom that the prediction had, to the prediction.
        # What made the layer thicker there are moves of its atoms here.
        target = free_cell(start, relax_cell)
        assert BFGS(target, logfile=None).run(fmax=1e-4, steps=400)
        assert start.get_potential_energy() < 1e-5
        np.testing.assert_allclose(start.cell.array, known.atoms.cell.array, atol=1e-2)


def test_within_sigma_everything_is_as_good_as_the_prediction(relaxation):
    near = relaxation.atoms.copy()
    near.rattle(0.002, seed=0)
    assert potential(relaxation, near).get_potential_energy() > 0
    potential(relaxation, near, tolerance='sigma')
    assert near.get_potential_energy() == 0
    assert not near.get_forces().any()
    assert not near.get_stress().any()
    atoms = potential(relaxation, relaxation.initial.copy(), tolerance='sigma')
    atoms.set_cell(relaxation.atoms.cell, scale_atoms=True)
    assert FIRE(atoms, logfile=None).run(fmax=1e-4, steps=300)
    error = np.abs(distances(relaxation, atoms) - distances(relaxation, relaxation.atoms))
    assert (error < relaxation.sigma_bonds + 1e-3).all()


def test_invariance(relaxation):
    atoms = potential(relaxation, disturbed(relaxation))
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    stress = atoms.get_stress(voigt=False)
    rng = np.random.default_rng(0)
    images = rng.integers(-3, 4, (len(atoms), 3)) @ atoms.cell.array
    moved = atoms.copy()
    moved.positions += images + np.array([0.7, -11.3, 2.9])
    wrapped = moved.copy()
    wrapped.wrap()
    for other in (moved, wrapped):
        potential(relaxation, other)
        assert other.get_potential_energy() == pytest.approx(energy, rel=1e-10)
        np.testing.assert_allclose(other.get_forces(), forces, atol=1e-10)
        np.testing.assert_allclose(other.get_stress(voigt=False), stress, atol=1e-12)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ rotation, scale_atoms=True)
    potential(relaxation, turned)
    assert turned.get_potential_energy() == pytest.approx(energy, rel=1e-10)
    np.testing.assert_allclose(turned.get_forces(), forces @ rotation, atol=1e-10)
    expected = rotation.T @ stress @ rotation
    np.testing.assert_allclose(turned.get_stress(voigt=False), expected, atol=1e-12)


def test_supercells_feel_the_forces_of_their_cell(tiny_model):
    small = rocksalt()
    large = small.repeat((1, 2, 1))
    found = []
    for atoms in (small, large):
        known = relax(atoms, model=tiny_model, dtype='float64', symmetry='free')
        potential(known, atoms)
        found.append((atoms.get_potential_energy() / len(atoms), atoms.get_forces()))
    (energy, forces), (energy_large, forces_large) = found
    assert energy_large == pytest.approx(energy, rel=1e-4)
    np.testing.assert_allclose(forces_large, np.tile(forces, (2, 1)), atol=1e-4)


def test_coincident_atoms_have_no_nan(relaxation):
    atoms = relaxation.atoms.copy()
    atoms.positions[1] = atoms.positions[0]
    potential(relaxation, atoms)
    assert np.isfinite(atoms.get_forces()).all()
    assert np.isfinite(atoms.get_stress()).all()


def test_path_to_the_prediction(relaxation):
    """A band held at the input slides into the valley that leads to the prediction."""
    first = relaxation.initial.copy()
    first.set_cell(relaxation.atoms.cell, scale_atoms=True)
    last = relaxation.atoms.copy()
    last.set_constraint()
    images = [first, *(first.copy() for _ in range(3)), last]
    band = NEB(images, method='improvedtangent', allow_shared_calculator=True)
    band.interpolate()
    calculator = EDGCalculator(relaxation)
    for image in images:
        image.calc = calculator
    assert FIRE(band, logfile=None).run(fmax=0.02, steps=300)
    energies = [image.get_potential_energy() for image in images]
    assert (np.diff(energies) < 0).all()
    assert energies[-1] < 1e-20


def test_model_is_asked_about_the_first_structure(tiny_model):
    atoms = rocksalt()
    atoms.calc = EDGCalculator(tiny_model, force_constant=2.0)
    assert atoms.calc.relaxation is None
    energy = atoms.get_potential_energy()
    known = atoms.calc.relaxation
    assert known.initial == rocksalt()
    assert (
        energy
        == potential(
            relax(rocksalt(), model=tiny_model), rocksalt(), force_constant=2.0
        ).get_potential_energy()
    ), 'asked with the defaults of relax'
    atoms.rattle(0.05, seed=3)
    assert atoms.get_potential_energy() != energy
    assert atoms.calc.relaxation is known


def test_parameters_count_at_once(relaxation):
    atoms = potential(relaxation, disturbed(relaxation))
    energy = atoms.get_potential_energy()
    atoms.calc.set(force_constant=3.0)
    assert atoms.get_potential_energy() == pytest.approx(3 * energy)
    atoms.calc.set(tolerance='sigma')
    assert atoms.get_potential_energy() < 3 * energy
    assert atoms.calc.todict() == {'tolerance': 'sigma', 'force_constant': 3.0}


def test_each_bond_may_have_its_own_force_constant(relaxation):
    atoms = potential(relaxation, disturbed(relaxation))
    energy = atoms.get_potential_energy()
    constants = [3.0] * len(relaxation.bonds)
    for same in (constants, tuple(constants), np.array(constants)):
        atoms.calc.set(force_constant=same)
        assert atoms.get_potential_energy() == pytest.approx(3 * energy)
    atoms.calc.set(force_constant=constants[:-1])
    n_bonds = len(constants)
    with pytest.raises(ValueError, match=f'has {n_bonds - 1} numbers.* {n_bonds} bonds'):
        atoms.get_potential_energy()


@pytest.mark.parametrize('setting', [torch.inference_mode(), torch.device('meta')])
def test_settings_of_torch_around_it_do_not_matter(relaxation, setting):
    atoms = potential(relaxation, disturbed(relaxation))
    forces = atoms.get_forces()
    with setting:
        inside = potential(relaxation, disturbed(relaxation)).get_forces()
    np.testing.assert_array_equal(inside, forces)


def test_travels(relaxation, tmp_path):
    atoms = potential(relaxation, disturbed(relaxation), tolerance='sigma')
    atoms.write(tmp_path / 'a.traj')
    energy = atoms.get_potential_energy()
    for twin in (copy.deepcopy(atoms), pickle.loads(pickle.dumps(atoms))):
        twin.calc.reset()
        assert twin.get_potential_energy() == energy
    atoms.write(tmp_path / 'a.traj')
    assert read(tmp_path / 'a.traj').get_potential_energy() == energy


def test_other_atoms_are_refused(relaxation):
    longer = relaxation.atoms.repeat((2, 1, 1))
    with pytest.raises(StructureError, match=r'8 atoms, and a prediction for 4 .*another'):
        potential(relaxation, longer).get_potential_energy()
    other = relaxation.atoms.copy()
    other.symbols[2] = 'Ca'
    with pytest.raises(StructureError, match='atom 2 is Ca, in the prediction Mg'):
        potential(relaxation, other).get_forces()
    slab = relaxation.atoms.copy()
    slab.pbc = [True, True, False]
    with pytest.raises(StructureError, match=r'pbc is \[True, True, False\]'):
        potential(relaxation, slab).get_forces()
    lost = relaxation.atoms.copy()
    lost.positions[3, 1] = np.nan
    with pytest.raises(StructureError, match=r'atom 3 \(O\) has coordinates'):
        potential(relaxation, lost).get_forces()
    lost = relaxation.atoms.copy()
    lost.cell[1, 0] = np.inf
    with pytest.raises(StructureError, match='the cell has coordinates that are not'):
        potential(relaxation, lost).get_forces()
    flat = relaxation.atoms.copy()
    flat.cell[2] = flat.cell[1]
    with pytest.raises(StructureError, match='has no volume'):
        potential(relaxation, flat).get_forces()
    # One that was refused can be mended.
    atoms = potential(relaxation, relaxation.atoms.copy())
    atoms.symbols[2] = 'Ca'
    with pytest.raises(StructureError):
        atoms.get_potential_energy()
    atoms.symbols[2] = 'Mg'
    assert atoms.get_potential_energy() < 1e-20


def test_what_cannot_be_a_potential_is_refused(relaxation):
    failed = replace(relaxation, ok=False, problem='relaxed volume is 9 times')
    with pytest.raises(PredictionError, match='volume is 9 times'):
        EDGCalculator(failed)
    for bad in (-0.1, np.nan, np.inf, 'sigmas', None, np.array([0.1, 0.2])):
        with pytest.raises(ValueError, match='tolerance is'):
            EDGCalculator(relaxation, tolerance=bad)
    for name in ('force_constant', 'knee'):
        for bad in (0, -1.0, np.nan, np.inf, 'stiff'):
            with pytest.raises(ValueError, match=f'{name} is {bad!r}'):
                EDGCalculator(relaxation, **{name: bad})
    for bad in ([1.0, -1.0], np.ones((2, 2)), [[1.0], [1.0, 2.0]], np.array(['stiff'])):
        with pytest.raises(ValueError, match='force_constant is'):
            EDGCalculator(relaxation, force_constant=bad)
    with pytest.raises(ValueError, match="unknown parameter 'width'"):
        EDGCalculator(relaxation, width=0.1)
