import json
import re
import tomllib
from pathlib import Path

import pytest

from ase_deeprelax.cli.info import EXTRAS
from ase_deeprelax.models import config_file, folders, store

ROOT = Path(__file__).parents[2]


def test_models_lists_what_is_shipped(run, tiny_model, monkeypatch):
    monkeypatch.setattr(folders, 'SHIPPED', tiny_model.parent)
    result = run('models')
    assert result.exit_code == 0, result.output
    size = sum(p.numel() for p in store.load_model(tiny_model).parameters())
    row = result.stdout.splitlines()[1].split()
    assert row[:3] == ['tiny', 'paegnn', f'{size:,}']


def test_shipped_models_name_data_licences_and_figures(run):
    result = run('models')
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 2 + len(folders.available_models())
    for name, card in folders.available_models().items():
        assert name in result.stdout
        result_of_one = run('models', name)
        assert result_of_one.exit_code == 0, result_of_one.output
        assert card['training']
        assert card['metrics']
        for source in card['training']['sources']:
            assert source['licence']
            assert source['licence'] in result_of_one.stdout
    found = json.loads(run('models', '--json').stdout)
    assert found == folders.available_models()
    one = json.loads(run('models', 'deeprelax', '--json').stdout)
    assert one['metrics'] == found['deeprelax']['metrics']


def test_card_is_shown_in_the_words_of_the_pages(run):
    result = run('models', 'ensemble')
    card = folders.available_models()['ensemble']
    entries = dict(line.split(None, 1) for line in result.stdout.splitlines()[1:])
    *symbols, count = entries['elements'].split()
    assert symbols[:3] == ['H', 'He', 'Li']
    assert count == f'({len(symbols)})' == f'({len(card["elements"])})'
    assert 'fixed cell' in entries['learned']
    assert 'held' not in result.stdout
    every = card['metrics']['pairs_wbm_dev']['all']
    for key in ('coord_mae', 'lattice_mae', 'volume_mae'):
        shown = re.findall(r'[\d.]+', entries[f'errors.pairs_wbm_dev.{key}'])
        found = [every[x][key][y] for x in ('model', 'dummy') for y in ('mean', 'median')]
        assert [float(number) for number in shown] == pytest.approx(found, rel=1e-3)


def test_card_with_other_entries_is_shown(run, tiny_model, tmp_path):
    strange = {'n': 1, 'all': {'model': {'coord_mae': 3}, 'dummy': {}}}
    card = {'metrics': {'mine': strange | {'mae': None}, 'note': 'see the paper'}}
    store.save_model(store.load_model(tiny_model), tmp_path / 'odd', card)
    result = run('models', tmp_path / 'odd')
    assert result.exit_code == 0, result.output
    for line in ('errors.mine.all.model.coord_mae', 'errors.mine.mae', 'errors.note'):
        assert f'\n  {line} ' in result.stdout


def test_doctor_finds_a_sound_installation(run, tiny_model):
    result = run('doctor', '--model', tiny_model, '--device', 'cpu')
    assert result.exit_code == 0, result.output
    assert 'all is well' in result.stdout
    for word in ('torch', 'spglib', 'cpu', *EXTRAS):
        assert f'\n  {word} ' in result.stdout


def test_doctor_finds_damaged_weights(run, tiny_model, tmp_path):
    folder = tmp_path / 'damaged'
    store.save_model(store.load_model(tiny_model), folder, {})
    weights = bytearray((folder / config_file.WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (folder / config_file.WEIGHTS).write_bytes(weights)
    result = run('doctor', '--model', folder, '--device', 'cpu')
    assert result.exit_code == 1
    assert 'FAILED' in result.stdout
    assert str(folder) in result.stdout


def test_doctor_knows_the_extras():
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    extras = project['optional-dependencies']
    developers = 'all', 'docs', 'test', 'tutorials'
    assert list(EXTRAS) == [x for x in extras if x not in developers]
    (everything,) = extras['all']
    assert set(re.findall(r'\w+', everything.split('[')[1])) <= set(EXTRAS)
    brings = {'yaml': 'pyyaml', 'mace': 'mace-torch', 'orb_models': 'orb-models'}
    brings |= {'ase_db_backends': 'ase-db-backends'}
    for extra, names in EXTRAS.items():
        packages = {line.split('>')[0] for line in extras[extra]}
        assert {brings.get(name, name) for name in names} == packages
