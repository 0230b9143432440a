"""The structures in the files that a command is given, and short names of the files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ase import Atoms

from ase_deeprelax.cli.app import on_one_line
from ase_deeprelax.errors import StructureError

if TYPE_CHECKING:  # ase.io takes a while: not for --help
    from ase_deeprelax.data.structure_files import StructureFile

# A structure, where it is from, and which frame it is, '@2', where there are several.
Frame = tuple['StructureFile', str, Atoms]


def read_frames(
    sources: Sequence[StructureFile], *, progress: bool = False
) -> tuple[list[Frame], list[str]]:
    """``(source, '' or '@index', atoms)`` of each structure, and what could not be read.

    ``progress`` shows a bar, because ten thousand files take minutes.
    """
    from tqdm import tqdm

    from ase_deeprelax.screening.sources import is_packed

    frames, problems = [], []
    for source in tqdm(sources, desc='read', unit='file', disable=not progress):
        read = _read_packed if is_packed(source) else _read_file
        try:
            frames += read(source, problems)
        except StructureError as error:
            problems.append(f'{source}: {error}')
    return frames, problems


def _read_file(source: StructureFile, problems: list[str]) -> list[Frame]:
    """Structures of a file; ``problems`` gets those that cannot be read."""
    from ase_deeprelax.data.structure_files import read_each

    try:
        found = read_each(source)
    except StructureError:
        damaged: list[str] = []
        frames = _undamaged(source, damaged)
        if not frames:
            raise
        problems += damaged
        return frames
    frames = []
    for frame, atoms in zip(_names(source.index, len(found)), found, strict=True):
        if isinstance(atoms, StructureError):
            problems.append(f'{source}{frame}: {atoms}')
        else:
            frames.append((source, frame, atoms))
    return frames


def _names(index: str, n: int) -> list[str]:
    """Names of the frames that an index of ASE gave, '@2'; '' for the only one of a file.

    Numbers are those in the file. What is counted from its end has the index in its name.

    >>> _names('5:9:2', 2), _names('-1', 1), _names('-3:', 2)
    (['@5', '@7'], ['@-1'], ['@-3:[0]', '@-3:[1]'])
    """
    from ase.io.formats import parse_filename

    if index == ':' and n == 1:
        return ['']
    _, which = parse_filename(f'x@{index}')
    if not isinstance(which, slice):
        return [f'@{which}']
    start, step = which.start or 0, which.step or 1
    if start < 0 or step < 0:
        return [f'@{index}[{k}]' for k in range(n)]
    return [f'@{start + k * step}' for k in range(n)]


def _undamaged(source: StructureFile, problems: list[str]) -> list[Frame]:
    """The frames of a damaged file that can be read, where frames can be told apart."""
    from ase_deeprelax.screening.sources import has_frames

    if source.index != ':' or not has_frames(source):
        return []
    return _read_items(source, problems)


def _read_packed(source: StructureFile, problems: list[str]) -> list[Frame]:
    """Structures of an archive or table; ``problems`` gets those that cannot be read."""
    if source.index != ':':
        raise StructureError('frames of archives and tables cannot be chosen')
    known = len(problems)
    frames = _read_items(source, problems)
    if not frames and len(problems) == known:
        raise StructureError('holds no structure')
    return frames


def _read_items(source: StructureFile, problems: list[str]) -> list[Frame]:
    """Structures read one by one; ``problems`` gets those that cannot be read."""
    from ase_deeprelax.data.structure_files import warn_of_left_out
    from ase_deeprelax.screening.sources import open_source

    frames, opened, names = [], open_source(source.path), set[str]()
    for number, item in enumerate(opened.items()):
        # An item without a name of its own has that of the file and a number.
        frame = on_one_line(f'@{item.id.removeprefix(f"{source.path.name}@")}')
        frame += f'[{number}]' if frame in names else ''
        names.add(frame)
        try:
            frames.append((source, frame, item.load()))
        except Exception as error:  # noqa: BLE001 - files hold anything
            problems.append(f'{source}{frame}: {error}')
    warn_of_left_out(source.path, opened.left_out)
    return frames


def labels_of(sources: Sequence[StructureFile]) -> dict[StructureFile, Path]:
    """A short name of each source: its path below the folder that holds them all."""
    from ase_deeprelax.data.structure_files import STDIN

    # Not resolve(): a link keeps its own name; not absolute(): '..' has to go.
    paths = {
        source: Path(os.path.abspath('stdin' if str(source.path) == STDIN else source.path))  # noqa: PTH100
        for source in sources
    }
    top = os.path.commonpath([path.parent for path in paths.values()])
    return {source: path.relative_to(top) for source, path in paths.items()}
