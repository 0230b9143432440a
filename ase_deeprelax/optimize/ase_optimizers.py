"""The optimizers of ASE: by name, by class, and made for a structure."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import ase.optimize
from ase import Atoms
from ase.filters import Filter
from ase.optimize.optimize import Optimizer
from ase.optimize.sciopt import SciPyOptimizer

from ase_deeprelax.errors import ConfigError
from ase_deeprelax.optimize.elastic_bfgs import ElasticBFGS

# Errors recommend these in place of an optimizer that does not fit.
OTHERS = "another optimizer, as 'BFGS' or 'FIRE'"


def find_optimizer(optimizer: str | Callable) -> Callable:
    """The class of an optimizer by its name; a class, or what makes one, as it is.

    Parameters
    ----------
    optimizer : str or callable
        'ElasticBFGS', the name of a class in ``ase.optimize``, such a class, or anything
        that makes an optimizer from ``(atoms, logfile=None)``, as
        ``functools.partial(FIRE, dt=0.05)``.

    Returns
    -------
    callable

    Raises
    ------
    ConfigError
        There is no such optimizer, or it does not move atoms step by step.

    Examples
    --------
    >>> find_optimizer('FIRE').__name__
    'FIRE'
    """
    found = optimizer
    if isinstance(optimizer, str):
        known = {name: getattr(ase.optimize, name) for name in ase.optimize.__all__}
        known = {n: c for n, c in known.items() if issubclass(c, Optimizer)}
        known[ElasticBFGS.__name__] = ElasticBFGS
        if optimizer not in known:
            fit = sorted(n for n, c in known.items() if not issubclass(c, SciPyOptimizer))
            raise ConfigError(
                f'optimizer is {optimizer!r}; choose one of {", ".join(fit)}, or give a '
                'class'
            )
        found = known[optimizer]
    if not callable(found):
        raise ConfigError(
            f'optimizer is {optimizer!r}; it must be the name of an ASE optimizer, its '
            'class, or a function that makes one'
        )
    kind = inside_partial(found)
    if isinstance(kind, type):
        _check_takes_steps(kind)
    return found


def make_optimizer(optimizer: str | Callable, target: Atoms | Filter) -> Optimizer:
    """Make an optimizer for a structure, without a log.

    Parameters
    ----------
    optimizer : str or callable
        As `find_optimizer` takes it.
    target : ase.Atoms or ase.filters.Filter

    Raises
    ------
    ConfigError
        There is no such optimizer, or it cannot be made for this structure.
    """
    make = find_optimizer(optimizer)
    name = optimizer_name(make)
    try:
        made = make(target, logfile=None)
    except Exception as error:
        raise ConfigError(
            f'the optimizer {name} cannot be made from (atoms, logfile=None): '
            f'{type(error).__name__}: {error}; choose {OTHERS}'
        ) from error
    _check_takes_steps(type(made))
    return made


def _check_takes_steps(kind: type) -> None:
    """Refuse a class that does not relax a structure step by step."""
    if issubclass(kind, SciPyOptimizer):
        problem = 'hands the whole relaxation to SciPy and cannot be stopped after a step'
    elif not issubclass(kind, Optimizer):
        problem = 'is no optimizer of ASE (ase.optimize.optimize.Optimizer)'
    else:
        return
    raise ConfigError(f'{kind.__name__} {problem}; choose {OTHERS}')


def optimizer_name(optimizer: str | Callable) -> str:
    """Name of a class, or of the class in a ``functools.partial``.

    >>> from ase.optimize import LBFGS
    >>> optimizer_name(LBFGS), optimizer_name(partial(LBFGS, maxstep=0.1))
    ('LBFGS', 'LBFGS')
    """
    if isinstance(optimizer, str):
        return optimizer
    optimizer = inside_partial(optimizer)
    return getattr(optimizer, '__name__', type(optimizer).__name__)


def inside_partial(optimizer: Callable) -> Callable:
    """The function inside a ``functools.partial``; any other callable as it is."""
    # By type: LBFGS has a method called func.
    return optimizer.func if isinstance(optimizer, partial) else optimizer
