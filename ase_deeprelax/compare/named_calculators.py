"""The calculators of a comparison, by names that tell them apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ase_deeprelax.calculators.attached import calculator_name
from ase_deeprelax.calculators.registry import get_calculator
from ase_deeprelax.errors import ConfigError


def named_calculators(
    calculators: Mapping[Any, Any] | Iterable[Any], device: str
) -> tuple[dict[str, Any], dict[str, str]]:
    """Calculators by name, and what each was made from.

    Parameters
    ----------
    calculators : list or mapping
        As `savings.compare` takes them.
    device : str
        Where potentials by name run.

    Returns
    -------
    dict of str to ase Calculator
    dict of str to str

    Raises
    ------
    ConfigError
        There is none, or two have the same name.

    Examples
    --------
    >>> from ase.calculators.emt import EMT
    >>> named_calculators([EMT], 'cpu')[1]
    {'EMT': 'EMT'}
    """
    if not isinstance(calculators, Mapping):
        given = list(calculators)
        calculators = by_name('calculators', _short_names(given), given)
    if not calculators:
        raise ConfigError('calculators is empty; give one or more, such as chgnet')
    made = {
        str(name): get_calculator(c, **({'device': device} if isinstance(c, str) else {}))
        for name, c in calculators.items()
    }
    return made, {str(name): _full_name(c) for name, c in calculators.items()}


def by_name(kind: str, names: Sequence[str], things: Sequence[Any]) -> dict[str, Any]:
    """Things by their names; ``ConfigError`` where two have the same."""
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(
            f'{kind}: two are called {min(twice)!r}; leave one out, or give them names'
        )
    return dict(zip(names, things, strict=True))


def _short_names(calculators: Sequence[Any]) -> list[str]:
    """Short names where they differ, else full names."""
    long = [_full_name(calculator) for calculator in calculators]
    short = [text.partition(':')[0] for text in long]
    return [s if short.count(s) == 1 else full for s, full in zip(short, long, strict=True)]


def _full_name(calculator: Any) -> str:
    if isinstance(calculator, str):
        return calculator
    return getattr(calculator, '__name__', None) or calculator_name(calculator)
