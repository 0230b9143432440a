"""DeepRelaxOptimizer as ASE users meet it."""

import copy
import pickle
import re
from functools import partial

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian, FixSymmetry, Hookean
from ase.filters import Filter, FrechetCellFilter, StrainFilter, UnitCellFilter
from ase.io import Trajectory, read
from ase.mep import NEB
from ase.optimize import BFGS, FIRE, RestartError

from ase_deeprelax import keys
from ase_deeprelax.errors import (
    ModelError,
    PredictionError,
    RefinementError,
    StructureError,
    UnsupportedConstraintError,
)
from ase_deeprelax.models.store import load_model
from ase_deeprelax.optimize.optimizer import DeepRelaxOptimizer
from ase_deeprelax.optimize.stage import Stage
from ase_deeprelax.predict import relax


@pytest.fixture
def one_shot(tiny_model):
    """The class with a model that does not depend on what is shipped, and no output."""
    return partial(DeepRelaxOptimizer, model=tiny_model, logfile=None)


def rocksalt():
    atoms = bulk('MgO', 'rocksalt', a=4.3) * (2, 1, 1)
    atoms.rattle(0.08, seed=1)
    return atoms


def gold():
    atoms = bulk('Au', cubic=True)
    atoms.rattle(0.1, seed=2)
    atoms.calc = EMT()
    return atoms


class Well(Calculator):
    """A harmonic well around given structures: the lower, the nearer to ``atoms``."""

    implemented_properties = ('energy', 'forces', 'stress')

    def __init__(self, atoms, k=5.0):
        super().__init__()
        self.goal, self.k = atoms.copy(), k

    def calculate(self, atoms=None, properties=('energy',), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        away = atoms.positions - self.goal.positions
        self.results['energy'] = 0.5 * self.k * (away**2).sum()
        self.results['forces'] = -self.k * away
        self.results['stress'] = np.zeros(6)


def bits(atoms):
    arrays = {name: array.tobytes() for name, array in atoms.arrays.items()}
    return arrays, atoms.cell.array.tobytes(), atoms.pbc.tobytes(), repr(atoms.info)


# --- without a calculator --------------------------------------------------------------


def test_one_step_to_what_relax_says(one_shot, tiny_model):
    expected = relax(rocksalt(), model=tiny_model)
    assert expected.dmax > 1e-3
    ways = {}
    for way in ('constructor', 'bind', 'run'):
        atoms = ways[way] = rocksalt()
        optimizer = one_shot(atoms) if way == 'constructor' else one_shot()
        if way == 'bind':
            assert optimizer.bind(atoms) is optimizer
        converged = optimizer.run(atoms) if way == 'run' else optimizer.run(fmax=0.05)
        assert converged is True
        assert optimizer.nsteps == optimizer.get_number_of_steps() == 1
        assert optimizer.converged()
    for atoms in ways.values():
        np.testing.assert_allclose(atoms.positions, expected.atoms.positions, atol=1e-6)
        np.testing.assert_allclose(atoms.cell.array, expected.atoms.cell.array, atol=1e-6)


def test_info(one_shot):
    atoms = rocksalt()
    atoms.info['deeprelax_old'] = 'of an earlier run'
    volume = atoms.cell.volume
    one_shot(atoms).run()
    assert 'deeprelax_old' not in atoms.info
    assert 0 < atoms.info[keys.SIGMA] <= atoms.info[keys.SIGMA_MAX] < 10
    assert np.array_equal(atoms.info[keys.SIGMA_ATOMS], atoms.arrays[keys.SIGMA])
    assert atoms.info[keys.VOLUME_RATIO] == pytest.approx(atoms.cell.volume / volume)
    assert atoms.info[keys.DMAX] > 1e-3
    assert atoms.info[keys.MODEL] == 'tiny'
    assert atoms.info[keys.STAGE] == 'predicted'
    assert atoms.info[keys.KIND] == 'bulk'
    for key in (keys.SHA256, keys.VERSION, keys.RESIDUAL):
        assert key in atoms.info


def test_numbers_per_atom_are_those_of_relax(calibrated_model):
    atoms = rocksalt()
    expected = relax(atoms, model=calibrated_model).atoms
    DeepRelaxOptimizer(atoms, logfile=None, model=calibrated_model).run()
    written = {name: x for name, x in atoms.arrays.items() if keys.is_ours(name)}
    assert written.keys() == {keys.SIGMA, keys.POSITION_90}
    for name, values in written.items():
        np.testing.assert_allclose(values, expected.arrays[name], rtol=1e-5)


def test_log_has_its_own_columns(one_shot, tmp_path):
    log = tmp_path / 'relax.log'
    one_shot(rocksalt(), logfile=log).run()
    lines = log.read_text().splitlines()
    assert lines[0].split() == [
        'Step',
        'Time',
        'dmax',
        '[A]',
        'strain',
        '[%]',
        'sigma',
        '[A]',
    ]
    rows = [line.split() for line in lines[1:]]
    assert [row[1] for row in rows] == ['0', '1']
    assert float(rows[0][3]) > 1e-3
    assert float(rows[0][4]) > 1e-2
    assert float(rows[1][3]) == float(rows[1][4]) == 0.0
    assert 'fmax' not in log.read_text()


def test_standard_output_by_default(tiny_model, capsys):
    DeepRelaxOptimizer(rocksalt(), model=tiny_model).run()
    assert 'DeepRelaxOptimizer:    1 ' in capsys.readouterr().out


def test_trajectory_and_observers(one_shot, tmp_path):
    atoms, seen = rocksalt(), []
    start = atoms.copy()
    with one_shot(atoms, trajectory=tmp_path / 'relax.traj') as optimizer:
        optimizer.attach(lambda: seen.append(optimizer.nsteps))
        optimizer.insert_observer(lambda: seen.append('first'))
        assert [bool(c) for c in optimizer.irun()] == [False, True]
    assert seen == ['first', 0, 'first', 1]
    frames = read(tmp_path / 'relax.traj', index=':')
    assert np.array_equal(frames[0].positions, start.positions)
    assert np.array_equal(frames[1].positions, atoms.positions)
    assert frames[1].info[keys.SIGMA] == atoms.info[keys.SIGMA]
    assert optimizer.todict()['type'] == 'optimization'


def test_a_trajectory_says_how_it_was_made(one_shot, tmp_path):
    path = tmp_path / 'relax.traj'
    with one_shot(
        gold(), refine=[EMT(), Stage(EMT)], optimizer=FIRE, trajectory=path
    ) as optimizer:
        optimizer.run(fmax=0.5)
    with Trajectory(path) as trajectory:
        header = trajectory.description
    assert header['optimizer'] == 'DeepRelaxOptimizer'
    assert (header['refinement'], header['stages']) == ('FIRE', ['emt', 'EMT'])
    assert (header['symmetry'], header['relax_cell']) == ('keep', 'default')


def test_steps_are_respected(one_shot):
    atoms = rocksalt()
    before = bits(atoms)
    optimizer = one_shot(atoms)
    assert optimizer.run(steps=0) is False
    assert bits(atoms) == before
    assert optimizer.run(steps=1) is True
    after = bits(atoms)
    assert optimizer.run() is True
    assert (optimizer.nsteps, bits(atoms)) == (1, after)


def test_changed_atoms_get_a_new_prediction(one_shot, tiny_model):
    atoms = rocksalt()
    optimizer = one_shot(atoms)
    optimizer.run()
    atoms.symbols[0] = 'Ca'
    expected = relax(atoms, model=tiny_model).atoms
    assert optimizer.converged() is False
    assert optimizer.run() is True
    np.testing.assert_allclose(atoms.positions, expected.positions, atol=1e-6)


@pytest.mark.parametrize('steps', [0, 1], ids=['looked at', 'back at the start'])
def test_what_is_fixed_before_a_run_stays_where_it_is(one_shot, tiny_model, steps):
    """The prediction that an earlier run made let it move."""
    atoms, start = rocksalt(), rocksalt()
    optimizer = one_shot(atoms)
    optimizer.run(steps=steps)
    atoms.set_cell(start.cell)
    atoms.set_positions(start.positions)
    atoms.set_constraint(FixAtoms([0]))
    start.set_constraint(FixAtoms([0]))
    assert optimizer.run() is True
    expected = relax(start, model=tiny_model).atoms
    np.testing.assert_allclose(atoms.positions, expected.positions, atol=1e-6)
    moved = atoms.get_scaled_positions()[0] - start.get_scaled_positions()[0]
    np.testing.assert_allclose(moved, 0, atol=1e-12)


def test_a_calculator_that_comes_before_the_step_holds_the_cell_as_in_ase(one_shot):
    atoms = gold()
    calculator, atoms.calc = atoms.calc, None
    cell = atoms.cell.array.copy()
    optimizer = one_shot(atoms, energy_gate=None)
    optimizer.run(steps=0)
    atoms.calc = calculator
    assert optimizer.run(fmax=0.05) is True
    assert optimizer.stages[0].converged
    np.testing.assert_array_equal(atoms.cell.array, cell)


def test_atoms_that_an_observer_wraps_are_predicted_once(one_shot, tiny_model):
    atoms = rocksalt()
    atoms.positions += 0.97 * atoms.cell[0] - 2 * atoms.cell[2]
    expected = relax(atoms, model=tiny_model).atoms
    optimizer = one_shot(atoms)
    optimizer.attach(atoms.wrap)
    assert optimizer.run() is True
    assert optimizer.nsteps == 1
    expected.wrap()
    np.testing.assert_allclose(atoms.positions, expected.positions, atol=1e-5)
    atoms.positions[1] += 3 * atoms.cell[1]
    assert optimizer.converged()
    assert optimizer.run() is True
    assert optimizer.nsteps == 1


def test_a_run_takes_one_step_whatever_an_observer_does(one_shot):
    atoms = rocksalt()
    optimizer = one_shot(atoms)
    optimizer.attach(lambda: atoms.rattle(0.05, seed=optimizer.nsteps))
    assert optimizer.run() is False
    assert optimizer.nsteps == 1


def test_all_else_is_kept(one_shot):
    class Mine(Atoms):
        pass

    atoms = Mine(rocksalt())
    n = len(atoms)
    rng = np.random.default_rng(0)
    atoms.set_tags(range(n))
    atoms.set_initial_magnetic_moments(rng.normal(size=(n, 3)))
    atoms.set_initial_charges(rng.normal(size=n))
    atoms.set_momenta(rng.normal(size=(n, 3)))
    atoms.set_masses(rng.uniform(1, 9, n))
    atoms.set_celldisp([1.0, 2.0, 3.0])
    atoms.set_array('mine', rng.normal(size=(n, 2, 2)))
    atoms.info.update(name='x', data={'a': [1]}, tensor=np.eye(3), thing=object())
    atoms.set_constraint([FixAtoms([0]), FixCartesian([1], (True, False, False))])
    atoms.positions[2] += 7 * atoms.cell[0] - 5 * atoms.cell[1]
    start, info = copy.deepcopy(atoms), dict(atoms.info)
    constraints = list(atoms.constraints)
    one_shot(atoms).run()
    assert type(atoms) is Mine
    for name, array in start.arrays.items():
        if name != 'positions':
            assert np.array_equal(atoms.arrays[name], array), name
    assert {k: v for k, v in atoms.info.items() if not k.startswith(keys.PREFIX)} == info
    assert atoms.constraints == constraints
    assert np.array_equal(atoms.get_celldisp(), start.get_celldisp())
    moved = atoms.cell.scaled_positions(atoms.positions)
    moved -= start.cell.scaled_positions(start.positions)
    assert 1e-4 < np.abs(moved).max() < 0.3  # same image, no wrapping
    np.testing.assert_allclose(moved[0], 0, atol=1e-13)


def test_left_handed_cells_stay_so(one_shot):
    atoms = rocksalt()
    atoms.set_cell(atoms.cell.array[[1, 0, 2]])
    assert atoms.cell.handedness == -1
    one_shot(atoms).run()
    assert atoms.cell.handedness == -1


@pytest.mark.parametrize('kind', [FrechetCellFilter, UnitCellFilter])
def test_filters_are_honoured(one_shot, kind):
    for options in ({'mask': [1, 1, 0, 0, 0, 1]}, {'constant_volume': True}):
        atoms = rocksalt()
        start = atoms.cell.array.copy()
        assert one_shot(kind(atoms, **options)).run() is True
        change = np.linalg.solve(start, atoms.cell.array) - np.eye(3)
        assert np.abs(change).max() > 1e-3
        if 'mask' in options:
            assert np.abs(change[2]).max() < 1e-12
            assert np.abs(change[:, 2]).max() < 1e-12
        else:
            assert np.linalg.det(change + np.eye(3)) == pytest.approx(1, abs=1e-12)


def test_fixed_cell(one_shot):
    for make in (
        lambda atoms: one_shot(atoms, relax_cell=False),
        lambda atoms: one_shot(Filter(atoms, indices=range(len(atoms)))),
    ):
        atoms = rocksalt()
        start = atoms.copy()
        assert make(atoms).run() is True
        assert np.array_equal(atoms.cell.array, start.cell.array)
        assert np.abs(atoms.positions - start.positions).max() > 1e-4
    with pytest.raises(ValueError, match='filter says itself'):
        one_shot(FrechetCellFilter(rocksalt()), relax_cell=True)


def test_prediction_that_fails_the_checks(tiny_model):
    model = load_model(tiny_model)
    model.lattice.gates[-1].bias.data[0] = 10.0  # cells explode
    atoms = rocksalt()
    before = bits(atoms)
    with pytest.raises(PredictionError, match='volume'):
        DeepRelaxOptimizer(atoms, model=model, logfile=None).run()
    assert bits(atoms) == before
    atoms = gold()
    optimizer = DeepRelaxOptimizer(FrechetCellFilter(atoms), model=model, logfile=None)
    with pytest.warns(UserWarning, match='without a prediction'):
        assert optimizer.run(fmax=0.05) is True
    assert atoms.info[keys.STAGE] == 'ElasticBFGS (not predicted)'


def test_what_is_not_atoms(one_shot):
    with pytest.raises(TypeError, match='list'):
        one_shot([rocksalt()])
    with pytest.raises(TypeError, match='lists'):
        one_shot().run([rocksalt()])
    with pytest.raises(UnsupportedConstraintError, match='NEB'):
        one_shot(NEB([rocksalt() for _ in range(3)], method='improvedtangent'))


def test_stored_results_do_not_survive(one_shot):
    atoms = rocksalt()
    atoms.calc = SinglePointCalculator(
        atoms, energy=-1.0, forces=np.zeros((len(atoms), 3)), stress=np.zeros(6)
    )
    assert one_shot(atoms).run(steps=0) is False
    assert atoms.get_potential_energy() == -1.0
    assert one_shot(atoms).run() is True
    assert atoms.calc is None


# --- with a calculator -----------------------------------------------------------------


def test_prediction_then_refinement(one_shot, tiny_model, tmp_path):
    atoms = rocksalt()
    goal = relax(atoms, model=tiny_model, relax_cell=False).atoms.positions
    end = atoms.copy()
    end.positions = goal
    end.positions[0, 0] += 0.02
    atoms.calc = Well(end)
    log = tmp_path / 'relax.log'
    optimizer = one_shot(atoms, logfile=log, trajectory=tmp_path / 'relax.traj')
    assert optimizer.run(fmax=0.01) is True
    np.testing.assert_allclose(atoms.positions, end.positions, atol=0.01 / 5)
    frames = read(tmp_path / 'relax.traj', index=':')
    np.testing.assert_allclose(frames[1].positions, goal, atol=1e-6)
    assert len(frames) == optimizer.nsteps + 1
    assert atoms.info[keys.STAGE] == 'ElasticBFGS'
    assert atoms.info[keys.SIGMA] > 0
    lines = log.read_text().splitlines()
    assert lines[0].startswith('cell fixed: ')  # as in ASE, but a prediction could do more
    assert lines[1].split() == ['Step', 'Time', 'Energy', 'fmax']
    assert 'prediction' in lines[3]
    assert len(lines) == optimizer.nsteps + 3


def test_each_line_of_the_log_has_the_numbers_of_its_structure(one_shot, tmp_path):
    atoms, log, seen = gold(), tmp_path / 'relax.log', []
    optimizer = one_shot(atoms, logfile=log, energy_gate=None)
    optimizer.attach(
        lambda: seen.append(
            (atoms.get_potential_energy(), np.linalg.norm(atoms.get_forces(), axis=1).max())
        )
    )
    optimizer.run(fmax=0.02)
    rows = [line.split()[3:5] for line in log.read_text().splitlines()[2:]]
    np.testing.assert_allclose(np.array(rows, float), seen, atol=1e-6)


def test_arguments_reach_the_run_of_other_atoms(one_shot):
    """By position, as in ASE's ``run(fmax, steps)``, and by name."""
    for arguments, names in (((1e-9, 3), {}), ((), {'fmax': 1e-9, 'steps': 3})):
        atoms = gold()
        optimizer = one_shot()
        assert optimizer.run(atoms, *arguments, **names) is False
        assert optimizer.nsteps == 3
    atoms = gold()
    assert one_shot().run(atoms, 100.0) is True
    assert np.array_equal(atoms.positions, gold().positions)


@pytest.mark.parametrize('guided', [False, 0.02])
@pytest.mark.parametrize('refine', [None, EMT])
def test_steps_can_be_taken_one_by_one_without_a_run(one_shot, refine, guided):
    """As in a loop of one's own: ``optimizer.step()``."""
    by_hand, whole = gold(), gold()
    options = {'energy_gate': None, 'refine': refine, 'guided': guided}
    optimizer = one_shot(by_hand, **options)
    for _ in range(3):
        optimizer.step()
    other = one_shot(whole, **options)
    other.run(fmax=0, steps=3)
    assert np.array_equal(by_hand.positions, whole.positions)
    assert np.array_equal(by_hand.cell.array, whole.cell.array)
    assert [record.steps for record in optimizer.stages] == [1, 2]
    assert optimizer.run(fmax=0.01) is other.run(fmax=0.01) is True
    np.testing.assert_allclose(by_hand.positions, whole.positions, atol=1e-6)


def test_a_trajectory_that_is_replayed_teaches_the_optimizer_as_in_ase(one_shot, tmp_path):
    """The relaxation goes on from its end: there is nothing to predict any more."""
    path, start = tmp_path / 'former.traj', gold()
    with BFGS(start, logfile=None, trajectory=path) as former:
        former.run(fmax=0.001, steps=5)
    ends = []
    ours = partial(one_shot, optimizer=BFGS, energy_gate=None)
    for make in (ours, partial(BFGS, logfile=None)):
        atoms = start.copy()
        atoms.calc = EMT()
        optimizer = make(atoms)
        optimizer.replay_trajectory(str(path))
        assert optimizer.run(fmax=0.001)
        ends.append((optimizer.nsteps, atoms.positions))
    (our_steps, our_positions), (their_steps, their_positions) = ends
    assert our_steps == their_steps
    np.testing.assert_allclose(our_positions, their_positions, atol=1e-9)


def test_prediction_is_enough(one_shot, tiny_model):
    atoms = rocksalt()
    end = relax(atoms, model=tiny_model)
    atoms.calc = Well(end.atoms)
    optimizer = one_shot().bind(atoms)
    assert optimizer.run(fmax=0.01) is True
    assert optimizer.nsteps == 1
    assert atoms.info[keys.STAGE] == 'predicted'


def test_no_step_where_forces_are_small_already(one_shot):
    atoms = rocksalt()
    atoms.calc = Well(atoms)
    before = bits(atoms)
    optimizer = one_shot(atoms)
    assert optimizer.run(fmax=0.05) is True
    assert optimizer.nsteps == 0
    assert bits(atoms) == before


def test_uphill_predictions_are_rolled_back(one_shot, tmp_path):
    atoms = rocksalt()
    end = atoms.copy()
    end.positions[0, 0] += 0.001
    atoms.calc = Well(end, k=100)
    start, log = atoms.copy(), tmp_path / 'relax.log'
    states = [bits(atoms)]
    optimizer = one_shot(atoms, logfile=log, optimizer=Still)
    optimizer.attach(lambda: states.append(bits(atoms)))
    assert optimizer.run(fmax=0.01, steps=1) is False
    assert np.array_equal(atoms.positions, start.positions)
    assert np.array_equal(atoms.cell.array, start.cell.array)
    assert atoms.info[keys.STAGE] == 'Still (prediction rolled back)'
    assert keys.SIGMA not in atoms.info
    assert keys.SIGMA not in atoms.arrays
    assert 'rolled back, energy +' in log.read_text()
    again = one_shot(atoms, energy_gate=None, optimizer=Still)
    again.run(fmax=0.01, steps=1)
    assert not np.array_equal(atoms.positions, start.positions)
    assert atoms.info[keys.STAGE] == 'predicted'


class Still(BFGS):
    """Takes steps that go nowhere."""

    def step(self):
        pass


def test_never_worse_than_the_start(one_shot):
    for seed in range(4):
        atoms = bulk('Cu', a=3.9, cubic=True)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        start = atoms.get_potential_energy()
        one_shot(atoms, optimizer=Still).run(steps=1)
        assert atoms.get_potential_energy() <= start


@pytest.mark.parametrize('optimizer', [BFGS, FIRE, partial(FIRE, dt=0.05)])
def test_structures_for_ordinary_relaxation(one_shot, optimizer):
    """What the model cannot take is relaxed exactly as ASE's own optimizer does."""
    wire = bulk('Cu', cubic=True) * (1, 1, 2)
    wire.rattle(0.05, seed=0)
    wire.center(vacuum=5, axis=(0, 1))
    wire.pbc = False, False, True
    wire.set_constraint(FixAtoms([0, 1]))
    hooked = gold()
    hooked.set_constraint(Hookean(0, 1, k=1, rt=2))
    for start in (molecule('CH3CH2OH'), wire, hooked):
        runs = []
        for cls in (
            partial(one_shot, optimizer=optimizer),
            partial(optimizer, logfile=None),
        ):
            atoms = start.copy()
            atoms.calc = EMT()
            runs.append((atoms, cls(atoms)))
        with pytest.warns(UserWarning, match='relaxed without a prediction'):
            runs[0][1].run(fmax=0.05, steps=20)
        runs[1][1].run(fmax=0.05, steps=20)
        (ours, our_run), (theirs, their_run) = runs
        assert our_run.nsteps == their_run.nsteps
        assert np.array_equal(ours.positions, theirs.positions)
        assert ours.info[keys.STAGE].endswith(' (not predicted)')


def test_pressure_is_left_to_the_refinement(one_shot):
    atoms = gold()
    target = FrechetCellFilter(atoms, scalar_pressure=0.1)
    with pytest.warns(UserWarning, match='0 GPa'):
        assert one_shot(target).run(fmax=0.01) is True
    np.testing.assert_allclose(atoms.get_stress()[:3], -0.1, atol=2e-3)


class Lame(EMT):
    """Says nan about one force from the second call on."""

    calls = 0

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.calls += 1
        if self.calls > 1:
            self.results['forces'][3, 1] = np.nan


@pytest.mark.parametrize('optimizer', [BFGS, FIRE])
def test_never_converged_with_numbers_that_are_not_finite(one_shot, optimizer):
    atoms = gold()
    atoms.calc = Lame()
    run = one_shot(atoms, optimizer=optimizer)
    with pytest.raises(RefinementError, match=r'force on atom 3 \(Au\) is not finite'):
        run.run()
    assert np.isfinite(atoms.positions).all()
    assert run.converged() is False
    atoms = molecule('H2O')
    atoms.positions[1] = atoms.positions[0]
    atoms.calc = EMT()
    with pytest.raises(
        StructureError, match=r'atom 0 \(O\) and atom 1 \(H\) are on one site'
    ):
        one_shot(atoms, optimizer=optimizer).run()


def test_optimizer_that_leaves_the_numbers(one_shot):
    class Wild(BFGS):
        def step(self):
            self.optimizable.set_x(np.full(self.optimizable.ndofs(), np.nan))

    atoms = gold()
    run = one_shot(atoms, optimizer=Wild, energy_gate=-np.inf)
    before = atoms.positions.copy()
    with pytest.raises(RefinementError, match='Wild'):
        run.run(fmax=1e-6)
    assert np.array_equal(atoms.positions, before)


def test_interrupted_evaluation_of_the_prediction(one_shot):
    class Once(EMT):
        calls = 0

        def calculate(self, *args, **kwargs):
            self.calls += 1
            if self.calls > 1:
                raise KeyboardInterrupt
            super().calculate(*args, **kwargs)

    atoms = gold()
    atoms.calc = Once()
    before = bits(atoms)
    with pytest.raises(KeyboardInterrupt):
        one_shot(FrechetCellFilter(atoms)).run()
    assert bits(atoms) == before


def test_who_decides_about_the_cell(one_shot):
    def moves(make):
        atoms = bulk('Au', a=4.2, cubic=True)
        atoms.calc = EMT()
        atoms.rattle(0.05, seed=0)
        start = atoms.cell.array.copy()
        assert make(atoms).run(fmax=0.02) is True
        return not np.array_equal(atoms.cell.array, start)

    assert not moves(one_shot)  # as in all of ASE
    assert moves(lambda atoms: one_shot(FrechetCellFilter(atoms)))
    assert moves(lambda atoms: one_shot(atoms, relax_cell=True))
    assert moves(lambda atoms: one_shot().bind(atoms))
    assert not moves(lambda atoms: one_shot(relax_cell=False).bind(atoms))


def test_cell_is_relaxed_to_zero_stress(one_shot):
    atoms = bulk('Au', a=4.25) * (2, 1, 1)
    atoms.rattle(0.05, seed=0)
    atoms.calc = EMT()
    assert one_shot().run(atoms, fmax=0.005) is True
    assert np.abs(atoms.get_stress()).max() < 1e-3
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.005


@pytest.mark.parametrize('kind', [FrechetCellFilter, UnitCellFilter, StrainFilter])
def test_filters_with_calculator(one_shot, kind):
    atoms = bulk('Au', a=4.2, cubic=True)
    atoms.calc = EMT()
    start = atoms.copy()
    target = kind(atoms, mask=[1, 1, 0, 0, 0, 1])
    step = partial(FIRE, maxstep=0.01) if kind is StrainFilter else BFGS
    optimizer = one_shot(target, optimizer=step, energy_gate=None)
    assert optimizer.run(fmax=0.02, steps=300) is True
    change = np.linalg.solve(start.cell.array, atoms.cell.array) - np.eye(3)
    assert np.abs(change[2]).max() < 1e-10
    assert np.abs(change[:2, :2]).max() > 0.01


def test_constraints_with_calculator(one_shot):
    atoms = gold()
    atoms.set_constraint(FixAtoms([1, 2]))
    start = atoms.positions.copy()
    assert one_shot(atoms, energy_gate=None).run(fmax=0.02) is True
    assert np.array_equal(atoms.positions[[1, 2]], start[[1, 2]])
    atoms = bulk('Au', a=4.2, cubic=True)
    atoms.calc = EMT()
    atoms.set_constraint(FixSymmetry(atoms))
    assert one_shot(atoms, relax_cell=True).run(fmax=0.01) is True
    np.testing.assert_allclose(atoms.cell.array, np.eye(3) * atoms.cell[0, 0], atol=1e-9)


def test_calculator_attached_after_the_prediction(one_shot):
    atoms = bulk('Au', a=4.2) * (2, 1, 1)
    atoms.rattle(0.05, seed=0)
    optimizer = one_shot().bind(atoms)
    assert optimizer.run() is True
    atoms.calc = EMT()
    assert optimizer.run(fmax=0.02) is True
    assert optimizer.nsteps > 1
    assert atoms.info[keys.STAGE] == 'ElasticBFGS'
    assert np.abs(atoms.get_stress()).max() < 2e-3


def test_more_atoms_than_in_the_run_before_begin_anew(one_shot):
    atoms = gold()
    atoms.optimizer = one_shot(refine=EMT(), energy_gate=None)
    assert atoms.optimizer.run(fmax=0.02) is True
    atoms *= (2, 1, 1)
    atoms.rattle(0.05, seed=3)
    assert atoms.optimizer.run(fmax=0.02) is True
    assert [record.name for record in atoms.optimizer.stages] == ['prediction', 'emt']
    assert len(atoms.arrays[keys.SIGMA]) == len(atoms) == 8
    assert np.abs(atoms.get_forces()).max() < 0.02


def test_other_elements_than_in_the_run_before_begin_anew(one_shot):
    """As in a loop over substitutions: nothing that was said of one is said of the next."""
    atoms = gold()
    atoms.optimizer = one_shot(energy_gate=None)
    assert atoms.optimizer.run(fmax=0.02) is True
    atoms.info[keys.OOD] = 'said of gold'
    atoms.symbols[:2] = 'Cu'
    assert atoms.optimizer.run(fmax=0.02) is True
    said, refined = atoms.optimizer.stages
    assert (said.name, refined.name) == ('prediction', 'emt')
    assert set(said.atoms.symbols) == {'Au', 'Cu'}
    assert 'gold' not in atoms.info.get(keys.OOD, '')


# --- restart, copies, mistakes ---------------------------------------------------------


@pytest.mark.parametrize('optimizer', [BFGS, FIRE])
@pytest.mark.parametrize('interrupted', [1, 3])
def test_restart_goes_on_where_it_stopped(one_shot, tmp_path, optimizer, interrupted):
    def start():
        atoms = bulk('Au', a=4.2) * (2, 1, 1)
        atoms.rattle(0.05, seed=0)
        atoms.calc = EMT()
        return atoms

    options = {'optimizer': optimizer, 'energy_gate': None, 'relax_cell': True}
    whole = start()
    run = one_shot(whole, **options)
    run.run(fmax=0.01, steps=12)
    atoms, file = start(), tmp_path / 'restart.json'
    one_shot(atoms, restart=file, **options).run(fmax=0.01, steps=interrupted)
    again = atoms.copy()
    again.calc = EMT()
    rest = one_shot(again, restart=file, **options)
    rest.run(fmax=0.01, steps=12 - interrupted)
    assert rest.nsteps + interrupted == run.nsteps
    np.testing.assert_allclose(again.positions, whole.positions, atol=1e-7)
    np.testing.assert_allclose(again.cell.array, whole.cell.array, atol=1e-7)


@pytest.mark.parametrize('text', ['hello', '[1, 2]', '{"outcome": ""}'])
def test_bad_restart_file(one_shot, tmp_path, text):
    file = tmp_path / 'restart.json'
    file.write_text(text)
    with pytest.raises(RestartError, match='Could not decode'):
        one_shot(rocksalt(), restart=file)


@pytest.mark.parametrize('copier', [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies(one_shot, tiny_model, tmp_path, copier):
    atoms = rocksalt()
    size = len(pickle.dumps(atoms))
    with (tmp_path / 'log').open('w') as log:
        optimizer = one_shot(logfile=log, trajectory=tmp_path / 'a.traj').bind(atoms)
        atoms.optimizer = optimizer
        optimizer.attach(lambda: None)
        twin = copier(atoms)
        assert len(pickle.dumps(atoms)) < size + 1500
    assert twin.optimizer is not optimizer
    assert twin.optimizer.atoms is twin
    assert twin.optimizer.run() is True
    assert not np.array_equal(twin.positions, atoms.positions)


@pytest.mark.parametrize('copier', [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_a_predicted_structure_is_not_predicted_again(one_shot, copier):
    atoms = rocksalt()
    atoms.optimizer = one_shot()
    assert atoms.optimizer.run() is True
    twin = copier(atoms)
    assert twin.optimizer.run() is True
    assert (twin.optimizer.nsteps, bits(twin)) == (1, bits(atoms))
    moved = copier(atoms)
    moved.rattle(0.05, seed=0)
    assert moved.optimizer.run() is True
    assert moved.optimizer.nsteps == 2


@pytest.mark.parametrize('copier', [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_a_predicted_structure_can_be_refined(one_shot, copier):
    atoms = gold()
    calculator, atoms.calc = atoms.calc, None
    atoms.optimizer = one_shot()
    assert atoms.optimizer.run() is True
    twin = copier(atoms)
    twin.calc = calculator
    assert twin.optimizer.run(fmax=0.02) is True
    assert [record.name for record in twin.optimizer.stages] == ['prediction', 'emt']


def test_a_calculator_that_comes_during_a_run_refines(one_shot):
    atoms = gold()
    calculator, atoms.calc = atoms.calc, None
    optimizer = one_shot(energy_gate=None).bind(atoms)
    for _ in optimizer.irun(fmax=0.02):
        atoms.calc = calculator
    assert optimizer.converged()
    assert [record.name for record in optimizer.stages] == ['prediction', 'emt']
    assert optimizer.stages[-1].converged


def test_copy_of_a_bound_optimizer_leaves_the_first_alone(one_shot, tmp_path):
    first, second = rocksalt(), rocksalt()
    optimizer = one_shot(trajectory=tmp_path / 'a.traj').bind(first)
    optimizer.run()
    other = optimizer.bind(second)
    assert other is not optimizer
    assert (optimizer.atoms, other.atoms) == (first, second)
    other.run()
    assert len(read(tmp_path / 'a.traj', index=':')) == 4  # two frames of each structure
    assert np.array_equal(first.positions, second.positions)
    optimizer.unbind()
    assert optimizer.atoms is None
    assert optimizer.bind(second) is optimizer


def test_atoms_may_be_forgotten_within_a_run(one_shot):
    atoms = rocksalt()
    optimizer = one_shot(atoms)
    states = optimizer.irun()
    next(states)
    optimizer.unbind()
    states.close()
    assert optimizer.atoms is None
    assert optimizer.run(atoms) is True


def test_a_prediction_alone_leaves_no_restart_file(one_shot, tmp_path):
    """It takes one step: there is nothing to go on with."""
    file = tmp_path / 'restart.json'
    assert one_shot(rocksalt(), restart=file).run() is True
    assert not file.exists()


def test_before_binding(one_shot):
    optimizer = one_shot()
    with pytest.raises(ValueError, match='not bound'):
        optimizer.run()
    with pytest.raises(AttributeError, match='bound to atoms'):
        optimizer.attach(print)
    with pytest.raises(AttributeError, match=r"attribute 'nonsense'$"):
        one_shot(rocksalt()).nonsense  # noqa: B018


def test_no_force_at_all_can_be_asked_for(one_shot):
    optimizer = one_shot(gold())
    assert optimizer.run(fmax=0, steps=2) is False
    assert optimizer.nsteps == 2


@pytest.mark.parametrize('fmax', [-1.0, np.nan, '0.05', None, [0.05]])
def test_fmax_must_make_sense(one_shot, fmax):
    for atoms in (gold(), rocksalt()):  # with a calculator, and without one
        before = bits(atoms)
        with pytest.raises(ValueError, match=re.escape(f'fmax is {fmax!r}; it must be')):
            one_shot(atoms).run(fmax=fmax)
        assert bits(atoms) == before


@pytest.mark.parametrize(
    'wrong',
    [
        {'energy_gate': np.nan},
        {'energy_gate': '0'},
        {'guided': -0.1},
        {'guided': np.nan},
        {'relax_cell': 'nonsense'},
        {'relax_cell': [1, 0]},
    ],
)
def test_options_that_make_no_sense_are_refused_before_there_are_atoms(one_shot, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        one_shot(**wrong)


def test_models(tiny_model):
    model = load_model(tiny_model)
    positions = []
    for given in (tiny_model, str(tiny_model), model):
        atoms = rocksalt()
        optimizer = DeepRelaxOptimizer(atoms, model=given, logfile=None)
        optimizer.run()
        assert 'tiny' in optimizer.todict()['model']
        positions.append(atoms.positions)
    assert np.ptp(positions, axis=0).max() == 0
    atoms = rocksalt()
    before = bits(atoms)
    with pytest.raises(ModelError, match='nonsense'):
        DeepRelaxOptimizer(atoms, model='nonsense', logfile=None).run()
    assert bits(atoms) == before


def test_shipped_model():
    from ase_deeprelax.models.folders import DEFAULT

    atoms = bulk('NaCl', 'rocksalt', a=5.9)
    volume = atoms.cell.volume
    assert DeepRelaxOptimizer(atoms, logfile=None).run() is True
    assert atoms.info[keys.MODEL] == DEFAULT
    assert 0.7 < atoms.cell.volume / volume < 1.05


def test_copies_take_a_shipped_model_along_by_its_name(tmp_path, monkeypatch):
    # Machine code, which only a model by its name uses, would differ in the last digits.
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    for given in ('deeprelax', load_model('deeprelax')):
        atoms = rocksalt()
        optimizer = DeepRelaxOptimizer(atoms, model=given, logfile=None)
        assert optimizer.run() is True
        data = pickle.dumps(optimizer)
        assert len(data) < 20_000
        twin = pickle.loads(data)
        twin.atoms.set_cell(rocksalt().cell)
        twin.atoms.set_positions(rocksalt().positions)
        assert twin.run() is True
        assert np.array_equal(twin.atoms.positions, atoms.positions)
