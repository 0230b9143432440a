"""The command line: ``deeprelax relax | train | label | evaluate | compare | ...``."""

from ase_deeprelax.cli import compare, evaluate, info, relax, train
from ase_deeprelax.cli.app import app, main

__all__ = ['app', 'main']

# In the order that `deeprelax --help` shows.
for command in (
    relax.relax,
    train.train,
    train.label,
    evaluate.evaluate,
    compare.compare,
    info.models,
    info.doctor,
):
    app.command()(command)
