"""Structures of pymatgen in JSON files of any size, as streams."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ase import Atoms

from ase_deeprelax.data.json_lines import read_json_lines
from ase_deeprelax.errors import PairFileError, StructureError
from ase_deeprelax.screening.databases import of_pymatgen
from ase_deeprelax.screening.items import Item, OneFormat, broken

CHUNK = 1 << 20
# One entry of more characters is no structure.
LONGEST = 1 << 26


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
                yield Item(self.named(number), lambda record=record: _atoms(record))
            number += 1


class JsonFile(OneFormat):
    """A file with a list, or a dictionary, of structures of pymatgen.

    Entries are read one after the other; the ids are their numbers or their names.
    """

    def items(self, start: int = 0) -> Iterator[Item]:
        """See `Source`."""
        number = 0
        try:
            for name, entry in _entries(self.path):
                if number >= start:
                    id = self.named(number) if name is None else name
                    yield Item(id, lambda entry=entry: _atoms(entry))
                number += 1
        except ValueError as error:
            if not number:
                raise StructureError(f'{self.path}: {error}') from error
            if number >= start:
                yield broken(self.named('damaged'), f'after {number} structures: {error}')


def is_streamed(path: Path) -> bool:
    """Whether a JSON file is a list, or a dictionary, of structures of pymatgen."""
    try:
        _, entry = next(_entries(path))
    except (ValueError, StopIteration, OSError):
        return False
    return isinstance(entry, dict) and {'lattice', 'sites'} <= set(entry)


def _atoms(entry: Any) -> Atoms:
    try:
        return of_pymatgen(entry)
    except StructureError:
        raise
    except Exception as error:
        raise StructureError(
            f'no structure of pymatgen ({type(error).__name__}: {error})'
        ) from error


def _entries(path: Path) -> Iterator[tuple[str | None, Any]]:
    """Name (of a dictionary) and value of each entry; ``ValueError`` where JSON ends."""
    with path.open(encoding='utf-8') as file:
        text = _Text(file)
        opening = text.sign()
        if opening not in ('[', '{'):
            raise ValueError('neither a list nor a dictionary of structures')
        closing = ']' if opening == '[' else '}'
        if text.peek() == closing:
            return
        while True:
            name = None
            if opening == '{':
                name = str(text.value())
                if text.sign() != ':':
                    raise ValueError('no JSON: a colon is missing')
            yield name, text.value()
            sign = text.sign()
            if sign == closing:
                return
            if sign != ',':
                raise ValueError('no JSON: a comma is missing, or the file was cut')


class _Text:
    """The text of a file, value by value."""

    def __init__(self, file: Any):
        self._file, self._text, self._at = file, '', 0
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next sign that is no blank, '' at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at].isspace():
                self._at += 1
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def sign(self) -> str:
        """As `peek`, and go past it."""
        found = self.peek()
        self._at += len(found)
        return found

    def value(self) -> Any:
        """The next value."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except RecursionError:
                raise ValueError('no JSON of structures: brackets in brackets') from None
            except ValueError:
                if len(self._text) - self._at > LONGEST or not self._more():
                    raise
                continue
            if end == len(self._text) and self._more():  # a number may go on
                continue
            self._at = end
            return value

    def _more(self) -> bool:
        chunk = self._file.read(max(CHUNK, len(self._text) - self._at))
        self._text, self._at = self._text[self._at :] + chunk, 0
        return bool(chunk)
