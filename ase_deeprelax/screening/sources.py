"""What a screen reads: one file, a folder, or an archive, as a stream of structures."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from ase_deeprelax.data.structure_files import (
    READ_SUFFIXES,
    StructureFile,
    is_structure_file,
    warn_of_left_out,
)
from ase_deeprelax.errors import ConfigError
from ase_deeprelax.screening.archives import Archive, Tar, Zip
from ase_deeprelax.screening.databases import LmdbDatabase, Parquet
from ase_deeprelax.screening.formats import FORMATS, AnyFile, by_suffix, reader_of
from ase_deeprelax.screening.frames import Frames
from ase_deeprelax.screening.items import (
    Item,
    OneFormat,
    Source,
    even_if_damaged,
    only_structure,
)
from ase_deeprelax.screening.json_structures import JsonFile, JsonLinesFile

ARCHIVES: dict[str, type[Archive]] = {
    '.zip': Zip,
    '.tar': Tar,
    '.tgz': Tar,
    '.tar.gz': Tar,
    '.tar.bz2': Tar,
    '.tar.xz': Tar,
}


class FileList:
    """Files of a folder with one structure each; their ids are their paths below it.

    Parameters
    ----------
    path : Path
        The folder.
    names : list of str
        Below it, in order.
    """

    def __init__(self, path: Path, names: Sequence[str]):
        self.path, self.names = path, names
        self.marks: list[Any] = []
        self.left_out: list[str] = []

    def items(self, start: int = 0) -> Iterator[Item]:
        """See `Source`."""
        for name in self.names[start:]:
            yield Item(name, partial(only_structure, self.path / name))

    def files(self) -> Iterator[Path]:
        """See `Source`."""
        for name in self.names:
            yield self.path / name


class Folder:
    """The sources of a folder and of the folders in it, in the order of their names.

    Parameters
    ----------
    path : Path
    parts : list of Source
    left_out : list of str
        Names below the folder that are not read.
    """

    def __init__(self, path: Path, parts: list[Source], left_out: list[str]):
        self.path, self.parts, self._left_out = path, parts, left_out
        self._counts: list[int] = []

    @property
    def left_out(self) -> list[str]:
        """Names below the folder, and in its archives, that are not read."""
        return [*self._left_out, *chain(*(part.left_out for part in self.parts))]

    @property
    def marks(self) -> list[Any]:
        """How many items each part has, and its own marks."""
        pairs = zip(self._counts, self.parts, strict=False)
        return [[count, part.marks] for count, part in pairs]

    @marks.setter
    def marks(self, marks: list[Any]) -> None:
        self._counts = [count for count, _ in marks]
        for part, (_, inner) in zip(self.parts, marks, strict=True):
            part.marks = inner

    def items(self, start: int = 0) -> Iterator[Item]:
        """See `Source`."""
        for index, part in enumerate(self.parts):
            if index < len(self._counts):
                if start < self._counts[index]:
                    yield from self._items_of(part, start)
                start = max(0, start - self._counts[index])
                continue
            count = 0
            for item in self._items_of(part):
                if count >= start:
                    yield item
                count += 1
            self._counts.append(count)
            start = max(0, start - count)

    def _items_of(self, part: Source, start: int = 0) -> Iterator[Item]:
        return even_if_damaged(part, _below(part.path, self.path), start)

    def files(self) -> Iterator[Path]:
        """See `Source`."""
        for part in self.parts:
            yield from part.files()


def open_source(path: str | Path) -> Source:
    """The structures of a file, folder or archive, as a stream.

    Parameters
    ----------
    path : str or Path
        An extxyz file; a folder, with all below it, or a zip or tar archive of CIF, VASP or
        other files; a database of ASE (``.db``, ``.aselmdb``); JSON or JSON lines of
        pymatgen; parquet; or anything else that ``ase.io`` reads.

    Returns
    -------
    Source

    Raises
    ------
    ConfigError
        There is nothing of this name, or nothing in it that is read.

    Examples
    --------
    >>> for item in open_source('crystals.extxyz').items():  # doctest: +SKIP
    ...     print(item.id, item.load())
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise ConfigError(f'{path}: there is no such file or folder')
    return (_reader_of(path) or AnyFile)(path, path.name)


def scan(source: Source) -> tuple[int, str]:
    """How many items a source has, and a hash of all its files.

    The full pass leaves marks in the source, which lead later ones to any item. A warning
    counts the files of a folder or an archive that are not read.

    Raises
    ------
    ConfigError
        Two items have the same id, or there is none.
    """
    seen: set[int] = set()
    count = 0
    for item in source.items():
        key = hash(item.id)
        if key in seen:
            raise ConfigError(
                f'{source.path}: the id {item.id!r} is there twice; give each structure an '
                'id of its own'
            )
        seen.add(key)
        count += 1
    warn_of_left_out(source.path, source.left_out)
    if not count:
        raise ConfigError(f'{source.path}: holds no structure')
    digest = hashlib.sha256()
    for file in source.files():
        digest.update(_line(_below(file, source.path), file.stat().st_size))
        with file.open('rb') as content:
            while chunk := content.read(1 << 20):
                digest.update(chunk)
    return count, digest.hexdigest()


def stamp(source: Source) -> str:
    """A hash of names, sizes and times of all files: where it is the same, so are they."""
    digest = hashlib.sha256()
    for file in source.files():
        state = file.stat()
        name = _below(file, source.path)
        digest.update(_line(name, state.st_size, state.st_mtime_ns))
    return digest.hexdigest()


def _line(name: str, *numbers: int) -> bytes:
    """The bytes that stand for a file in a hash. Its name may be no valid UTF-8."""
    return os.fsencode('\0'.join([name, *map(str, numbers), '']))


def _below(file: Path, path: Path) -> str:
    return file.relative_to(path).as_posix() if file != path else file.name


def _reader_of(path: Path) -> type[OneFormat] | None:
    """The class that reads an archive or a file of many structures; None for others."""
    return by_suffix(path.name, ARCHIVES) or reader_of(path)


def is_packed(source: StructureFile) -> bool:
    """Whether a file holds structures in a way that ``ase.io`` does not read.

    JSON of pymatgen, whose structures may have names, counts where all of them are meant.
    """
    reader = _reader_of(source.path) if source.path.is_file() else None
    if reader is JsonFile:
        return source.index == ':'
    return reader in (Zip, Tar, LmdbDatabase, Parquet, JsonLinesFile)


def has_frames(source: StructureFile) -> bool:
    """Whether a file is of a format whose frames are read each without the others."""
    return source.path.is_file() and _reader_of(source.path) is Frames


def _names_below(path: Path) -> tuple[list[str], list[str]]:
    """Names of all files below a folder, and of folders that may not be read."""
    names: list[str] = []
    closed: list[str] = []

    def unlisted(error: OSError) -> None:
        place = Path(error.filename)
        if place == path or not isinstance(error, PermissionError):
            raise error
        closed.append(place.relative_to(path).as_posix())

    for folder, below, files in os.walk(path, onerror=unlisted):
        place = Path(folder).relative_to(path)
        below[:] = sorted(name for name in below if not name.startswith('.'))
        # Links to folders are not followed, as they may lead back, but left out by name.
        links = [name for name in below if (path / place / name).is_symlink()]
        found = (name for name in files if not name.startswith('.'))
        names += [(place / name).as_posix() for name in (*links, *found)]
    return sorted(names), closed


def _folder(path: Path) -> Folder:
    names, left_out = _names_below(path)
    parts: list[Source] = []
    single: list[str] = []
    for name in names:
        file = path / name
        if not file.is_file():  # also a pipe, or a link that leads nowhere
            left_out.append(name)
        elif reader := _reader_of(file):
            part = reader(file, name)
            if isinstance(part, Archive):  # several may hold files of one name
                part.place = f'{name}/'
            parts.append(part)
            single = []
        elif is_structure_file(name):
            if not single:
                single = []
                parts.append(FileList(path, single))
            single.append(name)
        else:
            left_out.append(name)
    if not parts:
        known = dict.fromkeys((*READ_SUFFIXES, *FORMATS, *ARCHIVES))
        raise ConfigError(f'{path}: no file of {", ".join(known)} in this folder')
    return Folder(path, parts, left_out)
