"""The command line: ``deeprelax relax | train | label | evaluate | compare | ...``."""

from ase_deeprelax.cli import about, compare, measure, relax, train
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
