"""ASE's own tests, from the installed ``ase.test``, with our class in place of theirs.

Each test function and fixture is ASE's; only the optimizer classes it names are replaced,
and where a prediction is possible twice: with predictions that are gated on energy, and
with predictions that are always kept (from an untrained network, so that the refinement
starts from a worse structure).
"""

import importlib
import types
from functools import partial

import pytest
from ase.calculators.emt import EMT
from ase.optimize import BFGS

from ase_deeprelax.optimize import accessor
from ase_deeprelax.optimize.optimizer import DeepRelaxOptimizer

pytestmark = [
    pytest.mark.filterwarnings('ignore:relaxed without a prediction'),
    pytest.mark.filterwarnings('ignore:.*outside the training range'),
    pytest.mark.filterwarnings('ignore::DeprecationWarning'),
]

# Where ASE's tests pass options of the class that we stand in for.
FOREIGN = {'dt', 'precon'}
Fixture = type(pytest.fixture(lambda: None))


class Gated(DeepRelaxOptimizer):
    folder = None
    gate = 0.0

    def __init__(self, atoms, restart=None, alpha=None, **kwargs):
        options = {key: value for key, value in kwargs.items() if key not in FOREIGN}
        super().__init__(
            atoms,
            restart,
            model=self.folder,
            energy_gate=self.gate,
            optimizer=partial(BFGS, alpha=alpha),
            **options,
        )


class Ungated(Gated):
    gate = None


BOTH = (Gated, Ungated)


def adopt(path, names, *, replace=(), argument=None, classes=(Gated,)):
    """A test class with ASE's tests and fixtures.

    ``replace``: names in ASE's module that stand for an optimizer; ``argument``: that of
    parametrized tests; ``classes``: what takes its place.
    """
    module = importlib.import_module(f'ase.test.{path}')

    def ours(self, request, monkeypatch, tiny_model):
        monkeypatch.setattr(Gated, 'folder', tiny_model)
        for name in replace:
            monkeypatch.setattr(module, name, request.param)
        return request.param

    members = {
        'ours': pytest.fixture(ours, autouse=True, params=classes),
        'optcls': pytest.fixture(lambda self, ours: ours),
    }
    for key, value in vars(module).items():
        if isinstance(value, Fixture) and key != 'fixture_optcls':
            members[key] = _Plain(value)
    for name in names:
        members[name] = staticmethod(_without(getattr(module, name), argument))
    if argument is not None:
        members[argument] = pytest.fixture(lambda self, ours: ours)
    return type(f'Test_{path.rpartition("test_")[2]}', (), members)


class _Plain:
    """A fixture in a class that does not take the class's instance."""

    def __init__(self, fixture):
        self.fixture = fixture

    def __get__(self, instance, owner=None):
        return self.fixture


def _without(test, argument):
    """The test, without its own list of optimizer classes."""
    clone = types.FunctionType(
        test.__code__, test.__globals__, test.__name__, test.__defaults__, test.__closure__
    )
    marks = getattr(test, 'pytestmark', [])
    clone.pytestmark = [
        m for m in marks if m.name != 'parametrize' or m.args[0] != argument
    ]
    return clone


@pytest.fixture(autouse=True)
def installed():
    accessor.install()


@pytest.fixture
def testdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def asap3():
    """ASE's own EMT in place of the one of that package."""
    return types.SimpleNamespace(EMT=EMT)


TestOptimizers = adopt(
    'optimize.test_optimizers',
    ['test_optimize', 'test_unconverged', 'test_run_twice', 'test_path'],
    classes=BOTH,
)
TestStepwise = adopt(
    'optimize.test_optimize_stepwise',
    ['test_irun_start', 'test_attach_trajectory'],
    replace=['BFGS'],
    classes=BOTH,
)
TestNsteps = adopt('optimize.test_nsteps', ['test_nsteps'], replace=['BFGS'], classes=BOTH)
TestRestart = adopt(
    'optimize.test_restart',
    ['test_path_restart', 'test_none_restart', 'test_bad_restart'],
    replace=['BFGS'],
    classes=BOTH,
)
TestOptimizerRestart = adopt(
    'optimize.test_optimizer_restart',
    ['test_optimizers_restart'],
    replace=['BFGS'],
    argument='opt',
    classes=BOTH,
)
TestReplay = adopt('optimize.test_replay', ['test_replay'])
TestMaxstep = adopt('optimize.test_maxstep', ['test_mdmin_maxstep'], replace=['MDMin'])
TestLog = adopt(
    'md.test_md_logger_interval',
    ['test_optimization_log_and_trajectory_length'],
    argument='cls',
)
TestFixAtoms = adopt('constraints.test_fixatoms', ['test_fixatoms'])
TestFixedLinePlane = adopt(
    'constraints.test_fixedline_fixedplane',
    [
        'test_valid_inputs_indices',
        'test_constrained_optimization_fixedline',
        'test_constrained_optimization_fixedplane',
    ],
    replace=['BFGS'],
)
TestFixSymmetry = adopt(
    'constraints.test_fix_symmetry',
    [
        'test_as_dict',
        'test_no_symmetrization',
        'test_no_sym_rotated',
        'test_sym_adj_cell',
        'test_sym_rot_adj_cell',
        'test_fix_symmetry_shuffle_indices',
    ],
    replace=['PreconLBFGS'],
)
TestFixCom = adopt(
    'constraints.test_fixcom', ['test_center_of_mass_position'], replace=['BFGS']
)
TestFixSubsetCom = adopt(
    'constraints.test_fixsubsetcom', ['test_center_of_mass_position'], replace=['BFGS']
)
TestMirror = adopt('constraints.test_mirror', ['test_mirror'], replace=['FIRE'])
TestFixCartesian = adopt(
    'constraints.test_fixcartesian', ['test_fixcartesian_misc', 'test_fixcartesian_adjust']
)
TestNegativeIndex = adopt('constraints.test_negativeindex', ['test_negativeindex'])
TestPressure = adopt('filter.test_cellfilter', ['test_pressure'], replace=['LBFGS'])
TestCellFilter = adopt(
    'filter.test_cellfilter',
    ['test_constant_volume', 'test_unitcellfilter', 'test_unitcellfilter_hcp'],
    replace=['LBFGS', 'MDMin'],
    classes=BOTH,
)
TestFilter = adopt('filter.test_filter', ['test_filter'], replace=['QuasiNewton'])
TestStrain = adopt(
    'filter.test_strain',
    ['test_strain_fcc', 'test_strain_hcp'],
    replace=['MDMin'],
    classes=BOTH,
)
TestStrainEMT = adopt(
    'filter.test_strain_emt', ['test_strain_emt'], replace=['MDMin'], classes=BOTH
)
TestInfoCopy = adopt('atoms.test_atoms_info_copy', ['test_atoms_info_copy'])
