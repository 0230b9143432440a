"""The papers' settings, on small data sets in the papers' layouts."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ase_deeprelax.compare.evaluate import evaluate
from ase_deeprelax.compare.evaluation_tables import evaluation_text
from ase_deeprelax.data.pairs import read_pairs
from ase_deeprelax.models import create_model
from ase_deeprelax.models.paegnn import PUBLISHED
from ase_deeprelax.models.store import load_model
from ase_deeprelax.train import config as config_module
from ase_deeprelax.train.config import load_config
from ase_deeprelax.train.run import train
from tests.published import (
    crystals,
    layers,
    write_c2db,
    write_databases,
    write_lists,
    write_mp,
    write_xmno,
)

PAPERS = Path(config_module.__file__).parent / 'configs/papers'
SETS = {
    'deeprelax': {'xmno', 'mp', 'c2db', 'vdw', 'defects'},
    'e3relax-h2': {'xmno', 'mp', 'c2db', 'jarvis', 'vdw'},
}
NAMES = sorted(f'{system}-{name}' for system, names in SETS.items() for name in names)
# What the settings of E3Relax-H2 name for the form that honours symmetry.
CORRECTED = ['model.reference=false', 'loss.distance=0.05']
# The published widths, made small.
SMALL = {
    'paegnn': {'hidden': 16, 'layers': 1, 'num_rbf': 8, 'offset_encoding': 8},
    'e3relax-h2': {'hidden': 16, 'layers': 1, 'num_rbf': 8},
}


def c2db_databases(folder, pairs):
    write_databases(folder, pairs)
    write_lists(folder, pairs)


def test_every_set_of_both_papers_has_its_settings():
    assert sorted(path.stem for path in PAPERS.glob('*.yaml')) == NAMES


@pytest.mark.parametrize('name', NAMES)
def test_settings_are_the_papers_and_give_a_model(name):
    config = load_config(PAPERS / f'{name}.yaml')
    assert config.name == name
    o, loss, augment = config.optimize, config.loss, config.data.augment
    assert (o.learning_rate, o.weight_decay, o.ema) == (1e-4, 0, 0.999)
    assert (o.schedule, o.precision) == ('plateau', '32')
    assert o.max_steps == 800 * o.val_every_steps
    assert o.amsgrad
    assert config.data.batch_crystals == 32
    assert augment.noise_probability == augment.strain_probability == 0
    settings = dict(config.model)
    architecture = settings.pop('architecture')
    if architecture == 'paegnn':
        assert settings == PUBLISHED
        assert (o.clip, o.early_stop) == (150, 50)
        assert loss.distance == loss.cross_distance == loss.lattice == 1
        assert loss.volume == loss.displacement == 0
    else:
        assert settings == {'reference': True}
        assert (o.clip, o.early_stop) == (50, 10)
        assert loss.displacement == loss.lattice == 1
        assert loss.volume == loss.distance == loss.cross_distance == 0
    model = create_model(architecture, **settings | SMALL[architecture])
    assert sum(p.numel() for p in model.parameters()) < 200_000


@pytest.mark.parametrize(
    ('name', 'writer', 'kind', 'changes'),
    [
        ('deeprelax-xmno', write_xmno, crystals, []),
        ('deeprelax-mp', write_mp, crystals, []),
        ('deeprelax-c2db', c2db_databases, layers, []),
        ('e3relax-h2-xmno', write_xmno, crystals, []),
        ('e3relax-h2-jarvis', write_c2db, crystals, CORRECTED),
    ],
)
def test_from_download_to_table(tmp_path, name, writer, kind, changes):
    """Two steps of training on a set in its layout, then the table on its test split."""
    settings = load_config(PAPERS / f'{name}.yaml', changes).model
    folder = tmp_path / 'data'
    folder.mkdir()
    writer(folder, list(kind(np.random.default_rng(0))))
    small = SMALL[settings['architecture']]
    trained = train(
        PAPERS / f'{name}.yaml',
        overrides=[
            f'output={tmp_path}',
            f'data.pairs=[{{path: {folder}}}]',
            'data.workers=0',
            'optimize.max_steps=2',
            'optimize.val_every_steps=1',
            *(f'model.{key}={value}' for key, value in small.items()),
            *changes,
        ],
        progress=False,
    )
    assert trained == tmp_path / name / 'model'
    model = load_model(trained)
    assert (
        model.hyperparameters
        == {key: value for key, value in settings.items() if key != 'architecture'} | small
    )
    assert model.card.training['steps'] == 2

    pairs = read_pairs(folder, 'test')
    result = evaluate(pairs, trained)
    assert result['n'] == len(pairs) >= 1
    assert result['n_failed'] == 0
    for errors in (result['all']['dummy'], result['all']['model']):
        for key in ('coord_mae', 'bond_mae', 'lattice_mae'):
            assert np.isfinite(errors[key]['mean'])
        if kind is layers:  # Where there is vacuum, volume and match are not counted.
            assert errors['volume_mae'] is errors['match_rate'] is None
        else:
            assert np.isfinite(errors['volume_mae']['mean'])
            assert 0 <= errors['match_rate'] <= 1
    assert result['all']['dummy']['lattice_mae']['mean'] > 0.01
    assert 'coord_mae' in evaluation_text(result)


def test_weights_of_one_set_start_the_next(tmp_path):
    """DeepRelaxT and the layered crystals: from Materials Project to little data."""
    folder = tmp_path / 'data'
    folder.mkdir()
    write_c2db(folder, list(layers(np.random.default_rng(0))))
    common = [
        f'output={tmp_path}',
        f'data.pairs=[{{path: {folder}}}]',
        'data.workers=0',
        'optimize.max_steps=1',
        'optimize.val_every_steps=1',
        *(f'model.{key}={value}' for key, value in SMALL['paegnn'].items()),
    ]
    start = train(PAPERS / 'deeprelax-mp.yaml', overrides=common, progress=False)
    rate = ['optimize.learning_rate=1.0e-9']
    again = train(
        PAPERS / 'deeprelax-vdw.yaml', overrides=common + rate, start=start, progress=False
    )
    before, after = load_model(start), load_model(again)
    for a, b in zip(before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
