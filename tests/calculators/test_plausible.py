"""Weights that their package loads, but computes otherwise than it once did, are told."""

from pathlib import Path

import numpy as np
import pytest
from ase.calculators.calculator import Calculator
from ase.units import GPa

from ase_deeprelax.calculators.plausible import problem_with
from ase_deeprelax.calculators.registry import get_calculator
from ase_deeprelax.errors import DeepRelaxWarning

SHARED = Path(__file__).parents[2] / '../shared/potentials'
FOLDERS = {
    'm3gnet': 'M3GNet-MP-2021.2.8-PES',  # of an earlier matgl
    'tensornet': 'TensorNet-MatPES-PBE-v2025.1-PES',
}


class Pressed(Calculator):
    """Any structure is under a pressure, GPa, and sheared."""

    implemented_properties = ('stress',)

    def __init__(self, pressure):
        super().__init__()
        self.pressure = pressure

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        spread = np.array([2.0, -2.0, 0.0, 50.0, 50.0, 50.0])
        self.results['stress'] = (spread - self.pressure * np.repeat([1, 0], 3)) * GPa


@pytest.mark.parametrize('pressure', [-14.0, -7.0, -5.0, 0.0, 5.0, 7.0, 14.0])
def test_salt_under_a_pressure_beyond_that_of_other_functionals_is_told(pressure):
    problem = problem_with(Pressed(pressure))
    assert bool(problem) is (abs(pressure) > 6)
    assert not problem or f'a pressure of {pressure} GPa' in problem


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
