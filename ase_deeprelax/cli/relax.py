"""``deeprelax relax``: files in, relaxed structures out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from ase import Atoms

from ase_deeprelax import keys
from ase_deeprelax.cli.app import (
    INTERRUPTED,
    TERMINATED,
    CellOption,
    DeviceOption,
    ModelOption,
    Symmetry,
    SymmetryOption,
    Terminated,
    check_outputs,
    count,
    relax_cell_of,
    shows_progress,
    write_json,
)
from ase_deeprelax.compare.tables import Table
from ase_deeprelax.errors import ConfigError, StructureError

if TYPE_CHECKING:  # ase.io takes a while: not for --help
    from ase_deeprelax.data.structure_files import Source

# The limits of a refinement.
FMAX, STEPS, OPTIMIZER = 0.05, 500, 'ElasticBFGS'
REFINEMENT = {'fmax': FMAX, 'steps': STEPS, 'optimizer': OPTIMIZER, 'guided': False}
# Formats written for each input in a folder: CIF for other programs, extended XYZ with the
# uncertainties.
FOLDER_FORMATS = ('cif', 'extxyz')
# A structure, where it is from, and which frame it is, '@2', where there are several.
Frame = tuple['Source', str, Atoms]


def relax(
    files: Annotated[
        list[str],
        typer.Argument(
            help='Files that ase.io reads, frames of them (run.traj@-1), JSON of pymatgen, '
            "folders, archives, patterns ('*/CONTCAR'), or - for standard input."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help='Folder for NAME.cif and NAME.extxyz of each file, or, with a suffix, '
            'one file for all structures.'
        ),
    ] = Path('relaxed'),
    *,
    model: ModelOption = 'default',
    symmetry: SymmetryOption = Symmetry.KEEP,
    cell: CellOption = 'free',
    accept_below: Annotated[
        float | None,
        typer.Option(help='Refuse predictions whose expected error, A, is not below this.'),
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(
            help='One call of this potential (NAME or NAME:WEIGHTS) for each prediction '
            'says whether it lies within the own error of the potential.'
        ),
    ] = None,
    refine: Annotated[
        str | None,
        typer.Option(
            help='Relax on from the predictions with calculators, one after another: NAME '
            'or NAME:WEIGHTS, with commas between (chgnet,tensornet:FOLDER).'
        ),
    ] = None,
    guided: Annotated[
        bool,
        typer.Option(
            '--guided',
            help='Let the prediction pull during --refine: the most probable structure '
            'given prediction and potential, in a few calls.',
        ),
    ] = False,
    fmax: Annotated[
        float, typer.Option(min=0, help='Largest force to refine to, eV/A.')
    ] = FMAX,
    steps: Annotated[
        int, typer.Option(min=1, help='At most so many with each calculator.')
    ] = STEPS,
    optimizer: Annotated[
        str,
        typer.Option(
            help='Optimizer used by --refine: ElasticBFGS or an ASE name (FIRE, LBFGS).'
        ),
    ] = OPTIMIZER,
    form: Annotated[
        str | None,
        typer.Option('--format', help="Format to write, by ASE's name; default: suffix."),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            '--json',
            help='Write the table there, with records of the stages; - is standard output.',
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option('--quiet', '-q', help='No table and no progress bar.')
    ] = False,
    device: DeviceOption = 'auto',
) -> None:
    """Relax all structures of FILES in one shot, and refine them if asked.

    Crystals, and layers or slabs, whose vacuum stays; constraints in the files are
    honoured. The last column of the table names layers, held cells and inputs that are out
    of distribution.

    CIF cannot hold the uncertainties; extxyz keeps them per structure and per atom, and
    databases keep their own columns beside them. What cannot be read or relaxed is
    reported, the others go on, and the exit code is 1; it is also 1 where a calculator
    failed (the structure is then the best one before) or the last one did not converge. A
    command that was stopped goes on when it is given again.
    """
    from ase_deeprelax.cli.answers import answer_all, part_file, relaxed_atoms
    from ase_deeprelax.data.structure_files import find_sources
    from ase_deeprelax.predict import Predictor

    chosen = {'fmax': fmax, 'steps': steps, 'optimizer': optimizer, 'guided': guided}
    _check_options(refine, chosen, judged=verify is not None or accept_below is not None)
    relax_cell = relax_cell_of(cell)
    sources = find_sources(files)
    labels = _labels(sources)
    targets = _targets(sources, labels, out, form)
    frames, problems = read_frames(sources)
    _check_room(out, form, len(frames))
    predictor = Predictor(
        model, device=device, symmetry=symmetry, accept_below=accept_below
    )
    if refine is None:
        from ase_deeprelax.cli.answers import OneShot

        worker: Any = OneShot(predictor, relax_cell, verify)
    else:
        how = {'model': model, 'relax_cell': relax_cell}
        worker = _refiner(refine, predictor, how, **chosen)
    if frames:
        check_outputs(json_file, next(iter(targets.values()))[0][0])
    named = [(f'{labels[source]}{frame}', atoms) for source, frame, atoms in frames]
    left = Counter(source for source, *_ in frames)
    rows: list[dict[str, Any]] = []
    structures: list[Atoms] = []
    n_files = 0
    answers = answer_all(named, worker, out, progress=shows_progress(quiet))
    try:
        for (source, frame, initial), answer in zip(frames, answers, strict=True):
            problems += [f'{source.path}{frame}: {text}' for text in answer['problems']]
            atoms = None if answer['problem'] else relaxed_atoms(answer, initial)
            rows.append({'structure': f'{labels[source]}{frame}', **_row(initial, atoms)})
            rows[-1] |= _numbers(answer)
            structures += [] if atoms is None else [atoms]
            left[source] -= 1
            if not left[source] and not _is_file(out):  # now: others may take hours
                n_files += _write(targets[source], structures, problems)
                structures = []
    except KeyboardInterrupt as error:
        typer.echo('interrupted; the same command goes on from here', err=True)
        code = TERMINATED if isinstance(error, Terminated) else INTERRUPTED
        raise typer.Exit(code) from error
    if _is_file(out):
        n_files += _write(next(iter(targets.values())), structures, problems)
    write_json(json_file, rows, indent=1)
    if frames:
        part_file(out).unlink()
    if n_files and not quiet and str(json_file) != '-':
        typer.echo(_table([row for row in rows if row['ok']]))
        typer.echo(
            f'wrote {out}' + ('' if _is_file(out) else f': {count(n_files, "file")}')
        )
    for problem in problems:
        typer.echo(f'failed: {problem}', err=True)
    if problems:
        raise typer.Exit(1)


def _check_options(refine: str | None, chosen: dict[str, Any], *, judged: bool) -> None:
    if refine is None and chosen != REFINEMENT:
        raise typer.BadParameter('--fmax, --steps, --optimizer and --guided need --refine')
    if refine is not None and judged:
        raise typer.BadParameter(
            '--verify and --accept-below judge predictions alone; leave out --refine'
        )


def _refiner(
    refine: str,
    predictor: Any,
    how: dict[str, Any],
    *,
    fmax: float,
    steps: int,
    optimizer: str,
    guided: bool,
) -> Any:
    """The worker that refines predictions with calculators."""
    from ase_deeprelax.calculators.registry import get_calculator
    from ase_deeprelax.cli.refine import Refiner
    from ase_deeprelax.optimize.relaxation_step import find_optimizer
    from ase_deeprelax.optimize.stage import Stage

    device, symmetry = str(predictor.device), str(predictor.symmetry)
    names = refine.split(',')
    return Refiner(
        [
            Stage(get_calculator(name, device=device), steps=steps, guided=guided)
            for name in names
        ],
        find_optimizer(optimizer),
        fmax,
        {**how, 'symmetry': symmetry, 'device': device, 'guided': guided},
        asked=[predictor.sha256, symmetry, refine, optimizer, fmax, steps, guided],
    )


def read_frames(sources: Sequence[Source]) -> tuple[list[Frame], list[str]]:
    """``(source, '' or '@index', atoms)`` of each structure, and what could not be read."""
    from ase_deeprelax.data.structure_files import read_source
    from ase_deeprelax.screening.sources import is_packed

    frames, problems = [], []
    for source in sources:
        try:
            if is_packed(source):
                frames += _read_packed(source, problems)
                continue
            structures = read_source(source)
        except StructureError as error:
            problems.append(f'{source}: {error}')
            continue
        for index, atoms in enumerate(structures):
            frames.append((source, f'@{index}' if len(structures) > 1 else '', atoms))
    return frames, problems


def _read_packed(source: Source, problems: list[str]) -> list[Frame]:
    """Structures of an archive or table; ``problems`` gets those that cannot be read."""
    from ase_deeprelax.screening.sources import open_source

    if source.index != ':':
        raise StructureError('frames of archives and tables cannot be chosen')
    frames = []
    for item in open_source(source.path).items():
        try:
            frames.append((source, f'@{item.id}', item.load()))
        except Exception as error:  # noqa: BLE001 - files hold anything
            problems.append(f'{source}@{item.id}: {error}')
    return frames


def _labels(sources: Sequence[Source]) -> dict[Source, Path]:
    """A short name of each source: its path below the folder that holds them all."""
    from ase_deeprelax.data.structure_files import STDIN

    # Not resolve(): a link keeps its own name; not absolute(): '..' has to go.
    paths = {
        source: Path(os.path.abspath('stdin' if str(source.path) == STDIN else source.path))  # noqa: PTH100
        for source in sources
    }
    top = os.path.commonpath([path.parent for path in paths.values()])
    return {source: path.relative_to(top) for source, path in paths.items()}


def _targets(
    sources: Sequence[Source], labels: dict[Source, Path], out: Path, form: str | None
) -> dict[Source, list[tuple[Path, str]]]:
    """The files that the structures of each source go to, and their formats."""
    if len(labels) < len(sources):
        twice = next(source for source in sources if sources.count(source) > 1)
        raise typer.BadParameter(f'{twice} is given twice')
    if _is_file(out):
        targets = {source: [(out, _format(out, form))] for source in sources}
    else:
        formats = (form,) if form else FOLDER_FORMATS
        found = [(name, _format(out / f'x.{name}', name)) for name in formats]
        targets = {
            source: [(out / f'{name}.{suffix}', name_of) for suffix, name_of in found]
            for source, name in _names(labels).items()
        }
    inputs = {source.path.resolve() for source in sources}
    for target in (target for group in targets.values() for target, _ in group):
        if target.resolve() in inputs:
            raise typer.BadParameter(f'{target} is one of the inputs; choose another --out')
    return targets


def _format(path: Path, form: str | None) -> str:
    from ase_deeprelax.data.structure_files import find_format

    try:
        return find_format(path, form)
    except ConfigError as error:
        raise typer.BadParameter(f'--out {error}') from error


def _names(labels: dict[Source, Path]) -> dict[Source, str]:
    """Names of files, all different: without suffix where that tells them apart."""

    def named(full: bool) -> dict[Source, str]:
        framed = Counter(source.path for source in labels)
        return {
            source: f'{place if full else place.with_suffix("")}'
            + (f'@{source.index}' if framed[source.path] > 1 else '')
            for source, place in labels.items()
        }

    short, full = named(False), named(True)
    stems = Counter(short.values())
    names = {s: short[s] if stems[short[s]] == 1 else full[s] for s in labels}
    return names if len(set(names.values())) == len(names) else full


def _is_file(out: Path) -> bool:
    return bool(out.suffix) and not out.is_dir()


def _check_room(out: Path, form: str | None, n_structures: int) -> None:
    """Whether ``out`` can hold that many structures; before the work."""
    from ase.io.formats import ioformats

    if not _is_file(out):
        return
    found = ioformats[_format(out, form)]
    if found.single and n_structures > 1:
        raise typer.BadParameter(
            f'--out {out}: {found.name} holds one structure, there are {n_structures}; '
            'use .extxyz, .traj or a folder'
        )


def _write(
    targets: list[tuple[Path, str]], structures: list[Atoms], problems: list[str]
) -> int:
    """To how many files structures, if there are any, were written."""
    from ase_deeprelax.data.structure_files import write_structures

    for target, form in targets if structures else ():
        problems += [
            f'{target}: {text}' for text in write_structures(target, structures, form)
        ]
    return len(targets) if structures else 0


def _row(initial: Atoms, atoms: Atoms | None) -> dict[str, Any]:
    """The numbers of a structure for the table, ready for JSON."""
    info = {} if atoms is None else atoms.info
    return {
        'formula': initial.get_chemical_formula('metal', empirical=True),
        'n_atoms': len(initial),
        'ok': atoms is not None,
        'kind': info.get(keys.KIND, ''),
        'ood': info.get(keys.OOD, ''),
        'volume_before': float(initial.cell.volume),
        'volume': None if atoms is None else float(atoms.cell.volume),
        'dmax': info.get(keys.DMAX),
        'sigma': info.get(keys.SIGMA),
        'error': info.get(keys.ERROR),
        'verified': info.get(keys.VERIFIED, ''),
    }


def _numbers(answer: dict[str, Any]) -> dict[str, Any]:
    """The entries of an answer for the table."""
    names = ('problem', 'seconds', 'energy', 'fmax', 'way', 'stages')
    return {name: answer[name] for name in names if name in answer}


def _table(rows: list[dict[str, Any]]) -> str:
    lengths = ['dmax', 'sigma']
    lengths += ['error'] if any(row['error'] is not None for row in rows) else []
    titles = ['structure', 'formula', 'atoms', 'V0/A^3', 'V/A^3']
    titles += [f'{name}/A' for name in lengths]
    refined = 'stages' in rows[0]
    titles += ['E/eV', 'fmax/eV/A', 's', 'stages'] if refined else ['ms']
    table, remarks = [], ['']
    for row in rows:
        cells = [row['structure'], row['formula'], str(row['n_atoms'])]
        cells += [_cell(row[name], '.2f') for name in ('volume_before', 'volume')]
        cells += [_cell(row[name], '.3f') for name in lengths]
        if refined:
            cells += [_cell(row[name], '.4f') for name in ('energy', 'fmax')]
            cells += [_cell(row['seconds'], '.1f'), row['way']]
        else:
            cells.append(_cell(1e3 * row['seconds'], '.0f'))
        notes = [] if row['kind'] == 'bulk' else [row['kind']]
        notes += [f'! {row["ood"]}'] if row['ood'] else []
        notes += [row['verified']] if row['verified'] else []
        table.append(cells)
        remarks.append(' '.join(notes))
    lines = Table(titles, table, text_columns=(0, 1)).as_text().splitlines()
    return '\n'.join(
        f'{line}  {remark}'.rstrip() for line, remark in zip(lines, remarks, strict=True)
    )


def _cell(value: float | None, form: str) -> str:
    return '-' if value is None else f'{value:{form}}'
