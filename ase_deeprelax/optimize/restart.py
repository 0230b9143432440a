"""The file from which an interrupted relaxation goes on."""

import os
from pathlib import Path

from ase.io.jsonio import read_json, write_json
from ase.optimize import RestartError


def save_restart(path, data):
    """Replace the file; a process that dies meanwhile leaves the former one whole.

    Parameters
    ----------
    path : str or Path
    data : dict
        What ASE can write as JSON.
    """
    path = Path(path)
    part = path.with_name(f'{path.name}.part')
    with part.open('w') as file:
        write_json(file, data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def load_restart(path, names):
    """The named entries of a restart file; ``RestartError`` where it is not one of ours."""
    try:
        with Path(path).open() as file:
            data = read_json(file, always_array=False)
        return {name: data[name] for name in names}
    except Exception as error:
        raise RestartError(
            'Could not decode restart file as JSON.  You may need to delete the restart '
            f'file {path}'
        ) from error
