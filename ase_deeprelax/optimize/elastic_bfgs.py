"""BFGS that knows from its first step how stiff a crystal is."""

from typing import ClassVar

import numpy as np
from ase.filters import UnitCellFilter
from ase.optimize import BFGS
from ase.optimize.cellawarebfgs import calculate_isotropic_elasticity_tensor
from ase.units import GPa

from ase_deeprelax.geometry.cell_filter import FreeCellFilter
from ase_deeprelax.geometry.motion import STRAIN_BASIS

# A usual solid: ASE's CellAwareBFGS begins with these too.
BULK_MODULUS, POISSON_RATIO = 145 * GPa, 0.3
# Of rotating the cell, eV/A^3: the energy does not feel that, so any large number does.
ROTATION = 1.0


class ElasticBFGS(BFGS):
    """BFGS whose first guess of the curvature is that of a usual solid.

    Quasi-Newton methods spend most of their steps on finding out how stiff things are.
    ASE's ``BFGS`` takes all coordinates for stretched bonds (70 eV/A^2), the cell included,
    and a cell filter multiplies strain by the number of atoms, so that a cell of 10 atoms
    moves by 2 % a step at most. Here atoms begin with 20 eV/A^2, strain with the elastic
    tensor of an isotropic solid (145 GPa, Poisson's ratio 0.3) times the volume, and strain
    is limited as such, to 0.2 a step. That is the idea of ASE's ``CellAwareBFGS``, for all
    of ``UnitCellFilter``, ``FrechetCellFilter`` and ``ExpCellFilter`` at any factor, and
    with ASE's usual criterion of convergence. Without a cell filter it is BFGS with the
    softer start.

    Parameters
    ----------
    atoms : ase.Atoms or ase.filters.Filter
    **kwargs
        As for ``ase.optimize.BFGS``; ``alpha`` is 20 eV/A^2 unless given.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase.calculators.emt import EMT
    >>> from ase.filters import FrechetCellFilter
    >>> atoms = bulk('Cu', cubic=True, a=3.9)
    >>> atoms.calc = EMT()
    >>> optimizer = ElasticBFGS(FrechetCellFilter(atoms), logfile=None)
    >>> bool(optimizer.run(fmax=0.01, steps=10))
    True
    """

    defaults: ClassVar = {**BFGS.defaults, 'alpha': 20.0}

    @property
    def _strain_factor(self):
        """What the filter multiplies strain by; None where there is no strain."""
        target = self.atoms
        if not isinstance(target, UnitCellFilter):
            return None
        return getattr(target, 'exp_cell_factor', target.cell_factor)

    def initialize(self):
        """Forget what was learnt: the guess again."""
        super().initialize()
        factor = self._strain_factor
        if factor is None:
            return
        stiffness = calculate_isotropic_elasticity_tensor(
            BULK_MODULUS, POISSON_RATIO, suppress_rotation=ROTATION
        ).reshape(9, 9)
        # Frozen components must not be coupled to free ones, or they would move with them.
        target = self.atoms
        free = np.diag(np.ravel(target.mask != 0).astype(float))
        volume = target.atoms.cell.volume
        if isinstance(target, FreeCellFilter):
            basis = STRAIN_BASIS.reshape(6, 9)
            free, volume = basis.T @ target.free_strain @ basis, target.volume
        held = np.eye(9) - free
        strain = free @ stiffness @ free * volume / factor**2
        self.H0[-9:, -9:] = strain + held @ self.H0[-9:, -9:] @ held

    def determine_step(self, dpos, steplengths):
        """The step, shortened where an atom or the strain would move too far."""
        factor = self._strain_factor
        if factor is not None:
            true = dpos.copy()
            true[-9:] /= factor
            steplengths = self.optimizable.gradient_norm(true)
        return super().determine_step(dpos, steplengths)
