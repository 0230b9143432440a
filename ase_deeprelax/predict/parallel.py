"""Many structures, window by window: in this process, or in several of this machine."""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from math import ceil
from multiprocessing.util import Finalize
from numbers import Integral
from pickle import PicklingError
from threading import Thread
from time import sleep
from typing import TYPE_CHECKING, Any

from ase import Atoms
from ase.filters import Filter
from joblib import cpu_count, effective_n_jobs
from joblib.externals.loky.process_executor import (
    ProcessPoolExecutor,
    TerminatedWorkerError,
)

from ase_deeprelax.errors import ConfigError, DeepRelaxError
from ase_deeprelax.geometry.degrees_of_freedom import unwrap
from ase_deeprelax.predict.window import Window

if TYPE_CHECKING:
    from ase_deeprelax.geometry.free_strain import RelaxCell
    from ase_deeprelax.predict.predictor import Predictor
    from ase_deeprelax.result import Relaxation

# Structures whose graphs are held, and sorted by size, at a time. A worker takes fewer, so
# that none of them waits for long at the end.
WINDOW, WINDOW_OF_WORKER = 1024, 64
# Windows that wait for each worker, or are at work in it, at a time.
AHEAD = 2
# Time after which workers without work end, s.
IDLE = 300
# How often workers look whether the process that began them is there, s.
LOOK = 2

# Results of the structures of a window, and the errors of some by their index.
Found = tuple[list['Relaxation'], dict[int, DeepRelaxError]]


def relax_windows(
    predictor: Predictor,
    structures: Iterable[Any],
    relax_cell: RelaxCell | None = None,
    *,
    workers: int = 1,
    bar: Any = None,
) -> Generator[Found]:
    """Relax structures, which are taken from the iterable one by one and copied.

    Parameters
    ----------
    predictor : Predictor
    structures : iterable
        It may change and give the same object again and again. Only the caller's thread
        goes through it, as rows of a database ask for.
    relax_cell : bool, str, array or None
        See `find_freedom`.
    workers : int
        How many processes, -1: one for each core. Default 1: this one. They stay, and wait
        for the next call. One structure alone is relaxed in this process.
    bar : tqdm, optional
        Updated when structures are done.

    Yields
    ------
    tuple of list of Relaxation and dict of int to DeepRelaxError
        ``Window.results()`` and ``Window.errors`` of each window, in their order.

    Raises
    ------
    ConfigError
        The number of workers is none; the model or a structure cannot be sent to another
        process; or such a process was killed.
    ModelError
        The folder of the model was changed since the predictor read it.
    """
    if (
        isinstance(workers, bool)
        or not isinstance(workers, Integral)
        or (workers != -1 and workers < 1)
    ):
        raise ConfigError(
            f'workers is {workers!r}; it must be 1 or more, or -1 for one on each core'
        )
    workers = effective_n_jobs(workers)
    if workers == 1 or (isinstance(structures, Sized) and len(structures) == 1):
        for window in _windows(structures, WINDOW):
            yield _relax_window(predictor, window, relax_cell, bar)
        return
    make, pool = predictor.copy_in_worker(), _pool(workers, os.getpid())
    tasks = (
        pool.submit(_relax_in_worker, make, window, relax_cell)
        for window in _windows(structures, _share(structures, workers))
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


def _windows(structures: Iterable[Any], size: int) -> Iterator[list[Any]]:
    copies = map(_detached, structures)
    while window := list(islice(copies, size)):
        yield window


def _relax_window(
    predictor: Predictor,
    structures: list[Any],
    relax_cell: RelaxCell | None,
    bar: Any,
) -> Found:
    window = Window(predictor, structures, relax_cell, bar)
    return window.results(), window.errors


def _relax_in_worker(
    make: Callable[[], Predictor], structures: list[Any], relax_cell: RelaxCell | None
) -> Found:
    return _relax_window(make(), structures, relax_cell, None)


def _detached(structure: Any) -> Any:
    """A copy of a structure as it is now, without its calculator, which may be large or
    bound to this process.

    What cannot be copied is returned as it is, and fails alone where it is relaxed.
    """
    with suppress(Exception):
        if isinstance(structure, Filter):
            return copy.deepcopy(structure, {id(unwrap(structure).calc): None})
        if isinstance(structure, Atoms) or hasattr(structure, 'is_ordered'):
            return structure.copy()
    return structure
