"""``deeprelax relax``: files in, relaxed structures out."""

import os
import warnings
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from ase import Atoms

from ase_deeprelax import keys
from ase_deeprelax.cli.app import (
    INTERRUPTED,
    CellOption,
    DeviceOption,
    ModelOption,
    relax_cell_of,
    write_json,
)
from ase_deeprelax.compare.tables import Table

# Of a refinement, where nothing else is asked for.
FMAX, STEPS, OPTIMIZER = 0.05, 500, 'ElasticBFGS'


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
    *,
    model: ModelOption = 'default',
    symmetry: Annotated[
        Symmetry, typer.Option(help='keep the space group of each input, or let it go.')
    ] = Symmetry.KEEP,
    cell: CellOption = 'free',
    refine: Annotated[
        str | None,
        typer.Option(
            help='Go on from the predictions with potentials, one after another: NAME or '
            'NAME:WEIGHTS, with commas between (chgnet,tensornet:FOLDER).'
        ),
    ] = None,
    fmax: Annotated[
        float, typer.Option(min=0, help='Largest force to refine to, eV/A.')
    ] = FMAX,
    steps: Annotated[
        int, typer.Option(min=1, help='At most so many with each potential.')
    ] = STEPS,
    optimizer: Annotated[
        str, typer.Option(help="Of refinements: this one, or one of ASE's by name.")
    ] = OPTIMIZER,
    json_file: Annotated[
        Path | None,
        typer.Option('--json', help='Write the table there, with a record of each stage.'),
    ] = None,
    device: DeviceOption = 'auto',
):
    """Relax all structures of FILES in one shot, and refine them if asked.

    Crystals, and layers or slabs, whose vacuum stays; constraints in the files are
    honoured. Last in the table stands what is no crystal with a free cell.

    CIF cannot hold the uncertainties; extxyz keeps them per structure and per atom. What
    cannot be read or relaxed is reported, the others go on, and the exit code is 1; it is
    also 1 where a potential failed (the structure is then the best one before) or the last
    one did not converge. A refinement that was stopped goes on by the same command.
    """
    from ase_deeprelax.cli.refine import part_file
    from ase_deeprelax.predict import Predictor

    chosen = {'fmax': fmax, 'steps': steps, 'optimizer': optimizer}
    if refine is None and chosen != {'fmax': FMAX, 'steps': STEPS, 'optimizer': OPTIMIZER}:
        raise typer.BadParameter('--fmax, --steps and --optimizer need --refine')
    relax_cell = relax_cell_of(cell)
    places = _places(files)
    targets = _targets(places, out)
    frames, problems = _read(places)
    _check_format(out, len(frames))
    predictor = Predictor(model, device=device, symmetry=symmetry)
    if refine is None:
        answers = _predicted(predictor, [atoms for *_, atoms in frames], relax_cell)
    else:
        named = [(f'{places[file]}{frame}', atoms) for file, frame, atoms in frames]
        how = {'model': model, 'relax_cell': relax_cell}
        answers = _refined(named, out, refine, predictor, how, **chosen)
    left = Counter(file for file, *_ in frames)
    rows, structures, n_files = [], [], 0
    try:
        for (file, frame, _), answer in zip(frames, answers, strict=True):
            problems += [f'{file}{frame}: {problem}' for problem in answer.problems]
            rows.append({'structure': f'{places[file]}{frame}', **answer.row})
            structures += [] if answer.atoms is None else [answer.atoms]
            left[file] -= 1
            if not left[file] and not _is_file(out):  # now: others may take hours
                n_files += _write(targets[file], structures)
                structures = []
    except KeyboardInterrupt as error:
        typer.echo('interrupted; the same command goes on from here', err=True)
        raise typer.Exit(INTERRUPTED) from error
    n_files += _write([out], structures)
    if refine is not None:
        part_file(out).unlink()
    if n_files:
        typer.echo(_table([row for row in rows if row['ok']]))
        typer.echo(f'wrote {out}' + ('' if _is_file(out) else f': {n_files} files'))
    write_json(json_file, rows, indent=1)
    for problem in problems:
        typer.echo(f'failed: {problem}', err=True)
    if problems:
        raise typer.Exit(1)


@dataclass(frozen=True)
class Answer:
    """What became of one structure.

    Attributes
    ----------
    atoms : ase.Atoms or None
        None: nothing.
    row : dict
        Ready for JSON.
    problems : list of str
        What the user has to know.
    """

    atoms: Atoms | None
    row: dict
    problems: list


def _predicted(predictor, structures, relax_cell):
    """Answers in one shot."""
    with warnings.catch_warnings():
        # Said in the table, for each structure.
        warnings.filterwarnings('ignore', '.*outside the training range')
        results = predictor.relax(
            structures, relax_cell=relax_cell, progress=bool(structures)
        )
    for result in results:
        atoms = result.atoms if result.ok else None
        row = _row(result.initial, atoms, result.problem)
        row['seconds'] = sum(result.timings.values())
        yield Answer(atoms, row, [result.problem] if result.problem else [])


def _refined(frames, out, refine, predictor, how, *, fmax, steps, optimizer):
    """Answers of predictor and potentials, each as soon as it is there."""
    from ase_deeprelax.calculators.registry import get_calculator
    from ase_deeprelax.cli.refine import SAID, Refiner, put, refine_all
    from ase_deeprelax.optimize.relaxation_step import find_optimizer
    from ase_deeprelax.optimize.stage import Stage

    device, names = str(predictor.device), refine.split(',')
    symmetry = str(predictor.symmetry)
    refiner = Refiner(
        [Stage(get_calculator(name, device=device), steps=steps) for name in names],
        find_optimizer(optimizer),
        fmax,
        {**how, 'symmetry': symmetry, 'device': device},
        asked=[predictor.sha256, symmetry, refine, optimizer, fmax, steps],
    )
    answers = refine_all(frames, refiner, out, progress=bool(frames))
    for (_, initial), answer in zip(frames, answers, strict=True):
        atoms = None if answer['problem'] else put(answer, initial)
        row = _row(initial, atoms, answer['problem'])
        row |= {name: answer[name] for name in SAID}
        yield Answer(atoms, row, answer['problems'])


def _write(targets, structures):
    """To how many files structures, if there are any, were written."""
    from ase.io import write
    from ase.io.formats import filetype

    from ase_deeprelax.data.writable import as_writable

    for target in targets if structures else ():
        target.parent.mkdir(parents=True, exist_ok=True)
        form = filetype(str(target), read=False)
        # The file beside a CIF file keeps the constraints.
        beside = form == 'cif' and len(targets) > 1
        write(target, structures if beside else [as_writable(a, form) for a in structures])
    return len(targets) if structures else 0


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


def _row(initial, atoms, problem):
    """What there is to say of a structure, ready for JSON."""
    info = {} if atoms is None else atoms.info
    return {
        'formula': initial.get_chemical_formula('metal', empirical=True),
        'n_atoms': len(initial),
        'ok': atoms is not None,
        'problem': problem,
        'kind': info.get(keys.KIND, ''),
        'ood': info.get(keys.OOD, ''),
        'volume_before': float(initial.cell.volume),
        'volume': None if atoms is None else float(atoms.cell.volume),
        'dmax': info.get(keys.DMAX),
        'sigma': info.get(keys.SIGMA),
    }


def _table(rows):
    titles = ['structure', 'formula', 'atoms', 'V0/A^3', 'V/A^3', 'dmax/A', 'sigma/A']
    refined = 'stages' in rows[0]
    titles += ['E/eV', 'fmax/eV/A', 's', 'stages'] if refined else ['ms']
    table, remarks = [], ['']
    for row in rows:
        cells = [row['structure'], row['formula'], str(row['n_atoms'])]
        cells += [_cell(row[name], '.2f') for name in ('volume_before', 'volume')]
        cells += [_cell(row[name], '.3f') for name in ('dmax', 'sigma')]
        if refined:
            cells += [_cell(row[name], '.4f') for name in ('energy', 'fmax')]
            cells += [_cell(row['seconds'], '.1f'), row['way']]
        else:
            cells.append(_cell(1e3 * row['seconds'], '.0f'))
        notes = [] if row['kind'] == 'bulk' else [row['kind']]
        notes += [f'! {row["ood"]}'] if row['ood'] else []
        table.append(cells)
        remarks.append(' '.join(notes))
    lines = Table(titles, table, text_columns=(0, 1)).as_text().splitlines()
    return '\n'.join(
        f'{line}  {remark}'.rstrip() for line, remark in zip(lines, remarks, strict=True)
    )


def _cell(value, form):
    return '-' if value is None else f'{value:{form}}'
