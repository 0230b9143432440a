"""Files that survive a kill, and belong to one process at a time."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from ase_deeprelax.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

log = logging.getLogger(__name__)

# The characters of a text that a name made of it does not keep; '_' takes their place.
ODD = re.compile(r'[^\w.+=@-]+')
# Bytes of such a name. File systems take 255, and a suffix may follow.
LONGEST_NAME = 200
# The numbers of the errors that say that a disk, or a quota, has no room for a file.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# The numbers of those that say that a file or its disk is away, or too many are open.
AWAY = (errno.ENOENT, errno.ENODEV, errno.EIO, errno.ESTALE, errno.ENOTCONN)
AWAY += (errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EMFILE, errno.ENFILE)
# The error number of SQLite for a database that another process is writing to. It stands
# here because to import the module for this number alone would take time.
SQLITE_BUSY = 5


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


def lock_or_refuse(
    file: IO,
    path: Path,
    *,
    shared: bool = False,
    holder: Callable[[], str] = lambda: '',
) -> None:
    """`try_lock`, or ``ConfigError`` where another process has the file.

    Parameters
    ----------
    file, path, shared
        See `try_lock`; the message names ``path``.
    holder : callable, optional
        Says who has it, if it is known.
    """
    if not try_lock(file, path, shared=shared):
        raise ConfigError(
            f'{path}: {holder() or "another process"} is writing to it; wait until it has '
            'ended, or choose another place'
        )


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
    with replaced(path) as part, part.open('wb') as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    _keep_names(Path(os.path.realpath(path)).parent)


@contextmanager
def replaced(path: Path) -> Generator[Path]:
    """A file beside ``path`` that takes its place if the block ends without an error.

    A link stays, and what it leads to is replaced.
    """
    place = Path(os.path.realpath(path))
    # Shorter than the name itself, which may be as long as the system takes. The
    # number is that of no other thread, in any process of this machine.
    number = threading.get_native_id()
    part = place.with_name(f'.{plain_name(path.stem)}.{number}{path.suffix}')
    part.unlink(missing_ok=True)
    try:
        with naming(path):
            yield part
            if part.exists():
                part.replace(place)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Generator[None]:
    """Say which file could not be written, where the system does not, as on a full disk.

    >>> with naming(Path('a.cif')):
    ...     raise OSError(errno.ENOSPC, 'No space left on device')
    Traceback (most recent call last):
    ...
    OSError: [Errno 28] No space left on device: 'a.cif'
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that there is no room for a file.

    >>> disk_is_full(OSError(errno.ENOSPC, '')), disk_is_full(FileNotFoundError())
    (True, False)
    """
    return _has_number(error, FULL)


def is_of_system(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is about the machine, not about a file.

    A network disk that is away for a minute is such an error, and so are a full one, and a
    database that another process is writing to: the same file may be read well the next
    time.

    >>> is_of_system(OSError(errno.ESTALE, '')), is_of_system(PermissionError())
    (True, False)
    """
    busy = (
        # The lower byte is the error itself, the upper ones say more about it.
        getattr(one, 'sqlite_errorcode', 0) & 0xFF == SQLITE_BUSY
        for one in _causes(error)
    )
    return _has_number(error, (*FULL, *AWAY)) or any(busy)


def sha256(file: Path) -> str:
    """The SHA-256 of what a file holds, as 64 hexadecimal digits."""
    with file.open('rb') as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()


def _has_number(error: BaseException | None, numbers: Sequence[int]) -> bool:
    """Whether an error, or what caused it, is one of the system with such a number."""
    return any(isinstance(one, OSError) and one.errno in numbers for one in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what caused it, what caused that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


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

    The path is left as it is; folders that do not exist are not made, but could be.

    Raises
    ------
    ConfigError
        Naming the path, the reason and what to do.
    """
    path = Path(path)
    try:
        _check_regular(path)
        place = Path(os.path.realpath(path))  # a link stays
        if place.exists():
            with place.open('ab'):
                pass
        else:  # not by making it: another process may do so at this moment
            folder = place.parent
            while not (path.is_symlink() or folder.exists()):
                folder = folder.parent
            with TemporaryFile(dir=folder):
                pass
    except OSError as error:
        raise ConfigError(
            f'{path} cannot be written: {error.strerror}; choose another place'
        ) from error


def _check_regular(path: Path) -> None:
    """Refuse by ``OSError`` what is there and is no file: opening a pipe may never end."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, 'it is a pipe or a device, and no file')


def plain_name(text: str) -> str:
    """A name of a file or folder for any text; it leads to no other folder.

    >>> plain_name('../x/NaCl@3'), plain_name('')
    ('_x_NaCl@3', 'structure')
    """
    name = ODD.sub('_', text).lstrip('.')
    return name.encode()[:LONGEST_NAME].decode(errors='ignore') or 'structure'
