"""Checks of what a training begins with or goes on from, before anything is done."""

from __future__ import annotations

from pathlib import Path

import torch

from ase_deeprelax.errors import ConfigError
from ase_deeprelax.models.config_file import CONFIG
from ase_deeprelax.train.config import TrainConfig
from ase_deeprelax.train.datamodule import PairData
from ase_deeprelax.train.module import kept_settings


def check_start(start: str | Path) -> None:
    """Refuse a checkpoint as the model whose weights a training starts from."""
    if Path(start).suffix == '.ckpt':
        raise ConfigError(
            f'{start} is a checkpoint of a training; weights start from the model that '
            f'comes out of it. The command of that training with --resume {start} --set '
            'optimize.max_steps=1 ends it where it is and writes the model; then give its '
            'folder'
        )


def check_new(output: Path) -> None:
    """Refuse to replace another training."""
    last, model = output / 'last.ckpt', output / 'model'
    if last.exists():
        raise ConfigError(
            f'{output} holds a training already; go on with it (--resume {last}), choose '
            'another name (--set name=...), or delete it'
        )
    if (model / CONFIG).exists():
        raise ConfigError(
            f'{output} holds a finished training; choose another name (--set name=...), '
            f'with its weights as a start (--from {model}) if you wish, or delete it'
        )


def check_checkpoint(path: str | Path, config: TrainConfig) -> None:
    """Refuse what is no checkpoint, holds code, or is of a training with other settings."""
    if not Path(path).is_file():
        model = Path(path).parent / 'model'
        hint = ''
        if (model / CONFIG).exists():
            hint = f'. The training there has ended: begin another one with --from {model}'
        raise ConfigError(
            f'{path}: there is no such file; a training writes its last.ckpt every '
            f'optimize.val_every_steps steps, on SIGTERM and on Ctrl-C{hint}'
        )
    try:
        content = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
        missing = {'state_dict', 'loops', 'elapsed'} - set(content)
    except Exception as error:  # anything can be in such a file
        raise ConfigError(
            f'{path} is no checkpoint of a training, or it holds code, which is not run '
            f'({type(error).__name__}); give the last.ckpt that the training wrote'
        ) from error
    if missing:
        raise ConfigError(f'{path} is no checkpoint of a training: no {sorted(missing)}')
    before, now = content.get('settings', {}), kept_settings(config)
    changed = [name for name in before if before[name] != now.get(name)]
    if changed:
        values = [f'{name} {before[name]}, not {now.get(name)}' for name in changed]
        raise ConfigError(
            f'{path} is of a training with {"; ".join(values)}: go on with its settings, '
            'or begin a new training with its model as a start (--from)'
        )


def check_data(path: str | Path, data: PairData) -> None:
    """Refuse a checkpoint of a training on other data.

    The card would name the new data alone, and the best errors so far would be those on
    other pairs.
    """
    content = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
    before, now = content.get(PairData.__qualname__, data.summary), data.summary
    if before != now:
        counts = [
            f'{one["train"]} pairs to train on, {one["val"]} to validate on and '
            f'{one["relaxed"]} relaxed structures'
            for one in (before, now)
        ]
        changed = f', now {counts[1]}' if counts[0] != counts[1] else ', now others'
        raise ConfigError(
            f'{path} is of a training on other data: it had {counts[0]}{changed}. Go on '
            'with its data, or begin a new training with its model as a start (--from); '
            'with its data and --set optimize.max_steps=1, that model is written at once'
        )
