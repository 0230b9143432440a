"""Fixed cells, layers and fixed atoms: what `Iterative` and `compare` make of them."""

import json
from functools import partial

import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from ase_deeprelax.compare.cases import find_cases
from ase_deeprelax.compare.evaluate import cuts, evaluate
from ase_deeprelax.compare.iterative import Iterative
from ase_deeprelax.compare.savings import compare
from ase_deeprelax.data.pairs import make_pair
from ase_deeprelax.errors import ConfigError
from tests.alloys import strained_alloy

alloy = partial(strained_alloy, a=3.75)


def film(fixed=(), pbc=True):
    """A strained film of CuAu with 18 A of vacuum."""
    atoms = fcc111('Cu', (1, 2, 3), a=3.75, vacuum=9)
    atoms.symbols[0] = 'Au'
    atoms.rattle(0.05, seed=1)
    atoms.pbc = [True, True, pbc]
    if fixed:
        atoms.set_constraint(FixAtoms(fixed))
    return atoms


def oracle(structures):
    """A function that predicts, and has no keyword relax_cell."""
    return [result.atoms for result in Iterative(EMT(), fmax=0.1)(structures)]


# --- Iterative ----------------------------------------------------------------------------


def test_the_words_for_the_cell_are_those_of_relax():
    before = alloy()
    at_start, at_call = Iterative(EMT(), relax_cell='in-plane'), Iterative(EMT())
    [one] = at_start([before])
    [two] = at_call([before], relax_cell='in-plane')
    assert one.atoms == two.atoms
    assert (one.kind, one.converged) == ('bulk', True)
    [held] = at_start([before], relax_cell=False)
    assert held.kind == 'bulk, cell fixed'
    assert (held.atoms.cell == before.cell).all()
    assert held.converged
    [scaled] = at_call([before], relax_cell='hydrostatic')
    factor = scaled.deformation[0, 0]
    assert scaled.deformation == pytest.approx(factor * np.eye(3), abs=1e-9)
    # Nothing that is held counts: there the stress stays.
    assert np.abs(scaled.atoms.get_stress()).max() > 1e-3
    mask = [0, 0, 1, 0, 0, 0]
    [tall] = at_call([before], relax_cell=mask)
    change = tall.deformation - np.eye(3)
    assert abs(change[2, 2]) > 1e-4
    assert np.abs(change[:2]).max() < 1e-9
    [free] = at_call([before])
    assert free.atoms == at_call([before], relax_cell=True)[0].atoms


@pytest.mark.parametrize('optimizer', ['FIRE', 'ElasticBFGS', 'CellAwareBFGS'])
@pytest.mark.parametrize('pbc', [True, False])
def test_layers_relax_in_their_plane(optimizer, pbc):
    before = film(pbc=pbc)
    [result] = Iterative(EMT(), optimizer=optimizer)([before])
    assert result.converged, result.reason
    assert result.kind == 'layer'
    assert (result.atoms.cell[2] == before.cell[2]).all()
    assert np.abs(result.atoms.cell[:2] - before.cell[:2]).max() > 0.01
    assert (result.atoms.pbc == before.pbc).all()


@pytest.mark.parametrize('optimizer', ['FIRE', 'CellAwareBFGS'])
def test_fixed_atoms_stay_and_so_does_the_cell_of_their_slab(optimizer):
    before = film([0, 1])
    model = Iterative(EMT(), optimizer=optimizer)
    [result] = model([before])
    assert result.converged, result.reason
    assert result.kind == 'layer, cell fixed'
    assert (result.atoms.cell == before.cell).all()
    assert (result.atoms.positions[:2] == before.positions[:2]).all()
    assert len(result.atoms.constraints) == 1
    [result] = model([before], relax_cell=True)
    assert result.kind == 'layer'
    assert np.abs(result.displacement[:2]).max() < 1e-9


def test_evaluate_lets_it_ask_what_pairs_ask():
    slab, cube = film([0, 1]), alloy()
    goal = Iterative(EMT(), fmax=1e-4, optimizer=BFGS)
    pairs = [
        make_pair('slab', slab, goal([slab])[0].atoms),
        make_pair('held', cube, goal([cube], False)[0].atoms, fixed_cell=True),
        make_pair('free', cube, goal([cube])[0].atoms),
    ]
    result = evaluate(pairs, Iterative(EMT(), fmax=0.01, optimizer=BFGS))
    assert result['n_failed'] == 0
    cut = cuts(result['all'])
    assert cut['coord_mae']['mean'] > 90


def test_what_is_no_crystal_and_no_layer_is_named():
    water = molecule('H2O', vacuum=6)
    wire = bulk('Cu', cubic=True)
    wire.center(vacuum=6, axis=(0, 1))
    results = Iterative(EMT())([water, wire])
    for result, kind in zip(results, ('molecule', 'wire'), strict=True):
        assert not result.ok
        assert kind in result.problem
        assert result.atoms == result.initial


def test_one_way_to_say_it():
    with pytest.raises(ConfigError, match='relax_cell and cell_filter'):
        Iterative(EMT(), relax_cell=True, cell_filter=FrechetCellFilter)
    with pytest.raises(ValueError, match='relax_cell'):
        Iterative(EMT(), relax_cell='sideways')
    with pytest.raises(ValueError, match='relax_cell'):
        Iterative(EMT())([alloy()], relax_cell='sideways')


# --- compare ------------------------------------------------------------------------------


def cells(result, id):
    """Cells of the input, of the prediction, and of the ends of all runs."""
    rows = result['structures'], result['predictions'], result['runs']
    found = [
        [r for r in table if id in (r.get('id'), r.get('structure'))] for table in rows
    ]
    assert all(row.get('ok', True) for table in found for row in table)
    return [[np.array(row['cell']) for row in table] for table in found]


@pytest.mark.filterwarnings('ignore:.*outside the training range')
def test_predictions_and_relaxations_have_one_freedom(tiny_model):
    inputs = {'film': film(), 'slab': film([0, 1]), 'cube': alloy()}
    pair = make_pair('held', alloy(1), alloy(1), fixed_cell=True)
    how = {'model': tiny_model, 'optimizers': ['ElasticBFGS', 'CellAwareBFGS']}
    result = compare({**inputs, 'held': pair}, [EMT()], batched=True, **how)
    assert all(run['converged'] for run in result['runs'])
    kinds = {row['id']: row['kind'] for row in result['structures']}
    assert kinds == {
        'film': 'layer',
        'slab': 'layer, cell fixed',
        'cube': 'bulk',
        'held': 'bulk, cell fixed',
    }
    assert result['settings']['relax_cell'] is None
    for id in inputs:
        [[start], predicted, ends] = cells(result, id)
        for cell in (*predicted, *ends):
            if id == 'film':
                assert np.array_equal(cell[2], start[2])
            assert np.array_equal(cell, start) == (id == 'slab')
    [[start], predicted, ends] = cells(result, 'held')
    assert all(np.array_equal(cell, start) for cell in (*predicted, *ends))
    for batch in result['batched']:
        assert batch['problem'] == ''
        assert batch['converged'] == batch['n'] == 4
    for k in (0, 1):  # fixed atoms are where they were, in every row
        rows = [r for r in result['runs'] if r['structure'] == 'slab']
        for row in rows:
            assert np.array_equal(row['positions'][k], film().positions[k])


def test_only_crystals_have_a_space_group_to_keep():
    def copies(structures, **_):
        return [atoms.copy() for atoms in structures]

    how = {'model': copies, 'optimizers': 'ElasticBFGS', 'fmax': 0.5}
    layer = film()
    layer.pbc = (True, True, False)
    both = compare({'film': layer, 'cube': bulk('Cu', a=3.6)}, [EMT()], **how)
    kept = {row['structure']: row['spacegroup_kept'] for row in both['predictions']}
    assert kept == {'film': None, 'cube': True}
    [row] = both['summary']
    assert row['alone']['spacegroup_kept'] == row['prediction']['spacegroup_kept'] == 1
    [row] = compare({'film': layer}, [EMT()], **how)['summary']
    assert row['alone']['spacegroup_kept'] is row['unrelaxed']['spacegroup_kept'] is None


@pytest.mark.filterwarnings('ignore:.*outside the training range')
def test_the_freedom_is_chosen_in_one_place(tiny_model, tmp_path):
    how = {'model': tiny_model, 'optimizers': ['ElasticBFGS'], 'out': tmp_path}
    result = compare([alloy()], [EMT()], relax_cell=False, **how)
    [[start], predicted, ends] = cells(result, '0')
    assert all(np.array_equal(cell, start) for cell in (*predicted, *ends))
    assert result['settings']['relax_cell'] is False
    assert result['structures'][0]['kind'] == 'bulk, cell fixed'
    assert json.loads(json.dumps(result)) == result
    with pytest.raises(ConfigError, match='relax_cell False, now it is'):
        compare([alloy()], [EMT()], relax_cell='in-plane', **how)
    with pytest.raises(ConfigError, match="'oracle' does not take the keyword relax_cell"):
        compare([alloy()], [EMT()], model=oracle, relax_cell=False)
    with pytest.raises(ValueError, match='relax_cell'):
        compare([alloy()], [EMT()], model=oracle, relax_cell='sideways')
    mask = [[True, False, False], [False, True, False], [False, False, False]]
    freedoms = []

    def knows(structures, relax_cell=None):
        freedoms.append(relax_cell)
        return oracle(structures)

    result = compare([alloy()], [EMT()], model=knows, relax_cell=[1, 1, 0, 0, 0, 0])
    assert result['settings']['relax_cell'] == mask
    assert all(np.array_equal(one, mask) for one in freedoms)


def test_what_is_held_makes_another_structure(tmp_path):
    """A journal knows structures of one name apart by what may move in them."""
    atoms, fixed, flat = alloy(), alloy(), alloy()
    fixed.set_constraint(FixAtoms([0]))
    flat.pbc = True, True, False
    keys = {entry.key for one in (atoms, fixed, flat) for entry in find_cases([one])}
    assert len(keys) == 3
