"""Files of pairs: JSON lines, the folders of DeepRelax, extxyz."""

import csv
import gzip
import json
import zlib
from pathlib import Path

import numpy as np
from ase.io import iread, read

from ase_deeprelax.data.pair import Pair, check_halves, make_pair
from ase_deeprelax.errors import PairFileError

__all__ = ['Pair', 'make_pair', 'read_pairs', 'write_pairs']

# Suffixes of the unrelaxed and relaxed CIF in DeepRelax's data sets.
CIF_SUFFIXES = (('_unrelaxed.cif', '_relaxed.cif'), ('_U.cif', '_R.cif'))
SPLITS = ('train', 'val', 'test')


def read_pairs(path, split=None, *, ok_only=False):
    """Read pairs of an unrelaxed and a relaxed structure.

    Parameters
    ----------
    path : str or Path
        One of

        - ``*.jsonl`` or ``*.jsonl.gz``: one object per line with ``id, numbers, cell0,
          frac0, cell1, frac1`` and optionally ``ok, split, formula, scale``;
        - a folder of DeepRelax: ``train.csv``, ``val.csv``, ``test.csv`` (ids in the
          column ``atoms_id``, ``mp_id``, ``id``, or else the first) or
          ``id_prop_train_all.csv`` ..., with ``{id}_unrelaxed.cif`` and
          ``{id}_relaxed.cif`` (or ``{id}_U.cif``, ``{id}_R.cif``) in ``CIF/``, ``cif/``
          or beside the csv;
        - a folder with ``unrelaxed.extxyz`` and ``relaxed.extxyz``, in the same order;
        - one ``*.extxyz`` whose frames carry ``info['pair_id']`` and ``info['role']``,
          ``'unrelaxed'`` or ``'relaxed'``.
    split : str, optional
        Only pairs of this split; default all.
    ok_only : bool
        Only pairs marked ``ok``.

    Returns
    -------
    list of Pair
        In the order of the file; never empty.

    Raises
    ------
    PairFileError
        The path is missing, of no known layout, damaged, or holds no such pair.

    Examples
    --------
    >>> pairs = read_pairs('pairs_mp.jsonl.gz', 'train', ok_only=True)  # doctest: +SKIP
    """
    path = Path(path)
    if not path.exists():
        raise PairFileError(f'{path}: there is no such file or folder')
    if path.is_dir():
        records = _read_folder(path, split)
    elif path.name.endswith(('.jsonl', '.jsonl.gz')):
        records = _read_lines(path, split, ok_only)
    elif path.suffix in ('.extxyz', '.xyz'):
        records = _read_extxyz(path)
    else:
        raise PairFileError(
            f'{path}: not a known kind of pair file; give .jsonl, .jsonl.gz, .extxyz, or a '
            'folder with CIF or extxyz files'
        )
    pairs = [
        pair
        for pair in records
        if (split is None or pair.split == split) and (pair.ok or not ok_only)
    ]
    if not pairs:
        which = ''.join([f' of split {split!r}' if split else '', ' marked ok' * ok_only])
        raise PairFileError(f'{path}: holds no pair{which}')
    return pairs


def write_pairs(path, pairs):
    """Write pairs as JSON lines, gzipped where ``path`` ends in ``.gz``.

    >>> write_pairs('mine.jsonl.gz', pairs)  # doctest: +SKIP
    """
    path = Path(path)
    opener = gzip.open if path.suffix == '.gz' else open
    with opener(path, 'wt', encoding='utf-8') as file:
        for pair in pairs:
            record = {'id': pair.id, 'formula': pair.formula}
            record['numbers'] = pair.numbers.tolist()
            for key in ('cell0', 'frac0', 'cell1', 'frac1'):
                record[key] = getattr(pair, key).round(9).tolist()
            record |= {'ok': pair.ok, 'split': pair.split, 'scale': pair.scale}
            file.write(json.dumps(record, separators=(',', ':')) + '\n')


def _read_lines(path, split, ok_only):
    """Pairs of a JSON lines file; unwanted lines are dropped before they cost anything."""
    number = 0
    pairs = []
    opener = gzip.open if path.suffix == '.gz' else open
    try:
        with opener(path, 'rt', encoding='utf-8') as file:
            for number, line in enumerate(file, start=1):
                if line.isspace():
                    continue
                record = json.loads(line)
                if split is not None and record.get('split', '') != split:
                    continue
                if ok_only and not record.get('ok', True):
                    continue
                pairs.append(_from_record(record, f'{path}, line {number}'))
    except json.JSONDecodeError as error:
        raise PairFileError(
            f'{path}, line {number}: not a JSON object ({error}); the file may be truncated'
        ) from error
    except (EOFError, OSError, zlib.error, UnicodeDecodeError) as error:
        raise PairFileError(
            f'{path}: damaged after line {number} ({error}); copy or write it again'
        ) from error
    return pairs


def _from_record(record, where):
    if not isinstance(record, dict):
        raise PairFileError(f'{where}: a {type(record).__name__}, not a JSON object')
    where = f'{where}, id {record.get("id", "?")!r}'
    try:
        numbers = np.array(record['numbers'], dtype=np.int64)
        n = len(numbers)
        cell0, frac0, cell1, frac1 = (
            np.array(record[key], dtype=float).reshape(-1, 3)
            for key in ('cell0', 'frac0', 'cell1', 'frac1')
        )
    except KeyError as error:
        raise PairFileError(f'{where}: the key {error} is missing') from error
    except (TypeError, ValueError) as error:
        raise PairFileError(f'{where}: {error}') from error
    if not len(frac0) == len(frac1) == n or not len(cell0) == len(cell1) == 3:
        raise PairFileError(
            f'{where}: {n} numbers, {len(frac0)} unrelaxed and {len(frac1)} relaxed '
            f'positions, cells of {len(cell0)} and {len(cell1)} vectors'
        )
    check_halves(where, frac0, frac1, cell0, cell1)
    return Pair(
        id=str(record.get('id', where)),
        numbers=numbers,
        cell0=cell0,
        frac0=frac0,
        cell1=cell1,
        frac1=frac1,
        ok=bool(record.get('ok', True)),
        split=record.get('split', ''),
        formula=record.get('formula', ''),
        scale=float(record.get('scale', 1.0)),
    )


def _read_folder(folder, split):
    unrelaxed, relaxed = folder / 'unrelaxed.extxyz', folder / 'relaxed.extxyz'
    if unrelaxed.exists() and relaxed.exists():
        first, second = list(_frames(unrelaxed)), list(_frames(relaxed))
        if len(first) != len(second):
            raise PairFileError(
                f'{folder}: {len(first)} structures in {unrelaxed.name}, {len(second)} in '
                f'{relaxed.name}; the n-th of one must belong to the n-th of the other'
            )
        return [
            _pair(unrelaxed, a.info.get('pair_id', k), a, b)
            for k, (a, b) in enumerate(zip(first, second, strict=True))
        ]
    lists = {
        name: file
        for name in SPLITS
        for file in (folder / f'{name}.csv', folder / f'id_prop_{name}_all.csv')
        if file.exists()
    }
    if not lists:
        raise PairFileError(
            f'{folder}: neither train.csv, val.csv, test.csv beside CIF files nor '
            'unrelaxed.extxyz and relaxed.extxyz are here'
        )
    return [
        _read_cifs(folder, id, name, file)
        for name, file in lists.items()
        if split in (None, name)
        for id in _ids(file)
    ]


def _ids(file):
    """Ids of a csv: from the column that is named so, else from the first column.

    The lists of the X-Mn-O set have no header and name both halves of each pair,
    ``{id}_unrelaxed`` and ``{id}_relaxed``.
    """
    with file.open(newline='', encoding='utf-8') as stream:
        rows = [row for row in csv.reader(stream) if row]
    if file.name.startswith('id_prop_'):
        firsts = [row[0] for row in rows]
        return [id.removesuffix('_relaxed') for id in firsts if id.endswith('_relaxed')]
    for name in ('atoms_id', 'mp_id', 'id'):
        if rows and name in rows[0]:
            column = rows[0].index(name)
            return [row[column] for row in rows[1:]]
    return [row[0] for row in rows]


def _read_cifs(folder, id, split, file):
    for place in (folder / 'CIF', folder / 'cif', folder):
        for suffixes in CIF_SUFFIXES:
            paths = [place / f'{id}{suffix}' for suffix in suffixes]
            if all(path.exists() for path in paths):
                first, second = (_read_cif(path) for path in paths)
                return _pair(file, id, first, second, split=split)
    raise PairFileError(
        f'{file}: id {id!r} has no {id}_unrelaxed.cif and {id}_relaxed.cif in {folder} or '
        f'{folder / "CIF"}'
    )


def _read_cif(path):
    try:
        return read(path, format='cif')
    except Exception as error:  # parsers raise what they like on a damaged file
        raise PairFileError(f'{path}: not a readable CIF file ({error})') from error


def _frames(path):
    try:
        yield from iread(path, format='extxyz')
    except Exception as error:  # parsers raise what they like on a damaged file
        raise PairFileError(f'{path}: not a readable extxyz file ({error})') from error


def _read_extxyz(path):
    found = {}
    for k, atoms in enumerate(_frames(path)):
        id, role = atoms.info.get('pair_id'), atoms.info.get('role')
        if id is None or role not in ('unrelaxed', 'relaxed'):
            raise PairFileError(
                f'{path}: frame {k} needs info pair_id, and role unrelaxed or relaxed; '
                f'it has pair_id={id!r}, role={role!r}'
            )
        if role in found.setdefault(id, {}):
            raise PairFileError(f'{path}: frame {k} is a second {role} one of {id!r}')
        found[id][role] = atoms
    for id, roles in found.items():
        if len(roles) < 2:
            half = next(iter(roles))
            raise PairFileError(f'{path}: pair {id!r} has only its {half} half')
    return [_pair(path, id, r['unrelaxed'], r['relaxed']) for id, r in found.items()]


def _pair(path, id, unrelaxed, relaxed, split=None):
    info = unrelaxed.info
    try:
        return make_pair(
            id,
            unrelaxed,
            relaxed,
            ok=info.get('ok', True),
            split=info.get('split', '') if split is None else split,
            scale=info.get('scale', 1.0),
        )
    except PairFileError as error:
        raise PairFileError(f'{path}: {error}') from error
