"""Many structures, window by window: in this process, or in several of this machine."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import islice
from math import ceil
from numbers import Integral
from pickle import PicklingError
from typing import TYPE_CHECKING, Any

from ase import Atoms
from ase.filters import Filter
from joblib import Parallel, delayed, effective_n_jobs
from joblib.externals.loky.process_executor import TerminatedWorkerError

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
        for the next call.
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
    if workers == 1:
        for window in _windows(structures, WINDOW):
            yield _relax_window(predictor, window, relax_cell, bar)
        return
    make = predictor.copy_in_worker()
    failures: list[Exception] = []
    windows = _windows(structures, _share(structures, workers))
    tasks = (
        delayed(_relax_in_worker)(make, window, relax_cell)
        for window in _until_error(windows, failures)
    )
    # Large arrays go as they are: those that workers share would come back read-only.
    # All tasks are made here: any others would be made in a thread of the pool.
    pool = Parallel(workers, return_as='generator', max_nbytes=None, pre_dispatch='all')
    try:
        with _closed_in_silence(pool(tasks)) as found:
            for results, errors in found:
                if bar is not None:
                    bar.update(len(results))
                yield results, errors
    except TerminatedWorkerError as error:
        raise ConfigError(
            f'one of {workers} workers was killed, most likely because the memory ran out; '
            'use fewer of them'
        ) from error
    except (PicklingError, BrokenProcessPool) as error:
        raise ConfigError(
            'the model, or what is stored in a structure, cannot be sent to another '
            'process; use workers=1'
        ) from error
    for failure in failures:
        raise failure


@contextmanager
def _closed_in_silence(results: Generator[Found]) -> Generator[Generator[Found]]:
    """Close the results of a pool at the end, without a warning of those left in it."""
    try:
        yield results
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            results.close()


def _share(structures: Iterable[Any], workers: int) -> int:
    """How many structures a worker takes at a time, so that each of them gets some."""
    if not isinstance(structures, Sized):
        return WINDOW_OF_WORKER
    return min(WINDOW_OF_WORKER, ceil(len(structures) / workers))


def _windows(structures: Iterable[Any], size: int) -> Iterator[list[Any]]:
    copies = map(_detached, structures)
    while window := list(islice(copies, size)):
        yield window


def _until_error(
    windows: Iterator[list[Any]], failures: list[Exception]
) -> Iterator[list[Any]]:
    """Windows up to an error of the iterable, which is kept: joblib could lose it."""
    try:
        yield from windows
    except Exception as error:  # noqa: BLE001 - the iterable is the user's
        failures.append(error)


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
