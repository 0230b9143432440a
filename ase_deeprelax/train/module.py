"""One training run: Lightning module, trainer, and the model folder that comes out."""

import json
import logging
import math
import time
from contextlib import contextmanager
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from ase_deeprelax.errors import ConfigError
from ase_deeprelax.models import create_model
from ase_deeprelax.models.base import relaxed_structure
from ase_deeprelax.models.layers import mean_over_atoms
from ase_deeprelax.train.config import load_config
from ase_deeprelax.train.datamodule import PairData
from ase_deeprelax.train.losses import relaxation_loss
from ase_deeprelax.weights.store import load_model, save_model

log = logging.getLogger(__name__)

PRECISION = {'32': '32-true', '64': '64-true', 'bf16': 'bf16-mixed'}


class RelaxationModule(lightning.LightningModule):
    """A model with its loss, its optimizer and its schedule."""

    def __init__(self, model, config):
        super().__init__()
        self.model, self.config = model, config
        self.elapsed = 0.0  # seconds of training, over all resumed parts
        self._started = None

    def training_step(self, graph, _):
        prediction = self.model(graph)
        with torch.autocast(self.device.type, enabled=False):
            terms = relaxation_loss(graph, prediction, self.config.loss)
        n = graph.n_graphs
        values = {f'train/{name}': value.detach() for name, value in terms.items()}
        self.log_dict(values, batch_size=n)
        self.log('loss', terms['loss'].detach(), prog_bar=True, logger=False, batch_size=n)
        if not torch.isfinite(terms['loss']):
            log.warning('step %d: the loss is not finite; skipped', self.global_step)
            return None
        return terms['loss']

    def validation_step(self, graph, _):
        # Full precision, and not compiled a second time for it.
        with (
            torch.autocast(self.device.type, enabled=False),
            torch.compiler.set_stance('force_eager'),
        ):
            prediction = self.model(graph)
            terms = relaxation_loss(graph, prediction, self.config.loss)
            values = terms | structure_errors(graph, prediction)
        self.log_dict(
            {f'val/{name}': value for name, value in values.items()},
            batch_size=graph.n_graphs,
            on_epoch=True,
        )
        self.log(
            'coord',
            values['coord_mae'],
            prog_bar=True,
            logger=False,
            batch_size=graph.n_graphs,
        )

    def configure_optimizers(self):
        o = self.config.optimize
        optimizer = torch.optim.AdamW(
            self.parameters(),
            lr=o.learning_rate,
            weight_decay=o.weight_decay,
            amsgrad=False,
        )
        if o.schedule == 'plateau':
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, factor=0.8, patience=5, min_lr=1e-8
            )
            return {
                'optimizer': optimizer,
                'lr_scheduler': {
                    'scheduler': scheduler,
                    'monitor': 'val/select',
                    'interval': 'step',
                    'frequency': o.val_every_steps,
                    'strict': False,
                },
            }
        return optimizer

    def on_train_batch_start(self, *_):
        now = time.monotonic()
        if self._started is not None:
            self.elapsed += now - self._started
        self._started = now
        o = self.config.optimize
        if o.schedule == 'cosine':
            warmup = min(1.0, (self.global_step + 1) / max(1, o.warmup_steps))
            factor = warmup * 0.5 * (1 + math.cos(math.pi * self.fraction()))
            for group in self.optimizers().param_groups:
                group['lr'] = o.learning_rate * max(factor, 1e-3)

    def on_train_batch_end(self, *_):
        if self.fraction() >= 1:
            self.trainer.should_stop = True

    def fraction(self):
        """How much of the budget of minutes or steps is used, 0 to 1."""
        o = self.config.optimize
        by_steps = self.global_step / o.max_steps if o.max_steps else 0
        by_time = self.elapsed / (60 * o.max_minutes) if o.max_minutes else 0
        return min(1.0, max(by_steps, by_time))

    def on_validation_start(self):
        self._pause = time.monotonic()

    def on_validation_end(self):
        if self._started is not None:
            self._started += time.monotonic() - self._pause

    def on_save_checkpoint(self, checkpoint):
        checkpoint['elapsed'] = self.elapsed

    def on_load_checkpoint(self, checkpoint):
        self.elapsed = checkpoint['elapsed']


def structure_errors(graph, prediction):
    """Mean errors of the structures in a batch, and the number that selects a model.

    The sum of coordinate and lattice error: a model is not chosen for one of them.
    """
    cell, pos = relaxed_structure(graph, prediction)
    truth = prediction.__class__(
        graph.deformation_target, graph.displacement_target, None, None, None
    )
    cell1, pos1 = relaxed_structure(graph, truth)
    shift = pos - pos1
    shift = shift - mean_over_atoms(shift, graph).index_select(0, graph.graph_of_atom)
    coord = mean_over_atoms(shift.abs().mean(1), graph).mean()
    lattice = (cell - cell1).abs().mean()
    volume = (torch.linalg.det(cell) - torch.linalg.det(cell1)).abs().mean()
    return {
        'coord_mae': coord,
        'lattice_mae': lattice,
        'volume_mae': volume,
        'select': coord + lattice,
    }


def train(config_path, *, overrides=(), resume=None, start=None, progress=True):
    """Train a model as a YAML file says.

    Parameters
    ----------
    config_path : path
    overrides : iterable of str
        ``'key.key=value'``, see `load_config`.
    resume : path, optional
        Checkpoint (``last.ckpt`` in the output folder) to go on from: optimizer,
        schedule, averaged weights and used time come back. Open only your own: Lightning's
        checkpoints are pickles.
    start : str or path, optional
        Model to start the weights from (transfer learning).
    progress : bool
        Show a progress bar.

    Returns
    -------
    pathlib.Path
        The folder of the trained model, ``output/name/model``; `load_model` takes it.

    Raises
    ------
    ConfigError, PairFileError, ModelError
    """
    config = load_config(config_path, overrides)
    with _fast_arithmetic(config.optimize.threads):
        return _train(config_path, config, resume, start, progress)


@contextmanager
def _fast_arithmetic(threads):
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


def _train(config_path, config, resume, start, progress):
    o = config.optimize
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    settings = dict(config.model)
    if 'architecture' not in settings:
        raise ConfigError(f'{config_path}: model.architecture is missing')
    model = create_model(settings.pop('architecture'), **settings)
    if start is not None:
        model.load_state_dict(load_model(start).state_dict())
    if o.precision == '64':
        model.double()
    data = PairData(config, model.spec)
    module = RelaxationModule(model, config)
    if o.compile:
        for layer in [*model.messages, *model.updates]:
            layer.compile(dynamic=True)
    output = config.output / config.name
    trainer = lightning.Trainer(
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
        callbacks=_callbacks(config, output, bool(data.val), progress),
        logger=[
            CSVLogger(output, name='csv'),
            TensorBoardLogger(output, name='tensorboard'),
        ],
        enable_progress_bar=progress,
        enable_model_summary=False,
        default_root_dir=output,
    )
    trainer.fit(module, data, ckpt_path=resume, weights_only=False)
    return export(trainer, module, data, output / 'model')


def _callbacks(config, output, validates, progress):
    o = config.optimize
    callbacks = [
        EMAWeightAveraging(decay=o.ema),
        LearningRateMonitor(),
        ModelCheckpoint(
            output,
            filename='last',
            every_n_train_steps=o.val_every_steps,
            enable_version_counter=False,
        ),
    ]
    if progress:
        callbacks.append(TQDMProgressBar(refresh_rate=20))
    if validates:
        callbacks.append(
            ModelCheckpoint(
                output, filename='best', monitor='val/select', enable_version_counter=False
            )
        )
        if o.early_stop:
            callbacks.append(EarlyStopping('val/select', patience=o.early_stop))
    return callbacks


def export(trainer, module, data, folder):
    """Save the averaged weights with the card of the run."""
    config = module.config
    n_atoms = [len(pair.numbers) for pair in data.train]
    room = [abs(_det(p.cell0)) / len(p.numbers) for p in data.train]
    room.sort()
    card = {
        'name': config.name,
        'elements': data.elements,
        'range': {
            'n_atoms': [min(n_atoms), max(n_atoms)],
            'volume_per_atom': [room[len(room) // 1000], room[-1 - len(room) // 1000]],
        },
        'training': {
            'sources': [
                {'file': s.path.name, 'licence': s.licence} for s in config.data.pairs
            ],
            'pairs': len(data.train),
            'denoising_seeds': len(data.seeds),
            'seeds_licence': config.data.denoise.licence if config.data.denoise else '',
            'steps': trainer.global_step,
            'minutes': round(module.elapsed / 60, 1),
            'settings': json.loads(
                config.model_dump_json(exclude={'data', 'output', 'name'})
            ),
        },
        'metrics': {
            'validation': {
                name.removeprefix('val/'): float(value)
                for name, value in trainer.callback_metrics.items()
                if name.startswith('val/')
            }
        },
    }
    save_model(module.model.float(), folder, card)
    return Path(folder)


def _det(cell):
    (a, b, c), (d, e, f), (g, h, i) = cell
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
