"""Chains with calculators that fail, are not there, or are interrupted."""

import itertools

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.io import read
from ase.optimize import BFGS, FIRE

from ase_deeprelax import keys
from ase_deeprelax.calculators.registry import POTENTIALS
from ase_deeprelax.errors import DeepRelaxWarning, MissingDependencyError, ModelError
from ase_deeprelax.optimize.stage import Stage
from tests.alloys import alloy, place


class Faulty(EMT):
    """EMT that does something wrong from its n-th call on."""

    name = 'faulty'

    def __init__(self, n, wrong):
        super().__init__()
        self.n, self.wrong, self.calls = n, wrong, 0

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.calls += 1
        if self.calls >= self.n:
            self.wrong(self.results)


def crash(results):
    raise ZeroDivisionError('SCF did not converge')


def no_force(results):
    results['forces'][2, 1] = np.nan


def no_energy(results):
    results['energy'] = results['free_energy'] = np.nan


def burst(results):
    results['forces'] = results['forces'] * 1e6


FAULTS = {
    crash: 'ZeroDivisionError: SCF did not converge',
    no_force: r'force on atom 2 (Cu) is not finite',
    no_energy: 'the energy is nan',
    burst: 'largest force',
}


def cases(*numbers):
    """Each fault at each call; what a stage begins with is no explosion."""
    product = itertools.product(FAULTS, numbers)
    return [(wrong, n) for wrong, n in product if (wrong, n) != (burst, 1)]


def energy(atoms):
    twin = atoms.copy()
    twin.calc = EMT()
    return twin.get_potential_energy()


@pytest.mark.parametrize(('wrong', 'n'), cases(1, 3, 6))
@pytest.mark.parametrize('optimizer', [BFGS, FIRE])
def test_last_stage_fails(one_shot, wrong, n, optimizer, tmp_path):
    atoms, traj = alloy(), tmp_path / 'relax.traj'
    good = EMT()
    chain = [Stage(good, fmax=0.5), Stage(Faulty(n, wrong), fmax=1e-3, optimizer=optimizer)]
    run = one_shot(atoms, refine=chain, trajectory=traj)
    with pytest.warns(DeepRelaxWarning, match=r'stage 2 of 2 \(faulty\) failed'):
        assert run.run() is False
    assert run.converged() is False
    _, first, last = run.stages
    assert first.converged
    assert last.status == 'failed'
    assert FAULTS[wrong] in last.reason
    # the best structure that was seen, with the name of the stage it is from
    frames = read(traj, index=':')
    assert np.isfinite(place(atoms)).all()
    lowest = min(energy(frame) for frame in frames)
    assert energy(atoms) == pytest.approx(lowest, abs=1e-12)
    assert energy(atoms) <= energy(first.atoms)
    assert np.array_equal(place(frames[-1]), place(atoms))
    if n == 1:
        assert np.array_equal(place(atoms), place(first.atoms))
        assert atoms.info[keys.STAGE] == 'emt, ElasticBFGS'
        assert atoms.calc is good
        assert last.energy_after is None
    else:
        assert atoms.info[keys.STAGE] == f'faulty, {optimizer.__name__}'
        assert last.energy_after < last.energy_before


@pytest.mark.parametrize(('wrong', 'n'), cases(1, 3, 4))
def test_the_chain_goes_on_after_a_stage_that_fails(one_shot, wrong, n):
    atoms = alloy()
    run = one_shot(atoms, refine=[Stage(Faulty(n, wrong), fmax=0.01), EMT()])
    with pytest.warns(DeepRelaxWarning, match='stage 1 of 2'):
        assert run.run(fmax=0.02) is True
    assert run.converged()
    assert [record.status for record in run.stages[1:]] == ['failed', 'converged']
    assert atoms.info[keys.STAGE].startswith('emt, ElasticBFGS')
    clean = alloy()
    one_shot(clean, refine=EMT()).run(fmax=0.02)
    assert energy(atoms) == pytest.approx(energy(clean), abs=2e-3)


def test_nothing_but_failures(one_shot):
    """The prediction is what is left, and it is in the atoms."""
    atoms = alloy()
    run = one_shot(atoms, refine=[Faulty(1, crash), Faulty(1, no_force)])
    with pytest.warns(DeepRelaxWarning, match='failed'):
        assert run.run() is False
    assert [record.status for record in run.stages] == ['converged', 'failed', 'failed']
    assert atoms.info[keys.STAGE] == 'predicted'
    assert atoms.calc is None
    assert not np.array_equal(place(atoms), place(alloy()))
    before = place(atoms)
    with pytest.warns(DeepRelaxWarning, match='failed'):
        assert run.run() is False
    assert np.array_equal(place(atoms), before)
    # where there is no prediction either, the atoms stay as they were
    atoms = molecule('H2O')
    run = one_shot(atoms, refine=Faulty(1, crash))
    with pytest.warns(DeepRelaxWarning, match='failed'):
        assert run.run() is False
    assert [record.status for record in run.stages] == ['skipped', 'failed']
    assert np.array_equal(atoms.positions, molecule('H2O').positions)


class Backwards(EMT):
    """Forces that point uphill."""

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        for name in {'forces', 'stress'} & set(self.results):
            self.results[name] = -self.results[name]


def test_uphill_stages_are_rolled_back(one_shot):
    atoms = alloy()
    chain = [Stage(EMT(), fmax=0.3), Stage(Backwards(), steps=5), Stage(EMT(), fmax=0.02)]
    run = one_shot(atoms, refine=chain)
    with pytest.warns(DeepRelaxWarning, match='went uphill by'):
        assert run.run(fmax=1e-6) is True
    _, first, uphill, last = run.stages
    assert uphill.status == 'failed'
    assert uphill.steps == 5
    assert np.array_equal(place(uphill.atoms), place(first.atoms))
    assert last.energy_before == pytest.approx(first.energy_after)
    assert last.converged


def test_of_a_stage_that_is_rolled_back_nothing_is_said(one_shot):
    atoms = molecule('H2O')
    atoms.rattle(0.05, seed=0)
    before = place(atoms)
    run = one_shot(atoms, refine=Stage(Backwards(), steps=3))
    with pytest.warns(DeepRelaxWarning, match='went uphill by'):
        assert run.run(fmax=1e-6) is False
    assert np.array_equal(place(atoms), before)
    assert not {keys.STAGE, keys.KIND} & set(atoms.info)


def test_noise_is_not_uphill(one_shot):
    class Noisy(EMT):
        calls = 0

        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)
            Noisy.calls += 1
            self.results['energy'] += 1e-4 * Noisy.calls
            self.results['free_energy'] = self.results['energy']

    atoms = alloy()
    one_shot(atoms, refine=EMT()).run(fmax=0.02)
    run = one_shot(atoms, refine=Stage(Noisy(), fmax=0.015), energy_gate=-10)
    assert run.run() is True


class Bellows(BFGS):
    """Blows cells up."""

    def step(self):
        atoms = self.atoms.atoms
        atoms.set_cell(atoms.cell.array * 1.2, scale_atoms=True)


def test_cells_that_run_away(one_shot):
    atoms = alloy()
    chain = [Stage(EMT(), fmax=0.2), Stage(EMT(), optimizer=Bellows)]
    run = one_shot(atoms, refine=chain)
    with pytest.warns(DeepRelaxWarning, match='the cell ran away'):
        assert run.run(fmax=1e-9) is False
    assert np.array_equal(place(atoms), place(run.stages[1].atoms))
    assert run.stages[2].steps < 6


def test_cells_that_fall_together(one_shot):
    """Where energy falls all the way, the lowest is not what to go on from."""
    atoms = alloy()
    chain = [Stage(EMT(), fmax=0.2), Stage(LennardJones(sigma=1.5, epsilon=0.05))]
    run = one_shot(atoms, refine=chain)
    with pytest.warns(DeepRelaxWarning, match='the cell ran away'):
        assert run.run(fmax=1e-9) is False
    assert np.array_equal(place(atoms), place(run.stages[1].atoms))
    assert run.stages[2].energy_after == run.stages[2].energy_before


def test_predictions_that_the_calculator_cannot_stand(one_shot):
    """Rolled back, and the stage goes on from where it was."""

    class Once(EMT):
        calls = 0

        def calculate(self, *args, **kwargs):
            self.calls += 1
            if self.calls == 2:
                raise RuntimeError('no')
            super().calculate(*args, **kwargs)

    atoms = alloy()
    run = one_shot(atoms, refine=Once())
    assert run.run(fmax=0.05) is True
    assert [record.status for record in run.stages] == ['failed', 'converged']
    assert run.stages[0].reason == 'RuntimeError: no'
    assert atoms.info[keys.STAGE] == 'once, ElasticBFGS (prediction rolled back)'
    assert keys.SIGMA not in atoms.info


def test_errors_of_the_atoms_own_calculator_are_raised(one_shot):
    """Who attaches a calculator without a chain wants to know, as everywhere in ASE.

    Also where the calculator would answer if it were asked again.
    """

    class Passing(Faulty):
        def calculate(self, *args, **kwargs):
            if self.calls >= self.n:
                self.wrong = lambda results: None
            super().calculate(*args, **kwargs)

    for kind in (Faulty, Passing):
        atoms = alloy()
        atoms.calc = kind(4, crash)
        with pytest.raises(ZeroDivisionError, match='SCF'):
            one_shot(atoms).run()
        assert atoms.calc.calls == 4
        assert np.isfinite(place(atoms)).all()


# --- potentials that are not there -----------------------------------------------------


def test_a_potential_that_is_not_there_is_told_before_anything_is_done(
    one_shot, monkeypatch
):
    entry = POTENTIALS['orb']
    monkeypatch.setitem(
        POTENTIALS, 'orb', type(entry)('not_a_package', entry.extra, '', entry.make)
    )
    atoms = alloy()
    first = Faulty(99, crash)
    for name, error, said in (
        ('orb', MissingDependencyError, r"pip install 'ase-deeprelax\[orb\]'"),
        ('nonsense', ModelError, 'nonsense'),
    ):
        with pytest.raises(error, match=said):
            one_shot(atoms, refine=[first, name]).run()
    assert first.calls == 0
    assert np.array_equal(place(atoms), place(alloy()))


# --- interrupted -----------------------------------------------------------------------


def stop(results):
    raise KeyboardInterrupt


@pytest.mark.parametrize('n', range(1, 9))
def test_interrupted_by_hand(one_shot, tmp_path, n):
    atoms, traj = alloy(), tmp_path / 'relax.traj'
    chain = [Stage(EMT(), fmax=0.3), Stage(Faulty(n, stop), fmax=1e-7)]
    run = one_shot(atoms, refine=chain, trajectory=traj)
    with run, pytest.raises(KeyboardInterrupt):
        run.run()
    assert [record.status for record in run.stages] == ['converged', 'converged', 'running']
    frames = read(traj, index=':')
    assert len(frames) == run.nsteps + 1
    assert np.isfinite(place(atoms)).all()
    assert energy(atoms) < energy(alloy())
    run.stages[-1].to_dict()
    # the same object goes on
    chain[1].build_calculator().wrong = lambda results: None
    assert run.run() is True
    assert [record.status for record in run.stages][1:] == ['converged', 'converged']


def test_interrupted_inside_a_step(one_shot):
    """Half a step is none: cell and positions are both as before it."""

    class Half(BFGS):
        def step(self):
            atoms = self.atoms.atoms
            atoms.set_cell(atoms.cell.array * 1.05)
            raise KeyboardInterrupt

    atoms = alloy()
    chain = [Stage(EMT(), fmax=0.3), Stage(EMT(), optimizer=Half)]
    run = one_shot(atoms, refine=chain)
    with pytest.raises(KeyboardInterrupt):
        run.run(fmax=1e-3)
    assert np.array_equal(place(atoms), place(run.stages[1].atoms))
