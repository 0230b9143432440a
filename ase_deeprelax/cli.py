"""The command line: ``deeprelax relax | train | evaluate | models | doctor``."""

import json
import os
import platform
import warnings
from collections import Counter
from enum import StrEnum
from importlib import metadata, util
from pathlib import Path
from typing import Annotated

import typer

from ase_deeprelax._version import __version__
from ase_deeprelax.errors import DeepRelaxError, MissingDependencyError

# What each extra of pyproject.toml brings, by the names that are imported.
EXTRAS = {
    'train': ('lightning', 'pydantic', 'yaml', 'tensorboard'),
    'matgl': ('matgl',),
    'chgnet': ('chgnet',),
    'sevenn': ('sevenn',),
    'phonopy': ('phonopy',),
    'plot': ('matplotlib',),
}
CORE = (
    'ase',
    'numpy',
    'pymatgen',
    'safetensors',
    'scipy',
    'spglib',
    'torch',
    'torch_geometric',
    'vesin',
)
# How far the self-test lets a rotated crystal's answer differ, A.
ROTATION_TOLERANCE = 1e-4


class Commands(typer.core.TyperGroup):
    """Shows this package's errors as one message and exit code 1, without a traceback."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except DeepRelaxError as error:
            typer.echo(f'Error: {error}', err=True)
            raise typer.Exit(1) from error


class Symmetry(StrEnum):
    """What a relaxation does with the space group of its input."""

    KEEP = 'keep'
    FREE = 'free'


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help='One-shot relaxation of crystals, with an uncertainty.',
)

ModelOption = Annotated[str, typer.Option(help='Name of a shipped model, or a folder.')]
DeviceOption = Annotated[str, typer.Option(help='auto, cpu, cuda, cuda:1, ...')]


def main():
    """Entry point of the ``deeprelax`` script."""
    app(prog_name='deeprelax')


def _show_version(wanted: bool):
    if wanted:
        typer.echo(f'ase-deeprelax {__version__}')
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option('--version', callback=_show_version, is_eager=True, help='Version.'),
    ] = False,
):
    pass


@app.command()
def relax(
    files: Annotated[list[Path], typer.Argument(help='Anything that ase.io reads.')],
    out: Annotated[
        Path,
        typer.Option(
            help='Folder for NAME.cif and NAME.extxyz of each file, or, with a suffix, '
            'one file for all structures.'
        ),
    ] = Path('relaxed'),
    model: ModelOption = 'default',
    symmetry: Annotated[
        Symmetry, typer.Option(help='keep the space group of each input, or let it go.')
    ] = Symmetry.KEEP,
    device: DeviceOption = 'auto',
):
    """Relax all structures of FILES in one shot.

    CIF cannot hold the uncertainties; extxyz keeps them per structure and per atom. What
    cannot be read or relaxed is reported, the others go on, and the exit code is 1.
    """
    from ase.io import write

    from ase_deeprelax.predict import Predictor

    places = _places(files)
    targets = _targets(places, out)
    frames, problems = _read(places)
    _check_format(out, len(frames))
    predictor = Predictor(model, device=device, symmetry=symmetry)
    with warnings.catch_warnings():
        # Said in the table, for each structure.
        warnings.filterwarnings('ignore', '.*outside the training range')
        results = predictor.relax([atoms for *_, atoms in frames], progress=bool(frames))
    rows, outputs = [], {}
    for (file, frame, _), result in zip(frames, results, strict=True):
        if not result.ok:
            problems.append(f'{file}{frame}: {result.problem}')
            continue
        rows.append((f'{places[file]}{frame}', result))
        for target in targets[file]:
            outputs.setdefault(target, []).append(result.atoms)
    for target, structures in outputs.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        write(target, structures)
    if rows:
        typer.echo(_relaxation_table(rows))
        typer.echo(f'wrote {out}' + ('' if _is_file(out) else f': {len(outputs)} files'))
    for problem in problems:
        typer.echo(f'failed: {problem}', err=True)
    if problems:
        raise typer.Exit(1)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help='YAML file; see the README.')],
    resume: Annotated[Path | None, typer.Option(help='Checkpoint to go on from.')] = None,
    start: Annotated[
        str | None, typer.Option(help='Model whose weights to start from.')
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option('--set', help='KEY.KEY=VALUE, on top of CONFIG.')
    ] = None,
):
    """Train a model as CONFIG says."""
    try:
        from ase_deeprelax.train.run import train as run
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f'training needs {error.name}: {_pip_line("train")}'
        ) from error
    folder = run(config, overrides=overrides or (), resume=resume, start=start)
    typer.echo(f"the model is in {folder}; use it as model='{folder}' or --model {folder}")


@app.command()
def evaluate(
    pairs: Annotated[
        Path, typer.Argument(help='Pairs of unrelaxed and relaxed structures.')
    ],
    *,
    model: ModelOption = 'default',
    json_file: Annotated[
        Path | None, typer.Option('--json', help='Write the figures there too.')
    ] = None,
    split: Annotated[
        str | None, typer.Option(help='Only pairs of this split: train, val or test.')
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help='Only this many pairs, spread over the file.')
    ] = None,
    device: DeviceOption = 'auto',
):
    """Measure a model on PAIRS with known answers.

    Beside it stand two answers that cost nothing: the input as it is (dummy), and scaled
    isotropically to the volume that its elements have on average (scaled dummy).
    """
    from ase_deeprelax.compare.evaluate import evaluate as measure
    from ase_deeprelax.compare.evaluate import table
    from ase_deeprelax.data.pairs import read_pairs

    chosen = read_pairs(pairs, split)
    if limit is not None and limit < len(chosen):
        chosen = [chosen[k * len(chosen) // limit] for k in range(limit)]
    result = measure(chosen, model, device=device, progress=True)
    typer.echo(table(result))
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=2) + '\n')


@app.command()
def models():
    """List the shipped models, what they saw and what was measured."""
    from ase_deeprelax.weights.store import DEFAULT, available_models, load_model

    rows, notes = [], []
    for name, card in available_models().items():
        size = sum(parameter.numel() for parameter in load_model(name).parameters())
        default = ' (default)' if name == DEFAULT else ''
        elements, digest = str(len(card['elements'])), card['sha256'][:12]
        rows.append([name + default, card['architecture'], f'{size:,}', elements, digest])
        notes += [f'\n{name}', *_flat(card.get('training', {}), 'training')]
        notes += _flat(card.get('metrics', {}), 'metrics')
    titles = ['model', 'architecture', 'parameters', 'elements', 'sha256']
    typer.echo('\n'.join([_table(titles, rows, left=2), *notes]))


@app.command()
def doctor(model: ModelOption = 'default', device: DeviceOption = 'auto'):
    """Say what is installed and whether it works.

    The exit code is 1 if it does not.
    """
    import torch

    typer.echo(f'ase-deeprelax {__version__}, Python {platform.python_version()}')
    typer.echo('packages')
    for name in CORE:
        typer.echo(f'  {name:<16} {metadata.version(name)}')
    typer.echo('devices')
    typer.echo(f'  {"cpu":<16} {torch.get_num_threads()} threads')
    for index in range(torch.cuda.device_count()):
        typer.echo(f'  {f"cuda:{index}":<16} {torch.cuda.get_device_name(index)}')
    typer.echo('extras')
    for extra, names in EXTRAS.items():
        missing = [name for name in names if util.find_spec(name) is None]
        state = f'no {", ".join(missing)}: {_pip_line(extra)}' if missing else 'installed'
        typer.echo(f'  {extra:<16} {state}')
    typer.echo('self-test')
    sound = _self_test(model, device)
    typer.echo('all is well' if sound else 'this installation does not work, see above')
    raise typer.Exit(0 if sound else 1)


def _places(files):
    """Each file's path below the folder that holds them all."""
    # Not resolve(): a link keeps its own name; not absolute(): '..' has to go.
    paths = {file: Path(os.path.abspath(file)) for file in files}  # noqa: PTH100
    top = os.path.commonpath([path.parent for path in paths.values()])
    return {file: path.relative_to(top) for file, path in paths.items()}


def _targets(places, out):
    """The files that the structures of each input file go to."""
    if _is_file(out):
        targets = {file: [out] for file in places}
    else:
        # x.cif and x.vasp side by side keep their suffixes, all others lose them.
        counts = Counter(place.with_suffix('') for place in places.values())
        targets = {}
        for file, place in places.items():
            stem = place.with_suffix('')
            name = stem if counts[stem] == 1 else place
            targets[file] = [out / f'{name}.cif', out / f'{name}.extxyz']
    inputs = {file.resolve() for file in places}
    for target in (target for group in targets.values() for target in group):
        if target.resolve() in inputs:
            raise typer.BadParameter(f'{target} is one of the inputs; choose another --out')
    return targets


def _is_file(out):
    return bool(out.suffix) and not out.is_dir()


def _check_format(out, n_structures):
    """Whether ASE can write that many structures to one file ``out``; before the work."""
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    if not _is_file(out):
        return
    try:
        form = ioformats.get(filetype(str(out), read=False))
    except UnknownFileTypeError:
        form = None
    if form is None or not form.can_write:
        raise typer.BadParameter(
            f'--out {out}: ase.io writes no format of suffix {out.suffix!r}; for a folder '
            'of that name, make the folder first'
        )
    if form.single and n_structures > 1:
        raise typer.BadParameter(
            f'--out {out}: {form.name} holds one structure, there are {n_structures}; '
            'use .extxyz, .traj or a folder'
        )


def _read(files):
    """``(file, '' or '@index', atoms)`` of each structure, and what could not be read."""
    from ase.io import read

    frames, problems = [], []
    for file in files:
        try:
            structures = read(file, index=':')
        # Each of ASE's many readers has its own idea of what to raise.
        except Exception as error:  # noqa: BLE001
            reason = f'{type(error).__name__}: {error}'.rstrip(': ')
            problems.append(f'{file}: cannot be read ({reason})')
            continue
        if not structures:
            problems.append(f'{file}: holds no structure')
        for index, atoms in enumerate(structures):
            frames.append((file, f'@{index}' if len(structures) > 1 else '', atoms))
    return frames, problems


def _relaxation_table(rows):
    titles = ['structure', 'formula', 'atoms', 'V0/A^3', 'V/A^3', 'dmax/A', 'sigma/A', 'ms']
    table = [_relaxation_row(name, result) for name, result in rows]
    return _table([*titles, ''], table, left=2)


def _relaxation_row(name, result):
    before, after = result.initial, result.atoms
    return [
        name,
        before.get_chemical_formula('metal', empirical=True),
        str(len(before)),
        f'{before.cell.volume:.2f}',
        f'{after.cell.volume:.2f}',
        f'{result.dmax:.3f}',
        f'{result.sigma:.3f}',
        f'{1e3 * sum(result.timings.values()):.0f}',
        f'! {result.ood}' if result.ood else '',
    ]


def _table(titles, rows, *, left):
    """Text in columns, the first ``left`` of them flush left."""
    rows = [titles, *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        padded = [c.ljust(w) if k < left else c.rjust(w) for k, (c, w) in enumerate(cells)]
        lines.append('  '.join(padded).rstrip())
    return '\n'.join(lines)


def _flat(value, key):
    """Lines ``key.key value`` of nested dicts and lists."""
    if isinstance(value, dict):
        return [line for k, v in value.items() for line in _flat(v, f'{key}.{k}')]
    if isinstance(value, float):
        value = f'{value:.4g}'
    elif isinstance(value, list):
        value = '; '.join(
            ', '.join(map(str, x.values())) if isinstance(x, dict) else str(x)
            for x in value
        )
    return [f'  {key:<40} {value}']


def _pip_line(extra):
    return f"pip install 'ase-deeprelax[{extra}]'"


def _self_test(model, device):
    """Relax a crystal as it stands and rotated; tell what came out."""
    import numpy as np
    from ase.build import bulk

    from ase_deeprelax.predict import Predictor

    # Strained and pulled out of symmetry, so that there is something to say.
    atoms = bulk('NaCl', 'rocksalt', a=5.9, cubic=True)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.02 * np.eye(3, k=1)), scale_atoms=True)
    atoms.rattle(0.08, seed=0)
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    rotated = atoms.copy()
    rotated.set_cell(atoms.cell.array @ rotation, scale_atoms=True)
    try:
        predictor = Predictor(model, device=device)
        one, two = predictor.relax([atoms, rotated], on_bad='raise')
    except DeepRelaxError as error:
        typer.echo(f'  FAILED: {error}')
        return False
    error = np.abs(one.atoms.positions @ rotation - two.atoms.positions).max()
    sound = bool(error < ROTATION_TOLERANCE)
    typer.echo(
        f'  model {predictor.name!r} on {predictor.device}: NaCl relaxed, dmax '
        f'{one.dmax:.3f} A, volume x {one.volume_ratio:.3f}, sigma {one.sigma:.3f} A'
    )
    typer.echo(
        f'  {"ok" if sound else "FAILED"}: rotated, its answer differs by {error:.1e} A, '
        f'allowed is {ROTATION_TOLERANCE:g} A'
    )
    return sound
