import dataclasses
import json

import pytest
from ase.build import bulk, fcc111
from ase.constraints import FixAtoms

from ase_deeprelax.data.pairs import make_pair, read_pairs, write_pairs
from ase_deeprelax.models import store


def test_models_stand_side_by_side(run, pairs_file, tmp_path, tiny_model):
    other = tmp_path / 'other'
    store.save_model(store.load_model(tiny_model), other, {'elements': range(1, 95)})
    out = tmp_path / 'figures' / 'result.json'
    words = ['--model', tiny_model, '--model', other, '--json', out]
    result = run('evaluate', pairs_file, *words)
    assert result.exit_code == 0, result.output
    figures = json.loads(out.read_text())
    assert figures['n'] == 6
    assert list(figures['models']) == ['tiny', 'other']
    for part in ('all', 'ok'):
        assert list(figures[part]) == ['dummy', 'scaled_dummy', 'tiny', 'other']
        assert figures[part]['tiny'] == figures[part]['other'] != figures[part]['dummy']
    for method, errors in figures['all'].items():
        lattice = '{mean:.4f} / {median:.4f}'.format(**errors['lattice_mae'])
        rows = [line for line in result.stdout.splitlines() if line.startswith(method)]
        assert lattice in rows[0]


def test_models_of_one_name_are_told_apart(run, pairs_file, tmp_path, tiny_model):
    folders = [tmp_path / name / 'tiny' for name in 'ab']
    for folder in folders:
        store.save_model(store.load_model(tiny_model), folder, {'elements': range(1, 95)})
    words = [word for folder in folders for word in ('--model', folder)]
    result = run('evaluate', pairs_file, *words)
    assert result.exit_code == 0, result.output
    assert all(f'\n{folder} ' in result.stdout for folder in folders)
    twice = run('evaluate', pairs_file, *words[:2], *words[:2])
    assert twice.exit_code == 2
    assert 'given twice' in twice.stderr


def test_potentials_stand_beside_models(run, tmp_path, tiny_model):
    pytest.importorskip('chgnet')
    sizes = {'NaCl': (5.4, 5.69), 'MgO': (4.4, 4.25)}  # the second ones as PBE has them
    pairs = [
        make_pair(name, *(bulk(name, 'rocksalt', a=a) for a in both))
        for name, both in sizes.items()
    ]
    write_pairs(tmp_path / 'pairs.jsonl', pairs)
    out = tmp_path / 'result.json'
    words = ['--model', tiny_model, '--potential', 'chgnet', '--device', 'cpu']
    result = run('evaluate', tmp_path / 'pairs.jsonl', *words, '--json', out, '--markdown')
    assert result.exit_code == 0, result.output
    figures = json.loads(out.read_text())
    assert list(figures['all']) == ['dummy', 'scaled_dummy', 'tiny', 'chgnet + FIRE']
    potential, dummy = (figures['all'][m] for m in ('chgnet + FIRE', 'dummy'))
    assert potential['lattice_mae']['mean'] < dummy['lattice_mae']['mean'] / 3
    assert '\n| chgnet + FIRE | ' in result.stdout


def test_a_report_shows_the_worst_to_turn_by_hand(run, tmp_path, tiny_model, monkeypatch):
    pytest.importorskip('matplotlib', reason="pip install 'ase-deeprelax[plot]'")
    monkeypatch.setattr('ase_deeprelax.cli.evaluate.WORST', 2)
    lengths = {'NaCl': 5.4, 'MgO': 4.9, 'CaO': 4.81}  # the first two far from the end
    pairs = [
        make_pair(name, *(bulk(name, 'rocksalt', a=a) for a in (first, 4.8)))
        for name, first in lengths.items()
    ]
    for k, pair in enumerate(pairs):
        pair.frac1[1] += 0.05 * (2 - k)
    write_pairs(tmp_path / 'pairs.jsonl', pairs)
    page = tmp_path / 'new' / 'report.html'
    words = ['--model', tiny_model, '--html', page]
    result = run('evaluate', tmp_path / 'pairs.jsonl', *words)
    assert result.exit_code == 0, result.output
    assert f'wrote {page}' in result.stderr
    text = page.read_text()
    assert '<h1>Accuracy of predictions</h1>' in text
    assert 'Accuracy on pairs' in text
    assert 'In the viewer: model tiny' in text
    assert 'NaCl, off by 0.' in text
    assert 'MgO, off by 0.' in text
    assert 'CaO, off by' not in text
    # The headline is that of all pairs, not of the few that are shown.
    assert 'structures relaxed' not in text


def test_evaluate_takes_pairs_from_all_over_the_file(run, pairs_file, tmp_path, tiny_model):
    out = tmp_path / 'result.json'
    result = run('evaluate', pairs_file, '--model', tiny_model, '--json', out, '--limit', 2)
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text())['n'] == 2


def test_evaluate_names_what_is_not_there(run, pairs_file, tmp_path, tiny_model):
    file = tmp_path / 'pairs.jsonl'
    file.write_text('{"id": 1}\n')
    for words, said in (
        ([file, '--model', tiny_model], 'pairs.jsonl'),
        ([pairs_file, '--model', 'deeprelaks'], 'deeprelaks'),
        ([pairs_file, '--potential', 'megnet'], 'megnet'),
    ):
        result = run('evaluate', *words)
        assert result.exit_code == 1
        assert said in result.stderr


def test_collections_are_chosen_by_name(run, pairs_file, tmp_path, tiny_model):
    pairs = [
        dataclasses.replace(pair, src='ab'[k % 2], kind='alloy' if k % 3 else 'bulk')
        for k, pair in enumerate(read_pairs(pairs_file))
    ]
    file, out = tmp_path / 'pairs.jsonl', tmp_path / 'result.json'
    write_pairs(file, pairs)
    for chosen, count in ((['a'], 3), (['a', 'b'], 6)):
        words = [word for name in chosen for word in ('--src', name)]
        result = run('evaluate', file, '--model', tiny_model, '--json', out, *words)
        assert result.exit_code == 0, result.output
        figures = json.loads(out.read_text())
        assert figures['n'] == count
        assert sum(kind['n'] for kind in figures['kinds'].values()) == count
        assert 'alloy, ' in result.stdout
    wrong = run('evaluate', file, '--model', tiny_model, '--src', 'c')
    assert wrong.exit_code == 1
    assert "nothing of src 'c'" in wrong.stderr
    assert "there are: 'a', 'b'" in wrong.stderr


def test_held_cells_and_layers_are_evaluated_and_drawn(run, tmp_path, tiny_model):
    pytest.importorskip('matplotlib', reason="pip install 'ase-deeprelax[plot]'")
    slab = fcc111('Pt', (2, 2, 3), vacuum=8)
    slab.set_constraint(FixAtoms(mask=slab.get_tags() == 3))
    relaxed = slab.copy()
    relaxed.rattle(0.05, seed=0)
    pairs = [make_pair('slab', slab, relaxed, fixed_cell=True, kind='slab')]
    write_pairs(tmp_path / 'pairs.jsonl', pairs)
    page = tmp_path / 'report.html'
    words = ['--model', tiny_model, '--html', page]
    result = run('evaluate', tmp_path / 'pairs.jsonl', *words)
    assert result.exit_code == 0, result.output
    row = next(line for line in result.stdout.splitlines() if line.startswith('dummy'))
    assert row.split()[-2:] == ['-', '-']
    assert 'layer, cell fixed' in page.read_text()
