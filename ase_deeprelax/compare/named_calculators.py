"""The calculators of a comparison, by names that tell them apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase.io.jsonio import encode

from ase_deeprelax.calculators.attached import calculator_name
from ase_deeprelax.calculators.registry import ON_DISK, get_calculator
from ase_deeprelax.errors import ConfigError
from ase_deeprelax.files import sha256


@dataclass(frozen=True)
class NamedCalculator:
    """A calculator of a comparison.

    Attributes
    ----------
    name : str
        What tables call it.
    calculator : ase Calculator
    made_from : str
        Its full name, with the weights if some were chosen.
    parameters : str
        Those of an object that was given, as far as JSON can hold them, or a hash of
        weights on disk; default ''.

    Examples
    --------
    >>> NamedCalculator('chgnet', None, 'chgnet:r2scan').label
    'chgnet (chgnet:r2scan)'
    """

    name: str
    calculator: Any
    made_from: str
    parameters: str = ''

    @property
    def label(self) -> str:
        """For the keys of a journal: other weights or parameters make it another one."""
        made = [] if self.made_from == self.name else [self.made_from]
        made += [self.parameters] if self.parameters else []
        return f'{self.name} ({", ".join(made)})' if made else self.name


def named_calculators(calculators: Any, device: str) -> dict[str, NamedCalculator]:
    """The calculators of a comparison by name.

    Parameters
    ----------
    calculators : list or mapping, or a single one
        As `savings.compare` takes them.
    device : str
        Where potentials by name run.

    Returns
    -------
    dict of str to NamedCalculator

    Raises
    ------
    ConfigError
        There is none, or two have the same name.

    Examples
    --------
    >>> from ase.calculators.emt import EMT
    >>> named_calculators({'metals': EMT}, 'cpu')['metals'].label
    'metals (EMT, asap_cutoff=false)'
    """
    if isinstance(calculators, str) or not isinstance(calculators, Iterable):
        calculators = [calculators]
    if not isinstance(calculators, Mapping):
        given = list(calculators)
        calculators = by_name('calculators', _short_names(given), given)
    if not calculators:
        raise ConfigError('calculators is empty; give one or more, such as chgnet')
    return {str(name): _named(str(name), one, device) for name, one in calculators.items()}


def _named(name: str, given: Any, device: str) -> NamedCalculator:
    if isinstance(given, str):
        made = get_calculator(given, device=device)
        return NamedCalculator(name, made, given, _hash_of_weights(given))
    made = get_calculator(given)
    return NamedCalculator(name, made, _full_name(given), _parameters(made))


def _hash_of_weights(text: str) -> str:
    """A hash of the weights on disk that NAME:WEIGHTS names, '' where it names none.

    A path is no name of weights: a new training writes others to the same place.
    """
    weights = text.partition(':')[2]
    if not weights.startswith(ON_DISK):
        return ''
    path, digest = Path(weights).expanduser(), hashlib.sha256()
    inside = sorted(one for one in path.rglob('*') if one.is_file())
    for file in inside or [path]:
        digest.update(bytes.fromhex(sha256(file)))
    return f'sha256={digest.hexdigest()[:12]}'


def _parameters(calculator: Any) -> str:
    """The parameters of an ASE calculator, without those that JSON cannot hold."""
    found, texts = getattr(calculator, 'parameters', None), []
    for name, value in sorted(found.items()) if isinstance(found, Mapping) else ():
        with suppress(TypeError, ValueError):
            texts.append(f'{name}={encode(value)}')
    return ', '.join(texts)


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
