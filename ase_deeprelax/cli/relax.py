"""``deeprelax relax``: files in, relaxed structures out."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from ase import Atoms

from ase_deeprelax import keys
from ase_deeprelax.cli.app import (
    CellOption,
    DeviceOption,
    ModelOption,
    Symmetry,
    SymmetryOption,
    check_outputs,
    need_pages,
    provenance,
    relax_cell_of,
    resumable,
    shows_progress,
    tell_problems,
    tell_written,
    write_json,
)
from ase_deeprelax.cli.frames import labels_of, read_frames
from ase_deeprelax.cli.outputs import (
    check_databases,
    check_room,
    is_file,
    targets_of,
    write_to,
)
from ase_deeprelax.data.formula import chemical_formula
from ase_deeprelax.data.one_line import count

# The limits of a refinement.
FMAX, STEPS, OPTIMIZER = 0.05, 500, 'ElasticBFGS'
REFINEMENT = {'fmax': FMAX, 'steps': STEPS, 'optimizer': OPTIMIZER, 'guided': False}


def _larger_than_zero(length: float | None) -> float | None:
    if length is not None and not length > 0:
        raise typer.BadParameter(f'it is {length:g}, and must be larger than 0 A')
    return length


def relax(
    ctx: typer.Context,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar='FILES',
            help='Files that ase.io reads, frames of them (run.traj@-1), JSON of pymatgen, '
            "folders, archives, patterns ('*/CONTCAR'), or - for standard input.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help='Folder for NAME.cif and NAME.extxyz of each file, or, with a suffix, '
            'one file for all structures. A database that exists is never replaced.'
        ),
    ] = Path('relaxed'),
    *,
    model: ModelOption = 'default',
    symmetry: SymmetryOption = Symmetry.KEEP,
    cell: CellOption = 'free',
    accept_below: Annotated[
        float | None,
        typer.Option(
            callback=_larger_than_zero,
            help='Refuse predictions whose expected error, A, is not below this.',
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(help='Processes that share the predictions; -1: one for each core.'),
    ] = 1,
    verify: Annotated[
        str | None,
        typer.Option(
            help='Check each prediction with one call of this potential (NAME or '
            'NAME:WEIGHTS): does it lie within the error of the potential?'
        ),
    ] = None,
    refine: Annotated[
        str | None,
        typer.Option(
            help='Relax further, from the predictions, with calculators, one after '
            'another: NAME or NAME:WEIGHTS, with commas between (chgnet,tensornet:FOLDER).'
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
    html_file: Annotated[
        Path | None,
        typer.Option(
            '--html',
            help='Write a page: table, failures, and the least certain and farthest moved '
            'structures to turn by hand.',
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option('--quiet', '-q', help='No table and no progress bar.')
    ] = False,
    device: DeviceOption = 'auto',
) -> None:
    """Relax structures in one shot, and refine them if asked.

    FILES hold crystals, layers or slabs, whose vacuum stays; constraints in them are
    honoured. The last column of the table names layers, fixed cells and inputs that are out
    of distribution.

    CIF cannot hold the uncertainties; extxyz keeps them per structure and per atom, and
    databases keep their own columns beside them. What cannot be read or relaxed is
    reported, the others go on, and the exit code is 1; it is also 1 where a calculator
    failed (the structure is then the best one before) or the last one did not converge. A
    command that was stopped goes on when it is given again.
    """
    from ase_deeprelax.cli.answers import answer_all, part_file, relaxed_atoms
    from ase_deeprelax.data.structure_files import find_files
    from ase_deeprelax.predict import Predictor

    chosen = {'fmax': fmax, 'steps': steps, 'optimizer': optimizer, 'guided': guided}
    judged = verify is not None or accept_below is not None
    _check_options(refine, chosen, judged=judged, workers=workers)
    need_pages(html_file)
    relax_cell = relax_cell_of(cell)
    sources = find_files(files)
    labels = labels_of(sources)
    targets = targets_of(sources, labels, out, form)
    check_databases(chain.from_iterable(targets.values()), part_file(out))
    frames, problems = read_frames(sources, progress=shows_progress(quiet))
    check_room(targets, frames)
    predictor = Predictor(
        model, device=device, symmetry=symmetry, accept_below=accept_below
    )
    if refine is None:
        from ase_deeprelax.cli.answers import OneShot

        worker: Any = OneShot(predictor, relax_cell, verify, workers)
    else:
        how = {'model': model, 'relax_cell': relax_cell}
        worker = _refiner(refine, predictor, how, **chosen)
    written = {path for source, *_ in frames for path, _ in targets[source]}
    inputs = (source.path for source in sources)
    check_outputs(json_file, html_file, *sorted(written), inputs=inputs)
    named = [(f'{labels[source]}{frame}', atoms) for source, frame, atoms in frames]
    left = Counter(source for source, *_ in frames)
    rows: list[dict[str, Any]] = []
    structures: list[Atoms] = []
    shown: list[tuple[Atoms, Atoms | None]] = []
    n_files = 0
    answers = answer_all(named, worker, out, progress=shows_progress(quiet))
    with resumable(), closing(answers):  # whatever ends it, the file of answers is free
        for (source, frame, initial), answer in zip(frames, answers, strict=True):
            problems += [f'{source.path}{frame}: {text}' for text in answer['problems']]
            atoms = None if answer['problem'] else relaxed_atoms(answer, initial)
            label = f'{labels[source]}{frame}'
            if atoms is not None:
                atoms.info[keys.ID] = label
            rows.append({'structure': label, **_row(initial, atoms)})
            rows[-1] |= _numbers(answer)
            shown += [(initial, atoms)] if html_file is not None else []
            structures += [] if atoms is None else [atoms]
            left[source] -= 1
            if not left[source] and not is_file(out):  # now: others may take hours
                n_files += write_to(targets[source], structures, problems)
                structures = []
    if is_file(out):
        n_files += write_to(next(iter(targets.values())), structures, problems)
    write_json(json_file, rows, indent=1)
    if html_file is not None:
        made = provenance(ctx, *(source.path for source in sources))
        _write_page(html_file, rows, shown, problems, made)
    if frames:
        part_file(out).unlink()
    if n_files and not quiet and str(json_file) != '-':
        typer.echo(_text(rows))
        typer.echo(f'wrote {out}' + ('' if is_file(out) else f': {count(n_files, "file")}'))
    tell_problems(problems)


def _check_options(
    refine: str | None, chosen: dict[str, Any], *, judged: bool, workers: int
) -> None:
    if refine is None and chosen != REFINEMENT:
        raise typer.BadParameter('--fmax, --steps, --optimizer and --guided need --refine')
    if refine is not None and judged:
        raise typer.BadParameter(
            '--verify and --accept-below judge predictions alone; leave out --refine'
        )
    if refine is not None and workers != 1:
        raise typer.BadParameter(
            '--workers shares predictions alone; leave out --refine, or relax first and '
            'refine what was written'
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
    from ase_deeprelax.optimize.ase_optimizers import find_optimizer
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


def _row(initial: Atoms, atoms: Atoms | None) -> dict[str, Any]:
    """The numbers of a structure for the table, ready for JSON."""
    info = {} if atoms is None else atoms.info
    return {
        'formula': chemical_formula(initial),
        'n_atoms': len(initial),
        'ok': atoms is not None,
        'kind': info.get(keys.KIND, ''),
        'ood': info.get(keys.OOD, ''),
        'volume_before': float(initial.cell.volume),
        'volume': None if atoms is None else float(atoms.cell.volume),
        'volume_ratio': None if atoms is None else _volume_ratio(initial, atoms),
        'dmax': None if atoms is None else _dmax(initial, atoms),
        'sigma': info.get(keys.SIGMA),
        'error': info.get(keys.ERROR),
        'verified': info.get(keys.VERIFIED, ''),
    }


def _volume_ratio(initial: Atoms, atoms: Atoms) -> float | None:
    """Volume over that of the input; None for a molecule or wire without a box."""
    return atoms.cell.volume / initial.cell.volume if initial.cell.rank == 3 else None


def _dmax(initial: Atoms, atoms: Atoms) -> float:
    """Largest displacement at the unrelaxed cell, A; of all stages together."""
    positions = atoms.positions
    if (atoms.cell.array != initial.cell.array).any():  # a molecule may have none
        deformation = np.linalg.solve(initial.cell.array, atoms.cell.array)
        positions = np.linalg.solve(deformation.T, positions.T).T
    return float(np.linalg.norm(positions - initial.positions, axis=1).max(initial=0))


def _numbers(answer: dict[str, Any]) -> dict[str, Any]:
    """The entries of an answer for the table."""
    names = ('problem', 'seconds', 'energy', 'fmax', 'way', 'stages')
    return {name: answer[name] for name in names if name in answer}


def _text(rows: list[dict[str, Any]]) -> str:
    """The table of what was relaxed."""
    from ase_deeprelax.report.relaxation_table import relaxation_table

    good = ((row['structure'], row) for row in rows if row['ok'])
    return relaxation_table(good, short=True).as_text()


def _write_page(
    path: Path,
    rows: list[dict[str, Any]],
    shown: list[tuple[Atoms, Atoms | None]],
    problems: list[str],
    made: list[str],
) -> None:
    """One page on all answers."""
    from ase_deeprelax.report.relax_page import Answer, write_relax_page

    answers = {
        row['structure']: Answer(row | _model(after), before, after)
        for row, (before, after) in zip(rows, shown, strict=True)
        if after is not None
    }
    failed = sum(not row['ok'] for row in rows)
    write_relax_page(path, answers, problems, failed=failed, provenance=made)
    tell_written(path)


def _model(atoms: Atoms) -> dict[str, Any]:
    """Name, hash and version of the model that answered."""
    names = {'model': keys.MODEL, 'sha256': keys.SHA256, 'version': keys.VERSION}
    return {name: atoms.info.get(key) for name, key in names.items()}
