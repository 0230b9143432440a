import dataclasses
import json

import numpy as np
import pytest
from ase import Atoms

from ase_deeprelax.compare.dummy import Dummy
from ase_deeprelax.compare.evaluate import METHODS, cuts, evaluate, table
from ase_deeprelax.compare.metrics import ERRORS, SHARES
from ase_deeprelax.data.pairs import make_pair
from ase_deeprelax.errors import PredictionError
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
    for part in ('all', 'ok'):
        assert tuple(result[part]) == METHODS
        for method in METHODS:
            figures = result[part][method]
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
    assert 'ok (' not in table(result)


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


def test_table_shows_each_figure_of_both_parts():
    text = table(evaluate(some_pairs(), Dummy()))
    for key in (*ERRORS, *SHARES):
        assert sum(line.startswith(key) for line in text.splitlines()) == 2
    assert 'all (6)' in text
    assert 'ok (4)' in text
