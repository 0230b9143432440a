"""``deeprelax results``: the rows of a screen, shown, chosen and exported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ase_deeprelax.cli.app import (
    DeviceOption,
    check_outputs,
    need_pages,
    on_one_line,
    provenance,
    resumable,
    tell_problems,
    tell_written,
    write_json,
)
from ase_deeprelax.cli.outputs import check_databases
from ase_deeprelax.data.one_line import count
from ase_deeprelax.errors import ConfigError

if TYPE_CHECKING:
    from ase_deeprelax.screening import Results

# Rows, and reasons of a quarantine, that are printed.
SHOWN = 20
# Columns of the table, as far as they are there.
COLUMNS = ('id', 'formula', 'n_atoms', 'kind', 'volume_ratio', 'dmax', 'sigma')
COLUMNS += ('error', 'ood')


def results(
    ctx: typer.Context,
    out: Annotated[
        Path, typer.Argument(metavar='OUT', help='Folder of a screen, finished or not.')
    ],
    *,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Only rows with this, as 'sigma < 0.05', 'kind = layer'; repeatable."
        ),
    ] = None,
    sort: Annotated[
        str, typer.Option(help='Column to sort by; position: as in the source.')
    ] = 'sigma',
    descending: Annotated[
        bool, typer.Option('--descending', help='From the largest to the smallest.')
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help=f'Only so many rows; default all, {SHOWN} are printed.'),
    ] = None,
    quarantined: Annotated[
        bool, typer.Option('--quarantined', help='Show what could not be read or relaxed.')
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(
            help='Write the relaxed structures: .db, .extxyz, or a folder of CIF files.'
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option('--format', help='Of files in a folder: vasp, aims; default cif.'),
    ] = None,
    refine: Annotated[
        str | None,
        typer.Option(
            help='Export them relaxed further with a potential, to 0.05 eV/A in at most '
            '500 steps: NAME or NAME:WEIGHTS (chgnet, tensornet, ...).'
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option('--json', help='Write the rows; - is standard output.')
    ] = None,
    html_file: Annotated[
        Path | None,
        typer.Option(
            '--html',
            help='Write a page on all predictions, or those of --where: distributions, '
            'uncertain ones, quarantine.',
        ),
    ] = None,
    device: DeviceOption = 'auto',
) -> None:
    """Show the results of a screen, export or refine them.

    A refinement that was stopped goes on when the command is given again. The exit code is
    1 where one did not converge; the structure is then the last one.
    """
    from ase_deeprelax.screening import Results
    from ase_deeprelax.screening.export import chosen, is_one_file

    if export is None and (form is not None or refine is not None):
        raise typer.BadParameter('--format and --refine need --export')
    if quarantined and export is not None:
        raise typer.BadParameter('quarantined structures have no relaxed one to export')
    if str(export) == '-':
        raise typer.BadParameter(
            '--export: structures are written to files; --json - prints the rows'
        )
    need_pages(html_file)
    one_file = export is not None and is_one_file(export, form)
    if export is not None and one_file:
        _keep_database(export, form, refine)
    found = Results(out)
    outputs = (json_file, html_file, export if one_file else None)
    check_outputs(*outputs, inputs=found.store.files())
    _keep_packs(found, json_file, html_file, export)
    if quarantined and sort == 'sigma':
        sort = 'position'
    table = found.table(
        where or [], sort=sort, descending=descending, limit=limit, quarantined=quarantined
    )
    if str(json_file) != '-':
        _show(found, table, quarantined)
    write_json(json_file, table.to_pylist() if json_file else None, indent=1)
    problems: list[str] = []
    if export is not None:
        if not len(table):
            raise ConfigError(
                f'{export} is not written, because no relaxed structure was chosen; give '
                'other conditions with --where'
            )
        if refine is None:
            _export(chosen(found, table), export, form)
        else:
            with resumable():
                problems = _export_refined(
                    found, table, export, form, refine, device=device
                )
    if html_file is not None:
        from ase_deeprelax.report.screen_page import write_screen_page

        write_screen_page(html_file, found, where=where or [], provenance=provenance(ctx))
        tell_written(html_file)
    tell_problems(problems, 'not converged')


def _keep_database(export: Path, form: str | None, refine: str | None) -> None:
    """Refuse to replace a database, unless a refinement that was stopped goes on."""
    from ase_deeprelax.cli.answers import part_file
    from ase_deeprelax.data.structure_writing import find_format

    part = None if refine is None else part_file(export)
    check_databases([(export, find_format(export, form))], part)


def _keep_packs(found: Results, *outputs: Path | None) -> None:
    """Refuse outputs in the folder of the packs, where all files are read as packs."""
    packs = found.store.packs.resolve()
    for output in outputs:
        if output is not None and output.resolve().is_relative_to(packs):
            raise typer.BadParameter(
                f'{output} lies in {found.store.packs}, where the screen keeps its rows; '
                'choose another place'
            )


def _export(named: Iterable[tuple[str, Any]], export: Path, form: str | None) -> None:
    """Write structures, and say how many, and what else is in their folder."""
    from ase_deeprelax.screening.export import export as write_structures

    written = write_structures(named, export, form)
    others = len(list(export.iterdir())) - written if export.is_dir() else 0
    beside = f', beside {others:,} that were there before' if others else ''
    typer.echo(f'wrote {export}: {count(written)}{beside}', err=True)


def _export_refined(
    found: Results,
    table: Any,
    export: Path,
    form: str | None,
    name: str,
    *,
    device: str,
) -> list[str]:
    """Relax structures further, write them, and return why some did not converge."""
    from ase_deeprelax.calculators.batched import batch_potential
    from ase_deeprelax.calculators.registry import get_calculator
    from ase_deeprelax.cli.answers import part_file
    from ase_deeprelax.screening.export import check_together, chosen, is_one_file
    from ase_deeprelax.screening.refine import refine

    if is_one_file(export, form):  # now: the work may take hours
        first = [atoms for _, atoms in chosen(found, table.slice(0, 2))]
        check_together(first, export, form)
    potential = batch_potential(get_calculator(name, device=device))
    part, problems = part_file(export), list[str]()

    def ends() -> Iterator[tuple[str, Any]]:
        for id, atoms, problem in refine(found, table, potential, part, name=name):
            problems.extend([f'{id}: {problem}'] if problem else [])
            yield id, atoms

    _export(ends(), export, form)
    part.unlink(missing_ok=True)
    return problems


def _show(found: Results, table: Any, quarantined: bool) -> None:
    """The first rows, and how many there are."""
    from ase_deeprelax.compare.tables import Table, number

    typer.echo(
        f'{len(found)} of {found.plan.n_structures} structures done, '
        f'{found.n_quarantined} of them quarantined; {count(len(table), "row")} chosen'
    )
    if quarantined:
        reasons = list(found.quarantine().items())
        for reason, times in reasons[:SHOWN]:
            typer.echo(f'{times:8}  {on_one_line(reason)}')
        if len(reasons) > SHOWN:
            typer.echo(f'... and {count(len(reasons) - SHOWN, "rarer reason")}')
        names = ['id', 'problem']
    else:
        names = [name for name in COLUMNS if name in table.column_names]
    rows = table.select(names).slice(0, SHOWN).to_pylist()
    if rows:
        cells = [
            [
                number(x, '.3f') if isinstance(x, float) else on_one_line(str(x))
                for x in row.values()
            ]
            for row in rows
        ]
        words = tuple(k for k, name in enumerate(names) if isinstance(rows[0][name], str))
        typer.echo(Table(names, cells, words).as_text())
    if len(table) > SHOWN:
        typer.echo(f'... and {len(table) - SHOWN} more; --json or --export writes all')
