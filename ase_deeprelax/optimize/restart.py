"""The file from which an interrupted relaxation goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import compare_atoms
from ase.io.jsonio import encode, read_json
from ase.optimize import RestartError

from ase_deeprelax.files import write_atomically
from ase_deeprelax.geometry.constraints import constraint_labels

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


def near(one: Atoms, two: Atoms) -> bool:
    """Whether two structures differ by no more than the digits of a file, 1e-5 A."""
    return np.allclose(one.cell.array, two.cell.array, rtol=0, atol=1e-5) and np.allclose(
        one.positions, two.positions, rtol=0, atol=1e-5
    )


def held_atoms(atoms: Atoms) -> list[int]:
    """For each atom whether and how constraints hold it, see `constraint_labels`."""
    return constraint_labels(atoms, np.ones(len(atoms), dtype=bool)).tolist()


def check_same_input(began: Atoms, held: list[int], atoms: Atoms) -> None:
    """Refuse atoms that are held, or computed, otherwise than those a run began with.

    Parameters
    ----------
    began : ase.Atoms
    held : list of int
        The result of `held_atoms` for them.
    atoms : ase.Atoms

    Raises
    ------
    RestartError
    """
    changed = {'initial_magmoms', 'initial_charges'} & set(compare_atoms(began, atoms))
    if changed or held != held_atoms(atoms):
        raise RestartError(
            'the restart file is of atoms with other constraints, initial magnetic moments '
            'or charges: set the same ones, or delete the file or name another one'
        )
