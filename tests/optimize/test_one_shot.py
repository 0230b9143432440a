"""The prediction as a stage: when it is made, how far it reaches, what is kept of it."""

import numpy as np
import pytest
from ase.build import bulk, mx2
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

from ase_deeprelax import Stage, keys, relax
from ase_deeprelax.errors import DeepRelaxWarning
from tests.alloys import alloy, place


def salt():
    atoms = bulk('MgO', 'rocksalt', a=4.3) * (2, 1, 1)
    atoms.rattle(0.08, seed=1)
    return atoms


def longest_change(deformation):
    """The largest change of a length among many directions, %."""
    directions = np.random.default_rng(0).normal(size=(20_000, 3))
    before, after = (
        np.linalg.norm(x, axis=1) for x in (directions, directions @ deformation)
    )
    return 100 * np.abs(after / before - 1).max()


def test_the_log_says_how_far_the_prediction_goes(one_shot, tiny_model, tmp_path):
    said, log = relax(salt(), model=tiny_model), tmp_path / 'relax.log'
    one_shot(salt(), logfile=log).run()
    dmax, strain, sigma = map(float, log.read_text().splitlines()[1].split()[3:6])
    assert dmax == pytest.approx(said.dmax, rel=1e-3)
    assert strain == pytest.approx(longest_change(said.deformation), rel=1e-2)
    assert sigma == pytest.approx(said.sigma, rel=1e-3)


def test_the_log_says_what_the_prediction_did_to_the_volume(one_shot, tmp_path):
    atoms, log = alloy(), tmp_path / 'relax.log'
    optimizer = one_shot(atoms, refine=EMT(), logfile=log)
    optimizer.run(fmax=1e-9, steps=3)
    [note] = [line for line in log.read_text().splitlines() if 'prediction, ' in line]
    ratio = optimizer.stages[0].atoms.cell.volume / alloy().cell.volume
    assert abs(ratio - 1) > 1e-3
    assert f'volume x {ratio:.3f}, ' in note


def test_its_gradient_leads_to_the_prediction(one_shot, tiny_model):
    """As ASE's own optimizers would use it: one step of steepest descent."""
    atoms = salt()
    atoms.set_constraint(FixAtoms([0]))
    said = relax(atoms, model=tiny_model).atoms
    optimizer = one_shot(atoms)
    optimizer.run(steps=0)
    seen = optimizer.optimizable
    x, gradient = seen.get_x(), seen.get_gradient()
    assert seen.ndofs() == len(x) == len(gradient)
    assert seen.get_value() == pytest.approx(0.5 * gradient @ gradient)
    assert not seen.converged(gradient, fmax=100.0)
    seen.set_x(x - gradient)
    np.testing.assert_allclose(place(atoms), place(said), atol=1e-6)
    seen.set_x(x)
    assert np.array_equal(seen.get_x(), x)


@pytest.mark.parametrize(
    ('gate', 'rise', 'kept'),
    [
        (0.0, 0.0, True),
        (0.01, 0.009, True),
        (0.01, 0.011, False),
        (-0.01, -0.009, False),
        (-0.01, -0.011, True),
    ],
)
def test_the_gate_is_an_energy_per_atom(one_shot, gate, rise, kept):
    class Shelf(EMT):
        """Forces of EMT; each structure after the first one is higher by the rise."""

        calls = 0

        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)
            energy = rise * len(self.atoms) if self.calls else 0.0
            self.results['energy'] = self.results['free_energy'] = energy
            self.calls += 1

    optimizer = one_shot(alloy(), refine=Shelf(), energy_gate=gate)
    optimizer.run(fmax=1e-9, steps=1)
    assert (optimizer.stages[0].status == 'converged') is kept


@pytest.mark.parametrize('refine', [None, EMT], ids=['alone', 'refined'])
def test_the_network_is_asked_once_in_all_runs(one_shot, monkeypatch, refine):
    optimizer, asked = one_shot(alloy(), refine=refine), []
    predictor = optimizer._options.predictor
    relax_really = predictor.relax

    def counted(*args, **kwargs):
        asked.append(args)
        return relax_really(*args, **kwargs)

    monkeypatch.setattr(predictor, 'relax', counted)
    optimizer.run(fmax=0.05, steps=4)
    optimizer.run(fmax=0.05, steps=1)
    assert len(asked) == 1


def other_cell(atoms):
    atoms.set_cell(atoms.cell.array * 1.01)


def other_element(atoms):
    atoms.symbols[0] = 'Ca'


def other_place(atoms):
    atoms.positions[0, 0] += 0.05


@pytest.mark.parametrize('change', [other_cell, other_element, other_place])
def test_what_an_observer_changes_is_predicted_as_it_is_then(one_shot, tiny_model, change):
    atoms, expected = salt(), salt()
    change(expected)
    expected = relax(expected, model=tiny_model).atoms
    optimizer = one_shot(atoms)
    optimizer.attach(lambda: None if optimizer.nsteps else change(atoms))
    assert optimizer.run() is True
    np.testing.assert_allclose(place(atoms), place(expected), atol=1e-6)


def test_atoms_that_were_moved_a_little_are_not_where_they_were_predicted(one_shot):
    atoms = salt()
    optimizer = one_shot(atoms)
    optimizer.run()
    atoms.positions[2, 1] += 1e-6
    assert not optimizer.converged()


def test_in_another_cell_or_with_other_periods_it_is_another_structure(one_shot):
    for change in ('cell', 'pbc'):
        atoms = mx2('MoS2', vacuum=9)
        optimizer = one_shot(atoms)
        optimizer.run()
        assert optimizer.converged()
        if change == 'cell':
            atoms.cell[0] *= 1.001
        else:
            atoms.pbc = True
        assert not optimizer.converged()


def test_an_atom_beyond_the_vacuum_is_no_image(one_shot):
    """Along a vector without periodicity it is elsewhere, along another one it is not."""
    atoms = mx2('MoS2', vacuum=9)
    optimizer = one_shot(atoms)
    optimizer.run()
    atoms.positions[0] += atoms.cell[0] - 2 * atoms.cell[1]
    assert optimizer.converged()
    atoms.positions[0] += atoms.cell[2]
    assert not optimizer.converged()


# --- stages that the prediction spares --------------------------------------------------


class Never(EMT):
    """A calculator that raises at a given call, and at all later ones."""

    def __init__(self, calls, error):
        super().__init__()
        self.left, self.error = calls, error

    def calculate(self, *args, **kwargs):
        self.left -= 1
        if self.left < 0:
            raise self.error
        super().calculate(*args, **kwargs)


def statuses(optimizer):
    return [record.status for record in optimizer.stages]


def test_a_limit_is_a_limit_of_what_is_below(one_shot):
    atoms = alloy()
    optimizer = one_shot(atoms, refine=Stage(EMT(), min_sigma=100.0))
    assert optimizer.run() is True
    assert statuses(optimizer) == ['converged', 'skipped']
    sigma = atoms.info[keys.SIGMA]
    optimizer = one_shot(alloy(), refine=Stage(EMT(), min_sigma=sigma, steps=1))
    optimizer.run()
    assert statuses(optimizer) == ['converged', 'not converged']


def test_other_atoms_are_judged_by_their_own_prediction(one_shot, tiny_model):
    sure, unsure = alloy(a=5.2), alloy()
    low, high = (relax(one, model=tiny_model).sigma for one in (sure, unsure))
    assert low < high
    optimizer = one_shot(sure, refine=Stage(EMT(), min_sigma=(low + high) / 2, steps=1))
    optimizer.run()
    assert statuses(optimizer) == ['converged', 'skipped']
    sure.set_cell(unsure.cell)
    sure.set_positions(unsure.positions)
    optimizer.run(fmax=1e-9)
    assert statuses(optimizer)[-1] == 'not converged'


@pytest.mark.parametrize('before', [[], [Stage(EMT, steps=1)]], ids=['first', 'second'])
@pytest.mark.parametrize('known', [True, False])
def test_a_limit_of_the_error_needs_a_calibrated_model(
    one_shot, calibrated_model, before, known
):
    options = {'model': calibrated_model} if known else {}
    for limit in (1e-9, 100.0):
        stages = [*before, Stage(EMT, min_error=limit, steps=1)]
        optimizer = one_shot(alloy(), refine=stages, **options)
        optimizer.run(fmax=1e-9)
        spared = known and limit == 100.0
        assert (statuses(optimizer)[-1] == 'skipped') is spared
        if spared:
            assert optimizer.stages[-1].reason.startswith('the expected error ')


@pytest.mark.parametrize('before', [[], [Stage(EMT, steps=1)]], ids=['first', 'second'])
def test_outside_the_training_range_no_stage_is_spared(one_shot, before):
    atoms = alloy(a=5.6)
    stages = [*before, Stage(EMT, min_sigma=100.0, steps=1)]
    optimizer = one_shot(atoms, refine=stages)
    optimizer.run(fmax=1e-9)
    assert 'volume' in atoms.info[keys.OOD]
    assert 'skipped' not in statuses(optimizer)


@pytest.mark.parametrize(
    'first',
    [Stage(EMT, fmax=100.0), Stage(lambda: Never(0, RuntimeError('no licence')))],
    ids=['converged', 'failed'],
)
def test_what_was_said_of_another_place_spares_no_stage(one_shot, first):
    """The first stage ends before the prediction is made."""
    atoms = alloy()
    one_shot(atoms).run()
    atoms.rattle(0.1, seed=5)
    assert keys.SIGMA in atoms.info
    chain = [first, Stage(EMT, min_sigma=100.0, steps=1)]
    optimizer = one_shot(atoms, refine=chain)
    optimizer.run(fmax=1e-9)
    assert 'skipped' not in statuses(optimizer)


# --- what becomes of it -----------------------------------------------------------------


def test_where_all_calculators_fail_the_prediction_is_what_is_left(one_shot, tiny_model):
    atoms = alloy()
    expected = relax(atoms, model=tiny_model).atoms
    optimizer = one_shot(atoms, refine=Never(0, RuntimeError('no licence')))
    with pytest.warns(DeepRelaxWarning, match='no licence'):
        assert optimizer.run() is False
    assert statuses(optimizer) == ['converged', 'failed']
    np.testing.assert_allclose(place(atoms), place(expected), atol=1e-6)
    assert keys.SIGMA in atoms.info


@pytest.mark.parametrize('own', [True, False], ids=['refine', 'calculator'])
def test_an_interrupt_while_the_prediction_is_tried_is_one(one_shot, own):
    atoms = alloy()
    calculator = Never(1, KeyboardInterrupt())
    atoms.calc = None if own else calculator
    optimizer = one_shot(atoms, refine=calculator if own else None)
    with pytest.raises(KeyboardInterrupt):
        optimizer.run()
    assert calculator.left == -1  # it was not asked again
    assert np.array_equal(place(atoms), place(alloy()))


def test_what_an_earlier_prediction_said_is_not_said_of_a_rolled_back_one(one_shot):
    atoms = alloy()
    one_shot(atoms).run()
    assert keys.SIGMA in atoms.info
    one_shot(atoms, refine=EMT(), energy_gate=-10.0).run(fmax=0.05)
    assert keys.SIGMA not in atoms.info
    assert keys.SIGMA not in atoms.arrays


def test_a_prediction_after_one_that_was_rolled_back_is_told_as_one(one_shot):
    """The calculator that rolled the first one back is taken away."""
    atoms = alloy()
    atoms.calc = EMT()
    optimizer = one_shot(atoms, energy_gate=-10.0)
    optimizer.run(fmax=1e-3, steps=2)
    assert atoms.info[keys.STAGE].endswith('(prediction rolled back)')
    atoms.calc = None
    assert optimizer.run() is True
    assert atoms.info[keys.STAGE] == 'predicted'


def test_its_record_has_the_time_it_took(one_shot):
    for refine in (None, EMT()):
        optimizer = one_shot(alloy(), refine=refine)
        optimizer.run(fmax=0.05)
        assert 0 < optimizer.stages[0].seconds < 60
