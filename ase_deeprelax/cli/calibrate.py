"""``deeprelax calibrate``: how large the errors of a model are, for structures of yours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ase_deeprelax.cli.app import DeviceOption, ModelOption, SplitOption


def calibrate(
    pairs: Annotated[
        list[Path],
        typer.Argument(
            metavar='PAIRS',
            help='Pairs that the model was never trained on; 30 or more each.',
        ),
    ],
    out: Annotated[Path, typer.Option(help='Folder for the calibrated model.')],
    *,
    model: ModelOption = 'default',
    split: SplitOption = None,
    training: Annotated[
        list[Path] | None,
        typer.Option(
            help='Pairs that the model was trained on, which tell what it knows; those of '
            'the splits val and test are left out. Repeatable. Default: as in its present '
            'calibration, or else PAIRS, with a warning.'
        ),
    ] = None,
    potentials: Annotated[
        list[str] | None,
        typer.Option(
            '--potential',
            help='Also fit how far to trust NAME or NAME:WEIGHTS beside the model, for '
            'guided relaxations and for --verify; repeatable.',
        ),
    ] = None,
    device: DeviceOption = 'auto',
) -> None:
    """Fit expected errors and intervals of a model to pairs.

    The intervals are fitted so that they hold 90 % of the true values of PAIRS. A copy of
    the model with the new calibration is written to --out. The table says how often the
    intervals hold the true values, when each half of a file is compared with a fit to the
    other half.
    """
    from dataclasses import replace

    from ase_deeprelax.calculators.registry import get_calculator
    from ase_deeprelax.compare.calibrate import FOOTNOTE, coverage_table
    from ase_deeprelax.compare.calibrate import calibrate as fit
    from ase_deeprelax.compare.calibrate_potentials import calibrate_potential
    from ase_deeprelax.compare.named_calculators import by_name
    from ase_deeprelax.data.pairs import TRAINED_ON, read_pairs
    from ase_deeprelax.errors import warn
    from ase_deeprelax.files import check_writable, write_atomically
    from ase_deeprelax.models.calibration import CALIBRATION
    from ase_deeprelax.models.config_file import CONFIG, WEIGHTS
    from ase_deeprelax.models.folders import find_model
    from ase_deeprelax.models.store import load_model
    from ase_deeprelax.predict import Predictor

    folder = find_model(model)
    elsewhere = out.resolve() != folder.resolve()
    if elsewhere and any((out / name).exists() for name in (CONFIG, WEIGHTS)):
        raise typer.BadParameter(
            f'--out {out} holds a model, or a part of one; choose another folder'
        )
    check_writable(out / CALIBRATION)
    asked = [get_calculator(text, device=device) for text in potentials or ()]
    calculators = by_name('--potential', [one.name for one in asked], asked)
    names = [path.name for path in pairs]
    files = {
        path.name if names.count(path.name) == 1 else str(path): [
            pair for pair in read_pairs(path, split) if pair.ok
        ]
        for path in pairs
    }
    known = None
    if training:
        known = (
            pair.unrelaxed
            for path in training
            for pair in read_pairs(path, TRAINED_ON, ok_only=True)
        )
    predictor = Predictor(load_model(model), device=device)
    if not training and predictor.model.calibration is None:
        warn(
            'PAIRS take the place of what the model was trained on, so that much that it '
            'has learned will be marked as out of distribution; give the pairs of its '
            'training with --training'
        )
    found = fit(files, predictor, known=known)
    table = coverage_table(found)
    typer.echo(table.as_text())
    if any(None in row for row in table.rows):
        typer.echo(FOOTNOTE)
    fitted = dict(found.potentials)
    everything = [pair for one in files.values() for pair in one]
    for name, calculator in calculators.items():
        typer.echo(f'\n{name}, strength of the prediction beside it')
        fitted[name] = calibrate_potential(
            everything, predictor, calculator, tell=typer.echo
        )
    out.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, CONFIG):
        if elsewhere and (folder / name).exists():
            write_atomically(out / name, (folder / name).read_bytes())
    replace(found, potentials=fitted).save(out, predictor.sha256)
    typer.echo(f'\nwrote {out}')
