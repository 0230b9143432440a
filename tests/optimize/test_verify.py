"""One call of a potential that judges a prediction."""

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms
from ase.filters import Filter, FrechetCellFilter, UnitCellFilter
from ase.io import read, write
from ase.optimize import BFGS

from ase_deeprelax import DeepRelaxOptimizer, keys
from ase_deeprelax.errors import ConfigError, DeepRelaxWarning, ModelError
from ase_deeprelax.models.calibration import PotentialErrors
from ase_deeprelax.models.store import load_model, save_model
from ase_deeprelax.optimize.verify import mean_newton_step, verify


class Counting(EMT):
    name = 'emt'
    calls = 0

    def calculate(self, *args, **kwargs):
        type(self).calls += 1
        super().calculate(*args, **kwargs)


@pytest.fixture(scope='module')
def model():
    """The default one, which knows how large the errors of EMT are."""
    model = load_model('default')
    potentials = {'emt': {'bulk': PotentialErrors(guide=0.02, step=0.02)}}
    model.calibration = replace(model.calibration, potentials=potentials)
    return model


def minimum():
    atoms = bulk('Cu', cubic=True)
    atoms.symbols[0] = 'Au'
    atoms.calc = EMT()
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-4)
    return atoms


def test_near_the_minimum_is_within_and_far_is_beyond(model):
    atoms = minimum()
    near = verify(atoms, EMT(), 'emt', model.calibration)
    assert near.within
    assert near.step < 1e-3
    atoms.rattle(0.1, seed=0)
    far = verify(atoms, EMT(), 'emt', model.calibration)
    assert not far.within
    assert 'beyond its own error of 0.020 A' in str(far)
    # The step of a rattled crystal is about what it was rattled by.
    assert far.step == pytest.approx(0.08, rel=0.5)


def test_it_takes_one_call_and_moves_nothing(model):
    atoms, before = minimum(), Counting.calls
    positions = atoms.positions.copy()
    verify(atoms, Counting(), 'emt', model.calibration)
    assert Counting.calls == before + 1
    np.testing.assert_array_equal(atoms.positions, positions)


def test_a_strained_cell_counts_unless_it_is_held(model):
    atoms = minimum()
    atoms.set_cell(atoms.cell * 1.03, scale_atoms=True)
    assert not verify(atoms, EMT(), 'emt', model.calibration).within
    assert verify(atoms, EMT(), 'emt', model.calibration, False).within
    held = atoms.copy()
    held.calc = EMT()
    assert mean_newton_step(held) < 0.02


@pytest.mark.parametrize(
    ('held', 'same'),
    [
        (lambda atoms: FrechetCellFilter(atoms, mask=[0] * 6), False),
        (lambda atoms: Filter(atoms, mask=[True] * 4), False),
        (lambda atoms: UnitCellFilter(atoms, mask=[1, 1, 0, 0, 0, 1]), [1, 1, 0, 0, 0, 1]),
        (lambda atoms: FrechetCellFilter(atoms, hydrostatic_strain=True), 'hydrostatic'),
        (FrechetCellFilter, True),
    ],
    ids=['nothing', 'hidden', 'mask', 'hydrostatic', 'all'],
)
def test_what_a_filter_holds_does_not_count(model, held, same):
    atoms = minimum()
    atoms.set_cell(atoms.cell.array * [[1.01], [1.02], [1.05]], scale_atoms=True)
    atoms.calc = None
    through = verify(held(atoms), EMT(), 'emt', model.calibration)
    bare = verify(atoms, EMT(), 'emt', model.calibration, same)
    assert through.step == pytest.approx(bare.step, rel=1e-6)
    assert (through.step < 1e-6) is (same is False)


def test_atoms_that_a_filter_hides_do_not_count(model):
    atoms = minimum()
    atoms.positions[0] += [0.0, 0.0, 0.2]
    atoms.calc = None
    others = Filter(atoms, indices=[1, 2, 3])
    fixed = atoms.copy()
    fixed.set_constraint(FixAtoms([0]))
    expected = verify(fixed, EMT(), 'emt', model.calibration, False).step
    step = verify(others, EMT(), 'emt', model.calibration).step
    assert step == pytest.approx(expected, rel=1e-6)


def test_the_optimizer_judges_what_its_filter_lets_move(model):
    atoms = bulk('Cu', a=4.0)
    optimizer = DeepRelaxOptimizer(
        FrechetCellFilter(atoms, mask=[0] * 6), logfile=None, model=model, verify=EMT()
    )
    assert optimizer.run() is True
    assert optimizer.verification.step < 1e-6


def test_a_crystal_of_one_atom_is_judged_by_its_cell(model):
    steps = []
    for size in (1, 2):
        copper = bulk('Cu', a=3.8) * size
        steps.append(verify(copper, EMT(), 'emt', model.calibration))
    assert steps[0].step == pytest.approx(steps[1].step, rel=1e-6)
    assert not steps[0].within
    assert verify(bulk('Cu', a=3.8), EMT(), 'emt', model.calibration, False).step < 1e-6
    assert verify(bulk('Cu', a=3.6), EMT(), 'emt', model.calibration).within


class Failing(EMT):
    name = 'emt'

    def __init__(self, added):
        super().__init__()
        self.added = added

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        if self.added is None:
            raise RuntimeError('out of\nmemory')
        self.results['forces'] = self.results['forces'] + self.added


@pytest.mark.parametrize(
    ('added', 'said'),
    [
        (None, 'emt failed: RuntimeError: out of memory'),
        (np.nan, r'emt failed: .*force on atom 0 \(Cu\) is not finite'),
    ],
)
def test_a_potential_that_fails_leaves_the_prediction(model, added, said, tmp_path):
    atoms = bulk('Cu', a=3.7)
    optimizer = DeepRelaxOptimizer(atoms, logfile=None, model=model, verify=Failing(added))
    with pytest.warns(DeepRelaxWarning, match=said):
        assert optimizer.run() is True
    assert optimizer.verification is None
    assert re.search(said, atoms.info[keys.VERIFIED])
    assert keys.SIGMA in atoms.info
    write(tmp_path / 'out.extxyz', atoms)
    assert read(tmp_path / 'out.extxyz').info[keys.VERIFIED] == atoms.info[keys.VERIFIED]


def test_fixed_atoms_do_not_count():
    """However many lie below: the verdict is on what may move."""
    steps = []
    for planes in (4, 15):
        slab = fcc111('Cu', (1, 1, planes), vacuum=8)
        slab.positions[-1, 2] += 0.3
        slab.set_constraint(FixAtoms(range(planes - 1)))
        slab.calc = EMT()
        steps.append(mean_newton_step(slab))
    assert steps[0] == pytest.approx(steps[1], rel=1e-3) == pytest.approx(0.05, rel=0.2)


def test_where_all_atoms_are_fixed_they_count_as_they_follow_the_cell(model):
    atoms = minimum()
    atoms.set_cell(atoms.cell * 1.03, scale_atoms=True)
    free = verify(atoms, EMT(), 'emt', model.calibration)
    atoms.set_constraint(FixAtoms(range(len(atoms))))
    assert verify(atoms, EMT(), 'emt', model.calibration).step > free.step / 2


def test_the_optimizer_asks_after_its_prediction(model, capsys):
    atoms = bulk('Cu', a=3.7)
    optimizer = DeepRelaxOptimizer(atoms, model=model, verify=Counting())
    before = Counting.calls
    optimizer.run()
    assert Counting.calls == before + 1
    assert optimizer.verification.potential == 'emt'
    assert atoms.info[keys.VERIFIED] == str(optimizer.verification)
    assert str(optimizer.verification) in capsys.readouterr().out
    assert atoms.calc is None


def test_a_copy_knows_the_verdict(model, tmp_path):
    single = load_model('deeprelax')
    single.calibration = model.calibration
    save_model(single, tmp_path / 'model', single.card)
    atoms = bulk('Cu', a=3.7)
    atoms.optimizer = DeepRelaxOptimizer(
        logfile=None, model=tmp_path / 'model', verify=EMT()
    )
    atoms.optimizer.run()
    copied = copy.deepcopy(atoms)
    copied.optimizer.run()
    assert atoms.optimizer.verification is not None
    assert copied.optimizer.verification == atoms.optimizer.verification


def test_what_was_said_of_a_prediction_is_not_said_of_the_refined_structure(model):
    atoms = bulk('Cu', a=3.7)
    atoms.optimizer = DeepRelaxOptimizer(logfile=None, model=model, verify=EMT())
    atoms.optimizer.run()
    assert keys.VERIFIED in atoms.info
    atoms.calc = EMT()
    with pytest.warns(DeepRelaxWarning, match='verify is left out'):
        assert atoms.optimizer.run(fmax=0.01)
    assert atoms.optimizer.stages[-1].steps > 0
    assert keys.VERIFIED not in atoms.info


def test_a_prediction_that_is_refined_is_not_judged(model):
    atoms = bulk('Cu', a=3.7)
    atoms.calc = EMT()
    optimizer = DeepRelaxOptimizer(atoms, logfile=None, model=model, verify=Counting())
    with pytest.warns(DeepRelaxWarning, match='verify is left out'):
        optimizer.run()
    assert optimizer.verification is None
    assert keys.VERIFIED not in atoms.info


@pytest.mark.parametrize(
    ('potential', 'error', 'said'),
    [
        (LennardJones(), ConfigError, 'the error of this potential is not known'),
        ('emt', ModelError, "calculator 'emt' is not known"),
    ],
)
def test_a_potential_that_cannot_judge_is_told_before_anything_moves(
    calibrated_model, potential, error, said
):
    atoms = bulk('Cu', a=3.7)
    before = atoms.copy()
    optimizer = DeepRelaxOptimizer(
        atoms, logfile=None, model=calibrated_model, verify=potential
    )
    with pytest.raises(error, match=said):
        optimizer.run()
    assert atoms == before
    assert not atoms.info
    assert not optimizer.stages


def test_an_unknown_potential_is_refused():
    with pytest.raises(ConfigError, match='error of this potential is not known'):
        verify(minimum(), EMT(), 'emt', None)
    with pytest.raises(ValueError, match='verify judges a prediction alone'):
        DeepRelaxOptimizer(verify='chgnet', refine='chgnet')
