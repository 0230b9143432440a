"""Windows of structures in several processes of this machine."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from itertools import islice
from math import ceil
from multiprocessing.util import Finalize
from pickle import PicklingError
from threading import Thread
from time import sleep
from typing import TYPE_CHECKING, Any

from joblib import cpu_count
from joblib.externals.loky.process_executor import (
    ProcessPoolExecutor,
    TerminatedWorkerError,
)

from ase_deeprelax.errors import ConfigError
from ase_deeprelax.predict.stream import Found, relax_window, windows_of

if TYPE_CHECKING:
    from ase_deeprelax.geometry.free_strain import RelaxCell
    from ase_deeprelax.predict.predictor import Predictor

# A worker takes so few structures at a time that none of them waits for long at the end.
WINDOW_OF_WORKER = 64
# Windows that wait for each worker, or are at work in it, at a time.
AHEAD = 2
# Time after which workers without work end, s.
IDLE = 300
# How often workers look whether the process that began them is there, s.
LOOK = 2


def relax_in_processes(
    predictor: Predictor,
    structures: Iterable[Any],
    relax_cell: RelaxCell | None,
    workers: int,
    bar: Any,
) -> Generator[Found]:
    """`stream.relax_windows` in two processes or more, which stay for later calls."""
    make, pool = predictor.copy_in_worker(), _pool(workers, os.getpid())
    tasks = (
        pool.submit(_relax_in_worker, make, window, relax_cell)
        for window in windows_of(structures, _share(structures, workers))
    )
    try:
        for results, errors in _in_order(tasks, AHEAD * workers):
            if bar is not None:
                bar.update(len(results))
            yield results, errors
    except (PicklingError, BrokenProcessPool) as error:
        if isinstance(error, BrokenProcessPool):
            _pool.cache_clear()
        if isinstance(error, TerminatedWorkerError):
            raise ConfigError(
                f'one of {workers} workers was killed, most likely because the memory ran '
                'out; use fewer of them'
            ) from error
        raise ConfigError(
            'the model, or what is stored in a structure, cannot be sent to another '
            'process; use workers=1'
        ) from error


@lru_cache(maxsize=1)
def _pool(workers: int, parent: int) -> ProcessPoolExecutor:
    """Processes that stay until they have had no work for a while, and share the cores.

    A forked child, which has another number than ``parent``, gets some of its own.
    """
    threads = os.environ.get('OMP_NUM_THREADS', str(max(1, cpu_count() // workers)))
    pool = ProcessPoolExecutor(
        workers,
        timeout=IDLE,
        initializer=_begin,
        initargs=(parent,),
        env={'OMP_NUM_THREADS': threads},
    )
    # A process that multiprocessing has started would wait for them at its end.
    Finalize(None, pool.shutdown, kwargs={'kill_workers': True}, exitpriority=0)
    return pool


def _begin(parent: int) -> None:
    """Let a worker end with the process that began it, even where that was killed."""
    if os.getppid() == parent:  # on Windows there may be a launcher between them
        Thread(target=_end_without, args=(parent,), daemon=True).start()


def _end_without(parent: int) -> None:
    while os.getppid() == parent:
        sleep(LOOK)
    os._exit(1)


def _in_order(tasks: Iterator[Future[Found]], most: int) -> Generator[Found]:
    """Results of tasks, of which only so many are begun before the first has ended."""
    waiting: deque[Future[Found]] = deque()
    try:
        waiting.extend(islice(tasks, most))
        while waiting:
            found = waiting.popleft().result()
            waiting.extend(islice(tasks, 1))
            yield found
    finally:
        for task in waiting:
            task.cancel()


def _share(structures: Iterable[Any], workers: int) -> int:
    """How many structures a worker takes at a time, so that each of them gets some."""
    if not isinstance(structures, Sized):
        return WINDOW_OF_WORKER
    return min(WINDOW_OF_WORKER, ceil(len(structures) / workers))


def _relax_in_worker(
    make: Callable[[], Predictor], structures: list[Any], relax_cell: RelaxCell | None
) -> Found:
    return relax_window(make(), structures, relax_cell)
