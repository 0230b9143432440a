"""What all commands share: the app, its errors, and options that mean the same in each."""

import json
from typing import Annotated

import typer

from ase_deeprelax import __version__
from ase_deeprelax.errors import DeepRelaxError


class Commands(typer.core.TyperGroup):
    """Shows this package's errors as one message and exit code 1, without a traceback."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except DeepRelaxError as error:
            typer.echo(f'Error: {error}', err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help='One-shot relaxation of crystals, with an uncertainty.',
)

INTERRUPTED = 130  # as shells say it

ModelOption = Annotated[str, typer.Option(help='Name of a shipped model, or a folder.')]
DeviceOption = Annotated[str, typer.Option(help='auto, cpu, cuda, cuda:1, ...')]
CellOption = Annotated[
    str,
    typer.Option(
        metavar='free|fixed|in-plane|hydrostatic|MASK',
        help='What of the cells relaxes. free: all of it, of a layer its plane, of a layer '
        'with fixed atoms nothing. MASK: six 0 or 1 with commas between, for the strains '
        'xx,yy,zz,yz,xz,xy.',
    ),
]


def relax_cell_of(cell: str) -> 'bool | str | list[bool] | None':
    """The value of ``--cell`` as ``relax_cell`` of `relax`, or ``BadParameter``.

    >>> relax_cell_of('fixed'), relax_cell_of('1,1,0,0,0,1')
    (False, [True, True, False, False, False, True])
    """
    words = {'free': None, 'fixed': False}
    words |= {word: word for word in ('in-plane', 'hydrostatic')}
    if cell in words:
        return words[cell]
    entries = [entry.strip() for entry in cell.split(',')]
    if len(entries) == 6 and set(entries) <= {'0', '1'}:
        return [entry == '1' for entry in entries]
    raise typer.BadParameter(
        f'--cell {cell}: it must be free, fixed, in-plane, hydrostatic, or six 0 or 1 with '
        'commas between, for the strains xx,yy,zz,yz,xz,xy'
    )


def main():
    """Entry point of the ``deeprelax`` script."""
    app(prog_name='deeprelax')


def pip_line(extra):
    """What installs an extra of this package."""
    return f"pip install 'ase-deeprelax[{extra}]'"


def _show_version(wanted: bool):
    if wanted:
        typer.echo(f'ase-deeprelax {__version__}')
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option('--version', callback=_show_version, is_eager=True, help='Version.'),
    ] = False,
):
    pass


def write_json(file, data, **layout):
    """Data into a file, or nowhere where ``file`` is None; its folder is made."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(data, allow_nan=False, **layout) + '\n')
