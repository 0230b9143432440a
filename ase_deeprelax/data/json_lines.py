"""Files of JSON lines that anybody may have written: bounded time, bounded memory."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from ase_deeprelax.errors import PairFileError

# How the names of such files end.
JSON_LINES = ('.jsonl', '.jsonl.gz')
# A line of more bytes is no record of a structure; one of 100,000 atoms has 10 MB.
LONGEST_LINE = 1 << 26
# A gzip file that has grown by more than this factor, after so many bytes, holds no
# structures: those shrink to a third or a tenth, copies of one to a two-hundredth.
LARGEST_RATIO, LOOKED_AT = 500, 1 << 20
# More empty lines than this in a row are no file of structures either.
EMPTY_LINES = 10_000


def read_json_lines(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file with one JSON object per line, gzipped if it ends in ``.gz``.

    Parameters
    ----------
    path : str or Path
        A regular file.

    Yields
    ------
    where : str
        Path and line, for messages.
    record : dict
        Without entries that are null: tables that are written as JSON lines have them
        where a value is missing.

    Raises
    ------
    PairFileError
        It is no regular file, damaged, not made of JSON objects, or expands to a size that
        no file of structures has. Empty lines are passed over.

    Examples
    --------
    >>> records = [record for _, record in read_json_lines('mine.jsonl')]  # doctest: +SKIP
    """
    for where, line in read_lines(path):
        record = parse_line(line, where)
        yield where, {key: value for key, value in record.items() if value is not None}


def read_lines(path: str | Path) -> Iterator[tuple[str, bytes]]:
    """As `read_json_lines`, but the lines themselves, for `parse_line`."""
    path, number, empty = Path(path), 0, 0
    if not path.is_file():
        raise PairFileError(f'{path}: there is no such file, or it is no regular file')
    try:
        with path.open('rb') as raw:
            lines = _unzipped(path, raw) if path.suffix.lower() == '.gz' else raw
            while line := lines.readline(LONGEST_LINE):
                number += 1
                if len(line) == LONGEST_LINE:
                    raise PairFileError(
                        f'{path}, line {number}: longer than {LONGEST_LINE >> 20} MB, '
                        'which no structure is; write one JSON object per line'
                    )
                if line.isspace():
                    empty += 1
                    if empty > EMPTY_LINES:
                        raise PairFileError(
                            f'{path}, line {number}: {EMPTY_LINES} empty lines in a row; '
                            'no file of structures has them'
                        )
                    continue
                empty = 0
                yield f'{path}, line {number}', line
    except (EOFError, OSError, zlib.error) as error:
        raise PairFileError(
            f'{path}: damaged after line {number} ({error}); copy or write it again'
        ) from error


def first_record_has(path: Path, key: str) -> bool:
    """Whether a path is a file of JSON lines whose first object has this key.

    Raises
    ------
    PairFileError
        A file of JSON lines is damaged.
    """
    if not path.name.endswith(JSON_LINES):
        return False
    return any(key in record for _, record in islice(read_json_lines(path), 1))


def check_text(text: str, what: str, where: str) -> None:
    """Refuse text that no file can hold: half of a character, as JSON can write it.

    >>> check_text('NaCl', 'id', 'pairs.jsonl, line 1')
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PairFileError(
            f'{where}: the {what} {text!a} holds a lone surrogate, half of a '
            'character; write another one'
        ) from None


def parse_line(line: bytes, where: str) -> dict[str, Any]:
    """The object in a line; where there is none, ``PairFileError`` names ``where``."""
    try:
        record = json.loads(line)
    # json.loads raises RecursionError for brackets in brackets, and ValueError for numbers
    # of thousands of digits and for what is no JSON or no UTF-8.
    except (ValueError, RecursionError) as error:
        raise PairFileError(
            f'{where}: not a JSON object ({error}); the file may be truncated'
        ) from error
    if not isinstance(record, dict):
        raise PairFileError(f'{where}: a {type(record).__name__}, not a JSON object')
    return record


class _Bounded(gzip.GzipFile):
    """A gzip file that is refused where it grows as no file of structures does."""

    _path: Path
    _raw: BinaryIO
    _grown = 0

    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(size)
        self._grown += len(line)
        if self._grown > LOOKED_AT and self._grown > LARGEST_RATIO * self._raw.tell():
            raise PairFileError(
                f'{self._path}: expands to more than {LARGEST_RATIO} times its size; no '
                'file of structures does'
            )
        return line


def _unzipped(path: Path, raw: BinaryIO) -> _Bounded:
    lines = _Bounded(fileobj=raw, mode='rb')
    lines._path, lines._raw = path, raw  # noqa: SLF001 - of the class above
    return lines
