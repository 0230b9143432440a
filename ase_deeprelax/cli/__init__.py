"""The command line: ``deeprelax relax | train | label | evaluate | compare | ...``."""

from ase_deeprelax.cli import compare, relax, train
from ase_deeprelax.cli import evaluate as measure
from ase_deeprelax.cli import info as about
from ase_deeprelax.cli.app import app, main

__all__ = ['app', 'main']

# In the order that `deeprelax --help` shows.
for command in (
    relax.relax,
    train.train,
    train.label,
    measure.evaluate,
    compare.compare,
    about.models,
    about.doctor,
):
    app.command()(command)
