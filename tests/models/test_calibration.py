"""The file beside the weights that says how large errors are."""

import numpy as np
import pytest
import torch

from ase_deeprelax.errors import ModelError
from ase_deeprelax.models import create_model
from ase_deeprelax.models.calibration import (
    CALIBRATION,
    Calibration,
    Environments,
    ErrorLaw,
    PotentialErrors,
)
from ase_deeprelax.models.store import load_model, save_model

to_dict = Calibration.to_dict


def some_calibration(width=16):
    law = ErrorLaw(1.2, {'bulk': 2.0}, {'bulk': 3.0})
    rng = np.random.default_rng(0)
    return Calibration(
        fitted_on=[{'file': 'mine', 'kind': 'bulk', 'n': 50, 'coverage': None}],
        laws=dict.fromkeys(('coordinates', 'positions', 'lattice', 'volume'), law),
        environments=Environments(
            rng.normal(size=width),
            rng.normal(size=(width, width)),
            {'bulk': 2.5},
            frozenset({(8, 22), (1, 8)}),
        ),
        potentials={
            'chgnet': {
                'bulk': PotentialErrors(guide=0.02, step=0.05),
                'layer': PotentialErrors(guide=0.08, step=0.04),
            }
        },
    )


@pytest.fixture
def folder(tmp_path):
    """A model with a calibration."""
    config = save_model(create_model('paegnn', hidden=16, layers=1), tmp_path, {})
    some_calibration().save(tmp_path, config['sha256'])
    return tmp_path


def test_what_was_written_is_read(folder):
    found, written = load_model(folder).calibration, some_calibration()
    assert found.laws == written.laws
    assert found.potentials == written.potentials
    assert found.fitted_on == written.fitted_on
    assert found.environments.elements == written.environments.elements
    assert found.environments.limit == written.environments.limit
    np.testing.assert_allclose(
        found.environments.whitening, written.environments.whitening, rtol=1e-6
    )


def test_a_potential_is_trusted_by_kind():
    calibration = some_calibration()
    guides = {
        kind: calibration.beside('chgnet', kind).guide
        for kind in ('bulk', 'bulk, cell fixed', 'layer', 'layer, cell fixed')
    }
    assert list(guides.values()) == [0.02, 0.02, 0.08, 0.08]
    assert calibration.beside('m3gnet', 'bulk') is None
    del calibration.potentials['chgnet']['bulk']
    assert calibration.beside('chgnet', 'bulk').guide == 0.08


def test_potentials_of_version_0_2_are_those_of_bulk_crystals(folder, monkeypatch):
    written = some_calibration()
    former = {'potentials': {'chgnet': {'guide': 0.02, 'step': 0.05}}}
    monkeypatch.setattr(Calibration, 'to_dict', lambda _: to_dict(written) | former)
    written.save(folder, load_model(folder).sha256)
    found = load_model(folder).calibration
    assert found.potentials == {'chgnet': {'bulk': PotentialErrors(guide=0.02, step=0.05)}}


def test_a_model_without_one_has_none(folder):
    (folder / CALIBRATION).unlink()
    assert load_model(folder).calibration is None


def test_it_is_saved_with_the_model_that_it_belongs_to(folder, tmp_path):
    model = load_model(folder)
    save_model(model, tmp_path / 'copy', model.card)
    assert load_model(tmp_path / 'copy').calibration.laws == model.calibration.laws
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    save_model(model, tmp_path / 'trained on', model.card)
    assert load_model(tmp_path / 'trained on').calibration is None


def test_that_of_the_former_model_goes_with_it(folder):
    """A folder that is trained into again can be loaded."""
    former = load_model(folder)
    former.calibration = None
    save_model(former, folder, {})
    assert load_model(folder).calibration is not None
    save_model(create_model('paegnn', hidden=16, layers=1), folder, {})
    assert load_model(folder).calibration is None


def test_that_of_other_weights_is_refused(folder):
    some_calibration().save(folder, 'of another model')
    with pytest.raises(ModelError, match='belongs to other weights'):
        load_model(folder)


@pytest.mark.parametrize('content', [b'', b'{}', b'\x80\x04nothing', b'\xff' * 64])
def test_what_is_none_is_refused(folder, content):
    (folder / CALIBRATION).write_bytes(content)
    with pytest.raises(ModelError, match='cannot be read'):
        load_model(folder)


@pytest.mark.parametrize('part', [0.1, 0.5, 0.95])
def test_a_truncated_file_is_refused(folder, part):
    whole = (folder / CALIBRATION).read_bytes()
    (folder / CALIBRATION).write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ModelError, match='cannot be read'):
        load_model(folder)


@pytest.mark.parametrize(
    ('damage', 'named'),
    [
        ({'limit': {'bulk': '2.5'}}, "bulk is '2.5'"),
        ({'limit': {'bulk': float('nan')}}, 'bulk is nan'),
        ({'laws': {'coordinates': {'power': None}}}, 'power is None'),
        ({'potentials': {'chgnet': {'guide': [], 'step': 0.05}}}, r'guide is \[\]'),
    ],
)
def test_values_that_are_no_numbers_are_refused(folder, monkeypatch, damage, named):
    written = some_calibration()
    monkeypatch.setattr(Calibration, 'to_dict', lambda _: to_dict(written) | damage)
    written.save(folder, load_model(folder).sha256)
    with pytest.raises(ModelError, match=f'cannot be read.*{named}'):
        load_model(folder)


def test_arrays_that_are_not_finite_are_refused(folder):
    written = some_calibration()
    written.environments.mean[3] = np.nan
    written.save(folder, load_model(folder).sha256)
    with pytest.raises(ModelError, match='its arrays hold values that are not finite'):
        load_model(folder)


def test_a_kind_that_was_not_calibrated_has_no_error():
    law = some_calibration().laws['volume']
    assert np.isnan(law.expected('layer', 0.1))
    assert law.within('bulk', 0.5) == pytest.approx(6 * 0.5**1.2)


def test_the_shipped_default_is_calibrated():
    calibration = load_model('default').calibration
    assert {'bulk', 'layer', 'bulk, cell fixed', 'layer, cell fixed'} <= set(
        calibration.kinds
    )
    assert {'chgnet', 'tensornet'} <= set(calibration.potentials)
    assert len(calibration.environments.elements) > 2500
