"""``deeprelax train | label``: models from pairs, and pairs from a potential."""

import logging
import math
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ase_deeprelax.cli.app import INTERRUPTED, DeviceOption, pip_line
from ase_deeprelax.errors import MissingDependencyError, PairFileError


def train(
    config: Annotated[Path, typer.Argument(help='YAML file; see the README.')],
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
):
    """Train a model as CONFIG says."""
    with _training_tools():
        from ase_deeprelax.train.run import train as run
    folder = run(config, overrides=overrides or (), resume=resume, start=start)
    typer.echo(f"the model is in {folder}; use it as model='{folder}' or --model {folder}")


def label(
    out: Annotated[Path, typer.Argument(help='.jsonl file of pairs; is added to.')],
    *,
    potential: Annotated[
        str, typer.Option(help='NAME or NAME:WEIGHTS: tensornet, chgnet, sevennet, ...')
    ],
    seeds: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help='Relaxed structures (.jsonl.gz) to substitute elements in; repeatable.',
        ),
    ] = None,
    given: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help='Or: unrelaxed structures (.jsonl.gz) to relax as they are.',
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, help='How many inputs; needed with --seeds.'),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help='Of the substitutions.')] = 0,
    exclude: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True, dir_okay=False, help='File of formulas not to make; repeatable.'
        ),
    ] = None,
    hubbard: Annotated[
        bool,
        typer.Option(
            help='Make oxides and fluorides that the Materials Project computes with a '
            'Hubbard U, which most potentials do not know.'
        ),
    ] = True,
    start: Annotated[
        str, typer.Option(help='Model whose prediction relaxations start at, or none.')
    ] = 'default',
    fmax: Annotated[float, typer.Option(min=0, help='eV/A, on atoms and cell.')] = 0.05,
    steps: Annotated[int, typer.Option(min=1, help='At most so many for each.')] = 45,
    batch_atoms: Annotated[
        int, typer.Option(min=1, help='Atoms that go through the potential together.')
    ] = 160,
    compile_model: Annotated[
        bool, typer.Option('--compile', help='Compile a potential of matgl first.')
    ] = False,
    device: DeviceOption = 'auto',
):
    """Make training pairs: relax new structures with a potential.

    Interrupted, the same command goes on where it stopped. Inputs that came to nothing go
    into OUT with the suffix .failed.jsonl, each with its reason.
    """
    if out.suffix != '.jsonl':
        raise typer.BadParameter(f'OUT is {out}; it must end in .jsonl')
    if bool(seeds) == bool(given):
        raise typer.BadParameter('give either --seeds or --given')
    if seeds and count is None:
        raise typer.BadParameter('--seeds needs --count: substitutions never end')
    with _training_tools():
        from ase_deeprelax.train.label import label as run
    from ase_deeprelax.infer import resolve_device
    from ase_deeprelax.potentials.batched import batch_potential
    from ase_deeprelax.potentials.calculators import get_calculator

    calculator = get_calculator(potential, device=str(resolve_device(device)))
    # A potential that does not say what it knows refuses nothing.
    elements = frozenset(calculator.elements or range(1, 119))
    settings = {'excluded': _compositions(exclude or ()), 'hubbard': hubbard}
    if given:
        series = _structures(given, elements, settings)
        count = min(count or len(series), len(series))
    else:
        series = _substitutions(seeds, elements, {'seed': seed, **settings})
    try:
        with _log_on_stderr():
            counts = run(
                out,
                series,
                batch_potential(calculator, compile_model=compile_model),
                count=count,
                start=None if start == 'none' else start,
                fmax=fmax,
                steps=steps,
                batch_atoms=batch_atoms,
            )
    except KeyboardInterrupt as error:
        typer.echo('interrupted; the same command goes on from here', err=True)
        raise typer.Exit(INTERRUPTED) from error
    pairs, failed = counts['pairs'], counts['failed']
    typer.echo(f'{series.name}: {pairs} pairs in {out}, {failed} inputs came to nothing')


def _structures(file, elements, settings):
    """The series of given structures, of any size."""
    from ase_deeprelax.train.datamodule import read_seeds
    from ase_deeprelax.train.inputs import Structures

    name = file.name.removesuffix('.gz').removesuffix('.jsonl')
    return Structures(read_seeds(file, (), math.inf), elements, name, **settings)


def _substitutions(files, elements, settings):
    """The series of substitutions in seeds."""
    from ase_deeprelax.train.datamodule import read_seeds
    from ase_deeprelax.train.inputs import Recipe, Substitutions

    limit = Recipe.max_atoms
    parents = [parent for file in files for parent in read_seeds(file, (), limit)]
    series = Substitutions(parents, elements, **settings)
    if not series.parents:
        raise PairFileError(
            f'{", ".join(map(str, files))}: no structure of at most {limit} atoms and of '
            'elements that the potential knows; give other seeds'
        )
    return series


def _compositions(files):
    """The compositions that files of formulas name."""
    from ase_deeprelax.train.datamodule import read_compositions

    excluded = set()
    for file in files:
        try:
            excluded |= read_compositions(file)
        except (ValueError, KeyError) as error:
            raise PairFileError(f'{file}: not a list of formulas: {error!r}') from error
    return frozenset(excluded)


@contextmanager
def _training_tools():
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f'training needs {error.name}: {pip_line("train")}'
        ) from error


@contextmanager
def _log_on_stderr():
    """How far the work is, with the time."""
    log, handler = logging.getLogger('ase_deeprelax'), logging.StreamHandler()
    handler.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
