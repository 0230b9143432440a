"""Structures of pymatgen in JSON files of any size, entry by entry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ase import Atoms

from ase_deeprelax.data.structures import as_atoms
from ase_deeprelax.errors import StructureError

CHUNK = 1 << 20
# One entry of more characters is no structure.
LONGEST = 1 << 26


def is_structure(entry: Any) -> bool:
    """Whether a value from JSON is a structure of pymatgen."""
    return isinstance(entry, dict) and {'lattice', 'sites'} <= set(entry)


def of_pymatgen(entry: Any) -> Atoms:
    """Atoms of a structure of pymatgen, given as a dictionary or as its JSON text.

    Raises
    ------
    StructureError
        It is none, or a disordered one.
    """
    from pymatgen.core import Structure

    try:
        structure = Structure.from_dict(
            json.loads(entry) if isinstance(entry, str) else entry
        )
    except Exception as error:
        raise StructureError(
            f'no structure of pymatgen ({type(error).__name__}: {error})'
        ) from error
    return as_atoms(structure)


def holds_structures(path: Path) -> bool:
    """Whether a JSON file is a list, or a dictionary, of structures of pymatgen."""
    try:
        _, entry = next(read_entries(path))
    except (ValueError, StopIteration):
        return False
    return is_structure(entry)


def read_entries(path: Path) -> Iterator[tuple[str | None, Any]]:
    """The entries of a JSON file that is a list or a dictionary, one after the other.

    Yields
    ------
    name : str or None
        In a dictionary.
    entry : any

    Raises
    ------
    ValueError
        What follows is no JSON.
    """
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
