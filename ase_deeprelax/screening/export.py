"""Relaxed structures of a screen into files of other programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.io.formats import ioformats

from ase_deeprelax import keys
from ase_deeprelax.data.structure_writing import (
    STREAMED,
    find_format,
    why_not_together,
    write_frames,
)
from ase_deeprelax.data.writable import writable
from ase_deeprelax.errors import ConfigError, DeepRelaxError
from ase_deeprelax.files import plain_name, replaced
from ase_deeprelax.screening.results import Results


def export(
    named: Iterable[tuple[str, Atoms]], path: str | Path, form: str | None = None
) -> int:
    """Write structures one after the other, so that any number fits into memory.

    Parameters
    ----------
    named : iterable of (str, ase.Atoms)
        Ids and structures, for example of `chosen`.
    path : str or Path
        A database (``.db``, ``.json``); an extxyz file; or a folder, for one file per
        structure. With a format whose files hold one structure it is a folder, whatever
        it is called.
    form : str, optional
        Format of the files in a folder, as ``ase.io`` names it: ``vasp`` and ``aims``
        are inputs of DFT. Default 'cif'.

    Returns
    -------
    int
        How many structures were written. Their ids are in ``info['deeprelax_id']``.

    Raises
    ------
    ConfigError
        No such format can be written, a file of it cannot hold so many, or ``ase.io``
        cannot write a structure in it without more information.
    """
    path = Path(path)
    found: Iterable[Atoms] = (_named(id, atoms) for id, atoms in named)
    if not is_one_file(path, form):
        return _to_folder(path, found, find_format(path / 'x.cif', form or 'cif'))
    form = find_format(path, form)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as part:
        if form not in STREAMED:
            found = list(islice(found, 2) if ioformats[form].single else found)
            check_together(found, path, form)
        return _write(part, found, form, str(path))


def is_one_file(path: Path, form: str | None = None) -> bool:
    """Whether all structures go into one file, not each into one of a folder.

    They do not where ``path`` is a folder or has no suffix, and where a file of the format
    that is asked for holds a single structure.

    >>> is_one_file(Path('best.extxyz')), is_one_file(Path('best-v1.2'), 'vasp')
    (True, False)
    """
    if not path.suffix or path.is_dir():
        return False
    return form is None or not ioformats[find_format(path, form)].single


def check_together(
    structures: Sequence[Atoms], path: Path, form: str | None = None
) -> None:
    """Refuse by ``ConfigError`` structures that one file of a format cannot hold."""
    form = find_format(path, form)
    if why := why_not_together(structures, form):
        raise ConfigError(
            f'{path}: {why}; name a folder and give the format {form!r}, or choose '
            "'.extxyz' or '.db'"
        )


def chosen(results: Results, table: Any) -> Iterator[tuple[str, Atoms]]:
    """Ids and relaxed structures of a table of `Results.table`, in its order."""
    for row, atoms in results.structures(table):
        yield row['id'], atoms


def file_name(id: str) -> str:
    """A name of a file for an id, which leads to no other folder.

    >>> file_name('../x/NaCl.cif'), file_name('a.extxyz@3')
    ('_x_NaCl', 'a.extxyz-3')
    """
    # ASE would take what follows an @ for the number of a frame.
    return plain_name(id.removesuffix('.cif').replace('@', '-'))


def _named(id: str, atoms: Atoms) -> Atoms:
    atoms.info[keys.ID] = id
    return atoms


def _to_folder(folder: Path, found: Iterable[Atoms], form: str) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    written: set[str] = set()
    for atoms in found:
        name = file_name(atoms.info[keys.ID])
        while name in written:  # ids that differ in odd characters only
            name += '_'
        written.add(name)
        with replaced(folder / f'{name}.{form}') as part:
            _write(part, [atoms], form, atoms.info[keys.ID])
    return len(written)


def _write(path: Path, structures: Iterable[Atoms], form: str, what: str) -> int:
    try:
        return write_frames(path, (writable(atoms, form) for atoms in structures), form)
    except (OSError, DeepRelaxError):
        raise
    except Exception as error:  # writers raise anything
        raise ConfigError(
            f'{what}: ase.io cannot write it in the format {form} '
            f'({type(error).__name__}: {error}); choose another one, such as cif or vasp'
        ) from error
