"""The ordinary ASE optimizer that goes on from a prediction."""

from pathlib import Path

import numpy as np
from ase.io.jsonio import read_json
from ase.optimize import RestartError
from vesin import NeighborList

from ase_deeprelax.errors import RefinementError, StructureError
from ase_deeprelax.freedom import unwrap

# Atoms closer than this are on one site, A: calculators drop such pairs, or divide by zero.
SAME_SITE = 1e-3


class Refinement:
    """Steps of an ordinary optimizer, whose state can be kept and whose numbers are finite.

    Parameters
    ----------
    target : ase.Atoms or ase.filters.Filter
    optimizer : callable
        ``optimizer(target, logfile=None)`` makes an ``ase.optimize.optimize.Optimizer``.
    keep : callable
        Called with the optimizer's state (what it would write into its own restart file)
        after each step.
    memory : optional
        Such a state to go on from.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase.calculators.emt import EMT
    >>> from ase.optimize import FIRE
    >>> atoms = bulk('Cu', a=3.7)
    >>> atoms.calc = EMT()
    >>> Refinement(atoms, FIRE, keep=lambda memory: None).name
    'FIRE'
    """

    def __init__(self, target, optimizer, keep, memory=None):
        self.atoms = unwrap(target)
        self.name = optimizer_name(optimizer)
        self.optimizer = optimizer(target, logfile=None)
        if memory is not None:
            self.optimizer.load = lambda: memory
            self.optimizer.read()
        self.optimizer.dump = keep

    def step(self, fmax):
        """Take one step.

        Raises
        ------
        RefinementError
            Forces or new positions are not finite; the atoms are as before the step.
        """
        atoms = self.atoms
        gradient = self.optimizer.optimizable.get_gradient()
        if not np.isfinite(gradient).all():
            raise RefinementError(
                f'{type(atoms.calc).__name__}: {_where(atoms, gradient)} is not finite; '
                'look for atoms on one site or elements that the calculator does not know. '
                'The atoms are as they were before this step'
            )
        cell, positions = atoms.cell.array.copy(), atoms.positions.copy()
        self.optimizer.fmax = fmax
        self.optimizer.step()
        if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell).all()):
            atoms.set_cell(cell, apply_constraint=False)
            atoms.set_positions(positions, apply_constraint=False)
            raise RefinementError(
                f'{self.name} proposed positions that are not finite; the atoms are as '
                'they were before this step. Use another optimizer or calculator'
            )


def check_refinable(atoms):
    """Refuse what no calculator can answer sensibly, molecules and slabs included.

    Parameters
    ----------
    atoms : ase.Atoms

    Raises
    ------
    StructureError
        No atoms, numbers that are not finite, a periodic cell without volume, two atoms on
        one site.

    Examples
    --------
    >>> from ase.build import molecule
    >>> check_refinable(molecule('H2O'))
    """
    if len(atoms) == 0:
        raise StructureError('0 atoms: there is nothing to relax')
    if not np.isfinite(atoms.cell).all():
        raise StructureError(f'cell {atoms.cell.tolist()} is not finite; set another one')
    for i, axis in np.argwhere(~np.isfinite(atoms.positions)):
        raise StructureError(
            f'{_label(atoms, i)}: position {"xyz"[axis]} is {atoms.positions[i, axis]}; '
            'set it to a number'
        )
    vectors = atoms.cell.array[atoms.pbc]
    if len(vectors) and np.linalg.matrix_rank(vectors) < len(vectors):
        raise StructureError(f'cell {atoms.cell.tolist()} has no volume; set another one')
    pairs = NeighborList(cutoff=0.1, full_list=False)
    first, second, distances = pairs.compute(
        points=np.asarray(atoms.positions, dtype=float),
        box=atoms.cell.complete().array,
        periodic=atoms.pbc,
        quantities='ijd',
    )
    for i, j in zip(
        first[distances < SAME_SITE], second[distances < SAME_SITE], strict=True
    ):
        raise StructureError(
            f'{_label(atoms, i)} and {_label(atoms, j)} are on one site; remove or move one'
        )


def optimizer_name(optimizer):
    """Name of a class, or of the class in a ``functools.partial``."""
    optimizer = getattr(optimizer, 'func', optimizer)
    return getattr(optimizer, '__name__', type(optimizer).__name__)


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


def _label(atoms, index):
    return f'atom {index} ({atoms.symbols[index]})'


def _where(atoms, gradient):
    row = int(np.flatnonzero(~np.isfinite(gradient))[0]) // 3
    return f'the force on {_label(atoms, row)}' if row < len(atoms) else 'the stress'
