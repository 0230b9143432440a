"""The command line: ``deeprelax relax | screen | train | evaluate | compare | ...``."""

from ase_deeprelax.cli import (
    calibrate,
    compare,
    compilation,
    evaluate,
    info,
    label,
    relax,
    results,
    screen,
    select,
    train,
)
from ase_deeprelax.cli.app import app, main

__all__ = ['app', 'main']

# In the order that `deeprelax --help` shows.
for command in (
    relax.relax,
    screen.screen,
    results.results,
    train.train,
    label.label,
    evaluate.evaluate,
    calibrate.calibrate,
    select.select,
    compare.compare,
    compilation.compile_,
    info.models,
    info.doctor,
):
    # A screen says itself what to do where the shell has made many files of one pattern.
    extra = {'allow_extra_args': command is screen.screen}
    app.command(command.__name__.removesuffix('_'), context_settings=extra)(command)
