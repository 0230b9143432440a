"""The command line: ``deeprelax relax | screen | train | evaluate | compare | ...``."""

from ase_deeprelax.cli import compare, evaluate, info, relax, results, screen, train
from ase_deeprelax.cli.app import app, main

__all__ = ['app', 'main']

# In the order that `deeprelax --help` shows.
for command in (
    relax.relax,
    screen.screen,
    results.results,
    train.train,
    train.label,
    evaluate.evaluate,
    compare.compare,
    info.models,
    info.doctor,
):
    app.command()(command)
