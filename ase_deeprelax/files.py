"""Files that survive a kill: written whole, or line by line by one process at a time."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path
from typing import IO, Any

from ase_deeprelax.errors import ConfigError, PairFileError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

log = logging.getLogger(__name__)


class JsonLines:
    """A file of JSON lines, open for adding and locked against other processes.

    Parameters
    ----------
    path : str or Path
        It is made, with its folders, where it does not exist. A last line that a kill cut
        short is cut off; nothing else in the file is written again.

    Attributes
    ----------
    records : list
        What the file held when it was opened.

    Raises
    ------
    PairFileError
        Another process has the file open, or a line is not JSON.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / 'numbers.jsonl'
    >>> with JsonLines(path) as lines:
    ...     lines.add({'k': 1})
    >>> with JsonLines(path) as lines:
    ...     lines.records
    [{'k': 1}]
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open('a+b')
        try:
            self._lock()
            self.records = self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()  # The lock ends with it, as it does when the process is killed.

    def add(self, record: Any) -> None:
        """Write one record, ready for JSON, to the end of the file."""
        line = json.dumps(record, separators=(',', ':')) + '\n'
        self._file.write(line.encode())
        self._file.flush()

    def _lock(self) -> None:
        if not try_lock(self._file, self.path):
            raise PairFileError(
                f'{self.path}: another process is writing to this file; wait until it has '
                'ended, or choose another file'
            )

    def _read(self) -> list:
        self._file.seek(0)
        text = self._file.read()
        whole = text.rfind(b'\n') + 1
        try:
            records = [json.loads(line) for line in text[:whole].splitlines()]
        except ValueError as error:
            raise PairFileError(f'{self.path}: not JSON lines: {error}') from error
        if whole < len(text):
            os.ftruncate(self._file.fileno(), whole)
            os.fsync(self._file.fileno())
        return records


def try_lock(file: IO, path: Path, *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file against other processes, until it is closed or they are killed.

    Where the file system knows no locks, this warns and goes on.

    Parameters
    ----------
    file : file object
    path : Path
        Its name, for the warning.
    shared : bool
        Whether others may hold shared locks beside; default False.
    wait : bool
        Whether to wait until it is free; default False.

    Returns
    -------
    bool
        False where another process has it locked.
    """
    if fcntl is None:
        return True
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, how if wait else how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some network file systems know no locks
        log.warning('%s: cannot be locked (%s); start no second run', path, error)
    return True


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Replace a file; a process that dies meanwhile leaves the former one whole.

    Parameters
    ----------
    path : str or Path
        Its folder exists.
    content : str or bytes
        Text is written as UTF-8.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / 'note.txt'
    >>> write_atomically(path, 'done')
    >>> path.read_text()
    'done'
    """
    path = Path(path)
    part = path.with_name(f'.{path.name}.{os.getpid()}')
    try:
        with part.open('wb') as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _keep_names(path.parent)
    finally:
        part.unlink(missing_ok=True)


def _keep_names(folder: Path) -> None:
    """Let a file's new name outlive a power cut."""
    if fcntl is None:  # Windows opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems cannot
        log.debug('%s: fsync: %s', folder, error)
    finally:
        os.close(descriptor)


def check_writable(path: str | Path) -> None:
    """Refuse a path that cannot be written to, before the work whose result it shall hold.

    Its folder is made where it does not exist; the path itself is left as it is.

    Raises
    ------
    ConfigError
        Naming the path, the reason and what to do.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        new = not path.exists()
        with path.open('ab'):
            pass
        if new:
            path.unlink()
    except OSError as error:
        raise ConfigError(
            f'{path} cannot be written: {error.strerror}; choose another place'
        ) from error
