"""One training run: trainer, checkpoints, and the model folder that comes out.

A run, from top to bottom:

1. `config.load_config` reads the YAML file and checks every setting.
2. `train` refuses a folder that holds another training, and a checkpoint of other settings
   (`checkpoints`), then sets threads and arithmetic.
3. `_module` makes the network (`models.create_model`), with weights of another one or not.
4. `datamodule.PairData` reads pairs and relaxed structures, leaves out what must not be
   trained on, and makes batches of similar sizes in an order that seed and epoch decide.
   A checkpoint of a training on other data is refused. Until here nothing is written. Then
   the folder is locked: another training that was begun with the same name is refused.
5. A batch: `augment.changed` makes denoising pairs (`disturb`), takes away freedom (`hold`)
   and changes the other inputs (`augment`); `samples.fit_thickness` makes the targets.
   Edges are found on the device (`data.radius_edges`). A graph that is not one of all
   neighbours within a radius comes from `data.convert.to_graph`, with targets in its frame.
6. `module.RelaxationModule` takes a step: `recycle.recycled` puts the network's own answers
   in place of the inputs of some batches; then the network, `losses.relaxation_loss`, Muon
   and AdamW with the rate of the schedule, which may count steps or minutes.
7. Lightning writes ``last.ckpt`` and ``best.ckpt``; SIGTERM and Ctrl-C write ``last.ckpt``
   and end.
8. `_choose_weights` takes the better of the last and the best validated averages.
9. `card.describe_training` collects what there is to know, and `models.store.save_model`
   writes the folder.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from ase_deeprelax.errors import ConfigError
from ase_deeprelax.files import check_writable, lock_or_refuse
from ase_deeprelax.models import create_model
from ase_deeprelax.models.base import RelaxationModel
from ase_deeprelax.models.config_file import CONFIG
from ase_deeprelax.models.ensemble import Ensemble
from ase_deeprelax.models.store import check_sizes, load_model, save_model
from ase_deeprelax.train.card import describe_training
from ase_deeprelax.train.checkpoints import (
    check_checkpoint,
    check_data,
    check_new,
    check_start,
)
from ase_deeprelax.train.config import TrainConfig, load_config
from ase_deeprelax.train.datamodule import PairData
from ase_deeprelax.train.module import RelaxationModule
from ase_deeprelax.train.progress import progress_callback, without_idle_remarks
from ase_deeprelax.train.stop_signals import StopOnSignal, no_orphans

log = logging.getLogger(__name__)

# A file in the folder of a training, which belongs to one process at a time.
LOCK = '.lock'
PRECISION: dict[str, Any] = {'32': '32-true', '64': '64-true', 'bf16': 'bf16-mixed'}


def train(
    config_path: str | Path,
    *,
    overrides: Iterable[str] = (),
    resume: str | Path | None = None,
    start: str | Path | None = None,
    progress: bool = True,
) -> Path:
    """Train a model as a YAML file says.

    Parameters
    ----------
    config_path : path
        A YAML file, see `train.config.TrainConfig`.
    overrides : iterable of str
        ``'key.key=value'``, see `load_config`.
    resume : path, optional
        Checkpoint (``last.ckpt`` in the output folder) to go on from, to the same weights
        as without the interruption where the limit is one of steps: optimizer,
        schedule, averaged weights, used time and the place in the data come back. Code in
        it is not run.
    start : str or path, optional
        Model to start the weights from (transfer learning); not beside ``resume``.
    progress : bool
        Show a progress bar; where standard error is no terminal, a line for each
        validation. Default True.

    Returns
    -------
    pathlib.Path
        The folder of the trained model, ``output/name/model``; `load_model` takes it.

    Raises
    ------
    ConfigError, PairFileError, ModelError
        Nothing was trained, and nothing is changed on disk.
    DeepRelaxError
        A hundred steps one after the other could not be taken, because the loss or the
        gradient was not finite or far too large. Checkpoints stay.
    SystemExit
        SIGTERM or Ctrl-C came: ``last.ckpt`` is written, the status is 143 or 130.
    """
    config = load_config(config_path, overrides)
    output = config.output / config.name
    if resume is not None and start is not None:
        raise ConfigError(
            f'a training goes on from {resume} with the weights that are there; give '
            'resume or a model to start from, not both'
        )
    if start is not None:
        check_start(start)
    if resume is None or Path(resume).resolve().parent != output.resolve():
        check_new(output)
    if resume is not None:
        check_checkpoint(resume, config)
    with _fast_arithmetic(config.optimize.threads), without_idle_remarks(), no_orphans():
        return _train(config_path, config, resume, start, progress)


@contextmanager
def _fast_arithmetic(threads: int | None) -> Generator[None]:
    """Subnormal numbers as zero, and a number of threads; afterwards all is as it was."""
    before = torch.get_num_threads()
    # Subnormal numbers slow matrix products several times; worker threads of the products
    # inherit the setting only if it comes before the first of them starts.
    torch.set_flush_denormal(True)
    if threads:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)


def _train(
    config_path: str | Path,
    config: TrainConfig,
    resume: str | Path | None,
    start: str | Path | None,
    progress: bool,
) -> Path:
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    module = _module(config_path, config, start)
    data = PairData(config, module.model.spec)
    if resume is not None:
        check_data(resume, data)
    if not data.val:
        log.warning(
            "no pair has the split 'val': no errors are shown, the last weights count"
        )
    output = config.output / config.name
    check_writable(output / 'model' / CONFIG)
    output.mkdir(parents=True, exist_ok=True)
    with (output / LOCK).open('a') as lock:
        lock_or_refuse(lock, output)
        return _fit(config, module, data, resume, progress)


def _fit(
    config: TrainConfig,
    module: RelaxationModule,
    data: PairData,
    resume: str | Path | None,
    progress: bool,
) -> Path:
    """Train the network, and write its folder."""
    o, output, model = config.optimize, config.output / config.name, module.model
    if o.compile:
        for name in ('messages', 'updates', 'layers'):
            for layer in getattr(model, name, ()):
                layer.compile(dynamic=True)
    stop = StopOnSignal(output / 'last.ckpt')
    averaging = WeightAveraging(
        use_buffers=False, multi_avg_fn=ramped_average(o.ema, o.ema_ramp)
    )
    trainer: Any = lightning.Trainer(
        accelerator='auto',
        devices=1,
        precision=PRECISION[o.precision],
        max_epochs=-1,
        max_steps=o.max_steps or -1,
        gradient_clip_val=o.clip,
        val_check_interval=o.val_every_steps if data.val else None,
        check_val_every_n_epoch=None,
        limit_val_batches=None if data.val else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=50,
        # The last one writes a checkpoint that holds what the first has learnt of the step.
        callbacks=[
            averaging,
            *_callbacks(config, output, bool(data.val), progress),
            stop,
        ],
        logger=[
            CSVLogger(output, name='csv'),
            TensorBoardLogger(output, name='tensorboard'),
        ],
        enable_progress_bar=progress and sys.stderr.isatty(),
        enable_model_summary=False,
        default_root_dir=output,
    )
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    stop.exit_if_it_came()
    # Lightning leaves it out where a training that goes on has no step left to take.
    averaging.on_train_end(trainer, module)
    # With it, the averages would be validated in place of the weights that are chosen.
    trainer.callbacks.remove(averaging)
    errors = _choose_weights(trainer, module, data) if data.val else {}
    card = describe_training(config, data, module, steps=trainer.global_step, errors=errors)
    save_model(model.float(), output / 'model', card)
    return output / 'model'


def _module(
    config_path: str | Path, config: TrainConfig, start: str | Path | None
) -> RelaxationModule:
    """The network to train, with the weights that it starts from."""
    settings: dict[str, Any] = {**config.model}
    check_sizes(settings, f'{config_path}, model')
    model = create_model(settings.pop('architecture'), **settings)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            f'{config_path}: {model.architecture!r} has no weights that could be trained'
        )
    if config.data.recycle and not model.spec.is_radius:
        raise ConfigError(
            f'{config_path}: data.recycle is {config.data.recycle:g}, but the graph of '
            f'this model, {model.spec}, cannot be made again in a training; set it to 0'
        )
    origin = None if start is None else _take_weights(model, start)
    if config.optimize.precision == '64':
        model.double()
    return RelaxationModule(model, config, origin)


def _take_weights(model: RelaxationModel, start: str | Path) -> dict[str, str]:
    """Start from another model's weights, which must be of the same form; say which."""
    other = load_model(start)
    if isinstance(other, Ensemble):
        raise ConfigError(
            f'{str(start)!r} is an ensemble; start from one of its members: '
            f'{", ".join(other.card.members)}'
        )
    fits = model.spec == other.spec
    try:
        model.load_state_dict(other.state_dict())
    except RuntimeError:  # a list of all weights that differ, or are not there
        fits = False
    if not fits:
        raise ConfigError(
            f'the weights of {str(start)!r} ({other.architecture}, '
            f'{other.hyperparameters}) do not fit {model.architecture}, '
            f'{model.hyperparameters}: give the same model settings'
        )
    return {'name': other.name, 'licence': other.card.licence, 'sha256': other.sha256}


def _choose_weights(
    trainer: lightning.Trainer, module: RelaxationModule, data: PairData
) -> dict[str, float]:
    """Leave the better of the last and the best validated weights; their errors."""
    last = trainer.validate(module, data, verbose=False)[0]
    best = next(
        callback
        for callback in trainer.checkpoint_callbacks
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None
    )
    better = best.best_model_score is not None and (
        best.best_model_score < last['val/select']
    )
    if better and not Path(best.best_model_path).is_file():
        log.warning('%s is gone: the last weights count', best.best_model_path)
    elif better:
        checkpoint = torch.load(best.best_model_path, map_location='cpu', weights_only=True)
        module.load_state_dict(checkpoint['state_dict'])
        last = trainer.validate(module, data, verbose=False)[0]
    return {name.removeprefix('val/'): value for name, value in last.items()}


def ramped_average(
    decay: float, ramp: int = 10
) -> Callable[[list[torch.Tensor], list[torch.Tensor], torch.Tensor], None]:
    """The exponential average of weights, which remembers few steps at first.

    With a fixed decay of 0.999, a training of a thousand steps would hand out weights that
    are a third the random ones it began with.

    Parameters
    ----------
    decay : float
        Where the ramp ends.
    ramp : int
        The decay after n steps is ``(1 + n) / (ramp + n)`` until then: at the default of
        10, the average is over a tenth of the steps; E3Relax-H2 takes 5 of its epochs.

    Returns
    -------
    callable
        Takes averages, weights and the number of steps, and changes the averages.

    Examples
    --------
    >>> average = torch.zeros(1)
    >>> ramped_average(0.999)([average], [torch.ones(1)], torch.tensor(8))
    >>> float(average)
    0.5
    >>> average = torch.zeros(1)
    >>> ramped_average(0.999, ramp=34)([average], [torch.ones(1)], torch.tensor(10))
    >>> float(average)
    0.75
    """

    def average(
        averages: list[torch.Tensor], weights: list[torch.Tensor], steps: torch.Tensor
    ) -> None:
        n = float(steps)
        kept = min(decay, (1 + n) / (ramp + n))
        for averaged, weight in zip(averages, weights, strict=True):
            averaged.lerp_(weight, 1 - kept)

    return average


def _callbacks(
    config: TrainConfig, output: Path, validates: bool, progress: bool
) -> list[lightning.Callback]:
    o = config.optimize
    callbacks: list[lightning.Callback] = [LearningRateMonitor()]
    if progress:
        callbacks.append(progress_callback())
    if validates:
        callbacks.append(
            ModelCheckpoint(
                output, filename='best', monitor='val/select', enable_version_counter=False
            )
        )
        if o.early_stop:
            callbacks.append(EarlyStopping('val/select', patience=o.early_stop))
    # After a validation, and behind the others, so that what they have learnt is in it.
    when: dict[str, Any] = {'save_on_train_epoch_end': False}
    if not validates:
        when = {'every_n_train_steps': o.val_every_steps}
    callbacks.append(
        ModelCheckpoint(output, filename='last', enable_version_counter=False, **when)
    )
    return callbacks
