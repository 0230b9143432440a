"""``deeprelax compare``: relaxations with and without a prediction, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ase_deeprelax.cli.app import (
    CellOption,
    ModelOption,
    check_outputs,
    need_pages,
    provenance,
    relax_cell_of,
    shows_progress,
    tell_written,
    write_json,
)


def compare(
    ctx: typer.Context,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar='STRUCTURES',
            help='Files that ase.io reads, frames of them (run.traj@-1), JSON of pymatgen, '
            'archives, or pairs (.jsonl, .jsonl.gz, a folder), whose relaxed halves are '
            'then the reference.',
        ),
    ],
    *,
    calculators: Annotated[
        str, typer.Option(help='NAME or NAME:WEIGHTS of calculators, with commas between.')
    ] = 'chgnet',
    optimizers: Annotated[
        str, typer.Option(help='Optimizers of ASE, or ElasticBFGS, with commas between.')
    ] = 'FIRE,BFGS,ElasticBFGS',
    model: ModelOption = 'default',
    cell: CellOption = 'free',
    fmax: Annotated[
        float, typer.Option(min=0, help='Largest force to stop at, eV/A.')
    ] = 0.05,
    steps: Annotated[int, typer.Option(min=1, help='At most so many per run.')] = 500,
    limit: Annotated[
        int | None, typer.Option(min=1, help='Only this many structures, spread over all.')
    ] = None,
    batched: Annotated[
        bool, typer.Option('--batched', help='Also relax many per forward pass.')
    ] = False,
    phonons: Annotated[
        bool, typer.Option('--phonons', help='Also phonons, with the first optimizer.')
    ] = False,
    html_file: Annotated[
        Path | None, typer.Option('--html', help='Write a report.')
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option('--json', help='Write all rows.')
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help='Folder for finished runs, from which a stopped command goes on.'
        ),
    ] = None,
    device: Annotated[str, typer.Option(help='cpu, cuda, cuda:1, ...')] = 'cpu',
) -> None:
    """Relax structures with and without a prediction, and compare.

    Each of STRUCTURES is relaxed as it is and from its prediction (positions and cell,
    unless --cell says otherwise) with every calculator and optimizer; the vacuum of layers
    and slabs stays, and constraints are honoured. Failed and unconverged runs are counted
    apart and enter no median.
    """
    from ase_deeprelax.compare.cases import check_unique
    from ase_deeprelax.compare.comparison_tables import comparison_text
    from ase_deeprelax.compare.phonon_calculation import load_phonopy
    from ase_deeprelax.compare.phonons import compare_phonons
    from ase_deeprelax.compare.savings import compare as measure
    from ase_deeprelax.data.pairs import spread
    from ase_deeprelax.errors import StructureError

    need_pages(html_file)
    if phonons:
        load_phonopy()
    relax_cell = relax_cell_of(cell)
    check_outputs(json_file, html_file, inputs=map(Path, files))
    found = _structures(files)
    try:
        check_unique(id for id, _ in found)  # of all, also where --limit takes a part
    except StructureError as error:
        raise typer.BadParameter(str(error)) from error
    structures = spread(found, limit)
    potentials = _names(calculators)
    result = measure(
        dict(structures),
        potentials,
        optimizers=_names(optimizers),
        model=model,
        fmax=fmax,
        steps=steps,
        relax_cell=relax_cell,
        batched=batched,
        out=out,
        device=device,
        progress=shows_progress(),
    )
    if phonons:
        result['phonons'] = compare_phonons(
            result, potentials, out=out, device=device, progress=shows_progress()
        )
    typer.echo(comparison_text(result))
    for line in _kinds(result):
        typer.echo(line)
    write_json(json_file, result)
    if html_file is not None:
        from ase_deeprelax.report.html import write_report

        made = provenance(ctx, *map(Path, files))
        write_report(html_file, result, provenance=made)
        tell_written(html_file)


def _names(text: str) -> list[str]:
    """Names with commas between, and spaces around them as may be."""
    return [name.strip() for name in text.split(',')]


def _kinds(result: Any) -> Iterator[str]:
    """Lines on relaxed structures that are no crystals with a free cell, by kind."""
    from ase_deeprelax.compare.comparison_tables import first_named

    found: dict[str, list[str]] = {}
    relaxed = {run['structure'] for run in result['runs'] if run['ok']}
    for row in result['structures']:
        if row['id'] in relaxed:
            found.setdefault(row['kind'], []).append(row['id'])
    for kind, ids in found.items():
        if kind not in ('bulk', ''):
            yield f'{kind}, {first_named(ids)}'


def _structures(files: list[str]) -> list[tuple[str, Any]]:
    """``(id, structure or pair)`` of all files; ids say file and frame."""
    from ase_deeprelax.cli.frames import read_frames
    from ase_deeprelax.data.pairs import holds_pairs, read_pairs
    from ase_deeprelax.data.structure_files import find_files

    found: list[tuple[str, Any]] = []
    for file in files:
        if holds_pairs(file):
            found += [(pair.id, pair) for pair in read_pairs(file)]
            continue
        frames, problems = read_frames(find_files([file]))
        if problems:
            raise typer.BadParameter(problems[0])
        found += [
            (f'{source.path}{frame}' if frame else str(source), atoms)
            for source, frame, atoms in frames
        ]
    return found
