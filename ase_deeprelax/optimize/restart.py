"""The file from which an interrupted relaxation goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import compare_atoms
from ase.filters import Filter
from ase.io.jsonio import encode, read_json
from ase.optimize import RestartError

from ase_deeprelax.calculators.attached import calculator_name
from ase_deeprelax.files import write_atomically
from ase_deeprelax.geometry.constraints import constraint_labels
from ase_deeprelax.geometry.degrees_of_freedom import unwrap
from ase_deeprelax.geometry.free_strain import plain_relax_cell
from ase_deeprelax.optimize.ase_optimizers import optimizer_name
from ase_deeprelax.optimize.guide import bare_calculator
from ase_deeprelax.optimize.stage import Stage

STATE = ('began', 'atoms', 'info', 'one_shot', 'stages')


def save_restart(path: str | Path, data: dict[str, Any]) -> None:
    """Replace the file; a process that dies meanwhile leaves the former one whole.

    Parameters
    ----------
    path : str or Path
        Its folder is made.
    data : dict
        What ASE can write as JSON.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
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


def stage_title(stage: Stage, optimizer: Callable, moving: Atoms | Filter) -> str:
    """Calculator, optimizer and cell of a stage, as restart files name them.

    Parameters
    ----------
    stage : Stage
    optimizer : callable
        Of a stage that has none.
    moving : ase.Atoms or ase.filters.Filter
        What relaxes in stages that do not choose for themselves.
    """
    calculator, moves = stage.name, type(moving).__name__
    if stage.calculator is None:
        calculator = calculator_name(bare_calculator(unwrap(moving).calc))
    if callable(stage.relax_cell):
        moves = optimizer_name(stage.relax_cell)
    elif stage.relax_cell is not None:
        moves = f'relax_cell={plain_relax_cell(stage.relax_cell)}'
    return f'{calculator} with {optimizer_name(stage.optimizer or optimizer)} and {moves}'


def check_same_stage(stages: dict[str, Any], here: str) -> None:
    """Refuse a restart file that stopped in a stage which is another one here.

    Parameters
    ----------
    stages : dict
        Of `Chain.state_dict`.
    here : str
        The `stage_title` of the stage with that number here; '' where there is none.

    Raises
    ------
    RestartError
    """
    if stages.get('title', here) != here:
        raise RestartError(
            f'the restart file stopped in stage {stages["index"] + 1}, {stages["title"]}; '
            f'here that is {here or "not there"}: refine as before, or delete the file or '
            'name another one'
        )
