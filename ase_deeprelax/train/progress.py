"""How far a training is: a bar in a terminal, a line for each validation in a log file."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import lightning
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.trainer.states import TrainerFn

# Remarks of Lightning on what is meant here: a new folder for checkpoints, few batches per
# epoch, a machine with SLURM on which no job was asked for, its own old parts, batches that
# begin in the middle of an epoch, which the samplers here take care of, and steps that are
# skipped, which the module here warns of.
IDLE = (
    'Checkpoint directory',
    'The number of training batches',
    "You're resuming from a checkpoint that ended before the epoch",
    'The `srun` command',
    '`isinstance\\(treespec, LeafSpec\\)`',
    '`training_step` returned `None`',
)


def progress_callback() -> lightning.Callback:
    """A bar where standard error is a terminal, else a line for each validation."""
    if sys.stderr.isatty():
        return TQDMProgressBar(refresh_rate=20)
    return LinePerValidation()


class LinePerValidation(lightning.Callback):
    """Writes step, minutes and errors to standard error after each validation."""

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Called by Lightning."""
        if trainer.state.fn != TrainerFn.FITTING:
            return  # the last choice of weights
        coordinates, lattice = (
            float(trainer.callback_metrics[f'val/{name}_mae'])
            for name in ('coord', 'lattice')
        )
        sys.stderr.write(
            f'step {trainer.global_step:,}, {pl_module.elapsed / 60:.1f} min: error of '
            f'coordinates {coordinates:.4f} A, of lattice vectors {lattice:.4f} A\n'
        )
        sys.stderr.flush()


@contextmanager
def without_idle_remarks() -> Generator[None]:
    """Lightning says what goes wrong, and nothing else."""
    log = logging.getLogger('lightning.pytorch')
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for text in IDLE:
                warnings.filterwarnings('ignore', text)
            yield
    finally:
        log.setLevel(level)
