"""BFGS that begins with a model of the curvature."""

import itertools
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.calculators.tersoff import Tersoff, TersoffParameters
from ase.constraints import FixAtoms, FixCartesian, FixScaled, FixSymmetry
from ase.filters import FrechetCellFilter, UnitCellFilter
from ase.mep import NEB
from ase.neighborlist import neighbor_list
from ase.optimize import BFGS
from ase.spacegroup import crystal as spacegroup_crystal

from ase_deeprelax import ElasticBFGS
from ase_deeprelax.calculators.registry import get_calculator
from ase_deeprelax.geometry.cell_filter import free_cell
from ase_deeprelax.optimize.elastic_bfgs import (
    ON_SITE,
    ON_STRAIN,
    ROTATION,
    model_hessian,
)

STRAIN = np.array([[1.05, 0.02, 0.0], [0.02, 0.97, 0.01], [0.0, 0.01, 1.06]])


def crystal(seed=0, strain=STRAIN):
    """A strained, rattled alloy."""
    atoms = bulk('Cu', cubic=True)
    atoms.symbols[:2] = 'Au'
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    atoms.rattle(0.1, seed=seed)
    atoms.calc = EMT()
    return atoms


def path(target, atoms, steps=8):
    """Positions and cells of some steps."""
    moves = ElasticBFGS(target, logfile=None).irun(fmax=1e-8, steps=steps)
    return np.array([np.vstack([atoms.positions, atoms.cell]) for _ in moves])


@pytest.mark.parametrize('factor', [1.0, 4.0, 30.0])
def test_the_factor_of_the_filter_does_not_matter(factor):
    atoms, same = crystal(), crystal()
    one = path(FrechetCellFilter(atoms), atoms)
    two = path(FrechetCellFilter(same, exp_cell_factor=factor), same)
    np.testing.assert_allclose(one, two, atol=1e-9)


def test_a_doubled_crystal_goes_the_same_way():
    atoms, doubled = crystal(), crystal().repeat((2, 1, 1))
    doubled.calc = EMT()
    one = path(FrechetCellFilter(atoms), atoms)
    two = path(FrechetCellFilter(doubled), doubled)
    np.testing.assert_allclose(one[:, :4], two[:, :4], atol=1e-6)


def test_large_cells_cost_no_eigenvectors(monkeypatch):
    def slow(matrix):
        raise AssertionError('ten times slower than a solution of linear equations')

    monkeypatch.setattr(np.linalg, 'eigh', slow)
    assert ElasticBFGS(FrechetCellFilter(crystal()), logfile=None).run(fmax=0.01, steps=60)


class TwoWells(Calculator):
    """For each coordinate the energy (x^2 - 1)^2, which is a maximum at zero."""

    implemented_properties = ('energy', 'forces')

    def calculate(self, atoms=None, properties=(), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        x = atoms.positions
        self.results = {'energy': ((x**2 - 1) ** 2).sum(), 'forces': 4 * x * (1 - x**2)}


def test_from_near_a_maximum_it_goes_downhill():
    atoms = Atoms('H', positions=[[0.05, -0.1, 0.2]], calculator=TwoWells())
    optimizer, energies = ElasticBFGS(atoms, logfile=None, maxstep=0.1), []
    optimizer.attach(lambda: energies.append(atoms.get_potential_energy()))
    optimizer.run(fmax=1e-3, steps=3)
    assert np.linalg.eigvalsh(optimizer.hessian).min() < 0
    assert optimizer.run(fmax=1e-3, steps=60)
    assert (np.diff(energies) < 0.05).all()
    np.testing.assert_allclose(np.abs(atoms.positions), 1, atol=1e-3)


@pytest.mark.parametrize('kind', [FrechetCellFilter, UnitCellFilter])
def test_what_a_mask_freezes_stays(kind):
    atoms = crystal(strain=np.diag([1.05, 0.97, 1.06]))
    before = atoms.cell.array.copy()
    mask = [True, True, False, False, False, False]
    assert ElasticBFGS(kind(atoms, mask=mask), logfile=None).run(fmax=0.01, steps=60)
    np.testing.assert_allclose(atoms.cell.array[2], before[2], atol=1e-12)
    np.testing.assert_allclose(atoms.cell.array[:2, 2], before[:2, 2], atol=1e-12)
    assert not np.allclose(atoms.cell.array[0], before[0], atol=1e-2)


def test_a_hydrostatic_filter_keeps_the_shape():
    atoms = crystal()
    target = FrechetCellFilter(atoms, hydrostatic_strain=True)
    shape = atoms.cell.array / atoms.cell.volume ** (1 / 3)
    ElasticBFGS(target, logfile=None).run(fmax=0.01, steps=60)
    np.testing.assert_allclose(
        atoms.cell.array / atoms.cell.volume ** (1 / 3), shape, atol=1e-9
    )


def test_a_filter_of_constant_volume_keeps_the_volume():
    atoms = crystal()
    volume, shape = atoms.cell.volume, atoms.cell.cellpar()
    target = FrechetCellFilter(atoms, constant_volume=True)
    assert ElasticBFGS(target, logfile=None).run(fmax=0.01, steps=40)
    assert atoms.cell.volume == pytest.approx(volume, rel=1e-6)
    assert not np.allclose(atoms.cell.cellpar(), shape, atol=0.01)


def test_a_step_is_no_longer_than_allowed():
    atoms = crystal(strain=0.6 * np.eye(3))  # large forces, larger stress
    places = path(FrechetCellFilter(atoms), atoms, steps=3)
    for before, after in pairwise(places):
        change = np.linalg.solve(before[-3:], after[-3:])
        strain = np.linalg.norm(change - np.eye(3), axis=1).max()
        moved = np.linalg.norm(after[:-3] - before[:-3] @ change, axis=1).max()
        assert strain < 0.25  # 0.2 of the logarithm
        assert moved < 0.25  # 0.2 A at the cell of the filter


def test_it_needs_less_than_half_the_calls_of_bfgs():
    def steps(kind, seed):
        atoms = crystal(seed)
        optimizer = kind(FrechetCellFilter(atoms), logfile=None)
        assert optimizer.run(fmax=0.02, steps=200)
        return optimizer.nsteps

    total = {kind: sum(steps(kind, k) for k in range(6)) for kind in (BFGS, ElasticBFGS)}
    assert total[ElasticBFGS] < 0.5 * total[BFGS]


def layer_steps(vacuum, kind, filtered):
    """Steps that strained films of one to five planes need to relax in their plane."""
    total = 0
    for planes, seed in itertools.product((1, 3, 5), (0, 1)):
        atoms = fcc111('Cu', (1, 2, planes), a=3.75, vacuum=vacuum / 2)
        atoms.symbols[0] = 'Au'
        atoms.pbc = True
        atoms.rattle(0.05, seed=seed)
        atoms.calc = EMT()
        optimizer = kind(filtered(atoms), logfile=None)
        assert optimizer.run(fmax=0.02, steps=200)
        total += optimizer.nsteps
    return total


def test_the_vacuum_beside_a_layer_costs_no_steps():
    """Its stiffness is that of the layer, however much vacuum the box holds."""
    plane = partial(FrechetCellFilter, mask=[1, 1, 0, 0, 0, 1])
    ours, theirs, plain = (
        [layer_steps(vacuum, kind, made) for vacuum in (15, 40)]
        for kind, made in ((ElasticBFGS, free_cell), (ElasticBFGS, plane), (BFGS, plane))
    )
    assert ours[0] == ours[1]
    assert ours[0] <= 1.05 * theirs[0]
    assert ours[1] <= 1.1 * theirs[1]
    assert theirs[1] <= theirs[0]
    assert ours[1] < 0.3 * plain[1]


@pytest.mark.parametrize('relax_cell', ['in-plane', 'hydrostatic', [1, 0, 1, 0, 1, 0]])
def test_a_partly_held_cell_takes_about_as_many_steps_as_a_free_one(relax_cell):
    def steps(filtered, seed):
        atoms = crystal(seed)
        optimizer = ElasticBFGS(filtered(atoms), logfile=None)
        assert optimizer.run(fmax=0.02, steps=100)
        return optimizer.nsteps

    held = partial(free_cell, relax_cell=relax_cell)
    ours, free = (
        sum(steps(made, k) for k in range(6)) for made in (held, FrechetCellFilter)
    )
    assert ours <= 1.2 * free


def test_a_molecule_relaxes_as_with_bfgs():
    from ase.build import molecule

    atoms = molecule('CO')
    atoms.calc = EMT()
    assert ElasticBFGS(atoms, logfile=None).run(fmax=0.01, steps=50)


def hard_argon():
    """A potential much stiffer than any solid: the model is wrong about it, and climbs."""
    atoms = bulk('Ar', 'fcc', a=5.3, cubic=True)
    atoms.rattle(0.03, seed=0)
    atoms.calc = LennardJones(sigma=3.4, epsilon=100.0, rc=8.0, smooth=True)
    return atoms


@pytest.mark.parametrize('start', [crystal, hard_argon])
def test_it_goes_on_from_its_restart_file(tmp_path, start):
    """After each step, with a filter of its own, also where the step had climbed."""
    whole, parts, file = start(), start(), tmp_path / 'bfgs.json'
    optimizer = ElasticBFGS(FrechetCellFilter(whole), logfile=None)
    for _ in range(6):
        optimizer.run(fmax=1e-6, steps=1)
        target = FrechetCellFilter(parts)
        ElasticBFGS(target, logfile=None, restart=file).run(fmax=1e-6, steps=1)
        np.testing.assert_allclose(parts.positions, whole.positions, atol=1e-8)
        np.testing.assert_allclose(parts.cell.array, whole.cell.array, atol=1e-8)


# --- stiff solids ----------------------------------------------------------------------

# Tersoff, Phys. Rev. B 39, 5566 (1989).
CARBON = TersoffParameters(
    m=3.0,
    gamma=1.0,
    lambda3=0.0,
    c=38049.0,
    d=4.3484,
    h=-0.57058,
    n=0.72751,
    beta=1.5724e-7,
    lambda2=2.2119,
    B=346.74,
    R=1.95,
    D=0.15,
    lambda1=3.4879,
    A=1393.6,
)


def descent(kind, atoms, filtered=FrechetCellFilter, fmax=0.01):
    """The energy before each step and after the last, eV."""
    optimizer = kind(filtered(atoms), logfile=None)
    states = optimizer.irun(fmax=fmax, steps=100)
    energies = [atoms.get_potential_energy() for _ in states]
    assert optimizer.nsteps < 100
    return np.array(energies)


@pytest.mark.parametrize('filtered', [FrechetCellFilter, lambda atoms: atoms])
@pytest.mark.parametrize('a', [3.4, 3.6])
def test_diamond_takes_no_more_steps_than_with_bfgs_and_never_climbs(a, filtered):
    def run(kind, seed):
        atoms = bulk('C', 'diamond', a=a, cubic=True)
        atoms.rattle(0.05, seed=seed)
        atoms.calc = Tersoff({('C', 'C', 'C'): CARBON})
        return descent(kind, atoms, filtered)

    ours, theirs = ([run(kind, seed) for seed in range(3)] for kind in (ElasticBFGS, BFGS))
    assert sum(map(len, ours)) <= 1.1 * sum(map(len, theirs))
    assert max(np.diff(energies).max() for energies in ours) < 0.05


def stiff_solids():
    """Covalent crystals, layers and a molecular crystal."""
    return {
        'diamond': bulk('C', 'diamond', a=3.65),
        'graphite': spacegroup_crystal(
            'CC',
            [(0, 0, 0.25), (1 / 3, 2 / 3, 0.25)],
            spacegroup=194,
            cellpar=[2.5, 2.5, 6.6, 90, 90, 120],
        ),
        'ammonia': spacegroup_crystal(
            'NH',
            [(0.2107, 0.2107, 0.2107), (0.3689, 0.2671, 0.1159)],
            spacegroup=198,
            cellpar=[5.2, 5.2, 5.2, 90, 90, 90],
        ),
    }


@pytest.mark.parametrize('name', stiff_solids())
def test_stiff_solids_with_a_universal_potential(name):
    pytest.importorskip('chgnet')
    calculator = get_calculator('chgnet')

    def run(kind):
        start = stiff_solids()[name]
        atoms = Atoms(start.numbers, start.positions, cell=start.cell, pbc=True)
        atoms.rattle(0.03, seed=1)
        atoms.calc = calculator
        return descent(kind, atoms, fmax=0.05)

    ours, theirs = run(ElasticBFGS), run(BFGS)
    assert np.diff(ours).max() < 0.1
    # BFGS takes turns of molecules for stretched bonds, and stops before their end.
    assert ours[-1] < theirs[-1] + 2e-3
    assert np.argmax(ours < theirs[-1] + 2e-3) <= len(theirs)


# --- the model -------------------------------------------------------------------------


def test_order_and_orientation_do_not_matter():
    one, two = crystal(), crystal()
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    turn *= np.linalg.det(turn)
    order = np.array([2, 0, 3, 1])
    two = two[order]
    two.set_cell(two.cell.array @ turn.T, scale_atoms=True)
    two.calc = EMT()
    first, second = (path(FrechetCellFilter(atoms), atoms) for atoms in (one, two))
    np.testing.assert_allclose(first[:, -3:] @ turn.T, second[:, -3:], atol=1e-8)
    np.testing.assert_allclose(first[:, order] @ turn.T, second[:, :4], atol=1e-8)


def test_the_model_is_one_of_springs():
    """Symmetric, stable, in proportion to size; no spring meets what moves as one."""
    crystals = crystal(), crystal().repeat((1, 1, 2))
    one, two = (
        model_hessian(FrechetCellFilter(atoms, exp_cell_factor=1)) for atoms in crystals
    )
    np.testing.assert_allclose(one, one.T, atol=1e-12)
    assert np.linalg.eigvalsh(one).min() > 0
    np.testing.assert_allclose(two[-9:, -9:], 2 * one[-9:, -9:], atol=1e-9)
    together = np.tile(np.eye(3), (4, 1))
    np.testing.assert_allclose(one[-9:, :-9] @ together, 0, atol=1e-9)
    # A shorter bond is a stiffer one.
    pairs = [Atoms('C2', [[0, 0, 0], [0, 0, r]]) for r in (1.2, 1.5, 2.5)]
    stiff = [np.linalg.eigvalsh(model_hessian(pair)).max() / 2 for pair in pairs]
    np.testing.assert_allclose(stiff, [72, 35.5, 3.7], rtol=0.02)


def spring_energy(atoms, moves, strain):
    """The energy of the class's docstring, eV, one pair after another."""
    energy = 0.0
    i, j, distances, vectors = neighbor_list('ijdD', atoms, 5.0)
    for k, m, r, vector in zip(i, j, distances, vectors, strict=True):
        d = moves[m] - moves[k] + strain @ vector
        stiffness = 35.0 * np.exp((1.5 - r) / 0.42)
        energy += stiffness * (0.9 * (vector @ d / r) ** 2 + 0.1 * d @ d) / 4  # twice each
    return energy


@pytest.mark.parametrize('seed', range(3))
def test_the_model_is_the_second_derivative_of_its_springs(seed):
    atoms, rng = crystal(seed), np.random.default_rng(seed)
    moves, strain = rng.normal(size=(4, 3)), rng.normal(size=(3, 3))
    symmetric, turn = (strain + strain.T) / 2, (strain - strain.T) / 2
    x = np.concatenate([moves, strain]).ravel()
    hessian = model_hessian(FrechetCellFilter(atoms, exp_cell_factor=1))
    springs = spring_energy(atoms, moves, symmetric)
    rest = ON_SITE * (moves**2).sum()
    rest += atoms.cell.volume * ON_STRAIN * (symmetric**2).sum()
    rest += atoms.cell.volume * ROTATION * (turn**2).sum()
    assert x @ hessian @ x == pytest.approx(2 * springs + rest)


class Harmonic(Calculator):
    """A well whose second derivative is given, around a structure."""

    implemented_properties = ('energy', 'forces')

    def __init__(self, hessian, goal):
        super().__init__()
        self.hessian, self.goal = hessian, goal

    def calculate(self, atoms=None, properties=('energy',), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        away = (atoms.positions - self.goal).ravel()
        forces = -(self.hessian @ away)
        self.results = {'energy': -away @ forces / 2, 'forces': forces.reshape(-1, 3)}


@pytest.mark.parametrize('factor', [0.6, 1.0, 1.7])
def test_the_first_step_measures_the_scale_of_the_whole_model(factor):
    atoms = crystal()
    goal = atoms.positions + np.random.default_rng(0).uniform(-0.03, 0.03, (4, 3))
    hessian = factor * model_hessian(atoms)
    atoms.calc = Harmonic(hessian, goal)
    optimizer = ElasticBFGS(atoms, logfile=None)
    optimizer.run(fmax=0, steps=2)
    np.testing.assert_allclose(optimizer.hessian, hessian, atol=1e-6)


def test_fixed_atoms_do_not_pull_the_others():
    atoms = crystal()
    atoms.set_constraint([FixAtoms([0]), FixCartesian(1, [True, False, False])])
    hessian = model_hessian(FrechetCellFilter(atoms))
    held, free = [0, 1, 2, 3], np.arange(4, 21)
    np.testing.assert_allclose(hessian[np.ix_(held, free)], 0, atol=1e-12)
    before = atoms.get_scaled_positions()
    assert ElasticBFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.02, steps=40)
    np.testing.assert_allclose(atoms.get_scaled_positions()[0], before[0], atol=1e-9)


def test_a_constraint_for_each_atom_costs_as_much_as_one_for_all(monkeypatch):
    """Files of VASP with selective dynamics are read so."""
    calls, adjust = [], FixScaled.adjust_forces

    def count(self, atoms, forces):
        calls.append(self)
        adjust(self, atoms, forces)

    atoms = crystal().repeat((2, 2, 1))
    n = len(atoms)
    atoms.set_constraint(FixScaled(range(n), [True, False, True]))
    expected = model_hessian(atoms)
    atoms.set_constraint([FixScaled(k, [True, False, True]) for k in range(n)])
    monkeypatch.setattr(FixScaled, 'adjust_forces', count)
    np.testing.assert_allclose(model_hessian(atoms), expected, atol=1e-9)
    assert len(calls) == 3 * n


def test_symmetry_that_is_fixed_stays():
    atoms = bulk('Cu', cubic=True)
    atoms.symbols[0] = 'Au'
    atoms.calc = EMT()
    atoms.set_constraint(FixSymmetry(atoms))
    assert ElasticBFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.01, steps=20)
    np.testing.assert_allclose(atoms.cell.lengths(), atoms.cell.lengths()[0], atol=1e-9)
    np.testing.assert_allclose(atoms.cell.angles(), 90, atol=1e-9)


# --- steps that climb ------------------------------------------------------------------


def test_a_step_that_climbs_is_undone():
    atoms = hard_argon()
    places, energies = [], []
    for _ in ElasticBFGS(atoms, logfile=None).irun(fmax=0.5, steps=60):
        places.append(atoms.positions.copy())
        energies.append(atoms.get_potential_energy())
    climbed = np.flatnonzero(np.diff(energies) > 0.05)
    assert len(climbed)
    for k in climbed:
        if k + 2 == len(places):
            continue
        there, back = (
            np.linalg.norm(places[n] - places[k], axis=1).max() for n in (k + 1, k + 2)
        )
        assert back <= 0.5 * there + 1e-9
    assert energies[-1] == pytest.approx(min(energies))
    # What it learns from each of them saves two thirds of the steps.
    assert len(places) < 30


def test_atoms_moved_by_hand_are_not_moved_back():
    atoms = crystal()
    optimizer = ElasticBFGS(atoms, logfile=None)
    optimizer.run(fmax=0.01, steps=3)
    atoms.positions[3] += [0.5, 0.0, 0.0]
    moved, high = atoms.positions.copy(), atoms.get_potential_energy()
    optimizer.run(fmax=0.01, steps=1)
    assert np.linalg.norm(atoms.positions - moved, axis=1).max() <= 0.2 + 1e-9
    assert atoms.get_potential_energy() < high


class Shifted(EMT):
    """EMT with another zero of energy, which may depend on the moments."""

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        shift = 100 + self.atoms.get_initial_magnetic_moments().sum()
        self.results['energy'] += shift
        self.results['free_energy'] += shift


@pytest.mark.parametrize('change', ['calculator', 'moments'])
def test_another_zero_of_energy_is_no_rise(change):
    atoms = crystal()
    atoms.calc = EMT() if change == 'calculator' else Shifted()
    optimizer = ElasticBFGS(FrechetCellFilter(atoms), logfile=None)
    optimizer.run(fmax=0.01, steps=2)
    if change == 'calculator':
        atoms.calc = Shifted()
    else:
        atoms.set_initial_magnetic_moments([10.0] * len(atoms))
    energies = []
    optimizer.attach(lambda: energies.append(atoms.get_potential_energy()))
    optimizer.run(fmax=0.01)
    assert max(energies) == energies[0]


class Drifting(EMT):
    """EMT of which the energy rises by 0.1 eV from call to call, as by noise."""

    calls = 0

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.calls += 1
        self.results['energy'] = self.results['free_energy'] = 0.1 * self.calls


def test_a_rise_in_short_steps_is_noise():
    """Forces are right: as many steps as with the right energy."""
    steps = []
    for calculator in (EMT(), Drifting()):
        atoms = bulk('Cu', cubic=True)
        atoms.rattle(0.002, seed=0)
        atoms.calc = calculator
        optimizer = ElasticBFGS(atoms, logfile=None)
        assert optimizer.run(fmax=1e-4, steps=30)
        steps.append(optimizer.nsteps)
    assert steps[0] == steps[1]


# --- what is not a structure -------------------------------------------------------------


class Constant(Calculator):
    """A force that is the same everywhere: it has no curvature."""

    implemented_properties = ('energy', 'forces')

    def calculate(self, atoms=None, properties=('energy',), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        forces = np.zeros((len(atoms), 3))
        forces[:2, 0] = 1.0, -1.0
        self.results = {'energy': -np.sum(forces * atoms.positions), 'forces': forces}


@pytest.mark.filterwarnings('error')
def test_under_a_constant_force_it_goes_on():
    atoms = bulk('Cu', cubic=True)
    atoms.calc = Constant()
    energy = atoms.get_potential_energy()
    ElasticBFGS(atoms, logfile=None).run(fmax=0.01, steps=5)
    assert atoms.get_potential_energy() < energy


def test_a_given_stiffness_is_that_of_bfgs():
    one, two = crystal(), crystal()
    for kind, atoms in ((ElasticBFGS, one), (BFGS, two)):
        kind(FrechetCellFilter(atoms), logfile=None, alpha=40.0).run(fmax=1e-8, steps=5)
    np.testing.assert_array_equal(one.positions, two.positions)


def test_a_path_of_images_takes_the_steps_of_bfgs():
    def images():
        start = fcc111('Cu', (2, 2, 2), vacuum=6)
        start.positions[-1, 2] += 0.3
        made = [start.copy() for _ in range(3)]
        for k, image in enumerate(made):
            image.positions[-1, 0] += 0.4 * k
            image.calc = EMT()
        return made

    ends = []
    for kind in (ElasticBFGS, BFGS):
        made = images()
        kind(NEB(made), logfile=None).run(fmax=1e-8, steps=4)
        ends.append(made[1].positions)
    np.testing.assert_array_equal(*ends)


def test_it_goes_on_from_a_restart_file_of_bfgs(tmp_path):
    atoms, file = crystal(), tmp_path / 'bfgs.json'
    target = FrechetCellFilter(atoms)
    BFGS(target, logfile=None, restart=file).run(fmax=1e-6, steps=4)
    first = atoms.get_potential_energy()
    optimizer = ElasticBFGS(target, logfile=None, restart=file)
    assert optimizer.run(fmax=0.01, steps=60)
    assert atoms.get_potential_energy() < first
