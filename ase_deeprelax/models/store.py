"""Models on disk: a folder with ``model.safetensors`` and ``config.json``.

An ensemble is a folder with a config alone, whose ``members`` are names of models.

Nothing is ever unpickled. The config holds the hash of the weights, so that a file that
was cut short or changed is refused by name instead of giving other numbers.
"""

import difflib
import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path

import safetensors.torch
import torch

from ase_deeprelax.errors import ModelError
from ase_deeprelax.models import create_model
from ase_deeprelax.models.ensemble import Ensemble

FORMAT_VERSION = 1
WEIGHTS, CONFIG = 'model.safetensors', 'config.json'
SHIPPED = Path(__file__).parents[1] / 'weights'
# What 'default' stands for: the shipped model that measured best.
DEFAULT = 'ensemble'
PICKLES = ('.pt', '.pth', '.ckpt', '.pkl', '.bin')


def save_model(model, folder, card):
    """Write a model as ``folder/model.safetensors`` and ``folder/config.json``.

    Each file is written beside its place and then renamed, the config last: a write that
    is interrupted leaves either the former model or one that `load_model` refuses.

    Parameters
    ----------
    model : RelaxationModel
        As made by `create_model`; weights are stored as float32.
    folder : path
        Created if needed.
    card : dict
        What there is to know about the model, as JSON: ``elements`` (atomic numbers seen
        in training), ``training`` (data, licences, counts), ``metrics``, ``licence``;
        ``range`` may give the training range (low, high) of ``n_atoms`` and of
        ``volume_per_atom`` in A^3; ``second_look`` says whether relaxed structures were
        among the inputs, so that the model is asked again about its own answers
        (`predict.second_look`), default False; ``learned`` lists what was asked in
        training, of 'bulk', 'layer', 'held cell', 'partly held cell' and 'fixed atoms',
        default 'bulk' alone: other questions are flagged as outside the training range.

    Returns
    -------
    dict
        The config as written.

    Examples
    --------
    >>> from ase_deeprelax.models import create_model
    >>> model = create_model('paegnn', hidden=16, layers=2)
    >>> config = save_model(model, 'my-model', {'elements': [8, 22]})  # doctest: +SKIP
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = safetensors.torch.save(_float32(model.state_dict()))
    config = {
        **card,
        'format_version': FORMAT_VERSION,
        'architecture': model.architecture,
        'hyperparameters': model.hyperparameters,
        'graph': model.spec.to_dict(),
        'elements': [int(z) for z in card.get('elements', ())],
        'sha256': hashlib.sha256(weights).hexdigest(),
    }
    text = json.dumps(config, indent=2) + '\n'
    _write(folder / WEIGHTS, weights)
    _write(folder / CONFIG, text.encode())
    return config


def load_model(name, device='cpu', *, dtype=torch.float32):
    """A model in eval mode, from its name or its folder.

    Parameters
    ----------
    name : str or path
        'default', a shipped model (`available_models`), or a folder written by
        `save_model`.
    device : str or torch.device
        Default 'cpu'.
    dtype : torch.dtype
        Default float32.

    Returns
    -------
    RelaxationModel
        With ``.card`` (dict), ``.name`` and ``.sha256``.

    Raises
    ------
    ModelError
        The name is unknown, a file is damaged, pickled, of a newer format, or weights and
        config do not fit together.

    Examples
    --------
    >>> load_model('default').card['metrics']  # doctest: +SKIP
    """
    folder = find_model(name)
    config = _read_config(folder)
    if 'members' in config:
        return _load_ensemble(folder, config, device, dtype)
    path = folder / WEIGHTS
    try:
        weights = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f'{path}: {error.strerror}; copy {WEIGHTS} and {CONFIG} together'
        ) from error
    digest = hashlib.sha256(weights).hexdigest()
    if digest != config['sha256']:
        raise ModelError(
            f'{path} is damaged or belongs to another {CONFIG}: its sha256 is {digest}, '
            f'{CONFIG} says {config["sha256"]}; delete the folder and fetch the model again'
        )
    try:
        with torch.random.fork_rng(devices=[]):  # weights to be overwritten are random
            model = create_model(config['architecture'], **config['hyperparameters'])
        model.load_state_dict(safetensors.torch.load(weights))
    except (TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise ModelError(
            f'{folder}: weights and {CONFIG} do not fit together or need another version '
            f'of this package ({error}); fetch the model again'
        ) from error
    model.card, model.sha256 = config, digest
    model.name = config.get('name', folder.name)
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)


def _load_ensemble(folder, config, device, dtype):
    """Shipped models as one; its hash is that of their hashes."""
    members = [load_model(name, device, dtype=dtype) for name in config['members']]
    digest = hashlib.sha256(''.join(m.sha256 for m in members).encode()).hexdigest()
    if digest != config['sha256']:
        raise ModelError(
            f'{folder}: its members {", ".join(config["members"])} are not those that it '
            'was made of; install ase-deeprelax again'
        )
    model = Ensemble(members)
    model.architecture, model.hyperparameters = 'ensemble', {}
    model.card, model.sha256, model.name = config, digest, config['name']
    return model.eval().requires_grad_(False)


def load_shared(name, device, dtype):
    """`load_model`, once per model, device and type: treat what it returns as read-only."""
    folder = find_model(name)
    files = [path for path in (folder / CONFIG, folder / WEIGHTS) if path.exists()]
    stats = [path.stat() for path in files]
    stamp = tuple((stat.st_mtime_ns, stat.st_size) for stat in stats)
    return _load_once(folder, stamp, device, dtype)


@lru_cache(maxsize=8)
def _load_once(folder, _stamp, device, dtype):
    """Keyed by the files' times too, so that a model trained again is read again."""
    return load_model(folder, device, dtype=dtype)


def find_model(name):
    """Folder of a model given by name or path; ``ModelError`` where there is none."""
    shipped = available_models()
    if isinstance(name, str):
        resolved = DEFAULT if name == 'default' else name
        if resolved in shipped:
            return SHIPPED / resolved
    path = Path(name)
    if path.suffix in PICKLES:
        raise ModelError(
            f'{path} is a pickle, and loading one can run any code it holds; give a folder '
            f'with {WEIGHTS} and {CONFIG}, as save_model writes it'
        )
    if (path / CONFIG).is_file():
        return path
    if path.exists():
        raise ModelError(
            f'{path} is not a model: there is no {CONFIG} in it; give the folder that '
            f'holds {WEIGHTS} and {CONFIG}'
        )
    near = difflib.get_close_matches(str(name), shipped, n=3, cutoff=0.4)
    hint = f'did you mean {" or ".join(map(repr, near))}? ' if near else ''
    raise ModelError(
        f'no model or folder is called {str(name)!r}; {hint}'
        f'available: {", ".join(shipped) or "none"}'
    )


def available_models():
    """The shipped models: a dict from name to card, sorted by name."""
    return {
        path.parent.name: json.loads(path.read_text())
        for path in sorted(SHIPPED.glob(f'*/{CONFIG}'))
    }


def _read_config(folder):
    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
        version = config['format_version']
        missing = {'architecture', 'hyperparameters', 'sha256'} - set(config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f'{path} cannot be read ({error!r}); fetch the model again'
        ) from error
    if version != FORMAT_VERSION:
        raise ModelError(
            f'{path} has format_version {version!r}, this package reads {FORMAT_VERSION}; '
            'update ase-deeprelax or fetch a model of that format'
        )
    if missing:
        raise ModelError(
            f'{path} lacks {", ".join(sorted(missing))}; fetch the model again'
        )
    return config


def _float32(state):
    """Contiguous CPU copies; floating-point tensors as float32."""
    return {
        key: (x.float() if x.is_floating_point() else x).detach().cpu().contiguous().clone()
        for key, x in state.items()
    }


def _write(path, content):
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        with temporary.open('wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
