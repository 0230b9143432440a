"""``deeprelax compare``: relaxations with and without a prediction, side by side."""

from pathlib import Path
from typing import Annotated

import typer

from ase_deeprelax.cli.app import CellOption, ModelOption, relax_cell_of, write_json

PAIR_SUFFIXES = ('.jsonl', '.jsonl.gz')


def compare(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar='STRUCTURES',
            help='Anything that ase.io reads, or pairs (.jsonl, .jsonl.gz, a folder), '
            'whose relaxed halves are then the reference.',
        ),
    ],
    *,
    calculators: Annotated[
        str, typer.Option(help='NAME or NAME:WEIGHTS of potentials, with commas between.')
    ] = 'chgnet',
    optimizers: Annotated[
        str, typer.Option(help="ASE's optimizers by name, with commas between.")
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
):
    """Relax STRUCTURES from where they are and from their prediction, and compare.

    Each goes down with each calculator and optimizer, cell included unless --cell says
    otherwise; the vacuum of layers and slabs stays, and constraints are honoured. Failed
    and unconverged runs are counted apart and enter no median.
    """
    from ase_deeprelax.compare.comparison_tables import comparison_text
    from ase_deeprelax.compare.phonon_calculation import load_phonopy
    from ase_deeprelax.compare.phonons import compare_phonons
    from ase_deeprelax.compare.savings import compare as measure
    from ase_deeprelax.data.pairs import spread

    if html_file is not None:
        from ase_deeprelax.report.style import need_matplotlib

        need_matplotlib()  # said now rather than after hours of work
    if phonons:
        load_phonopy()
    relax_cell = relax_cell_of(cell)
    found = _structures(files)
    ids = [id for id, _ in found]
    if twice := {id for id in ids if ids.count(id) > 1}:
        raise typer.BadParameter(f'{min(twice)!r} is the id of more than one structure')
    structures = spread(found, limit)
    potentials = calculators.split(',')
    result = measure(
        dict(structures),
        potentials,
        optimizers=optimizers.split(','),
        model=model,
        fmax=fmax,
        steps=steps,
        relax_cell=relax_cell,
        batched=batched,
        out=out,
        device=device,
        progress=True,
    )
    if phonons:
        result['phonons'] = compare_phonons(
            result, potentials, out=out, device=device, progress=True
        )
    typer.echo(comparison_text(result))
    for line in _kinds(result):
        typer.echo(line)
    write_json(json_file, result)
    if html_file is not None:
        from ase_deeprelax.report.html import write_report

        write_report(html_file, result)


def _kinds(result):
    """Lines on structures that are no crystals with a free cell, by kind."""
    named = {}
    for row in result['structures']:
        named.setdefault(row['kind'], []).append(row['id'])
    for kind, ids in named.items():
        if kind not in ('bulk', ''):
            yield f'{kind}: {", ".join(ids)}'


def _structures(files):
    """``(id, structure or pair)`` of all files; ids say file and frame."""
    from ase.io import read

    from ase_deeprelax.data.pairs import read_pairs

    found = []
    for file in files:
        if file.is_dir() or file.name.endswith(PAIR_SUFFIXES):
            found += [(pair.id, pair) for pair in read_pairs(file)]
            continue
        try:
            frames = read(file, index=':')
        # Each of ASE's many readers has its own idea of what to raise.
        except Exception as error:
            raise typer.BadParameter(f'{file}: cannot be read ({error})') from error
        if not frames:
            raise typer.BadParameter(f'{file}: holds no structure')
        found += [
            (f'{file}@{k}' if len(frames) > 1 else str(file), atoms)
            for k, atoms in enumerate(frames)
        ]
    return found
