"""The file from which an interrupted relaxation goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ase.io.jsonio import encode, read_json
from ase.optimize import RestartError

from ase_deeprelax.files import write_atomically

STATE = ('began', 'atoms', 'info', 'one_shot', 'stages')


def save_restart(path: str | Path, data: dict[str, Any]) -> None:
    """Replace the file; a process that dies meanwhile leaves the former one whole.

    Parameters
    ----------
    path : str or Path
    data : dict
        What ASE can write as JSON.
    """
    write_atomically(path, encode(data))


def load_restart(path: str | Path) -> dict[str, Any]:
    """What `Chain.state_dict` gave; ``RestartError`` where the file does not hold that."""
    try:
        with Path(path).open() as file:
            data = read_json(file, always_array=False)
        former = {'prediction', 'chain'} <= set(data)
        state = data if former else {name: data[name] for name in STATE}
    except Exception as error:
        raise RestartError(
            'Could not decode restart file as JSON.  You may need to delete the restart '
            f'file {path}'
        ) from error
    if former:
        raise RestartError(
            f'{path} was written by ase_deeprelax 0.1; finish that run with it, or delete '
            'the file, and the relaxation begins anew from the atoms as they are'
        )
    return state
