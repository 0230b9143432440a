"""``deeprelax models | doctor``: what is here, and whether it works."""

from __future__ import annotations

import json
import platform
from importlib import metadata, util
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ase_deeprelax import __version__
from ase_deeprelax.cli.app import DeviceOption, ModelOption, pip_line
from ase_deeprelax.compare.tables import Table
from ase_deeprelax.errors import DeepRelaxError

if TYPE_CHECKING:
    from ase_deeprelax.models.base import RelaxationModel

# What each extra of pyproject.toml brings, by the names that are imported.
EXTRAS = {
    'train': ('lightning', 'pydantic', 'yaml', 'tensorboard'),
    'matgl': ('matgl',),
    'chgnet': ('chgnet',),
    'sevenn': ('sevenn',),
    'mace': ('mace',),
    'orb': ('orb_models',),
    'phonopy': ('phonopy',),
    'gpaw': ('gpaw',),
    'plot': ('jinja2', 'matplotlib'),
    'screen': ('pyarrow',),
    'aselmdb': ('ase_db_backends',),
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
# Errors of a set of pairs that are shown, A and A^3.
ERRORS = ('coord_mae', 'lattice_mae', 'volume_mae')


def models(
    name: Annotated[
        str | None,
        typer.Argument(metavar='NAME', help='A model or a folder; its card is shown.'),
    ] = None,
    *,
    as_json: Annotated[
        bool, typer.Option('--json', help='The whole cards, for other programs.')
    ] = False,
) -> None:
    """List the shipped models, or show the card of one."""
    from ase_deeprelax.models.folders import DEFAULT, available_models
    from ase_deeprelax.models.store import load_model

    if name is not None:
        model = load_model(name)
        if as_json:
            card = model.card.to_dict()
            if model.calibration is not None:
                card['calibration'] = model.calibration.to_dict()
            typer.echo(json.dumps(card | {'sha256': model.sha256}, indent=1))
        else:
            typer.echo('\n'.join([model.name, *_flat(_shown(model), '')]))
            typer.echo(
                'training: steps and minutes are those of the last stage. errors: mean / '
                'median, A and A^3. calibration: pairs, and shares in 90 % intervals. '
                '--json writes all entries'
            )
        return
    if as_json:
        typer.echo(json.dumps(available_models(), indent=1))
        return
    rows = []
    for known, config in available_models().items():
        model = load_model(known)
        size = sum(parameter.numel() for parameter in model.parameters())
        default = ' (default)' if known == DEFAULT else ''
        elements, digest = str(len(model.card.elements)), model.sha256[:12]
        rows.append(
            [known + default, config['architecture'], f'{size:,}', elements, digest]
        )
    titles = ['model', 'architecture', 'parameters', 'elements', 'sha256']
    typer.echo(Table(titles, rows, text_columns=(0, 1)).as_text())
    typer.echo('deeprelax models NAME shows the card: data, licences, errors')


def doctor(model: ModelOption = 'default', device: DeviceOption = 'auto') -> None:
    """Say what is installed and whether it works.

    The exit code is 1 if it does not.
    """
    import torch

    typer.echo(f'ase-deeprelax {__version__}, Python {platform.python_version()}')
    typer.echo('packages')
    for name in CORE:
        typer.echo(f'  {name:<16} {metadata.version(name)}')
    typer.echo('devices')
    threads = torch.get_num_threads()
    typer.echo(f'  {"cpu":<16} {threads} thread{"s" * (threads != 1)}')
    for index in range(torch.cuda.device_count()):
        typer.echo(f'  {f"cuda:{index}":<16} {torch.cuda.get_device_name(index)}')
    typer.echo('extras')
    for extra, names in EXTRAS.items():
        missing = [name for name in names if util.find_spec(name) is None]
        state = f'no {", ".join(missing)}: {pip_line(extra)}' if missing else 'installed'
        typer.echo(f'  {extra:<16} {state}')
    typer.echo('self-test')
    sound = _self_test(model, device)
    typer.echo('all is well' if sound else 'this installation does not work, see above')
    raise typer.Exit(0 if sound else 1)


def _shown(model: RelaxationModel) -> dict[str, Any]:
    """The entries of a card that are shown; empty ones are left out."""
    from ase.data import chemical_symbols

    card, calibration = model.card, model.calibration
    symbols = ' '.join(chemical_symbols[number] for number in card.elements)
    entries = {
        'sha256': model.sha256,
        'licence': card.licence,
        'elements': f'{symbols} ({len(card.elements)})' if symbols else '',
        'learned': list(card.learned),
        'members': list(card.members),
        'range': {name: list(limits) for name, limits in card.ranges.items()},
        'training': card.training,
        'errors': {name: _errors(found) for name, found in card.metrics.items()},
    }
    if calibration is not None:
        entries['calibration.fitted_on'] = calibration.fitted_on
        entries['calibration.potentials'] = list(calibration.potentials)
    return {key: value for key, value in entries.items() if value}


def _errors(found: Any) -> Any:
    """Errors on a set of pairs beside those of the inputs; other entries as they are."""
    try:
        model, inputs = found['all']['model'], found['all']['dummy']
        return {'pairs': found['n']} | {
            key: f'{_both(model[key])}, of the inputs {_both(inputs[key])}'
            for key in ERRORS
        }
    except (KeyError, TypeError):
        return found


def _both(error: dict[str, Any]) -> str:
    return f'{_inline(error["mean"])} / {_inline(error["median"])}'


def _flat(value: Any, key: str) -> list[str]:
    """Lines ``key.key value`` of nested dicts; a list of dicts has a line for each."""
    if isinstance(value, dict):
        dot = '.' if key else ''
        return [line for k, v in value.items() for line in _flat(v, f'{key}{dot}{k}')]
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        return [f'  {key:<40} {_inline(entry)}' for entry in value]
    return [f'  {key:<40} {_inline(value)}']


def _inline(value: Any) -> str:
    """A value on one line: numbers have four digits, and commas part entries."""
    if isinstance(value, dict):
        return ', '.join(
            f'{k} {_inline(v)}' if isinstance(v, float) else _inline(v)
            for k, v in value.items()
        )
    if isinstance(value, list):
        return ', '.join(map(_inline, value))
    if isinstance(value, float):
        return f'{value:.4g}'
    return '-' if value is None else str(value)


def _self_test(model: str, device: str) -> bool:
    """Relax a crystal as it stands and rotated; tell what came out."""
    import numpy as np
    from ase.build import bulk

    from ase_deeprelax.models.compiled import code_file, with_machine_code
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
    if code_file(predictor.model) is not None:
        compiled = with_machine_code(predictor.model) is not predictor.model
        state = 'there' if compiled else 'none, "deeprelax compile" would be faster'
        typer.echo(f'  machine code of {predictor.name!r}: {state}')
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
