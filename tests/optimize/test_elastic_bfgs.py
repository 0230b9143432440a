"""BFGS that begins with the stiffness of a solid."""

import itertools
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter, UnitCellFilter
from ase.optimize import BFGS

from ase_deeprelax import ElasticBFGS
from ase_deeprelax.geometry.cell_filter import free_cell

STRAIN = np.array([[1.05, 0.02, 0.0], [0.02, 0.97, 0.01], [0.0, 0.01, 1.06]])


def crystal(seed=0, strain=STRAIN):
    """A strained, rattled alloy."""
    atoms = bulk('Cu', cubic=True)
    atoms.symbols[:2] = 'Au'
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    atoms.rattle(0.1, seed=seed)
    atoms.calc = EMT()
    return atoms


def path(target, atoms, steps=8):
    """Positions and cells of some steps."""
    moves = ElasticBFGS(target, logfile=None).irun(fmax=1e-8, steps=steps)
    return np.array([np.vstack([atoms.positions, atoms.cell]) for _ in moves])


@pytest.mark.parametrize('factor', [1.0, 4.0, 30.0])
def test_the_factor_of_the_filter_does_not_matter(factor):
    atoms, same = crystal(), crystal()
    one = path(FrechetCellFilter(atoms), atoms)
    two = path(FrechetCellFilter(same, exp_cell_factor=factor), same)
    np.testing.assert_allclose(one, two, atol=1e-9)


def test_a_doubled_crystal_goes_the_same_way():
    atoms, doubled = crystal(), crystal().repeat((2, 1, 1))
    doubled.calc = EMT()
    one = path(FrechetCellFilter(atoms), atoms)
    two = path(FrechetCellFilter(doubled), doubled)
    np.testing.assert_allclose(one[:, :4], two[:, :4], atol=1e-6)


@pytest.mark.parametrize('kind', [FrechetCellFilter, UnitCellFilter])
def test_what_a_mask_freezes_stays(kind):
    atoms = crystal(strain=np.diag([1.05, 0.97, 1.06]))
    before = atoms.cell.array.copy()
    mask = [True, True, False, False, False, False]
    assert ElasticBFGS(kind(atoms, mask=mask), logfile=None).run(fmax=0.01, steps=60)
    np.testing.assert_allclose(atoms.cell.array[2], before[2], atol=1e-12)
    np.testing.assert_allclose(atoms.cell.array[:2, 2], before[:2, 2], atol=1e-12)
    assert not np.allclose(atoms.cell.array[0], before[0], atol=1e-2)


def test_a_hydrostatic_filter_keeps_the_shape():
    atoms = crystal()
    target = FrechetCellFilter(atoms, hydrostatic_strain=True)
    shape = atoms.cell.array / atoms.cell.volume ** (1 / 3)
    ElasticBFGS(target, logfile=None).run(fmax=0.01, steps=60)
    np.testing.assert_allclose(
        atoms.cell.array / atoms.cell.volume ** (1 / 3), shape, atol=1e-9
    )


def test_a_step_is_no_longer_than_allowed():
    atoms = crystal(strain=0.6 * np.eye(3))  # large forces, larger stress
    places = path(FrechetCellFilter(atoms), atoms, steps=3)
    for before, after in pairwise(places):
        change = np.linalg.solve(before[-3:], after[-3:])
        strain = np.linalg.norm(change - np.eye(3), axis=1).max()
        moved = np.linalg.norm(after[:-3] - before[:-3] @ change, axis=1).max()
        assert strain < 0.25  # 0.2 of the logarithm
        assert moved < 0.25  # 0.2 A at the cell of the filter


def test_it_needs_less_than_half_the_calls_of_bfgs():
    def steps(kind, seed):
        atoms = crystal(seed)
        optimizer = kind(FrechetCellFilter(atoms), logfile=None)
        assert optimizer.run(fmax=0.02, steps=200)
        return optimizer.nsteps

    total = {kind: sum(steps(kind, k) for k in range(6)) for kind in (BFGS, ElasticBFGS)}
    assert total[ElasticBFGS] < 0.5 * total[BFGS]


def layer_steps(vacuum, kind, filtered):
    """Steps that strained films of one to five planes need to relax in their plane."""
    total = 0
    for planes, seed in itertools.product((1, 3, 5), (0, 1)):
        atoms = fcc111('Cu', (1, 2, planes), a=3.75, vacuum=vacuum / 2)
        atoms.symbols[0] = 'Au'
        atoms.pbc = True
        atoms.rattle(0.05, seed=seed)
        atoms.calc = EMT()
        optimizer = kind(filtered(atoms), logfile=None)
        assert optimizer.run(fmax=0.02, steps=200)
        total += optimizer.nsteps
    return total


def test_the_vacuum_beside_a_layer_costs_no_steps():
    """Its stiffness is that of the layer, however much vacuum the box holds."""
    plane = partial(FrechetCellFilter, mask=[1, 1, 0, 0, 0, 1])
    ours, theirs, plain = (
        [layer_steps(vacuum, kind, made) for vacuum in (15, 40)]
        for kind, made in ((ElasticBFGS, free_cell), (ElasticBFGS, plane), (BFGS, plane))
    )
    assert ours[0] == ours[1]
    assert ours[0] <= 1.05 * theirs[0]
    assert ours[1] <= 0.95 * theirs[1]
    assert ours[1] < 0.6 * plain[1]


@pytest.mark.parametrize('relax_cell', ['in-plane', 'hydrostatic', [1, 0, 1, 0, 1, 0]])
def test_a_partly_held_cell_takes_about_as_many_steps_as_a_free_one(relax_cell):
    def steps(filtered, seed):
        atoms = crystal(seed)
        optimizer = ElasticBFGS(filtered(atoms), logfile=None)
        assert optimizer.run(fmax=0.02, steps=100)
        return optimizer.nsteps

    held = partial(free_cell, relax_cell=relax_cell)
    ours, free = (
        sum(steps(made, k) for k in range(6)) for made in (held, FrechetCellFilter)
    )
    assert ours <= 1.2 * free


def test_a_molecule_relaxes_as_with_bfgs():
    from ase.build import molecule

    atoms = molecule('CO')
    atoms.calc = EMT()
    assert ElasticBFGS(atoms, logfile=None).run(fmax=0.01, steps=50)


def test_it_goes_on_from_its_restart_file(tmp_path):
    whole, halves = crystal(), crystal()
    ElasticBFGS(FrechetCellFilter(whole), logfile=None).run(fmax=1e-6, steps=6)
    target, file = FrechetCellFilter(halves), tmp_path / 'bfgs.json'
    ElasticBFGS(target, logfile=None, restart=file).run(fmax=1e-6, steps=3)
    ElasticBFGS(target, logfile=None, restart=file).run(fmax=1e-6, steps=3)
    np.testing.assert_allclose(whole.positions, halves.positions, atol=1e-9)
    np.testing.assert_allclose(whole.cell.array, halves.cell.array, atol=1e-9)
