import gzip
import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixedPlane, FixScaled
from ase.filters import FrechetCellFilter

from ase_deeprelax.calculators.batched import batch_potential
from ase_deeprelax.data.formula import composition
from ase_deeprelax.data.pair import make_pair
from ase_deeprelax.data.pairs import read_pairs
from ase_deeprelax.data.relaxed_structures import read_relaxed
from ase_deeprelax.errors import ConfigError, DeepRelaxError, DeepRelaxWarning
from ase_deeprelax.optimize.guide import USUAL_STRENGTH, GuidedCalculator
from ase_deeprelax.predict import Predictor
from ase_deeprelax.train.inputs import (
    KINDS,
    DefectRecipe,
    Defects,
    FixedCells,
    Given,
    Recipe,
    SlabRecipe,
    Slabs,
    Structures,
    Substitutions,
    substitute,
)
from ase_deeprelax.train.label import label

EMT_ELEMENTS = frozenset({13, 28, 29, 46, 47, 78, 79})
FCC = {'Al': 4.05, 'Ni': 3.52, 'Cu': 3.61, 'Pd': 3.89, 'Ag': 4.09, 'Pt': 3.92, 'Au': 4.08}


@pytest.fixture
def seeds(tmp_path):
    """Elements and ordered alloys of EMT's metals."""
    crystals = [bulk(symbol, a=a) for symbol, a in FCC.items()]
    for first, second in (('Cu', 'Au'), ('Ni', 'Al'), ('Pd', 'Ag')):
        alloy = bulk(first, a=(FCC[first] + FCC[second]) / 2, cubic=True)
        alloy.symbols[0] = second
        crystals.append(alloy)
    path = tmp_path / 'seeds.jsonl.gz'
    with gzip.open(path, 'wt') as file:
        for k, atoms in enumerate(crystals):
            record = {'id': f's{k}', 'formula': str(atoms.symbols)}
            record['numbers'] = atoms.numbers.tolist()
            record['cell'] = atoms.cell.tolist()
            record['frac'] = atoms.get_scaled_positions().tolist()
            file.write(json.dumps(record) + '\n')
    return read_relaxed(path, (), 20)


@pytest.fixture
def series(seeds):
    return Substitutions(seeds, EMT_ELEMENTS, seed=3)


def run(out, series, count=14, **changes):
    settings = {'start': None, 'count': count, 'fmax': 0.02} | changes
    return label(out, series, batch_potential(EMT()), **settings)


def test_pairs_end_at_the_minimum_of_the_potential(tmp_path, series):
    out = tmp_path / 'pairs.jsonl'
    counts = run(out, series)
    pairs = read_pairs(out)
    assert counts['pairs'] == len(pairs) > 3
    assert counts['pairs'] + counts['failed'] == 14
    for pair in pairs:
        relaxed = pair.relaxed
        relaxed.calc = EMT()
        assert np.abs(relaxed.get_forces()).max() < 0.02
        stress = np.abs(relaxed.get_stress()).max() * relaxed.get_volume() / len(relaxed)
        assert stress < 0.03
    # They can be disturbed and relaxed again, as other relaxed structures.
    for pair, known in zip(pairs, read_relaxed(out, (), 20), strict=True):
        assert np.array_equal(known.cell0, pair.cell1)


def test_prediction_is_only_where_the_relaxation_starts(tmp_path, series, tiny_model):
    direct, predicted = tmp_path / 'direct.jsonl', tmp_path / 'predicted.jsonl'
    run(direct, series, fmax=0.005, steps=200)
    run(predicted, series, fmax=0.005, steps=200, start=tiny_model)
    one, two = ({p.id: p for p in read_pairs(path)} for path in (direct, predicted))
    assert len(one) > 3
    assert set(one) == set(two)
    for id, pair in one.items():
        assert np.allclose(pair.cell0, two[id].cell0)
        assert np.linalg.det(pair.cell1) == pytest.approx(
            np.linalg.det(two[id].cell1), rel=5e-3
        )


def test_guided_pairs_end_where_potential_and_prediction_balance(
    tmp_path, series, tiny_model
):
    guided, alone = tmp_path / 'guided.jsonl', tmp_path / 'alone.jsonl'
    with pytest.warns(DeepRelaxWarning, match="not calibrated beside 'emt'") as warned:
        run(guided, series, start=tiny_model, guided=True, name='emt:./here')
    assert sum('not calibrated' in str(one.message) for one in warned) == 1
    run(alone, series, start=tiny_model, name='emt:./here')
    others = {pair.id: pair for pair in read_pairs(alone)}
    moved = []
    for pair in (pairs := read_pairs(guided)):
        [prediction] = Predictor(tiny_model).relax([pair.unrelaxed])
        atoms = pair.relaxed
        atoms.calc = GuidedCalculator(EMT(), prediction, USUAL_STRENGTH)
        assert np.linalg.norm(FrechetCellFilter(atoms).get_forces(), axis=1).max() < 0.021
        if pair.id in others:
            moved.append(np.abs(pair.cell1 - others[pair.id].cell1).max())
    assert len(pairs) > 3
    assert max(moved) > 0.002
    records = map(json.loads, guided.read_text().splitlines())
    assert {record['guided'][:5] for record in records} == {'tiny '}


def test_no_structure_is_guided_without_its_prediction(tmp_path, held, seeds, tiny_model):
    with pytest.raises(ConfigError, match='needs a model to start at'):
        run(tmp_path / 'none.jsonl', held, guided=True)
    with pytest.raises(ConfigError, match=r'was not trained on: .*; it cannot guide'):
        run(tmp_path / 'held.jsonl', held, guided=True, start=tiny_model)
    crushed = seeds[0].unrelaxed
    crushed.set_cell(0.3 * crushed.cell, scale_atoms=True)
    given = as_given({'crushed': crushed, 'good': bulk('Cu', a=3.7)})
    out = tmp_path / 'given.jsonl'
    with pytest.warns(DeepRelaxWarning):
        counts = run(out, given, count=None, guided=True, start=tiny_model)
    assert counts == {'pairs': 1, 'failed': 1}
    assert 'no prediction guides it: ' in out.with_suffix('.failed.jsonl').read_text()


def test_weights_with_a_name_of_their_own_are_another_potential(
    tmp_path, series, tiny_model
):
    with pytest.warns(DeepRelaxWarning, match="not calibrated beside 'chgnet:r2scan'"):
        run(
            tmp_path / 'a.jsonl',
            series,
            start=tiny_model,
            guided=True,
            name='chgnet:r2scan',
        )


def test_a_series_stays_guided_or_not(tmp_path, series, tiny_model):
    out = tmp_path / 'pairs.jsonl'
    run(out, series, start=tiny_model)
    with pytest.raises(ConfigError, match=r"with guided '', now it is 'tiny \w{8}'"):
        run(out, series, start=tiny_model, guided=True)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    for line in lines:  # as former versions wrote them
        del line['guided']
    out.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    with pytest.raises(ConfigError, match=r"with guided '', now it is 'tiny \w{8}'"):
        run(out, series, start=tiny_model, guided=True)


def test_nothing_known_or_excluded_is_made(seeds):
    excluded = frozenset({composition([29, 29, 29, 47]), composition([28, 28, 28, 13])})
    series = Substitutions(seeds, EMT_ELEMENTS, excluded=excluded)
    known = {composition(seed.numbers) for seed in seeds}
    made = [series[k] for k in range(300)]
    compositions = {composition(atoms.numbers) for _, atoms, _ in made if atoms}
    assert len(compositions) > 10
    assert not compositions & (known | excluded)
    assert {z for c in compositions for z, _ in c} <= EMT_ELEMENTS
    assert all(problem for _, atoms, problem in made if atoms is None)


def test_partial_substitution_doubles_the_cell():
    rng = np.random.default_rng(0)
    recipe = Recipe(partial=1)
    parent = bulk('NaCl', 'rocksalt', a=5.6)
    child = substitute(parent, range(1, 84), rng, recipe)
    assert len(child) == 4
    assert len(np.unique(child.numbers)) == 3
    assert child.get_volume() == pytest.approx(2 * parent.get_volume())
    assert sorted(parent.numbers) == [11, 17]  # untouched


def test_given_structures(tmp_path, seeds):
    given = Structures(
        seeds, EMT_ELEMENTS - {13}, 'given', excluded=frozenset({composition([29])})
    )
    out = tmp_path / 'given.jsonl'
    counts = run(out, given, count=None)
    assert counts == {'pairs': len(seeds) - 3, 'failed': 3}
    problems = {
        json.loads(line)['problem']
        for line in out.with_suffix('.failed.jsonl').read_text().splitlines()
    }
    assert problems == {'composition excluded', 'element that the potential does not know'}


def test_a_series_goes_on_with_the_kind_that_it_began_with(tmp_path):
    """Its pairs and its failures, which another kind need not have."""
    atoms = bulk('Cu', a=3.7, cubic=True)
    atoms.rattle(0.05, seed=1)
    structures = [Given('cu', atoms)]
    out = tmp_path / 'given.jsonl'

    def kind(name):
        return run(out, Structures(structures, EMT_ELEMENTS, 'given', kind=name))

    assert kind('slab') == {'pairs': 0, 'failed': 1}
    with pytest.raises(ConfigError, match=r"failed\.jsonl was .* kind 'slab', .* 'bulk'"):
        kind('bulk')
    out.with_suffix('.failed.jsonl').unlink()
    assert kind('bulk') == {'pairs': 1, 'failed': 0}
    with pytest.raises(ConfigError, match=r"given\.jsonl was .* kind 'bulk', .* 'fixed"):
        kind('fixed-cell')


def test_a_kind_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="kind is 'wire'; it must be bulk, "):
        Structures([], EMT_ELEMENTS, 'given', kind='wire')


def test_no_more_structures_are_asked_for_than_there_are(tmp_path):
    given = Structures([Given('cu', bulk('Cu', a=3.7))], EMT_ELEMENTS, 'given')
    assert run(tmp_path / 'given.jsonl', given, count=5) == {'pairs': 1, 'failed': 0}


def test_a_calculator_is_no_potential_for_batches(tmp_path, series):
    out = tmp_path / 'pairs.jsonl'
    with pytest.raises(ConfigError, match=r'EMT.*batch_potential'):
        label(out, series, EMT(), count=3)
    assert not out.exists()


def test_what_a_pair_cannot_say_is_no_input(tmp_path):
    """Constraints along some axes, and crystals among layers: targets would be wrong."""
    slab = fcc111('Cu', (1, 1, 3), a=3.7, vacuum=8)
    slab.pbc = True
    inputs = {'free': [], 'fixed': FixScaled([0], [True] * 3)}
    inputs |= {'plane': FixedPlane([0], (0, 0, 1)), 'part': FixScaled([0], [0, 0, 1])}
    given = []
    for name, constraint in inputs.items():
        atoms = slab.copy()
        atoms.set_constraint(constraint)
        given.append(Given(name, atoms))
    given.append(Given('crystal', bulk('Cu', a=3.7)))
    out = tmp_path / 'given.jsonl'
    series = Structures(given, EMT_ELEMENTS, 'given', kind='monolayer')
    assert run(out, series, count=None) == {'pairs': 2, 'failed': 3}
    failed = out.with_suffix('.failed.jsonl').read_text().splitlines()
    problems = [json.loads(line)['problem'] for line in failed]
    for problem, word in zip(problems, ('FixedPlane', 'FixScaled', 'layer'), strict=True):
        assert word in problem
    for pair in read_pairs(out):
        assert pair.pbc == (True, True, False)
        assert (pair.fixed is not None) == pair.id.startswith('fixed')


def test_lost_relaxations_are_kept_with_their_reason(tmp_path, series):
    out = tmp_path / 'few.jsonl'
    counts = run(out, series, steps=1)
    failed = out.with_suffix('.failed.jsonl').read_text().splitlines()
    assert counts['failed'] == len(failed)
    assert any('not converged in 1 step"' in line for line in failed)


def test_collapsed_crystals_are_no_pairs(tmp_path):
    """Potentials have holes where atoms overlap, and relaxations fall into them."""
    hole = LennardJones(sigma=1.9, epsilon=1.0, rc=6.0)
    given = Structures([Given('cu', bulk('Cu', a=3.3))], EMT_ELEMENTS, 'given')
    out = tmp_path / 'hole.jsonl'
    counts = label(out, given, batch_potential(hole), start=None, fmax=0.02, steps=200)
    assert counts == {'pairs': 0, 'failed': 1}
    assert 'collapsed: 0.5' in out.with_suffix('.failed.jsonl').read_text()


@pytest.fixture(params=['fixed-cell', 'slab', 'defect'])
def held(request, seeds):
    """Series of which the cell is fixed."""
    make, recipe = {
        'fixed-cell': (FixedCells, Recipe(partial=0.8, max_atoms=8, scaled=0.5)),
        'slab': (Slabs, SlabRecipe(max_atoms=16, noble=1, adsorbate=0)),
        'defect': (Defects, DefectRecipe(min_atoms=16, max_atoms=32)),
    }[request.param]
    return make(seeds, EMT_ELEMENTS, seed=4, recipe=recipe)


def test_held_cells_and_fixed_atoms_stay_to_the_last_digit(tmp_path, held):
    out = tmp_path / 'held.jsonl'
    counts = run(out, held, fmax=0.03, steps=200)
    pairs = read_pairs(out)
    assert len(pairs) == counts['pairs'] > 3
    records = [json.loads(line) for line in out.read_text().splitlines()]
    for pair, record in zip(pairs, records, strict=True):
        assert record['kind'] == pair.kind == held.kind
        assert record['series'] == held.name
        assert {'k', 'parent', 'steps', 'energy_per_atom'} <= set(record)
        assert record['fixed_cell'] is True
        assert record['cell1'] == record['cell0']
        if pair.fixed is not None:
            same = np.array(record['frac1']) == np.array(record['frac0'])
            assert same[pair.fixed].all()
            assert not same[~pair.fixed].all()
        _, atoms, _ = held[record['k']]
        # Slabs are layers, also those that say they are periodic along the vacuum.
        pbc = (True, True, False) if held.kind == 'slab' else tuple(atoms.pbc)
        assert pair.pbc == pbc
        assert np.allclose(pair.unrelaxed.positions, atoms.positions, atol=1e-7)
        relaxed = pair.relaxed
        relaxed.calc = EMT()
        # FixAtoms of the pair takes the forces on fixed atoms away.
        assert np.abs(relaxed.get_forces()).max() < 0.031
        energy = relaxed.get_potential_energy() / len(relaxed)
        assert energy == pytest.approx(record['energy_per_atom'], abs=1e-4)
    if held.kind == 'slab':
        assert any(pair.fixed is not None for pair in pairs)


def test_what_symmetry_holds_is_no_pair(tmp_path, seeds):
    given = Structures(seeds[:3], EMT_ELEMENTS, 'given', kind='fixed-cell')
    out = tmp_path / 'still.jsonl'
    assert run(out, given, count=None) == {'pairs': 0, 'failed': 3}
    assert 'nothing moves' in out.with_suffix('.failed.jsonl').read_text()


def test_models_that_do_not_know_a_kind_are_not_asked(tmp_path, held, tiny_model, caplog):
    plain, asked = tmp_path / 'plain.jsonl', tmp_path / 'asked.jsonl'
    with caplog.at_level('INFO', 'ase_deeprelax'):
        run(asked, held, count=6, start=tiny_model)
    assert 'was not trained on' in caplog.text
    assert 'fixed cell' in caplog.text
    run(plain, held, count=6)
    assert asked.read_text() == plain.read_text()


def hostile():
    """Structures that no potential can relax, between good ones."""
    good = bulk('Cu', a=3.5)
    nan = bulk('Cu', a=3.6)
    nan.positions[0, 1] = np.nan
    return {
        'first': good,
        'zero': Atoms('Cu', cell=[0, 0, 0], pbc=True),
        'flat': Atoms('Cu', cell=[900, 900, 0.01], pbc=True),
        'dense': Atoms('H20', cell=[1.5, 1.5, 1.5], pbc=True),
        'nan': nan,
        'unknown': bulk('Fe'),  # EMT raises an exception
        'last': bulk('Au', a=4.2),
    }


def as_given(structures, **settings):
    pairs = []
    for name, atoms in structures.items():
        # Past the checks of `make_pair`: files hold what they like.
        pair = make_pair(
            name, bulk('Cu') * (len(atoms), 1, 1), bulk('Cu') * (len(atoms), 1, 1)
        )
        for key in ('cell0', 'cell1'):
            object.__setattr__(pair, key, atoms.cell.array)
        frac = atoms.positions @ np.linalg.pinv(atoms.cell.array)
        object.__setattr__(pair, 'frac0', frac)
        object.__setattr__(pair, 'numbers', atoms.numbers)
        pairs.append(pair)
    return Structures(pairs, frozenset(range(1, 119)), 'hostile', **settings)


@pytest.mark.parametrize('kind', ['bulk', 'fixed-cell', 'slab'])
def test_given_structures_of_another_kind_are_named(kind):
    crystal, layer = bulk('Cu'), fcc111('Cu', (1, 1, 4), vacuum=8)
    given = [Given('crystal', crystal), Given('layer', layer)]
    series = Structures(given, frozenset({29}), 'given', kind=kind)
    problems = [problem for _, _, problem in (series[0], series[1])]
    if kind == 'slab':
        assert 'not a layer, which the kind slab is' in problems[0]
        assert problems[1] == ''
    else:
        assert problems[0] == ''
        assert f'a layer, which the kind {kind} is not' in problems[1]


@pytest.mark.parametrize('kind', sorted(KINDS))
@pytest.mark.filterwarnings('ignore:invalid value')
def test_bad_inputs_end_only_themselves(tmp_path, kind):
    out = tmp_path / 'pairs.jsonl'
    structures = hostile()
    given = as_given(structures, kind=kind)
    counts = run(out, given, count=None)
    assert counts['pairs'] + counts['failed'] == len(structures)
    failed = [
        json.loads(line)
        for line in out.with_suffix('.failed.jsonl').read_text().splitlines()
    ]
    problems = {list(structures)[record['k']]: record['problem'] for record in failed}
    assert {'zero', 'flat', 'dense', 'nan', 'unknown'} <= set(problems)
    if 'layer' in KINDS[kind].needs:  # refused before the potential sees them
        assert 'position x is nan' in problems['nan']
        assert 'not a layer' in problems['unknown']
    else:
        assert 'not finite' in problems['nan']
        assert 'flat' in problems['flat']
        assert 'A^3' in problems['zero']
        assert 'the potential failed' in problems['unknown']
    if kind == 'bulk':
        assert counts['pairs'] == 2
    assert run(out, given, count=None) == counts


class Unlucky:
    """A series of which some numbers raise."""

    name, kind = 'unlucky', 'bulk'

    def __getitem__(self, k):
        if k % 2:
            raise ZeroDivisionError('no such structure')
        return 'Cu', bulk('Cu', a=3.5), ''


def test_input_that_cannot_be_made_ends_only_itself(tmp_path):
    out = tmp_path / 'pairs.jsonl'
    assert run(out, Unlucky(), count=4) == {'pairs': 2, 'failed': 2}
    assert 'ZeroDivisionError' in out.with_suffix('.failed.jsonl').read_text()


def test_broken_potential_ends_the_run_before_all_inputs_are_lost(tmp_path, series):
    def broken(structures):
        raise RuntimeError('the device is gone')

    out = tmp_path / 'pairs.jsonl'
    with pytest.raises(DeepRelaxError, match='the device is gone'):
        label(out, series, broken, count=2000, start=None)
    assert len(out.with_suffix('.failed.jsonl').read_text().splitlines()) < 500


def test_other_series_in_the_file_are_left_alone(tmp_path, seeds, series):
    out = tmp_path / 'both.jsonl'
    first = run(out, series)
    other = Substitutions(seeds, EMT_ELEMENTS, seed=8)
    second = run(out, other)
    names = [json.loads(line)['series'] for line in out.read_text().splitlines()]
    assert names.count(series.name) == first['pairs']
    assert names.count(other.name) == second['pairs'] > 3


def test_other_structures_are_no_series_that_is_there(tmp_path, seeds, series):
    out = tmp_path / 'pairs.jsonl'
    counts = run(out, series)
    fewer = Substitutions(seeds[3:], EMT_ELEMENTS, seed=3)
    assert fewer.name == series.name
    with pytest.raises(ConfigError, match=r'made from other structures.*another seed'):
        run(out, fewer)
    assert run(out, Substitutions(seeds, EMT_ELEMENTS, seed=3)) == counts


def test_given_structures_may_become_more_but_not_other_ones(tmp_path):
    def given(*constants):
        atoms = [Given('mine', bulk('Cu', a=a)) for a in constants]
        return Structures(atoms, EMT_ELEMENTS, 'mine')

    out = tmp_path / 'pairs.jsonl'
    assert run(out, given(3.5), count=None)['pairs'] == 1
    assert run(out, given(3.5, 3.7), count=None)['pairs'] == 2
    for others in (given(3.4, 3.7), given()):
        with pytest.raises(ConfigError, match='made from other structures'):
            run(out, others, count=None)


def test_no_given_structure_may_change_or_move_to_another_number(tmp_path):
    def given(structures):
        atoms = [Given('mine', atoms) for atoms in structures]
        return Structures(atoms, EMT_ELEMENTS, 'mine')

    cells = [bulk('Cu', a=3.5, cubic=True) for _ in range(14)]
    for k, atoms in enumerate(cells):
        atoms.rattle(0.05, seed=k)
    out = tmp_path / 'pairs.jsonl'
    counts = run(out, given(cells), count=None)
    assert counts['pairs'] == 14
    images = [atoms.copy() for atoms in cells]
    for atoms in images:
        atoms.wrap()
    assert run(out, given(images), count=None) == counts
    for others in ([*cells[:12], cells[13], cells[12]], [*cells[:13], cells[0]]):
        with pytest.raises(ConfigError, match='made from other structures'):
            run(out, given(others), count=None)


def relax_slowly(out, seeds):
    """For another process: label, a moment after each structure."""
    ask = batch_potential(EMT())

    def potential(structures):
        time.sleep(0.002)
        return ask(structures)

    series = Substitutions(seeds, EMT_ELEMENTS, seed=3)
    label(out, series, potential, count=14, start=None, fmax=0.02, batch_atoms=1)


def test_killed_runs_go_on_to_the_same_file(tmp_path, seeds, series):
    whole, killed = tmp_path / 'whole.jsonl', tmp_path / 'killed.jsonl'
    counts = run(whole, series, batch_atoms=1)
    context = multiprocessing.get_context('spawn')
    for lines in (1, 3):
        process = context.Process(target=relax_slowly, args=(killed, seeds))
        process.start()
        deadline = time.monotonic() + 120
        while not (killed.exists() and killed.read_bytes().count(b'\n') >= lines):
            assert time.monotonic() < deadline
            assert process.is_alive()
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert run(killed, series, batch_atoms=1) == counts
    for suffix in ('.jsonl', '.failed.jsonl'):
        one, two = (path.with_suffix(suffix).read_text() for path in (whole, killed))
        assert one == two
    assert run(whole, series) == counts  # nothing is left to do


def test_a_series_goes_on_with_the_same_potential_and_fmax(tmp_path, series):
    out = tmp_path / 'pairs.jsonl'
    counts = run(out, series, name='emt')
    before = out.read_text()
    with pytest.raises(ConfigError, match="with potential 'emt', now it is 'chgnet'"):
        run(out, series, name='chgnet')
    with pytest.raises(ConfigError, match=r'with fmax 0\.02, now it is 0\.05'):
        run(out, series, name='emt', fmax=0.05)
    assert out.read_text() == before
    lines = [json.loads(line) for line in before.splitlines()]
    for line in lines:  # as former versions wrote them
        del line['potential'], line['fmax']
    out.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    assert run(out, series, name='emt') == counts
