"""The work of one process: packs of structures, each read, relaxed and written."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from ase import Atoms

from ase_deeprelax import __version__
from ase_deeprelax.errors import ConfigError, DeepRelaxError, DeviceError, StructureError
from ase_deeprelax.files import is_of_system
from ase_deeprelax.predict import Predictor
from ase_deeprelax.predict.finish import failed
from ase_deeprelax.result import Relaxation, encode_atoms
from ase_deeprelax.screening.items import Item, Source
from ase_deeprelax.screening.sources import open_source
from ase_deeprelax.screening.store import Plan, Store

# Exit code of a worker whose GPU was lost.
LOST_DEVICE = 70


class LostDeviceError(DeviceError):
    """CUDA is of no more use to this process; the pack at work has to be done again."""


@dataclass(frozen=True)
class Setup:
    """How structures are relaxed; see `Predictor` and `relax`."""

    model: Any = 'default'
    device: str = 'auto'
    dtype: str = 'float32'
    symmetry: str = 'keep'
    relax_cell: Any = None

    def predictor(self) -> Predictor:
        """The model on the device."""
        return Predictor(
            self.model, device=self.device, dtype=self.dtype, symmetry=self.symmetry
        )


@dataclass(frozen=True)
class Task:
    """Some packs of a screen: what a worker is given, and does again if it is lost.

    Attributes
    ----------
    source, out : str
        Paths that mean the same for all workers.
    packs : tuple of int
    stamp : str
        Of the source, as the manifest has it.
    stop : str
        The worker ends after a pack when a file of this name is there.
    setup : Setup
    """

    source: str
    out: str
    packs: tuple[int, ...]
    stamp: str
    stop: str
    setup: Setup


def work(task: Task, after_pack: Callable[[], Any] | None = None) -> int:
    """Do a task, in this process or any other; packs that are there are passed over.

    Parameters
    ----------
    task : Task
    after_pack : callable, optional
        Called each time that a pack was written.

    Returns
    -------
    int
        How many packs were written.

    Raises
    ------
    ConfigError
        The model or the package is another one than the screen was begun with, or the
        source was changed since.
    StructureError
        The source cannot be read now, for example because its disk is away.
    LostDeviceError
        In this process CUDA answers no more; finished packs are kept.
    """
    try:
        return _work(task, after_pack)
    except OSError as error:
        if isinstance(error, DeepRelaxError):
            raise
        raise _not_read(task.source, error) from error
    except RuntimeError as error:
        # A failed assertion on the device, an ECC error, a GPU that is gone. With too
        # little memory `Predictor` has halved its batch instead.
        if 'CUDA error' not in str(error):
            raise
        raise LostDeviceError(
            f"the device '{task.setup.device}' was lost ({error}). Look at the GPU "
            '(nvidia-smi), then give the same command again: finished packs are kept'
        ) from error


def _work(task: Task, after_pack: Callable[[], Any] | None) -> int:
    store = Store(task.out)
    source = _opened(task.source, task.out, task.stamp)
    predictor, done = task.setup.predictor(), store.done()
    _check_same(predictor, store)
    todo = [pack for pack in task.packs if pack not in done]
    written = 0
    for pack, items in read_packs(source, store.plan(), todo):
        store.write(pack, relax_pack(items, predictor, task.setup.relax_cell))
        written += 1
        if after_pack is not None:
            after_pack()
        if Path(task.stop).exists():
            break
    return written


def _check_same(predictor: Predictor, store: Store) -> None:
    """Refuse to mix the answers of two models, as workers with other files would do."""
    here = {'sha256': predictor.sha256, 'version': __version__}
    known = store.manifest()['settings']
    begun = {name: known[name] for name in here}
    if begun != here:
        raise ConfigError(
            f'{store.out} was begun with {begun}, and a worker has {here}; give all '
            'workers the same model and the same version of ase-deeprelax'
        )


def work_or_exit(task: Task) -> int:
    """`work` in a process of its own, which ends, with `LOST_DEVICE`, if its GPU is lost.

    A new process may find the GPU well again, or have another one.
    """
    try:
        return work(task)
    except LostDeviceError as error:
        sys.stderr.write(f'{error}\n')
        sys.stderr.flush()
        os._exit(LOST_DEVICE)


@lru_cache(maxsize=1)
def _opened(path: str, out: str, _stamp: str) -> Source:
    """A source with the marks that the first pass over it left in the manifest."""
    source, store = open_source(path), Store(out)
    store.check_source(source)
    source.marks = store.manifest()['marks']
    return source


def read_packs(
    source: Source, plan: Plan, packs: Iterable[int]
) -> Iterator[tuple[int, Iterator[tuple[int, Item]]]]:
    """The numbered items of packs, given in rising order, in one go where they touch.

    Yields
    ------
    pack : int
    items : iterator of (int, Item)
        To be used up before the next pack is asked for.

    Raises
    ------
    ConfigError
        The source holds fewer items than the plan says.
    """
    items, at = iter(()), -1
    for pack in packs:
        first = pack * plan.pack
        if at != first:
            items = source.items(first)
        at = first + plan.size(pack)
        yield pack, _numbered(source, items, range(first, at))


def _numbered(
    source: Source, items: Iterator[Item], numbers: Sequence[int]
) -> Iterator[tuple[int, Item]]:
    for number in numbers:
        item = next(items, None)
        if item is None:
            raise ConfigError(
                f'{source.path} was changed during the screen: there is no structure '
                f'number {number} any more. Begin a new screen with the source as it is'
            )
        yield number, item


def relax_pack(
    items: Iterable[tuple[int, Item]], predictor: Predictor, relax_cell: Any = None
) -> list[dict[str, Any]]:
    """The rows of a pack; what cannot be read or relaxed has ``ok`` False and a reason."""
    named, structures, errors = [], [], {}
    for position, item in items:
        named.append((position, item.id))
        try:
            structures.append(item.load())
        except Exception as error:  # files hold anything
            if is_of_system(error):  # the structure is sound
                raise _not_read(item.id, error) from error
            errors[position] = _named(error)
    with warnings.catch_warnings():
        # Each row tells it.
        warnings.filterwarnings('ignore', '.*outside the training range')
        results = iter(predictor.relax(structures, relax_cell=relax_cell))
    rows = []
    for position, id in named:
        if position in errors:
            result = failed(Atoms(), errors[position], predictor.settings)
        else:
            result = next(results)
        rows.append(_row(position, id, result))
    return rows


def _row(position: int, id: str, result: Relaxation) -> dict[str, Any]:
    initial = result.initial
    row = {
        'id': id,
        'position': position,
        **result.to_row(),
        'finished': datetime.now(UTC).isoformat(timespec='seconds'),
        'atoms': encode_atoms(result.atoms) if result.ok else None,
        'initial_cell': initial.cell.array.ravel().tolist(),
        'initial_positions': initial.positions.astype(float).ravel().tolist(),
    }
    return {name: _encodable(value) for name, value in row.items()}


def _encodable(value: Any) -> Any:
    r"""Text that files can hold: names of files need not be UTF-8.

    >>> _encodable('M\udcf6bius.cif')
    'M\\udcf6bius.cif'
    """
    if not isinstance(value, str):
        return value
    return value.encode(errors='backslashreplace').decode()


def _not_read(what: str, error: Exception) -> StructureError:
    return StructureError(
        f'{what}: {error}; put that right and give the same command again: finished packs '
        'are kept'
    )


def _named(error: Exception) -> Exception:
    if isinstance(error, StructureError):
        return error
    return StructureError(f'cannot be read ({type(error).__name__}: {error})')
