"""The chain of stages: DeepRelaxOptimizer(refine=[...])."""

import copy
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, make_supercell, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms, FixScaled, FixSymmetry
from ase.filters import FrechetCellFilter, StrainFilter, UnitCellFilter
from ase.io import read
from ase.optimize import BFGS, FIRE, LBFGS, RestartError

from ase_deeprelax import DeepRelaxOptimizer, keys
from ase_deeprelax.calculators.registry import POTENTIALS
from ase_deeprelax.errors import DeepRelaxWarning
from ase_deeprelax.optimize.stage import Stage, as_stages
from tests.alloys import alloy, place

SHARED = Path(__file__).parents[2] / '../shared/potentials'


class Counting(EMT):
    """EMT of another name, which counts how often it is asked."""

    name = 'counting'
    calls = 0

    def calculate(self, *args, **kwargs):
        self.calls += 1
        super().calculate(*args, **kwargs)


def relaxed_forces(atoms):
    twin = atoms.copy()
    twin.set_constraint()
    twin.calc = EMT()
    return FrechetCellFilter(twin).get_forces()


# --- what is asked ---------------------------------------------------------------------


def test_what_a_stage_can_be_made_from():
    stages = as_stages(['chgnet', 'tensornet:/x', EMT(), EMT, Stage(Counting(), steps=3)])
    assert [stage.name for stage in stages] == [
        'chgnet',
        'tensornet',
        'emt',
        'EMT',
        'counting',
    ]
    assert as_stages(None) == []
    assert [stage.name for stage in as_stages('chgnet')] == ['chgnet']
    assert stages[3].build_calculator() is stages[3].build_calculator()  # made once
    for twin in (copy.deepcopy(stages[3]), pickle.loads(pickle.dumps(stages[3]))):
        assert twin.build_calculator() is not stages[3].build_calculator()
    for wrong in (
        *({'fmax': value} for value in (-1, '0.05', [0.05])),
        *({'steps': value} for value in (0, 2.5, '3')),
        *({'min_sigma': value} for value in (np.nan, '0.1')),
        *({'guided': value} for value in (0.0, '0.02', None)),
    ):
        [(name, value)] = wrong.items()
        with pytest.raises(ValueError, match=re.escape(f'{name} is {value!r}; ')):
            Stage(EMT(), **wrong)
    mask = np.array([1, 1, 0, 0, 0, 1])
    assert repr(Stage(EMT(), relax_cell=mask)) == f'Stage(emt, relax_cell={mask!r})'


# --- what is done ----------------------------------------------------------------------


def test_two_stages(one_shot, tmp_path):
    atoms = alloy()
    first, last = Counting(), EMT()
    chain = [Stage(first, optimizer=FIRE, fmax=0.3), last]
    log, traj = tmp_path / 'relax.log', tmp_path / 'relax.traj'
    with one_shot(atoms, refine=chain, logfile=log, trajectory=traj) as optimizer:
        assert optimizer.run(fmax=0.01) is True
    assert optimizer.converged()
    assert np.linalg.norm(relaxed_forces(atoms), axis=1).max() < 0.01
    assert atoms.calc is last
    assert atoms.info[keys.STAGE] == 'emt, ElasticBFGS'

    said, one, two = optimizer.stages
    assert (said.name, one.name, two.name) == ('prediction', 'counting', 'emt')
    assert (one.optimizer, two.optimizer) == ('FIRE', 'ElasticBFGS')
    assert one.converged
    assert two.converged
    assert one.fmax < 0.3
    assert two.fmax < 0.01
    assert one.energy_after < one.energy_before
    assert two.energy_before == pytest.approx(one.energy_after)  # the same potential
    assert two.energy_after == pytest.approx(atoms.get_potential_energy())
    assert np.array_equal(place(two.atoms), place(atoms))
    assert 0 < one.spacegroup <= 230
    # the start, the prediction and each step, and no call more
    assert first.calls == 1 + said.steps + one.steps + (not said.converged)
    assert optimizer.nsteps == said.steps + one.steps + 1 + two.steps

    frames = read(traj, index=':')
    assert len(frames) == optimizer.nsteps + 1
    assert np.array_equal(frames[-1].positions, atoms.positions)
    lines = log.read_text().splitlines()
    summaries = [line for line in lines if line.startswith('stage ')]
    assert len(summaries) == 2
    assert summaries[0].startswith('stage 1 of 2, counting, FIRE: converged, ')
    assert f'{two.steps} steps, energy ' in summaries[1]
    assert lines[-1] == summaries[1]
    assert len(lines) == 1 + len(frames) + 2
    back = json.loads(json.dumps([record.to_dict() for record in optimizer.stages]))
    assert back[2]['status'] == 'converged'
    assert back[2]['spacegroup'] == two.spacegroup
    assert 'atoms' not in back[2]


class Smeared(EMT):
    """Forces belong to a free energy below the energy, as those of metals in DFT do."""

    name = 'smeared'

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.results['free_energy'] = self.results['energy'] - 1.0


@pytest.mark.parametrize('gate', [None, -10.0], ids=['accepted', 'rolled back'])
def test_all_records_have_one_kind_of_energy(one_shot, gate):
    atoms = alloy()
    start = atoms.copy()
    start.calc = EMT()
    optimizer = one_shot(atoms, refine=[Smeared(), EMT()], energy_gate=gate)
    assert optimizer.run(fmax=0.01) is True
    said, first, last = optimizer.stages
    assert said.energy_before == pytest.approx(start.get_potential_energy())
    known = said.energy_before if gate else said.energy_after
    assert first.energy_before == pytest.approx(known)
    assert last.energy_before == pytest.approx(first.energy_after)


def test_the_accessor_and_every_way_to_bind(one_shot):
    ends = []
    for way in ('constructor', 'assignment', 'run', 'another'):
        atoms = alloy()
        chain = [Stage(EMT(), fmax=0.2), EMT]
        if way == 'constructor':
            assert one_shot(atoms, refine=chain).run(fmax=0.02) is True
        elif way == 'run':
            assert one_shot(refine=chain).run(atoms, fmax=0.02) is True
        else:
            atoms.optimizer = one_shot(refine=chain)
            if way == 'another':
                first, atoms = atoms, alloy()
                atoms.optimizer = first.optimizer
                assert first.optimizer.stages == []
            assert atoms.optimizer.run(fmax=0.02) is True
            assert len(atoms.optimizer.stages) == 3
        ends.append(place(atoms))
    assert np.ptp(ends, axis=0).max() < 1e-9
    assert one_shot().stages == []


def test_a_chain_of_one_is_the_ordinary_refinement(one_shot):
    given, chained = alloy(), alloy()
    given.calc = EMT()
    plain = one_shot(given, relax_cell=True)
    chain = one_shot(chained, refine=EMT())
    assert plain.run(fmax=0.01) is True
    assert chain.run(fmax=0.01) is True
    assert np.array_equal(place(given), place(chained))
    assert plain.nsteps == chain.nsteps
    for one, two in zip(plain.stages, chain.stages, strict=True):
        assert one.name == two.name
        assert one.steps == two.steps
        assert one.energy_after == pytest.approx(two.energy_after)


def test_without_refinement_there_is_the_prediction_alone(one_shot):
    atoms = alloy()
    optimizer = one_shot(atoms)
    assert optimizer.stages == []
    optimizer.run()
    [record] = optimizer.stages
    assert (record.name, record.status, record.steps) == ('prediction', 'converged', 1)
    assert record.energy_after is None
    assert np.array_equal(place(record.atoms), place(atoms))


def test_each_stage_has_its_own_freedom(one_shot):
    atoms = alloy()
    mask = partial(FrechetCellFilter, mask=[1, 1, 0, 0, 0, 0])
    chain = [
        Stage(EMT(), relax_cell=False),
        Stage(EMT(), relax_cell=mask),
        Stage(EMT(), relax_cell=partial(StrainFilter, mask=[0, 0, 1, 0, 0, 0]), steps=3),
        Stage(EMT(), relax_cell=True),
    ]
    optimizer = one_shot(atoms, refine=chain, optimizer=partial(BFGS, maxstep=0.02))
    assert optimizer.run(fmax=0.02) is True
    said, fixed, some, strained, free = (record.atoms for record in optimizer.stages)
    assert np.array_equal(fixed.cell.array, said.cell.array)
    change = np.linalg.solve(fixed.cell.array, some.cell.array) - np.eye(3)
    assert np.abs(np.diag(change)[:2]).min() > 1e-4
    assert np.abs(change[2]).max() < 1e-12
    change = np.linalg.solve(some.cell.array, strained.cell.array) - np.eye(3)
    assert abs(change[2, 2]) > 1e-4
    assert np.abs(change[:2]).max() < 1e-12
    assert np.linalg.norm(relaxed_forces(free), axis=1).max() < 0.02


@pytest.mark.parametrize('kind', [FrechetCellFilter, UnitCellFilter])
def test_filters_and_constraints_are_honoured(one_shot, kind):
    atoms = alloy()
    atoms.set_constraint(FixAtoms([1]))
    start = atoms.copy()
    target = kind(atoms, mask=[1, 1, 0, 0, 0, 1])
    chain = [Stage(EMT(), fmax=0.2), EMT()]
    assert one_shot(target, refine=chain).run(fmax=0.03) is True
    change = np.linalg.solve(start.cell.array, atoms.cell.array) - np.eye(3)
    assert np.abs(change[2]).max() < 1e-9
    assert np.abs(change[:2]).max() > 1e-3
    moved = atoms.cell.scaled_positions(atoms.positions)
    moved -= start.cell.scaled_positions(start.positions)
    assert np.abs(moved[1]).max() < 1e-12
    assert len(atoms.constraints) == 1


def test_symmetry_is_kept_through_all_stages(one_shot):
    atoms = bulk('Cu', cubic=True, a=3.8)
    atoms.set_constraint(FixSymmetry(atoms))
    optimizer = one_shot(atoms, refine=[Stage(EMT(), fmax=0.2), EMT()])
    assert optimizer.run(fmax=0.01) is True
    assert {record.spacegroup for record in optimizer.stages} == {225}


def test_molecules_are_refined_without_a_prediction(one_shot):
    atoms = molecule('CH3CH2OH')
    optimizer = one_shot(atoms, refine=[Stage(EMT(), fmax=0.5), EMT()])
    with pytest.warns(DeepRelaxWarning, match='without a prediction'):
        assert optimizer.run(fmax=0.05) is True
    assert optimizer.stages[0].status == 'skipped'
    assert 'pbc is False' in optimizer.stages[0].reason
    assert atoms.info[keys.KIND] == 'other, cell fixed'
    assert atoms.info[keys.STAGE] == 'emt, ElasticBFGS (not predicted)'
    assert optimizer.stages[1].spacegroup == 0


def test_steps_of_a_stage_and_of_a_run(one_shot):
    atoms = alloy()
    optimizer = one_shot(atoms, refine=[Stage(EMT(), steps=2), Stage(Counting(), steps=3)])
    assert optimizer.run(fmax=1e-9) is False
    assert [record.status for record in optimizer.stages[1:]] == ['not converged'] * 2
    assert [record.steps for record in optimizer.stages[1:]] == [2, 3]
    assert '3 steps' in optimizer.stages[-1].reason
    assert atoms.info[keys.STAGE] == 'counting, ElasticBFGS (not converged)'
    assert optimizer.converged() is False
    # another run goes on with the last stage
    assert optimizer.run(fmax=1e-5, steps=1) is False
    assert optimizer.stages[-1].status == 'running'
    assert optimizer.run(fmax=0.3) is True
    assert [record.name for record in optimizer.stages[3:]] == ['counting']
    assert optimizer.run(fmax=0.3) is True
    assert len(optimizer.stages) == 4

    in_bits, steps = alloy(), 0
    optimizer = one_shot(in_bits, refine=[Stage(EMT(), fmax=0.2), EMT()])
    while not optimizer.run(fmax=0.01, steps=1):
        steps += 1
        assert steps < 100
    whole = alloy()
    one_shot(whole, refine=[Stage(EMT(), fmax=0.2), EMT()]).run(fmax=0.01)
    np.testing.assert_allclose(place(in_bits), place(whole), atol=1e-9)


def test_a_tighter_run_goes_on_with_what_the_optimizer_learnt(one_shot):
    atoms, direct = alloy(), alloy()
    optimizer = one_shot(atoms, refine=[Stage(EMT(), fmax=0.3), EMT()])
    assert optimizer.run(fmax=0.1) is True
    assert optimizer.run(fmax=0.01) is True
    other = one_shot(direct, refine=[Stage(EMT(), fmax=0.3), EMT()])
    assert other.run(fmax=0.01) is True
    assert np.array_equal(place(atoms), place(direct))
    assert optimizer.nsteps == other.nsteps


def test_atoms_changed_between_runs_are_what_goes_on(one_shot):
    atoms = alloy()
    optimizer = one_shot(atoms, refine=EMT())
    assert optimizer.run(fmax=0.01, steps=3) is False
    atoms.rattle(0.1, seed=5)
    changed = atoms.copy()
    changed.calc = EMT()
    assert optimizer.run(fmax=0.001) is True
    assert [record.name for record in optimizer.stages] == ['prediction', 'emt']
    record, begun = optimizer.stages[-1], changed.get_potential_energy()
    assert record.energy_before == pytest.approx(begun)
    assert record.energy_before > record.energy_after
    # Its filter measures strain from the first cell, `relaxed_forces` from the last.
    assert np.linalg.norm(relaxed_forces(atoms), axis=1).max() < 0.01


class Ordered(EMT):
    """EMT of which each unpaired moment costs energy."""

    name = 'ordered'

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        cost = abs(self.atoms.get_initial_magnetic_moments().sum())
        self.results['energy'] += cost
        self.results['free_energy'] = self.results['energy']


@pytest.mark.parametrize('steps', [3, 100], ids=['within a run', 'after it'])
@pytest.mark.parametrize('own', [True, False], ids=['refine', 'calculator'])
def test_another_magnetic_order_is_no_step_uphill(one_shot, own, steps):
    atoms = alloy()
    atoms.set_initial_magnetic_moments([1, -1, 1, -1])
    atoms.calc = None if own else Ordered()
    optimizer = one_shot(atoms, refine=Ordered() if own else None, relax_cell=True)
    assert optimizer.run(fmax=0.01, steps=steps) is (steps == 100)
    atoms.set_initial_magnetic_moments([1, 1, 1, 1])
    assert optimizer.run(fmax=0.01) is True
    record = optimizer.stages[-1]
    assert record.status == 'converged'
    assert record.energy_after == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    assert 0 <= record.energy_before - record.energy_after < 1
    assert record.energy_after > 3.5


def test_a_structure_that_was_changed_and_needs_no_step_has_a_record(one_shot):
    atoms = alloy()
    optimizer = one_shot(atoms, refine=EMT())
    assert optimizer.run(fmax=0.01) is True
    atoms.set_cell(atoms.cell.array * 1.01, scale_atoms=True)
    assert optimizer.run(fmax=100.0) is True
    record = optimizer.stages[-1]
    assert record.steps == 0
    assert record.energy_after == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    assert np.array_equal(place(record.atoms), place(atoms))


@pytest.mark.parametrize('steps', [3, 100], ids=['within a run', 'after it'])
def test_a_symmetry_that_is_no_longer_fixed_may_break(one_shot, steps):
    """The filter of the run before holds the shape of the cell."""
    atoms = bulk('Cu', cubic=True, a=3.7)
    cubic = FixSymmetry(atoms)
    atoms.symbols[:2] = 'Au'  # layers of gold and copper
    atoms.set_constraint(cubic)
    optimizer = one_shot(atoms, refine=EMT(), energy_gate=-10.0)
    optimizer.run(fmax=1e-4, steps=steps)
    assert np.ptp(atoms.cell.lengths()) < 1e-6
    atoms.set_constraint()
    assert optimizer.run(fmax=0.01) is True
    assert np.ptp(atoms.cell.lengths()) > 0.1


def test_threads_share_no_calculator(one_shot):
    """They share the settings: one optimizer, bound to the atoms of each."""

    def relaxed(optimizer, seed):
        atoms = alloy(seed=seed)
        optimizer.bind(atoms).run(fmax=0.01, steps=10)
        return place(atoms)

    alone = [relaxed(one_shot(refine=EMT), seed) for seed in range(4)]
    shared = one_shot(refine=EMT)
    with ThreadPoolExecutor(4) as executor:
        together = list(executor.map(partial(relaxed, shared), range(4)))
    np.testing.assert_allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize('steps', [3, 100], ids=['within a run', 'after it'])
@pytest.mark.parametrize('own', [True, False], ids=['refine', 'calculator'])
def test_what_is_held_is_held_at_the_cell_that_a_run_finds(one_shot, own, steps):
    """As in a scan of the third vector, where the others relax."""
    atoms = alloy()
    atoms.calc = None if own else EMT()
    held = [1, 1, 0, 0, 0, 1]
    atoms.optimizer = one_shot(refine=EMT() if own else None, relax_cell=held)
    atoms.optimizer.run(fmax=0.01, steps=steps)
    atoms.set_cell(atoms.cell.array * [[1], [1], [1.04]], scale_atoms=True)
    wanted = atoms.cell.array[2].copy()
    assert atoms.optimizer.run(fmax=0.01) is True
    np.testing.assert_allclose(atoms.cell.array[2], wanted, rtol=0, atol=1e-9)
    alone = atoms.copy()
    alone.calc = EMT()
    forces = FrechetCellFilter(alone, mask=held).get_forces()
    assert np.linalg.norm(forces, axis=1).max() < 0.02


def test_what_a_stage_before_moved_is_held_where_it_is(one_shot):
    atoms = alloy()
    chain = [Stage(EMT(), relax_cell=True), Stage(EMT(), fmax=1e-3)]
    optimizer = one_shot(atoms, refine=chain, relax_cell=[1, 1, 0, 0, 0, 1])
    assert optimizer.run(fmax=0.02) is True
    _, free, held = (record.atoms.cell[2, 2] for record in optimizer.stages)
    assert abs(free - alloy().cell[2, 2]) > 1e-3
    assert held == pytest.approx(free, abs=1e-9)


@pytest.mark.parametrize('left', [None, EMT()], ids=['none', 'another'])
def test_a_stage_goes_on_with_its_own_calculator(one_shot, left):
    atoms, calculator = alloy(), Counting()
    optimizer = one_shot(atoms, refine=calculator)
    assert optimizer.run(fmax=0.001, steps=2) is False
    atoms.calc = left  # as after a look at something else
    calls = calculator.calls
    assert optimizer.run(fmax=0.001) is True
    assert calculator.calls > calls
    assert atoms.calc is calculator
    assert [record.name for record in optimizer.stages] == ['prediction', 'counting']


@pytest.mark.parametrize('steps', [3, 100], ids=['within a run', 'after it'])
def test_another_calculator_between_runs_begins_anew(one_shot, steps):
    class Shifted(Counting):
        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)
            for name in 'energy', 'free_energy':
                self.results[name] += 1000

    atoms = alloy()
    atoms.calc = EMT()
    optimizer = one_shot(FrechetCellFilter(atoms))
    assert optimizer.run(fmax=0.01, steps=steps) is (steps == 100)
    atoms.calc = Shifted()
    assert optimizer.run(fmax=0.001) is True
    *_, before, after = optimizer.stages
    assert (before.name, after.name) == ('emt', 'counting')
    assert before.energy_after < after.energy_after
    # Energies of two calculators are no difference, and no step uphill.
    assert 0 <= after.energy_before - after.energy_after < 10
    assert np.linalg.norm(relaxed_forces(atoms), axis=1).max() < 0.01


# --- sigma decides ---------------------------------------------------------------------


def test_sure_predictions_need_no_refinement(one_shot):
    atoms, calculator = alloy(), Counting()
    optimizer = one_shot(atoms, refine=[Stage(calculator, min_sigma=100.0)])
    assert optimizer.run() is True
    assert optimizer.nsteps == 1
    assert calculator.calls == 0
    assert atoms.info[keys.STAGE] == 'predicted'
    said, skipped = optimizer.stages
    assert (said.status, skipped.status) == ('converged', 'skipped')
    assert 'below 100 A' in skipped.reason
    assert optimizer.run() is True
    # other atoms are asked about anew
    atoms.positions[0] += 0.1
    assert optimizer.run() is True
    assert (optimizer.nsteps, calculator.calls) == (2, 0)


@pytest.mark.parametrize('again', ['restart', 'copy'])
def test_a_prediction_that_needed_no_refinement_is_not_made_again(
    one_shot, tmp_path, again
):
    sure = {'refine': Stage(Counting(), min_sigma=100.0), 'restart': tmp_path / 'r.json'}
    atoms = alloy()
    atoms.optimizer = one_shot(**sure)
    assert atoms.optimizer.run() is True
    if again == 'copy':
        twin = pickle.loads(pickle.dumps(atoms))
        steps = 1
    else:
        twin = alloy()
        twin.optimizer = one_shot(**sure)
        steps = 0
    assert twin.optimizer.run() is True
    assert twin.optimizer.nsteps == steps  # a copy goes on counting
    assert np.array_equal(place(twin), place(atoms))
    assert [r.status for r in twin.optimizer.stages] == ['converged', 'skipped']


def test_all_that_is_skipped_stands_in_the_log_in_order(one_shot, tmp_path):
    log = tmp_path / 'relax.log'
    sure = [Stage(Counting(), min_sigma=100.0), Stage(EMT(), min_sigma=100.0)]
    assert one_shot(alloy(), refine=sure, logfile=log).run() is True
    told = [line for line in log.read_text().splitlines() if line.startswith('stage ')]
    starts = ['stage 1 of 2, counting: skipped', 'stage 2 of 2, emt: skipped']
    assert [line[: len(start)] for line, start in zip(told, starts, strict=True)] == starts


def test_unsure_predictions_go_to_the_next_stage(one_shot):
    def run(threshold):
        atoms, costly = alloy(), Counting()
        chain = [Stage(EMT(), fmax=0.1), Stage(costly, fmax=0.02, min_sigma=threshold)]
        optimizer = one_shot(atoms, refine=chain)
        assert optimizer.run() is True
        return optimizer.stages[-1].status, costly.calls, atoms.info[keys.SIGMA]

    status, calls, sigma = run(100.0)
    assert (status, calls) == ('skipped', 0)
    status, calls, _ = run(0.9 * sigma)
    assert status == 'converged'
    assert calls > 0


def test_where_nothing_vouches_for_the_structure_all_stages_run(one_shot):
    atoms = molecule('H2O')
    optimizer = one_shot(atoms, refine=[Stage(EMT(), min_sigma=100.0)])
    with pytest.warns(DeepRelaxWarning, match='without a prediction'):
        assert optimizer.run() is True
    assert optimizer.stages[-1].status == 'converged'
    # and where the prediction was rolled back
    atoms = alloy()
    chain = [Stage(EMT(), fmax=0.2), Stage(Counting(), min_sigma=100.0)]
    optimizer = one_shot(atoms, refine=chain, energy_gate=-10.0)
    assert optimizer.run() is True
    assert [r.status for r in optimizer.stages] == ['failed', 'converged', 'converged']


# --- restart, copies -------------------------------------------------------------------


class Dying(EMT):
    """EMT that goes away at a given call, counted over all of them."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def calculate(self, *args, **kwargs):
        if self.calls[0] == 0:
            raise KeyboardInterrupt
        self.calls[0] -= 1
        super().calculate(*args, **kwargs)


@pytest.mark.parametrize(('optimizer', 'stride'), [(BFGS, 1), (FIRE, 8), (LBFGS, 5)])
def test_interrupted_anywhere_it_ends_where_it_would_have(
    one_shot, tmp_path, optimizer, stride
):
    def run(atoms, calls, **options):
        fixed = Stage(Dying(calls), fmax=0.3, relax_cell=False)
        return one_shot(atoms, refine=[fixed, Dying(calls)], optimizer=optimizer, **options)

    whole, calls = alloy(), [1000]
    uninterrupted = run(whole, calls)
    assert uninterrupted.run(fmax=0.05) is True
    total = 1000 - calls[0]
    assert total > 8
    for n in range(0, total, stride):
        folder = tmp_path / str(n)
        folder.mkdir()
        options = {'restart': folder / 'restart.json', 'trajectory': folder / 'relax.traj'}
        with pytest.raises(KeyboardInterrupt):
            run(alloy(), [n], **options).run(fmax=0.05)
        atoms = alloy()
        again = run(atoms, [1000], append_trajectory=True, **options)
        assert again.run(fmax=0.05) is True
        np.testing.assert_allclose(place(atoms), place(whole), atol=1e-9)
        assert len(read(options['trajectory'], index=':')) == uninterrupted.nsteps + 1
        for one, two in zip(again.stages, uninterrupted.stages, strict=True):
            assert (one.name, one.status, one.steps) == (two.name, two.status, two.steps)
            assert one.energy_after == pytest.approx(two.energy_after, abs=1e-9)
        assert {**atoms.info, keys.SIGMA_ATOMS: 0} == {**whole.info, keys.SIGMA_ATOMS: 0}
        assert keys.SIGMA in atoms.arrays


SCRIPT = """
    import os, signal, sys
    from ase.calculators.emt import EMT
    from ase_deeprelax.optimize.optimizer import DeepRelaxOptimizer
    from ase_deeprelax.optimize.stage import Stage
    from tests.alloys import alloy

    class Killed(EMT):
        left = int(sys.argv[2])
        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    optimizer = DeepRelaxOptimizer(
        alloy(), 'restart.json', 'relax.log', 'relax.traj', True,
        model=sys.argv[1], refine=[Stage(EMT(), fmax=0.3), Killed()],
        energy_gate=None,
    )
    print(optimizer.run(fmax=0.02), *[record.steps for record in optimizer.stages])
"""


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='no SIGKILL on this system')
def test_killed_in_the_second_stage(one_shot, tiny_model, tmp_path):
    def script(left):
        return subprocess.run(
            [sys.executable, '-c', textwrap.dedent(SCRIPT), str(tiny_model), str(left)],
            check=False,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2])},
        )

    assert script(3).returncode == -signal.SIGKILL
    whole = alloy()
    optimizer = one_shot(whole, refine=[Stage(EMT(), fmax=0.3), EMT()])
    assert optimizer.run(fmax=0.02) is True
    again = script(-1)
    assert again.returncode == 0, again.stderr
    steps = [str(record.steps) for record in optimizer.stages]
    assert again.stdout.split() == ['True', *steps]
    frames = read(tmp_path / 'relax.traj', index=':')
    np.testing.assert_allclose(place(frames[-1]), place(whole), atol=1e-9)
    assert len(frames) == optimizer.nsteps + 1


def test_an_interrupted_scan_that_is_started_again_gives_the_same_points(
    one_shot, tmp_path
):
    """The restart file is of a later point than that with which the script begins."""

    def scan(calls, file):
        atoms, points = alloy(), []
        held = {'relax_cell': [1, 1, 0, 0, 0, 1], 'restart': file}
        optimizer = one_shot(atoms, refine=Dying(calls), **held)
        for height in (3.7, 3.8, 3.9):
            atoms.set_cell([*atoms.cell.array[:2], [0, 0, height]], scale_atoms=True)
            assert optimizer.run(fmax=1e-3) is True
            points.append((atoms.get_potential_energy(), *atoms.cell.lengths()))
        return points

    calls = [1000]
    whole = scan(calls, None)
    file = tmp_path / 'restart.json'
    with pytest.raises(KeyboardInterrupt):
        scan([1000 - calls[0] - 2], file)
    for _ in range(2):
        np.testing.assert_allclose(scan([1000], file), whole, atol=1e-3)


def test_a_script_that_frees_atoms_later_can_be_started_again(one_shot, tmp_path):
    def script(calls, file):
        atoms = alloy()
        atoms.set_constraint(FixAtoms([0, 1]))
        optimizer = one_shot(atoms, refine=Dying(calls), restart=file)
        assert optimizer.run(fmax=1e-3) is True
        fixed = atoms.get_potential_energy()
        atoms.set_constraint()
        assert optimizer.run(fmax=1e-3) is True
        return fixed, atoms.get_potential_energy()

    calls = [1000]
    whole = script(calls, None)
    assert whole[1] < whole[0] - 1e-3
    file = tmp_path / 'restart.json'
    with pytest.raises(KeyboardInterrupt):
        script([1000 - calls[0] - 1], file)
    np.testing.assert_allclose(script([1000], file), whole, atol=1e-3)


def test_restart_from_the_end_of_a_trajectory(one_shot, tmp_path):
    chain = [Stage(EMT(), fmax=0.3), Stage(EMT(), fmax=0.02)]
    whole = alloy()
    one_shot(whole, refine=chain).run()
    files = {'restart': tmp_path / 'restart.json', 'trajectory': tmp_path / 'relax.traj'}
    one_shot(alloy(), refine=chain, **files).run(steps=7)
    atoms = read(files['trajectory'])
    assert not np.array_equal(atoms.positions, alloy().positions)
    again = one_shot(atoms, refine=chain, append_trajectory=True, **files)
    assert again.run() is True
    np.testing.assert_allclose(place(atoms), place(whole), atol=1e-9)
    other = bulk('NaCl', 'rocksalt', a=5.6)
    with pytest.raises(RestartError, match='AuCu3'):
        one_shot(other, refine=chain, restart=files['restart']).run()
    done = alloy()
    finished = one_shot(done, refine=chain, restart=files['restart'])
    assert finished.run() is True
    assert finished.nsteps == 0
    np.testing.assert_allclose(place(done), place(whole), atol=1e-9)


@pytest.mark.parametrize('copier', [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_go_on_in_the_same_stage(one_shot, copier):
    atoms = alloy()
    made = partial(LennardJones, sigma=2.3, epsilon=0.4, rc=5.0, smooth=True)
    atoms.optimizer = one_shot(refine=[Stage(made, fmax=0.3), Stage(made(), fmax=0.02)])
    twin = copier(atoms)
    assert twin.optimizer.run() is True
    assert atoms.optimizer.stages == []
    while len(atoms.optimizer.stages) < 3:
        assert atoms.optimizer.run(steps=1) is False
    steps = [record.steps for record in atoms.optimizer.stages]
    later = copier(atoms)
    assert later.optimizer.run() is True
    assert later.optimizer.stages[1].steps == steps[1]
    assert later.optimizer.stages[-1].fmax < 0.02
    assert [record.steps for record in atoms.optimizer.stages] == steps
    other = copier(atoms)
    other.symbols[0] = 'Ag'
    assert other.optimizer.run() is True


def test_the_hessian_does_not_travel(one_shot):
    atoms = alloy() * 2
    calculator = LennardJones(sigma=2.3, epsilon=0.4, rc=5.0, smooth=True)
    optimizer = one_shot(atoms, refine=calculator)
    optimizer.run(fmax=1e-3, steps=3)
    assert optimizer.stages[-1].steps > 0
    hessian = 8 * (3 * len(atoms) + 9) ** 2
    assert len(pickle.dumps(optimizer)) - len(pickle.dumps(atoms)) < hessian / 2


# --- real potentials -------------------------------------------------------------------


def magnesia():
    atoms = bulk('MgO', 'rocksalt', a=4.45)
    atoms.positions[1] += [0.1, 0.05, 0.0]
    return atoms


def test_tensornet_then_chgnet(one_shot):
    """From a quick potential to a slower one, on a structure far from its minimum."""
    folder = SHARED / 'TensorNet-MatPES-PBE-v2025.1-PES'
    for name in ('tensornet', 'chgnet'):
        pytest.importorskip(POTENTIALS[name].package, exc_type=ImportError)
    if not folder.is_dir():
        pytest.skip(f'needs {folder.name} in ../shared/potentials')
    atoms = magnesia()
    chain = [Stage(f'tensornet:{folder}', fmax=0.1), Stage('chgnet', fmax=0.05)]
    optimizer = one_shot(atoms, refine=chain)
    assert optimizer.run() is True
    _, first, last = optimizer.stages
    assert (first.name, last.name) == ('tensornet', 'chgnet')
    assert first.converged
    assert last.converged
    assert last.fmax < 0.05
    assert first.energy_after < first.energy_before
    assert last.energy_after <= last.energy_before
    assert last.spacegroup == 225
    assert (4 * atoms.get_volume()) ** (1 / 3) == pytest.approx(4.24, abs=0.05)
    assert last.steps < first.steps


def test_chgnet_alone_where_the_prediction_is_not_sure(one_shot):
    pytest.importorskip(POTENTIALS['chgnet'].package, exc_type=ImportError)
    atoms = magnesia()
    optimizer = one_shot(atoms, refine=Stage('chgnet', steps=3, min_sigma=1e-6))
    assert optimizer.run(fmax=1e-4) is False
    assert optimizer.stages[-1].steps == 3
    assert optimizer.stages[-1].energy_after < optimizer.stages[-1].energy_before


def test_the_record_of_a_stage_is_of_the_structure_that_was_measured(tiny_model):
    atoms = alloy()
    optimizer = DeepRelaxOptimizer(atoms, model=tiny_model, refine=EMT(), logfile=None)
    optimizer.run(fmax=1e-4, steps=3)
    before = optimizer.stages[-1]
    atoms.rattle(0.3, seed=5)
    after = optimizer.stages[-1]
    assert before.status == 'running'
    assert after.energy_after == before.energy_after
    assert (after.atoms.positions == before.atoms.positions).all()


def test_forces_that_ase_gets_wrong_under_fixscaled_are_warned_of(tiny_model):
    def stages(mask, cell):
        atoms = make_supercell(bulk('Cu'), cell)
        atoms.set_constraint(FixScaled([0, 2], mask))
        atoms.rattle(0.02, seed=1)
        how = {'model': tiny_model, 'relax_cell': False, 'logfile': None}
        DeepRelaxOptimizer(atoms, refine=EMT(), **how).run(fmax=0.1, steps=3)

    with pytest.warns(DeepRelaxWarning, match=r'atom 0 \(Cu\) is fixed along some vectors'):
        stages([1, 0, 0], [[2, 0, 0], [2, 2, 0], [0, 2, 2]])
    with warnings.catch_warnings():
        warnings.filterwarnings('error', '.*is fixed along some')
        stages([1, 1, 1], [[2, 0, 0], [2, 2, 0], [0, 2, 2]])
        stages([1, 0, 0], [[-1, 1, 1], [1, -1, 1], [1, 1, -1]])  # right angles


class MomentsShift(EMT):
    """EMT whose zero of energy depends on the initial moments."""

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        shift = self.atoms.get_initial_magnetic_moments().sum()
        self.results['energy'] += shift
        self.results['free_energy'] += shift


def test_other_moments_in_the_next_run_are_no_rise(tiny_model):
    atoms, energies = alloy(), []
    optimizer = DeepRelaxOptimizer(
        atoms, model=tiny_model, refine=MomentsShift(), logfile=None
    )
    optimizer.run(fmax=0.01, steps=3)
    atoms.set_initial_magnetic_moments([10.0] * len(atoms))
    optimizer.attach(lambda: energies.append(atoms.get_potential_energy()))
    assert optimizer.run(fmax=0.01)
    assert len(energies) > 2
    assert max(energies) == energies[0]
