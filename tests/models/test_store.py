import datetime as dt
import hashlib
import json
import os
import shutil
import time

import numpy as np
import pytest
import torch
from ase.build import bulk

from ase_deeprelax import files
from ase_deeprelax.errors import DeepRelaxWarning, ModelError
from ase_deeprelax.models import create_model, folders
from ase_deeprelax.models.card import ModelCard
from ase_deeprelax.models.config_file import answers_hash
from ase_deeprelax.models.ensemble import Ensemble
from ase_deeprelax.models.folders import available_models
from ase_deeprelax.models.painn import PaiNN
from ase_deeprelax.models.store import (
    load_model,
    load_shared,
    save_model,
)
from ase_deeprelax.predict import relax


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    torch.manual_seed(0)
    model = create_model('paegnn', hidden=16, layers=1)
    folder = tmp_path_factory.mktemp('models') / 'small'
    save_model(model, folder, {'elements': [8, 22], 'metrics': {'coord_mae': 0.1}})
    return model, folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original[1], tmp_path / 'small')


def test_a_model_that_could_not_be_loaded_again_is_not_saved(tmp_path):
    with pytest.raises(ModelError, match=r"ARCHITECTURES\['painn'\] = PaiNN"):
        save_model(PaiNN(hidden=16), tmp_path / 'mine', {})
    with pytest.raises(ModelError, match='save its members'):
        save_model(Ensemble([PaiNN(hidden=16)]), tmp_path / 'mine', {})
    assert not (tmp_path / 'mine').exists()


@pytest.mark.parametrize(
    ('card', 'settings', 'message'),
    [
        (
            {'training': {'day': dt.date(2024, 5, 1)}},
            {},
            r'2024, 5, 1\) is of type date',
        ),
        ({'metrics': {(1, 2): 0.1}}, {}, 'fit into JSON'),
        ({}, {'cutoff': 20.0}, 'PaEGNN: cutoff is 20'),
        ({}, {'rbf_cutoff': float('inf')}, 'PaEGNN: rbf_cutoff is inf'),
    ],
)
def test_what_could_not_be_read_again_leaves_the_former_model(
    folder, card, settings, message
):
    model = create_model('paegnn', **{'hidden': 16, 'layers': 1} | settings)
    before = load_model(folder).sha256
    with pytest.raises(ModelError, match=message):
        save_model(model, folder, card)
    assert load_model(folder).sha256 == before


def test_numbers_of_numpy_and_torch_and_nan_are_saved(tmp_path):
    metrics = {'mae': np.float32(0.5), 'layers': np.nan, 'all': torch.tensor([1.0, 2.0])}
    card = {'elements': np.array([8, 22]), 'metrics': metrics}
    save_model(create_model('paegnn', hidden=np.int64(16), layers=1), tmp_path, card)
    loaded = load_model(tmp_path)
    assert loaded.card.elements == (8, 22)
    assert loaded.card.metrics == {'mae': 0.5, 'layers': None, 'all': [1.0, 2.0]}
    assert loaded.hyperparameters == {'hidden': 16, 'layers': 1}


def edit(folder, *, sign=True, **changes):
    """Change entries of a config; by default with a hash that fits, as a forger would."""
    path = folder / 'config.json'
    config = json.loads(path.read_text()) | changes
    if sign and 'sha256' not in changes:
        config['sha256'] = answers_hash(config)
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_what_is_saved_comes_back(original, dtype):
    model, folder = original
    loaded = load_model(folder, 'cpu', dtype=dtype)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[key].to(dtype)), key
    assert {x.dtype for x in loaded.parameters()} == {dtype}
    assert not loaded.training
    assert not any(x.requires_grad for x in loaded.parameters())
    assert loaded.card.elements == (8, 22)
    assert loaded.card.metrics == {'coord_mae': 0.1}
    assert loaded.name == 'small'
    config = json.loads((folder / 'config.json').read_text())
    assert loaded.sha256 == config['sha256']
    assert config['graph'] == model.spec.to_dict()
    assert loaded.architecture == 'paegnn'
    assert loaded.hyperparameters == {'hidden': 16, 'layers': 1}


def test_path_as_text_and_name_in_the_card(folder):
    edit(folder, name='mine')
    assert load_model(str(folder)).name == 'mine'


def test_nothing_else_is_left_in_the_folder(folder):
    assert sorted(path.name for path in folder.iterdir()) == [
        'config.json',
        'model.safetensors',
    ]


def test_failed_write_leaves_the_former_model(original, folder, monkeypatch):
    before = (folder / 'model.safetensors').read_bytes()

    def full(_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(files.os, 'fsync', full)
    with pytest.raises(OSError, match='No space'):
        save_model(create_model('paegnn', hidden=16, layers=1), folder, {})
    assert (folder / 'model.safetensors').read_bytes() == before
    assert len(list(folder.iterdir())) == 2
    load_model(folder)


@pytest.mark.parametrize('where', [0, 9, 500, -1])
def test_flipped_bit_is_found(folder, where):
    path = folder / 'model.safetensors'
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    expected = json.loads((folder / 'config.json').read_text())['weights_sha256']
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    actual = hashlib.sha256(content).hexdigest()
    for part in (str(path), expected, actual):
        assert part in str(caught.value)


@pytest.mark.parametrize('size', [0, 7, 100, -1])
def test_truncated_weights_are_found(folder, size):
    path = folder / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelError, match='damaged'):
        load_model(folder)


def test_missing_weights(folder):
    (folder / 'model.safetensors').unlink()
    with pytest.raises(ModelError, match='No such file'):
        load_model(folder)
    with pytest.raises(ModelError, match='No such file'):
        load_shared(folder, torch.device('cpu'), torch.float32)


@pytest.mark.parametrize('text', ['', '{', '[]', '{}', '"x"', '\x00\xff'])
def test_damaged_config(folder, text):
    (folder / 'config.json').write_text(text)
    with pytest.raises(ModelError, match=r'config\.json'):
        load_model(folder)


@pytest.mark.parametrize('key', ['architecture', 'hyperparameters', 'sha256'])
def test_incomplete_config(folder, key):
    edit(folder, **{key: None})
    with pytest.raises(ModelError, match=f'lacks {key}'):
        load_model(folder)


def test_newer_format_names_both_versions(folder):
    edit(folder, format_version=7)
    with pytest.raises(ModelError, match=r'format_version 7, this package reads 2'):
        load_model(folder)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'hyperparameters': {'hidden': 24, 'layers': 1}}, 'do not fit together'),
        ({'hyperparameters': {'hidden': 16, 'layers': 2}}, 'do not fit together'),
        ({'hyperparameters': {'width': 16}}, 'width'),
        ({'architecture': 'alexnet'}, 'alexnet'),
    ],
)
def test_config_of_another_model(folder, change, message):
    edit(folder, **change)
    with pytest.raises(ModelError, match=message):
        load_model(folder)


@pytest.mark.parametrize('suffix', ['.pt', '.pth', '.ckpt'])
def test_pickles_are_refused_unread(tmp_path, suffix):
    path = tmp_path / f'model{suffix}'
    torch.save({'weights': torch.zeros(1)}, path)
    with pytest.raises(ModelError, match='pickle'):
        load_model(path)


def test_folder_without_config(tmp_path):
    with pytest.raises(ModelError, match=r'no config\.json'):
        load_model(tmp_path)


@pytest.mark.parametrize('thing', [None, 3, torch.nn.Linear(2, 2), PaiNN])
def test_what_is_no_model_is_named(thing):
    with pytest.raises(ModelError, match='is no model; give a name, a folder, or'):
        relax(bulk('Cu'), model=thing) if thing is not None else load_model(thing)


def test_unknown_name_tells_the_nearest(folder, monkeypatch):
    shutil.copytree(folder, folder.parent / 'shipped' / 'deeprelax')
    monkeypatch.setattr(folders, 'SHIPPED', folder.parent / 'shipped')
    assert list(available_models()) == ['deeprelax']
    assert load_model('deeprelax').name == 'deeprelax'
    with pytest.raises(ModelError, match=r"'deprelax'; did you mean 'deeprelax'\? avail"):
        load_model('deprelax')
    with pytest.raises(ModelError, match=r'xyz.*; available: deeprelax'):
        load_model('xyz')


def test_no_models_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, 'SHIPPED', tmp_path)
    with pytest.raises(ModelError, match='available: none'):
        load_model('default')


def test_shared_models_are_loaded_once_and_again_when_they_change(folder):
    cpu = torch.device('cpu')
    first = load_shared(folder, cpu, torch.float32)
    assert load_shared(str(folder), cpu, torch.float32) is first
    assert load_shared(folder, cpu, torch.float64) is not first
    for shared, loaded in zip(
        first.parameters(), load_model(folder).parameters(), strict=True
    ):
        assert torch.equal(shared, loaded)
    torch.manual_seed(1)
    save_model(create_model('paegnn', hidden=16, layers=1), folder, {})
    assert load_shared(folder, cpu, torch.float32).sha256 != first.sha256


@pytest.mark.parametrize('name', available_models())
def test_shipped_models_load_and_say_where_they_come_from(name):
    model = load_model(name)
    for key in ('elements', 'training', 'metrics'):
        assert getattr(model.card, key), key


def test_ensemble_is_a_list_of_models_with_the_hash_of_their_hashes(tmp_path, tiny_model):
    other = tmp_path / 'other'
    save_model(create_model('painn', hidden=16, layers=2), other, {'elements': [8, 12]})
    members = [str(tiny_model), str(other)]
    hashes = ''.join(load_model(member).sha256 for member in members)
    config = {
        'name': 'both',
        'members': members,
        'format_version': 1,
        'architecture': 'ensemble',
        'hyperparameters': {},
        'sha256': hashlib.sha256(hashes.encode()).hexdigest(),
    }
    folder = tmp_path / 'both'
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps(config))
    model = load_model(folder)
    assert [type(member).__name__ for member in model.members] == ['PaEGNN', 'PaiNN']
    assert relax(bulk('MgO', 'rocksalt', a=4.3), model=folder).model == 'both'
    save_model(create_model('painn', hidden=16, layers=2), other, {'elements': [8, 12]})
    with pytest.raises(ModelError, match='are not those that it was made of'):
        load_model(folder)


@pytest.mark.parametrize(
    'change',
    [
        {'hyperparameters': {'hidden': 16, 'layers': 1, 'cutoff': 8.0}},
        {'elements': [8, 22, 118]},
        {'learned': ['bulk', 'layer']},
        {'range': {'n_atoms': [1, 10_000]}},
        {'second_look': True},
    ],
)
def test_a_config_that_was_edited_is_refused(folder, change):
    """Such a change gives other answers, or trusts them more, under the same hash."""
    load_model(folder)
    edit(folder, sign=False, **change)
    with pytest.raises(ModelError, match='was edited'):
        load_model(folder)


def test_models_of_the_format_before_load_with_a_warning(original, folder):
    path = folder / 'config.json'
    config = json.loads(path.read_text())
    former = config | {'format_version': 1, 'sha256': config['weights_sha256']}
    del former['weights_sha256']
    path.write_text(json.dumps(former))
    with pytest.warns(DeepRelaxWarning, match='older format'):
        model = load_model(folder)
    assert model.sha256 == former['sha256']
    save_model(model, folder, model.card)
    assert load_model(folder).sha256 == config['sha256']


def test_card_comes_back_whole():
    card = ModelCard(
        name='mine',
        licence='MIT',
        elements=(1, 8),
        learned=('bulk', 'layer'),
        ranges={'n_atoms': (1.0, 20.0)},
        saw_relaxed=True,
        training={'pairs': 3},
        metrics={'val': 0.1},
        members=('a', 'b'),
    )
    assert ModelCard.from_dict(json.loads(json.dumps(card.to_dict()))) == card
    assert ModelCard.from_dict(ModelCard().to_dict()) == ModelCard()


def test_files_keep_their_words_for_fixed_cells():
    """They are hashed; the words were 'held cell' and 'partly held cell'."""
    card = ModelCard(learned=('bulk', 'fixed cell', 'partly fixed cell'))
    stored = card.to_dict()
    assert stored['learned'] == ['bulk', 'held cell', 'partly held cell']
    assert ModelCard.from_dict(stored) == ModelCard.from_dict(
        {'learned': list(card.learned)}
    )


def deep(folder):
    (folder / 'config.json').write_text('[' * 100_000 + ']' * 100_000)


def huge(folder):
    with (folder / 'config.json').open('r+b') as file:
        file.truncate(10**11)  # a sparse file takes no place


def huge_weights(folder):
    with (folder / 'model.safetensors').open('r+b') as file:
        file.truncate(10**12)


def special(name):
    def replace(folder):
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return replace


def directory(folder):
    (folder / 'model.safetensors').unlink()
    (folder / 'model.safetensors').mkdir()


def symlink_loop(folder):
    (folder / 'config.json').unlink()
    (folder / 'config.json').symlink_to(folder / 'config.json')


def hyperparameters(**values):
    return lambda folder: edit(folder, hyperparameters={'hidden': 16, 'layers': 1} | values)


def entry(**values):
    return lambda folder: edit(folder, **values)


def members(names):
    def write(folder):
        config = {'format_version': 2, 'architecture': 'ensemble', 'hyperparameters': {}}
        config |= {'members': names(folder), 'sha256': ''}
        (folder / 'config.json').write_text(json.dumps(config))

    return write


HOSTILE = {
    'deep JSON': deep,
    'huge config': huge,
    'huge weights': huge_weights,
    'directory for weights': directory,
    'symlink loop': symlink_loop,
    'a cutoff of 1e9': hyperparameters(cutoff=1e9),
    'a negative cutoff': hyperparameters(cutoff=-1),
    'a width of 1e6': hyperparameters(hidden=10**6),
    'a width that only fits into memory': hyperparameters(hidden=2000, layers=60),
    '1e9 layers': hyperparameters(layers=10**9),
    'a width of words': hyperparameters(hidden='many'),
    'a list for the hyperparameters': entry(hyperparameters=[1]),
    'a number for the architecture': entry(architecture=3),
    'a word for the elements': entry(elements='H'),
    'element 0': entry(elements=[0]),
    'element 1e30': entry(elements=[1e30]),
    'half an element': entry(elements=[1.5]),
    'a range of words': entry(range={'n_atoms': ['a', 'b']}),
    'a range of three': entry(range={'n_atoms': [1, 2, 3]}),
    'an unknown range': entry(range={'charge': [1, 2]}),
    'a number for learned': entry(learned=3),
    'a word for second_look': entry(second_look='yes'),
    'a list for the training': entry(training=[]),
    'a number for the name': entry(name=3),
    '100,000 members': members(lambda folder: ['deeprelax'] * 100_000),
    'no members': members(lambda folder: []),
    'members of numbers': members(lambda folder: [1, 2]),
    'itself as a member': members(lambda folder: [str(folder)]),
}
if hasattr(os, 'mkfifo'):
    HOSTILE['pipe for config'] = special('config.json')
    HOSTILE['pipe for weights'] = special('model.safetensors')


@pytest.mark.parametrize('case', HOSTILE)
@pytest.mark.timeout(30)
def test_hostile_folders_are_refused_at_once(folder, case):
    HOSTILE[case](folder)
    begun = time.process_time()
    with pytest.raises(ModelError):
        load_model(folder)
    assert time.process_time() - begun < 1


def test_nan_is_no_number_in_a_config(folder):
    path = folder / 'config.json'
    path.write_text(path.read_text().replace('0.1', 'NaN'))
    with pytest.raises(ModelError, match='NaN is not a number'):
        load_model(folder)
