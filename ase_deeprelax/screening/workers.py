"""Many workers: processes of this machine, or any executor of ``concurrent.futures``."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from typing import Any

import torch

from ase_deeprelax.errors import DeepRelaxError
from ase_deeprelax.screening.stop import Stop
from ase_deeprelax.screening.work import LostDeviceError, Task, work, work_or_exit

# So often may workers be lost, one after the other, without a pack that is done.
LOSSES = 3
# Seconds between two looks at what is done.
LOOK = 0.5


def run_tasks(
    tasks: Sequence[Task],
    executor: Executor | int,
    stop: Stop,
    count_done: Callable[[], int],
) -> None:
    """Let workers do tasks; those of a lost worker are done again.

    Parameters
    ----------
    tasks : list of Task
    executor : Executor or int
        Or how many processes of this machine.
    stop : Stop
        Looked at all the time: when it came, no new task begins.
    count_done : callable
        How many packs there are; called again and again.

    Raises
    ------
    DeepRelaxError
        What a worker raised, or workers are lost again and again.
    """
    losses, done = 0, count_done()
    left = list(tasks)
    while left and not stop.came:
        with _executor(executor, left[0].setup.device) as pool:
            do = work if pool is executor else work_or_exit
            left, error = _round(left, do, pool, stop, count_done)
        now = count_done()
        losses, done = (losses + 1 if now == done else 1), now
        if error is not None and losses >= LOSSES:
            first = left[0].packs
            raise DeepRelaxError(
                f'{LOSSES} times in a row workers were lost before any of them had '
                f'finished a pack ({type(error).__name__}: {error}); packs '
                f'{first[0]} to {first[-1]} are among those that were at work. Give '
                'them more memory, or fewer workers, and the same command again'
            ) from error


def _round(
    tasks: Sequence[Task],
    do: Callable[[Task], int],
    pool: Executor,
    stop: Stop,
    count_done: Callable[[], int],
) -> tuple[list[Task], BaseException | None]:
    """The tasks that have to be done again, and what was raised for one of them."""
    running: dict[Future, Task] = {}
    left: list[Task] = []
    lost: BaseException | None = None
    try:
        for task in tasks:
            running[pool.submit(do, task)] = task
    except BrokenExecutor as error:
        lost = error
        left += tasks[len(running) :]
    try:
        while running:
            finished, _ = wait(running, timeout=LOOK, return_when=FIRST_COMPLETED)
            count_done()
            if stop.came:
                _cancel(running)
            for future in finished:
                task = running.pop(future)
                try:
                    future.result()
                except (CancelledError, LostDeviceError) as error:
                    left.append(task)
                    lost = error
                except (DeepRelaxError, KeyboardInterrupt):
                    raise
                except Exception as error:  # noqa: BLE001 - engines raise their own
                    left.append(task)
                    lost = error
    except BaseException:
        stop.ask()
        _cancel(running)
        wait(running)
        raise
    return left, lost


def _cancel(futures: dict[Future, Task]) -> None:
    for future in futures:
        future.cancel()


@contextmanager
def _executor(executor: Executor | int, device: str) -> Generator[Executor]:
    """The user's executor as it is, or processes that end with the block."""
    if isinstance(executor, Executor):
        yield executor
        return
    context = mp.get_context('spawn')  # forks do not get on with CUDA, or threads
    threads = max(1, torch.get_num_threads() // executor)
    with ProcessPoolExecutor(
        executor,
        mp_context=context,
        initializer=_begin,
        initargs=(threads, context.Value('i', 0), device),
    ) as pool:
        yield pool


def _begin(threads: int, begun: Any, device: str) -> None:
    """Make a fresh process a worker of this machine."""
    torch.set_num_threads(threads)
    with begun.get_lock():
        number, begun.value = begun.value, begun.value + 1
    _take_gpu(number, device)
    # The process that began the screen tells its workers to stop, in its own way.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _take_gpu(number: int, device: str) -> None:
    """Deal out the GPUs of a machine to workers in turn, if the user has not named one."""
    count = torch.cuda.device_count()
    if device in ('auto', 'cuda') and count > 1:
        torch.cuda.set_device(number % count)


def _end_with_parent() -> None:
    parent = mp.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)
