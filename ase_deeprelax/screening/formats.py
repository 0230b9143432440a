"""Which class reads a file of many structures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import TypeVar

from ase import Atoms

from ase_deeprelax.data.pymatgen_json import holds_structures
from ase_deeprelax.data.structure_files import (
    StructureFile,
    is_structure_file,
    read_structures,
    uncompressed,
)
from ase_deeprelax.errors import StructureError
from ase_deeprelax.screening.databases import Database, LmdbDatabase, Parquet
from ase_deeprelax.screening.frames import Frames
from ase_deeprelax.screening.items import OneFormat
from ase_deeprelax.screening.json_structures import JsonFile, JsonLinesFile

Reader = TypeVar('Reader')

FORMATS: dict[str, type[OneFormat]] = {
    '.xyz': Frames,
    '.extxyz': Frames,
    '.db': Database,
    '.aselmdb': LmdbDatabase,
    '.parquet': Parquet,
    '.jsonl': JsonLinesFile,
    '.jsonl.gz': JsonLinesFile,
}
# Files of ``ase.io`` with any number of structures; all others have one each.
MANY = ('.extxyz', '.xyz', '.traj', '.db')
# Files that hold one structure of pymatgen, or a list of them.
JSON = ('.json', '.json.gz')


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


def by_suffix(name: str, readers: Mapping[str, Reader]) -> Reader | None:
    """The entry of a table for the longest suffix that a name ends in, or None.

    >>> by_suffix('a.JSONL.gz', {'.gz': 1, '.jsonl.gz': 2}), by_suffix('a.cif', {'.gz': 1})
    (2, None)
    """
    suffixes = [suffix for suffix in readers if name.lower().endswith(suffix)]
    return readers[max(suffixes, key=len)] if suffixes else None


def may_hold_many(name: str) -> bool:
    """Whether a file of this name may be one of those that `reader_of` knows.

    >>> may_hold_many('a/run.traj'), may_hold_many('a.json'), may_hold_many('NaCl.cif.gz')
    (True, True, False)
    """
    if by_suffix(name, FORMATS) or name.lower().endswith(JSON):
        return True
    return is_structure_file(name) and uncompressed(PurePath(name)).suffix.lower() in MANY


def reader_of(path: Path) -> type[OneFormat] | None:
    """The class that reads a file of many structures; None for any other file.

    JSON files are opened to see which they are.
    """
    if reader := by_suffix(path.name, FORMATS):
        return reader
    if path.name.lower().endswith(JSON):
        return JsonFile if holds_structures(path) else None
    return AnyFile if may_hold_many(path.name) else None
