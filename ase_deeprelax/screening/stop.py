"""SIGTERM, as queues send it when time is up: the pack at work is finished first."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any


class Stop:
    """Whether a screen shall end after the present pack; a context manager.

    The first SIGTERM asks for that, a second one ends the process as it would have before.
    Outside the main thread of a program signals are left alone.

    Parameters
    ----------
    flag : Path
        A file that tells workers on other machines; it is made when SIGTERM comes.

    Attributes
    ----------
    came : bool
    """

    def __init__(self, flag: Path):
        self.flag, self.came = flag, False
        self._former: Any = None

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._former = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._former is not None:
            signal.signal(signal.SIGTERM, self._former)
        self.flag.unlink(missing_ok=True)

    def ask(self) -> None:
        """Let all workers end after their present pack."""
        self.came = True
        with suppress(OSError):  # a full disk
            self.flag.touch()

    def _note(self, *_: Any) -> None:
        signal.signal(signal.SIGTERM, self._former)
        self.ask()
