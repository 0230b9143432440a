"""Layers, slabs and fixed cells through the optimizer, with and without a calculator."""

import json
from functools import partial
from io import StringIO

import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, Hookean
from ase.filters import Filter, FrechetCellFilter
from ase.io import read
from ase.optimize import BFGS, FIRE
from ase.optimize.cellawarebfgs import CellAwareBFGS

from ase_deeprelax import keys, relax
from ase_deeprelax.errors import DeepRelaxWarning, StructureError
from ase_deeprelax.optimize.stage import Stage
from tests.layers import real_layers, rewrite

pytestmark = pytest.mark.filterwarnings('ignore:.*outside the training range')


def film(fixed=(), pbc=True, tilt=False):
    """A strained film of CuAu with 18 A of vacuum."""
    atoms = fcc111('Cu', (1, 2, 3), a=3.75, vacuum=9)
    atoms.symbols[0] = 'Au'
    atoms.rattle(0.05, seed=1)
    if tilt:
        atoms = rewrite(atoms, np.random.default_rng(2), vacuum=18.0, across=pbc, pbc=pbc)
    atoms.pbc = [True, True, pbc] if not tilt else atoms.pbc
    if len(fixed):
        atoms.set_constraint(FixAtoms(fixed))
    return atoms


def vacuum_vector(atoms):
    """Index of the lattice vector through the vacuum, the longest one."""
    return int(atoms.cell.lengths().argmax())


def vacuum_of(atoms):
    return atoms.cell.array[2, 2] - np.ptp(atoms.positions[:, 2])


def log_of(make, atoms, *, steps=1, **how):
    """Lines of the log of a run."""
    log = StringIO()
    make(atoms, logfile=log, **how).run(steps=steps)
    return log.getvalue().splitlines()


# --- the vacuum stays -------------------------------------------------------------------


@pytest.mark.parametrize('pbc', [True, False])
@pytest.mark.parametrize('tilt', [False, True])
@pytest.mark.parametrize('how', ['alone', 'calculator', 'refine', 'chain'])
def test_the_vacuum_vector_stays_to_the_last_bit(one_shot, how, tilt, pbc):
    atoms = film(pbc=pbc, tilt=tilt)
    start = atoms.copy()
    k = vacuum_vector(atoms)
    refine = {'refine': EMT(), 'chain': [Stage(EMT(), fmax=0.3), EMT()]}.get(how)
    if how == 'calculator':
        atoms.calc = EMT()
    atoms.optimizer = one_shot(refine=refine)
    assert atoms.optimizer.run(fmax=0.05) is True
    assert np.array_equal(atoms.cell.array[k], start.cell.array[k])
    assert np.array_equal(atoms.pbc, start.pbc)
    others = [i for i in range(3) if i != k]
    assert (atoms.cell.array[others] != start.cell.array[others]).any()
    assert atoms.info[keys.KIND] == 'layer'
    if refine:
        free = [record.atoms.cell.array for record in atoms.optimizer.stages]
        assert all(np.array_equal(cell[k], start.cell.array[k]) for cell in free)
        # In its plane the film has come to rest, and nothing pulls at the vacuum.
        atoms.calc = EMT()
        pull = atoms.get_stress(voigt=False) * atoms.get_volume() / len(atoms)
        assert np.abs(pull).max() < 0.1


@pytest.mark.parametrize(
    'name', ['graphene', 'MoS2', 'MoS2, two sheets', 'Cu(100), 12 planes']
)
def test_files_that_say_they_are_periodic_along_the_vacuum(one_shot, name):
    """As every POSCAR does; the same as where pbc says it."""
    ends = []
    for pbc in (True, False):
        atoms = real_layers()[name]
        atoms.pbc[2] = pbc
        vacuum = atoms.cell.array[2].copy()
        atoms.optimizer = one_shot()
        atoms.optimizer.run()
        assert np.array_equal(atoms.cell.array[2], vacuum)
        ends.append(np.concatenate([atoms.positions, atoms.cell.array]))
    np.testing.assert_allclose(*ends, atol=1e-5)


@pytest.mark.parametrize('how', ['alone', 'calculator', 'refine'])
def test_slabs_with_fixed_atoms_keep_these_and_the_cell(one_shot, how):
    fixed = [0, 1]
    atoms = film(fixed)
    start = atoms.copy()
    if how == 'calculator':
        atoms.calc = EMT()
    atoms.optimizer = one_shot(refine=EMT() if how == 'refine' else None)
    assert atoms.optimizer.run(fmax=0.05) is True
    assert np.array_equal(atoms.cell.array, start.cell.array)
    assert np.array_equal(atoms.positions[fixed], start.positions[fixed])
    assert np.abs(atoms.positions - start.positions).max() > 1e-4
    assert atoms.info[keys.KIND] == 'layer, cell fixed'


def test_fixed_atoms_follow_a_plane_that_was_asked_for(one_shot):
    atoms = film([0, 1])
    start = atoms.copy()
    assert one_shot(atoms, refine=EMT(), relax_cell=True).run(fmax=0.05) is True
    assert np.array_equal(atoms.cell.array[2], start.cell.array[2])
    assert np.abs(atoms.cell.array - start.cell.array).max() > 0.01
    before, after = (a.get_scaled_positions(wrap=False)[:2] for a in (start, atoms))
    np.testing.assert_allclose(after, before, atol=1e-9)


def test_the_user_s_own_filter_is_his(one_shot):
    """The prediction keeps the vacuum; in the refinement the filter decides."""
    atoms = film()
    vacuum = atoms.cell.array[2].copy()
    one_shot(FrechetCellFilter(atoms)).run()
    assert np.array_equal(atoms.cell.array[2], vacuum)
    atoms.calc = EMT()
    optimizer = one_shot(FrechetCellFilter(atoms))
    cells = []
    optimizer.attach(lambda: cells.append(atoms.cell.array[2].copy()))
    optimizer.run(fmax=0.01, steps=30)
    assert np.array_equal(cells[1], vacuum)
    assert not np.array_equal(cells[-1], vacuum)


def test_a_filter_that_hides_atoms_frees_no_cell(one_shot):
    atoms = film()
    start = atoms.copy()
    one_shot(Filter(atoms, indices=[3, 4])).run()
    assert np.array_equal(atoms.cell.array, start.cell.array)
    moved = (atoms.positions != start.positions).any(axis=1)
    assert moved.nonzero()[0].tolist() == [3, 4]
    assert atoms.info[keys.KIND] == 'layer, cell fixed'


# --- what is neither a crystal nor one layer --------------------------------------------


@pytest.mark.parametrize('pbc', [True, False])
def test_molecules_in_a_box_are_named_or_relaxed_ordinarily(one_shot, pbc):
    atoms = molecule('H2O', vacuum=6)
    atoms.pbc = pbc
    before = atoms.copy()
    with pytest.raises(StructureError, match=r'molecule|pbc is False'):
        one_shot(atoms).run()
    assert atoms == before
    plain, ours = before.copy(), before.copy()
    plain.calc, ours.calc = EMT(), EMT()
    BFGS(plain, logfile=None).run(fmax=0.05)
    ours.optimizer = one_shot(optimizer=BFGS)
    with pytest.warns(DeepRelaxWarning, match='without a prediction: .*(molecule|False)'):
        assert ours.optimizer.run(fmax=0.05) is True
    assert np.array_equal(ours.positions, plain.positions)
    assert np.array_equal(ours.cell.array, before.cell.array)
    assert ours.info[keys.KIND] == 'other, cell fixed'


def test_two_slabs_in_one_cell_keep_it(one_shot):
    one, two = film(), film()
    two.positions[:, 2] += 16
    both = one + two
    both.cell[2, 2] = 40.0
    with pytest.raises(StructureError, match='2 layers'):
        one_shot(both).run()
    both.calc = EMT()
    start = both.cell.array.copy()
    with pytest.warns(DeepRelaxWarning, match='2 layers'):
        lines = log_of(one_shot, both, steps=3, relax_cell=True)
    assert lines[0].startswith('cell fixed: 2 layers')
    assert np.array_equal(both.cell.array, start)


def test_constraints_that_a_prediction_cannot_honour_hold_no_cell(one_shot):
    atoms = bulk('Cu', cubic=True, a=3.75)
    atoms.set_constraint(Hookean(0, 1, k=1, rt=2))
    start = atoms.cell.array.copy()
    with pytest.warns(DeepRelaxWarning, match='Hookean'):
        assert one_shot(atoms, refine=EMT()).run(fmax=0.02) is True
    assert not np.array_equal(atoms.cell.array, start)
    assert atoms.info[keys.KIND] == 'bulk'


# --- what is said -----------------------------------------------------------------------


def test_the_log_says_what_was_decided(one_shot):
    def first_line(atoms, calc=None, **how):
        atoms.calc = calc
        target = how.pop('target', lambda atoms: atoms)
        return log_of(one_shot, target(atoms), **how)[0]

    bulky = partial(bulk, 'Cu', cubic=True, a=3.7)
    titles = 'Step     Time'
    assert titles in first_line(bulky())
    assert titles in first_line(bulky(), EMT(), relax_cell=True)
    assert titles in first_line(bulky(), EMT(), relax_cell=False)
    assert titles in first_line(bulky(), EMT(), target=FrechetCellFilter)
    assert first_line(bulky(), EMT()) == (
        'cell fixed: use FrechetCellFilter or relax_cell=True to relax it'
    )
    gap = f'layer (gap of {vacuum_of(film()):.1f} A along c is vacuum)'
    assert first_line(film()) == f'{gap}: cell relaxes in the plane'
    assert first_line(film(), refine=EMT()) == f'{gap}: cell relaxes in the plane'
    assert first_line(film(), EMT()).startswith(f'{gap}: cell fixed, relax_cell=True')
    assert first_line(film([0])).startswith(f'{gap}: cell fixed, relax_cell=True')
    assert first_line(film(), relax_cell=False) == f'{gap}: cell fixed'
    assert 'FrechetCellFilter decides' in first_line(film(), target=FrechetCellFilter)
    assert first_line(film(pbc=False)) == (
        'layer (pbc is False along c): cell relaxes in the plane'
    )


def test_the_kind_is_in_info_on_every_path(one_shot):
    def kind(make, atoms, calc=None, **how):
        atoms.calc = calc
        optimizer = make(atoms)
        optimizer.run(**({'fmax': 0.05} | how))
        assert optimizer.nsteps > 0
        return atoms.info[keys.KIND]

    def crystal():
        atoms = bulk('Au', cubic=True, a=4.2)
        atoms.rattle(0.1, seed=2)
        return atoms

    assert kind(one_shot, crystal()) == 'bulk'
    assert kind(one_shot, crystal(), EMT()) == 'bulk, cell fixed'
    assert kind(partial(one_shot, refine=EMT()), crystal()) == 'bulk'
    assert kind(lambda a: one_shot(FrechetCellFilter(a)), crystal(), EMT()) == 'bulk'
    # Rolled back, so that all is the refinement's.
    back = partial(one_shot, energy_gate=-10.0, refine=EMT())
    assert kind(back, film(), steps=1) == 'layer'
    chain = [Stage(EMT(), fmax=0.3, relax_cell=False), Stage(EMT(), relax_cell='in-plane')]
    optimizer = one_shot(crystal(), refine=chain)
    assert optimizer.run(fmax=0.3) is True
    assert kind(partial(one_shot, refine=chain[:1]), film()) == 'layer, cell fixed'
    stored = film()
    results = SinglePointCalculator(stored, energy=0.0)
    assert kind(one_shot, stored, results) == 'layer'


def test_kind_and_freedom_are_in_the_trajectory(one_shot, tmp_path):
    for freedom, said in ((None, 'default'), ('in-plane', 'in-plane'), (False, False)):
        file = tmp_path / f'{said}.traj'
        with one_shot(film(), trajectory=file, relax_cell=freedom) as optimizer:
            optimizer.run()
            assert json.loads(json.dumps(optimizer.todict()))['relax_cell'] == said
        assert read(file).info[keys.KIND].startswith('layer')
    mask = one_shot(film(), relax_cell=[1, 1, 0, 0, 0, 1]).todict()['relax_cell']
    assert mask == [[True, True, False], [True, True, False], [False, False, False]]
    with pytest.raises(ValueError, match='relax_cell'):
        one_shot(relax_cell='sideways')


# --- what is asked for ------------------------------------------------------------------


def change_of(atoms, start):
    return np.linalg.solve(start.cell.array, atoms.cell.array) - np.eye(3)


@pytest.mark.parametrize('refine', [False, True])
@pytest.mark.parametrize(
    'relax_cell', [False, 'in-plane', 'hydrostatic', [0, 0, 1, 0, 0, 0]]
)
def test_prediction_and_refinement_have_one_freedom(one_shot, refine, relax_cell):
    atoms = bulk('Au', cubic=True, a=4.2)
    atoms.rattle(0.1, seed=2)
    start = atoms.copy()
    optimizer = one_shot(atoms, refine=EMT() if refine else None, relax_cell=relax_cell)
    assert optimizer.run(fmax=0.02) is True
    if relax_cell is False:
        assert np.array_equal(atoms.cell.array, start.cell.array)
        return
    change = change_of(atoms, start)
    assert np.abs(change).max() > 1e-5
    if relax_cell == 'in-plane':
        assert np.abs(change[2]).max() < 1e-12
    elif relax_cell == 'hydrostatic':
        np.testing.assert_allclose(change, change[0, 0] * np.eye(3), atol=1e-12)
    else:
        assert np.abs(change[:2]).max() < 1e-12


def test_each_stage_is_told_in_the_same_words(one_shot):
    asked = ['in-plane', 'hydrostatic', [0, 0, 1, 0, 0, 0], False, True]
    chain = [Stage(EMT(), relax_cell=one, fmax=0.05) for one in asked]
    atoms = bulk('Cu', cubic=True, a=3.75)
    atoms.symbols[0] = 'Au'
    atoms.rattle(0.1, seed=2)
    optimizer = one_shot(atoms, refine=chain)
    assert optimizer.run() is True
    before, *stages = (record.atoms for record in optimizer.stages)
    across = np.cross(*before.cell.array[:2])
    across /= np.linalg.norm(across)
    changes = []
    for after in stages:
        changes.append(change_of(after, before))
        before = after
    plane, scaled, height, _, _ = changes
    assert np.abs([plane @ across, across @ plane]).max() < 1e-12
    assert np.abs(plane).max() > 1e-4
    np.testing.assert_allclose(scaled, scaled[0, 0] * np.eye(3), atol=1e-12)
    assert np.abs(height[:2]).max() < 1e-12
    assert np.array_equal(stages[3].cell.array, stages[2].cell.array)
    assert atoms.info[keys.KIND] == 'bulk'
    with pytest.raises(ValueError, match='relax_cell'):
        Stage(EMT(), relax_cell='sideways')


def test_true_of_a_stage_means_the_plane_of_a_layer(one_shot):
    atoms = film([0])
    vacuum = atoms.cell.array[2].copy()
    chain = [Stage(EMT(), fmax=0.2), Stage(EMT(), relax_cell=True)]
    optimizer = one_shot(atoms, refine=chain)
    assert optimizer.run(fmax=0.05) is True
    said, held, free = (record.atoms.cell.array for record in optimizer.stages)
    assert np.array_equal(said, held)
    assert not np.array_equal(free, held)
    assert np.array_equal(free[2], vacuum)


@pytest.mark.parametrize('relax_cell', [False, True, 'in-plane'])
@pytest.mark.parametrize('optimizer', [CellAwareBFGS, FIRE])
def test_optimizers_get_the_filter_that_they_need(one_shot, optimizer, relax_cell):
    for atoms in (film(), bulk('Cu', cubic=True, a=3.7)):
        start = atoms.copy()
        chain = [Stage(EMT(), optimizer=optimizer, fmax=0.2), Stage(EMT(), optimizer=BFGS)]
        run = one_shot(atoms, refine=chain, relax_cell=relax_cell)
        assert run.run(fmax=0.1) is True
        assert np.array_equal(atoms.cell.array, start.cell.array) == (relax_cell is False)


def test_interrupted_relaxations_of_layers_go_on(one_shot, tmp_path):
    whole, halves = film(tilt=True), film(tilt=True)
    one_shot(whole, refine=EMT()).run(fmax=0.01)
    file = tmp_path / 'restart.json'
    one_shot(halves, refine=EMT(), restart=file).run(fmax=0.01, steps=5)
    again = film(tilt=True)
    assert one_shot(again, refine=EMT(), restart=file).run(fmax=0.01) is True
    np.testing.assert_allclose(again.positions, whole.positions, atol=1e-8)
    np.testing.assert_allclose(again.cell.array, whole.cell.array, atol=1e-8)


def test_a_prediction_is_that_of_relax(one_shot, tiny_model):
    for relax_cell in (None, True, False, 'hydrostatic'):
        atoms = film([1], tilt=True)
        expected = relax(atoms, model=tiny_model, relax_cell=relax_cell)
        one_shot(atoms, relax_cell=relax_cell).run()
        np.testing.assert_allclose(atoms.positions, expected.atoms.positions, atol=1e-6)
        np.testing.assert_allclose(atoms.cell.array, expected.atoms.cell.array, atol=1e-6)
        assert atoms.info[keys.KIND] == expected.kind
