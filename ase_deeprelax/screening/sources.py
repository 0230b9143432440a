"""What a screen reads: one file, a folder, or an archive, as a stream of structures."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ase import Atoms

from ase_deeprelax.data.pymatgen_json import holds_structures
from ase_deeprelax.data.structure_files import (
    READ_SUFFIXES,
    StructureFile,
    is_structure_file,
    read_structures,
    warn_of_left_out,
)
from ase_deeprelax.errors import ConfigError, StructureError
from ase_deeprelax.screening.archives import FileList, Tar, Zip, is_single
from ase_deeprelax.screening.databases import Database, LmdbDatabase, Parquet
from ase_deeprelax.screening.frames import Frames
from ase_deeprelax.screening.items import Item, OneFormat, Source, broken
from ase_deeprelax.screening.json_structures import JsonFile, JsonLinesFile

FORMATS: dict[str, type[OneFormat]] = {
    '.xyz': Frames,
    '.extxyz': Frames,
    '.zip': Zip,
    '.tar': Tar,
    '.tgz': Tar,
    '.tar.gz': Tar,
    '.tar.bz2': Tar,
    '.tar.xz': Tar,
    '.db': Database,
    '.aselmdb': LmdbDatabase,
    '.parquet': Parquet,
    '.jsonl': JsonLinesFile,
    '.jsonl.gz': JsonLinesFile,
}


class AnyFile(OneFormat):
    """A file of another format that ``ase.io`` reads; all of it is held in memory."""

    def entries(self) -> Iterator[tuple[None, Callable[[], Atoms]]]:
        """The frames."""
        try:
            found = read_structures(StructureFile(self.path))
        except StructureError as error:
            raise StructureError(f'{self.path}: {error}') from error
        for atoms in found:
            yield None, lambda atoms=atoms: atoms


class Folder:
    """The sources of a folder and of the folders in it, in the order of their names.

    Parameters
    ----------
    path : Path
    parts : list of Source
    left_out : list of str
        Names of the files below the folder that are not read.
    """

    def __init__(self, path: Path, parts: list[Source], left_out: list[str]):
        self.path, self.parts, self.left_out = path, parts, left_out
        self._counts: list[int] = []

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
                    yield from _even_if_damaged(part, start)
                start = max(0, start - self._counts[index])
                continue
            count = 0
            for item in _even_if_damaged(part):
                if count >= start:
                    yield item
                count += 1
            self._counts.append(count)
            start = max(0, start - count)

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
    return _one(path, path.name)


def scan(source: Source) -> tuple[int, str]:
    """How many items a source has, and a hash of all its files.

    The full pass leaves marks in the source, which lead later ones to any item. A warning
    counts the files of a folder that are not read.

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
    if not count:
        raise ConfigError(f'{source.path}: holds no structure')
    if isinstance(source, Folder):
        warn_of_left_out(source.path, source.left_out)
    digest = hashlib.sha256()
    for file in source.files():
        digest.update(f'{_below(file, source.path)}\0{file.stat().st_size}\0'.encode())
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
        digest.update(f'{name}\0{state.st_size}\0{state.st_mtime_ns}\0'.encode())
    return digest.hexdigest()


def _below(file: Path, path: Path) -> str:
    return file.relative_to(path).as_posix() if file != path else file.name


def _one(path: Path, prefix: str) -> Source:
    form = _format(path.name) or (JsonFile if _is_json_of_many(path) else AnyFile)
    return form(path, prefix)


def _is_json_of_many(path: Path) -> bool:
    return path.name.lower().endswith(('.json', '.json.gz')) and holds_structures(path)


def is_packed(source: StructureFile) -> bool:
    """Whether a file holds structures in a way that ``ase.io`` does not read."""
    packed = (Zip, Tar, LmdbDatabase, Parquet, JsonLinesFile)
    return source.path.is_file() and _format(source.path.name) in packed


def has_frames(source: StructureFile) -> bool:
    """Whether a file is of a format whose frames are read each without the others."""
    return source.path.is_file() and _format(source.path.name) is Frames


def _format(name: str) -> type[OneFormat] | None:
    suffixes = [suffix for suffix in FORMATS if name.lower().endswith(suffix)]
    return FORMATS[max(suffixes, key=len)] if suffixes else None


def _folder(path: Path) -> Folder:
    names = []
    for folder, below, files in os.walk(path):
        below[:] = sorted(name for name in below if not name.startswith('.'))
        place = Path(folder).relative_to(path)
        names += [(place / name).as_posix() for name in files if not name.startswith('.')]
    parts: list[Source] = []
    single: list[str] = []
    left_out: list[str] = []
    for name in sorted(names):
        if is_single(name) and not _is_json_of_many(path / name):
            if not single:
                single = []
                parts.append(FileList(path, single))
            single.append(name)
        elif _format(name) or is_structure_file(name):
            parts.append(_one(path / name, name))
            single = []
        else:
            left_out.append(name)
    if not parts:
        raise ConfigError(
            f'{path}: no file of {", ".join((*READ_SUFFIXES, *FORMATS))} in this folder'
        )
    return Folder(path, parts, left_out)


def _even_if_damaged(part: Source, start: int = 0) -> Iterator[Item]:
    """The items of a part; one that says why, where there are none."""
    begun = False
    try:
        for item in part.items(start):
            begun = True
            yield item
    except StructureError as error:
        if begun or start:
            raise
        prefix = getattr(part, 'prefix', str(part.path))
        yield broken(prefix, str(error))
