"""The config of a model: the file ``config.json`` in its folder.

It holds the hash of the weights, and one of the weights and all its entries that change
answers: a config that was damaged or edited is refused by name.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ase_deeprelax.errors import ModelError, warn

FORMAT_VERSION = 2
READABLE = (1, FORMAT_VERSION)
WEIGHTS, CONFIG = 'model.safetensors', 'config.json'
# The entries of a config that answers depend on, beside the weights.
ANSWERS = ('architecture', 'hyperparameters', 'elements', 'learned', 'range', 'second_look')
# A larger file is not that of a model: it would fill the memory.
MOST_BYTES = 4_000_000


def read_config(folder: Path) -> dict[str, Any]:
    """The config of the model in a folder, checked.

    Raises
    ------
    ModelError
        It cannot be read, is of another format, lacks an entry or was edited.
    """
    path = folder / CONFIG
    try:
        with path.open('rb') as file:
            text = file.read(MOST_BYTES)  # a larger file is no JSON any more
        config = json.loads(text, parse_constant=_no_number)
        version = config['format_version']
        missing = {'architecture', 'hyperparameters', 'sha256'} - set(config)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f'{path} cannot be read ({error!r}); fetch the model again'
        ) from error
    if version not in READABLE:
        raise ModelError(
            f'{path} has format_version {version!r}, this package reads {FORMAT_VERSION}; '
            'update ase-deeprelax or fetch a model of that format'
        )
    if missing:
        raise ModelError(
            f'{path} lacks {", ".join(sorted(missing))}; fetch the model again'
        )
    return config if 'members' in config else _checked(path, config)


def _checked(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The config, if nothing of it was edited that answers depend on."""
    if config['format_version'] == 1:
        warn(
            f'{path} is of an older format, which does not notice edits; save_model writes '
            'it anew'
        )
        return config | {'weights_sha256': config['sha256']}
    if config['sha256'] != answers_hash(config):
        raise ModelError(
            f'{path} was edited: {", ".join(ANSWERS)} are not those that the model was '
            'saved with; fetch the model again, or save your change with save_model'
        )
    return config


def _no_number(word: str) -> float:
    raise ValueError(f'{word} is not a number')


def answers_hash(config: dict[str, Any]) -> str:
    """The hash of the weights and of all that answers depend on, hexadecimal."""
    entries = {key: config.get(key) for key in ('weights_sha256', *ANSWERS)}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
