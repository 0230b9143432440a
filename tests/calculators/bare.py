"""A calculator that says nothing of what it can do."""

from ase.calculators.abc import GetPropertiesMixin
from ase.calculators.emt import EMT


class Bare(GetPropertiesMixin):
    """EMT inside an object that lists no properties and cannot be reset."""

    def get_property(self, name, atoms=None, allow_calculation=True):
        atoms = atoms.copy()
        atoms.calc = EMT()
        return atoms.calc.get_property(name, atoms)
