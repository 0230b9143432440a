import math
from functools import partial

import numpy as np
import pytest
import torch
from ase.build import bulk

from ase_deeprelax import relax
from ase_deeprelax.errors import ModelError
from ase_deeprelax.models import base, create_model
from ase_deeprelax.models.ensemble import Ensemble, combine
from ase_deeprelax.models.paegnn import PUBLISHED, PaEGNN
from ase_deeprelax.models.painn import PaiNN
from ase_deeprelax.predict.uncertainty import aggregate
from ase_deeprelax.testing import awaken

GRAPHS = torch.tensor([0, 0, 0, 1, 1])
BONDS = torch.tensor([[0, 0, 1, 3], [1, 2, 2, 4]])


def random_bonds(n_models=5, n_bonds=40):
    generator = torch.Generator().manual_seed(0)
    distances = 2 + torch.rand(n_models, n_bonds, generator=generator, dtype=torch.float64)
    log_b = torch.randn(n_models, n_bonds, generator=generator, dtype=torch.float64)
    return distances, log_b


def test_equal_bonds_give_their_value_everywhere():
    atoms, structures = aggregate(torch.full((4,), 0.07), BONDS, GRAPHS, 2)
    assert torch.allclose(atoms, torch.full((5,), 0.07))
    assert torch.allclose(structures, torch.full((2,), 0.07))


def test_atoms_see_their_own_bonds_and_structures_theirs():
    sigma = torch.tensor([0.1, 0.2, 0.4, 0.9])
    atoms, structures = aggregate(sigma, BONDS, GRAPHS, 2)
    assert torch.allclose(atoms, torch.tensor([0.15, 0.25, 0.3, 0.9, 0.9]))
    assert torch.allclose(structures, torch.tensor([0.7 / 3, 0.9]))


def test_direction_and_order_of_bonds_do_not_matter():
    sigma = torch.tensor([0.1, 0.2, 0.4, 0.9])
    order = torch.tensor([2, 0, 3, 1])
    expected = aggregate(sigma, BONDS, GRAPHS, 2)
    found = aggregate(sigma[order], BONDS.flip(0)[:, order], GRAPHS, 2)
    for a, b in zip(expected, found, strict=True):
        assert torch.allclose(a, b)


def test_bond_of_an_atom_with_its_own_image():
    zero = torch.zeros(1, dtype=torch.long)
    atoms, structures = aggregate(torch.tensor([0.2]), torch.zeros(2, 1).long(), zero, 1)
    assert atoms.tolist() == structures.tolist() == [pytest.approx(0.2)]


def test_atom_without_bonds_is_nan():
    atoms, structures = aggregate(torch.tensor([0.2]), BONDS[:, :1], GRAPHS, 2)
    assert atoms[:2].isfinite().all()
    assert atoms[2:].isnan().all()
    assert structures[0] == pytest.approx(0.2)
    assert math.isnan(structures[1])


def test_ensemble_of_one_is_the_model():
    distances, log_b = random_bonds(1)
    mean, total = combine(distances, log_b)
    assert torch.equal(mean, distances[0])
    assert torch.allclose(total, log_b[0].exp())


def test_members_that_agree_add_only_their_scales():
    distances, log_b = random_bonds()
    mean, total = combine(distances[:1].expand(5, -1), log_b)
    assert torch.allclose(mean, distances[0])
    assert torch.allclose(total, log_b.exp().sum(0))


def test_order_of_members_does_not_matter():
    distances, log_b = random_bonds()
    order = torch.tensor([3, 1, 4, 0, 2])
    mean, total = combine(distances, log_b)
    again = combine(distances[order], log_b[order])
    assert torch.allclose(again[0], mean)
    assert torch.allclose(again[1], total)


def test_total_grows_linearly_with_disagreement_and_is_blind_to_a_common_shift():
    distances, log_b = random_bonds()
    scales = log_b.exp().sum(0)
    mean, total = combine(distances, log_b)
    spread = mean + 3 * (distances - mean)
    assert torch.allclose(combine(spread, log_b)[1] - scales, 3 * (total - scales))
    assert torch.allclose(combine(distances + 0.4, log_b)[1], total)
    assert (total >= scales).all()


def members(n, **settings):
    settings = {'hidden': 16, 'layers': 2, **settings}
    models = []
    for seed in range(n):
        torch.manual_seed(seed)
        models.append(awaken(create_model('paegnn', **settings), seed=seed))
    return models


def rattled():
    atoms = bulk('NaCl', 'rocksalt', a=5.7, cubic=True)
    atoms.rattle(0.1, seed=0)
    return atoms


@pytest.mark.parametrize('settings', [{}, PUBLISHED | {'hidden': 16, 'layers': 2}])
def test_equal_members_are_the_member(settings):
    (model,) = members(1, **settings)
    alone = relax(rattled(), model=model, dtype='float64')
    together = relax(rattled(), model=Ensemble([model] * 3), dtype='float64')
    np.testing.assert_allclose(together.atoms.positions, alone.atoms.positions, atol=1e-9)
    np.testing.assert_allclose(together.sigma_bonds, alone.sigma_bonds, rtol=1e-9)


def test_members_that_differ_are_averaged_and_less_sure():
    models = members(3)
    alone = [relax(rattled(), model=model, dtype='float64') for model in models]
    together = relax(rattled(), model=Ensemble(models), dtype='float64')
    mean = np.mean([result.deformation for result in alone], axis=0)
    assert np.ptp([result.volume_ratio for result in alone]) > 1e-4
    np.testing.assert_allclose(together.deformation, mean, atol=1e-9)
    assert together.sigma > np.mean([result.sigma for result in alone])
    assert together.model == 'ensemble of 3'


@pytest.mark.parametrize(
    'forms',
    [
        (PaiNN, PaEGNN),  # the same settings, another degree
        (PaEGNN, partial(PaEGNN, rbf_cutoff=30.0)),
        (PaEGNN, partial(PaEGNN, num_rbf=4)),
        (partial(PaEGNN, degree=1), PaEGNN),
        (
            partial(PaEGNN, readout='distances'),
            partial(PaEGNN, readout='distances', offset_encoding=8),
        ),
    ],
)
def test_members_of_other_forms_keep_edge_features_of_their_own(forms):
    models = [awaken(form(hidden=16, layers=2)) for form in forms]
    alone = [relax(rattled(), model=model, dtype='float64') for model in models]
    together = relax(rattled(), model=Ensemble(models), dtype='float64')
    mean = np.mean([result.deformation for result in alone], axis=0)
    np.testing.assert_allclose(together.deformation, mean, atol=1e-9)


def test_members_share_the_topology(monkeypatch):
    found, find = [], base.topology
    monkeypatch.setattr(base, 'topology', lambda graph: found.append(1) or find(graph))
    relax(rattled(), model=Ensemble([PaEGNN(hidden=16, layers=1) for _ in range(3)]))
    assert len(found) == 1


def test_members_must_want_one_graph():
    with pytest.raises(ModelError, match='member 1'):
        Ensemble([*members(1), *members(1, cutoff=4.0)])
    with pytest.raises(ModelError, match='needs members'):
        Ensemble([])
