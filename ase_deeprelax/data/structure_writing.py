"""Structures are written to files that last: whole, or not at all."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.db import connect
from ase.db.jsondb import JSONDatabase
from ase.io import write
from ase.io.formats import filetype, ioformats

from ase_deeprelax import keys
from ase_deeprelax.data.structure_files import COLUMNS, DATA, DATABASES, FORMATS
from ase_deeprelax.data.writable import ODD, writable
from ase_deeprelax.errors import ConfigError
from ase_deeprelax.files import replaced

# Formats that take structures one after the other, so that any number needs no memory.
STREAMED = (*DATABASES, 'extxyz')
# Formats that have elements, or their number, of the first structure for all of a file.
SAME_ATOMS = ('bundletrajectory', 'netcdftrajectory', 'proteindatabank', 'xsf')
# Formats that hold no cell, and one of two files of which one would be left behind.
UNFIT = ('turbomole', 'sys', 'xtd')


class _JsonDatabase(JSONDatabase):
    """ASE's database in JSON, written when it is closed: not once more for each row."""

    def __init__(self, path: Path):
        super().__init__(str(path))
        self._rows: tuple[dict[int, Any], list[int], int] = {}, [], 1
        path.touch()  # ASE reads the former rows of a file that is there

    def _read_json(self) -> Any:
        return self._rows

    def _write_json(self, bigdct: dict[int, Any], ids: list[int], nextid: int) -> None:
        self._rows = bigdct, ids, nextid

    def __exit__(self, exc_type: Any, exc_value: Any, tb: Any) -> None:
        super()._write_json(*self._rows)


def find_format(path: Path, form: str | None = None) -> str:
    """The format that a file is written in.

    Parameters
    ----------
    path : Path
    form : str, optional
        Its name as in ``ase.io``; default: what the suffix stands for.

    Returns
    -------
    str

    Raises
    ------
    ConfigError
        ASE writes no such format, or it cannot hold a crystal.

    Examples
    --------
    >>> find_format(Path('POSCAR.cif')), find_format(Path('out.gz'), 'xyz')
    ('cif', 'extxyz')
    """
    # Plain xyz holds no cell: its name means extended xyz here, as the suffix does.
    found = FORMATS.get(f'.{form}', form) if form else FORMATS.get(path.suffix.lower())
    if found is None and path.suffix:
        try:  # of a name that says nothing but the suffix
            found = filetype(f'structure{path.suffix}', read=False)
        except Exception:  # noqa: BLE001 - ASE raises several
            found = None
    if found not in ioformats or not ioformats[found].can_write:
        asked = f'format {form!r}' if form else f'suffix {path.suffix!r}'
        raise ConfigError(
            f'{path}: ase.io writes no {asked}; choose .extxyz, .cif, .vasp, .traj or .db'
        )
    if found in UNFIT:
        raise ConfigError(
            f'{path}: a file of the format {found} cannot hold a crystal; choose .extxyz, '
            '.cif, .vasp, .traj or .db'
        )
    return found


def why_not_together(structures: Sequence[Atoms], form: str) -> str:
    """Why a file of a format cannot hold structures together, or ''.

    >>> from ase.build import bulk
    >>> why_not_together([bulk('Cu'), bulk('Au')], 'proteindatabank')
    'a file of the format proteindatabank holds the same atoms in all structures'
    """
    if len(structures) > 1 and ioformats[form].single:
        return f'a file of the format {form} holds one structure'
    different = {tuple(atoms.numbers.tolist()) for atoms in structures}
    if form in SAME_ATOMS and len(different) > 1:
        return f'a file of the format {form} holds the same atoms in all structures'
    return ''


def write_structures(path: Path, structures: Sequence[Atoms], form: str) -> list[str]:
    """Write structures to a file; one that cannot be written loses no other one.

    Parameters
    ----------
    path : Path
        Overwritten once all of it is written; its folder is made.
    structures : list of ase.Atoms
    form : str
        As `find_format` gives it.

    Returns
    -------
    list of str
        Why structures are not in the file: ``'structure 3: reason'``.

    Raises
    ------
    OSError
        The disk is full, or fails; a former file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held = [writable(atoms, form) for atoms in structures]
    problems: list[str] = []
    with replaced(path) as part:
        try:
            write_frames(part, held, form)
        except Exception as error:  # noqa: BLE001 - writers raise anything
            _raise_if_of_disk(error)
            kept = list(_those_written(part, held, form, problems))
            part.unlink(missing_ok=True)
            if kept:
                write_frames(part, kept, form)
    return problems


def write_frames(path: Path, structures: Iterable[Atoms], form: str) -> int:
    """Write a new file, and return how many structures it holds.

    Parameters
    ----------
    path : Path
    structures : iterable of ase.Atoms
        With what the format can hold of them, see `writable`. All but `STREAMED` formats
        hold all of them in memory.
    form : str
        As `find_format` gives it.

    Raises
    ------
    OSError
        The disk is full, or fails. Writers raise anything else for structures that they
        cannot write.
    """
    path.unlink(missing_ok=True)
    count = 0
    if form in DATABASES:
        opened = _JsonDatabase(path) if form == 'json' else connect(path, type=form)
        with _sqlite_as_system(), opened as database:
            for count, atoms in enumerate(structures, start=1):  # noqa: B007
                database.write(atoms, *columns_of(atoms))
    elif form == 'extxyz':
        with path.open('w') as file:
            for count, atoms in enumerate(structures, start=1):  # noqa: B007
                write(file, atoms, format=form)
    else:
        held = list(structures)
        count = len(held)
        write(path, held, format=form)
    return count


def _those_written(
    path: Path, structures: Sequence[Atoms], form: str, problems: list[str]
) -> Iterator[Atoms]:
    """The structures that can be written alone; the others are told in ``problems``."""
    for index, atoms in enumerate(structures):
        try:
            write_frames(path, [atoms], form)
        except Exception as error:  # noqa: BLE001 - writers raise anything
            _raise_if_of_disk(error)
            problems.append(f'structure {index}: {type(error).__name__}: {error}')
        else:
            yield atoms


def _raise_if_of_disk(error: Exception) -> None:
    """Raise an error that the system gave: no structure is to blame for it."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


@contextmanager
def _sqlite_as_system() -> Generator[None]:
    """Let SQLite say that a disk is full, or fails, as the system does."""
    try:
        yield
    except sqlite3.OperationalError as error:
        codes = {sqlite3.SQLITE_FULL: errno.ENOSPC, sqlite3.SQLITE_IOERR: errno.EIO}
        code = codes.get(error.sqlite_errorcode & 0xFF)  # without its extended part
        if code is None:
            raise
        raise OSError(code, os.strerror(code)) from error


def columns_of(atoms: Atoms) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns of a row of a database and its further data.

    They are those of the row that the atoms came from, but for what this package wrote of
    a former structure, and the rest of ``atoms.info``: what a column takes is one, and
    anything else is data.
    """
    info = dict(atoms.info)
    former, data = (
        {key: x for key, x in info.pop(name).items() if not keys.is_ours(key)}
        if isinstance(info.get(name), Mapping)
        else {}
        for name in (COLUMNS, DATA)
    )
    columns: dict[str, Any] = {}
    for name, value in {**former, **info}.items():
        odd = isinstance(value, str) and ODD.search(value)
        is_column = not odd and keys.is_column(name, value)
        (columns if is_column else data)[name] = value
    return columns, data
