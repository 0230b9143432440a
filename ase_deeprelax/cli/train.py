"""``deeprelax train``: a model from pairs."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ase_deeprelax.cli.app import pip_line
from ase_deeprelax.errors import MissingDependencyError


def train(
    config: Annotated[
        Path,
        typer.Argument(
            metavar='CONFIG', help='YAML file; docs/training.md has an example.'
        ),
    ],
    resume: Annotated[Path | None, typer.Option(help='Checkpoint to go on from.')] = None,
    start: Annotated[
        str | None,
        typer.Option(
            '--from',
            help='Model whose weights to start from (transfer learning); of the '
            'architecture and hyperparameters that CONFIG says.',
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option('--set', help='KEY.KEY=VALUE, on top of CONFIG.')
    ] = None,
) -> None:
    """Train a model as CONFIG says."""
    with training_tools():
        from ase_deeprelax.train.run import train as run
    folder = run(config, overrides=overrides or (), resume=resume, start=start)
    typer.echo(f"the model is in {folder}; use it as model='{folder}' or --model {folder}")


@contextmanager
def training_tools() -> Generator[None]:
    """An import of what training needs: where something is missing, say how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f'training needs {error.name}: {pip_line("train")}'
        ) from error
