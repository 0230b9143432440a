from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, mx2
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms, FixInternals, Hookean
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE, LBFGS

from ase_deeprelax import ElasticBFGS
from ase_deeprelax.calculators.batched import batch_potential
from ase_deeprelax.calculators.registry import get_calculator
from ase_deeprelax.optimize.many import relax_batched
from tests.calculators.bare import Bare

POTENTIALS = Path(__file__).parents[2] / '../shared/potentials'
M3GNET = POTENTIALS / 'M3GNet-MP-2021.2.8-PES'
TENSORNET = POTENTIALS / 'TensorNet-MatPES-PBE-v2025.1-PES'


def metals():
    crystals = [bulk('Cu', a=3.5), bulk('Au', a=4.2, cubic=True), bulk('Ni') * (2, 1, 1)]
    for k, atoms in enumerate(crystals):
        atoms.rattle(0.05, seed=k)
    return crystals


@pytest.mark.parametrize('optimizer', [FIRE, BFGS, LBFGS, ElasticBFGS])
def test_each_crystal_goes_the_way_it_goes_alone(optimizer):
    together = dict(
        relax_batched(
            enumerate(metals()), batch_potential(EMT()), optimizer=optimizer, fmax=0.01
        )
    )
    for k, atoms in enumerate(metals()):
        atoms.calc = EMT()
        alone = optimizer(FrechetCellFilter(atoms), logfile=None)
        assert alone.run(fmax=0.01)
        outcome = together[k]
        assert outcome.converged
        assert outcome.calls == alone.nsteps + 1
        assert np.allclose(outcome.atoms.positions, atoms.positions, atol=1e-9)
        assert np.allclose(outcome.atoms.cell, atoms.cell, atol=1e-9)
        assert outcome.atoms.get_potential_energy() == pytest.approx(
            atoms.get_potential_energy()
        )


def test_batches_stay_full_and_within_their_budget():
    sizes = []
    ask = batch_potential(EMT())

    def potential(structures):
        sizes.append(sum(map(len, structures)))
        return ask(structures)

    inputs = ((k, bulk('Cu', a=3.4 + 0.02 * k)) for k in range(12))
    ends = dict(relax_batched(inputs, potential, batch_atoms=3))
    assert sorted(ends) == list(range(12))
    assert max(sizes) == 3
    assert sizes.count(3) > 0.6 * len(sizes)


def test_inputs_are_taken_when_there_is_room_and_left_alone():
    taken = []

    def inputs():
        for k in range(6):
            taken.append(k)
            yield k, crystals[k]

    crystals = [bulk('Cu', a=3.5 + 0.02 * k) for k in range(6)]
    before = [atoms.cell.array.copy() for atoms in crystals]
    first, _ = next(iter(relax_batched(inputs(), batch_potential(EMT()), batch_atoms=2)))
    assert first in taken
    assert len(taken) < 6
    assert all(np.array_equal(a.cell, b) for a, b in zip(crystals, before, strict=True))
    assert all(atoms.calc is None for atoms in crystals)


class Broken(Calculator):
    """NaN forces for gold, a cell that flies apart for nickel, EMT for the rest."""

    implemented_properties = ('energy', 'forces', 'stress')

    def calculate(self, atoms=None, properties=(), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        copy = atoms.copy()
        copy.calc = EMT()
        self.results = {
            'energy': copy.get_potential_energy(),
            'forces': copy.get_forces(),
            'stress': copy.get_stress(),
        }
        if 79 in atoms.numbers:
            self.results['forces'][0, 1] = np.nan
        if 28 in atoms.numbers:
            self.results['stress'][:3] = -50


def test_one_bad_crystal_does_not_spoil_the_others():
    ends = dict(
        relax_batched(enumerate(metals()), batch_potential(Broken()), optimizer=BFGS)
    )
    assert ends[0].converged
    assert not ends[1].converged
    assert ends[1].reason == 'forces is not finite'
    assert not ends[2].converged
    assert 'exploded' in ends[2].reason or 'not converged' in ends[2].reason
    assert all(np.isfinite(end.atoms.positions).all() for end in ends.values())


def test_numbers_that_are_not_finite_undo_the_step_to_them():
    calls = []
    ask = batch_potential(EMT())

    def potential(structures):
        [found] = ask(structures)
        calls.append(structures[0].copy())
        return [found if len(calls) < 4 else found | {'energy': np.nan}]

    [(_, end)] = relax_batched([('a', bulk('Cu', a=3.3))], potential)
    assert (end.converged, end.reason, end.calls) == (False, 'energy is not finite', 4)
    assert end.atoms == calls[-2] != calls[-1]
    assert end.atoms.get_potential_energy() == pytest.approx(ask([calls[-2]])[0]['energy'])


def test_steps_run_out():
    [(_, end)] = relax_batched([('a', bulk('Cu', a=3.3))], batch_potential(EMT()), steps=2)
    assert not end.converged
    assert end.calls == 3
    assert end.reason == 'not converged in 2 steps'
    assert np.isfinite(end.atoms.get_potential_energy())


def slab():
    atoms = fcc111('Cu', (2, 2, 4), a=3.5, vacuum=8)
    atoms.rattle(0.05, seed=1)
    atoms.set_constraint(FixAtoms(range(8)))
    return atoms


def test_each_structure_has_its_own_freedom():
    wanted = {
        'held': (bulk('Cu', a=3.5) * 2, False),
        'free': (bulk('Cu', a=3.5) * 2, True),
        'round': (bulk('Cu', a=3.5) * 2, 'hydrostatic'),
        'along z': (bulk('Cu', a=3.5, cubic=True), [0, 0, 1, 0, 0, 0]),
        'slab': (slab(), False),
        'layer': (slab()[8:], 'in-plane'),
    }
    for atoms, _ in wanted.values():
        atoms.rattle(0.03, seed=2)
    inputs = [(key, atoms) for key, (atoms, _) in wanted.items()]
    ends = dict(
        relax_batched(
            inputs,
            batch_potential(EMT()),
            relax_cell=lambda key: wanted[key][1],
            optimizer=ElasticBFGS,
            fmax=0.01,
        )
    )
    assert all(end.converged for end in ends.values())
    change = {
        key: np.linalg.solve(atoms.cell.array, ends[key].atoms.cell.array)
        for key, (atoms, _) in wanted.items()
    }
    assert np.array_equal(ends['held'].atoms.cell, wanted['held'][0].cell)
    assert np.array_equal(ends['slab'].atoms.cell, wanted['slab'][0].cell)
    assert np.array_equal(ends['slab'].atoms.positions[:8], wanted['slab'][0].positions[:8])
    assert ends['free'].atoms.cell.volume > 1.05 * wanted['free'][0].cell.volume
    assert np.allclose(change['round'], change['round'][0, 0] * np.eye(3))
    assert change['round'][0, 0] > 1.01
    assert np.allclose(change['along z'][:2, :2], np.eye(2))
    assert change['along z'][2, 2] > 1.01
    assert np.array_equal(ends['layer'].atoms.cell[2], wanted['layer'][0].cell[2])
    assert change['layer'][0, 0] != 1


class Fragile:
    """EMT that raises for a batch with silver, and counts its calls."""

    def __init__(self):
        self.ask, self.sizes = batch_potential(EMT()), []

    def __call__(self, structures):
        self.sizes.append(len(structures))
        if any('Ag' in atoms.symbols for atoms in structures):
            raise MemoryError('too large')
        return self.ask(structures)


def test_a_constraint_that_fails_ends_only_its_structure():
    crystals = [bulk('Cu', cubic=True), bulk('Cu', a=3.5)]
    crystals[0].rattle(0.1, seed=0)
    lengths = [[9.5, [0, 1]], [1.0, [0, 1]]]  # of one bond
    crystals[0].set_constraint(FixInternals(bonds=lengths))
    ends = dict(relax_batched(enumerate(crystals), batch_potential(EMT())))
    assert 'FixInternals' in ends[0].reason
    assert ends[0].atoms == crystals[0]
    assert ends[1].converged


def test_the_energy_of_a_constraint_is_counted_once():
    atoms = bulk('Cu', cubic=True)
    atoms.set_constraint(Hookean(0, 1, rt=2.0, k=5.0))
    [(_, end)] = relax_batched([('a', atoms)], batch_potential(EMT()), steps=5)
    alone = end.atoms.copy()
    alone.calc = EMT()
    without = alone.get_potential_energy(apply_constraint=False)
    assert end.atoms.get_potential_energy() == pytest.approx(alone.get_potential_energy())
    assert end.atoms.get_potential_energy() > without + 0.1
    np.testing.assert_allclose(end.atoms.get_forces(), alone.get_forces(), atol=1e-9)


class Shifted(Calculator):
    """A calculator of the user's around another one."""

    implemented_properties = ('energy', 'forces', 'stress')

    def __init__(self, calculator):
        super().__init__()
        self.calculator = calculator

    def calculate(self, atoms=None, properties=(), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        for name in self.implemented_properties:
            self.results[name] = self.calculator.get_property(name, atoms)
        self.results['energy'] += 100


def test_structure_for_which_the_potential_raises_ends_only_itself():
    potential = Fragile()
    crystals = [bulk('Cu', a=3.4 + 0.02 * k) for k in range(9)]
    crystals[4].symbols[:] = 'Ag'
    ends = dict(relax_batched(enumerate(crystals), potential, batch_atoms=9))
    assert [end.converged for end in ends.values()].count(False) == 1
    assert ends[4].reason == 'the potential failed: MemoryError: too large'
    assert ends[4].atoms == crystals[4]
    # The first batch and its halves, of which only those with silver are halved again.
    assert potential.sizes[:8] == [9, 4, 5, 2, 1, 1, 3, 8]


def test_calculator_that_raised_is_not_asked_with_its_old_state():
    inputs = [('Fe', bulk('Fe')), ('Cu', bulk('Cu', a=3.5))]
    ends = dict(relax_batched(inputs, batch_potential(EMT()), batch_atoms=2))
    assert ends['Fe'].reason.startswith('the potential failed: NotImplementedError')
    assert ends['Cu'].converged


def test_structures_keep_their_own_calculators_when_they_are_asked_about():
    atoms = bulk('Cu')
    atoms.calc = own = Bare()
    [found] = batch_potential(EMT())([atoms])
    assert atoms.calc is own
    assert np.isfinite(found['energy'])


def test_without_a_stress_only_positions_relax():
    class NoStress(EMT):
        implemented_properties = ('energy', 'forces')

    fixed = {1}
    ends = dict(
        relax_batched(
            enumerate(metals()[:2]),
            batch_potential(NoStress()),
            relax_cell=lambda k: k not in fixed,
        )
    )
    assert 'gives no stress' in ends[0].reason
    assert ends[1].converged


def test_calculator_that_lists_no_properties_is_used():
    inputs = [('Fe', bulk('Fe')), ('Cu', bulk('Cu', a=3.5))]
    ends = dict(relax_batched(inputs, batch_potential(Bare()), batch_atoms=2))
    assert ends['Fe'].reason.startswith('the potential failed: NotImplementedError')
    assert ends['Cu'].converged


@pytest.mark.filterwarnings('ignore:invalid value')
@pytest.mark.parametrize('relax_cell', [True, False, 'in-plane'])
def test_cells_that_are_no_cells_are_never_evaluated(relax_cell):
    nan = bulk('Cu')
    nan.positions[0] = np.nan
    bad = {
        'zero': Atoms('Cu', pbc=True),
        'flat': Atoms('Cu', cell=[900, 900, 0.01], pbc=True),
        'dense': Atoms('H20', cell=[1.5, 1.5, 1.5], pbc=True),
        'nan': nan,
        'empty': Atoms(cell=[3, 3, 3], pbc=True),
    }
    inputs = [*bad.items(), ('good', slab())]
    potential = batch_potential(EMT())
    ends = dict(relax_batched(inputs, potential, relax_cell=relax_cell, steps=3))
    assert set(ends) == {*bad, 'good'}
    for key in bad:
        assert not ends[key].converged
        assert ends[key].reason
        assert ends[key].calls == 0
    assert ends['good'].calls == 4


@pytest.fixture(scope='module', params=['m3gnet', 'tensornet', 'chgnet'])
def calculator(request):
    if request.param == 'chgnet':
        pytest.importorskip('chgnet', reason="pip install 'ase-deeprelax[chgnet]'")
        return get_calculator('chgnet')
    pytest.importorskip('matgl', reason="pip install 'ase-deeprelax[matgl]'")
    folder = {'m3gnet': M3GNET, 'tensornet': TENSORNET}[request.param]
    if not folder.exists():
        pytest.skip('the shared potentials are not beside the project')
    return get_calculator(f'{request.param}:{folder.resolve()}')


def test_batch_says_what_the_calculator_says(calculator):
    crystals = [
        bulk('NaCl', 'rocksalt', a=5.6),
        bulk('Si', a=5.5, cubic=True),
        bulk('GaAs', 'zincblende', a=5.7),
    ]
    for k, atoms in enumerate(crystals):
        atoms.rattle(0.05, seed=k)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.02 * k), scale_atoms=True)
    left = crystals[-1].copy()
    left.set_cell(left.cell.array[[1, 0, 2]])
    crystals.append(left)
    potential = batch_potential(calculator)
    together = potential(crystals)
    [alone] = potential(crystals[:1])
    assert alone['energy'] == pytest.approx(together[0]['energy'], abs=1e-3)
    for atoms, found in zip(crystals, together, strict=True):
        atoms.calc = calculator
        assert found['energy'] == pytest.approx(atoms.get_potential_energy(), abs=1e-3)
        assert np.allclose(found['forces'], atoms.get_forces(), atol=2e-4)
        assert np.allclose(found['stress'], atoms.get_stress(), atol=2e-5)
        assert found['stress'].shape == (6,)
    assert np.allclose(together[-1]['stress'], together[-2]['stress'], atol=2e-5)


def test_a_calculator_around_a_potential_is_asked_itself(calculator):
    copper = bulk('Cu')
    [own] = batch_potential(calculator)([copper])
    [found] = batch_potential(Shifted(calculator.calculator))([copper])
    assert found['energy'] == pytest.approx(own['energy'] + 100, abs=1e-2)
    # And that of the package as well as the one that was made of it.
    [bare] = batch_potential(calculator.calculator)([copper])
    assert bare['energy'] == pytest.approx(own['energy'], abs=1e-4)
    assert isinstance(bare['energy'], float)


def test_elements_that_a_potential_does_not_know_end_only_their_structure(calculator):
    inputs = enumerate([bulk('Po', 'sc', a=3.35), bulk('Cu')])
    ends = dict(relax_batched(inputs, batch_potential(calculator)))
    assert 'atom 0 (Po)' in ends[0].reason
    assert 'was not trained on Po' in ends[0].reason
    assert ends[1].converged


def test_layers_are_no_molecules(calculator):
    """Whatever pbc says along the vacuum, and however small the box is."""
    layer = mx2('MoS2', vacuum=8)
    layer.rattle(0.05, seed=0)
    box = layer.copy()
    box.pbc = True
    tight = layer.copy()
    tight.cell[2, 2] = 4.0
    potential = batch_potential(calculator)
    open_, closed, small = potential([layer, box, tight])
    for found in (open_, small):
        assert found['energy'] == pytest.approx(closed['energy'], abs=1e-4)
        assert np.allclose(found['forces'], closed['forces'], atol=1e-4)
    virial = closed['stress'] * box.cell.volume
    assert np.allclose(open_['stress'] * layer.cell.volume, virial, atol=1e-3)
    assert np.allclose(small['stress'] * tight.cell.volume, virial, atol=1e-3)
    for atoms, found in ((layer, open_), (tight, small)):
        atoms.calc = calculator
        assert atoms.get_potential_energy() == pytest.approx(found['energy'], abs=1e-3)
        assert np.allclose(atoms.get_forces(), found['forces'], atol=2e-4)
        assert np.allclose(atoms.get_stress(), found['stress'], atol=2e-5)
