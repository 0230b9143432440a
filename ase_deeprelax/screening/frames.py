"""Frames of extxyz files as a stream, where some of them may be damaged."""

from __future__ import annotations

import io
from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from ase import Atoms
from ase.io.extxyz import read_extxyz

from ase_deeprelax.data.json_lines import LONGEST_LINE
from ase_deeprelax.errors import StructureError
from ase_deeprelax.screening.items import Item, OneFormat, broken

# The place of every so many frames is kept.
EVERY = 1000


class Frames(OneFormat):
    """The frames of an extxyz file.

    A line that holds one integer and nothing else begins a frame, because lines of atoms
    hold four words at least. So a frame that is cut short takes no other one with it.
    """

    def items(self, start: int = 0) -> Iterator[Item]:
        """See `Source`."""
        known = min(start // EVERY, len(self.marks) - 1)
        begin, number, line = self.marks[known] if known >= 0 else (0, 0, 1)
        with self.path.open('rb') as file:
            file.seek(begin)
            for place, first, lines in _frames(file, begin, line):
                if number % EVERY == 0 and number // EVERY == len(self.marks):
                    self.marks.append([place, number, first])
                if number >= start:
                    yield self._item(number, first, lines)
                number += 1

    def _item(self, number: int, first: int, lines: list[bytes]) -> Item:
        id = self.named(number)
        if not _is_header(lines[0]):
            begin = lines[0][:40].decode(errors='replace').strip()
            return broken(
                id, f'line {first}: {begin!r} where the number of atoms of a frame belongs'
            )
        return Item(id, lambda: _parsed(lines, first))


def _is_header(line: bytes) -> bool:
    return line.strip().isdigit() and len(line) < 24


def _frames(
    file: BinaryIO, place: int, number: int
) -> Iterator[tuple[int, int, list[bytes]]]:
    """Place, number of the first line, and lines of each frame.

    Lines before the first header are a frame, too, of which only the first line is kept.
    A mark of byte order, with which editors of Windows begin files, is passed over.
    """
    if place == 0:
        place = file.seek(len(BOM_UTF8) if file.read(len(BOM_UTF8)) == BOM_UTF8 else 0)
    begun, first, lines = place, number, cast('list[bytes]', [])
    wanted = 0  # lines of the present frame; -1 where it has no header
    while line := file.readline(LONGEST_LINE):
        # The line after a header is the comment, whatever it says.
        header = _is_header(line) and not (len(lines) == 1 and wanted > 0)
        if header or len(lines) == wanted:
            if lines:
                yield begun, first, lines
            begun, first, lines, wanted = place, number, [], 0
            if header or line.strip():
                lines, wanted = [line], int(line) + 2 if header else -1
        elif wanted > 0:
            lines.append(line)
        place, number = place + len(line), number + 1
    if lines:
        yield begun, first, lines


def _parsed(lines: list[bytes], first: int) -> Atoms:
    expected = int(lines[0])
    if len(lines) - 2 < expected:
        raise StructureError(
            f'line {first}: the frame has {max(len(lines) - 2, 0)} of {expected} lines of '
            'atoms; the file was cut there'
        )
    try:
        text = io.StringIO(b''.join(lines).decode())
        [atoms] = cast('Any', read_extxyz(text, slice(None)))
    except Exception as error:
        raise StructureError(
            f'line {first}: cannot be read ({type(error).__name__}: {error})'
        ) from error
    return atoms
