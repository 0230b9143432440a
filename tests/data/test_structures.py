"""What a structure of pymatgen holds is kept on its way through a relaxation."""

import copy

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms, FixScaled
from ase.filters import FrechetCellFilter
from ase.io import read
from pymatgen.core import (
    DummySpecies,
    IStructure,
    Lattice,
    Molecule,
    Species,
    Structure,
)
from pymatgen.electronic_structure.core import Magmom
from pymatgen.io.ase import AseAtomsAdaptor

from ase_deeprelax.data.structures import as_atoms, as_structure
from ase_deeprelax.errors import StructureError, UnsupportedElementError
from ase_deeprelax.optimize.optimizer import DeepRelaxOptimizer
from ase_deeprelax.predict import Predictor, relax


def laden(cls=Structure):
    """A structure with everything on it."""
    structure = Structure(
        Lattice.cubic(5.7),
        [Species('Fe', 2, spin=5), Species('Fe', 3), 'O2-', 'O2-'],
        [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
        charge=-1,
        labels=['Fe_a', 'Fe_b', 'O1', 'O2'],
        site_properties={
            'magmom': [5.0, None, 0.1, 0.0],
            'selective_dynamics': [[False] * 3, [True, False, True], None, [True] * 3],
            'coordination': [6, 6, 4, 4],
            'wyckoff': ['a', 'b', 'c', 'c'],
            'tensor': [np.eye(3)] * 4,
            'note': [{'by': 'hand'}, None, 'text', 3],
        },
        properties={'energies': np.arange(3.0), 'source': {'id': 'mp-1'}},
    )
    return structure if cls is Structure else cls.from_sites(structure.sites)


def test_atoms_are_passed_through():
    class MyAtoms(Atoms):
        pass

    for atoms in (bulk('Cu'), MyAtoms('Cu', cell=np.eye(3) * 3, pbc=True)):
        assert as_atoms(atoms) is atoms


def test_a_structure_becomes_periodic_atoms():
    structure = Structure(Lattice.cubic(4.12), ['Cs', 'Cl'], [[0, 0, 0], [0.5, 0.5, 1.5]])
    atoms = as_atoms(structure)
    assert atoms.get_chemical_formula() == 'ClCs'
    assert atoms.pbc.all()
    np.testing.assert_allclose(atoms.cell.array, 4.12 * np.eye(3))
    np.testing.assert_allclose(atoms.positions[1], [2.06, 2.06, 6.18])


def test_a_structure_comes_back_as_it_was_but_relaxed(tiny_model):
    before = laden()
    given = copy.deepcopy(before)
    result = relax(given, model=tiny_model)
    after = result.structure
    assert type(after) is Structure
    assert after.charge == given.charge == -1
    assert after.labels == given.labels
    assert [site.species for site in after] == [site.species for site in given]
    for name, values in given.site_properties.items():
        if name != 'tensor':
            assert after.site_properties[name] == values, name
    np.testing.assert_array_equal(after.site_properties['tensor'], [np.eye(3)] * 4)
    assert after.properties['source'] == {'id': 'mp-1'}
    assert after.properties['energies'] == [0.0, 1.0, 2.0]
    np.testing.assert_allclose(after.lattice.matrix, result.atoms.cell.array, atol=1e-12)
    np.testing.assert_allclose(after.cart_coords, result.atoms.positions, atol=1e-9)
    assert not np.allclose(after.lattice.matrix, given.lattice.matrix, atol=1e-4)
    assert repr(given) == repr(before)  # not changed


def test_relaxed_structures_can_be_compared(tiny_model):
    atoms = bulk('NaCl', 'rocksalt', a=5.7)
    atoms.info['array'] = np.eye(2)
    optimized = bulk('NaCl', 'rocksalt', a=5.7)
    DeepRelaxOptimizer(optimized, model=tiny_model, logfile=None).run()
    for structure in (
        relax(atoms, model=tiny_model).structure,
        relax(laden(), model=tiny_model).structure,
        AseAtomsAdaptor.get_structure(optimized),
    ):
        twin = copy.deepcopy(structure)
        assert structure == twin
        assert [structure].index(twin) == 0


def test_the_class_is_kept(tiny_model):
    result = relax(laden(IStructure), model=tiny_model)
    assert type(result.structure) is IStructure
    assert type(relax(bulk('Cu'), model=tiny_model).structure) is Structure


def test_a_failure_keeps_its_structure_too(tiny_model):
    given = laden()
    given.scale_lattice(4e6)
    result = relax(given, model=tiny_model, on_bad='keep')
    assert not result.ok
    assert len(result.initial) == 4


def test_selective_dynamics_are_constraints():
    atoms = as_atoms(laden())
    first, second = atoms.constraints
    assert isinstance(first, FixAtoms)
    assert first.get_indices().tolist() == [0]
    assert isinstance(second, FixScaled)
    assert second.get_indices().tolist() == [1]
    assert second.mask.tolist() == [False, True, False]


def test_selective_dynamics_mean_what_they_mean_in_a_file(tmp_path, tiny_model):
    """Along lattice vectors, as VASP does it, by whichever way they come in."""
    lattice = Lattice.from_parameters(4.2, 4.0, 4.4, 75, 80, 70)
    structure = Structure(lattice, ['Na', 'Cl'], [[0, 0, 0], [0.45, 0.5, 0.52]])
    flags = [[True, True, False], [True, True, True]]
    structure.add_site_property('selective_dynamics', flags)
    structure.to(str(tmp_path / 'POSCAR'), fmt='poscar')
    answers = [
        relax(given, model=tiny_model, relax_cell=False)
        for given in (structure, read(tmp_path / 'POSCAR'))
    ]
    for answer in answers:
        moves = answer.atoms.cell.scaled_positions(answer.displacement)
        assert abs(moves[0, 2]) < 1e-12 < abs(moves[0, 0])
    np.testing.assert_allclose(*(answer.displacement for answer in answers), atol=1e-6)


def test_numbers_and_text_become_arrays():
    atoms = as_atoms(laden())
    assert atoms.get_initial_magnetic_moments().tolist() == [5.0, 0.0, 0.1, 0.0]
    assert atoms.arrays['coordination'].tolist() == [6, 6, 4, 4]
    assert atoms.arrays['wyckoff'].tolist() == ['a', 'b', 'c', 'c']
    assert atoms.arrays['oxi_states'].tolist() == [2, 3, -2, -2]
    assert all(array.dtype != object for array in atoms.arrays.values())


def test_moments_of_pymatgens_own_class():
    structure = laden()
    structure.add_site_property('magmom', [Magmom(5), Magmom(-5), Magmom(0), Magmom(0)])
    assert as_atoms(structure).get_initial_magnetic_moments().tolist() == [5, -5, 0, 0]
    structure.add_site_property('magmom', [[0, 0, 5.0]] * 4)
    assert as_atoms(structure).get_initial_magnetic_moments().shape == (4, 3)


def test_constraints_of_atoms_become_selective_dynamics():
    atoms = bulk('NaCl', 'rocksalt', a=5.6, cubic=True)
    atoms.set_constraint([FixAtoms([0]), FixScaled([1], [True, True, False])])
    flags = as_structure(atoms).site_properties['selective_dynamics']
    assert [list(map(bool, flag)) for flag in flags[:3]] == [
        [False] * 3,
        [False, False, True],
        [True] * 3,
    ]


def test_elements_by_number_and_dummies_by_name():
    heavy = Structure(Lattice.cubic(4), ['D', 'Li'], [[0, 0, 0], [0.5] * 3])
    assert as_atoms(heavy).numbers.tolist() == [1, 3]
    heavy.append(DummySpecies('X'), [0.25] * 3)
    with pytest.raises(UnsupportedElementError, match=r'site 2 .* is a dummy species'):
        as_atoms(heavy)


@pytest.mark.parametrize(
    ('species', 'words'),
    [
        (['O', {'Ti': 0.9}], r'site 1 .* partially occupied'),
        (['Cs', {'Cl': 0.5, 'Br': 0.5}], r'site 1 .*Br.*disordered'),
    ],
)
def test_vacancies_and_shared_sites_are_refused(species, words):
    with pytest.raises(StructureError, match=words):
        as_atoms(Structure(Lattice.cubic(4), species, [[0, 0, 0], [0.5] * 3]))


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        (laden().as_dict(), r'Structure\.from_dict'),
        ({'a': bulk('Cu')}, r'list\(d\.values\(\)\)'),
        ('POSCAR', r'ase\.io\.read'),
        (b'POSCAR', ''),
        (3.0, ''),
        (None, ''),
        ([bulk('Cu')], 'one by one'),
        (FrechetCellFilter(bulk('Cu')), r'its \.atoms'),
        (Molecule(['O', 'H'], [[0, 0, 0], [0, 0, 1]]), ''),
    ],
    ids=lambda given: type(given).__name__,
)
def test_what_is_no_structure_is_refused_by_name(given, words):
    """And it is said what is one."""
    name = type(given).__name__
    said = rf'{name} is not a structure.*ase\.Atoms.*pymatgen.*{words}'
    with pytest.raises(StructureError, match=said):
        as_atoms(given)


@pytest.mark.parametrize('given', [laden().as_dict(), 'POSCAR', 3.0], ids=type)
def test_what_is_no_structure_is_not_relaxed(given, tiny_model):
    with pytest.raises(StructureError, match='is not a structure'):
        relax(given, model=tiny_model)
    with pytest.raises(StructureError, match='takes a list of structures'):
        Predictor(tiny_model).relax(given)
