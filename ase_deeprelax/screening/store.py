"""The folder of a screen: a manifest, a lock, and one parquet file for each pack.

Packs are numbered runs of the source: pack ``k`` holds its structures from ``k * size`` on.
A pack is written to a temporary file, which is given its name when all of it is on the
disk, so a pack is there as a whole or not at all, and no structure can be there twice. Even
without locks two processes could do no more than write the same pack one after the other.
"""

from __future__ import annotations

import io
import json
import os
import socket
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ase_deeprelax.errors import ConfigError, DeepRelaxError
from ase_deeprelax.files import (
    disk_is_full,
    lock_or_refuse,
    naming,
    try_lock,
    write_atomically,
)
from ase_deeprelax.geometry.free_strain import plain_relax_cell
from ase_deeprelax.journal import check_settings
from ase_deeprelax.screening.databases import need_pyarrow
from ase_deeprelax.screening.sources import Source, scan, stamp

MANIFEST, LOCK, PACKS = 'manifest.json', '.lock', 'packs'
FORMAT = 1


class FullDiskError(DeepRelaxError, OSError):
    """A pack could not be written; what was written before is whole."""


@dataclass(frozen=True)
class Plan:
    """What a screen is to do.

    Attributes
    ----------
    n_structures : int
        Of the source.
    pack : int
        Structures per pack.
    """

    n_structures: int
    pack: int

    @property
    def n_packs(self) -> int:
        """How many packs there are in all."""
        return -(-self.n_structures // self.pack)

    def size(self, pack: int) -> int:
        """How many structures a pack has."""
        return min(self.pack, self.n_structures - pack * self.pack)


class Store:
    """The folder of a screen.

    Parameters
    ----------
    out : str or Path
    """

    def __init__(self, out: str | Path):
        self.out = Path(out)
        self.packs = self.out / PACKS

    def begin(self, source: Source, settings: Mapping[str, Any], pack: int) -> Plan:
        """Make the folder, or go on with one that was made with the same settings.

        Parameters
        ----------
        source : Source
            It is read through once, to count and to hash it, unless names, sizes and times
            of its files are those of the manifest; its marks are set.
        settings : dict
            All that the rows depend on beside the source, ready for JSON.
        pack : int
            Structures per pack.

        Raises
        ------
        ConfigError
            The source or a setting is another one than before.
        """
        self.packs.mkdir(parents=True, exist_ok=True)
        with (self.out / '.manifest-lock').open('wb') as lock:
            try_lock(lock, self.out, wait=True)  # tasks of a job array begin together
            now = {'format': FORMAT, 'pack': pack, **json.loads(json.dumps(settings))}
            path, present = self.out / MANIFEST, stamp(source)
            known: dict[str, Any] | None = self.manifest() if path.exists() else None
            if known is not None:
                check_settings(path, _with_full_mask(known['settings']), now)
            if known is None or known['stamp'] != present:
                count, digest = scan(source)
                if known is not None and known['sha256'] != digest:
                    raise ConfigError(
                        f'{source.path} is not what {self.out} was begun with: its content '
                        'has changed; go on with the former, or choose another folder'
                    )
                known = {
                    'source': str(source.path.absolute()),
                    'n_structures': count,
                    'sha256': digest,
                    'stamp': present,
                    'settings': now,
                    'marks': source.marks,
                }
                write_atomically(path, json.dumps(known) + '\n')
            source.marks = known['marks']
        return Plan(known['n_structures'], pack)

    def check_source(self, source: Source) -> None:
        """Refuse by ``ConfigError`` a source that was changed since `begin`."""
        known = self.manifest()
        if stamp(source) != known['stamp'] and scan(source)[1] != known['sha256']:
            raise ConfigError(
                f'{source.path} was changed during the screen, whose last rows may be of '
                'either content. Begin a new screen with the source as it is'
            )

    def plan(self) -> Plan:
        """What was planned, from the manifest."""
        known = self.manifest()
        return Plan(known['n_structures'], known['settings']['pack'])

    def manifest(self) -> dict[str, Any]:
        """What `begin` wrote: source, count, hashes, settings, marks."""
        path = self.out / MANIFEST
        try:
            known = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(
                f'{self.out}: holds no screen; the folder of one has a {MANIFEST}'
            ) from None
        except ValueError as error:
            raise ConfigError(f'{path}: damaged ({error})') from error
        if not isinstance(known, dict) or not known.keys() >= {'settings', 'stamp'}:
            raise ConfigError(f'{path} is not that of a screen; choose another folder')
        return known

    @contextmanager
    def locked(self, shard: tuple[int, int] | None = None) -> Generator[None]:
        """Keep other processes out; a killed process keeps nobody out.

        Parameters
        ----------
        shard : (int, int), optional
            Number and count of this part of the screen: other parts may run beside.

        Raises
        ------
        ConfigError
            Another process works on the same.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        # Without buffers: closing a file must not try again to write to a full disk.
        with (self.out / LOCK).open('a+b', buffering=0) as whole:
            self._take(whole, shared=shard is not None)
            if shard is None:
                self._clean()
                yield
                return
            path = self.out / f'{LOCK}-{shard[0]}-of-{shard[1]}'
            with path.open('a+b', buffering=0) as part:
                self._take(part)
                yield

    def _take(self, file: IO, *, shared: bool = False) -> None:
        def holder() -> str:
            file.seek(0)
            return file.read().decode(errors='replace').strip()

        lock_or_refuse(file, self.out, shared=shared, holder=holder)
        file.truncate(0)
        if not shared:
            with naming(self.out):
                file.write(f'process {os.getpid()} on {socket.gethostname()}'.encode())

    def _clean(self) -> None:
        """Remove what killed processes left half written, and what stopped them."""
        for path in (*self.packs.glob('.*.parquet*'), *self.out.glob('.stop-*')):
            path.unlink(missing_ok=True)

    def path(self, pack: int) -> Path:
        """The file of a pack."""
        return self.packs / f'{pack:06d}.parquet'

    def files(self) -> list[Path]:
        """The manifest and the packs that are there."""
        return [self.out / MANIFEST, *map(self.path, self.done())]

    def done(self) -> set[int]:
        """The packs that are there."""
        names = (path.stem for path in self.packs.glob('*.parquet'))
        return {int(name) for name in names if name.isdigit()}

    def write(self, pack: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows of a pack; when this returns they are on the disk."""
        pa = need_pyarrow()
        content = io.BytesIO()
        table = pa.Table.from_pylist(list(rows))
        pa.parquet.write_table(table, content, compression='zstd', write_page_checksum=True)
        path, size = self.path(pack), len(content.getvalue())
        try:
            try:
                write_atomically(path, content.getvalue())
            except FileNotFoundError:
                # Where there are no locks, another process may have cleaned up meanwhile.
                write_atomically(path, content.getvalue())
        except OSError as error:
            raise self._not_written(error, size) from error

    def _not_written(self, error: OSError, size: int) -> FullDiskError:
        plan, done = self.plan(), self.done()
        left = plan.n_packs - len(done)
        advice = f'the rest needs about {max(1, left * size >> 20)} MB. Make room'
        if not disk_is_full(error):
            advice = 'more cannot be written there. Put that right'
        return FullDiskError(
            f'{self.packs}: {error.strerror}; {sum(map(plan.size, done))} of '
            f'{plan.n_structures} structures are there, {advice} and give the same command '
            'again'
        )


def _with_full_mask(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings whose mask of the cell is 3 x 3: manifests once held it as it was given."""
    mask = settings.get('relax_cell')
    if not isinstance(mask, list):
        return settings
    return {**settings, 'relax_cell': plain_relax_cell(mask)}
