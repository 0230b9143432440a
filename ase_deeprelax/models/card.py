"""The card of a model: what there is to know about it beside its weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ase_deeprelax.errors import ModelError
from ase_deeprelax.journal import finite_or_none

# What a model can have been trained on; the card lists it as ``learned``.
TASKS = ('bulk', 'layer', 'fixed cell', 'partly fixed cell', 'fixed atoms')
# Files of models have other names for two of them, in a part that is hashed.
STORED = {'fixed cell': 'held cell', 'partly fixed cell': 'partly held cell'}
# Models of before give the volume per atom, which says little without the elements.
RANGES = ('n_atoms', 'volume_ratio', 'volume_per_atom')


@dataclass(frozen=True, repr=False)
class ModelCard:
    """What there is to know about a model; all entries have a default.

    Attributes
    ----------
    name : str
        Default '', then the folder's name stands for it.
    licence : str
        Of the weights.
    elements : tuple of int
        Atomic numbers seen in training; default none, then no element is refused.
    learned : tuple of str
        What was trained, of `TASKS`; other questions are flagged as out of distribution.
        Default 'bulk' alone.
    ranges : dict of str to (low, high)
        Of ``n_atoms`` in training, and of ``volume_ratio``: the volume over that which
        crystals of these elements have on average (`usual_volume`). Default none, then
        those of the shipped training sets count.
    saw_relaxed : bool
        Whether relaxed structures were among the inputs in training, so that the model can
        be applied to its own predictions (`predict.passes`); default False.
    training : dict
        Data with licences, counts, settings, history.
    metrics : dict
        Errors on sets of pairs.
    members : tuple of str
        Of an ensemble: the names of its models.

    Examples
    --------
    >>> card = ModelCard.from_dict({'elements': [8, 22], 'second_look': True})
    >>> card.elements, card.learned, card.saw_relaxed
    ((8, 22), ('bulk',), True)
    """

    name: str = ''
    licence: str = ''
    elements: tuple[int, ...] = ()
    learned: tuple[str, ...] = ('bulk',)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    saw_relaxed: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    members: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelCard:
        """A card from a dictionary as its JSON file holds it; other entries are ignored.

        There, `ranges` is called ``range`` and `saw_relaxed` ``second_look``.

        Raises
        ------
        ModelError
            An entry is not of its kind.
        """
        return cls(
            name=_text(data, 'name'),
            licence=_text(data, 'licence'),
            elements=_elements(data.get('elements', ())),
            learned=_learned(_texts(data, 'learned')) or ('bulk',),
            ranges=_ranges(data.get('range') or {}),
            saw_relaxed=_typed(data, 'second_look', bool, False),
            training=_typed(data, 'training', dict, {}),
            metrics=_typed(data, 'metrics', dict, {}),
            members=_texts(data, 'members'),
        )

    def __repr__(self) -> str:
        return (
            f'ModelCard({self.name!r}, {len(self.elements)} elements, '
            f'learned: {", ".join(self.learned)})'
        )

    def to_dict(self) -> dict[str, Any]:
        """The card as its JSON file holds it; entries that say nothing are left out."""
        entries = {
            'name': self.name,
            'licence': self.licence,
            'elements': list(self.elements),
            'learned': [STORED.get(task, task) for task in self.learned],
            'second_look': self.saw_relaxed,
            'range': {name: list(limits) for name, limits in self.ranges.items()},
            'training': self.training,
            'metrics': self.metrics,
            'members': list(self.members),
        }
        return {key: value for key, value in entries.items() if value not in ('', {}, [])}


def as_json(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Nested entries as they come back from a file of JSON.

    Numbers and arrays of NumPy and torch become those of Python, numbers that are not
    finite None.

    Raises
    ------
    ModelError
        Something that JSON does not know, by its type.

    Examples
    --------
    >>> as_json({'mae': np.float32(0.5), 'layers': float('nan'), 'pairs': (3, 4)})
    {'mae': 0.5, 'layers': None, 'pairs': [3, 4]}
    """
    try:
        return finite_or_none(json.loads(json.dumps(entries, default=_as_python)))
    except (TypeError, ValueError) as error:
        raise ModelError(
            f'the card and the hyperparameters of a model must fit into JSON: {error}'
        ) from error


def _as_python(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray, torch.Tensor)):
        return value.tolist()
    raise TypeError(f'{value!r:.60} is of type {type(value).__name__}; write it as text')


def _learned(names: tuple[str, ...]) -> tuple[str, ...]:
    ours = {stored: task for task, stored in STORED.items()}
    return tuple(ours.get(name, name) for name in names)


def _typed(data: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = data.get(key, default)
    if not isinstance(value, kind):
        raise ModelError(f'{key} is {value!r:.60}; it must be of type {kind.__name__}')
    return value


def _text(data: Mapping[str, Any], key: str) -> str:
    return _typed(data, key, str, '')


def _texts(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = (
        _typed(data, key, list, []) if not isinstance(data.get(key), tuple) else data[key]
    )
    if not all(isinstance(value, str) for value in values):
        raise ModelError(f'{key} is {values!r:.60}; it must be a list of words')
    return tuple(values)


def _elements(values: Any) -> tuple[int, ...]:
    if values is None:
        return ()
    try:
        elements = tuple(int(z) for z in values)
        known = list(elements) == list(values) and set(elements) <= set(range(1, 119))
    except (TypeError, ValueError, OverflowError):
        known = False
    if not known:
        raise ModelError(f'elements is {values!r:.60}; it must be a list of atomic numbers')
    return elements


def _ranges(values: Any) -> dict[str, tuple[float, float]]:
    try:
        ranges = {name: (float(low), float(high)) for name, (low, high) in values.items()}
        known = all(
            name in RANGES and math.isfinite(low) and low <= high < math.inf
            for name, (low, high) in ranges.items()
        )
    except (AttributeError, TypeError, ValueError, OverflowError):
        known = False
    if not known:
        raise ModelError(
            f'range is {values!r:.60}; it must give two numbers for each of '
            f'{" and ".join(RANGES[:2])}'
        )
    return ranges
