"""Structures of pymatgen in JSON files of any size, entry by entry."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ase import Atoms

from ase_deeprelax.data.one_line import count
from ase_deeprelax.data.structures import as_atoms
from ase_deeprelax.errors import StructureError

CHUNK = 1 << 20
# One entry of more characters is no structure.
LONGEST = 1 << 26
# The errors that Python raises where a file is damaged.
DAMAGED = (ValueError, OSError, EOFError, zlib.error)
# The field of a record, as those of the Materials Project, that holds its structure, and
# the fields that name the record, the first of them that is there.
STRUCTURE = 'structure'
NAMES = ('id', 'immutable_id', 'material_id', 'entry_id')
# The fields of a structure itself.
FIELDS = {'lattice', 'sites'}


def is_structure(entry: Any) -> bool:
    """Whether a value from JSON is a structure of pymatgen, or a record with one.

    A record whose field ``structure`` is empty or odd counts, so that it is told by name;
    one where it is text does not, as in tables of results, which name structures so.
    """
    if not isinstance(entry, dict):
        return False
    is_record = STRUCTURE in entry and not isinstance(entry[STRUCTURE], str)
    return is_record or set(entry) >= FIELDS


def _structure_in(entry: Any) -> dict[str, Any] | None:
    """The dictionary of a structure: the entry itself, or its field ``structure``."""
    for found in (entry, entry.get(STRUCTURE)) if isinstance(entry, dict) else ():
        if isinstance(found, dict) and set(found) >= FIELDS:
            return found
    return None


def name_of(entry: Any) -> str | None:
    """The name of a record, or None where it has none.

    >>> name_of({'material_id': 'mp-149', 'structure': {}}), name_of({'lattice': {}})
    ('mp-149', None)
    """
    if not isinstance(entry, dict) or STRUCTURE not in entry:
        return None
    found = (entry[name] for name in NAMES if name in entry)
    return next((str(name) for name in found if isinstance(name, str | int)), None)


def of_pymatgen(entry: Any) -> Atoms:
    """Atoms of a structure of pymatgen.

    Parameters
    ----------
    entry : dict or str
        The structure as a dictionary, a record with the field ``structure``, or the JSON
        text of one of both.

    Returns
    -------
    ase.Atoms
        The name of a record is in ``info['id']``.

    Raises
    ------
    StructureError
        It is none, or a disordered one.
    """
    from pymatgen.core import Structure

    try:
        value = json.loads(entry) if isinstance(entry, str) else entry
        found = _structure_in(value)
        structure = None if found is None else Structure.from_dict(found)
    except Exception as error:
        raise StructureError(
            f'no structure of pymatgen ({type(error).__name__}: {error})'
        ) from error
    if structure is None:
        there = ', '.join(list(value)[:8]) if isinstance(value, dict) else repr(value)[:40]
        raise StructureError(
            'no structure of pymatgen: neither lattice and sites, nor a structure with '
            f'them; there is: {there}'
        )
    atoms = as_atoms(structure)
    if (name := name_of(value)) is not None:
        atoms.info.setdefault('id', name)
    return atoms


def holds_structures(path: Path) -> bool:
    """Whether a JSON file is a list, or a dictionary, of what `is_structure` means."""
    entries = read_entries(path)
    try:
        name, entry = next(entries)
        while name is None and entry is None:  # an empty place in a list
            name, entry = next(entries)
    except (StopIteration, *DAMAGED):
        return False
    # A dictionary that begins with this field is one record, not many.
    return name != STRUCTURE and is_structure(entry)


def read_entries(path: Path) -> Iterator[tuple[str | None, Any]]:
    """The entries of a JSON file that is a list or a dictionary, one after the other.

    Parameters
    ----------
    path : Path
        ``.gz`` is unzipped.

    Yields
    ------
    name : str or None
        In a dictionary.
    entry : any

    Raises
    ------
    ValueError
        What follows is no JSON; of a damaged ``.gz``, any of `DAMAGED`.
    """
    opener = gzip.open if path.suffix.lower() == '.gz' else open
    # Editors of Windows put a mark of byte order first.
    with opener(path, 'rt', encoding='utf-8-sig') as file:
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


def read_pymatgen(path: Path) -> list[Atoms | StructureError] | None:
    """All structures of a JSON file, or None where it holds something else.

    In place of an entry that is no ordered structure is the error that says so; the last
    one says where a file is damaged.
    """
    if not holds_structures(path):
        opener = gzip.open if path.suffix.lower() == '.gz' else open
        with opener(path, 'rb') as file:
            whole = json.loads(file.read())
        return [of_pymatgen(whole)] if is_structure(whole) else None
    found: list[Atoms | StructureError] = []
    try:
        for name, entry in read_entries(path):
            found.append(_entry(name or name_of(entry), entry))
    except DAMAGED as error:
        reason = f'the file is damaged after {count(len(found), "structure")} ({error})'
        found.append(StructureError(reason))
    return found


def _entry(name: str | None, entry: Any) -> Atoms | StructureError:
    """The structure of an entry, or why there is none."""
    try:
        return of_pymatgen(entry)
    except StructureError as error:
        return error if name is None else StructureError(f'{name}: {error}')


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
