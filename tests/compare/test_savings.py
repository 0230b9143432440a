import copy
import functools
import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from ase.calculators.fd import calculate_numerical_forces
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE, LBFGS, BFGSLineSearch
from ase.optimize.cellawarebfgs import CellAwareBFGS

from ase_deeprelax import ElasticBFGS
from ase_deeprelax.compare import batched_runs
from ase_deeprelax.compare.baselines import Dummy
from ase_deeprelax.compare.cases import check_unique
from ase_deeprelax.compare.comparison_tables import comparison_text
from ase_deeprelax.compare.iterative import Iterative
from ase_deeprelax.compare.relaxation_run import (
    CountingCalculator,
    largest_force,
    run_relaxation,
)
from ase_deeprelax.compare.savings import compare
from ase_deeprelax.compare.summary import quartiles
from ase_deeprelax.data.pairs import make_pair, read_pairs
from ase_deeprelax.errors import ConfigError, PairFileError, StructureError
from ase_deeprelax.optimize.ase_optimizers import find_optimizer
from ase_deeprelax.optimize.many import relax_batched
from ase_deeprelax.predict import Predictor
from tests.alloys import strained_alloy as alloy
from tests.calculators.bare import Bare

SHARED = Path(__file__).parents[2] / '../shared'
FMAX = 0.02


@functools.cache
def minimum_of(seed):
    return run_relaxation(alloy(seed), EMT(), optimizer=BFGS, fmax=1e-3, steps=300).atoms


def minimum(atoms):
    [seed] = [seed for seed in range(4) if atoms == alloy(seed)]
    return minimum_of(seed).copy()


def oracle(structures):
    """Nearly the minimum; so near that FIRE has little left to do."""
    answers = []
    for atoms in structures:
        answer = minimum(atoms)
        answer.rattle(0.004, seed=1)
        answers.append(answer)
    return answers


class Faulty(EMT):
    """EMT that breaks at a call of its choice, counted from the first."""

    def __init__(self, name='forces', value=np.nan, after=3):
        super().__init__()
        self.name_, self.value, self.left = name, value, after

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.left -= 1
        if self.left < 0:
            if isinstance(self.value, Exception):
                raise self.value
            self.results[self.name_] = self.results[self.name_] * self.value


class Lazy(EMT):
    """Gives only the properties of a call, and keeps a list of them."""

    name = 'emt'

    def __init__(self):
        super().__init__()
        self.properties_seen = []

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.properties_seen.append(tuple(properties))
        self.results = {name: self.results[name] for name in properties}


@pytest.fixture(scope='module')
def result():
    structures = {f's{k}': alloy(k) for k in range(3)}
    return compare(
        structures,
        [EMT()],
        optimizers=['FIRE', 'BFGS', 'LBFGS', 'CellAwareBFGS'],
        model=oracle,
        fmax=FMAX,
        reference={id: minimum(atoms) for id, atoms in structures.items()},
        batched=True,
    )


def test_a_good_prediction_saves_calls_with_every_optimizer(result):
    assert [row['optimizer'] for row in result['summary']] == [
        'FIRE',
        'BFGS',
        'LBFGS',
        'CellAwareBFGS',
    ]
    for row in result['summary']:
        for start in ('unrelaxed', 'prediction'):
            assert row[start]['converged'] == 3
            assert row[start]['failed'] == row[start]['unconverged'] == 0
        both = row['both']
        assert both['n'] == 3
        assert both['median_calls_ratio'] < 0.6
        assert both['calls_saved']['q25'] > 3
        assert (both['equal'], both['lower'], both['higher']) == (1, 0, 0)
        assert abs(both['energy_difference']['median']) < 0.002
        assert both['uphill'] == 0
        assert row['only_unrelaxed'] == row['only_prediction'] == []
        alone = row['alone']
        assert alone['failed'] == 0
        assert alone['seconds']['n'] == alone['rmsd_to_reference']['n'] == 3
        # Nearly the minimum, and so above it by little.
        assert 0 < alone['energy_difference']['median'] < 0.01
    text = comparison_text(result)
    assert 'CellAwareBFGS' in text
    for column in (
        'calls',
        'steps',
        'converged',
        'energy / meV',
        'RMSD',
        'space group kept',
    ):
        assert column in text
    assert text.count('prediction alone') == 2 * 4  # in the tables of costs and of ends
    assert 'ended higher' not in text


def test_the_result_is_json_and_holds_a_row_for_every_path(result):
    again = json.loads(json.dumps(result, allow_nan=False))
    assert again == result
    keys = {
        (r['structure'], r['calculator'], r['optimizer'], r['start'])
        for r in result['runs']
    }
    assert len(keys) == len(result['runs']) == 3 * 1 * 4 * 2
    assert [row['id'] for row in result['structures']] == ['s0', 's1', 's2']
    assert [row['structure'] for row in result['predictions']] == ['s0', 's1', 's2']
    settings = result['settings']
    assert settings['calculators'] == {'emt': 'emt'}
    assert settings['model'] == 'oracle'
    assert settings['has_reference']


def test_every_run_says_what_a_fresh_calculator_says_of_its_end(result):
    for run in result['runs']:
        facts = next(s for s in result['structures'] if s['id'] == run['structure'])
        atoms = alloy(int(facts['id'][1:]))
        if run['start'] == 'unrelaxed':
            atoms.calc = EMT()
            energy = atoms.get_potential_energy() / 4
            assert run['curve'][0][0] == pytest.approx(energy)
        atoms.set_cell(run['cell'])
        atoms.set_positions(run['positions'])
        atoms.calc = EMT()
        assert run['energy_per_atom'] == pytest.approx(atoms.get_potential_energy() / 4)
        force = largest_force(atoms, atoms.get_forces(), atoms.get_stress())
        assert run['fmax'] == pytest.approx(force)
        assert force <= FMAX
        assert run['volume'] == pytest.approx(atoms.get_volume())
        assert run['lattice'] == pytest.approx(atoms.cell.cellpar().tolist())
        assert run['calls'] == len(run['curve']) == run['steps'] + 1
        assert run['curve'][-1] == [run['energy_per_atom'], run['fmax']]
        assert run['seconds'] > 0
        assert run['rmsd_to_reference'] < 0.01
        assert run['spacegroup_kept'] in (True, False)


def test_the_prediction_alone_stands_beside_the_runs(result):
    for facts, row in zip(result['structures'], result['predictions'], strict=True):
        [goal] = oracle([alloy(int(facts['id'][1:]))])
        assert row['ok']
        assert row['positions'] == pytest.approx(goal.positions)
        assert row['volume'] == pytest.approx(goal.get_volume())
        assert row['seconds'] > 0
        assert row['sigma'] is facts['sigma'] is None  # a function tells none
        assert facts['reference']['volume'] == pytest.approx(goal.get_volume())
        goal.calc = EMT()
        energy = goal.get_potential_energy() / 4
        assert row['energy_per_atom'] == {'emt': pytest.approx(energy)}
        assert row['fmax']['emt'] > FMAX
        firsts = {
            tuple(run['curve'][0])
            for run in result['runs']
            if run['structure'] == facts['id'] and run['start'] == 'prediction'
        }
        assert firsts == {(row['energy_per_atom']['emt'], row['fmax']['emt'])}


def test_batched_rows_are_the_same_descent_from_both_starts(result):
    unrelaxed, prediction = result['batched']
    assert (unrelaxed['start'], prediction['start']) == ('unrelaxed', 'prediction')
    for row in (unrelaxed, prediction):
        assert (row['n'], row['converged'], row['problem']) == (3, 3, '')
        assert row['structures'] == ['s0', 's1', 's2']
        assert row['optimizer'] == 'ElasticBFGS'
        assert not row['one_pass']  # EMT takes one at a time
        assert row['seconds_per_structure'] > 0
    assert prediction['calls']['median'] < unrelaxed['calls']['median']
    how = {'optimizer': ElasticBFGS, 'fmax': FMAX, 'steps': 100}
    alone = np.median([run_relaxation(alloy(k), EMT(), **how).calls for k in range(3)])
    assert unrelaxed['calls']['median'] == pytest.approx(alone, abs=1)


@pytest.mark.parametrize('optimizer', [FIRE, BFGS, LBFGS, BFGSLineSearch, CellAwareBFGS])
def test_calls_are_counted_at_the_calculator(optimizer):
    calculator = Lazy()
    end = run_relaxation(alloy(), calculator, optimizer=optimizer, fmax=0.05, steps=200)
    assert end.converged
    assert end.calls == len(calculator.properties_seen) == len(end.curve)
    assert set(calculator.properties_seen) == {('energy', 'forces', 'stress')}
    # A line search looks more often than it steps.
    assert end.calls >= end.steps + 1
    if optimizer is not BFGSLineSearch:
        assert end.calls == end.steps + 1
    kept = end.atoms.calc.results
    assert [
        kept['energy'] / 4,
        largest_force(end.atoms, kept['forces'], kept['stress']),
    ] == (pytest.approx(end.curve[-1]))


def test_what_a_calculator_remembers_of_another_run_saves_nothing():
    calculator = EMT()
    first, second = (
        run_relaxation(alloy(), calculator, optimizer=BFGS, fmax=0.05, steps=100)
        for _ in range(2)
    )
    assert first.calls == second.calls
    assert first.curve == second.curve


def test_all_optimizers_stop_by_the_same_measure_which_is_that_of_the_filter():
    atoms = alloy()
    atoms.calc = EMT()
    force = largest_force(atoms, atoms.get_forces(), atoms.get_stress())
    rows = FrechetCellFilter(atoms).get_forces()
    assert force == pytest.approx(np.linalg.norm(rows, axis=1).max(), rel=1e-6)
    fixed = atoms.copy()
    fixed.set_constraint(FixAtoms(range(4)))
    no_forces = largest_force(fixed, atoms.get_forces(), atoms.get_stress())
    assert no_forces < force
    assert largest_force(fixed, atoms.get_forces(), np.zeros(6)) == 0


def test_counted_is_a_calculator_like_the_one_inside():
    atoms = alloy()
    atoms.calc = CountingCalculator(EMT())
    numerical = calculate_numerical_forces(atoms, eps=1e-4, iatoms=[1])
    calls = atoms.calc.calls
    assert calls == 6
    assert atoms.get_forces()[1] == pytest.approx(numerical[0], abs=1e-4)
    atoms.get_stress()
    assert atoms.calc.calls == calls + 1


def test_optimizers_by_name():
    assert find_optimizer('CellAwareBFGS') is CellAwareBFGS
    assert find_optimizer('LBFGS') is LBFGS
    assert find_optimizer(FIRE) is FIRE
    with pytest.raises(ValueError, match=r"'fire'.* CellAwareBFGS,"):
        find_optimizer('fire')
    with pytest.raises(ValueError, match='optimizers is empty'):
        compare([alloy()], [EMT()], optimizers=[], model=Dummy())
    with pytest.raises(ValueError, match='calculators is empty'):
        compare([alloy()], [], model=Dummy())
    with pytest.raises(ValueError, match='structures is empty'):
        compare([], [EMT()], model=Dummy())


def test_two_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="calculators: two are called 'emt'"):
        compare([alloy()], [EMT(), EMT()], model=Dummy())
    optimizers = [BFGS, functools.partial(BFGS, maxstep=0.1)]
    with pytest.raises(ConfigError, match="optimizers: two are called 'BFGS'"):
        compare([alloy()], [EMT()], optimizers=optimizers, model=Dummy())


class NoStress(EMT):
    implemented_properties = ('energy', 'forces')


def test_without_a_stress_only_positions_relax():
    how = {'optimizer': BFGS, 'fmax': 0.02, 'steps': 100}
    end = run_relaxation(alloy(), NoStress(), **how)
    assert not end.ok
    assert 'nostress gives no stress' in end.reason
    # Nor where no atom would have to move.
    end = run_relaxation(bulk('Cu', a=3.9), NoStress(), **how)
    assert (end.ok, end.calls) == (False, 0)
    end = run_relaxation(alloy(), NoStress(), relax_cell=False, **how)
    assert end.converged, end.reason
    assert (end.atoms.cell == alloy().cell).all()
    assert np.linalg.norm(end.atoms.get_forces(), axis=1).max() <= 0.02


@pytest.mark.parametrize(
    ('calculator', 'reason', 'calls'),
    [
        (Faulty(), 'the force on atom 0 .* is not finite', 4),
        (Faulty('stress'), 'the stress is not finite', 4),
        (Faulty('energy'), 'the energy is not finite', 4),
        (Faulty(value=OSError('no licence')), 'OSError: no licence', 4),
    ],
)
def test_a_failure_says_why_and_how_far_it_came(calculator, reason, calls):
    end = run_relaxation(alloy(), calculator, optimizer=BFGS, fmax=0.01, steps=100)
    assert (end.ok, end.converged, end.calls, len(end.curve)) == (False, False, calls, 3)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(end.reason)


@pytest.mark.parametrize('name', ['energy', 'forces', 'stress'])
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_numbers_that_are_not_finite_fail_and_never_converge(tmp_path, name, value):
    """From the first call on, where they would pass for small forces, and later."""
    for after in (0, 2):
        for how in ({}, {'relax_cell': FrechetCellFilter}):
            end = run_relaxation(
                alloy(),
                Faulty(name, value, after),
                optimizer=BFGS,
                fmax=1e9 if after == 0 else 0.01,
                steps=9,
                **how,
            )
            assert (end.ok, end.converged) == (False, False)
            assert 'not finite' in end.reason
    found = compare(
        [alloy(0)], [Faulty(name, value, 5)], model=oracle, fmax=1e-3, out=tmp_path
    )
    assert not found['runs'][0]['ok']
    json.dumps(found, allow_nan=False)
    for line in (tmp_path / 'runs.jsonl').read_text().splitlines():
        assert not {'NaN', 'Infinity'} & set(line.replace(':', ',').split(','))


def test_a_prediction_without_numbers_is_a_failed_prediction():
    def broken(structures):
        for atoms in structures:
            atoms.positions[1] = np.nan
        return structures

    found = compare([alloy(0)], [EMT()], model=broken, fmax=FMAX)
    json.dumps(found, allow_nan=False)
    [row] = found['predictions']
    assert not row['ok']
    assert 'not finite' in row['problem']
    assert found['runs'][1]['reason'].startswith('no prediction: ')

    def too_few(structures):
        return [atoms[:-1] for atoms in structures]

    [row] = compare([alloy(0)], [EMT()], model=too_few, fmax=FMAX)['predictions']
    assert 'in another order or number' in row['problem']


def test_partly_occupied_sites_are_refused_by_predictions_and_relaxations():
    disordered = bulk('Cu', a=3.7, cubic=True)
    disordered.info['occupancy'] = {'0': {'Cu': 0.5, 'Au': 0.5}}
    found = compare({'x': disordered, 's0': alloy(0)}, [EMT()], model=Dummy(), fmax=FMAX)
    row, other = found['predictions']
    assert 'partially occupied' in row['problem']
    assert other['ok']
    first, second, *rest = found['runs']
    assert 'partially occupied' in first['reason']
    assert 'partially occupied' in second['reason']
    assert all(run['converged'] for run in rest)
    assert found['structures'][0]['kind'] == ''


class Bag(Calculator):
    """An empty bag around the atoms that wants another volume."""

    implemented_properties = ('energy', 'forces', 'stress')

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        volume = atoms.get_volume()
        pull = 10 * np.log(volume / 2000)
        self.results = {
            'energy': pull**2 / 20,
            'forces': np.zeros((len(atoms), 3)),
            'stress': pull / volume * np.array([1, 1, 1, 0, 0, 0]),
        }


def test_a_calculator_that_lists_no_properties_is_used():
    how = {'optimizer': BFGS, 'fmax': 0.05, 'steps': 100}
    end, known = (run_relaxation(alloy(), calc, **how) for calc in (Bare(), EMT()))
    assert end.converged, end.reason
    assert end.curve == known.curve


class Unready(EMT):
    """Cannot be made ready for another structure."""

    def reset(self):
        raise OSError('no licence')


def test_an_energy_may_come_as_an_array():
    class InAnArray(EMT):
        name = 'emt'

        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)
            for name in ('energy', 'free_energy'):
                self.results[name] = np.array([self.results[name]])

    how = {'model': oracle, 'batched': True, 'fmax': FMAX}
    plain, other = (compare([alloy(0)], one, **how) for one in (EMT(), InAnArray()))
    curves = [[run['curve'] for run in found['runs']] for found in (plain, other)]
    assert curves[0] == curves[1]
    assert [row['converged'] for row in other['batched']] == [1, 1]


def test_a_calculator_that_cannot_begin_is_a_failed_run():
    end = run_relaxation(alloy(), Unready(), optimizer=BFGS, fmax=0.05, steps=100)
    assert (end.ok, end.reason, end.calls) == (False, 'OSError: no licence', 0)
    assert end.atoms.calc is None


def test_runaways_end():
    end = run_relaxation(alloy(), Bag(), optimizer=BFGS, fmax=0.01, steps=500)
    assert not end.ok
    assert 'ran away' in end.reason


def test_failures_are_counted_apart_and_change_no_other_row(result):
    iron = bulk('Fe', a=2.9, cubic=True)  # which EMT does not know
    structures = {'s0': alloy(0), 'bad': iron, 's1': alloy(1)}
    found = compare(structures, [EMT()], model=_all_but_iron, fmax=FMAX, batched=True)
    [row] = found['summary']
    for start in ('unrelaxed', 'prediction'):
        part = row[start]
        assert (part['failed'], part['unconverged'], part['converged']) == (1, 0, 2)
        assert part['converged_share'] == pytest.approx(2 / 3)
        assert part['calls']['n'] == part['seconds']['n'] == 2
    assert row['both']['n'] == 2
    assert [batch['structures'] for batch in found['batched']] == [['s0', 's1']] * 2
    bad = [run for run in found['runs'] if run['structure'] == 'bad']
    assert bad[0]['reason'].startswith('NotImplementedError')
    assert bad[0]['energy_per_atom'] is bad[0]['positions'] is None
    assert bad[1]['reason'] == 'no prediction: RuntimeError: I know no iron'
    assert (bad[1]['calls'], bad[1]['curve']) == (0, [])
    [failed] = [row for row in found['predictions'] if row['structure'] == 'bad']
    assert (failed['ok'], failed['energy_per_atom'], failed['volume']) == (False, {}, None)
    same = [run for run in result['runs'] if run['optimizer'] == 'FIRE']
    for run in found['runs']:
        for other in same:
            if (run['structure'], run['start']) == (other['structure'], other['start']):
                assert run['curve'] == other['curve']
    alone = row['alone']
    assert (alone['failed'], alone['seconds']['n']) == (1, 2)
    assert alone['energy_difference']['n'] == 2
    json.dumps(found, allow_nan=False)
    lines = comparison_text(found).splitlines()
    [before, after] = [line for line in lines if line.startswith('failed: ')]
    assert before.startswith('failed: bad (emt + FIRE, start: unrelaxed): NotImplemented')
    assert after == (
        'failed: bad (emt + FIRE, start: prediction): '
        'no prediction: RuntimeError: I know no iron'
    )


def test_the_text_names_the_first_failures_and_counts_the_others(result):
    broken = [
        run | {'ok': False, 'reason': f'no. {k}'} for k, run in enumerate(result['runs'])
    ]
    lines = comparison_text(result | {'runs': broken}).splitlines()
    named = [line for line in lines if line.startswith('failed: ')]
    assert [line.rsplit(': ', 1)[1] for line in named[:-1]] == [
        f'no. {k}' for k in range(6)
    ]
    assert named[-1].startswith(f'failed: {len(broken) - 6} more runs')
    assert 'failed: ' not in comparison_text(result)
    alike = [run | {'ok': False, 'reason': 'no licence'} for run in result['runs']]
    lines = comparison_text(result | {'runs': alike}).splitlines()
    named = [line for line in lines if line.startswith('failed: ')]
    assert len(named) == len(result['structures'])
    assert all('and 7 more runs): no licence' in line for line in named)


def test_the_text_names_the_first_structures_that_ended_higher(result):
    [row, *_] = copy.deepcopy(result['summary'])
    row['both']['higher_structures'] = [f'mp-{k}' for k in range(1234)]
    text = comparison_text(result | {'summary': [row]})
    [line] = [line for line in text.splitlines() if 'ended higher' in line]
    assert 'for 1,234 structures: mp-0, mp-1, ' in line
    assert line.endswith('mp-9, and 1,224 more')


def _all_but_iron(structures):
    if any('Fe' in atoms.symbols for atoms in structures):
        raise RuntimeError('I know no iron')
    return oracle(structures)


def test_runs_that_ran_out_of_steps_are_no_failures_and_enter_no_median():
    found = compare([alloy(0), alloy(1)], [EMT()], model=oracle, fmax=FMAX, steps=5)
    [row] = found['summary']
    assert (row['unrelaxed']['unconverged'], row['unrelaxed']['failed']) == (2, 0)
    assert row['unrelaxed']['calls'] == {'n': 0, 'q25': None, 'median': None, 'q75': None}
    assert row['both']['n'] == 0
    assert row['both']['median_calls_ratio'] is None
    run = found['runs'][0]
    assert (run['ok'], run['converged'], run['steps'], run['calls']) == (True, False, 5, 6)
    assert run['reason'] == 'not converged to 0.02 eV/A in 5 steps'
    assert run['energy_per_atom'] is not None
    assert row['only_prediction'] == [
        run['structure']
        for run in found['runs']
        if run['start'] == 'prediction' and run['converged']
    ]
    assert comparison_text(found)


def test_another_minimum_is_noticed():
    def fcc(structures):
        return [bulk('Cu', a=3.59) for _ in structures]

    def bcc(structures):
        return [bulk('Cu', 'bcc', a=2.87) for _ in structures]

    low, high = bulk('Cu', a=3.7), bulk('Cu', 'bcc', a=2.95)  # ideal, so no way out
    down = compare({'Cu': high}, [EMT()], model=fcc)['summary'][0]['both']
    assert (down['lower'], down['lower_structures'], down['higher']) == (1, ['Cu'], 0)
    assert down['energy_difference']['median'] < -0.002
    found = compare({'Cu': low}, [EMT()], model=bcc)
    up = found['summary'][0]['both']
    assert (up['higher'], up['higher_structures'], up['equal']) == (1, ['Cu'], 0)
    assert up['energy_difference']['median'] > 0.002
    assert 'ended higher for 1 structure: Cu' in comparison_text(found)


def test_work_goes_on_where_it_stopped(tmp_path):
    inputs = []

    def model(structures):
        inputs.extend(structures)
        return oracle(structures)

    first = compare([alloy(0)], [EMT()], model=model, fmax=FMAX, out=tmp_path)
    journal = tmp_path / 'runs.jsonl'
    lines = journal.read_text().splitlines()
    assert len(lines) == 1 + 1 + 2  # settings, a prediction, two runs
    # A kill in the middle of a line, and the next day a structure and an optimizer more.
    journal.write_text('\n'.join(lines[:3]) + '\n' + lines[3][:40])
    before = len(inputs)
    calculator = Lazy()
    second = compare(
        [alloy(0), alloy(1)],
        {'emt': calculator},
        model=model,
        fmax=FMAX,
        optimizers=['FIRE', 'BFGS'],
        out=tmp_path,
    )
    for atoms in inputs[before:]:
        assert atoms == alloy(1)
    kept, redone = second['runs'][0], second['runs'][1]
    assert kept == first['runs'][0]  # with its wall time: it was not run again
    assert redone['curve'] == first['runs'][1]['curve']
    assert len(second['runs']) == 2 * 2 * 2
    calls = len(calculator.properties_seen)
    third = compare(
        [alloy(0), alloy(1)],
        {'emt': calculator},
        model=model,
        fmax=FMAX,
        optimizers=['FIRE', 'BFGS'],
        out=tmp_path,
    )
    assert third == second
    assert len(calculator.properties_seen) == calls
    for other in ({'fmax': 0.1}, {'steps': 7}, {'model': Dummy()}):
        with pytest.raises(ConfigError, match='was written with'):
            compare([alloy(0)], [EMT()], out=tmp_path, **{'model': model} | other)


def test_other_weights_of_a_potential_are_another_potential(tmp_path, monkeypatch):
    potentials = {
        'pot': EMT(),
        'pot:a': Faulty('energy', value=2.0, after=0),
        'pot:b': Faulty('energy', value=3.0, after=0),
    }
    monkeypatch.setattr(
        'ase_deeprelax.compare.named_calculators.get_calculator',
        lambda name, **_: potentials[name],
    )

    def relaxed(name):
        settings = {'model': Dummy(), 'fmax': 0.1, 'batched': True, 'out': tmp_path}
        return compare({'x': alloy(0)}, [name], **settings)

    plain, first, second = map(relaxed, potentials)
    energies = [one['runs'][0]['curve'][0][0] for one in (plain, first, second)]
    assert energies[1:] == pytest.approx([2 * energies[0], 3 * energies[0]])
    for result, full in ((plain, 'pot'), (first, 'pot:a'), (second, 'pot:b')):
        assert result['settings']['calculators'] == {'pot': full}
        assert {run['calculator'] for run in result['runs']} == {'pot'}
    assert relaxed('pot:a')['runs'] == first['runs']
    lines = (tmp_path / 'runs.jsonl').read_text().splitlines()[1:]
    keys = [json.loads(line)['key'] for line in lines]
    labels = [x for x in ('pot', 'pot (pot:a)', 'pot (pot:b)') for _ in 'ab']
    assert [key[3] for key in keys if key[0] == 'run'] == labels
    assert [key[1] for key in keys if key[0] == 'batched'] == labels


def test_a_changed_structure_of_the_same_name_is_run_anew(tmp_path):
    one, two = (
        compare({'x': alloy(k)}, [EMT()], model=Dummy(), fmax=0.1, out=tmp_path)
        for k in (0, 1)
    )
    assert one['runs'][0]['curve'] != two['runs'][0]['curve']


def test_other_parameters_of_a_calculator_are_run_anew(tmp_path):
    def energy(epsilon):
        calculator = LennardJones(epsilon=epsilon, sigma=2.3, rc=6.0, smooth=True)
        found = compare([bulk('Cu')], calculator, model=Dummy(), steps=0, out=tmp_path)
        return found['runs'][0]['energy_per_atom']

    assert energy(0.4) == pytest.approx(2 * energy(0.2))


@pytest.mark.parametrize('name', ['weights', 'folder/weights'])
def test_other_weights_at_the_same_place_are_run_anew(tmp_path, monkeypatch, name):
    """A new training writes its weights where the former one wrote them."""
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    given = f'pot:{tmp_path / Path(name).parts[0]}'
    monkeypatch.setattr(
        'ase_deeprelax.compare.named_calculators.get_calculator',
        lambda *_, **__: Faulty('energy', value=float(file.read_text()), after=0),
    )

    def energy(weights):
        file.write_text(weights)
        found = compare([bulk('Cu')], given, model=Dummy(), steps=0, out=tmp_path / 'out')
        return found['runs'][0]['energy_per_atom']

    first, second = energy('2.0'), energy('6.0')
    assert second == pytest.approx(3 * first)
    assert energy('2.0') == first


def test_other_options_of_a_predictor_are_refused(tmp_path, tiny_model):
    def relaxed(**options):
        predictor = Predictor(tiny_model, **options)
        compare([bulk('Cu')], EMT(), model=predictor, steps=0, out=tmp_path)

    relaxed(symmetry='keep')
    with pytest.raises(ConfigError, match='written with model_options'):
        relaxed(symmetry='free')


def test_a_reference_may_be_added_and_changed_afterwards(tmp_path):
    def distances(**reference):
        found = compare([alloy()], calculator, model=Dummy(), out=tmp_path, **reference)
        rows = [*found['predictions'], *found['runs']]
        return [row['rmsd_to_reference'] for row in rows]

    calculator = CountingCalculator(EMT())
    assert distances() == 3 * [None]
    calls = calculator.calls
    true = distances(reference=[minimum(alloy())])
    assert max(true[1:]) < 0.01 < true[0] < 0.5
    stretched = minimum(alloy())
    stretched.set_cell(1.5 * stretched.cell, scale_atoms=True)
    assert distances(reference=[stretched]) == 3 * [1.0]
    assert distances(reference=minimum(alloy())) == true
    assert calculator.calls == calls  # nothing was relaxed again


def test_another_magnetic_order_is_run_anew(tmp_path):
    calls = []
    for moments in ([1, 1, 1, 1], [1, -1, 1, -1], [1, -1, 1, -1]):
        atoms, counting = alloy(), CountingCalculator(EMT())
        atoms.set_initial_magnetic_moments(moments)
        compare([atoms], {'emt': counting}, model=Dummy(), fmax=0.1, out=tmp_path)
        calls.append(counting.calls)
    assert calls == [calls[0], calls[0], 0]
    assert calls[0] > 0


def test_pairs_bring_their_reference_and_lists_may_have_some():
    atoms = alloy()
    pair = make_pair('p', atoms, minimum(atoms))
    found = compare(
        [pair, alloy(1)], [EMT()], model=Dummy(), fmax=0.05, optimizers=['BFGS']
    )
    first, second = found['structures']
    assert (first['id'], second['id']) == ('p', '1')
    assert first['reference']['volume'] < first['volume']
    assert second['reference'] is None
    rmsd = [run['rmsd_to_reference'] for run in found['runs']]
    assert max(rmsd[:2]) < 0.01
    assert rmsd[2:] == [None, None]
    listed = compare([alloy()], [EMT()], model=Dummy(), reference=[None], steps=1)
    assert not listed['settings']['has_reference']


@pytest.mark.parametrize(
    ('structures', 'reference', 'error', 'match'),
    [
        ([bulk('Cu'), bulk('Au')], [bulk('Cu')], StructureError, '1 references for 2'),
        ({'x': bulk('Cu')}, {'y': bulk('Cu')}, StructureError, "'y' belongs to none"),
        ([bulk('Cu')], [bulk('Au')], PairFileError, 'atom 0 is Cu'),
        (2 * [make_pair('p', bulk('Cu'), bulk('Cu'))], None, StructureError, "'p' is the"),
        (['Cu'], None, StructureError, 'not a structure'),
        (
            make_pair('p', bulk('Cu'), bulk('Cu')),
            bulk('Cu', a=4.0),
            StructureError,
            "'p' is a pair",
        ),
    ],
)
def test_mistakes_are_found_before_the_work(structures, reference, error, match):
    with pytest.raises(error, match=match):
        compare(structures, [EMT()], model=Dummy(), reference=reference)


@pytest.mark.parametrize(
    'limits', [{'fmax': -0.1}, {'fmax': np.nan}, {'fmax': '0.05'}, {'steps': -1}]
)
def test_limits_that_make_no_sense_are_refused_before_the_work(limits):
    calls = {
        'compare': lambda: compare([alloy()], EMT(), model=Dummy(), **limits),
        'Iterative': lambda: Iterative(EMT(), **limits),
        'batched': lambda: next(relax_batched([], None, **limits)),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match=f'{next(iter(limits))} is'):
            call()


def test_one_of_a_kind_needs_no_list():
    found = compare(alloy(), EMT(), optimizers='BFGS', model=Dummy(), fmax=0.1)
    listed = compare([alloy()], [EMT()], optimizers=['BFGS'], model=Dummy(), fmax=0.1)
    assert list(found['settings']['calculators']) == ['emt']
    assert [run['curve'] for run in found['runs']] == [
        run['curve'] for run in listed['runs']
    ]


def test_many_ids_are_checked_in_one_pass():
    ids = [f'{k}' for k in range(100_000)]
    check_unique(iter(ids))
    with pytest.raises(StructureError, match="'7' is the id of more than one"):
        check_unique(iter([*ids, '8', '7']))


def test_calculators_have_names_of_their_own(tiny_model):
    made = {'one': EMT(), 'two': EMT}
    found = compare([alloy()], made, model=tiny_model, fmax=0.1)
    assert found['settings']['calculators'] == {'one': 'emt', 'two': 'EMT'}
    one, two = found['summary']
    assert one['prediction']['calls'] == two['prediction']['calls']
    [row] = found['predictions']
    assert row['ok']
    assert row['energy_per_atom']['one'] == row['energy_per_atom']['two']
    assert row['sigma'] > 0
    assert len(row['sigma_atoms']) == 4
    assert found['structures'][0]['sigma'] == row['sigma']
    assert len(found['settings']['sha256']) == 64


def test_the_first_calls_of_a_batch_are_not_timed(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(batched_runs, 'perf_counter', lambda: now[0])

    class Slow(EMT):
        started = False

        def calculate(self, *args, **kwargs):
            now[0] += 0.0 if self.started else 100.0
            self.started = True
            super().calculate(*args, **kwargs)

    settings = {'model': Dummy(), 'fmax': 0.1, 'out': tmp_path}
    compare([alloy()], {'pot': Slow()}, **settings)
    found = compare([alloy()], {'pot': Slow()}, batched=True, **settings)
    assert max(row['seconds_per_structure'] for row in found['batched']) < 100


def test_batches_without_a_structure_tell_no_time():
    class Wrong(EMT):
        def calculate(self, *args, **kwargs):
            raise RuntimeError('broken')

    found = compare([alloy()], {'pot': Wrong()}, model=Dummy(), batched=True)
    for row in found['batched']:
        assert row['n'] == 0
        assert row['seconds_per_structure'] is row['converged'] is None
        assert 'failed' in row['problem']


def test_what_holds_no_atoms_is_a_failed_row():
    empty = Atoms(cell=[3, 3, 3], pbc=True)
    found = compare([empty, bulk('Cu')], EMT(), model=Dummy(), steps=1)
    assert [run['ok'] for run in found['runs']] == [False, False, True, True]
    assert all('0 atoms' in run['reason'] for run in found['runs'][:2])


class Pinned:
    """A constraint of the user's own, with no more than ASE calls."""

    def __init__(self, index):
        self.index = index

    def adjust_positions(self, atoms, new):
        new[self.index] = atoms.positions[self.index]

    def adjust_forces(self, atoms, forces):
        forces[self.index] = 0.0

    def get_removed_dof(self, atoms):
        return 3


def test_a_constraint_of_ones_own_is_honoured_and_told_from_another(tmp_path):
    def end(index):
        atoms = alloy()
        atoms.set_constraint(Pinned(index))
        how = {'model': Dummy(), 'relax_cell': False, 'fmax': 0.1, 'out': tmp_path}
        [run, _] = compare([atoms], EMT(), **how)['runs']
        moved = np.linalg.norm(np.array(run['positions']) - atoms.positions, axis=1)
        return run, moved

    first, moved = end(0)
    assert first['converged']
    assert moved[0] == 0 < moved[1]
    _, moved = end(1)
    assert moved[1] == 0 < moved[0]
    assert end(0)[0] == first


def test_a_wire_with_a_reference_is_a_failed_row_and_changes_no_other():
    wire = Atoms('Cu2', [[0, 0, 0], [0, 0, 2.5]], cell=[10, 10, 5], pbc=[0, 0, 1])
    inputs = [wire, bulk('Cu')]
    found = compare(inputs, EMT(), model=Dummy(), reference=inputs, steps=1)
    assert [run['ok'] for run in found['runs']] == [False, False, True, True]
    assert found['predictions'][0]['rmsd_to_reference'] is None
    assert found['predictions'][1]['rmsd_to_reference'] == pytest.approx(0, abs=1e-6)


def test_quartiles():
    assert quartiles([]) == {'n': 0, 'q25': None, 'median': None, 'q75': None}
    assert quartiles([None, 2.0]) == {'n': 1, 'q25': 2.0, 'median': 2.0, 'q75': 2.0}


def test_a_real_potential_on_real_pairs():
    pytest.importorskip('matgl', exc_type=ImportError)
    folder = SHARED / 'potentials/TensorNet-MatPES-PBE-v2025.1-PES'
    file = SHARED / 'data/pairs_wbm_dev.jsonl.gz'
    if not folder.is_dir() or not file.exists():
        pytest.skip('needs ../shared/potentials and ../shared/data')
    small = [p for p in read_pairs(file, ok_only=True) if p.formula in ('HfPt2', 'MgAsRu2')]
    assert len(small) == 2
    known = {pair.unrelaxed.positions.tobytes(): pair.relaxed for pair in small}

    def knows_the_answer(structures):
        return [known[atoms.positions.tobytes()] for atoms in structures]

    found = compare(
        small,
        [f'tensornet:{folder}'],
        optimizers=['CellAwareBFGS'],
        model=knows_the_answer,
        batched=True,
    )
    [row] = found['summary']
    assert row['calculator'] == 'tensornet'
    assert row['both']['n'] == 2
    assert row['both']['median_calls_ratio'] < 1
    assert row['both']['equal'] == 1
    assert row['prediction']['rmsd_to_reference']['q75'] < 0.05
    for batch in found['batched']:
        assert (batch['converged'], batch['one_pass']) == (2, True)


def test_in_batches_too_constraints_are_those_of_the_input():
    """Also where a function gives structures without them."""
    slab = fcc111('Cu', (1, 1, 4), a=3.6, vacuum=8)
    slab.pbc = (True, True, False)
    slab.set_constraint(FixAtoms([0, 1]))
    slab.rattle(0.15, seed=1)

    def model(structures, **_):
        return [Atoms(x.numbers, x.positions, cell=x.cell, pbc=True) for x in structures]

    found = compare(
        [slab],
        EMT(),
        optimizers='ElasticBFGS',
        model=model,
        relax_cell=False,
        fmax=0.02,
        batched=True,
    )
    alone = {run['start']: run['calls'] for run in found['runs']}
    together = {row['start']: row['calls']['median'] for row in found['batched']}
    assert together['prediction'] == together['unrelaxed'] == alone['unrelaxed']
