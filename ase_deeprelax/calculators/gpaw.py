"""GPAW for relaxations; importing this file needs GPAW."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_changes, kpts2sizeandoffsets
from gpaw.calculator import GPAW


class SteadyGPAW(GPAW):
    """GPAW for structures that move: its grid of k-points stays, its symmetry may go.

    Parameters
    ----------
    kpts : dict or other
        With a ``density``, the grid is chosen for the first cell and kept after small
        changes.
    **settings
        As for ``gpaw.GPAW``.
    """

    atoms: Any
    parameters: Any

    def __init__(self, *, kpts: Any, **settings: Any):
        super().__init__(kpts=kpts, **settings)
        self._wanted = kpts
        self._held: tuple[np.ndarray, np.ndarray] | None = None

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Any = ('energy',),
        system_changes: Any = all_changes,
    ) -> None:
        """As GPAW, again from the start where the symmetry found first is broken."""
        atoms = self.atoms if atoms is None else atoms
        if isinstance(self._wanted, Mapping) and 'density' in self._wanted:
            self._hold_grid(atoms)
        try:
            super().calculate(atoms, properties, system_changes)
        except RuntimeError as error:
            if 'Broken symmetry' not in str(error):
                raise
            # While only positions change it holds on to the symmetry it found first.
            super().calculate(atoms, properties, all_changes)

    def _hold_grid(self, atoms: Atoms) -> None:
        # Another grid is another energy surface: one point more or less, and a metal goes
        # uphill by meV in a relaxation.
        size = kpts2sizeandoffsets(atoms=atoms, **self._wanted)[0]
        numbers, held = self._held or ((), size)
        if not np.array_equal(numbers, atoms.numbers) or abs(size - held).max() > 1:
            self._held = atoms.numbers.copy(), size
            gamma = self._wanted.get('gamma', False)
            # GPAW reads this when the cell changes, and it has.
            self.parameters['kpts'] = {'size': tuple(map(int, size)), 'gamma': gamma}
