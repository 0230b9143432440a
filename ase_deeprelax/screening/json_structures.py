"""Structures of pymatgen in JSON files of any size, as streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from ase import Atoms

from ase_deeprelax.data.json_lines import parse_line, read_lines
from ase_deeprelax.data.pymatgen_json import DAMAGED, name_of, of_pymatgen, read_entries
from ase_deeprelax.errors import PairFileError
from ase_deeprelax.screening.items import OneFormat, raising


class JsonLinesFile(OneFormat):
    """A file with the JSON of one structure of pymatgen per line; ``.gz`` is unzipped.

    A line may be a record with the field ``structure``; its name is then the id. A line
    that is no JSON takes no other one with it.
    """

    damaged = (PairFileError,)

    def entries(self) -> Iterator[tuple[str | None, Callable[[], Atoms]]]:
        """One structure per line, with the name of a record."""
        for where, line in read_lines(self.path):
            try:
                record = parse_line(line, where.removeprefix(f'{self.path}, '))
            except PairFileError as error:
                yield None, raising(str(error))
            else:
                yield name_of(record), partial(of_pymatgen, record)


class JsonFile(OneFormat):
    """A file with a list, or a dictionary, of structures of pymatgen, or of such records.

    Entries are read one after the other; the ids are their names or their numbers.
    """

    damaged = DAMAGED

    def entries(self) -> Iterator[tuple[str | None, Callable[[], Atoms]]]:
        """The structures, with their names in a dictionary or in records."""
        for name, entry in read_entries(self.path):
            yield name or name_of(entry), partial(of_pymatgen, entry)
