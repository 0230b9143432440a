"""The folder of a model, from its name or path; the models that are shipped."""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Any

from ase_deeprelax.data.one_line import one_line
from ase_deeprelax.errors import ModelError
from ase_deeprelax.models.config_file import CONFIG, WEIGHTS

SHIPPED = Path(__file__).parents[1] / 'weights'
# The shipped model that 'default' stands for: the one that measured best.
DEFAULT = 'ensemble'
PICKLES = ('.pt', '.pth', '.ckpt', '.pkl', '.bin')


def find_model(name: str | Path) -> Path:
    """Folder of a model given by name or path; ``ModelError`` where there is none."""
    if not isinstance(name, (str, os.PathLike)):
        raise ModelError(
            f'{name!r:.60} is no model; give a name, a folder, or a RelaxationModel '
            '(docs/own_model.md)'
        )
    shipped = [path.parent.name for path in _shipped_configs()]
    if isinstance(name, str):
        resolved = DEFAULT if name == 'default' else name
        if resolved in shipped:
            return SHIPPED / resolved
    path = Path(name)
    if path.suffix in PICKLES:
        raise ModelError(
            f'{path} is a pickle, and loading one can run any code it holds; give a folder '
            f'with {WEIGHTS} and {CONFIG}, as save_model writes it'
        )
    try:
        is_model, exists = (path / CONFIG).is_file(), path.exists()
    except OSError as error:  # no file can have this name
        raise ModelError(f'{str(name)[:80]!r} is no model: {error.strerror}') from error
    if is_model:
        return path
    if exists:
        raise ModelError(
            f'{path} is not a model: there is no {CONFIG} in it; give the folder that '
            f'holds {WEIGHTS} and {CONFIG}'
        )
    near = difflib.get_close_matches(str(name), shipped, n=3, cutoff=0.4)
    hint = f'did you mean {" or ".join(map(repr, near))}? ' if near else ''
    raise ModelError(
        f'no model or folder is called {str(name)!r}; {hint}'
        f'available: {", ".join(shipped) or "none"}'
    )


def available_models() -> dict[str, dict[str, Any]]:
    """The shipped models: a dict from name to the content of its config, sorted by name.

    Examples
    --------
    >>> list(available_models())
    ['deeprelax', 'deeprelax-2', 'e3relax-h2', 'ensemble']
    """
    found = {path.parent.name: json.loads(path.read_text()) for path in _shipped_configs()}
    return one_line(found, f'<configs of {", ".join(found)}>')


def _shipped_configs() -> list[Path]:
    return sorted(SHIPPED.glob(f'*/{CONFIG}'))
