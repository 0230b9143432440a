"""Structures of pymatgen in JSON files of any size, as streams."""

from __future__ import annotations

from collections.abc import Iterator

from ase_deeprelax.data.json_lines import read_json_lines
from ase_deeprelax.data.pymatgen_json import of_pymatgen, read_entries
from ase_deeprelax.errors import PairFileError, StructureError
from ase_deeprelax.screening.items import Item, OneFormat, broken


class JsonLinesFile(OneFormat):
    """A file with the JSON of one structure of pymatgen per line; ``.gz`` is unzipped."""

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
                yield Item(self.named(number), lambda record=record: of_pymatgen(record))
            number += 1


class JsonFile(OneFormat):
    """A file with a list, or a dictionary, of structures of pymatgen.

    Entries are read one after the other; the ids are their numbers or their names.
    """

    def items(self, start: int = 0) -> Iterator[Item]:
        """See `Source`."""
        number = 0
        try:
            for name, entry in read_entries(self.path):
                if number >= start:
                    id = self.named(number) if name is None else name
                    yield Item(id, lambda entry=entry: of_pymatgen(entry))
                number += 1
        except ValueError as error:
            if not number:
                raise StructureError(f'{self.path}: {error}') from error
            if number >= start:
                yield broken(self.named('damaged'), f'after {number} structures: {error}')
