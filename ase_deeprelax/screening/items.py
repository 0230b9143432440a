"""Numbered structures of a file, each read only where it is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from ase import Atoms

from ase_deeprelax.data.structure_files import StructureFile, read_structures
from ase_deeprelax.errors import StructureError
from ase_deeprelax.files import is_of_system

# A file of more bytes holds more than one structure.
LARGEST_MEMBER = 1 << 26


class Item(NamedTuple):
    """One structure of a source.

    Attributes
    ----------
    id : str
        Its name in the source; the same in every run.
    load : callable
        Reads it: an ``ase.Atoms``, or an exception that says why there is none. Before the
        next item is asked for, or never: archives are closed behind the last one.
    """

    id: str
    load: Callable[[], Atoms]


class Source(Protocol):
    """A numbered series of structures.

    Attributes
    ----------
    path : Path
    marks : list
        Places of some items, for `items` to begin near ``start``; filled by a full pass.
    """

    path: Path
    marks: list[Any]

    @property
    def left_out(self) -> list[str]:
        """Names in a folder, or in the archives gone through, that are not read."""
        ...

    def items(self, start: int = 0) -> Iterator[Item]:
        """The items from number ``start`` on; none is loaded yet."""
        ...

    def files(self) -> Iterator[Path]:
        """The files that all this is read from."""
        ...


def broken(id: str, reason: str) -> Item:
    """An item that cannot be read, and why."""
    return Item(id, raising(reason))


def raising(reason: str) -> Callable[[], Atoms]:
    """A function to take the place of `Item.load`; it raises ``StructureError``."""

    def load() -> Atoms:
        raise StructureError(reason)

    return load


def even_if_damaged(part: Source, id: str, start: int = 0) -> Iterator[Item]:
    """The items of a part of a source; one with this id that says why there are none."""
    begun = False
    try:
        for item in part.items(start):
            begun = True
            yield item
    except StructureError as error:
        if begun or start or is_of_system(error):
            raise
        yield broken(id, str(error))


def only_structure(path: Path) -> Atoms:
    """The structure of a file that holds one, or ``StructureError``."""
    found = read_structures(StructureFile(path))
    if len(found) > 1:
        raise StructureError(
            f'holds {len(found)} structures, where files of this kind hold one each; '
            'write them to one .extxyz file'
        )
    return found[0]


class OneFormat:
    """A source of one file; a format says in `entries` what the file holds.

    Parameters
    ----------
    path : Path
    prefix : str
        How the ids of structures without a name of their own begin.
    """

    # The word for such a file in messages, and the errors that a damaged one raises.
    noun: ClassVar[str] = 'file'
    damaged: ClassVar[tuple[type[Exception], ...]] = ()

    def __init__(self, path: Path, prefix: str):
        self.path, self.prefix = path, prefix
        self.marks: list[Any] = []
        self.left_out: list[str] = []

    def entries(self) -> Iterator[tuple[str | None, Callable[[], Atoms]]]:
        """The name of each structure, None where it has none, and what reads it."""
        raise NotImplementedError

    def items(self, start: int = 0) -> Iterator[Item]:
        """See `Source`."""
        number = 0
        try:
            for name, load in self.entries():
                if number >= start:
                    yield Item(self.named(number) if name is None else name, load)
                number += 1
        except self.damaged as error:
            yield from self.damage(error, number, start)

    def damage(self, error: Exception, number: int, start: int) -> Iterator[Item]:
        """Yield an item that says why nothing follows the first ``number`` items."""
        if is_of_system(error):
            raise error
        if not number:
            raise StructureError(f'{self.path}: damaged {self.noun} ({error})') from error
        if number >= start:
            reason = f'the {self.noun} is damaged after {number} structures ({error})'
            yield broken(self.named('damaged'), reason)

    def files(self) -> Iterator[Path]:
        """The file alone."""
        yield self.path

    def named(self, index: int | str) -> str:
        """The id of an item without a name of its own."""
        return f'{self.prefix}@{index}'
