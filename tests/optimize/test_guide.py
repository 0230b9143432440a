"""Relaxation under a potential and a prediction at once."""

from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.optimize import BFGS

from ase_deeprelax import DeepRelaxOptimizer, relax
from ase_deeprelax.calculators.batched import batch_potential
from ase_deeprelax.errors import DeepRelaxWarning
from ase_deeprelax.models.calibration import PotentialErrors
from ase_deeprelax.models.store import load_model
from ase_deeprelax.optimize.guide import GuidedCalculator, pull_of
from ase_deeprelax.optimize.many import relax_batched
from ase_deeprelax.optimize.stage import Stage

FMAX = 1e-3


def alloy():
    atoms = bulk('Cu', cubic=True, a=3.85)
    atoms.symbols[:2] = 'Au'
    atoms.rattle(0.05, seed=1)
    return atoms


@pytest.fixture(scope='module')
def prediction():
    return relax(alloy())


def optimizer(atoms, **options):
    return DeepRelaxOptimizer(atoms, logfile=None, energy_gate=None, **options)


def guided_end(strength, **options):
    atoms = alloy()
    optimizer(atoms, refine=Stage(EMT(), guided=strength), **options).run(fmax=FMAX)
    return atoms


def test_forces_and_stress_are_derivatives(prediction):
    atoms = prediction.atoms.copy()
    atoms.rattle(0.05, seed=2)
    atoms.set_cell(atoms.cell * 1.02, scale_atoms=True)
    atoms.calc = GuidedCalculator(EMT(), prediction, 0.05)
    numeric = calculate_numerical_forces(atoms, 1e-4)
    np.testing.assert_allclose(atoms.get_forces(), numeric, atol=1e-4)
    stress = calculate_numerical_stress(atoms, 1e-5)
    np.testing.assert_allclose(atoms.get_stress(), stress, atol=1e-5)


def test_the_end_lies_between_the_prediction_and_the_minimum_of_the_potential(prediction):
    own = prediction.atoms.copy()
    own.calc = EMT()
    BFGS(FrechetCellFilter(own), logfile=None).run(fmax=FMAX)
    volumes = [guided_end(c).cell.volume for c in (1e-5, 0.02, 10.0)]
    limits = own.cell.volume, prediction.atoms.cell.volume
    assert volumes[0] == pytest.approx(limits[0], rel=2e-3)
    assert volumes[2] == pytest.approx(limits[1], rel=2e-3)
    assert min(limits) < volumes[1] < max(limits)


def test_the_bare_calculator_stays_in_the_atoms_and_the_record_says_how_far():
    atoms = alloy()
    opt = optimizer(atoms, refine=EMT(), guided=0.02)
    assert opt.run(fmax=FMAX)
    assert isinstance(atoms.calc, EMT)
    record = opt.stages[-1]
    assert record.energy_after == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    forces = FrechetCellFilter(atoms).get_forces()
    # Its filter measures strain from the cell of the input, this one from the last.
    left = np.linalg.norm(forces, axis=1).max()
    assert record.pulled['force'] == pytest.approx(left, rel=0.1)
    assert record.pulled['strained'] > 0
    assert 'pulled from the prediction by' in str(record)
    assert record.to_dict()['pulled'] == record.pulled


@pytest.mark.parametrize('fixed', [[], [1]], ids=['free', 'one atom fixed'])
def test_how_far_from_the_prediction_is_measured_in_the_crystal(prediction, fixed):
    """Neither the origin nor the images that atoms are written in count."""
    atoms = prediction.atoms.copy()
    atoms.set_cell(1.01 * atoms.cell.array, scale_atoms=True)
    atoms.positions[0] += [0.1, 0, 0]
    atoms.positions[2] += 3 * atoms.cell[1]
    atoms.set_constraint(FixAtoms(fixed) if fixed else None)
    if not fixed:
        atoms.positions += [0.3, -0.2, 0.7]
    atoms.calc = guided = GuidedCalculator(EMT(), prediction, 0.02)
    pulled = guided.pulled(atoms)
    assert atoms.calc is guided
    assert pulled['moved'] == pytest.approx(0.1 if fixed else 0.075, abs=1e-9)
    assert pulled['strained'] == pytest.approx(1.0, abs=1e-9)


def test_what_the_potential_would_do_to_the_cell_counts():
    """No force is left on the atoms of this crystal: it can only be strained."""
    atoms = bulk('Cu', a=3.75)
    opt = optimizer(atoms, refine=EMT(), guided=0.2)
    assert opt.run(fmax=FMAX)
    assert np.abs(atoms.get_forces()).max() < 1e-6
    assert opt.stages[-1].pulled['force'] > 0.05
    assert isinstance(atoms.calc, EMT)


def test_all_frames_have_the_energy_that_is_minimised(prediction, tmp_path):
    atoms, traj = alloy(), tmp_path / 'relax.traj'
    stages = [Stage(EMT(), guided=0.05, fmax=0.1), Stage(EMT(), guided=0.05)]
    optimizer(atoms, refine=stages, trajectory=traj).run(fmax=FMAX)
    frames = read(traj, ':')
    assert len(frames) > 4
    for frame in frames[1:]:  # the first is without a prediction
        known = frame.get_potential_energy()
        frame.calc = GuidedCalculator(EMT(), prediction, 0.05)
        assert frame.get_potential_energy() == pytest.approx(known, abs=1e-6)
    assert isinstance(atoms.calc, EMT)


def test_with_the_calculator_of_the_atoms():
    atoms = alloy()
    calculator = atoms.calc = EMT()
    optimizer(FrechetCellFilter(atoms), guided=0.02).run(fmax=FMAX)
    assert atoms.calc is calculator
    np.testing.assert_allclose(atoms.cell, guided_end(0.02).cell, atol=2e-3)


@pytest.mark.parametrize('ends', ['at its end', 'closed', 'with an error'])
def test_a_run_step_by_step_leaves_the_bare_calculator_too(ends):
    atoms = alloy()
    states = optimizer(atoms, refine=Stage(EMT(), guided=0.05)).irun(fmax=1e-2, steps=20)
    next(states)
    next(states)
    assert isinstance(atoms.calc, GuidedCalculator)
    if ends == 'at its end':
        list(states)
    elif ends == 'closed':
        states.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            states.throw(KeyboardInterrupt)
    assert isinstance(atoms.calc, EMT)


def test_an_error_in_a_guided_stage_names_the_potential():
    class Broken(EMT):
        name = 'broken'

        calls = 0

        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)
            self.calls += 1
            if self.calls > 3:  # the start, the prediction, and a step
                self.results['forces'] = self.results['forces'] * np.nan

    atoms = alloy()
    opt = optimizer(atoms, refine=Stage(Broken(), guided=0.02, fmax=1e-6))
    with pytest.warns(DeepRelaxWarning, match='rolled back: broken: the force on atom 0'):
        assert opt.run(fmax=FMAX) is False


@pytest.mark.parametrize('calls', [3, 4, 5, 6])
def test_a_guided_stage_whose_calculator_fails_is_rolled_back(calls):
    class Failing(EMT):
        left = calls

        def calculate(self, *args, **kwargs):
            self.left -= 1
            if self.left < 0:
                raise RuntimeError('no licence')
            super().calculate(*args, **kwargs)

    atoms = alloy()
    opt = optimizer(atoms, refine=[Stage(Failing(), guided=0.02, fmax=1e-6), EMT()])
    with pytest.warns(DeepRelaxWarning, match='no licence'):
        assert opt.run(fmax=FMAX)
    assert [record.status for record in opt.stages[1:]] == ['failed', 'converged']
    assert opt.stages[1].pulled is None


def test_a_run_in_two_parts_ends_as_one(tmp_path):
    whole = guided_end(0.02)
    atoms = alloy()
    opt = optimizer(atoms, refine=Stage(EMT(), guided=0.02))
    assert not opt.run(fmax=FMAX, steps=3)
    assert isinstance(atoms.calc, EMT)
    assert opt.run(fmax=FMAX)
    np.testing.assert_allclose(atoms.positions, whole.positions, atol=1e-6)
    file, again = tmp_path / 'restart.json', alloy()
    optimizer(again, refine=Stage(EMT(), guided=0.02), restart=file).run(fmax=FMAX, steps=3)
    last = alloy()
    optimizer(last, refine=Stage(EMT(), guided=0.02), restart=file).run(fmax=FMAX)
    np.testing.assert_allclose(last.positions, whole.positions, atol=1e-6)


def test_fixed_atoms_stay():
    slab = fcc111('Cu', (2, 2, 3), vacuum=8)
    slab.symbols[-1] = 'Au'
    slab.set_constraint(FixAtoms([0, 1, 2, 3]))
    before = slab.positions.copy()
    optimizer(slab, refine=EMT(), guided=0.02).run(fmax=0.02)
    np.testing.assert_array_equal(slab.positions[:4], before[:4])
    assert (slab.positions[4:] != before[4:]).any()


def test_batches_end_as_single_runs(prediction):
    [(_, end)] = relax_batched(
        [('x', prediction.atoms)],
        batch_potential(EMT()),
        optimizer='BFGS',
        fmax=FMAX,
        guide=lambda key: pull_of(prediction, 0.02),
    )
    assert end.converged
    single = guided_end(0.02)
    assert end.atoms.cell.volume == pytest.approx(single.cell.volume, rel=1e-4)
    # The energy is the potential's own.
    bare = end.atoms.copy()
    bare.calc = EMT()
    assert end.atoms.get_potential_energy() == pytest.approx(bare.get_potential_energy())


def test_without_a_prediction_the_stage_is_an_ordinary_one():
    atoms = alloy()
    atoms.symbols[0] = 'Ni'
    free = atoms.copy()
    with pytest.warns(DeepRelaxWarning, match='without a prediction'):
        optimizer(atoms, refine=Stage(EMT(), guided=0.02), model=_knows_nothing()).run(
            fmax=FMAX
        )
    free.calc = EMT()
    BFGS(FrechetCellFilter(free), logfile=None).run(fmax=FMAX)
    assert atoms.get_potential_energy() == pytest.approx(
        free.get_potential_energy(), abs=1e-4
    )


def _knows_nothing():
    from ase_deeprelax.models import create_model

    model = create_model('paegnn', hidden=16, layers=1)
    model.card = replace(model.card, elements=(1,))
    return model


def test_a_prediction_pulls_as_its_kind_was_calibrated():
    """A crystal ends where the potential alone takes it, a layer where it was predicted."""
    model = load_model('default')
    errors = {'bulk': PotentialErrors(1e-5, 0.02), 'layer': PotentialErrors(10.0, 0.02)}
    model.calibration = replace(model.calibration, potentials={'emt': errors})
    crystal, layer = alloy(), fcc111('Cu', (1, 1, 2), a=3.9, vacuum=8)
    for atoms in (crystal, layer):
        stage = Stage(EMT(), guided=True)
        optimizer(atoms, model=model, refine=stage, relax_cell=True).run(fmax=FMAX)
    alone, predicted = guided_end(1e-5), relax(fcc111('Cu', (1, 1, 2), a=3.9, vacuum=8))
    assert crystal.cell.volume == pytest.approx(alone.cell.volume, rel=1e-3)
    lengths = layer.cell.lengths()[0], predicted.atoms.cell.lengths()[0]
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-3)


def test_potentials_without_a_calibration_are_said():
    with pytest.warns(DeepRelaxWarning, match="not calibrated beside 'emt'"):
        optimizer(alloy(), refine=EMT(), guided=True).run(fmax=0.05)


@pytest.mark.parametrize('strength', [0.0, -1.0])
def test_a_pull_has_a_strength(strength):
    if strength == 0.0:
        assert not Stage(EMT(), guided=False).guided
    with pytest.raises(ValueError, match='guided is'):
        Stage(EMT(), guided=strength)
