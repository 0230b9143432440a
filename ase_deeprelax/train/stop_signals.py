"""SIGTERM, as queues send it when time is up, and Ctrl-C: stop with a checkpoint."""

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


def outlive_signals(_worker: int) -> None:
    """Let a process that loads data live until the training has stopped by itself.

    Queues send SIGTERM to all processes of a job, and terminals Ctrl-C. If those that load
    data ended first, the training would end with an error in the middle of a step, without
    a checkpoint.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

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


class StopOnSignal(lightning.Callback):
    """Ends a training after the present step; a second Ctrl-C ends it at once.

    Parameters
    ----------
    checkpoint : path
        Written then; ``train(..., resume=checkpoint)`` goes on to the same weights.
    """

    def __init__(self, checkpoint: Path):
        self.checkpoint = checkpoint
        self.came: int | None = None  # the number of the signal

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        # Here, and not before: Lightning sets a handler of its own, which ends with status
        # 0, and puts back the former one when it is done.
        if threading.current_thread() is not threading.main_thread():
            return
        signal.signal(signal.SIGTERM, self._note)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in the background
            signal.signal(signal.SIGINT, self._note)

    def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        if self.came is None:
            return
        trainer.save_checkpoint(self.checkpoint)
        trainer.should_stop = True
        # Lightning validates at the end, which would count as one validation more than
        # there are without the signal.
        batches = trainer.fit_loop.total_batch_idx + 1
        if trainer.limit_val_batches and batches % trainer.val_check_batch:
            trainer.limit_val_batches = 0

    def exit_if_it_came(self) -> None:
        """Exit with status 143 or 130, with a warning that names the way to go on."""
        if self.came is None:
            return
        log.warning(
            'stopped by %s; the same command with --resume %s goes on',
            'Ctrl-C' if self.came == signal.SIGINT else 'SIGTERM',
            self.checkpoint,
        )
        raise SystemExit(128 + self.came)

    def _note(self, number: int, _frame: Any) -> None:
        self.came = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
