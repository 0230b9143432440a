"""A calculator with a name, ASE's units, and the elements that it was trained on."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from ase_deeprelax.calculators.attached import one_number
from ase_deeprelax.calculators.periodic import check_box, periodic_box, right_handed
from ase_deeprelax.errors import UnsupportedElementError


class Potential(Calculator):
    """A calculator with a name that refuses elements it was not trained on.

    Forces and stress are of double precision, the stress ASE's six numbers in eV/A^3.

    Parameters
    ----------
    potential : str
        What ``name`` says, in trajectories too.
    calculator : ase Calculator
        That of the potential's own package; stays reachable under this name.
    elements : collection of int, optional
        Atomic numbers that it was trained on; default: unknown, nothing is refused.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase.calculators.emt import EMT
    >>> atoms = bulk('Cu')
    >>> atoms.calc = Potential('emt', EMT(), elements=[29])
    >>> atoms.calc.name, atoms.get_stress().shape
    ('emt', (6,))
    """

    atoms: Any

    def __init__(
        self, potential: str, calculator: Any, elements: Collection[int] | None = None
    ):
        super().__init__()
        self.potential = potential
        self.calculator = calculator
        self.elements = None if elements is None else frozenset(elements)
        always = 'energy', 'free_energy', 'forces', 'stress'
        names = dict.fromkeys([*always, *calculator.implemented_properties])
        self.implemented_properties = list(names)

    def _get_name(self) -> str:
        return self.potential

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Any = ('energy',),
        system_changes: Any = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        self.check_elements(self.atoms)
        if system_changes:
            self.calculator.results = {}  # DFT makes only those that are asked for anew
        given, package = self.atoms, type(self.calculator).__module__.split('.')[0]
        if package == 'chgnet':
            check_box(given)
            given = right_handed(given)
        if package == 'matgl':
            given = periodic_box(given)
        self.calculator.calculate(given, properties, system_changes)
        results = dict(self.calculator.results)
        results['energy'] = one_number(results['energy'])
        results.setdefault('free_energy', results['energy'])
        for name in {'forces', 'stress'} & set(results):
            results[name] = np.array(results[name], dtype=float)
        if 'stress' in results and results['stress'].shape == (3, 3):
            results['stress'] = full_3x3_to_voigt_6_stress(results['stress'])
        if given is not self.atoms and 'stress' in results:
            results['stress'] *= given.cell.volume / self.atoms.cell.volume
        self.results = results

    def check_elements(self, atoms: Atoms) -> None:
        """Refuse atoms of elements that the potential was not trained on.

        Raises
        ------
        UnsupportedElementError
            Naming the first one.
        """
        if self.elements is None:
            return
        for index, (number, symbol) in enumerate(
            zip(atoms.numbers, atoms.symbols, strict=True)
        ):
            if number not in self.elements:
                raise UnsupportedElementError(
                    f'atom {index} ({symbol}): potential {self.potential!r} was not '
                    f'trained on {symbol}; use another potential'
                )
