"""``deeprelax relax``: files in, relaxed structures out."""

import os
import warnings
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ase_deeprelax.cli.app import DeviceOption, ModelOption
from ase_deeprelax.compare.table import as_text


class Symmetry(StrEnum):
    """What a relaxation does with the space group of its input."""

    KEEP = 'keep'
    FREE = 'free'


def relax(
    files: Annotated[list[Path], typer.Argument(help='Anything that ase.io reads.')],
    out: Annotated[
        Path,
        typer.Option(
            help='Folder for NAME.cif and NAME.extxyz of each file, or, with a suffix, '
            'one file for all structures.'
        ),
    ] = Path('relaxed'),
    model: ModelOption = 'default',
    symmetry: Annotated[
        Symmetry, typer.Option(help='keep the space group of each input, or let it go.')
    ] = Symmetry.KEEP,
    device: DeviceOption = 'auto',
):
    """Relax all structures of FILES in one shot.

    CIF cannot hold the uncertainties; extxyz keeps them per structure and per atom. What
    cannot be read or relaxed is reported, the others go on, and the exit code is 1.
    """
    from ase.io import write

    from ase_deeprelax.predict import Predictor

    places = _places(files)
    targets = _targets(places, out)
    frames, problems = _read(places)
    _check_format(out, len(frames))
    predictor = Predictor(model, device=device, symmetry=symmetry)
    with warnings.catch_warnings():
        # Said in the table, for each structure.
        warnings.filterwarnings('ignore', '.*outside the training range')
        results = predictor.relax([atoms for *_, atoms in frames], progress=bool(frames))
    rows, outputs = [], {}
    for (file, frame, _), result in zip(frames, results, strict=True):
        if not result.ok:
            problems.append(f'{file}{frame}: {result.problem}')
            continue
        rows.append((f'{places[file]}{frame}', result))
        for target in targets[file]:
            outputs.setdefault(target, []).append(result.atoms)
    for target, structures in outputs.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        write(target, structures)
    if rows:
        typer.echo(_table(rows))
        typer.echo(f'wrote {out}' + ('' if _is_file(out) else f': {len(outputs)} files'))
    for problem in problems:
        typer.echo(f'failed: {problem}', err=True)
    if problems:
        raise typer.Exit(1)


def _places(files):
    """Each file's path below the folder that holds them all."""
    # Not resolve(): a link keeps its own name; not absolute(): '..' has to go.
    paths = {file: Path(os.path.abspath(file)) for file in files}  # noqa: PTH100
    top = os.path.commonpath([path.parent for path in paths.values()])
    return {file: path.relative_to(top) for file, path in paths.items()}


def _targets(places, out):
    """The files that the structures of each input file go to."""
    if _is_file(out):
        targets = {file: [out] for file in places}
    else:
        # x.cif and x.vasp side by side keep their suffixes, all others lose them.
        counts = Counter(place.with_suffix('') for place in places.values())
        targets = {}
        for file, place in places.items():
            stem = place.with_suffix('')
            name = stem if counts[stem] == 1 else place
            targets[file] = [out / f'{name}.cif', out / f'{name}.extxyz']
    inputs = {file.resolve() for file in places}
    for target in (target for group in targets.values() for target in group):
        if target.resolve() in inputs:
            raise typer.BadParameter(f'{target} is one of the inputs; choose another --out')
    return targets


def _is_file(out):
    return bool(out.suffix) and not out.is_dir()


def _check_format(out, n_structures):
    """Whether ASE can write that many structures to one file ``out``; before the work."""
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    if not _is_file(out):
        return
    try:
        form = ioformats.get(filetype(str(out), read=False))
    except UnknownFileTypeError:
        form = None
    if form is None or not form.can_write:
        raise typer.BadParameter(
            f'--out {out}: ase.io writes no format of suffix {out.suffix!r}; for a folder '
            'of that name, make the folder first'
        )
    if form.single and n_structures > 1:
        raise typer.BadParameter(
            f'--out {out}: {form.name} holds one structure, there are {n_structures}; '
            'use .extxyz, .traj or a folder'
        )


def _read(files):
    """``(file, '' or '@index', atoms)`` of each structure, and what could not be read."""
    from ase.io import read

    frames, problems = [], []
    for file in files:
        try:
            structures = read(file, index=':')
        # Each of ASE's many readers has its own idea of what to raise.
        except Exception as error:  # noqa: BLE001
            reason = f'{type(error).__name__}: {error}'.rstrip(': ')
            problems.append(f'{file}: cannot be read ({reason})')
            continue
        if not structures:
            problems.append(f'{file}: holds no structure')
        for index, atoms in enumerate(structures):
            frames.append((file, f'@{index}' if len(structures) > 1 else '', atoms))
    return frames, problems


def _table(rows):
    titles = ['structure', 'formula', 'atoms', 'V0/A^3', 'V/A^3', 'dmax/A', 'sigma/A', 'ms']
    table = [_row(name, result) for name, result in rows]
    return as_text([*titles, ''], table, left=2)


def _row(name, result):
    before, after = result.initial, result.atoms
    return [
        name,
        before.get_chemical_formula('metal', empirical=True),
        str(len(before)),
        f'{before.cell.volume:.2f}',
        f'{after.cell.volume:.2f}',
        f'{result.dmax:.3f}',
        f'{result.sigma:.3f}',
        f'{1e3 * sum(result.timings.values()):.0f}',
        f'! {result.ood}' if result.ood else '',
    ]
