"""The name of a calculator, and the results that it can give."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

# The end of a message that begins with the name of a calculator: `has_stress` is False
# for it, and a cell shall relax.
NO_STRESS = (
    'gives no stress, which a relaxation of the cell needs; relax_cell=False (--cell '
    'fixed) relaxes the positions alone'
)


def has_calculator(atoms: Atoms) -> bool:
    """Whether forces of a moved structure can be had; stored results give none."""
    return atoms.calc is not None and not isinstance(atoms.calc, SinglePointCalculator)


def has_stress(calculator: Any) -> bool:
    """Whether a calculator gives the stress, which a relaxation of the cell needs."""
    known = getattr(calculator, 'implemented_properties', None)
    return known is None or 'stress' in known


def one_number(energy: Any) -> float:
    """An energy as a number; some calculators give an array of one.

    >>> one_number([-3.5])
    -3.5
    """
    return float(np.asarray(energy).item())


def calculator_name(calculator: Any) -> str:
    """The name that a calculator gives itself, or else that of its class.

    >>> from ase.calculators.emt import EMT
    >>> calculator_name(EMT()), calculator_name(None)
    ('emt', 'NoneType')
    """
    name = getattr(calculator, 'name', None)
    return name if isinstance(name, str) else type(calculator).__name__
