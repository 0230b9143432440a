"""Finished parts of a long computation, one JSON line each, for going on after a stop."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ase_deeprelax.errors import ConfigError
from ase_deeprelax.files import lock_or_refuse, naming

# How the first line begins.
_BEGIN = b'{"settings"'

Key = tuple[Any, ...]


class Journal:
    """Records by key, in memory and, line by line, in a file.

    A file belongs to one process at a time; use the journal as a context manager, or
    `close` it, so that the next one can have it. A last line that a kill cut short is cut
    off; nothing else in the file is ever written again.

    Parameters
    ----------
    path : str or Path, optional
        A file of JSON lines; it is made, with its folders, or read and continued. Default:
        in memory only.
    settings : dict, optional
        What all records depend on, ready for JSON; stands in the first line.
    key_of : callable, optional
        For files whose lines are the records themselves, such as pairs: the key of a
        record, for example ``lambda record: (record['id'],)``. Such a file has no line of
        settings. Default: each line holds a key and a record.

    Raises
    ------
    ConfigError
        The file was written with other settings (a setting that was added or dropped is
        another one, too), or by something else; or another process has it open.

    Examples
    --------
    >>> journal = Journal()
    >>> journal.add(('Cu', 'FIRE'), {'steps': 3, 'energy': float('nan')})
    {'steps': 3, 'energy': None}
    >>> ('Cu', 'FIRE') in journal, ('Cu', 'BFGS') in journal
    (True, False)
    >>> journal.once(('Cu', 'FIRE'), lambda: {'steps': 9})['steps']
    3
    """

    def __init__(
        self,
        path: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
        *,
        key_of: Callable[[Any], Key] | None = None,
    ) -> None:
        self._records: dict[Key, Any] = {}
        self._key_of = key_of
        self._file: BinaryIO | None = None
        if path is None:
            return
        self._path = path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open('a+b')
        try:
            lock_or_refuse(self._file, path)
            lines, torn = _read(self._file, path)
            # As they are after reading: without tuples, and with text for keys.
            expected = json.loads(json.dumps(settings or {}))
            self._records = self._checked(path, lines, torn, expected)
            _cut(self._file, len(torn))
            if not lines and key_of is None:
                self._write({'settings': expected})
        except BaseException:
            self.close()
            raise

    def _checked(
        self, path: Path, lines: list[Any], torn: bytes, settings: Mapping[str, Any]
    ) -> dict[Key, Any]:
        """The records of a file that is ours, and has these settings."""
        if self._key_of is None:
            ours = _BEGIN.startswith(torn[: len(_BEGIN)])
            if lines:
                ours = isinstance(lines[0], dict) and 'settings' in lines[0]
            if not ours:
                raise ConfigError(
                    f'{path}: its first line holds no settings, so it is no journal; '
                    'choose another place'
                )
            if lines:
                check_settings(path, lines[0]['settings'], settings)
            return {tuple(line['key']): line['record'] for line in lines[1:]}
        try:
            return {self._key_of(line): line for line in lines}
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f'{path}: a line is none of those that are written here ({error!r}); '
                'choose another place'
            ) from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the file to others; the records in memory stay."""
        if self._file is not None:
            file, self._file = self._file, None
            with naming(self._path):  # where the disk is full, a part may not be written
                file.close()  # the lock ends with it, as it does after a kill

    def __contains__(self, key: Key) -> bool:
        return key in self._records

    def __getitem__(self, key: Key) -> Any:
        return self._records[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._records)

    def add(self, key: Key, record: Any) -> Any:
        """Keep a record under a key.

        Parameters
        ----------
        key : tuple
            Of text, or what ``key_of`` makes of the record.
        record : dict or list
            Ready for JSON, but for numbers that are not finite: these become None.

        Returns
        -------
        dict or list
            The record as it is kept.
        """
        record = finite_or_none(record)
        self._records[key] = record
        line = record if self._key_of is not None else {'key': key, 'record': record}
        self._write(line)
        return record

    def once(self, key: Key, make: Callable[[], Any]) -> Any:
        """The record of a key; where there is none yet, ``make()`` is kept."""
        return self[key] if key in self else self.add(key, make())

    def _write(self, line: Any) -> None:
        if self._file is not None:
            with naming(self._path):
                self._file.write(json.dumps(line, separators=(',', ':')).encode() + b'\n')
                self._file.flush()


def finite_or_none(data: Any) -> Any:
    """Nested dicts and lists, with None for numbers that JSON does not know.

    >>> finite_or_none({'energy': float('inf'), 'curve': [[-1.0, float('nan')]]})
    {'energy': None, 'curve': [[-1.0, None]]}
    """
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {key: finite_or_none(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite_or_none(value) for value in data]
    return data


def check_settings(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse to go on with other settings than before, by ``ConfigError``."""
    for name in {**old, **new}:
        if name in old and name in new and old[name] == new[name]:
            continue
        # A setting that only one of the two has is another one, even where it is None.
        before, now = (repr(one[name]) if name in one else 'missing' for one in (old, new))
        raise ConfigError(
            f'{path} was written with {name} {before}, now it is {now}; go on with the '
            'former or choose another place'
        )


def _read(file: BinaryIO, path: Path) -> tuple[list[Any], bytes]:
    """The contents of the complete lines of a file, and what a kill left of a last one."""
    file.seek(0)
    text = file.read()
    length = text.rfind(b'\n') + 1
    try:
        return [json.loads(line) for line in text[:length].splitlines()], text[length:]
    except ValueError as error:
        raise ConfigError(
            f'{path}: not JSON lines, and so not a journal ({error}); choose another place'
        ) from error


def _cut(file: BinaryIO, length: int) -> None:
    """Take off so many bytes of a last line that a kill cut short."""
    if length:
        os.ftruncate(file.fileno(), file.seek(0, os.SEEK_END) - length)
        os.fsync(file.fileno())
