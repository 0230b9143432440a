"""Finished parts of a long computation, one JSON line each, for going on after a stop."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ase_deeprelax.errors import ConfigError
from ase_deeprelax.files import JsonLines

# How the first line begins.
_BEGIN = '{"settings"'


class ResultsCache:
    """Records by key, in memory and, line by line, in a file.

    A file belongs to one process at a time; use the cache as a context manager, or `close`
    it, so that the next one can have it.

    Parameters
    ----------
    path : str or Path, optional
        A file of JSON lines; it is made, with its folders, or read and continued. A last
        line that a kill cut short is dropped. Default: in memory only.
    settings : dict, optional
        What all records depend on, ready for JSON; stands in the first line.

    Raises
    ------
    ConfigError
        The file was written with other settings (a setting that was added or dropped is
        another one, too), or by something else.
    PairFileError
        Another process has the file open.

    Examples
    --------
    >>> cache = ResultsCache()
    >>> cache.add(('Cu', 'FIRE'), {'steps': 3, 'energy': float('nan')})
    {'steps': 3, 'energy': None}
    >>> ('Cu', 'FIRE') in cache, ('Cu', 'BFGS') in cache
    (True, False)
    """

    def __init__(
        self,
        path: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._records: dict[tuple[str, ...], Any] = {}
        self._lines: JsonLines | None = None
        if path is None:
            return
        path = Path(path)
        # As they are after reading: without tuples, and with text for keys.
        expected = json.loads(json.dumps(settings or {}))
        _check_is_cache(path)
        self._lines = JsonLines(path)
        try:
            if self._lines.records:
                first, *others = self._lines.records
                check_settings(path, first['settings'], expected)
                self._records = {tuple(x['key']): x['record'] for x in others}
            else:
                self._lines.add({'settings': expected})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ResultsCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the file to others; the records in memory stay."""
        if self._lines is not None:
            self._lines.__exit__()
            self._lines = None

    def __contains__(self, key: tuple[str, ...]) -> bool:
        return key in self._records

    def __getitem__(self, key: tuple[str, ...]) -> Any:
        return self._records[key]

    def add(self, key: tuple[str, ...], record: Any) -> Any:
        """Keep a record under a key.

        Parameters
        ----------
        key : tuple of str
        record : dict or list
            Ready for JSON, but for numbers that are not finite: these become None.

        Returns
        -------
        dict or list
            The record as it is kept.
        """
        record = finite_or_none(record)
        self._records[key] = record
        if self._lines is not None:
            self._lines.add({'key': key, 'record': record})
        return record


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


def _check_is_cache(path: Path) -> None:
    """Refuse a file that something else wrote, before anything in it is changed."""
    if not path.exists():
        return
    with path.open(encoding='utf-8', errors='replace') as file:
        line = file.readline()
    if not line.endswith('\n') and _BEGIN.startswith(line[: len(_BEGIN)]):
        return  # empty, or cut short in its first line
    try:
        first = json.loads(line)
    except ValueError as error:
        raise ConfigError(
            f'{path}: not a journal of JSON lines ({error}); choose another place'
        ) from error
    if not isinstance(first, dict) or 'settings' not in first:
        raise ConfigError(
            f'{path}: its first line holds no settings, so it is no journal; choose '
            'another place'
        )


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
