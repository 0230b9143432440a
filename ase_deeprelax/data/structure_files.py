"""Files of structures: which are meant, and what they hold.

The format of a file is decided here, by its suffix where that is known, and never by the
rest of its name, as ASE does for ``*POSCAR*`` or ``*OUTCAR*``.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import logging
import lzma
import re
import sqlite3
import sys
import tempfile
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, TypeVar

from ase import Atoms
from ase.db import connect
from ase.io import read
from ase.io.formats import UnknownFileTypeError, filetype, parse_filename

from ase_deeprelax.data.cif_files import read_cif
from ase_deeprelax.data.json_lines import LARGEST_RATIO, LOOKED_AT
from ase_deeprelax.data.plain_text import plain_file, without_mark
from ase_deeprelax.data.pymatgen_json import read_pymatgen
from ase_deeprelax.errors import StructureError

log = logging.getLogger(__name__)

# A structure, or the reason why there is none in its place.
Read = Atoms | StructureError
AnyPath = TypeVar('AnyPath', bound=PurePath)
Item = TypeVar('Item')

STDIN = '-'
# The formats that suffixes stand for where ASE's own table says something else or nothing.
FORMATS = {
    '.xyz': 'extxyz',
    '.extxyz': 'extxyz',
    '.cif': 'cif',
    '.vasp': 'vasp',
    '.poscar': 'vasp',
    '.traj': 'traj',
    '.db': 'db',
    '.json': 'json',
}
# The files of a folder that are read, by suffix or, as VASP has them, by name.
READ_SUFFIXES = (
    *FORMATS,
    *('.res', '.xsf', '.gen', '.cell', '.pdb', '.in', '.pwi', '.xml'),
)
READ_NAMES = ('POSCAR', 'CONTCAR')
# How compressed files are opened.
OPENERS: dict[str, Any] = {'.gz': gzip.open, '.bz2': bz2.open, '.xz': lzma.open}
# So begin files of gzip, bzip2, xz, zip and SQLite.
BINARY = (b'\x1f\x8b', b'BZh', b'\xfd7zXZ', b'PK\x03\x04', b'SQLite format 3')
# Formats that are databases: their columns are kept.
DATABASES = ('db', 'json')
# The names under which a database's own columns, and the further data of a row, are in
# ``atoms.info``; they are those of ASE.
COLUMNS, DATA = 'key_value_pairs', 'data'


@dataclass(frozen=True)
class StructureFile:
    """A file of structures, and which of its frames are meant.

    Attributes
    ----------
    path : Path
        ``-`` is standard input.
    index : str
        As in ASE: ``-1``, ``0:10``, ``::5``; default ':', all.
    """

    path: Path
    index: str = ':'

    def __str__(self) -> str:
        return str(self.path) if self.index == ':' else f'{self.path}@{self.index}'


def find_files(words: Iterable[str | Path]) -> list[StructureFile]:
    """The files that words of a command line stand for.

    Parameters
    ----------
    words : iterable of str or Path
        A file; a file and frames of it, ``run.traj@-1``; a folder, whose files that
        `is_structure_file` knows are meant, and a warning counts the others; a pattern, as
        ``'runs/*/CONTCAR'`` or ``'runs/*.traj@-1'``; ``-``, standard input. A file that
        has exactly this name comes first.

    Returns
    -------
    list of StructureFile
        Files that do not exist are among them: reading them says so.

    Examples
    --------
    >>> [str(file) for file in find_files(['a.cif', 'run.traj@-1'])]
    ['a.cif', 'run.traj@-1']
    """
    files = []
    for word in map(str, words):
        path = Path(word)
        if word == STDIN or path.is_file():
            files.append(StructureFile(path))
        elif path.is_dir():
            files += list(map(StructureFile, _inside(path))) or [StructureFile(path)]
        elif matches := _matches(word):
            files += find_files(matches)
        else:
            files += _framed(word)
    return files


def _framed(word: str) -> list[StructureFile]:
    """Frames of one file, ``run.traj@-1``, or of all files that match a pattern."""
    name, at, index = word.rpartition('@')
    if not (at and index and re.fullmatch(r'-?\d*(:-?\d*){0,2}', index)):
        return [StructureFile(Path(word))]
    names = [name] if Path(name).is_file() else _matches(name) or [name]
    return [StructureFile(Path(name), index) for name in names]


def is_structure_file(name: str) -> bool:
    """Whether a file of a folder is read, by its name; compressed or not.

    >>> [is_structure_file(name) for name in ('a/NaCl.cif.gz', 'POSCAR', 'README.md')]
    [True, True, False]
    """
    path = uncompressed(PurePath(name))
    if path.name.startswith('.'):
        return False
    return path.suffix.lower() in READ_SUFFIXES or path.name in READ_NAMES


def uncompressed(path: AnyPath) -> AnyPath:
    """A path without the suffix of a compression.

    >>> str(uncompressed(PurePath('NaCl.cif.gz'))), str(uncompressed(PurePath('NaCl.cif')))
    ('NaCl.cif', 'NaCl.cif')
    """
    return path.with_suffix('') if path.suffix.lower() in OPENERS else path


def warn_of_left_out(folder: Path, names: list[str]) -> None:
    """Log how many entries of a folder are not read, if there are any, and the first."""
    if names:
        log.warning(
            '%s: left out %d of its entries, the first is %s; to read one, give its name',
            folder,
            len(names),
            names[0],
        )


def _inside(folder: Path) -> list[Path]:
    """The files of a folder that are read."""
    there = sorted(path for path in folder.iterdir() if not path.name.startswith('.'))
    found = [path for path in there if is_structure_file(path.name) and path.is_file()]
    if found:
        read = set(found)
        warn_of_left_out(folder, [path.name for path in there if path not in read])
    return found


def _matches(pattern: str) -> list[str]:
    """The paths that match a pattern, sorted; none for a name without wildcards."""
    if not glob.has_magic(pattern):
        return []
    return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - from any folder


def read_structures(file: StructureFile, form: str | None = None) -> list[Atoms]:
    """The structures of a file.

    Columns of databases come in ``atoms.info['key_value_pairs']``. JSON files may hold
    structures of pymatgen, one, a list or a dictionary of them, or a database of ASE.

    Parameters
    ----------
    file : StructureFile
    form : str, optional
        Name of the format as in ``ase.io``; default: what the file looks like.

    Returns
    -------
    list of ase.Atoms

    Raises
    ------
    StructureError
        It, or a structure in it, cannot be read, or it holds none.
    """
    structures = []
    for found in read_each(file, form):
        if isinstance(found, StructureError):
            raise found
        structures.append(found)
    return structures


def read_each(file: StructureFile, form: str | None = None) -> list[Read]:
    """As `read_structures`, but a bad entry of a JSON file loses no other one.

    Returns
    -------
    list of ase.Atoms or StructureError
        In place of an entry that is no ordered structure, the error that says so.

    Raises
    ------
    StructureError
        The file cannot be read, or holds no structure.
    """
    try:
        if str(file.path) == STDIN:
            found = _read_stdin(form)
        else:
            found = _read_file(file.path, file.index, form)
    except StructureError:
        raise
    # Each of ASE's many readers has its own idea of what to raise.
    except Exception as error:
        raise StructureError(f'cannot be read ({_reason(error)})') from error
    if not found:
        raise StructureError('holds no structure')
    return found


def _reason(error: Exception) -> str:
    """The message of an error that a reader of ASE raised."""
    if isinstance(error, KeyError) and re.fullmatch(r"'[A-Z][a-z]?'", str(error)):
        return f'{error} is no element'
    if isinstance(error, UnknownFileTypeError) and 'JSON' in str(error):
        return (
            'neither a database of ASE, nor structures of pymatgen: one, a list or a '
            'dictionary of them, or of records with a field structure'
        )
    return f'{type(error).__name__}: {error}'.rstrip(': ')


def _read_file(path: Path, index: str, form: str | None) -> list[Read]:
    if path.is_dir():
        raise StructureError(
            f'is a folder without files of {", ".join((*READ_SUFFIXES, *READ_NAMES))}; '
            f"name other files by a pattern, as '{path}/*/POSCAR'"
        )
    if not path.is_file():
        if not path.exists() and glob.has_magic(str(path)):
            raise StructureError('no file matches this pattern')
        path.stat()  # which raises where there is nothing
        # A pipe or a device may never end.
        raise StructureError('is no regular file; save it to one, or pipe it in as "-"')
    if not path.stat().st_size:
        raise StructureError('is empty')
    with plain_file(path) as plain:
        return _read_regular(plain, index, form)


def _read_regular(path: Path, index: str, form: str | None) -> list[Read]:
    named = uncompressed(path)
    if named != path:
        _check_expansion(path)
    form = form or FORMATS.get(named.suffix.lower())
    if form == 'json' and path.suffix.lower() in ('.gz', named.suffix.lower()):
        found = read_pymatgen(path)
        if found is not None:
            return _chosen(found, index)
    if form == 'db' and named == path:
        numbers = _chosen(row_numbers(path), index)
        with connect(path, type='db', use_lock_file=False) as database:
            return [atoms_of_row(database.get(number)) for number in numbers]
    if form == 'json' and named == path:
        rows = connect(path, type='json').select(include_data=True)
        return _chosen([atoms_of_row(row) for row in rows], index)
    if form == 'cif':
        with OPENERS.get(path.suffix.lower(), open)(path, 'rb') as file:
            return _chosen(read_cif(file), index)
    form = form or filetype(str(path))
    try:
        # Without splitting at '@', which belongs to the name here.
        frames = read(path, index=index, format=form, do_not_split_by_at_sign=True)
    except UnknownFileTypeError:
        raise
    except Exception as error:
        if isinstance(error, (IndexError, StopIteration)) and index != ':':
            raise StructureError(f'holds no structure {index}') from None
        if form == 'vasp' and 'chemical symbols' in str(error):
            raise StructureError(
                'names no elements; add a line of their symbols above that of their counts'
            ) from error
        raise StructureError(
            f'cannot be read as {form} ({_reason(error)}); it may be cut, or be of another '
            'format'
        ) from error
    return [*frames] if isinstance(frames, list) else [frames]


def _check_expansion(path: Path) -> None:
    """Refuse a compressed file that grows as no file of structures does."""
    grown = 0
    with path.open('rb') as raw, OPENERS[path.suffix.lower()](raw) as content:
        while chunk := content.read(LOOKED_AT):
            grown += len(chunk)
            if grown > LOOKED_AT and grown > LARGEST_RATIO * raw.tell():
                raise StructureError(
                    f'expands to more than {LARGEST_RATIO} times its size; no file of '
                    'structures does'
                )


def _read_stdin(form: str | None) -> list[Read]:
    """Standard input, through a file, because some readers look at it twice."""
    content = without_mark(sys.stdin.buffer.read())
    if content.startswith(BINARY):
        raise StructureError(
            'is compressed, an archive or a database; save it to a file, and give its name'
        )
    is_json = content.lstrip()[:1] in (b'{', b'[')
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ('stdin.json' if is_json else 'stdin')
        path.write_bytes(content)
        if form is None and not is_json:
            form = _guessed(path, content)
        return _read_file(path, ':', form)


def _guessed(path: Path, content: bytes) -> str:
    """The format of content without a name: ASE knows CIF and POSCAR by name only."""
    if b'_cell_length_a' in content:
        return 'cif'
    try:
        return filetype(str(path))
    except UnknownFileTypeError:
        return 'vasp'


def _chosen(frames: list[Item], index: str) -> list[Item]:
    """The frames that an index of ASE means."""
    _, which = parse_filename(f'x@{index}')
    if isinstance(which, slice):
        return frames[which]
    if not -len(frames) <= which < len(frames):
        raise StructureError(f'holds no structure {index}; it has {len(frames)}')
    return [frames[which]]


def row_numbers(path: Path) -> list[int]:
    """Numbers of the rows of an ``ase.db`` file (SQLite), in order.

    ASE itself would make its tables in any file of SQLite that has none.

    Raises
    ------
    StructureError
        It is no such file, or another process is writing to it for seconds.
    """
    uri = f'{path.absolute().as_uri()}?mode=ro'
    try:
        with closing(sqlite3.connect(uri, uri=True)) as file:
            return [row[0] for row in file.execute('SELECT id FROM systems ORDER BY id')]
    except sqlite3.Error as error:
        if getattr(error, 'sqlite_errorcode', None) == sqlite3.SQLITE_BUSY:
            raise StructureError(
                'another process is writing to this database; wait until it has ended'
            ) from error
        raise StructureError(f'no database of ASE ({error})') from error


def atoms_of_row(row: Any) -> Atoms:
    """The structure of a row of ``ase.db``.

    Its columns are in ``info['key_value_pairs']``, its further data in ``info['data']``.
    """
    atoms = row.toatoms()
    if row.key_value_pairs:
        atoms.info[COLUMNS] = dict(row.key_value_pairs)
    if row.data:
        atoms.info[DATA] = dict(row.data)
    return atoms
