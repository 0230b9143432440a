"""Many structures shared by processes: the answers are those of one process."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, mx2
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.db import connect
from ase.filters import FrechetCellFilter
from pymatgen.io.ase import AseAtomsAdaptor

from ase_deeprelax.errors import ConfigError, ModelError, StructureError
from ase_deeprelax.models import create_model
from ase_deeprelax.models.paegnn import PaEGNN
from ase_deeprelax.models.store import load_model, save_model
from ase_deeprelax.predict import Predictor, relax
from ase_deeprelax.predict.parallel import AHEAD
from ase_deeprelax.predict.stream import relax_windows
from ase_deeprelax.testing import awaken, symmetric_crystals
from ase_deeprelax.testing.predictions import BATCH_TOLERANCE

SCRIPT = """
from ase.build import bulk
from ase_deeprelax import relax
sizes = [3.5, 3.6, 3.7] * 50  # no "if __name__ == '__main__'"
found = relax([bulk('Cu', a=a) for a in sizes], {model!r}, device='cpu', workers=2)
assert [result.initial.cell[0, 1] for result in found] == [a / 2 for a in sizes]
"""


KILLED = """
import fcntl, os, signal
from ase.build import bulk
from ase_deeprelax import relax
from ase_deeprelax.models.paegnn import PaEGNN

class Holder(PaEGNN):
    def forward(self, graph):
        if not hasattr(os, 'held'):
            os.held = open(f'{os.getpid()}.worker', 'w')
            fcntl.flock(os.held, fcntl.LOCK_EX)
        return super().forward(graph)

relax([bulk('Cu')] * 9, Holder(hidden=16, layers=1), device='cpu', workers=2)
os.kill(os.getpid(), signal.SIGKILL)
"""


class Unsendable(EMT):
    """A calculator that is bound to its process."""

    def __reduce__(self):
        raise TypeError('this calculator stays here')


class Mine(PaEGNN):
    """A network that another process cannot import."""


class Witness(PaEGNN):
    """A network that writes down how many structures it is given at once."""

    path = ''

    def forward(self, graph):
        with Path(self.path).open('a') as file:
            file.write(f'{graph.n_graphs}\n')
        return super().forward(graph)


class Doomed(PaEGNN):
    """A network whose process is killed, as where the memory runs out."""

    def forward(self, graph):
        os._exit(9)


class Odd(Atoms):
    """A subclass that cannot be copied."""

    def __init__(self):
        super().__init__(bulk('Cu'))


class Torn(Atoms):
    """A subclass that is lost on its way to another process."""

    def __setstate__(self, state):
        raise TypeError('this structure stays where it was made')

    def copy(self):
        return self


@pytest.fixture
def mixture():
    """More structures than two windows hold: crystals, layers, filters, and bad ones."""
    fixed = bulk('MgO', 'rocksalt', a=4.3) * (2, 1, 1)
    fixed.set_constraint(FixAtoms([0]))
    copper = bulk('Cu', a=3.8)
    copper.calc = Unsendable()
    held = FrechetCellFilter(copper.copy(), mask=[1, 1, 0, 0, 0, 0])
    held.atoms.calc = Unsendable()
    layer = mx2('MoS2', vacuum=8)
    layer.pbc = True
    bad = [Atoms(), None, Atoms('H', cell=[3, 3, 0], pbc=True)]
    return [*symmetric_crystals(140, seed=3), fixed, copper, held, layer, *bad]


def assert_same(one, other):
    assert len(one) == len(other)
    tolerance = BATCH_TOLERANCE['float32']
    for a, b in zip(one, other, strict=True):
        assert (a.ok, a.problem, a.ood, a.kind) == (b.ok, b.problem, b.ood, b.kind)
        assert a.initial == b.initial
        np.testing.assert_allclose(a.atoms.positions, b.atoms.positions, atol=tolerance)
        np.testing.assert_allclose(a.atoms.cell.array, b.atoms.cell.array, atol=tolerance)
        assert a.atoms.info.keys() == b.atoms.info.keys()


def test_processes_answer_as_one(calibrated_model, mixture):
    predictor = Predictor(calibrated_model, device='cpu')
    predictor.max_passes = 2
    expected = predictor.relax(mixture)
    assert [result.ok for result in expected[-7:]] == [True] * 4 + [False] * 3
    assert_same(expected, predictor.relax(mixture, workers=2))
    assert_same(expected, predictor.relax(iter(mixture), workers=-1))
    assert mixture[141].calc is not None
    assert all(seconds > 0 for seconds in predictor.timings.values())


def test_what_is_held_is_held_in_processes_too(tiny_model):
    crystals = symmetric_crystals(70)
    for result in relax(crystals, tiny_model, relax_cell=False, workers=2):
        np.testing.assert_array_equal(result.atoms.cell.array, result.initial.cell.array)


def one_object_again_and_again():
    """Crystals of different volumes, each written into the same object."""
    atoms = bulk('Cu')
    held = FrechetCellFilter(bulk('Cu'))
    structure = AseAtomsAdaptor.get_structure(bulk('Cu'))
    for a in np.linspace(3.4, 3.9, 6):
        cell = bulk('Cu', a=a).cell.array
        atoms.set_cell(cell, scale_atoms=True)
        held.atoms.set_cell(cell, scale_atoms=True)
        structure.lattice = cell
        yield from (atoms, held, structure)


@pytest.mark.parametrize('workers', [1, 2])
def test_a_structure_counts_as_it_is_when_the_iterable_gives_it(tiny_model, workers):
    results = relax(one_object_again_and_again(), tiny_model, workers=workers)
    volumes = [result.initial.cell.volume for result in results]
    expected = np.repeat(np.linspace(3.4, 3.9, 6) ** 3 / 4, 3)
    np.testing.assert_allclose(volumes, expected, rtol=1e-6)


def test_rows_of_a_database_are_shared(tiny_model, tmp_path, monkeypatch):
    """SQLite gives rows only to the thread that asked for the first one."""
    monkeypatch.setattr('ase_deeprelax.predict.parallel.WINDOW_OF_WORKER', 1)
    sizes = np.linspace(3.5, 3.7, 30)
    with connect(tmp_path / 'copper.db') as database:
        for a in sizes:
            database.write(bulk('Cu', a=a))
    rows = (row.toatoms() for row in database.select())
    results = relax(rows, tiny_model, workers=2)
    assert [one.initial.cell[0, 1] for one in results] == (sizes / 2).tolist()


@pytest.mark.parametrize('before', [0, 1, 20])
def test_an_error_of_the_iterable_is_never_lost(tiny_model, before, monkeypatch):
    monkeypatch.setattr('ase_deeprelax.predict.parallel.WINDOW_OF_WORKER', 2)

    def torn():
        for _ in range(before):
            yield bulk('Cu')
        raise OSError('the disk is gone')

    with pytest.raises(OSError, match='the disk is gone'):
        relax(torn(), tiny_model, workers=2)


def test_the_input_is_read_as_a_stream(tiny_model, monkeypatch):
    monkeypatch.setattr('ase_deeprelax.predict.parallel.WINDOW_OF_WORKER', 3)
    taken = []

    def crystals():
        for a in np.linspace(3.5, 3.7, 90):
            taken.append(a)
            yield bulk('Cu', a=a)

    with closing(relax_windows(Predictor(tiny_model), crystals(), workers=2)) as windows:
        for done, (results, _) in enumerate(windows, 1):
            assert [one.initial.cell[0, 1] for one in results] == [
                a / 2 for a in taken[3 * done - 3 : 3 * done]
            ]
            assert len(taken) <= 3 * (done + 2 * AHEAD)
    assert (len(taken), done) == (90, 30)


def test_large_arrays_come_back_as_they_were(tiny_model):
    atoms = bulk('Cu')
    atoms.info['spectrum'] = np.ones(400_000)
    [one, _] = relax([atoms, atoms], tiny_model, workers=2)
    one.atoms.info['spectrum'] += 1


def test_errors_name_the_place_in_the_list(tiny_model, mixture):
    with pytest.raises(StructureError, match='structure 144: 0 atoms'):
        relax(mixture, tiny_model, workers=2, on_bad='raise')
    assert len(relax(mixture[:3], tiny_model, workers=2)) == 3


def test_an_error_of_one_call_does_not_end_the_next_one(tiny_model, monkeypatch):
    """What the first call left open may be cleared away at any time."""
    monkeypatch.setattr('ase_deeprelax.predict.parallel.WINDOW_OF_WORKER', 1)
    crystals, errors = symmetric_crystals(20), []
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        try:
            relax([Atoms(), *crystals], tiny_model, workers=2, on_bad='raise')
        except StructureError as error:
            errors.append(error)

    def forgetful():
        yield from crystals[:5]
        errors.pop()
        gc.collect()
        yield from crystals[5:]

    assert len(relax(forgetful(), tiny_model, workers=2)) == len(crystals)


def test_a_model_in_memory_goes_along():
    torch.manual_seed(0)
    model = awaken(Mine(hidden=16, layers=1), scale=0.3)
    crystals = symmetric_crystals(70)
    assert_same(relax(crystals, model), relax(crystals, model, workers=2))


def test_few_structures_are_shared_too(tmp_path):
    model = awaken(Witness(hidden=16, layers=1), scale=0.3)
    model.path = str(tmp_path / 'seen')
    crystals = symmetric_crystals(9)
    results = relax(crystals, model, workers=2)
    assert [one.initial for one in results] == crystals
    assert sorted((tmp_path / 'seen').read_text().split()) == ['4', '5']


def test_a_structure_that_cannot_be_copied_fails_alone(tiny_model):
    mixed = [*symmetric_crystals(70), Odd()]
    expected = relax(mixed, tiny_model)
    assert [one.ok for one in expected] == [True] * 70 + [False]
    assert_same(expected, relax(mixed, tiny_model, workers=2))


def test_a_killed_process_is_an_error_that_says_what_to_do():
    with pytest.raises(ConfigError, match=r'one of 2 workers was killed.*use fewer'):
        relax(symmetric_crystals(4), Doomed(hidden=16, layers=1), workers=2)


def test_workers_end_with_a_process_that_was_killed(tmp_path):
    fcntl = pytest.importorskip('fcntl')
    script = tmp_path / 'script.py'
    script.write_text(KILLED)
    done = subprocess.run([sys.executable, script], cwd=tmp_path, timeout=200, check=False)
    assert done.returncode == -signal.SIGKILL
    held = list(tmp_path.glob('*.worker'))
    assert held
    for path in held:
        with path.open() as file:
            for _ in range(60):
                with suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(0.5)
            else:
                raise AssertionError(f'{path} is still held by a worker')


def test_a_script_needs_no_main_guard(tiny_model, tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT.format(model=str(tiny_model)))
    subprocess.run([sys.executable, script], cwd=tmp_path, check=True, timeout=200)


def test_a_relative_folder_is_found_from_other_places(tiny_model, tmp_path, monkeypatch):
    relax(symmetric_crystals(70), tiny_model, workers=2)  # the processes start here
    shutil.copytree(tiny_model, tmp_path / 'mine')
    monkeypatch.chdir(tmp_path)
    assert all(result.ok for result in relax(symmetric_crystals(70), 'mine', workers=2))


def test_a_model_that_was_trained_again_is_not_mixed_in(tiny_model, tmp_path):
    folder = tmp_path / 'mine'
    shutil.copytree(tiny_model, folder)
    predictor = Predictor(folder, device='cpu')
    save_model(create_model('paegnn', hidden=16, layers=1), folder, load_model(folder).card)
    with pytest.raises(ModelError, match='was changed while it was in use'):
        predictor.relax(symmetric_crystals(70), workers=2)


@pytest.mark.parametrize('workers', [0, -2, 1.5, '2', True])
def test_the_number_of_processes_is_checked(tiny_model, workers):
    for structures in (bulk('Cu'), [bulk('Cu')]):
        with pytest.raises(ConfigError, match=f'workers is {workers!r}'):
            relax(structures, tiny_model, workers=workers)


def test_one_structure_needs_no_other_process(tiny_model):
    atoms = Torn(bulk('Cu'))  # which would be lost on its way there
    assert relax(atoms, tiny_model, workers=2).ok
    assert relax([atoms], tiny_model, workers=2)[0].ok


def test_what_cannot_be_sent_is_said(tiny_model):
    atoms = bulk('Cu')
    atoms.info['lock'] = threading.Lock()
    with pytest.raises(ConfigError, match=r'stored in a structure.*use workers=1'):
        relax([*symmetric_crystals(140), atoms], tiny_model, workers=2)
    with pytest.raises(ConfigError, match='cannot be sent to another process'):
        relax([FrechetCellFilter(atoms)] * 3, tiny_model, workers=2)
    with pytest.raises(ConfigError, match='cannot be sent to another process'):
        relax([Torn(bulk('Cu'))] * 3, tiny_model, workers=2)
