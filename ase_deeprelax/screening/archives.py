"""Archives of files with structures."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from ase import Atoms

from ase_deeprelax.data.json_lines import LARGEST_RATIO
from ase_deeprelax.data.structure_files import is_structure_file
from ase_deeprelax.errors import StructureError
from ase_deeprelax.files import is_of_system, naming
from ase_deeprelax.screening.formats import may_hold_many, reader_of
from ase_deeprelax.screening.items import (
    LARGEST_MEMBER,
    OneFormat,
    even_if_damaged,
    only_structure,
    raising,
)

# The errors that Python raises where an archive is damaged.
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError)


class Member(NamedTuple):
    """A file in an archive: its name, its size in bytes, and what opens it."""

    name: str
    size: int
    open: Callable[[], AbstractContextManager[IO[bytes]]]


class Archive(OneFormat):
    """The files of an archive; ids are their names in it, as paths are in a folder.

    Files of many structures are unpacked to the temporary folder while they are read;
    archives in the archive are left out.

    Attributes
    ----------
    place : str
        How all names begin; default ''.
    """

    noun = 'archive'
    damaged = DAMAGED
    place = ''

    def members(self) -> Iterator[Member]:
        """The files of the archive, in order."""
        raise NotImplementedError

    def entries(self) -> Iterator[tuple[str, Callable[[], Atoms]]]:
        """Names in the archive, and what reads them."""
        self.left_out = []
        for found in self.members():
            member = found._replace(name=self.place + found.name)
            if may_hold_many(member.name):
                yield from self._of_many(member)
            elif is_structure_file(member.name):
                yield member.name, partial(self._only, member)
            elif not PurePosixPath(member.name).name.startswith('.'):
                self.left_out.append(member.name)

    def _of_many(self, member: Member) -> Iterator[tuple[str, Callable[[], Atoms]]]:
        """The structures of a file of many; of JSON it may be one, under its name."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = self._unpack(member, folder)
            except StructureError as error:
                if is_of_system(error):  # the archive is sound
                    raise
                yield member.name, raising(str(error))
                return
            if reader := reader_of(path):
                yield from even_if_damaged(reader(path, member.name), member.name)
            else:
                yield member.name, partial(only_structure, path)

    def _only(self, member: Member) -> Atoms:
        """The structure of a file that holds one."""
        if member.size > LARGEST_MEMBER:
            raise StructureError(
                f'unpacks to {member.size >> 20} MB, more than a file of one structure has'
            )
        with tempfile.TemporaryDirectory() as folder:
            return only_structure(self._unpack(member, folder))

    def _unpack(self, member: Member, folder: str) -> Path:
        """Put a file into a folder, under its own name without the folders before it.

        So a name in an archive leads nowhere else on the disk.
        """
        if member.size > LARGEST_RATIO * self.path.stat().st_size:
            raise StructureError(
                f'unpacks to {member.size >> 20} MB, more than {LARGEST_RATIO} times the '
                'size of the archive; no file of structures does'
            )
        path = Path(folder) / (PurePosixPath(member.name).name or 'structure')
        try:
            with naming(path), member.open() as packed, path.open('wb') as file:
                shutil.copyfileobj(packed, file)
        except (*DAMAGED, RuntimeError, NotImplementedError) as error:  # encrypted, odd
            raise StructureError(f'cannot be unpacked ({error})') from error
        return path


class Zip(Archive):
    """The files of a zip archive."""

    def members(self) -> Iterator[Member]:
        """See `Archive`."""
        with zipfile.ZipFile(self.path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield Member(info.filename, info.file_size, partial(archive.open, info))


class Tar(Archive):
    """The files of a tar archive, compressed or not.

    It is read from its beginning to its end. An item is loaded before the next one is
    asked for, or never.
    """

    def members(self) -> Iterator[Member]:
        """See `Archive`."""
        with tarfile.open(self.path) as archive:
            for info in archive:
                kept: Any = archive
                kept.members = []  # it would keep every one of a million
                if info.isfile():
                    unpacked: Any = partial(archive.extractfile, info)
                    yield Member(info.name, info.size, unpacked)
                elif not info.isdir():
                    self.left_out.append(self.place + info.name)
