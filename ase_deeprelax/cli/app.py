"""What all commands share: the app, its errors, and options that mean the same in each."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ase_deeprelax import __version__
from ase_deeprelax.errors import DeepRelaxError, DeepRelaxWarning
from ase_deeprelax.files import disk_is_full, sha256

# Exit codes as shells have them: 128 and the number of the signal.
INTERRUPTED, TERMINATED = 130, 143
# The words of the command are kept in the context under this name.
WORDS = 'ase_deeprelax.words'
# A page shows this many letters of the command, and the hashes of this many input files.
MOST_LETTERS, MOST_FILES = 300, 8


class Terminated(KeyboardInterrupt):
    """SIGTERM came, as queues send it when time is up."""


class Commands(TyperGroup):
    """Ends every command with one line and an exit code, never with a traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the words of the command for `provenance`."""
        ctx.meta[WORDS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command: 1 for an error of this package or of files, 143 for SIGTERM."""
        try:
            with _sigterm_as_exception(), _warnings_as_messages():
                return super().invoke(ctx)
        except DeepRelaxError as error:
            _fail(str(error), 1, error)
        except Terminated as error:
            _fail('stopped by SIGTERM', TERMINATED, error)
        except BrokenPipeError:  # `deeprelax ... | head`: Typer ends without a word
            raise
        except OSError as error:
            where = f'{error.filename}: ' if error.filename else ''
            advice = '; make room and give the command again' if disk_is_full(error) else ''
            _fail(f'{where}{error.strerror or error}{advice}', 1, error)


def _fail(message: str, code: int, error: BaseException) -> None:
    typer.echo(f'Error: {message}', err=True)
    raise typer.Exit(code) from error


@contextmanager
def _sigterm_as_exception() -> Generator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that files are left whole."""

    def stop(*_: Any) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


@contextmanager
def _warnings_as_messages() -> Generator[None]:
    """Print warnings without the line of code, and those of this package as messages."""
    former = warnings.formatwarning

    def plain(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        line: str | None = None,
    ) -> str:
        if issubclass(category, DeepRelaxWarning):
            return f'Warning: {message}\n'
        return former(message, category, filename, lineno, line or '')

    warnings.formatwarning = plain  # ty: ignore[invalid-assignment]
    try:
        with warnings.catch_warnings():
            # CHGNet converts a tensor in a way that torch warns of.
            warnings.filterwarnings('ignore', 'Converting a tensor', module='chgnet')
            yield
    finally:
        warnings.formatwarning = former


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help='One-shot relaxation of crystals, with an uncertainty.',
)


class Symmetry(StrEnum):
    """Treatment of the space group of an input."""

    KEEP = 'keep'
    FREE = 'free'


ModelOption = Annotated[str, typer.Option(help='Name of a shipped model, or a folder.')]
SplitOption = Annotated[
    str | None, typer.Option(help='Only pairs of this split: train, val or test.')
]
DeviceOption = Annotated[str, typer.Option(help='auto, cpu, cuda, cuda:1, ...')]
SymmetryOption = Annotated[
    Symmetry,
    typer.Option(help='keep: preserve the space group; free: do not enforce it.'),
]
CellOption = Annotated[
    str,
    typer.Option(
        metavar='free|fixed|in-plane|hydrostatic|MASK',
        help='What of the cell may change. free: all of it; of a layer, its plane; of a '
        'layer with fixed atoms, nothing. MASK: six 0 or 1 with commas between, for the '
        'strains xx,yy,zz,yz,xz,xy.',
    ),
]


def relax_cell_of(cell: str) -> bool | str | list[bool] | None:
    """The value of ``--cell`` as ``relax_cell`` of `relax`, or ``BadParameter``.

    >>> relax_cell_of('fixed'), relax_cell_of('1,1,0,0,0,1')
    (False, [True, True, False, False, False, True])
    """
    words: dict[str, Any] = {'free': None, 'fixed': False}
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


def main() -> None:
    """Entry point of the ``deeprelax`` script."""
    app(prog_name='deeprelax')


def pip_line(extra: str) -> str:
    """What installs an extra of this package."""
    return f"pip install 'ase-deeprelax[{extra}]'"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f'ase-deeprelax {__version__}')
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option('--version', callback=_show_version, is_eager=True, help='Version.'),
    ] = False,
) -> None:
    pass


def write_json(file: Path | None, data: Any, **layout: Any) -> None:
    """Write data as JSON, numbers that are not finite as null; ``-`` is standard output.

    Parameters
    ----------
    file : Path or None
        None: nowhere.
    data : dict or list
    **layout
        For ``json.dumps``.
    """
    from ase_deeprelax.files import write_atomically
    from ase_deeprelax.journal import finite_or_none

    if file is None:
        return
    text = json.dumps(finite_or_none(data), allow_nan=False, **layout) + '\n'
    if str(file) == '-':
        sys.stdout.write(text)
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text)
        tell_written(file)


def tell_written(file: Path) -> None:
    """Print the name of a file that was written, apart from what the command answers."""
    typer.echo(f'wrote {file}', err=True)


def check_outputs(*files: Path | None, inputs: Iterable[Path] = ()) -> None:
    """Refuse output files that cannot be written, before the work.

    Parameters
    ----------
    *files : Path or None
        None and ``-`` are no files. Each needs a place of its own.
    inputs : iterable of Path
        Files that are read, which no output may replace.
    """
    from ase_deeprelax.files import check_writable

    taken = {os.path.realpath(path): 'one of the inputs' for path in inputs}
    for file in files:
        if file is None or str(file) == '-':
            continue
        place = os.path.realpath(file)
        if place in taken:
            raise typer.BadParameter(f'{file} is {taken[place]}; choose another place')
        taken[place] = 'written to already'
        check_writable(file)


def shows_progress(quiet: bool = False) -> bool:
    """Whether a bar makes sense: not in log files, and not where nobody wants it."""
    return sys.stderr.isatty() and not quiet


@contextmanager
def resumable() -> Generator[None]:
    """Say, where Ctrl-C or SIGTERM ends the work, that the same command goes on with it."""
    try:
        yield
    except KeyboardInterrupt as error:
        typer.echo('interrupted; the same command goes on from here', err=True)
        code = TERMINATED if isinstance(error, Terminated) else INTERRUPTED
        raise typer.Exit(code) from error


def on_one_line(text: str) -> str:
    r"""Text without line breaks: ids in tables of others, and messages, may hold some.

    >>> on_one_line('agm0\nNaCl\n')
    'agm0 NaCl'
    """
    return ' '.join(text.splitlines())


def tell_problems(problems: Iterable[str], what: str = 'failed') -> None:
    """Print problems, if there are any, and end the command with the exit code 1."""
    found = [f'{what}: {problem}' for problem in problems]
    if found:
        typer.echo('\n'.join(found), err=True)
        raise typer.Exit(1)


def need_pages(file: Path | None) -> None:
    """Refuse before the work a page (None: none is asked for) that cannot be drawn."""
    if str(file) == '-':
        raise typer.BadParameter('--html: a page is written to a file, not to -')
    if file is not None:
        from ase_deeprelax.report.style import need_matplotlib

        need_matplotlib()


def provenance(ctx: typer.Context, *files: Path) -> list[str]:
    """Lines for a page: the command, and the input files with their hashes.

    Parameters
    ----------
    ctx : typer.Context
        Of the command.
    *files : Path
        Files that were read. What is no file, such as a folder or standard input, is left
        out, and so are all of them where there are many.
    """
    command = shlex.join(['deeprelax', *ctx.meta[WORDS]])
    if len(command) > MOST_LETTERS:
        command = f'{command[:MOST_LETTERS]} ...'
    found = [file for file in dict.fromkeys(files) if file.is_file()]
    hashes = [f'{file.name}, SHA-256 {sha256(file)[:12]}' for file in found[:MOST_FILES]]
    data = [f'Data: {"; ".join(hashes)}.'] if 0 < len(found) <= MOST_FILES else []
    return [f'Command: {command}', *data]
