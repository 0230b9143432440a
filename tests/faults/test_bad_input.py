"""What bad input gets, item by item, at both public faces: `relax` and the optimizer."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule, mx2
from ase.calculators.emt import EMT
from ase.constraints import (
    FixAtoms,
    FixBondLength,
    FixCartesian,
    FixedLine,
    FixInternals,
    FixScaled,
    FixSymmetry,
    Hookean,
)
from ase.filters import FrechetCellFilter
from pymatgen.core import Lattice, Structure

from ase_deeprelax import keys
from ase_deeprelax.errors import (
    DeepRelaxWarning,
    StructureError,
    UnsupportedConstraintError,
    UnsupportedElementError,
)
from ase_deeprelax.models import create_model
from ase_deeprelax.optimize.optimizer import DeepRelaxOptimizer
from ase_deeprelax.predict import relax, structure_checks
from tests.faults.faces import (
    bits,
    both_faces,
    by_function,
    by_optimizer,
    crystal,
    gold,
    laden,
    model_that,
    same,
    sparse,
    step,
)

# --- refused ---------------------------------------------------------------------------


def build(change, start=crystal):
    """Atoms to which something was done."""
    atoms = start()
    result = change(atoms)
    return atoms if result is None else result


def put(name, index, value):
    return lambda atoms: getattr(atoms, name).__setitem__(index, value)


def cell_vector(row, vector):
    return lambda atoms: atoms.cell.array.__setitem__(row, vector)


def on_site_of(neighbour, shift):
    def change(atoms):
        atoms.positions[1] = atoms.positions[neighbour] + np.dot(shift, atoms.cell.array)

    return change


def constrained(*constraint):
    return lambda atoms: atoms.set_constraint(constraint)


def isolated(length):
    positions = np.concatenate([[[length / 2] * 3, [0, 0, 0]], 2.5 * np.eye(3)])
    return Atoms('HeAu4', positions, cell=[length] * 3, pbc=True)


def two_slabs():
    slab = fcc111('Au', (1, 1, 3), vacuum=8)
    return slab.repeat((1, 1, 2))


GROUND_FLOOR = {
    'no atoms': (lambda _: Atoms(cell=np.eye(3) * 4, pbc=True), '0 atoms'),
    'nothing': (lambda _: Atoms(), '0 atoms'),
    'nan': (put('positions', (1, 0), np.nan), r'atom 1 \(..\): position x is nan'),
    'inf': (put('positions', (2, 2), -np.inf), r'atom 2 \(..?\): position z is -inf'),
    'nan cell': (cell_vector(1, [0, 5, np.nan]), r'cell.*nan'),
    'inf cell': (cell_vector(0, [np.inf, 0, 0]), r'cell.*inf'),
    'no cell': (cell_vector(slice(None), 0.0), 'cell.* volume'),
    'no vector': (cell_vector(2, 0.0), 'cell.* volume'),
    'one site': (on_site_of(3, (0, 0, 0)), r'atom 1 \(..\) and atom 3 .* one site'),
    'image': (on_site_of(3, (0, 1, 0)), r'atom 1 \(..\) and atom 3 .* one site'),
}
PREDICTION = {
    'no vector, pbc False': (
        lambda _: Atoms('Au2', [[0, 0, 0], [0, 0, 2.5]], cell=[3, 3, 0], pbc=[1, 1, 0]),
        StructureError,
        'cell vector c is zero',
    ),
    'nearly flat': (cell_vector(2, [3.9, 3.9, 0.1]), StructureError, r'0\.312 A\^3'),
    'two slabs': (lambda _: two_slabs(), StructureError, '2 layers share this cell'),
    'wire': (lambda atoms: atoms.set_pbc([0, 0, 1]), StructureError, 'this is a wire'),
    'molecule': (
        lambda _: molecule('H2O'),
        StructureError,
        'pbc is False along all vectors: the models relax crystals and layers',
    ),
    'close': (
        on_site_of(3, (0.08, 0, 0)),
        StructureError,
        r'atom 1 \(Ti\) and atom 3 \(O\) are 0\.316 A apart',
    ),
    'dummy': (put('numbers', 2, 0), UnsupportedElementError, r'atom 2 .*\(X\)'),
    'no element': (put('numbers', 2, 200), UnsupportedElementError, 'atom 2 .*200'),
    'negative': (put('numbers', 2, -1), UnsupportedElementError, 'atom 2 .*-1'),
    'unseen': (
        put('numbers', 4, 110),
        UnsupportedElementError,
        r'never seen in training: Ds \(first: atom 4\)',
    ),
    'vacuum': (
        lambda _: Atoms('He', cell=[20, 20, 20], pbc=True),
        StructureError,
        'vacuum along several lattice vectors .* a molecule or cluster in a box',
    ),
    'cluster': (lambda _: isolated(20), StructureError, 'molecule or cluster in a box'),
    'one alone': (
        lambda _: isolated(10.5),
        StructureError,
        r'atom 0 \(He\) has no neighbour within 5 A \(1 of 5',
    ),
    'disorder': (
        lambda atoms: atoms.info.update(occupancy={'0': {'Sr': 0.5, 'Ba': 0.5}}),
        StructureError,
        r'site kind 0 .*Sr 0\.5, Ba 0\.5',
    ),
    'FixInternals': (
        constrained(FixInternals(bonds=[[2.0, [0, 1]]])),
        UnsupportedConstraintError,
        'FixInternals',
    ),
    'Hookean': (
        constrained(Hookean(0, 1, k=1, rt=2)),
        UnsupportedConstraintError,
        'Hookean',
    ),
    'bond': (
        constrained(FixAtoms([0]), FixBondLength(0, 1)),
        UnsupportedConstraintError,
        'FixBondLengths',
    ),
}
REFUSED = {
    **{
        name: (change, StructureError, words)
        for name, (change, words) in GROUND_FLOOR.items()
    },
    **PREDICTION,
}


@pytest.mark.parametrize('item', REFUSED)
@both_faces
def test_refused(face, item, tiny_model):
    change, error, words = REFUSED[item]
    atoms = laden(build(change))
    before = bits(atoms)
    with pytest.raises(error, match=words):
        face(atoms, tiny_model)
    assert bits(atoms) == before


@pytest.mark.parametrize('item', GROUND_FLOOR)
def test_refused_with_calculator(item, tiny_model):
    """What no calculator can answer either: its forces would be wrong, or nan."""
    change, words = GROUND_FLOOR[item]
    atoms = laden(build(change, gold))
    atoms.calc = EMT()
    before = bits(atoms)
    with pytest.raises(StructureError, match=words):
        by_optimizer(atoms, tiny_model)
    assert bits(atoms) == before


@both_faces
def test_more_than_fits_into_memory(face, tiny_model, monkeypatch):
    machine = {'SC_PHYS_PAGES': 500_000, 'SC_PAGE_SIZE': 4096}  # of 2 GB
    monkeypatch.setattr(structure_checks.os, 'sysconf', machine.__getitem__)
    atoms = bulk('Cu', cubic=True) * (12, 12, 12)
    before = bits(atoms)
    with pytest.raises(StructureError, match=r'6912 atoms need about \d GB, .* has 2 GB'):
        face(atoms, tiny_model)
    assert bits(atoms) == before


def test_disordered_structure_of_pymatgen(tiny_model):
    species = [{'Ti': 0.5, 'Zr': 0.5}, 'O']
    structure = Structure(Lattice.cubic(4), species, [[0, 0, 0], [0.5, 0.5, 0.5]])
    before = structure.copy()
    with pytest.raises(StructureError, match=r'site 0 .* is disordered'):
        relax(structure, model=tiny_model)
    assert structure == before


def test_pressure(tiny_model):
    atoms = laden(crystal())
    before = bits(atoms)
    with pytest.raises(UnsupportedConstraintError, match='trained at 0 GPa'):
        by_optimizer(atoms, tiny_model, FrechetCellFilter(atoms, scalar_pressure=0.1))
    assert bits(atoms) == before


# --- taken -----------------------------------------------------------------------------


@both_faces
def test_one_atom(face, tiny_model):
    atoms = bulk('Cu', a=3.8)
    atoms.positions += [0.3, -7.0, 1.1]
    place = atoms.get_scaled_positions(wrap=False)
    volume = atoms.cell.volume
    relaxed = face(atoms, tiny_model)
    np.testing.assert_allclose(relaxed.get_scaled_positions(wrap=False), place, atol=1e-12)
    assert abs(relaxed.cell.volume / volume - 1) > 1e-3


@pytest.mark.parametrize(
    'basis',
    [
        pytest.param([[0, 1, 0], [1, 0, 0], [0, 0, 1]], id='left-handed'),
        pytest.param(-np.eye(3), id='inverted'),
        pytest.param([[1, 0, 0], [0, 1, 0], [7, 0, 1]], id='skewed'),
        pytest.param([[1, 0, 0], [-40, 1, 0], [300, 55, 1]], id='very skewed'),
    ],
)
@both_faces
def test_other_lattice_vectors(face, basis, tiny_model):
    atoms = crystal()
    expected = step(atoms, face(atoms.copy(), tiny_model))
    atoms.set_cell(np.dot(basis, atoms.cell.array))
    relaxed = face(atoms.copy(), tiny_model)
    assert relaxed.cell.handedness == atoms.cell.handedness
    same(step(atoms, relaxed), expected)


@pytest.mark.parametrize('pbc', [True, False])
@pytest.mark.parametrize(
    'start', [lambda: fcc111('Au', (1, 1, 3), vacuum=5), lambda: mx2(vacuum=5)]
)
@both_faces
def test_slabs_and_layers(face, start, pbc, tiny_model):
    """They relax in their plane, whether pbc tells them or the vacuum."""
    atoms = start()
    atoms.pbc[2] = pbc
    relaxed = face(atoms.copy(), tiny_model)
    assert np.array_equal(relaxed.cell.array[2], atoms.cell.array[2])
    assert np.abs(relaxed.cell.array[:2] - atoms.cell.array[:2]).max() > 1e-4
    assert relaxed.info[keys.KIND] == 'layer'


@pytest.mark.parametrize('far', [1e3, 1e6])
@both_faces
def test_far_images(face, far, tiny_model):
    atoms = crystal()
    expected = step(atoms, face(atoms.copy(), tiny_model))
    cells = np.rint(far / 3.95) * np.array([[0, 1, 0], [-1, 0, 0], [1, 1, -1]] * 2)[:5]
    atoms.positions += cells @ atoms.cell.array
    same(step(atoms, face(atoms.copy(), tiny_model)), expected)


@pytest.mark.parametrize(
    ('start', 'words'),
    [
        pytest.param(sparse, 'volume 6.51 times', id='sparse'),
        pytest.param(lambda: bulk('Cu', a=2.4), 'volume 0.30 times', id='dense'),
    ],
)
@both_faces
def test_density_outside_the_training_range(face, start, words, tiny_model):
    with pytest.warns(DeepRelaxWarning, match=words):
        relaxed = face(start(), tiny_model)
    assert words in relaxed.info[keys.OOD]


CONSTRAINTS = {
    'all': FixAtoms(range(5)),
    'FixAtoms': FixAtoms([0, 3]),
    'FixCartesian': FixCartesian([0, 3], (True, False, True)),
    'FixScaled': FixScaled([0, 3], (True, False, True)),
    'FixedLine': FixedLine([0, 3], (0, 1, 0)),
}


@pytest.mark.parametrize('item', CONSTRAINTS)
@both_faces
def test_constraints(face, item, tiny_model):
    """In fractional coordinates, as with ASE's cell filters; the cell is free."""
    atoms = crystal()
    atoms.set_cell([3.9, 4.0, 3.95], scale_atoms=True)
    atoms.set_constraint(CONSTRAINTS[item])
    relaxed = face(atoms.copy(), tiny_model)
    deformation, displacement = step(atoms, relaxed)
    assert np.abs(deformation - np.eye(3)).max() > 1e-4
    held = displacement @ deformation
    if 'FixAtoms' in item:
        held = held[[0, 3]]
    elif item != 'all':
        held = held[[0, 3]][:, [0, 2]]
    if item == 'FixScaled':
        held = (displacement @ np.linalg.inv(atoms.cell.array))[[0, 3]][:, [0, 2]]
    np.testing.assert_allclose(held, 0, atol=1e-12)
    assert (item == 'all') == (np.abs(displacement).max() < 1e-9)


def test_all_constrained_in_a_fixed_cell(tiny_model):
    atoms = crystal()
    atoms.set_constraint(FixAtoms(range(5)))
    before = atoms.copy()
    optimizer = DeepRelaxOptimizer(atoms, model=tiny_model, relax_cell=False, logfile=None)
    assert optimizer.run() is True
    assert atoms.positions.tobytes() == before.positions.tobytes()
    assert atoms.cell.array.tobytes() == before.cell.array.tobytes()
    assert atoms.info[keys.DMAX] < 1e-12


def test_fix_symmetry():
    """Also where the prediction itself may break it."""

    def stretch(said):
        said.deformation[:] = torch.diag(torch.tensor([1.05, 1.0, 1.0]))

    atoms = bulk('NaCl', 'rocksalt', a=5.5, cubic=True)
    atoms.set_constraint(FixSymmetry(atoms))
    options = {'model': model_that(stretch), 'symmetry': 'free'}
    by_hand = atoms.copy()
    assert DeepRelaxOptimizer(by_hand, logfile=None, **options).run() is True
    for relaxed in (by_hand, relax(atoms, **options).atoms):
        np.testing.assert_allclose(relaxed.cell.lengths(), 5.5 * 1.05 ** (1 / 3), rtol=1e-6)
        np.testing.assert_allclose(step(atoms, relaxed)[1], 0, atol=1e-9)


def read_only(atoms):
    for array in atoms.arrays.values():
        array.flags.writeable = False


def as_type(dtype):
    def change(atoms):
        atoms.arrays['positions'] = np.rint(atoms.positions).astype(dtype)

    return change


class Mine(Atoms):
    pass


TYPES = {
    'read-only': read_only,
    'float32': as_type(np.float32),
    'int': as_type(int),
    'subclass': Mine,
}


@pytest.mark.parametrize('kind', TYPES)
@both_faces
def test_unusual_arrays_and_classes(face, kind, tiny_model):
    atoms = build(TYPES[kind])
    plain = Atoms(atoms.numbers, atoms.positions.astype(float), cell=atoms.cell, pbc=True)
    relaxed = face(atoms.copy() if face is by_function else atoms, tiny_model)
    assert type(relaxed) is type(atoms)
    same(step(plain, relaxed), step(plain, face(plain.copy(), tiny_model)))


@pytest.mark.parametrize('dtype', [np.float32, float])
def test_unusual_arrays_with_calculator(dtype, tiny_model):
    atoms = gold()
    atoms.arrays['positions'] = atoms.positions.astype(dtype)
    atoms.calc = EMT()
    optimizer = DeepRelaxOptimizer(atoms, model=tiny_model, logfile=None)
    assert optimizer.run(fmax=0.05) is True
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.05


@both_faces
def test_celldisp(face, tiny_model):
    atoms = crystal()
    expected = step(atoms, face(atoms.copy(), tiny_model))
    atoms.set_celldisp([1e5, -3, 7])
    relaxed = face(atoms.copy(), tiny_model)
    assert np.array_equal(relaxed.get_celldisp(), atoms.get_celldisp())
    same(step(atoms, relaxed), expected)


@both_faces
def test_relaxed_already(face):
    """Before training a network says of everything that it is."""
    atoms = crystal()
    relaxed = face(atoms.copy(), create_model('paegnn', hidden=16, layers=1))
    same(step(atoms, relaxed), (np.eye(3), 0))
    assert relaxed.info[keys.DMAX] < 1e-5
    assert relaxed.info[keys.VOLUME_RATIO] == pytest.approx(1, abs=1e-6)
