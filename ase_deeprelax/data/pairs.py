"""Files of pairs: JSON lines, extxyz, and the folders of `published_layouts`."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.io import iread

from ase_deeprelax.data.json_lines import (
    JSON_LINES,
    check_text,
    first_record_has,
    read_json_lines,
)
from ase_deeprelax.data.one_line import count
from ase_deeprelax.data.pair import Pair, check_halves, fractional_moves, make_pair
from ase_deeprelax.data.published_layouts import is_layout, read_layout
from ase_deeprelax.errors import PairFileError
from ase_deeprelax.files import replaced
from ase_deeprelax.geometry.vacuum import layer_or_none

log = logging.getLogger(__name__)

__all__ = [
    'TRAINED_ON',
    'Pair',
    'holds_pairs',
    'make_pair',
    'pair_record',
    'read_pairs',
    'spread',
    'write_pairs',
]

# The splits that a model is trained on; '' is that of files that name none.
TRAINED_ON = ('train', '')

Item = TypeVar('Item')

# Vacuum vectors of a layer's two halves that differ by less than this are the same, A.
SAME_BOX = 1e-4
# An atom that moves farther along a lattice vector, in fractions of it, was written in
# another periodic image, or with a drift.
FARTHEST_MOVE = 0.5
# So many crystals of a file are looked at for vacuum. If it is in a larger share of them,
# they are layers; it is in 0.25 % of crystals that were not rescaled.
LOOKED_AT, VACUUM_SHARE = 200, 0.1


def read_pairs(
    path: str | Path, split: str | Collection[str] | None = None, *, ok_only: bool = False
) -> list[Pair]:
    """Read pairs of an unrelaxed and a relaxed structure.

    Parameters
    ----------
    path : str or Path
        One of

        - ``*.jsonl`` or ``*.jsonl.gz``: one object per line with ``id, numbers, cell0,
          frac0, cell1, frac1`` and optionally ``ok, split, formula, scale``, and ``pbc``
          for layers; relaxed atoms in any periodic image; what is null counts as missing;
        - a folder of DeepRelax or E3Relax-H2: ``train.csv``, ``val.csv``, ``test.csv``
          (ids in the column ``atoms_id``, ``mp_id``, ``id``, or else the first) or
          ``id_prop_train_all.csv`` ..., with ``{id}_unrelaxed.cif`` and
          ``{id}_relaxed.cif`` (or ``{id}_U.cif``, ``{id}_R.cif``) in ``CIF/``, ``cif/``
          or beside the csv;
        - the same without such files, with ``unrelaxed.db`` and ``relaxed.db`` of ase.db,
          whose rows carry their id as the last part of ``folder``;
        - a folder with ``unrelaxed.extxyz`` and ``relaxed.extxyz``, in the same order;
        - one ``*.extxyz`` whose frames carry ``info['pair_id']`` and ``info['role']``,
          ``'unrelaxed'`` or ``'relaxed'``.

        Unrelaxed frames of extxyz may carry ``ok, split, scale, fixed_cell, kind, src`` in
        their ``info``, and constraints that fix atoms.
    split : str or collection of str, optional
        Only pairs of this split, or of these; default all. Files of other splits are not
        even looked for.
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
    splits = {split} if isinstance(split, str) else split
    if not path.exists():
        raise PairFileError(f'{path}: there is no such file or folder')
    if path.is_dir():
        records = _read_frames(path) if _has_frames(path) else read_layout(path, splits)
    elif path.name.endswith(JSON_LINES):
        records = _read_lines(path, splits, ok_only)
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
        if (splits is None or pair.split in splits) and (pair.ok or not ok_only)
    ]
    if not pairs:
        which = ''.join([f' of split {split!r}' if split else '', ' marked ok' * ok_only])
        raise PairFileError(f'{path}: holds no pair{which}{_splits_in(path)}')
    return pairs


def _splits_in(path: Path) -> str:
    """The splits of a JSON lines file in words, for a message; '' where it has none."""
    if path.is_dir() or not path.name.endswith(JSON_LINES):
        return ''
    found = {str(record.get('split', '')) for _, record in read_json_lines(path)} - {''}
    return f'; its splits are {", ".join(map(repr, sorted(found)))}' if found else ''


def write_pairs(path: str | Path, pairs: Iterable[Pair]) -> None:
    """Write pairs as JSON lines, gzipped where ``path`` ends in ``.gz``.

    Parameters
    ----------
    path : str or Path
        ``.jsonl`` or ``.jsonl.gz``; overwritten once all pairs are written.
    pairs : iterable of Pair
        See `make_pair`.

    Raises
    ------
    PairFileError
        The path has another suffix, by which `read_pairs` would take it for another file.

    Examples
    --------
    >>> import tempfile
    >>> from ase.build import bulk
    >>> pair = make_pair('Cu-1', bulk('Cu', a=3.5), bulk('Cu', a=3.6))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_pairs(f'{folder}/mine.jsonl.gz', [pair])
    ...     len(read_pairs(f'{folder}/mine.jsonl.gz'))
    1
    """
    path = Path(path)
    if not path.name.endswith(JSON_LINES):
        raise PairFileError(f'{path}: pairs are written as .jsonl or .jsonl.gz; name it so')
    opener = gzip.open if path.suffix == '.gz' else open
    with replaced(path) as part, opener(part, 'wt', encoding='utf-8') as file:
        for pair in pairs:
            file.write(json.dumps(pair_record(pair), separators=(',', ':')) + '\n')


def pair_record(pair: Pair) -> dict[str, Any]:
    """What a line of a JSON lines file holds, ready for ``json.dumps``."""
    record = {'id': pair.id, 'formula': pair.formula, 'numbers': pair.numbers.tolist()}
    for key in ('cell0', 'frac0', 'cell1', 'frac1'):
        record[key] = getattr(pair, key).round(9).tolist()
    record |= {'ok': pair.ok, 'split': pair.split, 'scale': pair.scale}
    if not all(pair.pbc):
        record['pbc'] = list(pair.pbc)
    if pair.fixed_cell:
        record['fixed_cell'] = True
    if pair.fixed is not None:
        record['fixed'] = pair.fixed.tolist()
    for key in ('kind', 'src'):
        if getattr(pair, key):
            record[key] = getattr(pair, key)
    return record


def spread(items: Sequence[Item], limit: int | None) -> Sequence[Item]:
    """At most ``limit`` items, evenly over the list rather than its first part.

    >>> spread([0, 1, 2, 3, 4, 5], 3), spread([0, 1], None)
    ([0, 2, 4], [0, 1])
    """
    if limit is None or limit >= len(items):
        return items
    return [items[k * len(items) // limit] for k in range(limit)]


def _read_lines(path: Path, splits: Collection[str] | None, ok_only: bool) -> list[Pair]:
    """Pairs of a JSON lines file; unwanted lines are dropped before they cost anything."""
    pairs = []
    for line, record in read_json_lines(path):
        if 'numbers' not in record:  # Also of those that are not wanted.
            raise PairFileError(f"{line}: the key 'numbers' is missing")
        if splits is not None and str(record.get('split', '')) not in splits:
            continue
        if ok_only and not record.get('ok', True):
            continue
        where = f'{line}, id {record.get("id", "?")!a}'
        try:
            pairs.append(_from_record(record, where))
        except KeyError as error:
            raise PairFileError(f'{where}: the key {error} is missing') from error
        except (TypeError, ValueError, OverflowError) as error:
            if isinstance(error, PairFileError):
                raise
            raise PairFileError(f'{where}: {error}') from error
    _warn_of_vacuum(path, pairs)
    return pairs


def _warn_of_vacuum(path: Path, pairs: Sequence[Pair]) -> None:
    """Warn where crystals of a file look like layers, which JSON lines say by ``pbc``."""
    crystals = spread([pair for pair in pairs if all(pair.pbc)], LOOKED_AT)
    layers = [
        pair.id
        for pair in crystals
        if layer_or_none(pair.unrelaxed) and layer_or_none(pair.relaxed)
    ]
    if len(layers) > VACUUM_SHARE * len(crystals):
        log.warning(
            '%s: there is vacuum, as in layers, in %d of %s that were looked at and count '
            'as crystals; the first is id %s. If they are layers, say so: "pbc": [true, '
            'true, false], or write the file with make_pair and write_pairs',
            path,
            len(layers),
            count(len(crystals), 'pair'),
            layers[0],
        )


def _from_record(record: dict[str, Any], where: str) -> Pair:
    numbers = np.array(record['numbers'], dtype=np.int64).reshape(-1)
    n = len(numbers)
    wrong = np.flatnonzero((numbers < 1) | (numbers >= len(chemical_symbols)))
    if len(wrong):
        raise PairFileError(
            f'{where}: atom {wrong[0]} has the atomic number {numbers[wrong[0]]}; elements '
            f'have 1 to {len(chemical_symbols) - 1}'
        )
    cell0, frac0, cell1, frac1 = (
        np.array(record[key], dtype=float).reshape(-1, 3)
        for key in ('cell0', 'frac0', 'cell1', 'frac1')
    )
    if not len(frac0) == len(frac1) == n or not len(cell0) == len(cell1) == 3:
        raise PairFileError(
            f'{where}: {n} numbers, {len(frac0)} unrelaxed and {len(frac1)} relaxed '
            f'positions, cells of {len(cell0)} and {len(cell1)} vectors'
        )
    check_halves(where, frac0, frac1, cell0, cell1)
    pbc, fixed = record.get('pbc', [True] * 3), record.get('fixed')
    if len(pbc) != 3 or (fixed is not None and len(fixed) != n):
        raise PairFileError(
            f'{where}: pbc has {len(pbc)} entries (3 are needed), fixed has '
            f'{0 if fixed is None else len(fixed)} ({n} are needed)'
        )
    fixed = np.array(fixed or [False] * n, dtype=bool)
    across = [not periodic for periodic in pbc]
    in_one_box = np.abs(cell1 - cell0)[across].max(initial=0.0) <= SAME_BOX
    if in_one_box and np.abs(frac1 - frac0).max() > FARTHEST_MOVE:
        frac1 = frac0 + fractional_moves(frac1 - frac0, cell0, fixed)
    elif fixed.any():  # The others have moved relative to these.
        frac1 = frac1 - (frac1 - frac0)[fixed].mean(axis=0)
    words = {'id': str(record.get('id', where))}
    for name in ('split', 'formula', 'kind', 'src'):
        words[name] = str(record.get(name, ''))
    for name, word in words.items():
        check_text(word, name, where)
    pair = Pair(
        **words,
        numbers=numbers,
        cell0=cell0,
        frac0=frac0,
        cell1=cell1,
        frac1=frac1,
        ok=bool(record.get('ok', True)),
        scale=float(record.get('scale', 1.0)),
        pbc=(bool(pbc[0]), bool(pbc[1]), bool(pbc[2])),
        fixed_cell=bool(record.get('fixed_cell', False)),
        fixed=fixed if fixed.any() else None,
    )
    if in_one_box:  # a cell that was fixed is that of the input, whatever the file says
        return replace(pair, cell1=cell0.copy()) if pair.fixed_cell else pair
    made = make_pair(pair.id, pair.unrelaxed, pair.relaxed, fixed_cell=pair.fixed_cell)
    return replace(pair, cell1=made.cell1, frac1=made.frac1)


def holds_pairs(path: str | Path) -> bool:
    """Whether a folder, or a file of JSON lines, is one of pairs and not of structures.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    bool
        False for all other files.

    Raises
    ------
    PairFileError
        A file of JSON lines is damaged.
    """
    path = Path(path)
    if path.is_dir():
        return _has_frames(path) or is_layout(path)
    return first_record_has(path, 'cell0')


def _has_frames(folder: Path) -> bool:
    return all((folder / f'{role}.extxyz').exists() for role in ('unrelaxed', 'relaxed'))


def _read_frames(folder: Path) -> list[Pair]:
    """Pairs of ``unrelaxed.extxyz`` and ``relaxed.extxyz``, frame by frame."""
    unrelaxed, relaxed = folder / 'unrelaxed.extxyz', folder / 'relaxed.extxyz'
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


def _frames(path: Path) -> Iterator[Atoms]:
    try:
        yield from iread(path, format='extxyz')
    except Exception as error:  # parsers raise what they like on a damaged file
        raise PairFileError(f'{path}: not a readable extxyz file ({error})') from error


def _read_extxyz(path: Path) -> list[Pair]:
    found: dict[Any, dict[str, Atoms]] = {}
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


def _pair(path: Path, id: Any, unrelaxed: Atoms, relaxed: Atoms) -> Pair:
    info = unrelaxed.info
    try:
        pair = make_pair(
            id,
            unrelaxed,
            relaxed,
            ok=info.get('ok', True),
            split=info.get('split', ''),
            scale=info.get('scale', 1.0),
            fixed_cell=info.get('fixed_cell', False),
            kind=info.get('kind', ''),
        )
        return replace(pair, src=str(info.get('src', '')))
    except PairFileError as error:
        raise PairFileError(f'{path}: {error}') from error
