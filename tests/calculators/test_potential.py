"""A `Potential` hands on the answers of any calculator."""

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT

from ase_deeprelax.calculators.potential import Potential
from ase_deeprelax.errors import UnsupportedElementError


def copper(calculator):
    atoms = bulk('Cu', cubic=True)
    atoms.rattle(0.1, seed=0)
    atoms.calc = calculator
    return atoms


class Package(Calculator):
    """As calculators of packages answer: single precision, a full matrix, an array."""

    implemented_properties = ('energy', 'forces', 'stress')
    free_energy = None

    def calculate(self, atoms=None, properties=('energy',), system_changes=all_changes):
        twin = atoms.copy()
        twin.calc = EMT()
        self.results = {
            'energy': np.array([twin.get_potential_energy()]),
            'forces': twin.get_forces().astype(np.float32),
            'stress': twin.get_stress(voigt=False).astype(np.float32),
        }
        if self.free_energy is not None:
            self.results['free_energy'] = self.free_energy


def test_answers_are_those_of_ase():
    atoms, alone = copper(Potential('mine', Package())), copper(EMT())
    assert atoms.calc.name == 'mine'
    energy = atoms.get_potential_energy()
    assert isinstance(energy, float)
    assert energy == pytest.approx(alone.get_potential_energy())
    assert atoms.get_potential_energy(force_consistent=True) == energy
    for of in (atoms.get_forces, atoms.get_stress):
        assert of().dtype == float
    np.testing.assert_allclose(atoms.get_forces(), alone.get_forces(), atol=1e-6)
    np.testing.assert_allclose(atoms.get_stress(), alone.get_stress(), atol=1e-6)


def test_a_free_energy_of_its_own_stays_the_one_that_the_forces_belong_to():
    class Smeared(Package):
        free_energy = -7.0

    atoms = copper(Potential('mine', Smeared()))
    assert atoms.get_potential_energy(force_consistent=True) == -7.0
    assert atoms.get_potential_energy() > -1.0


def test_results_are_not_those_that_the_package_goes_on_writing_into():
    package = EMT()
    atoms = copper(Potential('mine', package))
    forces = atoms.get_forces()
    before = forces.copy()
    package.results['forces'][:] = 0
    assert np.array_equal(atoms.get_forces(), before)


def test_all_else_that_a_calculator_knows_can_be_asked_for():
    atoms, alone = copper(Potential('mine', EMT())), copper(EMT())
    np.testing.assert_allclose(
        atoms.get_potential_energies(), alone.get_potential_energies()
    )


class Costly(EMT):
    """Makes its energy anew only where the structure has changed, as DFT does."""

    made = 0

    def calculate(self, atoms, properties, system_changes):
        if system_changes:
            self.made += 1
            super().calculate(atoms, properties, system_changes)
            self.kept = dict(self.results)
            self.results = {'energy': self.kept['energy']}
        self.results |= {name: self.kept[name] for name in properties}


def test_a_second_property_of_one_structure_costs_no_second_calculation():
    package = Costly()
    atoms = copper(Potential('mine', package))
    energy = atoms.get_potential_energy()
    atoms.get_forces()
    atoms.get_stress()
    assert atoms.get_potential_energy() == energy
    assert package.made == 1
    atoms.rattle(0.05, seed=1)
    assert atoms.get_potential_energy() != energy
    assert package.made == 2


@pytest.mark.parametrize(
    ('elements', 'known'), [(None, True), ([29], True), ([28, 30], False), ([], False)]
)
def test_only_the_elements_that_it_knows_are_answered(elements, known):
    atoms = copper(Potential('mine', EMT(), elements))
    if known:
        assert np.isfinite(atoms.get_potential_energy())
        return
    with pytest.raises(UnsupportedElementError, match=r"^atom 0 \(Cu\): potential 'mine'"):
        atoms.get_potential_energy()
