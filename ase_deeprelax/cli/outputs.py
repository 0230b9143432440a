"""The files that `deeprelax relax` writes structures to."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from ase import Atoms

from ase_deeprelax.errors import ConfigError

if TYPE_CHECKING:  # ase.io takes a while: not for --help
    from ase_deeprelax.cli.frames import Frame
    from ase_deeprelax.data.structure_files import StructureFile

# Formats written for each input in a folder: CIF for other programs, extended XYZ with the
# uncertainties.
FOLDER_FORMATS = ('cif', 'extxyz')


def targets_of(
    sources: Sequence[StructureFile],
    labels: dict[StructureFile, Path],
    out: Path,
    form: str | None,
) -> dict[StructureFile, list[tuple[Path, str]]]:
    """The files that the structures of each source go to, and their formats."""
    if str(out) == '-':
        raise typer.BadParameter(
            '--out: structures are written to files; --json - prints the table'
        )
    given = Counter((labels[source], source.index) for source in sources)
    for source in sources:
        if given[labels[source], source.index] > 1:
            raise typer.BadParameter(f'{source} is given twice')
    if is_file(out):
        targets = {source: [(out, _format(out, form))] for source in sources}
    else:
        formats = (form,) if form else FOLDER_FORMATS
        found = [(name, _format(out / f'x.{name}', name)) for name in formats]
        targets = {
            source: [(out / f'{name}.{suffix}', name_of) for suffix, name_of in found]
            for source, name in _names(labels).items()
        }
    # Not resolve(), which raises for links that lead to themselves.
    inputs = {os.path.realpath(source.path) for source in sources}
    for target in (target for group in targets.values() for target, _ in group):
        if os.path.realpath(target) in inputs:
            raise typer.BadParameter(f'{target} is one of the inputs; choose another --out')
    return targets


def _format(path: Path, form: str | None) -> str:
    from ase_deeprelax.data.structure_writing import find_format

    try:
        return find_format(path, form)
    except ConfigError as error:
        raise typer.BadParameter(f'--out {error}') from error


def _names(labels: dict[StructureFile, Path]) -> dict[StructureFile, str]:
    """Names of files, all different: without suffix where that tells them apart."""
    from ase_deeprelax.data.structure_files import uncompressed

    def named(full: bool) -> dict[StructureFile, str]:
        framed = Counter(labels.values())
        return {
            source: f'{place if full else uncompressed(place).with_suffix("")}'
            + (f'@{source.index}' if framed[place] > 1 else '')
            for source, place in labels.items()
        }

    short, full = named(False), named(True)
    stems = Counter(short.values())
    names = {s: short[s] if stems[short[s]] == 1 else full[s] for s in labels}
    return names if len(set(names.values())) == len(names) else full


def is_file(out: Path) -> bool:
    """Whether ``--out`` names one file for all structures, not a folder."""
    return bool(out.suffix) and not out.is_dir()


def check_room(
    targets: dict[StructureFile, list[tuple[Path, str]]], frames: Iterable[Frame]
) -> None:
    """Whether each file can hold the structures that go to it; before the work.

    Parameters
    ----------
    targets : dict
        As `targets_of` gives them.
    frames : iterable of Frame
        As `read_frames` gives them.
    """
    from ase_deeprelax.data.structure_writing import why_not_together

    going = defaultdict(list)
    for source, _, atoms in frames:
        for target in targets[source]:
            going[target].append(atoms)
    for (path, form), structures in going.items():
        if why := why_not_together(structures, form):
            raise typer.BadParameter(
                f'--out: {path} would get {len(structures)} structures, and {why}; choose '
                'extxyz, traj or db'
            )


def check_databases(targets: Iterable[tuple[Path, str]], part: Path | None) -> None:
    """Refuse to replace databases, before the work: they may hold that of weeks.

    Parameters
    ----------
    targets : iterable of (Path, str)
        Outputs and their formats.
    part : Path or None
        The file that a stopped command leaves behind, if it leaves one. Where it is, that
        command wrote the databases, and goes on.
    """
    from ase_deeprelax.data.structure_files import DATABASES

    for path, form in () if part is not None and part.exists() else targets:
        if form in DATABASES and path.exists():
            raise typer.BadParameter(
                f'{path} is a database that is there already; choose another name, or '
                'move it away'
            )


def write_to(
    targets: list[tuple[Path, str]], structures: list[Atoms], problems: list[str]
) -> int:
    """To how many files structures were written; those that hold none are not made."""
    from ase_deeprelax.data.structure_writing import write_structures

    n_files = 0
    for target, form in targets if structures else ():
        found = write_structures(target, structures, form)
        problems += [f'{target}: {text}' for text in found]
        n_files += len(found) < len(structures)
    return n_files
