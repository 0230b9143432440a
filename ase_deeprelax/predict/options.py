"""The options of a predictor, checked before a model is loaded."""

from __future__ import annotations

from numbers import Real
from typing import Any

from ase_deeprelax.errors import ModelError
from ase_deeprelax.predict.forward import DTYPES


def check_options(
    symmetry: str, dtype: str, accept_below: float | None, batch_edges: int | None
) -> None:
    """Refuse what `Predictor` cannot work with.

    Parameters
    ----------
    symmetry, dtype, accept_below, batch_edges
        As `Predictor` takes them.

    Raises
    ------
    ModelError
        The type is not one of `DTYPES`.
    ValueError
        Another option makes no sense.

    Examples
    --------
    >>> check_options('keep', 'float32', 0.05, None)
    >>> check_options('keep', 'float32', '0.05', None)
    Traceback (most recent call last):
    ...
    ValueError: accept_below is '0.05'; it must be a length in A
    """
    if symmetry not in ('keep', 'free'):
        raise ValueError(f"symmetry is {symmetry!r}; it must be 'keep' or 'free'")
    if dtype not in tuple(DTYPES):
        raise ModelError(
            f"dtype is {dtype!r}; it must be 'float32' or 'float64' (predictions are good "
            'to 1e-4 A, which 16 bits cannot hold)'
        )
    if accept_below is not None and not _positive(accept_below):
        raise ValueError(f'accept_below is {accept_below!r}; it must be a length in A')
    if batch_edges is not None and not _positive(batch_edges):
        raise ValueError(f'batch_edges is {batch_edges!r}; it must be a number above 0')


def _positive(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and value > 0
