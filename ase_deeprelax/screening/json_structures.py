"""Structures of pymatgen in JSON files of any size, as streams."""

from __future__ import annotations

from collections.abc import Iterator

from ase_deeprelax.data.json_lines import read_json_lines
from ase_deeprelax.data.pymatgen_json import name_of, of_pymatgen, read_entries
from ase_deeprelax.errors import PairFileError, StructureError
from ase_deeprelax.screening.items import Item, OneFormat, broken


class JsonLinesFile(OneFormat):
    """A file with the JSON of one structure of pymatgen per line; ``.gz`` is unzipped.

    A line may be a record with the field ``structure``; its name is then the id.
    """

    def items(self, start: int = 0) -> Iterator[Item]:
        """See `Source`."""
        number = 0
        lines = read_json_lines(self.path)
        while True:
            try:
                _, record = next(lines)
            except StopIteration:
                return
            except PairFileError as error:
                if not number:
                    raise
                if number >= start:
                    yield broken(self.named(number), str(error))
                return
            if number >= start:
                id = name_of(record) or self.named(number)
                yield Item(id, lambda record=record: of_pymatgen(record))
            number += 1


class JsonFile(OneFormat):
    """A file with a list, or a dictionary, of structures of pymatgen, or of such records.

    Entries are read one after the other; the ids are their names or their numbers.
    """

    def items(self, start: int = 0) -> Iterator[Item]:
        """See `Source`."""
        number = 0
        try:
            for name, entry in read_entries(self.path):
                if number >= start:
                    id = name or name_of(entry) or self.named(number)
                    yield Item(id, lambda entry=entry: of_pymatgen(entry))
                number += 1
        except ValueError as error:
            if not number:
                raise StructureError(f'{self.path}: {error}') from error
            if number >= start:
                yield broken(self.named('damaged'), f'after {number} structures: {error}')
