"""Forked worker processes after a prediction."""

from __future__ import annotations

import os
from functools import cache

import torch


@cache
def make_forks_safe() -> None:
    """Let child processes that are forked from now on compute with one thread.

    The threads that torch has computed with do not exist in a forked child, where the next
    parallel computation would wait for them for ever. With one thread it needs none of
    them; workers of ``multiprocessing`` share the cores among themselves anyway. Processes
    that are started in another way (spawn) are as they were.

    The first prediction calls this; later calls do nothing.
    """
    if hasattr(os, 'register_at_fork'):  # Windows has no fork.
        os.register_at_fork(after_in_child=_use_one_thread)


def _use_one_thread() -> None:
    torch.set_num_threads(1)
