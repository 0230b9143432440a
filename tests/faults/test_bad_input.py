"""What bad input and broken models get, item by item, at the two public faces.

Numbers are those of the list of bad inputs. Items that stand elsewhere: 26 to 28 (what the
atoms carry, filters, NEB), 33 and 51 in ``test_optimizer``; 35 to 37 in ``test_predict``;
40 to 43 in ``weights/test_store``.
"""

import os
import shutil
import socket
import warnings

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

from ase_deeprelax import checks, keys
from ase_deeprelax.errors import (
    DeepRelaxWarning,
    DeviceError,
    PredictionError,
    StructureError,
    UnsupportedConstraintError,
    UnsupportedElementError,
)
from ase_deeprelax.models import create_model
from ase_deeprelax.models.paegnn import PaEGNN
from ase_deeprelax.optimizer import DeepRelaxOptimizer
from ase_deeprelax.predict import Predictor, relax
from ase_deeprelax.testing import awaken


def by_function(atoms, model):
    """The relaxed atoms."""
    return relax(atoms, model=model).atoms


def by_optimizer(atoms, model, target=None):
    """The atoms themselves, relaxed."""
    optimizer = DeepRelaxOptimizer(target or atoms, model=model, logfile=None)
    assert optimizer.run(steps=1) is True
    return atoms


both_faces = pytest.mark.parametrize('face', [by_function, by_optimizer])


def crystal():
    """A rattled perovskite of five atoms."""
    atoms = Atoms(
        'SrTiO3',
        scaled_positions=[
            [0, 0, 0],
            [0.5] * 3,
            [0.5, 0.5, 0],
            [0.5, 0, 0.5],
            [0, 0.5, 0.5],
        ],
        cell=[3.95, 3.95, 3.95],
        pbc=True,
    )
    atoms.rattle(0.05, seed=0)
    return atoms


def gold():
    atoms = bulk('Au', cubic=True)
    atoms.rattle(0.1, seed=2)
    return atoms


def bits(atoms):
    """All that must not change where something is refused."""
    return (
        {name: (x.tobytes(), x.dtype, x.shape) for name, x in atoms.arrays.items()},
        atoms.cell.array.tobytes(),
        atoms.pbc.tobytes(),
        atoms.get_celldisp().tobytes(),
        repr(atoms.info),
        [(id(c), repr(c.todict())) for c in atoms.constraints],
        id(atoms.calc),
    )


def laden(atoms):
    """With things on them that a refusal must leave alone."""
    atoms.info.update(name='mine', deeprelax_sigma=0.5)
    atoms.set_tags(range(len(atoms)))
    atoms.set_celldisp([0.1, 0.2, 0.3])
    return atoms


def step(before, after):
    """Deformation and displacement between two structures."""
    deformation = np.linalg.solve(before.cell.array, after.cell.array)
    back = after.positions @ np.linalg.inv(deformation)
    return deformation, back - before.positions


def same(one, two, atol=1e-5):
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


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


def isolated():
    positions = [[10, 10, 10], [0, 0, 0], [2.5, 0, 0]]
    return Atoms('HeAuAu', positions, cell=[20, 20, 20], pbc=True)


GROUND_FLOOR = {
    '1 no atoms': (lambda _: Atoms(cell=np.eye(3) * 4, pbc=True), '0 atoms'),
    '1 nothing': (lambda _: Atoms(), '0 atoms'),
    '3 nan': (put('positions', (1, 0), np.nan), r'atom 1 \(..\): position x is nan'),
    '3 inf': (put('positions', (2, 2), -np.inf), r'atom 2 \(..?\): position z is -inf'),
    '4 nan cell': (cell_vector(1, [0, 5, np.nan]), r'cell.*nan'),
    '4 inf cell': (cell_vector(0, [np.inf, 0, 0]), r'cell.*inf'),
    '5 no cell': (cell_vector(slice(None), 0.0), 'cell.* volume'),
    '6 no vector': (cell_vector(2, 0.0), 'cell.* volume'),
    '13 one site': (on_site_of(3, (0, 0, 0)), r'atom 1 \(..\) and atom 3 .* one site'),
    '15 image': (on_site_of(3, (0, 1, 0)), r'atom 1 \(..\) and atom 3 .* one site'),
}
PREDICTION = {
    '6 no vector, pbc False': (
        lambda _: Atoms('Au2', [[0, 0, 0], [0, 0, 2.5]], cell=[3, 3, 0], pbc=[1, 1, 0]),
        StructureError,
        r'pbc is \[True, True, False\]',
    ),
    '7 nearly flat': (cell_vector(2, [3.9, 3.9, 0.1]), StructureError, r'0\.312 A\^3'),
    '10 slab': (
        lambda _: fcc111('Au', (1, 1, 3), vacuum=5),
        StructureError,
        r'pbc is \[True, True, False\]: periodic crystals only',
    ),
    '10 layer': (lambda _: mx2(vacuum=5), StructureError, 'periodic crystals only'),
    '10 wire': (
        lambda atoms: atoms.set_pbc([0, 0, 1]),
        StructureError,
        'periodic crystals only',
    ),
    '11 molecule': (
        lambda _: molecule('H2O'),
        StructureError,
        'pbc is False along all vectors: periodic crystals only',
    ),
    '14 close': (
        on_site_of(3, (0.08, 0, 0)),
        StructureError,
        r'atom 1 \(Ti\) and atom 3 \(O\) are 0\.316 A apart',
    ),
    '16 dummy': (put('numbers', 2, 0), UnsupportedElementError, r'atom 2 .*\(X\)'),
    '16 no element': (put('numbers', 2, 200), UnsupportedElementError, 'atom 2 .*200'),
    '16 negative': (put('numbers', 2, -1), UnsupportedElementError, 'atom 2 .*-1'),
    '16 unseen': (
        put('numbers', 4, 110),
        UnsupportedElementError,
        r'never seen in training: Ds \(first: atom 4\)',
    ),
    '17 vacuum': (
        lambda _: Atoms('He', cell=[20, 20, 20], pbc=True),
        StructureError,
        r'atom 0 \(He\) has no neighbour within 5 A',
    ),
    '17 one alone': (lambda _: isolated(), StructureError, r'atom 0 \(He\) has .* 1 of 3'),
    '20 disorder': (
        lambda atoms: atoms.info.update(occupancy={'0': {'Sr': 0.5, 'Ba': 0.5}}),
        StructureError,
        r'site kind 0 .*Sr 0\.5, Ba 0\.5',
    ),
    '24 FixInternals': (
        constrained(FixInternals(bonds=[[2.0, [0, 1]]])),
        UnsupportedConstraintError,
        'FixInternals',
    ),
    '24 Hookean': (
        constrained(Hookean(0, 1, k=1, rt=2)),
        UnsupportedConstraintError,
        'Hookean',
    ),
    '24 bond': (
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
def test_18_more_than_fits_into_memory(face, tiny_model, monkeypatch):
    machine = {'SC_PHYS_PAGES': 500_000, 'SC_PAGE_SIZE': 4096}  # of 2 GB
    monkeypatch.setattr(checks.os, 'sysconf', machine.__getitem__)
    atoms = bulk('Cu', cubic=True) * (12, 12, 12)
    before = bits(atoms)
    with pytest.raises(StructureError, match=r'6912 atoms need about \d GB, .* has 2 GB'):
        face(atoms, tiny_model)
    assert bits(atoms) == before


def test_20_disordered_structure_of_pymatgen(tiny_model):
    species = [{'Ti': 0.5, 'Zr': 0.5}, 'O']
    structure = Structure(Lattice.cubic(4), species, [[0, 0, 0], [0.5, 0.5, 0.5]])
    before = structure.copy()
    with pytest.raises(StructureError, match=r'site 0 .* is disordered'):
        relax(structure, model=tiny_model)
    assert structure == before


def test_25_pressure(tiny_model):
    atoms = laden(crystal())
    before = bits(atoms)
    with pytest.raises(UnsupportedConstraintError, match='trained at 0 GPa'):
        by_optimizer(atoms, tiny_model, FrechetCellFilter(atoms, scalar_pressure=0.1))
    assert bits(atoms) == before


# --- taken -----------------------------------------------------------------------------


@both_faces
def test_2_one_atom(face, tiny_model):
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
        pytest.param([[0, 1, 0], [1, 0, 0], [0, 0, 1]], id='8 left-handed'),
        pytest.param(-np.eye(3), id='8 inverted'),
        pytest.param([[1, 0, 0], [0, 1, 0], [7, 0, 1]], id='9 skewed'),
        pytest.param([[1, 0, 0], [-40, 1, 0], [300, 55, 1]], id='9 very skewed'),
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


@pytest.mark.parametrize('far', [1e3, 1e6])
@both_faces
def test_12_far_images(face, far, tiny_model):
    atoms = crystal()
    expected = step(atoms, face(atoms.copy(), tiny_model))
    cells = np.rint(far / 3.95) * np.array([[0, 1, 0], [-1, 0, 0], [1, 1, -1]] * 2)[:5]
    atoms.positions += cells @ atoms.cell.array
    same(step(atoms, face(atoms.copy(), tiny_model)), expected)


def sparse():
    """Chains of atoms far from each other."""
    return Atoms('Au2', [[0, 0, 0], [0, 0, 2.5]], cell=[16, 16, 5], pbc=True)


@pytest.mark.parametrize(
    ('start', 'words'),
    [
        pytest.param(sparse, '640 A', id='19 sparse'),
        pytest.param(lambda: bulk('Cu', a=2.4), r'3\.46 A', id='19 dense'),
    ],
)
@both_faces
def test_density_outside_the_training_range(face, start, words, tiny_model):
    with pytest.warns(DeepRelaxWarning, match=words):
        relaxed = face(start(), tiny_model)
    assert words.replace('\\', '') in relaxed.info[keys.OOD]


CONSTRAINTS = {
    '21 all': FixAtoms(range(5)),
    '22 FixAtoms': FixAtoms([0, 3]),
    '22 FixCartesian': FixCartesian([0, 3], (True, False, True)),
    '22 FixScaled': FixScaled([0, 3], (True, False, True)),
    '22 FixedLine': FixedLine([0, 3], (0, 1, 0)),
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
    elif '22' in item:
        held = held[[0, 3]][:, [0, 2]]
    if item == '22 FixScaled':
        held = (displacement @ np.linalg.inv(atoms.cell.array))[[0, 3]][:, [0, 2]]
    np.testing.assert_allclose(held, 0, atol=1e-12)
    assert ('21' in item) == (np.abs(displacement).max() < 1e-9)


def test_21_all_constrained_in_a_fixed_cell(tiny_model):
    atoms = crystal()
    atoms.set_constraint(FixAtoms(range(5)))
    before = atoms.copy()
    optimizer = DeepRelaxOptimizer(atoms, model=tiny_model, relax_cell=False, logfile=None)
    assert optimizer.run() is True
    assert atoms.positions.tobytes() == before.positions.tobytes()
    assert atoms.cell.array.tobytes() == before.cell.array.tobytes()
    assert atoms.info[keys.DMAX] == 0


class Says(PaEGNN):
    """A network whose answer is spoilt by a function."""

    def spoil(self, said):
        pass

    def forward(self, graph):
        said = super().forward(graph)
        self.spoil(said)
        return said


def model_that(spoil):
    torch.manual_seed(0)
    model = awaken(Says(hidden=16, layers=1))
    model.spoil = spoil
    return model


def test_23_fix_symmetry():
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
def test_28_unusual_arrays_and_classes(face, kind, tiny_model):
    atoms = build(TYPES[kind])
    plain = Atoms(atoms.numbers, atoms.positions.astype(float), cell=atoms.cell, pbc=True)
    relaxed = face(atoms.copy() if face is by_function else atoms, tiny_model)
    assert type(relaxed) is type(atoms)
    same(step(plain, relaxed), step(plain, face(plain.copy(), tiny_model)))


@pytest.mark.parametrize('dtype', [np.float32, float])
def test_28_unusual_arrays_with_calculator(dtype, tiny_model):
    atoms = gold()
    atoms.arrays['positions'] = atoms.positions.astype(dtype)
    atoms.calc = EMT()
    optimizer = DeepRelaxOptimizer(atoms, model=tiny_model, logfile=None)
    assert optimizer.run(fmax=0.05) is True
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.05


@both_faces
def test_29_celldisp(face, tiny_model):
    atoms = crystal()
    expected = step(atoms, face(atoms.copy(), tiny_model))
    atoms.set_celldisp([1e5, -3, 7])
    relaxed = face(atoms.copy(), tiny_model)
    assert np.array_equal(relaxed.get_celldisp(), atoms.get_celldisp())
    same(step(atoms, relaxed), expected)


@both_faces
def test_30_relaxed_already(face):
    """Before training a network says of everything that it is."""
    atoms = crystal()
    relaxed = face(atoms.copy(), create_model('paegnn', hidden=16, layers=1))
    same(step(atoms, relaxed), (np.eye(3), 0))
    assert relaxed.info[keys.DMAX] < 1e-5
    assert relaxed.info[keys.VOLUME_RATIO] == pytest.approx(1, abs=1e-6)


# --- broken models ---------------------------------------------------------------------


def nan(said):
    said.displacement[0, 0] = torch.nan


def nan_cell(said):
    said.deformation[0, 1, 1] = torch.nan


def contradictory(said):
    said.distance = said.distance * torch.where(said.bond_index % 2 == 0, 3.0, 0.1)
    said.log_b = torch.full_like(said.log_b, -5.0)


def far_too_long(said):
    said.distance = said.distance * 1e30


def no_scale(said):
    said.log_b = torch.full_like(said.log_b, 100.0)


BROKEN = {
    '31 nan': (nan, 'not finite'),
    '31 nan cell': (nan_cell, 'not finite'),
    '32 contradictory': (contradictory, r'contradict each other by \d.* A on average'),
    '32 too long': (far_too_long, 'contradict each other'),
    '34 scale': (no_scale, 'not finite'),
}


@pytest.mark.parametrize('item', BROKEN)
@both_faces
def test_model_is_broken(face, item):
    spoil, words = BROKEN[item]
    atoms = laden(crystal())
    before = bits(atoms)
    with pytest.raises(PredictionError, match=words):
        face(atoms, model_that(spoil))
    assert bits(atoms) == before


@pytest.mark.parametrize('item', BROKEN)
def test_model_is_broken_with_calculator(item):
    """Then the relaxation is what it would have been without."""
    ends = []
    for spoil in (BROKEN[item][0], nan):
        atoms = gold()
        atoms.calc = EMT()
        optimizer = DeepRelaxOptimizer(atoms, model=model_that(spoil), logfile=None)
        with pytest.warns(DeepRelaxWarning, match='without a prediction'):
            assert optimizer.run(fmax=0.05) is True
        ends.append(atoms.positions.copy())
    assert np.array_equal(*ends)


def test_32_small_contradictions_are_told(tiny_model):
    model = model_that(lambda said: said.distance.mul_(1.02))
    result = relax(crystal(), model=model)
    assert result.ok
    assert 0 < result.residual < 1
    assert result.atoms.info[keys.RESIDUAL] == result.residual


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a CUDA device')
def test_36_device_that_is_not_there(tiny_model):
    atoms = laden(gold())
    for calc in (None, EMT()):
        atoms.calc = calc
        before = bits(atoms)
        optimizer = DeepRelaxOptimizer(atoms, model=tiny_model, device='cuda', logfile=None)
        with pytest.raises(DeviceError, match="device='cpu'"):
            optimizer.run()
        assert bits(atoms) == before


# --- promises --------------------------------------------------------------------------


@both_faces
def test_same_input_gives_the_same_bits(face, tiny_model):
    ends = [face(crystal(), tiny_model) for _ in range(3)]
    for one in ends[1:]:
        assert one.positions.tobytes() == ends[0].positions.tobytes()
        assert one.cell.array.tobytes() == ends[0].cell.array.tobytes()
        assert repr(one.info) == repr(ends[0].info)


def test_what_nobody_foresaw_stays_with_its_structure(tiny_model):
    """Constraints and subclasses may raise anything."""

    class Strict(Atoms):
        def __init__(self, name, *args, **kwargs):
            super().__init__(*args, **kwargs)

    class Moody(FixAtoms):
        def adjust_positions(self, atoms, new):
            raise ZeroDivisionError('not today')

    out_of_range, not_whole, moody = crystal(), crystal(), crystal()
    out_of_range.set_constraint(FixAtoms([99]))
    not_whole.arrays['numbers'] = not_whole.numbers + 0.5
    moody.set_constraint(Moody([0]))
    bad = [out_of_range, not_whole, moody]
    subclass = Strict('x', crystal())
    before = [bits(atoms) for atoms in bad]
    results = relax([crystal(), *bad, subclass, crystal()], model=tiny_model)
    assert [result.ok for result in results] == [True, False, False, False, False, True]
    expected = relax(crystal(), model=tiny_model)
    for result in (results[0], results[-1]):
        same([result.atoms.positions], [expected.atoms.positions])
    assert 'index 99' in results[1].problem
    assert 'name' in results[4].problem
    assert [bits(atoms) for atoms in bad] == before
    with pytest.raises(StructureError, match='IndexError: index 99') as caught:
        relax(out_of_range, model=tiny_model)
    assert isinstance(caught.value.__cause__, IndexError)


def test_nothing_outside_the_atoms_is_touched(tiny_model, tmp_path, monkeypatch):
    """No network, no pickle, no random numbers, no settings of torch, no environment."""

    def forbidden(*args, **kwargs):
        raise AssertionError('forbidden')

    def state():
        return (
            dict(os.environ),
            torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002 - users seed it
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
            np.geterr(),
            list(warnings.filters),
        )

    monkeypatch.setattr(socket, 'socket', forbidden)
    monkeypatch.setattr(torch, 'load', forbidden)
    model = shutil.copytree(tiny_model, tmp_path / 'fresh')  # not loaded before
    before = state()
    for atoms in (crystal(), gold()):
        by_function(atoms, model)
        by_optimizer(atoms, model)
    assert state() == before


def test_warnings_point_to_the_users_line(tiny_model):
    def optimizer(atoms=None):
        return DeepRelaxOptimizer(atoms, model=tiny_model, logfile=None)

    def assigned():
        atoms = sparse()
        atoms.optimizer = optimizer()
        atoms.optimizer.run()

    def refined():
        atoms = molecule('H2O')
        atoms.calc = EMT()
        optimizer(atoms).run(fmax=1)

    calls = [
        lambda: relax(sparse(), model=tiny_model),
        lambda: relax([sparse(), crystal(), sparse()], model=tiny_model),
        lambda: Predictor(tiny_model).relax([sparse()]),
        lambda: optimizer(sparse()).run(),
        lambda: optimizer().run(sparse()),
        lambda: list(optimizer(sparse()).irun()),
        assigned,
        refined,
    ]
    for call in calls:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            call()
        places = [w.filename for w in caught if w.category is DeepRelaxWarning]
        assert places == [__file__]
