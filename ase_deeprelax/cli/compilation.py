"""``deeprelax compile``: a network as machine code for this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from ase_deeprelax.cli.app import ModelOption


def compile_(
    model: ModelOption = 'default',
    *,
    remove: Annotated[
        bool, typer.Option('--remove', help='Remove the machine code of all models.')
    ] = False,
) -> None:
    """Make machine code of a network for this machine, once.

    It takes some minutes. From then on all that predicts with this model on the CPU uses
    the machine code, in Python and on the command line. Answers differ by rounding errors
    only. After an update of torch or of this package, and on another kind of processor,
    give the command again.
    """
    import shutil
    import time

    import torch

    from ase_deeprelax.models import compiled
    from ase_deeprelax.models.store import load_shared

    if remove:
        folder = compiled.code_folder()
        if folder.exists():
            shutil.rmtree(folder)
        typer.echo(f'{folder} is removed')
        return
    network, start = load_shared(model, 'cpu', torch.float32), time.perf_counter()
    typer.echo(f'model {network.name!r} is compiled, which takes some minutes', err=True)
    path = compiled.compile_network(network)
    typer.echo(f'done in {time.perf_counter() - start:.0f} s: {path}')
