"""Databases of ASE, and parquet files, as streams."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from ase import Atoms
from ase.db import connect
from ase.io.jsonio import decode

from ase_deeprelax.data.pymatgen_json import NAMES, of_pymatgen
from ase_deeprelax.data.structure_files import atoms_of_row, row_numbers
from ase_deeprelax.errors import MissingDependencyError, StructureError
from ase_deeprelax.screening.items import Item, OneFormat, only_structure

# Rows of a parquet file that are held at a time.
ROWS = 1000
# Columns of large public tables of structures.
LEMAT = ('lattice_vectors', 'species_at_sites', 'cartesian_site_positions')
# A process may open an .aselmdb file once at a time, so its threads share what is open.
_OPEN: WeakValueDictionary[str, Any] = WeakValueDictionary()
_OPENING = threading.Lock()


class Database(OneFormat):
    """The rows of an ``ase.db`` file (SQLite), counted from 0 as ``ase.io`` does."""

    def entries(self) -> Iterator[tuple[None, Callable[[], Atoms]]]:
        """For each row None, because rows have no names, and its reader."""
        with self._connected() as database:
            for number in map(int, self._row_numbers(database)):
                yield None, partial(_row, database, number)

    @contextmanager
    def _connected(self) -> Generator[Any]:
        yield connect(self.path, type='db', use_lock_file=False)

    def _row_numbers(self, database: Any) -> Sequence[int]:  # noqa: ARG002
        try:
            return row_numbers(self.path)
        except StructureError as error:
            raise StructureError(f'{self.path}: {error}') from error


def _row(database: Any, number: int) -> Atoms:
    return atoms_of_row(database.get(number))


class LmdbDatabase(Database):
    """The rows of an ``.aselmdb`` file, as the FAIR chemistry data sets are given."""

    @contextmanager
    def _connected(self) -> Generator[Any]:
        place = os.path.realpath(self.path)
        with _OPENING:
            database = _OPEN.get(place)
            if database is None:
                database = _OPEN[place] = self._open()
        yield database  # it closes when nobody needs it any more

    def _open(self) -> Any:
        try:
            from ase_db_backends.aselmdb import lmdb
        except ImportError as error:
            raise MissingDependencyError(
                f"{self.path}: .aselmdb files need pip install 'ase-deeprelax[aselmdb]'"
            ) from error
        try:
            _check_length(self.path, lmdb)
            return connect(self.path, type='aselmdb', readonly=True, use_lock_file=False)
        except Exception as error:
            raise StructureError(
                f'{self.path}: cannot be opened as .aselmdb file ({error})'
            ) from error

    def _row_numbers(self, database: Any) -> Sequence[int]:
        return database.ids


def _check_length(path: Path, lmdb: Any) -> None:
    """Refuse a file of LMDB that was cut: reading beyond its end kills the process."""
    with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as file:
        whole = (file.info()['last_pgno'] + 1) * file.stat()['psize']
    if path.stat().st_size < whole:
        raise StructureError(f'cut to less than its {whole:,} bytes; copy it again')


class Parquet(OneFormat):
    """The rows of a parquet file.

    A row holds its structure in one of these ways: ``atoms``, JSON of ASE, as screens write
    it; ``structure``, a dictionary or JSON of pymatgen; ``cif``, text; ``numbers`` or
    ``symbols``, ``positions`` and ``cell``; or the columns of LeMat-Bulk.
    """

    @cached_property
    def _file(self) -> Any:
        parquet = need_pyarrow().parquet
        try:
            return parquet.ParquetFile(self.path)
        except Exception as error:
            raise StructureError(f'{self.path}: no parquet file ({error})') from error

    def items(self, start: int = 0) -> Iterator[Item]:
        """See `Source`."""
        names = set(self._file.schema_arrow.names)
        columns, atoms_of = _reader(names, self.path)
        name = next((name for name in NAMES if name in names), None)
        columns = [*columns, *([name] if name else [])]
        number = 0
        try:
            for row in self._rows(columns, start):
                if row is not None:
                    own = None if name is None else row[name]
                    id = self.named(number) if own is None else str(own)
                    yield Item(id, partial(_atoms, atoms_of, row))
                number += 1
        except (OSError, need_pyarrow().ArrowInvalid) as error:
            yield from self.damage(error, number, start)

    def _rows(self, columns: Sequence[str], start: int) -> Iterator[dict[str, Any] | None]:
        """All rows; None for those before ``start``, of which most are not read."""
        number = 0
        for group in range(self._file.num_row_groups):
            n_rows = self._file.metadata.row_group(group).num_rows
            if number + n_rows <= start:
                yield from repeat(None, n_rows)
                number += n_rows
                continue
            batches = self._file.iter_batches(ROWS, row_groups=[group], columns=columns)
            for row in chain.from_iterable(batch.to_pylist() for batch in batches):
                yield row if number >= start else None
                number += 1


def need_pyarrow() -> Any:
    """The package pyarrow, or ``MissingDependencyError``."""
    try:
        import pyarrow as pa
        import pyarrow.compute
        import pyarrow.dataset
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(
            "screens and parquet files need pip install 'ase-deeprelax[screen]'"
        ) from error
    return pa


def _reader(
    names: set[str], path: Path
) -> tuple[Sequence[str], Callable[[dict[str, Any]], Atoms]]:
    """The columns that hold the structure, and what makes Atoms of them."""
    if 'atoms' in names:
        return ['atoms'], lambda row: decode(row['atoms'])
    if 'structure' in names:
        return ['structure'], lambda row: of_pymatgen(row['structure'])
    if 'cif' in names:
        return ['cif'], lambda row: _of_cif(row['cif'])
    if names >= set(LEMAT):
        return LEMAT, lambda row: _of_columns(*(row[key] for key in LEMAT))
    for species in ('numbers', 'symbols'):
        columns = ('cell', species, 'positions')
        if names >= set(columns):
            columns = (*columns, *({'pbc'} & names))
            return columns, lambda row, columns=columns: _of_columns(
                *(row[key] for key in columns)
            )
    raise StructureError(
        f'{path}: no column that holds structures: atoms, structure, cif, or numbers, '
        f'positions and cell; there are: {", ".join(sorted(names))}'
    )


def _of_cif(text: str) -> Atoms:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'structure.cif'
        path.write_text(text, encoding='utf-8')
        return only_structure(path)


def _of_columns(cell: Any, species: Any, positions: Any, pbc: Any = None) -> Atoms:
    """Atoms of the entries of a row; without a word on ``pbc`` it is a crystal."""
    if cell is None or species is None or positions is None:
        raise StructureError('its cell, its species or its positions are empty (null)')
    return Atoms(
        species,
        cell=np.reshape(cell, (3, 3)),
        positions=np.reshape(positions, (-1, 3)),
        pbc=True if pbc is None else pbc,
    )


def _atoms(atoms_of: Callable, row: dict[str, Any]) -> Atoms:
    try:
        return atoms_of(row)
    except StructureError:
        raise
    except Exception as error:
        raise StructureError(f'cannot be read ({type(error).__name__}: {error})') from error
