"""Weights that their package loads, but computes otherwise than it once did, are told."""

from pathlib import Path

import pytest

from ase_deeprelax.calculators.registry import get_calculator
from ase_deeprelax.errors import DeepRelaxWarning

SHARED = Path(__file__).parents[2] / '../shared/potentials'
FOLDERS = {
    'm3gnet': 'M3GNet-MP-2021.2.8-PES',  # of an earlier matgl
    'tensornet': 'TensorNet-MatPES-PBE-v2025.1-PES',
}


@pytest.mark.parametrize('name', FOLDERS)
def test_weights_are_judged_by_what_they_say_of_salt(name, recwarn):
    pytest.importorskip('matgl')
    folder = SHARED / FOLDERS[name]
    if not folder.exists():
        pytest.skip(f'needs ../shared/potentials/{folder.name}')
    get_calculator(f'{name}:{folder.resolve()}')
    said = [str(one.message) for one in recwarn if one.category is DeepRelaxWarning]
    assert len(said) == (name == 'm3gnet')
    assert all('NaCl is under a pressure of 14' in text for text in said)
