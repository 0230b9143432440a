"""Interatomic potentials and DFT by name, as ASE calculators in ASE's units."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from ase.data import atomic_numbers

from ase_deeprelax.calculators.plausible import problem_with, salt
from ase_deeprelax.calculators.potential import Potential
from ase_deeprelax.errors import (
    DeepRelaxError,
    MissingDependencyError,
    ModelError,
    warn,
)

# Without one of them matgl takes a folder for a name and looks for it in the network.
MATGL_FILES = ('model.json', 'model.pt', 'state.pt')

# A path to weights begins with one of these; all else is a name of weights.
ON_DISK = ('/', '.', '~')

# Without `dedecut` its stress is that at a fixed number of plane waves, while the energy is
# that at a fixed cutoff. Cells from files have six decimals, which at its own tolerance is
# half of a space group or none.
GPAW_SETTINGS = {
    'mode': {'name': 'pw', 'ecut': 500, 'dedecut': 'estimate'},
    'kpts': {'density': 3.5, 'gamma': True},
    'occupations': {'name': 'fermi-dirac', 'width': 0.1},
    'symmetry': {'tolerance': 1e-3},
}


# A calculator, and the atomic numbers that it was trained on where that is known.
Made = tuple[Any, Collection[int] | None]


def get_calculator(calculator: Any, *, device: str = 'cpu', **settings: Any) -> Any:
    """An ASE calculator from a name, a calculator or a function that makes one.

    Parameters
    ----------
    calculator : str, ase Calculator or callable
        One of

        - ``'NAME'``, a key of `POTENTIALS`, with that potential's usual weights. Those of
          'chgnet' and 'sevennet' come with their packages, the others are downloaded by
          their packages on first use;
        - ``'NAME:WEIGHTS'`` with a path to weights on disk, for which no network is
          needed, or with a name that the potential's package knows: ``'chgnet:r2scan'``,
          ``'sevennet:7net-l3i5'``, ``'mace:small'``, which is then the name of the
          calculator. A path starts with ``/``, ``.`` or ``~``;
        - ``'gpaw'``, DFT with plane waves and `GPAW_SETTINGS` for PBE, or with another
          functional: ``'gpaw:PBEsol'``. Atoms that have initial magnetic moments are
          spin-polarised, others not;
        - a calculator, which is handed back as it is;
        - a function without arguments, or a class, that makes a calculator: each call
          here makes a new one, as each worker process needs.
    device : str
        Where a calculator by name runs: 'auto', 'cpu', 'cuda', 'cuda:1'; default 'cpu'.
        GPAW runs on the CPU.
    **settings
        Further arguments of a calculator by name; those of GPAW replace
        the usual ones.

    Returns
    -------
    ase Calculator
        For a name, a `Potential`. Energies in eV, forces in eV/A, stress in eV/A^3.

    Raises
    ------
    DeviceError
        The device is not there.
    MissingDependencyError
        The package of the calculator is not installed.
    ModelError
        An unknown name; weights that are not there, cannot be read or are of another kind;
        something else than is listed above.

    Examples
    --------
    >>> from ase.calculators.emt import EMT
    >>> get_calculator(EMT).name
    'emt'
    >>> get_calculator('tensornet:~/TensorNet-PES', device='cuda')  # doctest: +SKIP
    >>> get_calculator('chgnet')  # doctest: +SKIP
    >>> get_calculator('gpaw', kpts={'density': 5, 'gamma': True})  # doctest: +SKIP
    """
    if isinstance(calculator, str):
        return _named(calculator, device, settings)
    if settings:
        raise ModelError(
            f'settings {sorted(settings)} are for calculators by name; give them to the '
            'calculator that you make'
        )
    made = calculator
    if callable(calculator) and not _is_calculator(calculator):
        made = calculator()
    if not _is_calculator(made):
        raise ModelError(
            f'{calculator!r} is no calculator; give one of {", ".join(POTENTIALS)}, '
            'NAME:WEIGHTS, an ASE calculator, or a function that makes one'
        )
    return made


def potential_name(text: str) -> str:
    """The name of the calculator that `get_calculator` makes of a text.

    Weights on disk may be the usual ones; others of the package are another potential, with
    errors of its own.

    >>> potential_name('tensornet:./TensorNet-PES'), potential_name('chgnet:0.3.0')
    ('tensornet', 'chgnet')
    >>> potential_name('chgnet:r2scan')
    'chgnet:r2scan'
    """
    name, _, weights = text.partition(':')
    if not weights or weights.startswith(ON_DISK):
        return name
    return name if name in POTENTIALS and weights == POTENTIALS[name].weights else text


def _is_calculator(thing: Any) -> bool:
    return hasattr(thing, 'get_property') and not isinstance(thing, type)


def _named(text: str, device: str, settings: dict[str, Any]) -> Potential:
    from ase_deeprelax.device import resolve_device

    name, _, weights = text.partition(':')
    if name not in POTENTIALS:
        raise ModelError(
            f'calculator {text!r} is not known; known are {", ".join(POTENTIALS)}, each '
            'also as NAME:WEIGHTS'
        )
    entry = POTENTIALS[name]
    try:
        import_module(entry.package)
    except ImportError as error:
        raise MissingDependencyError(
            f'calculator {name!r} needs the package {entry.package!r}, which cannot be '
            f"imported ({error}): pip install 'ase-deeprelax[{entry.extra}]'"
        ) from error
    weights = _find_weights(text, weights) if weights else entry.weights
    device = str(resolve_device(device))
    if isinstance(weights, str) and entry.reads_paths and Path(weights).exists():
        raise ModelError(
            f'calculator {text!r}: {weights!r} is a name of weights, but a file or folder '
            'of that name is here, and its package would load that instead, which can run '
            f"code in it. Rename it, or give '{name}:./{weights}' if you mean it"
        )
    try:
        # The packages greet on stdout, where a command's result may be going.
        with redirect_stdout(io.StringIO()):
            calculator, elements = entry.make(weights, device, settings)
    except DeepRelaxError:
        raise
    except Exception as error:  # each package has its own idea of what to raise
        raise ModelError(
            f'calculator {text!r}: none with weights {weights!r} can be made on {device!r} '
            f'({type(error).__name__}: {error}); without a network give weights on disk, '
            f"'{name}:/path/to/weights'"
        ) from error
    potential = Potential(potential_name(text), calculator, elements)
    if entry.package == 'matgl' and isinstance(weights, Path):
        _check_matgl(text, potential)
    return potential


def _check_matgl(text: str, potential: Potential) -> None:
    """Warn of weights for an earlier matgl, which it loads, but computes otherwise."""
    elements = potential.elements
    if elements is not None and not elements.issuperset(salt().numbers.tolist()):
        return
    if problem := problem_with(potential):
        warn(
            f'calculator {text!r}: {problem}. Weights that were saved with an earlier '
            'version of matgl mean something else to the installed one: do not trust its '
            'energies, use weights of this version'
        )


def _find_weights(text: str, weights: str) -> str | Path:
    """A name of weights as it is, or the path of weights that exist."""
    if not weights.startswith(ON_DISK):
        return weights
    path = Path(weights).expanduser()
    # Or the packages would take it for a name and go looking for it in the network.
    if not path.exists():
        raise ModelError(f'calculator {text!r}: there is no file or folder {path}')
    return path.absolute()


@contextmanager
def _single_precision() -> Generator[None]:
    """Make a network in float32, where MACE may have made float64 the default of torch."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@_single_precision()
def _matgl(
    weights: str | Path, device: str, settings: dict[str, Any], *, kind: str
) -> Made:
    import matgl
    from matgl.ext.ase import PESCalculator

    if isinstance(weights, Path):
        missing = [file for file in MATGL_FILES if not (weights / file).exists()]
        if missing:
            raise ModelError(f'{weights} holds no {", ".join(missing)}; give a matgl model')
    model = matgl.load_model(str(weights))
    found = type(getattr(model, 'model', model)).__name__
    if found != kind:
        raise ModelError(
            f'{weights}: these weights are of kind {found}, not {kind}; use the name of '
            'that potential'
        )
    # Its default is GPa, with which cells relax as if all were well, to the wrong size.
    unit: dict[str, Any] = {'stress_unit': 'eV/A3'}
    calculator = PESCalculator(model.to(device).eval(), **unit, **settings)
    return calculator, [atomic_numbers[symbol] for symbol in calculator.element_types]


@_single_precision()
def _chgnet(weights: str | Path, device: str, settings: dict[str, Any]) -> Made:
    from chgnet.model import CHGNet
    from chgnet.model.dynamics import CHGNetCalculator

    if isinstance(weights, Path):
        model = CHGNet.from_file(str(weights))
    else:
        model = CHGNet.load(model_name=weights, use_device=device, verbose=False)
    calculator = CHGNetCalculator(model, use_device=device, **settings)
    # Its table of elements has rows for Po to Ra, of which its training data hold none.
    return calculator, {*range(1, 95)} - {*range(84, 89)}


def _sevennet(weights: str | Path, device: str, settings: dict[str, Any]) -> Made:
    from sevenn.calculator import SevenNetCalculator

    calculator = SevenNetCalculator(str(weights), device=device, **settings)
    return calculator, calculator.type_map


def _mace(weights: str | Path, device: str, settings: dict[str, Any]) -> Made:
    from mace.calculators import mace_mp

    calculator = mace_mp(str(weights), device=device, **settings)
    table = getattr(calculator, 'z_table', None)  # not where dispersion is added
    return calculator, table and table.zs


def _orb(weights: str | Path, device: str, settings: dict[str, Any]) -> Made:
    from orb_models.forcefield import pretrained

    try:
        from orb_models.forcefield.inference.calculator import ORBCalculator
    except ImportError:  # before version 0.6
        from orb_models.forcefield.calculator import ORBCalculator

    models = pretrained.ORB_PRETRAINED_MODELS
    name, local = weights, {}
    if isinstance(weights, Path):
        names = [name for name in models if weights.name.startswith(name)]
        if not names:
            raise ModelError(
                f'{weights}: not named like a model of Orb, {", ".join(models)}; keep the '
                'name it was published with'
            )
        name, local = max(names, key=len), {'weights_path': str(weights)}
    # 'highest', or all of this process's torch would multiply in TF32 on a GPU; compiling
    # takes longer than most relaxations.
    loaded = models[name](
        device=device, precision='float32-highest', compile=False, **local
    )
    parts = loaded if isinstance(loaded, tuple) else (loaded,)  # an adapter from 0.6 on
    return ORBCalculator(*parts, device=device, **settings), None


def _gpaw(functional: str, _device: str, settings: dict[str, Any]) -> Made:
    from ase_deeprelax.calculators.gpaw import SteadyGPAW

    return SteadyGPAW(**{'xc': functional, 'txt': None} | GPAW_SETTINGS | settings), None


@dataclass(frozen=True)
class Entry:
    """How a potential is made.

    Attributes
    ----------
    package : str
        What is imported.
    extra : str
        The extra of this package that installs it.
    weights : str
        The usual ones.
    make : callable
        From weights, device and settings to a calculator and the atomic numbers that it
        was trained on, or None where it does not say. Weights are a str where they are a
        name, a Path where they are on disk.
    reads_paths : bool
        Whether the package looks for a name among the files first.
    """

    package: str
    extra: str
    weights: str
    make: Callable
    reads_paths: bool = True


# Where there is a choice, weights trained on settings like the Materials Project's.
POTENTIALS = {
    'm3gnet': Entry(
        'matgl', 'matgl', 'M3GNet-PES-MatPES-PBE-2025.2', partial(_matgl, kind='M3GNet')
    ),
    'tensornet': Entry(
        'matgl',
        'matgl',
        'TensorNet-PES-MatPES-PBE-2025.2',
        partial(_matgl, kind='TensorNet'),
    ),
    'chgnet': Entry('chgnet', 'chgnet', '0.3.0', _chgnet, reads_paths=False),
    'sevennet': Entry('sevenn', 'sevenn', '7net-0', _sevennet),
    'mace': Entry('mace', 'mace', 'medium-mpa-0', _mace),
    'orb': Entry('orb_models', 'orb', 'orb-v3-conservative-inf-mpa', _orb),
    'gpaw': Entry('gpaw', 'gpaw', 'PBE', _gpaw, reads_paths=False),
}
