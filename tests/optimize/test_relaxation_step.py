"""Any optimizer of ASE, step by step: restarted, interrupted, with broken calculators."""

import re
import signal

import ase.optimize
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter, StrainFilter
from ase.io import read
from ase.io.jsonio import decode, encode
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.optimize.basin import BasinHopping
from ase.optimize.climbfixinternals import BFGSClimbFixInternals
from ase.optimize.optimize import Optimizer
from ase.optimize.sciopt import SciPyFminBFGS

from ase_deeprelax import DeepRelaxOptimizer, ElasticBFGS, Stage, keys
from ase_deeprelax.errors import ConfigError, DeepRelaxWarning, RefinementError
from ase_deeprelax.geometry.snapshot import Snapshot, assign, interrupts_wait
from ase_deeprelax.optimize.ase_optimizers import find_optimizer
from ase_deeprelax.optimize.relaxation_step import (
    GuardedOptimizer,
    check_finite,
    check_limits,
)
from tests.alloys import alloy_with_emt as alloy
from tests.alloys import place

NAMES = [n for n in ase.optimize.__all__ if n not in ('RestartError', 'ODE12r')]
NAMES.append('ElasticBFGS')


def cell_filter(atoms, name):
    # CellAwareBFGS takes true strains only.
    factor = 1.0 if name == 'CellAwareBFGS' else None
    return FrechetCellFilter(atoms, exp_cell_factor=factor)


@pytest.mark.parametrize('name', NAMES)
def test_restarted_after_each_step_it_goes_the_same_way(name):
    whole, parts = alloy(), alloy()
    guarded = GuardedOptimizer(cell_filter(whole, name), name)
    target, state = cell_filter(parts, name), None
    origin = target.orig_cell.copy()
    for _ in range(8):
        guarded.step(0.02)
        again = GuardedOptimizer(target, name)
        if state is not None:
            again.load_state_dict(state)
        again.step(0.02)
        state = decode(encode(again.state_dict()), always_array=False)
        np.testing.assert_allclose(place(parts), place(whole), rtol=0, atol=1e-10)
        target = cell_filter(parts, name)
        target.orig_cell = origin


@pytest.mark.parametrize('name', NAMES)
def test_all_of_ase_by_name(tiny_model, name):
    atoms = alloy()
    optimizer = DeepRelaxOptimizer(
        atoms, refine=EMT(), optimizer=name, model=tiny_model, logfile=None
    )
    assert optimizer.run(fmax=0.05, steps=150)
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.06
    assert optimizer.stages[-1].optimizer in (name, 'BFGSLineSearch')  # = QuasiNewton


def test_what_is_no_optimizer_is_refused_before_anything_moves():
    atoms = alloy()
    before = place(atoms)
    for wrong in ('bfgs', 'ODE12r', SciPyFminBFGS, BasinHopping, VelocityVerlet, dict, 3):
        for make in (
            lambda wrong=wrong: DeepRelaxOptimizer(atoms, optimizer=wrong),
            lambda wrong=wrong: Stage(EMT(), optimizer=wrong),
            lambda wrong=wrong: GuardedOptimizer(atoms, wrong),
        ):
            with pytest.raises(ConfigError, match='optimizer'):
                make()
    assert np.array_equal(place(atoms), before)
    assert find_optimizer('ElasticBFGS') is ElasticBFGS
    for wrong in ('BFGS', None, 1):
        with pytest.raises(TypeError, match=r'DeepRelaxOptimizer\(\)'):
            atoms.optimizer = wrong


MADE_WRONGLY = {
    'not an optimizer': lambda atoms, logfile: VelocityVerlet(atoms, 1.0, logfile=logfile),
    'nothing': lambda atoms, logfile: None,
    'other arguments': lambda atoms: BFGS(atoms),  # noqa: PLW0108
    'not for this structure': BFGSClimbFixInternals,
}


@pytest.mark.parametrize('make', MADE_WRONGLY.values(), ids=MADE_WRONGLY)
@pytest.mark.parametrize('cell', [False, True])
def test_what_makes_no_optimizer_is_refused_before_anything_moves(tiny_model, make, cell):
    for options in (
        {'optimizer': make},
        {'optimizer': make, 'refine': EMT()},
        {'refine': [EMT(), Stage(EMT(), optimizer=make)]},
    ):
        atoms = alloy()
        before = place(atoms)
        optimizer = DeepRelaxOptimizer(
            atoms, relax_cell=cell, model=tiny_model, logfile=None, **options
        )
        with pytest.raises(ConfigError, match="choose another optimizer, as 'BFGS'"):
            optimizer.run(fmax=0.05, steps=5)
        assert np.array_equal(place(atoms), before)


class Wrong(EMT):
    """EMT of which some results are nan from a given call on."""

    def __init__(self, names, left):
        super().__init__()
        self.names, self.left = names, left

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.left -= 1
        if self.left < 0:
            for name in self.names:
                self.results[name] = self.results[name] * np.nan


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('results', [('energy', 'free_energy'), ('forces',)])
def test_broken_calculators_end_every_optimizer_without_a_trace(name, results):
    """A line search would go on for ever with them."""
    atoms = alloy()
    atoms.calc = Wrong(results, 3)
    guarded = GuardedOptimizer(
        atoms if name != 'CellAwareBFGS' else cell_filter(atoms, name), name
    )
    places = [place(atoms)]

    def steps():
        for _ in range(20):
            guarded.step(1e-6)
            places.append(place(atoms))
            guarded.optimizer.optimizable.get_value()

    with pytest.raises((RefinementError, np.linalg.LinAlgError)):
        steps()
    assert any(np.array_equal(place(atoms), one) for one in places)


@pytest.mark.parametrize('name', ['energy', 'forces'])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('gate', [None, 0.0, 1e9])
def test_no_gate_lets_numbers_pass_that_are_not_finite(tiny_model, name, value, gate):
    class Once(EMT):
        """EMT that gives such a number for the second structure, the predicted one."""

        calls = 0

        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)
            self.calls += 1
            if self.calls == 2 and name == 'energy':
                self.results['energy'] = self.results['free_energy'] = value
            elif self.calls == 2:
                self.results['energy'] -= 1000.0
                self.results['forces'][0, 0] = value

    atoms = alloy()
    start = place(atoms)
    optimizer = DeepRelaxOptimizer(
        atoms, refine=Once(), energy_gate=gate, model=tiny_model, logfile=None
    )
    places = []
    optimizer.attach(lambda: places.append(place(atoms)))
    optimizer.run(fmax=0.05, steps=1)
    record = optimizer.stages[0]
    assert record.status == 'failed'
    reason = (
        f'the energy is {value} eV' if name == 'energy' else 'the forces are not finite'
    )
    assert record.reason == reason
    if name == 'energy':
        assert record.to_dict()['energy_after'] is None
    assert np.array_equal(places[0], start)
    assert keys.SIGMA not in atoms.info


class Shelf(EMT):
    """Forces of EMT, and an energy that the k-th structure has more than the first, eV."""

    def __init__(self, rises):
        super().__init__()
        self.rises = list(rises)

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        rise = self.rises.pop(0) if len(self.rises) > 1 else self.rises[0]
        self.results['energy'] = self.results['free_energy'] = rise


@pytest.mark.parametrize(('rise', 'kept'), [(1e-4, False), (-1e-4, True)])
def test_gate_is_sharp_to_a_tenth_of_a_meV_per_atom(tiny_model, rise, kept):
    atoms = alloy()
    optimizer = DeepRelaxOptimizer(
        atoms, refine=Shelf([0.0, rise * len(atoms)]), model=tiny_model, logfile=None
    )
    optimizer.run(fmax=1e-9, steps=1)
    assert (optimizer.stages[0].status == 'converged') is kept


@pytest.mark.parametrize(
    ('rise', 'status'), [(0.9e-3, 'not converged'), (1.1e-3, 'failed')]
)
def test_a_stage_may_end_one_meV_per_atom_above_its_start(tiny_model, rise, status):
    atoms = alloy()
    calculator = Shelf([0.0, 9.0, rise * len(atoms)])  # start, prediction, the one step
    optimizer = DeepRelaxOptimizer(
        atoms, refine=Stage(calculator, steps=1), model=tiny_model, logfile=None
    )
    optimizer.run(fmax=1e-9)
    assert optimizer.stages[-1].status == status


class NoStress(EMT):
    implemented_properties = ('energy', 'free_energy', 'forces')

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.results.pop('stress', None)


def test_without_a_stress_the_cell_is_held_with_a_warning(tiny_model):
    atoms = alloy()
    atoms.calc = NoStress()
    atoms.optimizer = DeepRelaxOptimizer(model=tiny_model, logfile=None)
    with pytest.warns(DeepRelaxWarning, match='relax_cell=False'):
        assert atoms.optimizer.run(fmax=0.02)
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.02


@pytest.mark.parametrize('part', ['positions', 'cell'])
def test_positions_and_cells_that_are_not_finite_are_taken_back(part):
    class Leaves(BFGS):
        """Takes one number out of the structure."""

        def step(self):
            array = atoms.positions if part == 'positions' else atoms.cell.array
            array[2, 1] = np.nan

    atoms = alloy()
    before = place(atoms)
    with pytest.raises(RefinementError, match='Leaves proposed positions'):
        GuardedOptimizer(FrechetCellFilter(atoms), Leaves).step(0.05)
    assert np.array_equal(place(atoms), before)


def test_the_first_atom_whose_force_is_not_finite_is_named():
    atoms = alloy()
    for k in range(3 * len(atoms) + 9):
        gradient = np.zeros(3 * len(atoms) + 9)
        gradient[k:] = np.nan
        where = 'the stress is'
        if k < 3 * len(atoms):
            where = f'the force on atom {k // 3} ({atoms.symbols[k // 3]}) is'
        with pytest.raises(RefinementError, match=re.escape(f'emt: {where} not finite')):
            check_finite(atoms, gradient)
    check_finite(atoms, np.zeros(3 * len(atoms)))


def test_limits_that_make_no_sense_are_refused():
    check_limits(0, 0)
    check_limits(np.float32(0.05), np.int64(200))
    for fmax in (-0.1, np.nan, '0.05', None):
        with pytest.raises(ValueError, match=re.escape(f'fmax is {fmax!r}; ')):
            check_limits(fmax, 200)
    for steps in (-1, 2.0, np.inf, '3', None):
        with pytest.raises(ValueError, match=re.escape(f'steps is {steps!r}; ')):
            check_limits(0.05, steps)


class EnergyInAnArray(EMT):
    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        for name in ('energy', 'free_energy'):
            self.results[name] = np.array([self.results[name]])


@pytest.mark.parametrize('options', [{}, {'refine': EnergyInAnArray()}])
def test_an_energy_may_come_as_an_array(tiny_model, options):
    atoms = alloy()
    atoms.calc = EnergyInAnArray()
    optimizer = DeepRelaxOptimizer(atoms, model=tiny_model, logfile='-', **options)
    assert optimizer.run(fmax=0.02)


def test_basin_hopping_takes_the_class(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.random.seed(0)  # noqa: NPY002 - ASE's own generator
    atoms = alloy()
    start = atoms.get_potential_energy()

    def optimizer(atoms, logfile=None, trajectory=None):
        return DeepRelaxOptimizer(atoms, logfile=logfile, model=tiny_model)

    hopping = BasinHopping(
        atoms, optimizer=optimizer, dr=0.1, fmax=0.1, logfile=None, optimizer_logfile=None
    )
    hopping.run(2)
    energy, _ = hopping.get_minimum()
    assert energy < start


def test_one_optimizer_writes_whole_trajectories_of_many_atoms(tiny_model, tmp_path):
    path, one = tmp_path / 'all.traj', []
    optimizer = DeepRelaxOptimizer(trajectory=path, model=tiny_model, logfile=None)
    for seed in range(3):
        atoms = bulk('MgO', 'rocksalt', a=4.3) * (2, 1, 1)
        atoms.rattle(0.08, seed=seed)
        one += [atoms.copy()]
        optimizer.run(atoms)
        one += [atoms.copy()]
    frames = read(path, index=':')
    assert len(frames) == len(one) == 6
    for frame, atoms in zip(frames, one, strict=True):
        assert np.array_equal(place(frame), place(atoms))


@pytest.mark.skipif(not hasattr(signal, 'raise_signal'), reason='no signals here')
def test_an_interrupt_never_leaves_half_a_structure(monkeypatch):
    """Ctrl-C arrives while the cell is written, before the positions are."""
    atoms = alloy()
    goal = Snapshot.take(atoms * 1)
    goal.cell[:] *= 1.1
    goal.positions[:] += 1.0
    whole = type(atoms).set_cell

    def interrupted(self, *args, **kwargs):
        whole(self, *args, **kwargs)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(type(atoms), 'set_cell', interrupted)
    with pytest.raises(KeyboardInterrupt):
        assign(atoms, goal.cell, goal.positions)
    assert np.array_equal(place(atoms), np.concatenate([goal.positions, goal.cell]))
    strained = StrainFilter(atoms)
    strained.strain[:] = 0.1
    with pytest.raises(KeyboardInterrupt):
        Snapshot(goal.cell * 2, goal.positions * 2, np.zeros(6)).restore(strained)
    assert np.array_equal(place(atoms), 2 * np.concatenate([goal.positions, goal.cell]))
    assert not strained.strain.any()


@pytest.mark.skipif(not hasattr(signal, 'raise_signal'), reason='no signals here')
def test_an_interrupt_is_not_lost_where_the_block_fails():
    def fails():
        with interrupts_wait():
            signal.raise_signal(signal.SIGINT)
            raise ValueError('after Ctrl-C')

    with pytest.raises(KeyboardInterrupt):
        fails()


@pytest.mark.parametrize('name', ['BFGS', 'FIRE', 'GPMin'])
def test_a_state_that_was_loaded_is_given_back_and_holds_no_matrix_twice(name):
    guarded = GuardedOptimizer(alloy(), name)
    guarded.optimizer.mine = [1, object()]  # nothing that a file could hold
    for _ in range(3):
        guarded.step(0.01)
    state = guarded.state_dict()
    text = encode(state)
    again = GuardedOptimizer(alloy(), name)
    again.load_state_dict(decode(text, always_array=False))
    assert encode(again.state_dict()) == text
    arrays = [x for x in state['values'].values() if isinstance(x, np.ndarray)]
    assert state['dumped'] is None or all(array.ndim < 2 for array in arrays)


def test_the_state_of_a_run_stays_out_of_the_state_of_an_optimizer():
    atoms = alloy()
    guarded = GuardedOptimizer(atoms, 'BFGS')
    guarded.step(0.05)
    assert not set(guarded.state_dict()['values']) & set(
        vars(Optimizer(atoms, logfile=None))
    )
