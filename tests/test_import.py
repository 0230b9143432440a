import os
import subprocess
import sys
from pathlib import Path

import pytest

import ase_deeprelax

ROOT = Path(ase_deeprelax.__file__).parents[1]
HEAVY = ('torch', 'torch_geometric', 'pymatgen', 'spglib', 'lightning', 'typer', 'scipy')


def python(code):
    """Output of a fresh interpreter that sees this package."""
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-c', code]
    done = subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout.split()


def test_import_is_light():
    code = (
        'import sys, ase; before = set(sys.modules); import ase_deeprelax; '
        'print(*{name.split(".")[0] for name in set(sys.modules) - before})'
    )
    loaded = python(code)
    assert not set(loaded) & set(HEAVY)
    ours = python(
        'import sys, ase_deeprelax; '
        'print(*(n for n in sys.modules if n.startswith("ase_deeprelax.")))'
    )
    rooms = ('errors', 'optimize', 'optimize.accessor')
    assert set(ours) == {f'ase_deeprelax.{name}' for name in rooms}


PREDICT = 'from ase.build import bulk; import ase_deeprelax; atoms = bulk("Cu"); '
BY_FUNCTION = PREDICT + 'ase_deeprelax.relax(atoms); '
BY_OPTIMIZER = (
    PREDICT + 'ase_deeprelax.DeepRelaxOptimizer(atoms, logfile=None).run(steps=1); '
)


@pytest.mark.parametrize('use', [BY_FUNCTION, BY_OPTIMIZER], ids=['relax', 'optimizer'])
def test_a_prediction_needs_no_heavy_package_but_torch(use):
    loaded = python(use + 'import sys; print(*{n.split(".")[0] for n in sys.modules})')
    unneeded = ('torch_geometric', 'pymatgen', 'lightning', 'typer', 'pandas', 'sympy')
    assert 'torch' in loaded
    assert not set(loaded) & set(unneeded)


def test_labels_need_no_training_tools():
    loaded = python('import sys, ase_deeprelax.train.label; print(*sys.modules)')
    assert not set(loaded) & {'lightning', 'pydantic', 'tensorboard', 'yaml'}


def seconds(code, n=3):
    """The least time that a processor spends on it in a fresh interpreter, of several."""
    times = []
    for _ in range(n):
        before = os.times()
        python(code)
        after = os.times()
        times.append(sum(after[2:4]) - sum(before[2:4]))
    return min(times)


def test_the_first_prediction_is_there_soon_after_torch():
    """ASE's optimizers import parts of SciPy, a third of the time of torch; ours little."""
    torch, both = seconds('import torch'), seconds('import torch, ase.optimize')
    taken = seconds(BY_OPTIMIZER)
    assert taken < 1.45 * both
    assert taken < 2 * torch


def test_import_changes_nothing_but_the_accessor():
    code = (
        'import os, torch, ase; env = dict(os.environ); names = set(vars(ase.Atoms)); '
        'dtype = torch.get_default_dtype(); '
        'import ase_deeprelax; ase_deeprelax.relax; '
        'print(env == dict(os.environ), dtype == torch.get_default_dtype(), '
        '*(set(vars(ase.Atoms)) - names))'
    )
    assert python(code) == ['True', 'True', 'optimizer']


@pytest.mark.parametrize('name', ase_deeprelax.__all__)
def test_public_names_are_there(name):
    assert name in dir(ase_deeprelax)
    assert getattr(ase_deeprelax, name) is not None


def test_unknown_names_are_attribute_errors():
    assert not hasattr(ase_deeprelax, 'relaxx')
    with pytest.raises(ImportError):
        from ase_deeprelax import relaxx  # noqa: F401


def test_version_is_a_version():
    assert [part.isdigit() for part in ase_deeprelax.__version__.split('.')] == [True] * 3


def test_module_runs_as_program():
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    done = subprocess.run(
        [sys.executable, '-m', 'ase_deeprelax', '--help'],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert 'relax' in done.stdout
