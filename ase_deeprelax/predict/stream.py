"""Many structures, window by window: in this process, or in several of this machine."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterable, Iterator, Sized
from contextlib import suppress
from itertools import islice
from numbers import Integral
from typing import TYPE_CHECKING, Any

from ase import Atoms
from ase.filters import Filter

from ase_deeprelax.errors import ConfigError, DeepRelaxError
from ase_deeprelax.geometry.degrees_of_freedom import unwrap
from ase_deeprelax.predict.window import Window

if TYPE_CHECKING:
    from ase_deeprelax.geometry.free_strain import RelaxCell
    from ase_deeprelax.predict.predictor import Predictor
    from ase_deeprelax.result import Relaxation

# Structures whose graphs are held, and sorted by size, at a time.
WINDOW = 1024

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
    if workers != 1:
        from joblib import effective_n_jobs  # takes a while to load, as `parallel` does

        workers = effective_n_jobs(workers)
    if workers == 1 or (isinstance(structures, Sized) and len(structures) == 1):
        for window in windows_of(structures, WINDOW):
            yield relax_window(predictor, window, relax_cell, bar)
        return
    from ase_deeprelax.predict.parallel import relax_in_processes

    yield from relax_in_processes(predictor, structures, relax_cell, workers, bar)


def windows_of(structures: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Copies of structures as they are now, so many at a time."""
    copies = map(_detached, structures)
    while window := list(islice(copies, size)):
        yield window


def relax_window(
    predictor: Predictor,
    structures: list[Any],
    relax_cell: RelaxCell | None,
    bar: Any = None,
) -> Found:
    """Relax the structures of a window in this process."""
    window = Window(predictor, structures, relax_cell, bar)
    return window.results(), window.errors


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
