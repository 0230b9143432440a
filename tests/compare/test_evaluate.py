import dataclasses
import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, mx2
from ase.constraints import FixAtoms

from ase_deeprelax.compare.baselines import Dummy
from ase_deeprelax.compare.evaluate import (
    cuts,
    evaluate,
    evaluate_all,
)
from ase_deeprelax.compare.evaluation_records import kind_of
from ase_deeprelax.compare.evaluation_tables import (
    FOOTNOTE,
    SHOWN,
    SHOWN_SHARES,
    evaluation_text,
    mean_and_median,
)
from ase_deeprelax.compare.metrics import ERRORS, SHARES
from ase_deeprelax.compare.predictor_adapter import PredictorAdapter, predict_pairs
from ase_deeprelax.compare.uncertainty import inside_90, risk_coverage, uncertain_share
from ase_deeprelax.data.pairs import make_pair
from ase_deeprelax.errors import ConfigError, ModelError, PredictionError
from ase_deeprelax.predict import Predictor


def some_pairs(n=6):
    """Distorted perovskites; in every second one atoms are written in other images."""
    rng = np.random.default_rng(0)
    sites = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
    pairs = []
    for k in range(n):
        first = Atoms('SrTiO3', scaled_positions=sites, cell=3 * [3.7], pbc=True)
        first.positions += rng.uniform(-0.1, 0.1, (5, 3))
        if k % 2:
            first.positions += rng.integers(-2, 3, (5, 3)) @ first.cell.array
        second = first.copy()
        second.positions += rng.uniform(-0.1, 0.1, (5, 3))
        strain = rng.uniform(0, 0.08, (3, 3))
        second.set_cell(first.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        pairs.append(make_pair(f'p{k}', first, second, ok=k > 1))
    return pairs


@pytest.fixture(scope='module')
def predictor(tiny_model):
    return Predictor(tiny_model, device='cpu')


def oracle(pairs):
    return lambda atoms_list: [
        pair.relaxed for pair, _ in zip(pairs, atoms_list, strict=True)
    ]


def test_a_real_model_gives_the_whole_record(predictor):
    pairs = some_pairs()
    result = evaluate(pairs, predictor)
    again = json.loads(json.dumps(result, allow_nan=False))
    assert again == result
    assert (result['n'], result['n_ok'], result['n_failed']) == (6, 4, 0)
    assert result['device'] == 'cpu'
    assert result['ms_per_structure'] > 0
    assert -1 <= result['spearman_sigma'] <= 1
    for pair, row in zip(pairs, result['structures'], strict=True):
        [found] = predictor.relax([pair.unrelaxed])
        assert row['lattice']['model'] == pytest.approx(
            found.atoms.cell.cellpar(), abs=1e-4
        )
        assert row['lattice']['dummy'] == pytest.approx(pair.unrelaxed.cell.cellpar())
        assert row['relaxed_lattice'] == pytest.approx(pair.relaxed.cell.cellpar())
    for part in ('all', 'ok'):
        assert list(result[part]) == ['dummy', 'scaled_dummy', 'model']
        for figures in result[part].values():
            assert set(figures) == {*ERRORS, *SHARES}
            assert all(set(figures[key]) == {'mean', 'median'} for key in ERRORS)
            assert all(isinstance(figures[key], float) for key in SHARES)


def test_the_input_as_the_answer_is_dummy_and_cuts_nothing():
    result = evaluate(some_pairs(), Dummy())
    assert result['all']['model'] == result['all']['dummy']
    assert all(cut == {'mean': 0, 'median': 0} for cut in cuts(result['ok']).values())
    assert result['all']['dummy']['spacegroup_kept'] == 1
    assert result['spearman_sigma'] is None


def test_the_right_answer_cuts_everything():
    pairs = some_pairs()
    result = evaluate(pairs, oracle(pairs))
    for section in (result['all'], result['ok']):
        for cut in cuts(section).values():
            assert cut == pytest.approx({'mean': 100, 'median': 100})
        assert section['model']['rmsd'] == pytest.approx(0, abs=1e-6)
        assert section['model']['match_rate'] == 1


def test_ok_holds_the_pairs_marked_ok_only():
    pairs = some_pairs()
    ok = [pair for pair in pairs if pair.ok]
    result, alone = evaluate(pairs, Dummy()), evaluate(ok, Dummy())
    assert result['ok'] == alone['all'] == alone['ok']
    assert result['all'] != result['ok']


def test_no_pair_marked_ok_leaves_that_part_empty():
    result = evaluate(some_pairs(2), Dummy())
    assert (result['n_ok'], result['ok']['model']) == (0, {})
    assert 'ok, ' not in evaluation_text(result)


def test_a_prediction_that_failed_counts_as_the_input(predictor):
    pairs = some_pairs()

    def relax(atoms_list):
        results = predictor.relax(atoms_list)
        wrong = results[0].atoms.copy()
        wrong.set_cell(10 * wrong.cell.array)
        return [dataclasses.replace(results[0], ok=False, atoms=wrong), *results[1:]]

    def keep_first(atoms_list):
        results = predictor.relax(atoms_list)
        return [dataclasses.replace(results[0], atoms=atoms_list[0]), *results[1:]]

    result, expected = evaluate(pairs, relax), evaluate(pairs, keep_first)
    assert result['n_failed'] == 1
    assert result['all']['model'] == expected['all']['model']


@pytest.mark.parametrize('sign', [1, -1])
def test_spearman_ranks_structures_by_the_error_of_their_bonds(predictor, sign):
    pairs = some_pairs()

    def relax(atoms_list):
        # the k-th answer lies k steps off the truth, and sigma says so, or the opposite
        return [
            dataclasses.replace(result, atoms=stretched(pair, 1 + 0.01 * k), sigma=sign * k)
            for k, (pair, result) in enumerate(
                zip(pairs, predictor.relax(atoms_list), strict=True)
            )
        ]

    def stretched(pair, factor):
        atoms = pair.relaxed
        atoms.set_cell(factor * atoms.cell.array, scale_atoms=True)
        return atoms

    assert evaluate(pairs, relax)['spearman_sigma'] == pytest.approx(sign)


def test_there_is_no_rank_without_a_spread(predictor):
    pairs = some_pairs(3)

    def relax(atoms_list):
        return [dataclasses.replace(one, sigma=0.1) for one in predictor.relax(atoms_list)]

    assert evaluate(pairs, relax)['spearman_sigma'] is None
    assert evaluate(pairs[:1], predictor)['spearman_sigma'] is None


@pytest.mark.parametrize('ok', [True, False])
def test_sigma_ranks_where_a_prediction_has_no_expected_error(predictor, ok):
    pairs = some_pairs()

    def relax(atoms_list):
        # answers are farther and farther off; expected errors say so, sigma the opposite
        results = []
        for k, (pair, one) in enumerate(
            zip(pairs, predictor.relax(atoms_list), strict=True)
        ):
            atoms = pair.relaxed
            atoms.set_cell((1 + 0.02 * k) * atoms.cell.array, scale_atoms=True)
            results.append(
                dataclasses.replace(one, atoms=atoms, error=0.1 * k, sigma=1 - 0.1 * k)
            )
        return [dataclasses.replace(results[0], ok=ok, error=np.nan), *results[1:]]

    found = evaluate(pairs, relax)
    most_certain, *_, all_of_them = (one['error'] for one in found['risk_coverage'])
    assert (most_certain > all_of_them) == ok  # one that failed changes no ranking


def test_the_most_uncertain_part_holds_at_least_one_structure():
    assert uncertain_share([0.1, 0.2], [0.1, 0.3]) == pytest.approx(0.75)


def test_where_all_are_alike_there_is_no_most_uncertain_part():
    """Else it would be the first ones of the file."""
    for errors in ([0.0, 0.0, 1.0], [1.0, 0.0, 0.0]):
        assert uncertain_share([0.1] * 3, errors) is None
        assert risk_coverage([0.1] * 3, errors) is None


def test_a_layer_that_its_pair_calls_a_crystal_has_no_volume_to_miss(calibrated_model):
    film = bulk('Cu', cubic=True)
    film.set_cell([3.6, 3.6, 20.0])
    pair = dataclasses.replace(make_pair('film', film, film), pbc=(True, True, True))
    [predicted] = predict_pairs(PredictorAdapter(calibrated_model, device='cpu'), [pair])
    assert predicted.kind == 'layer'
    assert inside_90(pair, predicted).keys() == {'position', 'lattice'}


@pytest.mark.parametrize('broken', ['positions', 'cell', 'flat cell'])
def test_a_prediction_that_is_no_structure_counts_as_failed(broken):
    """Its figures are those of the input, and the result is JSON."""
    pairs = some_pairs(3)

    def relax(atoms_list):
        atoms_list = [atoms.copy() for atoms in atoms_list]
        if broken == 'positions':
            atoms_list[1].positions[0, 2] = np.nan
        elif broken == 'cell':
            atoms_list[1].cell[2, 2] = np.nan
        else:
            atoms_list[1].cell[2] = atoms_list[1].cell[:2].sum(axis=0)
        return atoms_list

    found = evaluate(pairs, relax)
    json.dumps(found, allow_nan=False)
    assert found['n_failed'] == 1
    assert found['all']['model'] == found['all']['dummy']


def test_workers_find_what_one_process_finds():
    pairs = some_pairs(4)
    one, two = (evaluate(pairs, oracle(pairs), workers=workers) for workers in (1, 2))
    assert one['all'] == two['all']


def test_pairs_may_come_one_by_one_or_alone():
    pairs = some_pairs(3)
    whole = evaluate(pairs, Dummy())['all']
    assert evaluate((pair for pair in pairs), Dummy())['all'] == whole
    assert evaluate(pairs[0], Dummy())['all'] == evaluate(pairs[:1], Dummy())['all']


def test_no_pairs_at_all_are_refused():
    with pytest.raises(ConfigError, match='pairs is empty'):
        evaluate([], Dummy())
    with pytest.raises(TypeError, match='read_pairs'):
        evaluate('pairs.jsonl.gz', Dummy())


def test_answers_for_other_structures_are_refused():
    pairs = some_pairs(3)
    with pytest.raises(PredictionError, match='gave 2 structures for 3'):
        evaluate(pairs, lambda atoms_list: atoms_list[:2])
    with pytest.raises(
        PredictionError, match=r"pair 'p0': the model gave .* another order"
    ):
        evaluate(pairs, lambda atoms_list: [atoms[::-1] for atoms in atoms_list])
    with pytest.raises(PredictionError, match="pair 'p0': the model gave NoneType"):
        evaluate(pairs, lambda atoms_list: [None for _ in atoms_list])


def test_the_model_cannot_change_what_it_is_compared_with():
    pairs = some_pairs(3)

    def relax(atoms_list):
        for atoms in atoms_list:
            atoms.rattle(0.3, seed=0)
        return atoms_list

    assert (
        evaluate(pairs, relax)['all']['dummy'] == evaluate(pairs, Dummy())['all']['dummy']
    )


def untimed(record):
    return {key: value for key, value in record.items() if key != 'ms_per_structure'}


def test_models_side_by_side_are_what_each_is_alone(predictor):
    pairs = some_pairs()
    models = {'mine': predictor, 'oracle': oracle(pairs), 'nothing': Dummy()}
    together = evaluate_all(pairs, models)
    assert json.loads(json.dumps(together, allow_nan=False)) == together
    assert list(together['all']) == ['dummy', 'scaled_dummy', *models]
    for name, model in models.items():
        alone = evaluate(pairs, model)
        assert together['version'] == alone['version']
        assert untimed(together['models'][name]) | {'n': 6, 'n_ok': 4} == {
            key: value
            for key, value in untimed(alone).items()
            if key not in ('version', 'all', 'ok', 'kinds', 'structures')
        }
        for one, both in zip(alone['structures'], together['structures'], strict=True):
            assert one['errors']['model'] == both['errors'][name]
            assert one['sigma']['model'] == both['sigma'][name]
            assert one['bond_error']['model'] == both['bond_error'][name]
        for part in ('all', 'ok'):
            for method, key in (('dummy',) * 2, ('scaled_dummy',) * 2, (name, 'model')):
                assert together[part][method] == alone[part][key]
            assert cuts(together[part], name) == cuts(alone[part])


def test_a_model_that_is_not_there_ends_it_before_the_work():
    def relax(atoms_list):
        raise AssertionError

    with pytest.raises(ModelError, match='nowhere'):
        evaluate_all(some_pairs(2), {'one': relax, 'two': 'nowhere'})


def test_models_without_names_are_refused():
    cu = make_pair('Cu', bulk('Cu'), bulk('Cu'))
    for models in ([Dummy()], Dummy()):
        with pytest.raises(TypeError, match='give a dict of names and models'):
            evaluate_all(cu, models)


def test_a_model_is_not_called_like_a_baseline():
    with pytest.raises(ValueError, match="'dummy' is a baseline"):
        evaluate_all(some_pairs(2), {'dummy': Dummy()})


@pytest.fixture(scope='module')
def four(predictor):
    """Results with names as long as they get without paths."""
    return evaluate_all(some_pairs(), {'deeprelax': predictor, 'tensornet + FIRE': Dummy()})


def test_table_shows_figures_of_both_parts_in_100_columns(four):
    text = evaluation_text(four)
    assert max(map(len, text.splitlines())) <= 100
    parts = dict(zip(('all', 'ok'), text.split('ok, 4'), strict=True))
    for part, shown in parts.items():
        for key in (*SHOWN, *SHOWN_SHARES):
            assert key in shown
        for method, figures in four[part].items():
            rows = [row for row in shown.splitlines() if row.startswith(method + ' ')]
            assert len(rows) == 2 + (method != 'dummy')
            assert '{mean:.4f} / {median:.4f}'.format(**figures['bond_mae']) in rows[0]
            assert f'{figures["match_rate"]:.4f}' in rows[-1]
            if method != 'dummy':
                cut = cuts(four[part], method)['lattice_mae']
                assert f'{cut["mean"]:z.1f} / {cut["median"]:z.1f}' in rows[1]
    time = four['models']['deeprelax']['ms_per_structure']
    assert f'{time:.2f}' in parts['all']
    assert 'ms_per_structure' not in parts['ok']


def test_table_as_markdown_has_the_same_cells(four):
    text, markdown = evaluation_text(four), evaluation_text(four, markdown=True)
    rows = [line for line in markdown.splitlines() if line and '---' not in line]
    assert len(rows) == sum(bool(line) for line in text.splitlines())
    for row, line in zip(rows, filter(None, text.splitlines()), strict=True):
        assert row.strip('| ').replace('|', ' ').split() == line.split()
    for block in markdown.split('\n\n'):
        assert len({line.count('|') for line in block.splitlines()}) == 1


def test_table_of_one_model():
    text = evaluation_text(evaluate([pair for pair in some_pairs() if pair.ok], Dummy()))
    assert 'all, 4' in text
    assert 'ok, ' not in text
    assert sum(line.startswith('model ') for line in text.splitlines()) == 3


def kinds_of_pairs():
    """Two crystals, a slab at a fixed cell with a fixed bottom, a layer, a fixed cell."""
    bulk_pairs = some_pairs(3)
    layer = mx2(a=3.2, size=(2, 1, 1), vacuum=8)
    wide = layer.copy()
    wide.set_cell(layer.cell.array * [1.03, 1.01, 1], scale_atoms=True)
    slab = fcc111('Cu', (2, 2, 3), vacuum=8)
    slab.set_constraint(FixAtoms(mask=slab.get_tags() == 3))
    surface = slab.copy()
    surface.rattle(0.05, seed=0)
    held = dataclasses.replace(bulk_pairs[2], fixed_cell=True, cell1=bulk_pairs[2].cell0)
    return [
        bulk_pairs[0],
        make_pair('slab', slab, surface, fixed_cell=True, kind='slab'),
        bulk_pairs[1],
        make_pair('layer', wide, layer, kind='monolayer'),
        held,
    ]


def rattled(atoms_list, relax_cell=True):
    answers = [atoms.copy() for atoms in atoms_list]
    for atoms in answers:
        atoms.rattle(0.02, seed=0)
    return answers


def test_each_kind_has_figures_of_its_own_pairs():
    pairs = kinds_of_pairs()
    result = evaluate(pairs, rattled)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    kinds = ['bulk', 'slab', 'bulk', 'monolayer', 'fixed-cell']
    assert [row['kind'] for row in result['structures']] == kinds
    assert list(result['kinds']) == ['bulk', 'slab', 'monolayer', 'fixed-cell']
    for kind, found in result['kinds'].items():
        own = [pair for pair, its in zip(pairs, kinds, strict=True) if its == kind]
        assert found['n'] == len(own)
        assert found['all'] == evaluate(own, rattled)['all']
    not_scored = {
        kind: {key for key in ERRORS if found['all']['model'][key] is None}
        for kind, found in result['kinds'].items()
    }
    volume = {'volume_mae', 'relative_volume'}
    cell = volume | {'lattice_mae', 'metric_error'}
    assert not_scored == {
        'bulk': set(),
        'slab': cell,
        'monolayer': volume,
        'fixed-cell': cell,
    }


def test_means_are_over_the_pairs_that_are_scored():
    pairs = kinds_of_pairs()
    together, alone = evaluate(pairs, Dummy()), evaluate([pairs[0], pairs[2]], Dummy())
    for key in ('volume_mae', 'rmsd'):
        assert together['all']['dummy'][key] == alone['all']['dummy'][key]
    cuts_of_slabs = cuts(together['kinds']['slab']['all'])
    assert cuts_of_slabs['lattice_mae'] is None
    assert cuts_of_slabs['coord_mae'] == {'mean': 0, 'median': 0}


def test_where_the_input_is_right_up_to_rounding_there_is_no_cut():
    before, after = mx2('MoS2', a=3.3, vacuum=8), mx2('MoS2', a=3.18, vacuum=8)
    result = evaluate([make_pair('l', before, after)], rattled)
    assert result['all']['dummy']['internal_mae']['mean'] < 1e-15
    cut = cuts(result['all'])
    assert cut['internal_mae'] is None
    assert abs(cut['lattice_mae']['mean']) < 100
    rows = [row for row in evaluation_text(result).splitlines() if row.startswith('model')]
    assert rows[1].split()[4] == '-'


def test_most_inputs_may_be_right_and_a_few_wrong():
    right = {'mean': 0.2, 'median': 1e-12}
    section = {'dummy': {'coord_mae': right}, 'model': {'coord_mae': right | {'mean': 0.1}}}
    cut = cuts(section)['coord_mae']
    assert cut == {'mean': 50, 'median': None}
    assert mean_and_median(cut, '.1f') == '50.0 / -'


def test_the_model_gets_the_periodicity_and_the_held_cells_of_pairs():
    """Once for the cells that relax, once for those that are held; answers in order."""
    pairs, calls = kinds_of_pairs(), []

    def relax(atoms_list, **keywords):
        calls.append((keywords, atoms_list))
        by_size = {len(pair): pair for pair in pairs}
        assert all(len(by_size[len(atoms)]) for atoms in atoms_list)
        return [atoms.copy() for atoms in atoms_list]

    result = evaluate(pairs, relax)
    (free, crystals), (held, slabs) = calls
    assert (free, held) == ({}, {'relax_cell': False})
    assert [len(atoms) for atoms in crystals] == [len(pairs[k]) for k in (0, 2, 3)]
    assert [len(atoms) for atoms in slabs] == [len(pairs[k]) for k in (1, 4)]
    assert crystals[2].pbc.tolist() == slabs[0].pbc.tolist() == [True, True, False]
    assert slabs[0].constraints[0].index.tolist() == np.flatnonzero(pairs[1].fixed).tolist()
    assert result['all']['model'] == result['all']['dummy']


def test_a_predictor_holds_what_the_pairs_hold(predictor):
    pairs = kinds_of_pairs()
    free, slab, *_, layer, held = predict_pairs(PredictorAdapter(predictor), pairs)
    for pair, result in ((pairs[1], slab), (pairs[4], held)):
        assert result.ok
        assert np.array_equal(result.atoms.cell.array, pair.cell0)
    still = pairs[1].fixed
    assert np.array_equal(slab.atoms.positions[still], slab.initial.positions[still])
    assert np.array_equal(layer.atoms.cell.array[2], pairs[3].cell0[2])
    assert not np.allclose(layer.atoms.cell.array[0], pairs[3].cell0[0])
    assert not np.allclose(free.atoms.cell.array, pairs[0].cell0)


def test_a_model_that_cannot_hold_the_cell_is_refused_before_the_work():
    def relax(atoms_list):
        raise AssertionError

    with pytest.raises(ConfigError, match=r"'relax' does not take.*2 of 5 pairs is fixed"):
        evaluate(kinds_of_pairs(), relax)


def test_only_crystals_whose_cell_relaxes_are_scaled():
    pairs = kinds_of_pairs()
    found = evaluate(pairs, Dummy())
    for pair, row in zip(pairs, found['structures'], strict=True):
        same = row['errors']['scaled_dummy'] == row['errors']['dummy']
        assert same == (row['kind'] != 'bulk'), pair.id


def test_table_has_a_part_for_each_kind_and_a_dash_for_what_is_not_scored(predictor):
    result = evaluate(kinds_of_pairs(), predictor)
    text, markdown = evaluation_text(result), evaluation_text(result, markdown=True)
    assert max(map(len, text.splitlines())) <= 100
    parts = text.split('\n\n')
    starts = [part.split('  ')[0] for part in parts[::3]]
    assert starts[2:] == ['bulk, 2', 'slab, 1', 'monolayer, 1', 'fixed-cell, 1', FOOTNOTE]
    slab = next(part for part in parts if part.startswith('slab'))
    for row in slab.splitlines()[1:]:
        assert row.split()[-2:] == ['-', '-']
    assert '| - | - |' in markdown
    only = evaluation_text(evaluate(some_pairs(3), Dummy()))
    assert 'bulk' not in only
    assert FOOTNOTE not in only


def test_what_a_pair_counts_as():
    [pair] = some_pairs(1)
    open_c = (True, True, False)
    for change, kind in (
        ({}, 'bulk'),
        ({'fixed_cell': True}, 'fixed-cell'),
        ({'kind': 'bulk', 'fixed_cell': True}, 'fixed-cell'),
        ({'kind': 'defect', 'fixed_cell': True}, 'defect'),
        ({'pbc': open_c}, 'layer'),
        ({'kind': 'alloy'}, 'alloy'),
    ):
        assert kind_of(dataclasses.replace(pair, **change)) == kind
