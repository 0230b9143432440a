"""The papers' data sets as they are published: CIF files with lists of ids, databases.

The files say neither what their structures are nor what was held when they were relaxed:
`layout_kinds` finds it out.
"""

from __future__ import annotations

import csv
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.db import connect
from ase.io.cif import parse_cif
from joblib import Parallel, delayed, effective_n_jobs

from ase_deeprelax.data.cif_files import FORMULA, OCCUPANCY, UNKNOWN
from ase_deeprelax.data.formula import chemical_formula, element_counts
from ase_deeprelax.data.layout_kinds import with_kinds
from ase_deeprelax.data.pair import Pair, make_pair
from ase_deeprelax.errors import PairFileError

SPLITS = ('train', 'val', 'test')
# Lists of ids: of X-Mn-O, and of all other sets.
LISTS = ('id_prop_{}_all.csv', '{}.csv')
ID_COLUMNS = ('atoms_id', 'mp_id', 'id')
# Suffixes of the unrelaxed and relaxed CIF: of MP, and of all other sets.
MP_SUFFIXES = ('_U.cif', '_R.cif')
SUFFIXES = ('_unrelaxed.cif', '_relaxed.cif')
# Databases of C2DB, unrelaxed and relaxed, and where the first keeps its structures.
DATABASES = ('unrelaxed.db', 'relaxed.db')
DATABASE_KEYS = ('structure.json', 'structure_large_vacuum.json', 'unrelaxed.json')
# Below this many pairs, workers take longer to start than they save.
WORTH_WORKERS = 1000


@dataclass(frozen=True)
class Entry:
    """One id of a list: its split, the naming of its files, and where it stands."""

    id: str
    split: str
    suffixes: tuple[str, ...]
    where: str


def read_layout(folder: Path, splits: Collection[str] | None = None) -> list[Pair]:
    """The pairs of a folder in one of the published layouts.

    Parameters
    ----------
    folder : Path
        With ``{split}.csv`` or, for X-Mn-O, ``id_prop_{split}_all.csv``, and CIF files in
        ``CIF/``, ``cif/`` or beside the lists, or else ``unrelaxed.db`` and ``relaxed.db``
        of ase.db; see `read_pairs`.
    splits : collection of str, optional
        Read only these.

    Returns
    -------
    list of Pair
        In the order of the lists, or of ``unrelaxed.db`` where there are none; with the
        kinds of `layout_kinds`.

    Raises
    ------
    PairFileError
        No such layout; a list, CIF file or database that is missing or damaged; halves of
        different atoms. It names the id, the list and its line, and the file.

    Examples
    --------
    >>> pairs = read_layout(Path('cifs_xmno'), ('test',))  # doctest: +SKIP
    """
    lists = _lists(folder)
    databases = _databases(folder)
    places = [place for place in (folder / 'CIF', folder / 'cif') if place.is_dir()]
    from_databases = not places and all(path.exists() for path in databases)
    if not lists and not from_databases:
        raise PairFileError(
            f'{folder}: neither train.csv, val.csv, test.csv beside CIF files, nor '
            'unrelaxed.db and relaxed.db, nor unrelaxed.extxyz and relaxed.extxyz are here'
        )
    entries = [
        entry
        for split, file in lists.items()
        if splits is None or split in splits
        for entry in _entries(file, split)
    ]
    if from_databases:
        pairs = _read_databases(databases, entries if lists else None)
        return with_kinds(pairs, folder.resolve().name)
    paths = _paths(entries, [*places, folder])
    n_jobs = effective_n_jobs(-1) if len(entries) >= WORTH_WORKERS else 1
    work = zip(entries, paths, strict=True)
    pairs = Parallel(n_jobs=n_jobs)(delayed(_read_pair)(*item) for item in work)
    return with_kinds(pairs, folder.resolve().name)


def is_layout(folder: Path) -> bool:
    """Whether a folder is in one of the published layouts, see `read_layout`."""
    return bool(_lists(folder)) or all(path.exists() for path in _databases(folder))


def _databases(folder: Path) -> list[Path]:
    return [folder / name for name in DATABASES]


def _lists(folder: Path) -> dict[str, Path]:
    """The list of ids of each split, as far as there is one."""
    found = {}
    for split in SPLITS:
        for name in LISTS:
            path = folder / name.format(split)
            if path.exists():
                found[split] = path
                break
    return found


def _entries(file: Path, split: str) -> list[Entry]:
    """The ids of a list: of the column that is named so, else of the first column.

    The lists of X-Mn-O have no header and name both halves of each pair, ``{id}_unrelaxed``
    and ``{id}_relaxed``.
    """
    try:
        # Spreadsheets put a mark of byte order first.
        with file.open(newline='', encoding='utf-8-sig') as stream:
            reader = csv.reader(stream)
            rows = [(reader.line_num, row) for row in reader if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PairFileError(f'{file}: not a readable csv file ({error})') from error
    suffixes, column = SUFFIXES, 0
    if file.name.startswith('id_prop_'):
        rows = [
            (line, [row[0].removesuffix('_relaxed')])
            for line, row in rows
            if row[0].endswith('_relaxed')
        ]
    elif rows:
        header = [cell.strip() for cell in rows[0][1]]
        named = [name for name in ID_COLUMNS if name in header]
        if named:
            column, rows = header.index(named[0]), rows[1:]
            suffixes = MP_SUFFIXES if named[0] == 'mp_id' else SUFFIXES
    entries = []
    for line, row in rows:
        where = f'{file}, line {line}'
        id = row[column].strip() if column < len(row) else ''
        if not id:
            raise PairFileError(f'{where}: no id in column {column + 1}')
        entries.append(Entry(id, split, suffixes, where))
    return entries


def _paths(entries: Sequence[Entry], places: Sequence[Path]) -> list[list[Path]]:
    """Both CIF files of each entry; all are looked for before the first is read."""
    names = {place: {path.name for path in place.iterdir()} for place in places}
    paths, missing = [], []
    for entry in entries:
        found, absent = _look_for(entry, names)
        paths.append(found)
        if absent:
            missing.append((entry, absent))
    if missing:
        entry, absent = missing[0]
        raise PairFileError(
            f'{entry.where}: id {entry.id!r} has no {absent}; {len(missing)} of '
            f'{len(entries)} listed pairs lack a file: complete the folder, or take their '
            'lines out of the lists'
        )
    return paths


def _look_for(
    entry: Entry, names: Mapping[Path, Collection[str]]
) -> tuple[list[Path], Path | None]:
    """The two files of an entry, and the one that is missing or None.

    ``names`` are the files of each place. Where no two belong together, what is closest to
    a pair is the one meant.
    """
    best: tuple[list[Path], list[Path]] = ([], [])
    for place, files in names.items():
        for suffixes in dict.fromkeys((entry.suffixes, SUFFIXES, MP_SUFFIXES)):
            paths = [place / f'{entry.id}{suffix}' for suffix in suffixes]
            absent = [path for path in paths if path.name not in files]
            if not absent:
                return paths, None
            if not best[0] or len(absent) < len(best[1]):
                best = paths, absent
    return best[0], best[1][0]


def _read_pair(entry: Entry, paths: Sequence[Path]) -> Pair:
    try:
        halves = [_read_cif(path) for path in paths]
    except PairFileError as error:
        raise PairFileError(f'{entry.where}, id {entry.id!r}: {error}') from error
    return _pair(entry, halves, paths)


def _read_cif(path: Path) -> Atoms:
    """The last structure of a CIF file, which is the one that the published code takes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about settings of space groups
            block = [b for b in parse_cif(str(path)) if b.has_structure()][-1]
            # Half the time of all symmetry is the identity's.
            plain = block.get_unsymmetrized_structure
            atoms = plain() if _no_symmetry(block) else block.get_atoms()
            atoms.pbc = True  # what a CIF file describes always is
            occupancies = block.get(OCCUPANCY, ())
            occupancies = [float(x) for x in occupancies if x not in UNKNOWN]
            stated = element_counts(str(block.get(FORMULA, '')))
    except Exception as error:  # parsers raise what they like on a damaged file
        reason = 'no structure in it' if isinstance(error, IndexError) else error
        raise PairFileError(
            f'{path}: not a readable CIF file ({reason}); it may be truncated'
        ) from error
    if min(occupancies, default=1) < 0.999:
        raise PairFileError(
            f'{path}: a site with an occupancy of {min(occupancies):g}; a pair needs '
            'ordered structures, each site held by one atom'
        )
    _check_formula(path, atoms, stated)
    return atoms


def _no_symmetry(block: Any) -> bool:
    """Whether a CIF file lists one symmetry operation, the identity."""
    tags = '_symmetry_equiv_pos_as_xyz', '_space_group_symop_operation_xyz'
    operations = next((block[tag] for tag in tags if tag in block), ())
    operations = [operations] if isinstance(operations, str) else operations
    return [text.replace(' ', '').lower() for text in operations] == ['x,y,z']


def _check_formula(path: Path, atoms: Atoms, stated: Mapping[str, float]) -> None:
    """Refuse a file that lost atoms: whole formula units, or it was cut."""
    counts = Counter(atoms.symbols)
    units = [counts[symbol] / number for symbol, number in stated.items()]
    if not stated or (
        counts.keys() == stated.keys()
        and min(units) > 0.99
        and max(units) < 1.01 * min(units)
    ):
        return
    held = chemical_formula(atoms, reduced=False)
    formula = ' '.join(f'{symbol}{number:g}' for symbol, number in stated.items())
    raise PairFileError(
        f'{path}: holds {held}, but says that it is {formula}; it may be truncated'
    )


def _pair(entry: Entry, halves: Sequence[Atoms], paths: Sequence[Path]) -> Pair:
    try:
        return make_pair(entry.id, *halves, split=entry.split)
    except PairFileError as error:
        a, b = (atoms.numbers for atoms in halves)
        hint = ''
        if np.array_equal(np.sort(a), np.sort(b)) and not np.array_equal(a, b):
            hint = f': sort those of {paths[1]} like those of {paths[0]}'
        raise PairFileError(f'{entry.where}: {error}{hint}') from error


def _read_databases(paths: Sequence[Path], entries: Sequence[Entry] | None) -> list[Pair]:
    """Pairs of ``unrelaxed.db`` and ``relaxed.db``; those listed, or all."""
    halves = _rows(paths[0], DATABASE_KEYS), _rows(paths[1], ())
    if entries is None:
        entries = [Entry(id, '', SUFFIXES, str(paths[0])) for id in halves[0]]
    pairs = []
    for entry in entries:
        for path, rows in zip(paths, halves, strict=True):
            if entry.id not in rows:
                raise PairFileError(f'{entry.where}: id {entry.id!r} is not in {path}')
        pairs.append(_pair(entry, [rows[entry.id] for rows in halves], paths))
    return pairs


def _rows(path: Path, keys: Sequence[str]) -> dict[str, Atoms]:
    """Structures of a database by id: the last part of ``folder``, as in C2DB.

    ``keys`` name the fields of a row's data that may hold its structure; else the row
    itself does.
    """
    try:
        rows = [_row(row, keys) for row in connect(path, type='db').select()]
    except Exception as error:  # as many kinds as ways to damage a file
        raise PairFileError(f'{path}: not a readable ase database ({error})') from error
    found: dict[str, Atoms] = {}
    for number, folder, atoms in rows:
        if folder is None:
            raise PairFileError(f"{path}: row {number} lacks the key 'folder', its id")
        id = Path(folder).name
        if id in found:
            raise PairFileError(f'{path}: row {number} is a second {id!r}')
        found[id] = atoms
    return found


def _row(row: Any, keys: Sequence[str]) -> tuple[int, str | None, Atoms]:
    stored = next((row.data[key] for key in keys if key in row.data), None)
    if stored is None:
        return row.id, row.get('folder'), row.toatoms()
    record = stored['1']
    atoms = Atoms(
        record['numbers'],
        record['positions'],
        cell=np.array(record['cell']),
        pbc=record.get('pbc', True),
    )
    return row.id, row.get('folder'), atoms
