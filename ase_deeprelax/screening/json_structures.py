"""Structures of pymatgen in JSON files of any size, as streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from ase import Atoms

from ase_deeprelax.data.json_lines import read_json_lines
from ase_deeprelax.data.pymatgen_json import of_pymatgen, read_entries
from ase_deeprelax.errors import PairFileError
from ase_deeprelax.screening.items import OneFormat


class JsonLinesFile(OneFormat):
    """A file with the JSON of one structure of pymatgen per line; ``.gz`` is unzipped."""

    damaged = (PairFileError,)

    def entries(self) -> Iterator[tuple[None, Callable[[], Atoms]]]:
        """One structure per line."""
        for _, record in read_json_lines(self.path):
            yield None, partial(of_pymatgen, record)


class JsonFile(OneFormat):
    """A file with a list, or a dictionary, of structures of pymatgen.

    Entries are read one after the other; the ids are their numbers or their names.
    """

    damaged = (ValueError,)

    def entries(self) -> Iterator[tuple[str | None, Callable[[], Atoms]]]:
        """The structures, with their names in a dictionary."""
        for name, entry in read_entries(self.path):
            yield name, partial(of_pymatgen, entry)
