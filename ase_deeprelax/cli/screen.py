"""``deeprelax screen``: millions of structures, in packs that survive any stop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ase_deeprelax.cli.app import (
    TERMINATED,
    CellOption,
    DeviceOption,
    ModelOption,
    Symmetry,
    SymmetryOption,
    relax_cell_of,
    resumable,
    shows_progress,
)

PACK = 1024


def screen(
    ctx: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(
            metavar='SOURCE',
            help='An extxyz file, a folder or a zip or tar archive of CIFs, .db, .aselmdb, '
            'parquet, or JSON of pymatgen.',
        ),
    ],
    out: Annotated[
        Path, typer.Argument(metavar='OUT', help='Folder of the screen, new or begun.')
    ],
    *,
    model: ModelOption = 'default',
    symmetry: SymmetryOption = Symmetry.KEEP,
    cell: CellOption = 'free',
    workers: Annotated[
        int,
        typer.Option(min=1, help='Processes, which share the cores and take GPUs in turn.'),
    ] = 1,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar='I/N', help='Only part I of N, for job arrays, which share OUT.'
        ),
    ] = None,
    pack: Annotated[
        int,
        typer.Option(
            min=1,
            help='Structures per pack; if the process is killed, one pack is lost at most.',
        ),
    ] = PACK,
    quiet: Annotated[
        bool, typer.Option('--quiet', '-q', help='No summary and no progress bar.')
    ] = False,
    device: DeviceOption = 'auto',
) -> None:
    """Relax many structures in one shot, in packs; resumable.

    The answers are rows of parquet files in OUT; `deeprelax results OUT` shows and exports
    them. SOURCE is read as a stream, so its size does not matter. Whatever stops the
    command, a kill, a full disk, the time limit of a queue, it goes on where it was when it
    is given again, and no structure is lost or done twice. What cannot be read or relaxed
    is quarantined: a row with the reason.

    SIGTERM lets the pack at work finish; the exit code is then 143. It is 0 when all is
    done, quarantined structures included.
    """
    from ase_deeprelax.screening import screen

    if ctx.args:
        raise typer.BadParameter(
            f'SOURCE is one file, folder or archive, and {1 + len(ctx.args)} are given; to '
            'screen many files, give the folder that holds them'
        )
    with resumable():
        done = screen(
            source,
            out,
            model=model,
            device=device,
            symmetry=symmetry,
            relax_cell=relax_cell_of(cell),
            workers=workers,
            shard=_shard_of(shard),
            pack=pack,
            progress=shows_progress(quiet),
        )
    if not quiet:
        typer.echo(
            f'{out}: {done.n_done} of {done.n_structures} structures done, '
            f'{done.n_quarantined} of them quarantined; see: deeprelax results {out}'
        )
    if done.stopped:
        typer.echo(
            'stopped by SIGTERM after a whole pack; the same command goes on from here',
            err=True,
        )
        raise typer.Exit(TERMINATED)


def _shard_of(text: str | None) -> tuple[int, int] | None:
    """Number and count of a part, from I/N.

    >>> _shard_of('3/16')
    (3, 16)
    """
    if text is None:
        return None
    number, _, count = text.partition('/')
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise typer.BadParameter(f'--shard {text}: it must be 1/N to N/N, as in 3/16')
    return int(number), int(count)
