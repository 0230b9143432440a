"""SIGTERM, as queues send it when time is up: stop after a step, with a checkpoint."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning

log = logging.getLogger(__name__)

# Seconds that a process which loads data has after SIGTERM.
GRACE = 60


def outlive_sigterm(_worker: int) -> None:
    """Let a process that loads data live until the training has stopped by itself.

    Queues send SIGTERM to all processes of a job. If these ended first, the training would
    end with an error in the middle of a step, without a checkpoint.
    """

    def wait(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # The second one ends it.
        signal.alarm(GRACE)

    if hasattr(signal, 'alarm'):  # not on Windows
        signal.signal(signal.SIGTERM, wait)


@contextmanager
def no_orphans() -> Generator[None]:
    """End the processes that load data at once where a training ends with an error.

    Python would send them SIGTERM, and wait until their grace is over. Processes that were
    there before are not of the training.
    """
    others = set(multiprocessing.active_children())
    try:
        yield
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.kill()
        raise


class StopOnSigterm(lightning.Callback):
    """Ends a training after the present step.

    Parameters
    ----------
    checkpoint : path
        Written then; ``train(..., resume=checkpoint)`` goes on to the same weights.
    """

    def __init__(self, checkpoint: Path):
        self.checkpoint, self.came = checkpoint, False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        # Here, and not before: Lightning sets a handler of its own, which ends with status
        # 0, and puts back the former one when it is done.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)

    def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        if self.came:
            trainer.save_checkpoint(self.checkpoint)
            trainer.should_stop = True

    def exit_if_it_came(self) -> None:
        """Exit with status 143, with a warning that names the way to go on."""
        if self.came:
            log.warning(
                'stopped by SIGTERM; the same command with --resume %s goes on',
                self.checkpoint,
            )
            raise SystemExit(128 + signal.SIGTERM)

    def _note(self, *_: Any) -> None:
        self.came = True
