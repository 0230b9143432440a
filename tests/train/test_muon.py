"""Two optimizers that step as one."""

import pytest
import torch
from torch import nn

pytest.importorskip('lightning')

from ase_deeprelax.models import create_model
from ase_deeprelax.train.muon import Muon, muon_and_adamw


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 1))


def optimizer_of(model):
    return muon_and_adamw(model, muon_rate=5e-3, adamw_rate=5e-3, weight_decay=0.0)


def steps(model, optimizer, n):
    torch.manual_seed(1)
    x = torch.randn(64, 4)
    y = x[:, :1].abs()
    for _ in range(n):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


def test_every_parameter_belongs_to_one_group():
    model = create_model('paegnn', hidden=16, layers=2)
    groups = optimizer_of(model).param_groups
    taken = [id(p) for group in groups for p in group['params']]
    assert sorted(taken) == sorted(id(p) for p in model.parameters())
    muon = {id(p) for p in groups[0]['params']}
    assert id(model.embedding.weight) not in muon
    assert id(model.updates[0].vectors.weight) in muon


def test_its_steps_are_those_of_torch():
    torch.manual_seed(0)
    shapes = [(8, 4), (4, 8), (8, 4), (6, 6)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    settings = {'lr': 1e-2, 'momentum': 0.95, 'weight_decay': 0.1}
    one = Muon(ours, **settings)
    other = torch.optim.Muon(theirs, **settings, adjust_lr_fn='match_rms_adamw')
    before = [p.detach().clone() for p in ours]
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        one.step()
        other.step()
    for p, q, start in zip(ours, theirs, before, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
        assert (p - start).abs().max() > 0.01


def test_it_learns():
    model = network()
    first = steps(model, optimizer_of(model), 1)
    assert steps(model, optimizer_of(model), 200) < first / 2


def test_saved_and_loaded_it_goes_on_as_if_nothing_had_happened():
    whole = network()
    steps(whole, one := optimizer_of(whole), 10)
    model = network()
    steps(model, optimizer := optimizer_of(model), 5)
    again = network()
    again.load_state_dict(model.state_dict())
    restored = optimizer_of(again)
    restored.load_state_dict(optimizer.state_dict())
    steps(again, restored, 5)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert one.param_groups[0]['lr'] == restored.param_groups[0]['lr']


def test_rates_of_the_groups_can_be_set_after_loading():
    model = network()
    optimizer = optimizer_of(model)
    steps(model, optimizer, 2)
    optimizer.load_state_dict(optimizer.state_dict())
    before = [p.detach().clone() for p in model.parameters()]
    for group in optimizer.param_groups:
        group['lr'] = 0.0
    steps(model, optimizer, 2)
    for a, b in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
