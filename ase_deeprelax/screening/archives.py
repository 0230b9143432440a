"""Folders and archives of files with one structure each."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from ase import Atoms

from ase_deeprelax.data.structure_files import is_structure_file, uncompressed
from ase_deeprelax.errors import StructureError
from ase_deeprelax.screening.items import (
    LARGEST_MEMBER,
    Item,
    OneFormat,
    only_structure,
    parsed,
)

# Files with any number of structures.
MANY = ('.extxyz', '.xyz', '.traj', '.db')
# What reading a damaged archive raises.
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError)


def is_single(name: str) -> bool:
    """Whether a file of this name is taken to hold one structure.

    >>> is_single('a/NaCl.cif.gz'), is_single('run/POSCAR'), is_single('run.traj')
    (True, True, False)
    """
    suffix = uncompressed(PurePosixPath(name)).suffix.lower()
    return is_structure_file(name) and suffix not in MANY


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

    def items(self, start: int = 0) -> Iterator[Item]:
        """See `Source`."""
        for name in self.names[start:]:
            yield Item(name, partial(only_structure, self.path / name))

    def files(self) -> Iterator[Path]:
        """See `Source`."""
        for name in self.names:
            yield self.path / name


class Zip(OneFormat):
    """The files of a zip archive; their ids are their names in it."""

    noun = 'archive'
    damaged = DAMAGED

    def entries(self) -> Iterator[tuple[str, Callable[[], Atoms]]]:
        """Names in the archive, and what reads them."""
        with zipfile.ZipFile(self.path) as archive:
            for member in archive.infolist():
                if is_single(member.filename):
                    yield member.filename, partial(self._load, archive, member)

    def _load(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Atoms:
        _check_size(member.file_size)
        try:
            content = archive.read(member)
        except (*DAMAGED, RuntimeError, NotImplementedError) as error:  # encrypted, odd
            raise StructureError(f'cannot be unpacked ({error})') from error
        return parsed(content, member.filename)


class Tar(OneFormat):
    """The files of a tar archive, compressed or not; their ids are their names in it.

    It is read from its beginning to its end. An item is loaded before the next one is
    asked for, or never.
    """

    noun = 'archive'
    damaged = DAMAGED

    def entries(self) -> Iterator[tuple[str, Callable[[], Atoms]]]:
        """Names in the archive, and what reads them."""
        with tarfile.open(self.path) as archive:
            for member in archive:
                kept: Any = archive
                kept.members = []  # it would keep every one of a million
                if member.isfile() and is_single(member.name):
                    yield member.name, partial(self._load, archive, member)

    def _load(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> Atoms:
        _check_size(member.size)
        try:
            file = archive.extractfile(member)
            content = b'' if file is None else file.read()
        except DAMAGED as error:
            raise StructureError(f'cannot be unpacked ({error})') from error
        return parsed(content, member.name)


def _check_size(size: int) -> None:
    if size > LARGEST_MEMBER:
        raise StructureError(
            f'unpacks to {size >> 20} MB, more than a file of one structure has'
        )
