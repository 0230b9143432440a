"""The Lightning module: a model with its loss, its optimizer and its schedule."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ase_deeprelax.data.graph import CrystalGraph
from ase_deeprelax.errors import DeepRelaxError
from ase_deeprelax.models.base import (
    ModelOutput,
    RelaxationModel,
    check_output,
    relaxed_structure,
)
from ase_deeprelax.models.heads import free_displacement
from ase_deeprelax.models.layers import mean_over_atoms
from ase_deeprelax.train.losses import (
    cross_distances,
    relaxation_loss,
    target_cross_distances,
)
from ase_deeprelax.train.muon import muon_and_adamw
from ase_deeprelax.train.recycle import is_drawn, recycled

if TYPE_CHECKING:
    from ase_deeprelax.train.config import TrainConfig

log = logging.getLogger(__name__)

# Usual norms of the gradient are below 100.
LARGEST_GRADIENT = 1e4
# A training that leaves out so many steps one after the other learns nothing any more.
MOST_SKIPPED = 100
# Settings of the optimizer whose values are in a checkpoint: a training that goes on from
# it cannot have others.
KEPT = ('learning_rate', 'muon_rate', 'weight_decay', 'amsgrad', 'schedule', 'precision')


class RelaxationModule(lightning.LightningModule):
    """A model in training; see `train.config` for its settings.

    Parameters
    ----------
    model : RelaxationModel
    config : TrainConfig
    start : dict of str to str, optional
        The model whose weights it began with, for its card; checkpoints keep it.
    """

    def __init__(
        self,
        model: RelaxationModel,
        config: TrainConfig,
        start: dict[str, str] | None = None,
    ):
        super().__init__()
        self.model, self.config, self.start = model, config, start
        self.elapsed = 0.0  # seconds of training, over all resumed parts
        self._skipped = 0  # steps left out since the last one that was taken
        self._started: float | None = None
        # Stepped here: Lightning would count the batches of an epoch, and an epoch may have
        # fewer of them than there are between two validations.
        self._plateau: ReduceLROnPlateau | None = None
        self._plateau_state: dict[str, Any] | None = None  # of a checkpoint

    def training_step(self, graph: CrystalGraph, _: int) -> torch.Tensor | None:
        if is_drawn(self.config.data.recycle, self.config.seed, self.global_step):
            graph = recycled(graph, self.model)
        prediction = self.model(graph)
        if self.global_step == 0:  # once: a GPU waits for it
            check_output(self.model, graph, prediction)
        with torch.autocast(self.device.type, enabled=False):
            terms = relaxation_loss(graph, prediction, self.config.loss)
        n = graph.n_graphs
        values = {f'train/{name}': value.detach() for name, value in terms.items()}
        self.log_dict(values, batch_size=n)
        self.log('loss', terms['loss'].detach(), prog_bar=True, logger=False, batch_size=n)
        # The gradient may be finite where the loss is not: that of an absolute error is.
        if not torch.isfinite(terms['loss']):
            self._skip('the loss is not finite')
            return None
        return terms['loss']

    def validation_step(self, graph: CrystalGraph, _: int) -> None:
        # Full precision, and not compiled a second time for it.
        with (
            torch.autocast(self.device.type, enabled=False),
            torch.compiler.set_stance('force_eager'),
        ):
            prediction = self.model(graph)
            terms = relaxation_loss(graph, prediction, self.config.loss)
            values = terms | structure_errors(graph, prediction)
            if (cross := cross_distances(prediction)) is not None:
                # Positions are the solver's: what it gets stands for them, as published.
                edges, distance = cross[:2]
                error = (distance - target_cross_distances(graph, edges)).abs()
                values['cross_distance_mae'] = error.sum() / max(1, len(error))
                values['select'] = values['cross_distance_mae'] + values['lattice_mae']
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

    def configure_optimizers(self) -> torch.optim.Optimizer:
        o = self.config.optimize
        if o.muon_rate is None:
            optimizer = torch.optim.AdamW(
                self.parameters(),
                lr=o.learning_rate,
                weight_decay=o.weight_decay,
                amsgrad=o.amsgrad,
            )
        else:
            optimizer = muon_and_adamw(
                self.model,
                muon_rate=o.muon_rate,
                adamw_rate=o.learning_rate,
                weight_decay=o.weight_decay,
                amsgrad=o.amsgrad,
            )
        for group in optimizer.param_groups:
            group['initial_lr'] = group['lr']
        if o.schedule == 'plateau':
            self._plateau = ReduceLROnPlateau(
                optimizer, factor=0.8, patience=5, min_lr=1e-8
            )
            if self._plateau_state is not None:
                self._plateau.load_state_dict(self._plateau_state)
        return optimizer

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        now = time.monotonic()
        if self._started is not None:
            self.elapsed += now - self._started
        self._started = now
        o = self.config.optimize
        if o.schedule == 'cosine':
            warmup = min(1.0, (self.global_step + 1) / max(1, o.warmup_steps))
            factor = warmup * 0.5 * (1 + math.cos(math.pi * self.fraction()))
            optimizer: Any = self.optimizers()
            for group in optimizer.param_groups:
                group['lr'] = group['initial_lr'] * max(factor, 1e-3)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave out a step of a sample on which the network explodes.

        Numbers that are not finite would end the run in NaN. A gradient cut to its limit
        would still be all that the momenta hold for many steps.
        """
        groups = optimizer.param_groups
        gradients = [p.grad for g in groups for p in g['params'] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not norm < LARGEST_GRADIENT:
            self._skip(f'the gradient is {norm:.3g}')
            optimizer.zero_grad()
        elif gradients:
            self._skipped = 0

    def _skip(self, why: str) -> None:
        """Warn of a step that is left out, and end a training that takes none any more."""
        log.warning('step %d: %s; skipped', self.global_step, why)
        self._skipped += 1
        if self._skipped == MOST_SKIPPED:
            raise DeepRelaxError(
                f'{MOST_SKIPPED} steps one after the other were skipped, the last one '
                f'because {why}: this training learns nothing any more. Begin a new one '
                f'with a smaller optimize.learning_rate than '
                f'{self.config.optimize.learning_rate:g}; a network of your own should '
                'pass the checks of ase_deeprelax.testing first'
            )

    def on_train_batch_end(
        self,
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        if self.fraction() >= 1:
            self.trainer.should_stop = True

    def fraction(self) -> float:
        """How much of the budget of minutes or steps is used, 0 to 1."""
        o = self.config.optimize
        by_steps = self.global_step / o.max_steps if o.max_steps else 0
        by_time = self.elapsed / (60 * o.max_minutes) if o.max_minutes else 0
        return min(1.0, max(by_steps, by_time))

    def on_validation_epoch_end(self) -> None:
        if self._plateau is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._plateau.step(self.trainer.callback_metrics['val/select'].item())

    def on_validation_start(self) -> None:
        self._pause = time.monotonic()

    def on_validation_end(self) -> None:
        if self._started is not None:
            self._started += time.monotonic() - self._pause

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint['elapsed'], checkpoint['start'] = self.elapsed, self.start
        checkpoint['settings'] = kept_settings(self.config)
        if self._plateau is not None:
            checkpoint['plateau'] = self._plateau.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.elapsed, self.start = checkpoint['elapsed'], checkpoint.get('start')
        self._plateau_state = checkpoint.get('plateau')


def kept_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that a training and all that go on from its checkpoints share."""
    kept = {f'optimize.{name}': getattr(config.optimize, name) for name in KEPT}
    return {'model': config.model, **kept}


def structure_errors(
    graph: CrystalGraph, prediction: ModelOutput
) -> dict[str, torch.Tensor]:
    """Mean errors of the structures in a batch, and the number that selects a model.

    The sum of coordinate and lattice error: a model is not chosen for one of them.
    """
    cell, pos = relaxed_structure(graph, prediction.deformation, prediction.displacement)
    cell1, pos1 = relaxed_structure(graph, *graph.targets())
    shift = free_displacement(pos - pos1, graph)
    coord = mean_over_atoms(shift.abs().mean(1), graph).mean()
    lattice = (cell - cell1).abs().mean()
    volume = (torch.linalg.det(cell) - torch.linalg.det(cell1)).abs().mean()
    return {
        'coord_mae': coord,
        'lattice_mae': lattice,
        'volume_mae': volume,
        'select': coord + lattice,
    }
