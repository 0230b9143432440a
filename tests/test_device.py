"""Whatever takes a device says in the same words that there is none of that name."""

import pytest
import torch

from ase_deeprelax import Predictor, load_model
from ase_deeprelax.calculators.registry import get_calculator
from ase_deeprelax.device import resolve_device
from ase_deeprelax.errors import DeviceError


@pytest.mark.parametrize('open_', [Predictor, load_model, get_calculator])
def test_a_device_that_is_not_there(open_, tiny_model):
    given = tiny_model
    if open_ is get_calculator:
        pytest.importorskip('chgnet')
        given = 'chgnet'
    with pytest.raises(DeviceError, match=r"'cuda:99' is not there: .* use device='cpu'"):
        open_(given, device='cuda:99')


def test_a_torch_device_is_as_good_as_its_name(tiny_model):
    device = torch.device('cpu')
    assert resolve_device(device) == resolve_device('cpu') == device
    weights = next(load_model(tiny_model, device).parameters())
    assert weights.device == device
