"""Writing a structure as a whole: no error and no Ctrl-C leaves it half written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.filters import Filter, StrainFilter


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All numbers of a structure that a relaxation changes.

    Made by `Snapshot.take`.

    Attributes
    ----------
    cell : (3, 3), A
    positions : (n_atoms, 3), A
    strain : (6,) or None
        The strain that an ``ase.filters.StrainFilter`` keeps; None for other targets.

    Examples
    --------
    >>> from ase.build import bulk
    >>> atoms = bulk('Cu')
    >>> before = Snapshot.take(atoms)
    >>> atoms.rattle(0.1)
    >>> before.restore(atoms)
    >>> bool((atoms.positions == 0).all())
    True
    """

    cell: np.ndarray
    positions: np.ndarray
    strain: np.ndarray | None = None

    @classmethod
    def take(cls, target: Atoms | Filter) -> Snapshot:
        """Copy what moves in atoms, or in the atoms inside a filter."""
        strain = target.strain.copy() if isinstance(target, StrainFilter) else None
        atoms = innermost(target)
        return cls(atoms.cell.array.copy(), atoms.positions.copy(), strain)

    def restore(self, target: Atoms | Filter) -> None:
        """Put the numbers back, bit for bit and past all constraints."""
        with interrupts_wait():
            if isinstance(target, StrainFilter) and self.strain is not None:
                target.strain[:] = self.strain
            assign(innermost(target), self.cell, self.positions)


def assign(atoms: Atoms, cell: np.ndarray, positions: np.ndarray) -> None:
    """Set the cell (3, 3) and the positions (n_atoms, 3) past all constraints, A.

    The array of positions stays the same object, as ASE's optimizers leave it.
    """
    with interrupts_wait():
        atoms.set_cell(cell, apply_constraint=False)
        current = atoms.arrays['positions']
        if current.flags.writeable and current.dtype == positions.dtype:
            current[...] = positions
        else:
            atoms.arrays['positions'] = positions.copy()


@contextmanager
def interrupts_wait() -> Generator[None]:
    """Let Ctrl-C wait until a block is over.

    Python delivers it to the main thread only; in other threads nothing has to wait.
    """
    former = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(former):
        yield
        return
    received = []
    signal.signal(signal.SIGINT, lambda *arguments: received.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
        if received:  # also where the block raised: a Ctrl-C is never lost
            former(*received[0])


def innermost(target: Any) -> Any:
    """The object inside all filters of ASE, which usually is the ``Atoms``."""
    while isinstance(target, Filter):
        target = target.atoms
    return target
