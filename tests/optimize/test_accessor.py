"""``atoms.optimizer = DeepRelaxOptimizer()``."""

import copy
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from ase_deeprelax.errors import DeepRelaxWarning
from ase_deeprelax.optimize import accessor
from ase_deeprelax.optimize.optimizer import DeepRelaxOptimizer


@pytest.fixture(autouse=True)
def installed():
    accessor.install()
    yield
    accessor.install()


@pytest.fixture
def optimizer(tiny_model):
    return DeepRelaxOptimizer(model=tiny_model, logfile=None)


def rocksalt():
    atoms = bulk('MgO', 'rocksalt', a=4.3) * (2, 1, 1)
    atoms.rattle(0.08, seed=1)
    return atoms


def test_the_line_the_project_exists_for(optimizer):
    atoms = rocksalt()
    start = atoms.copy()
    atoms.optimizer = optimizer
    assert atoms.optimizer is optimizer
    assert atoms.optimizer.run() is True
    assert atoms.info['deeprelax_sigma'] > 0
    assert not np.array_equal(atoms.positions, start.positions)
    assert not np.array_equal(atoms.cell.array, start.cell.array)


def test_with_calculator_cell_and_positions_are_refined(optimizer):
    atoms = bulk('Au', a=4.2) * (2, 1, 1)
    atoms.rattle(0.05, seed=0)
    atoms.calc = EMT()
    atoms.optimizer = optimizer
    assert atoms.optimizer.run(fmax=0.02) is True
    assert np.abs(atoms.get_stress()).max() < 2e-3


def test_absent_until_assigned(optimizer):
    atoms = rocksalt()
    assert not hasattr(atoms, 'optimizer')
    assert getattr(atoms, 'optimizer', None) is None
    with pytest.raises(AttributeError, match='DeepRelaxOptimizer'):
        atoms.optimizer  # noqa: B018
    with pytest.raises(AttributeError):
        del atoms.optimizer
    atoms.optimizer = optimizer
    del atoms.optimizer
    assert not hasattr(atoms, 'optimizer')
    assert optimizer.atoms is None


def test_never_shared_between_atoms(optimizer):
    first, second = rocksalt(), rocksalt()
    first.optimizer = optimizer
    second.optimizer = optimizer
    assert second.optimizer is not first.optimizer
    assert second.optimizer.atoms is second
    assert first.optimizer.atoms is first
    first.optimizer.run()
    assert not np.array_equal(first.positions, second.positions)
    second.optimizer = first.optimizer
    assert second.optimizer.nsteps == 0
    second.optimizer.run()
    assert np.array_equal(first.positions, second.positions)
    first.optimizer = first.optimizer
    assert first.optimizer is optimizer


def test_never_shared_between_threads(tiny_model):
    class Slow(DeepRelaxOptimizer):
        def _start(self, atoms):
            time.sleep(0.2)
            super()._start(atoms)

    optimizer = Slow(model=tiny_model, logfile=None)
    structures = [rocksalt() for _ in range(3)]
    with ThreadPoolExecutor(3) as executor:
        bound = list(executor.map(optimizer.bind, structures))
    for atoms, one in zip(structures, bound, strict=True):
        assert one.atoms is atoms


def test_a_filter_around_the_atoms_stays(tiny_model):
    atoms = rocksalt()
    held = atoms.cell.array[:, 2].copy()
    target = FrechetCellFilter(atoms, mask=[1, 1, 0, 0, 0, 1])
    atoms.optimizer = DeepRelaxOptimizer(target, model=tiny_model, logfile=None)
    assert atoms.optimizer.atoms is target
    twins = [copy.deepcopy(atoms), pickle.loads(pickle.dumps(atoms))]
    for one in (atoms, *twins):
        assert one.optimizer.run(one) is True
        np.testing.assert_allclose(one.cell.array[:, 2], held, rtol=0, atol=1e-9)
        assert not np.allclose(one.cell.array, rocksalt().cell.array, atol=1e-4)


def test_a_copy_for_other_atoms_says_that_it_leaves_the_filter(tiny_model):
    first, second = rocksalt(), rocksalt()
    target = FrechetCellFilter(first, mask=[1, 1, 0, 0, 0, 1])
    optimizer = DeepRelaxOptimizer(target, model=tiny_model, logfile=None)
    with pytest.warns(DeepRelaxWarning, match='FrechetCellFilter .* relax_cell='):
        second.optimizer = optimizer
    assert second.optimizer.atoms is second
    assert optimizer.atoms is target


def test_what_takes_it_along(optimizer):
    atoms = rocksalt()
    atoms.optimizer = optimizer
    for without in (atoms.copy(), atoms * 2, atoms[:2], Atoms(atoms)):
        assert not hasattr(without, 'optimizer')
    for twin in (copy.deepcopy(atoms), pickle.loads(pickle.dumps(atoms))):
        assert twin.optimizer.atoms is twin
        assert twin.optimizer.run() is True
    assert atoms.optimizer.nsteps == 0


def test_other_optimizers_may_hang_on_atoms(optimizer):
    atoms = bulk('Cu')
    atoms.calc = EMT()
    other = BFGS(atoms, logfile=None)
    atoms.optimizer = other
    assert atoms.optimizer is other
    with pytest.raises(TypeError, match=r'DeepRelaxOptimizer\(\)'):
        atoms.optimizer = DeepRelaxOptimizer


def test_uninstall(optimizer):
    atoms = rocksalt()
    atoms.optimizer = optimizer
    accessor.install()
    accessor.uninstall()
    accessor.uninstall()
    assert 'optimizer' not in vars(Atoms)
    assert atoms.optimizer is optimizer  # an ordinary attribute now
    plain = rocksalt()
    plain.optimizer = 'anything'
    assert plain.optimizer == 'anything'


def test_a_foreign_attribute_is_left_alone(monkeypatch):
    accessor.uninstall()
    monkeypatch.setattr(Atoms, 'optimizer', 'theirs', raising=False)
    with pytest.warns(UserWarning, match='theirs'):
        accessor.install()
    assert Atoms.optimizer == 'theirs'
    accessor.uninstall()
    assert Atoms.optimizer == 'theirs'


def test_import_alone_installs_it_without_torch():
    code = (
        'import sys, ase_deeprelax; from ase import Atoms; '
        'print("optimizer" in vars(Atoms), "torch" in sys.modules)'
    )
    said = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True)
    assert said.stdout.split() == [b'True', b'False']
