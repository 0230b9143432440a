"""Files that begin with a mark of byte order, as editors of Windows write them."""

from __future__ import annotations

import codecs
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

# The marks, and how what follows is encoded.
MARKS = {
    codecs.BOM_UTF8: 'utf-8-sig',
    codecs.BOM_UTF16_LE: 'utf-16',
    codecs.BOM_UTF16_BE: 'utf-16',
}


def without_mark(content: bytes) -> bytes:
    """Text as UTF-8 without a mark of byte order; all else as it is.

    >>> without_mark('data_NaCl'.encode('utf-16')), without_mark(b'data_NaCl')
    (b'data_NaCl', b'data_NaCl')
    """
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            try:
                return content.decode(encoding).encode()
            except UnicodeDecodeError:  # no text
                return content
    return content


@contextmanager
def plain_file(path: Path) -> Generator[Path]:
    """A file, or, where it begins with a mark, a copy of the same name without it."""
    with path.open('rb') as file:
        marked = file.read(4).startswith(tuple(MARKS))
    if not marked:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(without_mark(path.read_bytes()))
        yield copy
