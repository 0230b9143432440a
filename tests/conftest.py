"""What the whole test folder shares."""

from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import torch
from ase.build import bulk
from hypothesis import settings


def import_gpaw():
    """Leave ``np.empty`` as it is: under pytest GPAW replaces it for the whole process by
    one full of NaN, which matplotlib, for one, does not survive.
    """
    originals = np.empty, np.empty_like
    with suppress(ImportError):
        import gpaw  # noqa: F401
    np.empty, np.empty_like = originals


import_gpaw()

# How long an example takes says how busy the machine is, not whether the code is right. The
# examples are the same in each run; `pytest --hypothesis-profile=search` looks for others.
settings.register_profile('any-machine', deadline=None, derandomize=True)
settings.register_profile('search', deadline=None)
settings.load_profile('any-machine')

ELEMENTS = list(range(1, 95))
# Marks of ASE's own tests, which run here with our class; `make test-fast` leaves out slow.
MARKS = ('optimize: tests of optimizers', 'slow: test takes longer than a few seconds')
# Tests that train, run potentials or DFT, drive a browser, or start many processes.
SLOW = (
    'cli/',
    'compare/',
    'faults/test_chains.py',
    'faults/test_extreme_cells.py',
    'integration/',
    'models/test_baselines.py',
    'models/test_compiled.py',
    'models/test_conformance.py',
    'optimize/test_chain.py',
    'optimize/test_elastic_bfgs.py',
    'predict/test_forks.py',
    'regression/',
    'report/',
    'screening/test_devices.py',
    'screening/test_executors.py',
    'screening/test_faults.py',
    'screening/test_slurm.py',
    'test_import.py',
    'test_site.py',
    'test_tutorials.py',
    'train/',
)


@pytest.fixture
def largest_file():
    """Within it no file gets larger than so many bytes, as on a disk that gets full.

    It ends before the test does: what pytest prints may go to a larger file.
    """
    resource = pytest.importorskip('resource')

    @contextmanager
    def largest_file(size):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return largest_file


def pytest_configure(config):
    for mark in MARKS:
        config.addinivalue_line('markers', mark)


def pytest_collection_modifyitems(items):
    folder = Path(__file__).parent
    for item in items:
        ours = item.path.is_relative_to(folder)
        if ours and item.path.relative_to(folder).as_posix().startswith(SLOW):
            item.add_marker('slow')


@pytest.fixture(autouse=True)
def _same_random_numbers():
    """Models that a test makes are the same in every run, and in every order of tests."""
    torch.manual_seed(0)


@pytest.fixture(scope='module')
def one_thread():
    """Sums that several threads take differ in their last digits from run to run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='session')
def tiny_model(tmp_path_factory):
    """Folder of a small real network, untrained, that moves atoms and cell by a little."""
    from ase_deeprelax.models import create_model
    from ase_deeprelax.models.store import save_model
    from ase_deeprelax.predict import relax
    from ase_deeprelax.testing import awaken

    folder = tmp_path_factory.mktemp('models') / 'tiny'
    torch.manual_seed(0)
    model = awaken(create_model('paegnn', hidden=16, layers=2))
    atoms = bulk('MgO', 'rocksalt', a=4.3) * (2, 1, 1)
    atoms.rattle(0.08, seed=1)
    said = relax(atoms, model=model)
    shear = np.abs(said.deformation - np.eye(3) * np.trace(said.deformation) / 3).max()
    model.displacement.gates[-1].weight.data *= 0.05 / said.dmax
    model.lattice.tensors.weight.data *= 0.005 / shear
    save_model(model, folder, {'elements': ELEMENTS})
    return folder


@pytest.fixture
def one_shot(tiny_model):
    """The optimizer with an untrained model, whose moves are kept all the same; silent."""
    from ase_deeprelax.optimize.optimizer import DeepRelaxOptimizer

    return partial(DeepRelaxOptimizer, model=tiny_model, logfile=None, energy_gate=None)


@pytest.fixture(scope='session')
def calibrated_model(tiny_model, tmp_path_factory):
    """The same network with made-up errors, of all kinds of structures and of EMT."""
    from ase_deeprelax.geometry.degrees_of_freedom import KINDS
    from ase_deeprelax.models import calibration, store

    folder = tmp_path_factory.mktemp('models') / 'calibrated'
    copytree(tiny_model, folder)
    law = calibration.ErrorLaw(1.0, dict.fromkeys(KINDS, 0.1), dict.fromkeys(KINDS, 2.0))
    calibration.Calibration(
        fitted_on=[],
        laws=dict.fromkeys(calibration.QUANTITIES, law),
        environments=calibration.Environments(np.zeros(16), np.eye(16)),
        potentials={'emt': {'bulk': calibration.PotentialErrors(guide=0.02, step=0.02)}},
    ).save(folder, store.load_model(folder).sha256)
    return folder
