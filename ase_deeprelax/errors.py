"""Every exception and warning a user can meet.

Each message says what is wrong, where (atom index, element, value, path) and what
to do about it. Where ASE users expect a built-in type, the class is one of those too.
"""

from __future__ import annotations

import inspect
import warnings
from typing import Any


class DeepRelaxError(Exception):
    """Base of all errors of this package."""


class StructureError(DeepRelaxError, ValueError):
    """The input structure cannot be relaxed: empty, not finite, overlapping, no cell."""


class UnsupportedElementError(StructureError):
    """The structure holds elements that the model has never seen."""


class UnsupportedConstraintError(DeepRelaxError, ValueError):
    """A constraint or filter that a one-shot prediction cannot honour exactly."""


class PredictionError(DeepRelaxError, RuntimeError):
    """The predicted structure did not pass the checks; the atoms were left as they were."""


class RefinementError(DeepRelaxError, RuntimeError):
    """A refinement met an energy, forces or positions that are not finite."""


class DeviceError(DeepRelaxError, RuntimeError):
    """The device asked for is not there."""


class ModelError(DeepRelaxError, ValueError):
    """Weights or configuration of a model are unknown, damaged or do not fit together."""


class PairFileError(DeepRelaxError, ValueError):
    """A file of (unrelaxed, relaxed) pairs cannot be read."""


class ConfigError(DeepRelaxError, ValueError):
    """A configuration, a choice, or a folder of earlier results cannot be used."""


class MissingDependencyError(DeepRelaxError, ImportError):
    """An optional package is needed; the message holds the pip line that installs it."""


class DeepRelaxWarning(UserWarning):
    """Non-fatal: a fallback was used, or the input is out of distribution."""


def reason_of(error: BaseException) -> str:
    """The message of an error for a record, with its class if that is not of this package.

    >>> reason_of(StructureError('0 atoms')), reason_of(KeyError('x'))
    ('0 atoms', "KeyError: 'x'")
    """
    ours = isinstance(error, DeepRelaxError)
    return str(error) if ours else f'{type(error).__name__}: {error}'


def warn(message: str) -> None:
    """Issue a `DeepRelaxWarning` that points to the user's line, past ours and ASE's."""
    frame: Any = inspect.currentframe()
    level = 1
    passed = 'ase', __package__
    while frame.f_back and frame.f_globals.get('__name__', '').partition('.')[0] in passed:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, DeepRelaxWarning, stacklevel=level)
