import dataclasses
import json

import numpy as np
import pytest
from ase import Atoms

from ase_deeprelax.compare.dummy import Dummy
from ase_deeprelax.compare.evaluate import (
    SHOWN,
    SHOWN_SHARES,
    cuts,
    evaluate,
    evaluate_all,
    table,
)
from ase_deeprelax.compare.metrics import ERRORS, SHARES
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
    assert 'ok, ' not in table(result)


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


def test_workers_find_what_one_process_finds():
    pairs = some_pairs(4)
    one, two = (evaluate(pairs, oracle(pairs), jobs=jobs) for jobs in (1, 2))
    assert one['all'] == two['all']


def test_no_pairs_at_all_are_refused():
    with pytest.raises(ConfigError, match='pairs is empty'):
        evaluate([], Dummy())


def test_answers_for_other_structures_are_refused():
    pairs = some_pairs(3)
    with pytest.raises(PredictionError, match='gave 2 structures for 3'):
        evaluate(pairs, lambda atoms_list: atoms_list[:2])
    with pytest.raises(
        PredictionError, match=r"pair 'p0': the model gave .* another order"
    ):
        evaluate(pairs, lambda atoms_list: [atoms[::-1] for atoms in atoms_list])


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
        assert untimed(together['models'][name]) | {'n': 6, 'n_ok': 4} == {
            key: value
            for key, value in untimed(alone).items()
            if key not in ('all', 'ok', 'kinds', 'structures')
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


def test_a_model_is_not_called_like_a_baseline():
    with pytest.raises(ValueError, match="'dummy' is a baseline"):
        evaluate_all(some_pairs(2), {'dummy': Dummy()})


@pytest.fixture(scope='module')
def four(predictor):
    """Results with names as long as they get without paths."""
    return evaluate_all(some_pairs(), {'deeprelax': predictor, 'tensornet + FIRE': Dummy()})


def test_table_shows_figures_of_both_parts_in_100_columns(four):
    text = table(four)
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
    text, markdown = table(four), table(four, markdown=True)
    rows = [line for line in markdown.splitlines() if line and '---' not in line]
    assert len(rows) == sum(bool(line) for line in text.splitlines())
    for row, line in zip(rows, filter(None, text.splitlines()), strict=True):
        assert row.strip('| ').replace('|', ' ').split() == line.split()
    for block in markdown.split('\n\n'):
        assert len({line.count('|') for line in block.splitlines()}) == 1


def test_table_of_one_model():
    text = table(evaluate([pair for pair in some_pairs() if pair.ok], Dummy()))
    assert 'all, 4' in text
    assert 'ok, ' not in text
    assert sum(line.startswith('model ') for line in text.splitlines()) == 3
