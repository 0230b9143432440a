"""What filters and constraints leave free, compared with what ASE itself does."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, mx2
from ase.constraints import (
    FixAtoms,
    FixBondLength,
    FixCartesian,
    FixCom,
    FixedLine,
    FixedMode,
    FixedPlane,
    FixInternals,
    FixScaled,
    FixSubsetCom,
    FixSymmetry,
    Hookean,
)
from ase.filters import (
    Filter,
    FrechetCellFilter,
    StrainFilter,
    UnitCellFilter,
)
from ase.mep import NEB
from ase.spacegroup import crystal
from ase.spacegroup.symmetrize import check_symmetry
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import logm

from ase_deeprelax.errors import StructureError, UnsupportedConstraintError
from ase_deeprelax.geometry.degrees_of_freedom import find_freedom, unwrap
from ase_deeprelax.geometry.motion import project_strain
from ase_deeprelax.geometry.symmetry import find_symmetry

MASKS = st.lists(st.booleans(), min_size=6, max_size=6)


def skewed():
    atoms = bulk('NaCl', 'rocksalt', a=5.6) * (2, 1, 2)
    rng = np.random.default_rng(3)
    atoms.set_cell(atoms.cell.array + rng.normal(0, 0.1, (3, 3)), scale_atoms=True)
    atoms.rattle(0.1, seed=1)
    atoms.positions[2] += 3 * atoms.cell[0] - atoms.cell[2]
    return atoms


def prediction(n, seed=0, size=0.06):
    rng = np.random.default_rng(seed)
    e = rng.normal(0, size, (3, 3))
    values, vectors = np.linalg.eigh((e + e.T) / 2)
    u = rng.normal(0, 0.1, (n, 3))
    return vectors @ np.diag(np.exp(values)) @ vectors.T, u - u.mean(0)


CONSTRAINTS = {
    'FixAtoms': lambda: FixAtoms([0, 3]),
    'FixCartesian': lambda: FixCartesian([1, 2], mask=(True, False, True)),
    'FixScaled': lambda: FixScaled([1, 4], mask=(True, False, False)),
    'FixedPlane': lambda: FixedPlane([0, 5], (1, 2, 3)),
    'FixedLine': lambda: FixedLine([2, 6], (1, -1, 0)),
    'FixCom': FixCom,
    'FixSubsetCom': lambda: FixSubsetCom([0, 1, 2]),
    'FixedMode': lambda: FixedMode(np.random.default_rng(5).normal(size=(8, 3))),
}


@pytest.mark.parametrize('cell_moves', [False, True])
@pytest.mark.parametrize('name', CONSTRAINTS)
def test_constraints_act_as_in_frechet_cell_filter(name, cell_moves):
    """The same step through ASE's own filter ends in the same place."""
    atoms = skewed()
    atoms.set_constraint(CONSTRAINTS[name]())
    s, u = prediction(len(atoms))
    cell, positions = find_freedom(atoms, cell_moves).allowed(s, u)
    ase = atoms.copy()
    if cell_moves:
        n = len(ase)
        rows = [positions @ np.linalg.inv(s), n * np.real(logm(n * s))]
        FrechetCellFilter(ase).set_positions(np.concatenate(rows))
    else:
        ase.set_positions(positions)
    # Nothing that was allowed is taken away by ASE's constraint.
    np.testing.assert_allclose(ase.positions, positions, atol=1e-9)
    np.testing.assert_allclose(ase.cell.array, cell, atol=1e-12)
    if not cell_moves:
        assert np.array_equal(cell, atoms.cell.array)


@pytest.mark.parametrize('name', CONSTRAINTS)
def test_as_much_as_possible_is_kept(name):
    """Constraints take away only what they must: never more than the naive projection."""
    atoms = skewed()
    atoms.set_constraint(CONSTRAINTS[name]())
    _, u = prediction(len(atoms))
    _, positions = find_freedom(atoms).allowed(np.eye(3), u)

    def lost(step):
        difference = step - u
        return np.linalg.norm(difference - difference.mean(0))

    naive = atoms.copy()
    naive.set_positions(atoms.positions + u)
    kept, projected = (p - atoms.positions for p in (positions, naive.positions))
    assert lost(kept) <= lost(projected) + 1e-9


@pytest.mark.parametrize(
    'fixed', [FixAtoms([0, 3]), FixScaled([0, 3], [True] * 3), FixCartesian([0, 3])]
)
def test_fixed_atoms_stay_to_the_last_bit(fixed):
    atoms = skewed()
    atoms.set_masses(np.arange(1.0, 9.0))
    atoms.set_constraint([fixed, FixCom()])
    start = atoms.positions.copy()
    s, u = prediction(len(atoms))
    _, positions = find_freedom(atoms).allowed(s, u)
    assert np.array_equal(positions[[0, 3]], start[[0, 3]])
    assert np.abs(positions - start).max() > 0.05
    masses = atoms.get_masses()
    np.testing.assert_allclose(masses @ positions, masses @ start, atol=1e-8)
    cell, positions = find_freedom(atoms, True).allowed(s, u)
    before = atoms.cell.scaled_positions(start)[[0, 3]]
    after = np.linalg.solve(cell.T, positions.T).T[[0, 3]]
    np.testing.assert_allclose(after, before, atol=1e-13)


def test_one_fixed_atom_costs_nothing():
    """A crystal has no origin: one fixed atom only says where the prediction sits."""
    atoms = skewed()
    s, u = prediction(len(atoms))
    free_cell, free = find_freedom(atoms, True).allowed(s, u)
    atoms.set_constraint(FixAtoms([2]))
    cell, positions = find_freedom(atoms, True).allowed(s, u)
    np.testing.assert_allclose(cell, free_cell, atol=1e-12)
    np.testing.assert_allclose(positions - positions[2], free - free[2], atol=1e-10)


def test_all_fixed():
    atoms = skewed()
    atoms.set_constraint(FixAtoms(range(len(atoms))))
    cell, positions = find_freedom(atoms).allowed(*prediction(len(atoms)))
    assert np.array_equal(positions, atoms.positions)
    assert np.array_equal(cell, atoms.cell.array)


def test_constraints_that_contradict_each_other():
    atoms = skewed()
    atoms.set_constraint([FixedLine([0], (1, 0, 0)), FixedLine([0], (0, 1, 0))])
    _, u = prediction(len(atoms))
    _, positions = find_freedom(atoms).allowed(np.eye(3), u)
    np.testing.assert_allclose(positions[0], atoms.positions[0], atol=1e-9)
    # The way to the one line in two planes that are nearly the same has no end.
    atoms.set_constraint([FixedPlane([0], (0, 0, 1)), FixedPlane([0], (0, 0.001, 1))])
    with pytest.raises(UnsupportedConstraintError, match='FixedPlane, FixedPlane; remove'):
        find_freedom(atoms).allowed(np.eye(3), u)


def test_a_constraint_that_takes_nothing_of_a_drift_shifts_nothing():
    """The rounding of what it takes is no direction in which to shift a crystal."""
    atoms = skewed()
    mode, u = (prediction(len(atoms), seed)[1] for seed in (1, 2))
    atoms.set_constraint(FixedMode(mode))
    _, positions = find_freedom(atoms).allowed(np.eye(3), u)
    mode /= np.linalg.norm(mode)
    np.testing.assert_allclose(
        positions - atoms.positions, u - np.vdot(mode, u) * mode, atol=1e-9
    )


@settings(max_examples=60, deadline=None)
@given(mask=MASKS, kind=st.sampled_from([FrechetCellFilter, UnitCellFilter]))
def test_mask_is_exact(mask, kind):
    atoms = skewed()
    start = atoms.cell.array.copy()
    target = kind(atoms, mask=mask)
    cell, _ = find_freedom(target).allowed(*prediction(len(atoms)))
    free = target.mask.astype(bool)
    change = np.linalg.solve(start, cell) - np.eye(3)
    assert np.abs(change[~free]).max(initial=0) < 1e-12
    assert np.array_equal(start, cell) == (not any(mask))


@pytest.mark.parametrize('kind', [FrechetCellFilter, UnitCellFilter])
def test_where_nothing_is_predicted_the_cell_stays_to_the_last_bit(kind):
    atoms = skewed()
    nothing = np.eye(3), np.zeros((len(atoms), 3))
    for mask in ([1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 0, 0]):
        cell, positions = find_freedom(kind(atoms, mask=mask)).allowed(*nothing)
        np.testing.assert_array_equal(cell, atoms.cell.array)
        np.testing.assert_array_equal(positions, atoms.positions)


def test_a_mask_that_frees_no_strain_fixes_the_cell():
    """Errors and the question to the network are those of the kind."""
    crystal, layer = bulk('Cu', cubic=True), mx2('MoS2', vacuum=9)
    cases = [(crystal, 6 * [0]), (FrechetCellFilter(crystal, mask=6 * [0]), None)]
    cases += [(layer, [0, 0, 1, 0, 0, 0])]  # across the layer nothing is free
    for target, relax_cell in cases:
        freedom = find_freedom(target, relax_cell)
        assert freedom.kind.endswith(', cell fixed')
        assert freedom.strain is None
        assert not freedom.motion.free_strain.any()
    assert find_freedom(crystal, [1, 0, 0, 0, 0, 0]).kind == 'bulk'
    assert find_freedom(layer, [1, 0, 0, 0, 0, 0]).kind == 'layer'


@settings(max_examples=60, deadline=None)
@given(mask=MASKS, size=st.floats(0.0, 0.2))
def test_constant_volume_is_exact(mask, size):
    atoms = skewed()
    target = FrechetCellFilter(atoms, mask=mask, constant_volume=True)
    cell, _ = find_freedom(target).allowed(*prediction(len(atoms), size=size))
    change = np.linalg.solve(atoms.cell.array, cell) - np.eye(3)
    assert np.abs(change[~target.mask.astype(bool)]).max(initial=0) < 1e-12
    assert np.linalg.det(cell) == pytest.approx(np.linalg.det(atoms.cell.array), rel=1e-11)


@pytest.mark.parametrize(
    'mask', [[1, 0, 1, 0, 0, 0], [1, 1, 0, 1, 1, 0], [1, 0, 0, 0, 1, 1]]
)
def test_a_large_change_of_shape_happens_at_constant_volume(mask):
    atoms = skewed()
    deformation = prediction(len(atoms), size=0.3)[0]
    deformation /= np.cbrt(np.linalg.det(deformation))
    target = FrechetCellFilter(atoms, mask=mask, constant_volume=True)
    cell, _ = find_freedom(target).allowed(deformation, np.zeros((len(atoms), 3)))
    assert np.linalg.det(cell) == pytest.approx(np.linalg.det(atoms.cell.array), rel=1e-11)
    assert np.abs(np.linalg.solve(atoms.cell.array, cell) - np.eye(3)).max() > 0.1


@pytest.mark.parametrize(
    ('mask', 'free'), [(None, [0, 1, 2]), ([1, 1, 0, 0, 0, 1], [0, 1])]
)
def test_hydrostatic(mask, free):
    atoms = skewed()
    s, u = prediction(len(atoms))
    target = FrechetCellFilter(atoms, mask=mask, hydrostatic_strain=True)
    cell, _ = find_freedom(target).allowed(s, u)
    change = np.linalg.solve(atoms.cell.array, cell)
    expected = np.eye(3)
    mean = np.mean(np.diag(np.real(logm(s)))[free])
    expected[free, free] = np.exp(mean)
    np.testing.assert_allclose(change, expected, atol=1e-12)


def test_no_volume_and_no_shape_is_no_change():
    atoms = skewed()
    target = FrechetCellFilter(atoms, hydrostatic_strain=True, constant_volume=True)
    cell, _ = find_freedom(target).allowed(*prediction(len(atoms)))
    np.testing.assert_allclose(cell, atoms.cell.array, atol=1e-13)


def test_mask_counts_from_the_filters_first_cell():
    """As in ASE, what a mask fixes is fixed for the life of the filter."""
    atoms = skewed()
    start = atoms.cell.array.copy()
    target = FrechetCellFilter(atoms, mask=[1, 0, 0, 0, 0, 1])
    for seed in (0, 1):
        freedom = find_freedom(target)
        freedom.write(*freedom.allowed(*prediction(len(atoms), seed)))
    change = np.linalg.solve(start, atoms.cell.array) - np.eye(3)
    assert np.abs(change[~target.mask.astype(bool)]).max() < 1e-12
    assert np.abs(change).max() > 0.01


@pytest.mark.parametrize('kind', [FrechetCellFilter, UnitCellFilter])
def test_a_filter_whose_cell_has_moved_since_takes_the_whole_prediction(kind):
    atoms = skewed()
    target = kind(atoms)
    atoms.set_cell(atoms.cell.array @ prediction(1, seed=7)[0], scale_atoms=True)
    s, u = prediction(len(atoms))
    cell, positions = find_freedom(target).allowed(s, u)
    np.testing.assert_allclose(cell, atoms.cell.array @ s, atol=1e-12)
    np.testing.assert_allclose(positions, (atoms.positions + u) @ s, atol=1e-12)


def test_a_constant_volume_is_that_of_the_present_cell():
    atoms = skewed()
    target = FrechetCellFilter(atoms, constant_volume=True)
    atoms.set_cell(atoms.cell.array * 1.1, scale_atoms=True)
    cell, _ = find_freedom(target).allowed(*prediction(len(atoms)))
    assert np.linalg.det(cell) == pytest.approx(np.linalg.det(atoms.cell.array), rel=1e-11)
    assert not np.allclose(cell, atoms.cell.array, atol=0.01)


def frechet(**settings):
    return lambda atoms: FrechetCellFilter(atoms, **settings)


# What frees some strains of the cell, and how many of the six it frees.
FREED = {
    'all': (frechet(), 6),
    'the volume': (frechet(hydrostatic_strain=True), 1),
    'the shape': (frechet(constant_volume=True), 5),
    'a mask': (frechet(mask=[1, 1, 0, 0, 0, 1]), 3),
    'a mask with a shear': (
        lambda atoms: UnitCellFilter(atoms, mask=[0, 0, 1, 1, 0, 0]),
        2,
    ),
    'a StrainFilter': (lambda atoms: StrainFilter(atoms, mask=[1, 0, 0, 0, 1, 0]), 2),
    'the shape along two axes': (
        frechet(mask=[1, 0, 1, 0, 0, 0], constant_volume=True),
        1,
    ),
    'neither volume nor shape': (
        frechet(hydrostatic_strain=True, constant_volume=True),
        0,
    ),
    'a volume without axes': (
        frechet(mask=[0, 0, 0, 1, 1, 1], hydrostatic_strain=True),
        0,
    ),
    'halves of shears of a filter': (frechet(mask=np.tril(np.ones((3, 3)))), 3),
    'halves of shears': (np.triu(np.ones((3, 3))), 3),
    'the plane': ('in-plane', 3),
    'the volume, without a filter': ('hydrostatic', 1),
}


@pytest.mark.parametrize('freed', FREED)
def test_the_network_is_told_which_strains_may_follow_it(freed):
    """The strains that it is told are free happen, to first order, and no others."""
    atoms, (how, count) = skewed(), FREED[freed]
    freedom = find_freedom(how(atoms)) if callable(how) else find_freedom(atoms, how)
    free = freedom.motion.free_strain
    assert np.trace(free) == pytest.approx(count, abs=1e-9)
    for seed in range(5):
        deformation, u = prediction(len(atoms), seed, size=1e-5)
        cell, _ = freedom.allowed(deformation, u)
        strain = np.linalg.solve(atoms.cell.array, cell) - np.eye(3)
        told = project_strain(free, deformation - np.eye(3))
        np.testing.assert_allclose((strain + strain.T) / 2, told, atol=1e-8)


def test_strain_filter_moves_the_cell_only():
    atoms = skewed()
    start = atoms.copy()
    target = StrainFilter(atoms, mask=[1, 1, 0, 0, 0, 1])
    freedom = find_freedom(target)
    state = freedom.snapshot()
    freedom.write(*freedom.allowed(*prediction(len(atoms))))
    np.testing.assert_allclose(
        atoms.cell.scaled_positions(atoms.positions),
        start.cell.scaled_positions(start.positions),
        atol=1e-12,
    )
    change = np.linalg.solve(start.cell.array, atoms.cell.array) - np.eye(3)
    assert np.abs(change[2]).max() < 1e-13
    assert np.abs(change[:, 2]).max() < 1e-13
    moved = atoms.cell.array.copy()
    target.set_positions(target.get_positions())  # the filter knows where it is
    np.testing.assert_allclose(atoms.cell.array, moved, atol=1e-12)
    freedom.restore(state)
    assert np.array_equal(atoms.cell.array, start.cell.array)
    assert np.array_equal(atoms.positions, start.positions)
    assert not target.strain.any()


def test_strain_filter_knows_where_predictions_led_one_after_the_other():
    atoms = skewed()
    target = StrainFilter(atoms)
    for seed in (0, 1):
        freedom = find_freedom(target)
        freedom.write(*freedom.allowed(*prediction(len(atoms), seed)))
        cell = atoms.cell.array.copy()
        target.set_positions(target.get_positions())
        np.testing.assert_allclose(atoms.cell.array, cell, atol=1e-12)


def test_filter_hides_atoms():
    atoms = skewed()
    s, u = prediction(len(atoms))
    for target in (
        Filter(atoms, indices=[1, 5]),
        Filter(Filter(atoms, indices=[5, 0, 1]), mask=[True, False, True]),
    ):
        cell, positions = find_freedom(target).allowed(s, u)
        moved = np.flatnonzero((positions != atoms.positions).any(axis=1))
        assert moved.tolist() == [1, 5]
        assert np.array_equal(cell, atoms.cell.array)


def test_filter_around_cell_filter():
    atoms = skewed()
    n = len(atoms)
    inner = FrechetCellFilter(atoms)
    s, u = prediction(n)
    cell, positions = find_freedom(Filter(inner, indices=range(n))).allowed(s, u)
    assert np.array_equal(cell, atoms.cell.array)
    assert np.abs(positions - atoms.positions).max() > 0.05
    cell, positions = find_freedom(Filter(inner, indices=range(n, n + 3))).allowed(s, u)
    np.testing.assert_allclose(cell, atoms.cell.array @ s, atol=1e-12)
    np.testing.assert_allclose(positions, atoms.positions @ s, atol=1e-9)
    with pytest.raises(UnsupportedConstraintError, match='Filter around FrechetCellFilter'):
        find_freedom(Filter(inner, indices=range(n + 1)))


@pytest.mark.parametrize('filtered', [False, True])
def test_fix_symmetry(filtered):
    atoms = crystal(
        ['Ti', 'O'],
        basis=[(0, 0, 0), (0.31, 0.31, 0)],
        spacegroup=136,
        cellpar=[4.6, 4.6, 2.95, 90, 90, 90],
    )
    atoms.rotate(33, (1, 2, 3), rotate_cell=True)
    atoms.set_constraint(FixSymmetry(atoms))
    s, u = prediction(len(atoms), size=0.2)  # beyond what FixSymmetry takes in a step
    freedom = find_freedom(FrechetCellFilter(atoms) if filtered else atoms, True)
    cell, positions = freedom.allowed(s, u)
    assert np.abs(np.linalg.solve(atoms.cell.array, cell) - np.eye(3)).max() > 0.02
    freedom.write(cell, positions)
    assert check_symmetry(atoms, 1e-6).number == 136


@pytest.mark.parametrize('degrees', [1.0, 10.0])
def test_fix_symmetry_beside_a_mask_along_other_axes(degrees):
    """What is free keeps both to rounding, however near their strains are to each other."""
    atoms = crystal(
        ['Ga', 'O'],
        basis=[(0.09, 0, 0.79), (0.16, 0, 0.11)],
        spacegroup=12,
        cellpar=[12.2, 3.0, 5.8, 90, 103.8, 90],
    )
    atoms.rotate(degrees, (1, 0, 0), rotate_cell=True)
    atoms.set_constraint(FixSymmetry(atoms, symprec=1e-6))
    freedom = find_freedom(atoms, [1, 1, 1, 0, 1, 0])
    cell, positions = freedom.allowed(*prediction(len(atoms)))
    change = np.linalg.solve(atoms.cell.array, cell) - np.eye(3)
    assert np.abs(change).max() > 0.01
    assert np.abs(change[[0, 1], [1, 2]]).max() < 1e-12
    freedom.write(cell, positions)
    assert check_symmetry(atoms, 1e-6).number == 12


def test_fix_symmetry_beside_a_fixed_shape_in_a_cell_of_few_digits():
    """The volume is left, though no strain keeps both the shape and the rounded lattice."""
    atoms = bulk('Mg')
    atoms.set_constraint(FixSymmetry(atoms))
    atoms.set_cell(atoms.cell.array.round(3), apply_constraint=False)  # as a file has it
    rule = find_freedom(atoms, 'hydrostatic').strain
    assert np.trace(rule.projection()) == pytest.approx(1)
    change = np.linalg.solve(atoms.cell.array, rule.relaxed_cell(1.1 * np.eye(3)))
    np.testing.assert_allclose(change, 1.1 * np.eye(3), atol=1e-3)


def test_fix_symmetry_of_the_cell_only():
    atoms = bulk('Cu', cubic=True)
    atoms.set_constraint(FixSymmetry(atoms, adjust_positions=False))
    s, u = prediction(len(atoms))
    cell, positions = find_freedom(atoms, True).allowed(s, u)
    change = np.linalg.solve(atoms.cell.array, cell)
    np.testing.assert_allclose(change, np.eye(3) * change[0, 0], atol=1e-12)
    expected = (atoms.positions + u) @ change
    np.testing.assert_allclose(positions - positions[0], expected - expected[0], atol=1e-9)


@pytest.mark.parametrize(
    'constraint',
    [Hookean(0, 1, k=5, rt=2.5), FixInternals(bonds=[[2.8, [0, 1]]]), FixBondLength(0, 1)],
    ids=lambda c: type(c).__name__,
)
def test_refused_constraints(constraint):
    atoms = skewed()
    atoms.set_constraint([FixAtoms([0]), constraint])
    with pytest.raises(UnsupportedConstraintError, match=type(constraint).__name__):
        find_freedom(atoms)


@pytest.mark.parametrize('index', [8, -9])
def test_constraints_on_atoms_that_are_not_there(index):
    atoms = bulk('NaCl', 'rocksalt', a=5.6, cubic=True)
    atoms.set_constraint([FixAtoms([-8]), FixCartesian([7, index])])
    message = f'FixCartesian names atom {index}, .* 8 atoms'
    with pytest.raises(StructureError, match=message):
        find_freedom(atoms)


@pytest.mark.parametrize('kind', [FixSymmetry, lambda atoms: FixedMode(atoms.positions)])
def test_constraints_on_all_atoms_that_were_made_for_fewer(kind):
    atoms = bulk('NaCl', 'rocksalt', a=5.6)
    atoms.set_constraint(kind(atoms))
    find_freedom(atoms)
    atoms.extend(Atoms('H', [[1.4, 1.4, 1.4]]))
    with pytest.raises(StructureError, match='was made for 2 atoms, and there are 3; set'):
        find_freedom(atoms)


@pytest.mark.parametrize(
    'hold',
    [
        lambda index: FixScaled(index, mask=(True, True, False)),
        lambda index: FixCartesian(index, mask=(False, True, False)),
        lambda index: FixedPlane(index, (0, 0, 1)),
        lambda index: FixedLine(index, (1, 0, 0)),
    ],
)
def test_one_constraint_on_all_atoms_equals_one_on_each(hold):
    """Selective dynamics of VASP are read as a constraint for each atom."""
    atoms = bulk('NaCl', 'rocksalt', a=5.6, cubic=True) * (2, 2, 3)
    free = len(find_symmetry(atoms).rotations)
    for constraints in (hold(range(96)), [hold(k) for k in range(96)]):
        atoms.set_constraint(constraints)
        labels = find_freedom(atoms).labels
        assert set(labels) == {2}
        assert len(find_symmetry(atoms, labels=labels).rotations) == free


def test_atoms_are_told_apart_by_what_holds_them():
    atoms = bulk('NaCl', 'rocksalt', a=5.6, cubic=True) * (2, 1, 1)
    line, plane = FixedLine([0, 1], (0, 0, 1)), FixedPlane([1, 2, 3], (0, 0, 1))
    pairs = FixSubsetCom([4, 5]), FixSubsetCom([6])
    atoms.set_constraint([line, plane, *pairs, FixCartesian(7)])
    labels = find_freedom(atoms).labels
    groups = [{0}, {1}, {2, 3}, {4, 5}, {6}, {7}]
    assert [set(np.flatnonzero(labels == labels[min(g)])) for g in groups] == groups
    assert labels[7] == 1
    assert (labels[:7] > 1).all()
    assert not labels[8:].any()


@pytest.mark.parametrize('kind', [FixedLine, FixedPlane])
def test_directions_tell_atoms_apart(kind):
    atoms = bulk('NaCl', 'rocksalt', a=5.6, cubic=True)
    atoms.set_constraint([kind([0, 2], (0, 0, 1)), kind([4, 6], (0, 1, 0))])
    labels = find_freedom(atoms).labels
    assert labels[0] == labels[2] != labels[4] == labels[6]


def test_the_network_is_told_of_atoms_that_are_fixed_altogether_and_no_others():
    atoms = bulk('NaCl', 'rocksalt', a=5.6, cubic=True)
    atoms.set_constraint([FixAtoms([1]), FixedLine([3], (0, 0, 1))])
    fixed = find_freedom(atoms).motion.fixed
    assert np.flatnonzero(fixed).tolist() == [1]


@pytest.mark.parametrize('adjust_cell', [True, False])
def test_the_network_is_not_told_of_fix_symmetry(adjust_cell):
    """And where the constraint leaves the cell alone, so does the prediction."""
    atoms = bulk('NaCl', 'rocksalt', a=5.6)
    atoms.set_constraint(FixSymmetry(atoms, adjust_cell=adjust_cell))
    freedom = find_freedom(atoms, True)
    np.testing.assert_array_equal(freedom.motion.free_strain, np.eye(6))
    deformation = np.diag([1.0, 1.0, 1.1])
    cell, _ = freedom.allowed(deformation, np.zeros((2, 3)))
    expected = np.cbrt(1.1) * np.eye(3) if adjust_cell else deformation
    np.testing.assert_allclose(cell, atoms.cell.array @ expected, atol=1e-9)


def test_a_layer_gets_thicker_where_nothing_else_is_asked_for():
    layer = mx2('MoS2', vacuum=9)

    def count(relax_cell, constraint=None):
        layer.set_constraint(constraint)
        return round(np.trace(find_freedom(layer, relax_cell).motion.free_strain))

    assert count(None) == count(True) == 4
    assert count('in-plane') == count([1, 1, 1, 1, 1, 1]) == 3
    assert count(True, FixedLine([0], (0, 0, 1))) == 3
    layer.set_constraint()
    free = find_freedom(FrechetCellFilter(layer)).motion.free_strain
    assert np.trace(free) == pytest.approx(3)


def test_the_cell_of_a_layer_relaxes_unless_an_atom_is_fixed():
    layer = mx2('MoS2', vacuum=9)
    for constraint, kind in (
        ([], 'layer'),
        (FixedLine([0], (0, 0, 1)), 'layer'),
        (FixAtoms([0]), 'layer, cell fixed'),
    ):
        layer.set_constraint(constraint)
        assert find_freedom(layer, None).kind == kind
    crystal = bulk('NaCl', 'rocksalt', a=5.6)
    crystal.set_constraint(FixAtoms([0]))
    assert find_freedom(crystal, None).kind == 'bulk'


def test_constraints_that_name_no_atoms_tell_none_apart():
    atoms = bulk('NaCl', 'rocksalt', a=5.6)
    mode = FixedMode(np.arange(6.0).reshape(2, 3))
    atoms.set_constraint([FixSymmetry(atoms), mode])
    freedom = find_freedom(atoms)
    assert freedom.labels.tolist() == [0, 0]
    assert freedom.labels.dtype == np.int64


@pytest.mark.parametrize(
    'relax_cell',
    ['plane', [1, 1, 1], [1, 1, 0, 0, 0, np.nan], list('xxyyzz'), 6 * [1j], [[1], [1, 1]]],
)
def test_what_is_no_mask_is_refused(relax_cell):
    with pytest.raises(ValueError, match='must be True, False'):
        find_freedom(skewed(), relax_cell)


def test_refused_targets():
    atoms = skewed()
    with pytest.raises(UnsupportedConstraintError, match=r'scalar_pressure=0\.1'):
        find_freedom(FrechetCellFilter(atoms, scalar_pressure=0.1))
    with pytest.raises(UnsupportedConstraintError, match='NEB'):
        unwrap(NEB([atoms.copy() for _ in range(3)]))
    with pytest.raises(TypeError, match='lists'):
        unwrap([atoms])

    class Own(Filter):
        pass

    with pytest.raises(UnsupportedConstraintError, match='Own around Atoms'):
        find_freedom(Own(atoms, indices=[0]))
    with pytest.raises(UnsupportedConstraintError, match='UnitCellFilter around UnitCell'):
        find_freedom(UnitCellFilter(UnitCellFilter(atoms)))
    with pytest.raises(UnsupportedConstraintError, match='StrainFilter around Atoms'):
        find_freedom(Filter(StrainFilter(atoms), indices=[0]))


@pytest.mark.parametrize('kind', ['plain', 'read-only', 'float32', 'int'])
def test_write_and_restore(kind):
    atoms = Atoms('Cu2', positions=[[0, 0, 0], [2, 2, 2]], cell=[4, 4, 4], pbc=True)
    atoms.arrays['tags'] = np.array([5, 6])
    if kind == 'read-only':
        atoms.positions.flags.writeable = False
    elif kind != 'plain':
        atoms.arrays['positions'] = atoms.positions.astype(kind)
    before = atoms.positions.copy()
    freedom = find_freedom(atoms, True)
    state = freedom.snapshot()
    cell, positions = freedom.allowed(*prediction(2))
    freedom.write(cell, positions)
    assert np.array_equal(atoms.positions, positions)
    assert np.array_equal(atoms.cell.array, cell)
    freedom.restore(state)
    assert np.array_equal(atoms.positions, before)
    assert atoms.positions.dtype == before.dtype
    assert np.array_equal(atoms.cell.array, 4 * np.eye(3))
    assert atoms.get_tags().tolist() == [5, 6]
