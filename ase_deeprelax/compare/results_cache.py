"""Finished pieces of long work, one JSON line each, so that it goes on where it stopped."""

import json
from pathlib import Path

from ase_deeprelax.errors import ConfigError


class Journal:
    """Records by key, in memory and, line by line, in a file.

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
        The file was written with other settings, or is no journal.

    Examples
    --------
    >>> journal = Journal()
    >>> journal.add(('Cu', 'FIRE'), {'steps': 3})
    {'steps': 3}
    >>> ('Cu', 'FIRE') in journal, ('Cu', 'BFGS') in journal
    (True, False)
    """

    def __init__(self, path=None, settings=None):
        self._path = None if path is None else Path(path)
        self._records = {}
        if self._path is None:
            return
        first = {'settings': json.loads(json.dumps(settings or {}))}
        if self._path.exists() and (lines := self._read()):
            self._check(lines[0], first)
            self._records = {tuple(line['key']): line['record'] for line in lines[1:]}
        else:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(first) + '\n', encoding='utf-8')

    def __contains__(self, key):
        return key in self._records

    def __getitem__(self, key):
        return self._records[key]

    def add(self, key, record):
        """Keep ``record`` (ready for JSON) under ``key``, a tuple of str; hand it back."""
        self._records[key] = record
        if self._path is not None:
            with self._path.open('a', encoding='utf-8') as file:
                file.write(json.dumps({'key': key, 'record': record}) + '\n')
        return record

    def _read(self):
        text = self._path.read_text(encoding='utf-8')
        whole = text[: text.rfind('\n') + 1]
        if whole != text:
            self._path.write_text(whole, encoding='utf-8')
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except json.JSONDecodeError as error:
            raise ConfigError(
                f'{self._path}: not a journal of JSON lines ({error}); choose another place'
            ) from error

    def _check(self, found, expected):
        if not isinstance(found, dict) or 'settings' not in found:
            raise ConfigError(
                f'{self._path}: its first line holds no settings, so it is no journal; '
                'choose another place'
            )
        old, new = found['settings'], expected['settings']
        for name in [name for name in {**old, **new} if old.get(name) != new.get(name)]:
            raise ConfigError(
                f'{self._path} was written with {name} {old.get(name)!r}, now it is '
                f'{new.get(name)!r}; go on with the former or choose another place'
            )
