"""A screen: all structures of a source, relaxed in packs that survive a stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from tqdm.auto import tqdm

from ase_deeprelax import __version__
from ase_deeprelax.errors import ConfigError
from ase_deeprelax.geometry.free_strain import RelaxCell, plain_relax_cell
from ase_deeprelax.predict.stream import WINDOW
from ase_deeprelax.screening.databases import need_pyarrow
from ase_deeprelax.screening.results import Results
from ase_deeprelax.screening.sources import open_source
from ase_deeprelax.screening.stop import Stop
from ase_deeprelax.screening.store import Plan, Store
from ase_deeprelax.screening.work import Setup, Task, work
from ase_deeprelax.screening.workers import run_tasks

# Packs of a shard, the unit of work of executors and job arrays: 10,000 structures.
SHARD_PACKS = 10


@dataclass(frozen=True)
class Screen:
    """What has become of a screen.

    Attributes
    ----------
    out : Path
        Its folder.
    n_structures : int
        Of the source.
    n_done : int
        That are there, of all runs; with the quarantined ones.
    n_quarantined : int
        That could not be read or relaxed.
    stopped : bool
        Whether SIGTERM ended the run before its work was done.

    Examples
    --------
    >>> done = Screen(Path('run1'), 1000, 1000, 3, stopped=False)
    >>> f'{done.n_done} of {done.n_structures}, {done.n_quarantined} of them with a problem'
    '1000 of 1000, 3 of them with a problem'
    """

    out: Path
    n_structures: int
    n_done: int
    n_quarantined: int
    stopped: bool

    @property
    def results(self) -> Results:
        """The rows."""
        return Results(self.out)


def screen(
    source: str | Path,
    out: str | Path,
    *,
    model: Any = 'default',
    device: str = 'auto',
    dtype: str = 'float32',
    symmetry: str = 'keep',
    relax_cell: RelaxCell | None = None,
    workers: int = 1,
    executor: Executor | None = None,
    shard: tuple[int, int] | None = None,
    pack: int = WINDOW,
    progress: bool = False,
) -> Screen:
    """Relax all structures of a file, folder or archive, and keep each answer as a row.

    The source is read as a stream. Structures go through the network in packs; each pack
    becomes a parquet file in ``out``, and whatever stops the run, the same call goes on
    behind the last pack. What cannot be read or relaxed is a row with the reason.

    Parameters
    ----------
    source : str or Path
        See `open_source`.
    out : str or Path
        Folder of the screen; made, or continued.
    model : str, path or RelaxationModel
        See `relax`, as for the next four.
    device : str
        Default 'auto'.
    dtype : 'float32' or 'float64'
        Default 'float32'.
    symmetry : 'keep' or 'free'
        Default 'keep'.
    relax_cell : bool, str or array, optional
        Default: all of a crystal, the plane of a layer.
    workers : int
        Processes of this machine, each with the model and its share of the cores; they
        take several GPUs in turn. Default 1: this process.
    executor : concurrent.futures.Executor, optional
        Does the work in place of ``workers``: of ``concurrent.futures``, Dask
        (``client.get_executor()``), Parsl (``ParslPoolExecutor``), mpi4py. Its workers
        must see ``source`` and ``out``. A unit of work is ten packs.
    shard : (int, int), optional
        ``(3, 16)``: the third of sixteen parts, for job arrays; default all.
    pack : int
        Structures per pack; default 1024. A killed run loses one pack at most.
    progress : bool
        Show a bar with rate and time left; default False.

    Returns
    -------
    Screen
        How many structures are done; ``results`` gives the rows.

    Raises
    ------
    ConfigError
        ``source`` does not exist or was changed meanwhile, or ``out`` was begun with other
        settings, with another source, or is in use by another process.
    StructureError
        ``source`` cannot be read now, for example because its disk is away.
    FullDiskError
        A pack could not be written; all earlier ones are whole.
    MissingDependencyError
        pyarrow is not there.
    ValueError
        ``relax_cell`` makes no sense.

    Examples
    --------
    >>> done = screen('candidates.extxyz', 'run1', workers=2)  # doctest: +SKIP
    >>> done.results.table(sort='sigma', limit=10).to_pandas()  # doctest: +SKIP
    """
    need_pyarrow()
    opened, store = open_source(source), Store(out)
    _check_choices(Path(source), store.out, workers, shard, pack)
    setup = Setup(model, device, dtype, symmetry, plain_relax_cell(relax_cell))
    here = executor is None and workers == 1
    # Where others do the work, the device is theirs; this process may have none.
    predictor = (setup if here else replace(setup, device='cpu')).predictor()
    settings = {
        'model': predictor.name,
        'sha256': predictor.sha256,
        'version': __version__,
        'dtype': dtype,
        'symmetry': symmetry,
        'relax_cell': setup.relax_cell,
    }
    with store.locked(shard), Stop(store.out.absolute() / f'.stop-{uuid4().hex}') as stop:
        plan = store.begin(opened, settings, pack)
        mine = _packs_of(plan, shard)
        present = store.done()
        todo = [k for k in mine if k not in present]
        with tqdm(
            total=sum(map(plan.size, mine)),
            initial=sum(map(plan.size, set(mine) & present)),
            desc='screen',
            unit='structure',
            disable=not progress,
        ) as bar:
            count_done = _counter(store, plan, set(todo), bar)
            stamp = store.manifest()['stamp']

            def task(packs: Sequence[int]) -> Task:
                where = str(Path(source).absolute()), str(store.out.absolute())
                return Task(*where, tuple(packs), stamp, str(stop.flag), setup)

            if here:
                work(task(todo), count_done)
            else:
                units = _units(todo, workers if executor is None else None)
                run_tasks([task(u) for u in units], executor or workers, stop, count_done)
        stopped = bool(set(mine) - store.done())
        if todo and not stopped:  # else there may be no time, and the next run looks
            store.check_source(opened)
    results = Results(out)
    return Screen(
        store.out, plan.n_structures, len(results), results.n_quarantined, stopped
    )


def _check_choices(
    source: Path, out: Path, workers: int, shard: tuple[int, int] | None, pack: int
) -> None:
    if workers < 1 or pack < 1:
        raise ConfigError(f'workers is {workers}, pack {pack}; both must be 1 or more')
    if shard is not None and not 1 <= shard[0] <= shard[1]:
        raise ConfigError(f'shard {shard[0]}/{shard[1]}: it must be 1/N to N/N')
    if out.exists() and not out.is_dir():
        raise ConfigError(f'{out} is a file; the rows of a screen go to a folder')
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise ConfigError(
            f'{out} lies in {source}, which is read; choose a folder outside of it'
        )


def _packs_of(plan: Plan, shard: tuple[int, int] | None) -> Sequence[int]:
    """The packs of a part of the screen: runs of them, dealt out in turn."""
    if shard is None:
        return range(plan.n_packs)
    number, count = shard
    run = max(1, min(SHARD_PACKS, plan.n_packs // count))
    return [k for k in range(plan.n_packs) if k // run % count == number - 1]


def _units(packs: Sequence[int], workers: int | None) -> list[Sequence[int]]:
    """Runs of packs: shards, or shorter where some workers would have none."""
    size = SHARD_PACKS
    if workers is not None:
        size = max(1, min(size, len(packs) // (4 * workers)))
    return [packs[k : k + size] for k in range(0, len(packs), size)]


def _counter(store: Store, plan: Plan, todo: set[int], bar: tqdm) -> Callable[[], int]:
    """How many of the packs are done; each call moves the bar."""
    seen: set[int] = set()

    def count() -> int:
        new = (store.done() & todo) - seen
        seen.update(new)
        bar.update(sum(map(plan.size, new)))
        return len(seen)

    return count
