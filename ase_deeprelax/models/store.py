"""Models on disk: a folder with ``model.safetensors`` and ``config.json``.

An ensemble is a folder with a config alone, whose ``members`` are names of models. Either
may hold a ``calibration.safetensors`` too, see `models.calibration`.

Nothing is ever unpickled. The config holds the hash of the weights, and one of the weights
and all its entries that change answers: a folder that was damaged or edited is refused by
name instead of giving other numbers.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ase_deeprelax.device import resolve_device
from ase_deeprelax.errors import ModelError
from ase_deeprelax.files import write_atomically
from ase_deeprelax.models import create_model
from ase_deeprelax.models.base import RelaxationModel
from ase_deeprelax.models.calibration import CALIBRATION, Calibration, keep_calibration
from ase_deeprelax.models.card import ModelCard, as_json
from ase_deeprelax.models.config_file import (
    CONFIG,
    FORMAT_VERSION,
    WEIGHTS,
    answers_hash,
    read_config,
)
from ase_deeprelax.models.ensemble import Ensemble
from ase_deeprelax.models.folders import find_model

# Larger files and numbers are not those of a model: they would fill the memory, or a cutoff
# would ask for all atoms of a crystal. A cutoff is in A.
MOST_BYTES_OF_WEIGHTS, MOST_MEMBERS = 10**9, 32
LARGEST = {'cutoff': 15.0, 'layers': 64}
LARGEST_OF_OTHERS = 2048


def save_model(
    model: RelaxationModel, folder: str | Path, card: ModelCard | dict[str, Any]
) -> dict[str, Any]:
    """Write a model as ``folder/model.safetensors`` and ``folder/config.json``.

    Each file is written beside its place and then renamed, the config after the weights: a
    write that is interrupted leaves either the former model or one that `load_model`
    refuses. The calibration of a loaded model is written too, if neither its weights nor
    anything else that answers depend on changed; one that is in the folder and belongs to
    another model is removed.

    Parameters
    ----------
    model : RelaxationModel
        As made by `create_model`; weights are stored as float32.
    folder : path
        Created if needed.
    card : ModelCard or dict
        What there is to know about the model, a dictionary as `ModelCard.from_dict` takes
        it. Numbers that are not finite are written as null.

    Returns
    -------
    dict
        The config as written.

    Raises
    ------
    ModelError
        An entry of the card is not of its kind or does not fit into JSON; a hyperparameter
        is larger than `load_model` takes; or the model is an ensemble, or has no
        architecture by which `load_model` could make it again, see `create_model`. Nothing
        is written then.

    Examples
    --------
    >>> from ase_deeprelax.models import create_model
    >>> model = create_model('paegnn', hidden=16, layers=2)
    >>> config = save_model(model, 'my-model', {'elements': [8, 22]})  # doctest: +SKIP
    """
    folder = Path(folder)
    if isinstance(model, Ensemble):
        raise ModelError(
            'an ensemble has no weights of its own; save its members, and make it again by '
            'Ensemble([load_model(folder), ...])'
        )
    if not model.architecture:
        name = type(model).__name__
        raise ModelError(
            f'{name} has no architecture by which it could be loaded again; write '
            f"ase_deeprelax.models.ARCHITECTURES['{name.lower()}'] = {name}, and make the "
            f"model by create_model('{name.lower()}', ...)"
        )
    if isinstance(card, dict):
        card = ModelCard.from_dict(card)
    weights = safetensors.torch.save(_float32(model.state_dict()))
    check_sizes(model.hyperparameters, type(model).__name__)
    config = as_json(
        {
            **card.to_dict(),
            'format_version': FORMAT_VERSION,
            'architecture': model.architecture,
            'hyperparameters': model.hyperparameters,
            'graph': model.spec.to_dict(),
            'weights_sha256': hashlib.sha256(weights).hexdigest(),
        }
    )
    config['sha256'] = answers_hash(config)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, weights)
    write_atomically(folder / CONFIG, json.dumps(config, indent=2) + '\n')
    same = model.sha256 == config['sha256']
    keep_calibration(folder, config['sha256'], model.calibration if same else None)
    return config


def load_model(
    name: str | Path,
    device: str | torch.device = 'cpu',
    *,
    dtype: torch.dtype = torch.float32,
) -> RelaxationModel:
    """A model in eval mode, from its name or its folder.

    Parameters
    ----------
    name : str or path
        'default', a shipped model (`available_models`), or a folder written by
        `save_model`.
    device : str or torch.device
        'auto', 'cpu', 'cuda', 'cuda:1'; default 'cpu'.
    dtype : torch.dtype
        Default float32.

    Returns
    -------
    RelaxationModel
        With ``.card`` (`ModelCard`), ``.calibration`` (`Calibration` or None), ``.name``
        and ``.sha256``.

    Raises
    ------
    DeviceError
        The device is not there.
    ModelError
        The name is unknown, a file is damaged, edited, pickled, of a newer format, not the
        size of a model, or weights and config do not fit together.

    Examples
    --------
    >>> model = load_model('deeprelax')
    >>> model.architecture, model.card.learned[0], model.calibration.kinds[0]
    ('paegnn', 'bulk', 'bulk')
    """
    device = resolve_device(device)
    folder = find_model(name)
    config = read_config(folder)
    if 'members' in config:
        return _load_ensemble(folder, config, device, dtype)
    weights = _read_weights(folder / WEIGHTS, config)
    model = _build(folder, config, len(weights) // 4)
    try:
        model.load_state_dict(safetensors.torch.load(weights))
    except (ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise _misfit(folder, error) from error
    model.card = _card(folder, config)
    model.sha256, model.name = config['sha256'], model.card.name or folder.name
    model.calibration = Calibration.load(folder, model.sha256)
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)


def _read_weights(path: Path, config: dict[str, Any]) -> bytes:
    """The bytes of the file, if they are those of the config."""
    if path.exists() and not path.is_file():
        raise ModelError(f'{path} is not a file; fetch the model again')
    try:
        size = path.stat().st_size
        if size > MOST_BYTES_OF_WEIGHTS:
            raise ModelError(f'{path} has {size:,} bytes, which no model has')
        weights = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f'{path}: {error.strerror}; copy {WEIGHTS} and {CONFIG} together'
        ) from error
    digest, expected = hashlib.sha256(weights).hexdigest(), config['weights_sha256']
    if digest != expected:
        raise ModelError(
            f'{path} is damaged or belongs to another {CONFIG}: its sha256 is {digest}, '
            f'{CONFIG} says {expected}; delete the folder and fetch the model again'
        )
    return weights


def _build(folder: Path, config: dict[str, Any], most: int) -> RelaxationModel:
    """The network with random weights, if it can have ``most`` parameters at most."""
    hyperparameters = config['hyperparameters']
    if not isinstance(hyperparameters, dict) or not isinstance(config['architecture'], str):
        raise ModelError(
            f'{folder / CONFIG}: hyperparameters must be an object and architecture a word'
        )
    check_sizes(hyperparameters, folder / CONFIG)
    # Every layer has a square matrix: what is too large is refused before it takes memory.
    hidden, layers = (hyperparameters.get(key, 1) for key in ('hidden', 'layers'))
    if isinstance(hidden, int) and isinstance(layers, int) and layers * hidden**2 > most:
        raise _misfit(folder, f'hidden is {hidden}, layers is {layers}')
    try:
        with torch.random.fork_rng(devices=[]):  # weights to be overwritten are random
            return create_model(config['architecture'], **hyperparameters)
    except (TypeError, ValueError, RuntimeError, MemoryError) as error:
        raise _misfit(folder, error) from error


def check_sizes(hyperparameters: dict[str, Any], where: str | Path) -> None:
    """Refuse hyperparameters with which `load_model` would not take a model.

    Raises
    ------
    ModelError
        It begins with ``where`` and names the hyperparameter.

    Examples
    --------
    >>> check_sizes({'cutoff': 5.0, 'hidden': 128}, 'config.yaml')
    """
    for key, value in hyperparameters.items():
        largest = LARGEST.get(key, LARGEST_OF_OTHERS)
        if isinstance(value, float | int) and not 0 <= value <= largest:
            raise ModelError(f'{where}: {key} is {value}; it must be from 0 to {largest:g}')


def _card(folder: Path, config: dict[str, Any]) -> ModelCard:
    try:
        return ModelCard.from_dict(config)
    except ModelError as error:
        raise ModelError(f'{folder / CONFIG}: {error}') from error


def _misfit(folder: Path, error: Exception | str) -> ModelError:
    return ModelError(
        f'{folder}: weights and {CONFIG} do not fit together or need another version of '
        f'this package ({error}); fetch the model again'
    )


def _load_ensemble(
    folder: Path, config: dict[str, Any], device: str | torch.device, dtype: torch.dtype
) -> RelaxationModel:
    """Several models as one; its hash is that of their hashes."""
    card = _card(folder, config)
    if not 1 <= len(card.members) <= MOST_MEMBERS:
        raise ModelError(
            f'{folder / CONFIG} names {len(card.members)} members; an ensemble has from 1 '
            f'to {MOST_MEMBERS}'
        )
    for member in card.members:
        if 'members' in read_config(find_model(member)):
            raise ModelError(
                f'{folder / CONFIG}: its member {member!r} is an ensemble itself; name the '
                'models that it is made of'
            )
    members = [load_model(name, device, dtype=dtype) for name in card.members]
    if config['sha256'] != ensemble_hash(config, members):
        raise ModelError(
            f'{folder}: its members {", ".join(card.members)} are not those that it was '
            f'made of, or its {CONFIG} was edited; install ase-deeprelax again'
        )
    model = Ensemble(members)
    model.architecture, model.hyperparameters = 'ensemble', {}
    model.card, model.sha256 = card, config['sha256']
    model.calibration = Calibration.load(folder, model.sha256)
    model.name = card.name or folder.name
    return model.eval().requires_grad_(False)


def ensemble_hash(config: dict[str, Any], members: list[RelaxationModel]) -> str:
    """The hash of the members' hashes and of what else answers depend on, hexadecimal."""
    hashes = ''.join(member.sha256 for member in members)
    if config['format_version'] == 1:
        return hashlib.sha256(hashes.encode()).hexdigest()
    return answers_hash(config | {'weights_sha256': hashes})


def load_shared(
    name: str | Path, device: str | torch.device, dtype: torch.dtype
) -> RelaxationModel:
    """`load_model`, once per model, device and type: treat what it returns as read-only."""
    folder = find_model(name)
    names = CONFIG, WEIGHTS, CALIBRATION
    files = [folder / name for name in names if (folder / name).exists()]
    stats = [path.stat() for path in files]
    stamp = tuple((stat.st_mtime_ns, stat.st_size) for stat in stats)
    return _load_once(folder, stamp, device, dtype)


@lru_cache(maxsize=8)
def _load_once(
    folder: Path, _stamp: tuple, device: str | torch.device, dtype: torch.dtype
) -> RelaxationModel:
    """Keyed by the files' times too, so that a model trained again is read again."""
    return for_prediction(load_model(folder, device, dtype=dtype))


def for_prediction(model: RelaxationModel) -> RelaxationModel:
    """The model itself, in eval mode, without gradients, its weights ordered for speed."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            # With this order of the same numbers in memory, products with the few rows of
            # a small crystal take two thirds of the time.
            module.weight.data = module.weight.data.T.contiguous().T
    return model.eval().requires_grad_(False)


def _float32(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous CPU copies; floating-point tensors as float32."""
    return {
        key: (x.float() if x.is_floating_point() else x).detach().cpu().contiguous().clone()
        for key, x in state.items()
    }
