"""BFGS that knows from its first step how stiff a structure is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.constraints import FixSymmetry
from ase.filters import UnitCellFilter
from ase.optimize import BFGS

from ase_deeprelax.geometry.cell_filter import FreeCellFilter
from ase_deeprelax.geometry.constraints import SUPPORTED
from ase_deeprelax.geometry.motion import STRAIN_BASIS

# The spring between two atoms, k(r) = STIFFNESS exp((LENGTH - r) / DECAY): eV/A^2, A, A.
STIFFNESS, LENGTH, DECAY = 35.0, 1.5, 0.42
# Springs are summed up to this distance, A.
CUTOFF = 5.0
# A spring's stiffness against a move across it, as a part of that along it.
ACROSS = 0.1
# What each atom and, per volume, each strain has besides, so that nothing is free: eV/A^2
# and eV/A^3.
ON_SITE, ON_STRAIN = 1.0, 0.03
# The energy does not feel a rotation of the cell: any large number does, eV/A^3.
ROTATION = 1.0
# The first step that is measured may multiply the whole model by this much at most.
MOST_SCALING = 2.0
# A step after which the energy is higher by more than this is undone, eV, unless no atom
# moved farther than the second number, A (and no strain): then it is noise.
RISE, SHORT = 0.05, 0.01
# A step shorter than this says nothing about the curvature, A.
SAME_PLACE = 1e-7

STRAINS = STRAIN_BASIS.reshape(6, 9)
SYMMETRIC = STRAINS.T @ STRAINS


class ElasticBFGS(BFGS):
    """BFGS that begins with a model of the curvature, of bonds and of strain.

    Quasi-Newton methods spend most of their steps on finding out how stiff things are.
    ASE's ``BFGS`` takes all coordinates for stretched bonds (70 eV/A^2), the cell included,
    and a cell filter multiplies strain by the number of atoms, so that a cell of 10 atoms
    moves by 2 % a step at most. Here each pair of atoms at a distance r below 5 A has a
    spring that is stiffer the shorter it is,

        k(r) = 35 eV/A^2 exp((1.5 A - r) / 0.42 A),

    and the first Hessian is the second derivative of

        E = 1/2 sum over pairs of k(r) (0.9 (n . d)^2 + 0.1 d . d),
        d = u_j - u_i + strain r_ij,

    with moves u of the atoms, the strain of the cell and unit vectors n along the pairs. So
    strain, atoms and the coupling between them are of one piece, and diamond, a
    molecule in its crystal and a soft metal all begin at their own stiffness. The first
    step, at most half as long as the others may be, measures the scale of the whole model,
    by 2 or 1/2 at most. A step after which the energy is higher by more than 0.05 eV is
    undone: the next one starts where that one did, knows its curvature, and is at most half
    as long. Each step costs one evaluation.

    Exponential springs are the model Hessian of Fischer and Almlof, J. Phys. Chem. 96, 9768
    (1992), and of ASE's preconditioner ``Exp`` (Packwood et al., J. Chem. Phys. 144, 164109
    (2016)). The latter is not used here: it takes one distance of nearest neighbours for
    all pairs, so that the bonds of a molecule and those between molecules come out wrong,
    measures its stiffness with additional evaluations, and leaves out the coupling between
    strain and atoms. The constants here were fitted to second derivatives of potentials for
    metals, salts, covalent and molecular crystals.

    It works with atoms and with ``UnitCellFilter``, ``FrechetCellFilter`` and
    ``ExpCellFilter`` at any factor. With everything else that ASE can optimize (a path of
    images, some of the atoms), and with ``alpha``, it is ASE's ``BFGS``.

    Parameters
    ----------
    atoms : ase.Atoms or ase.filters.Filter
        With a calculator; a cell filter lets the cell relax too.
    **kwargs
        As for ``ase.optimize.BFGS``. ``maxstep``, default 0.2, limits both the move of an
        atom, A, and the strain. ``alpha``, eV/A^2, replaces the model; default none.

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

    # ASE does not say that this attribute belongs to the class.
    defaults: ClassVar = {**BFGS.defaults, 'alpha': None}  # ty: ignore[incompatible-attribute-override]

    def initialize(self) -> None:
        """Forget what was learnt: the model again."""
        self.energy0: float | None = None
        self.reached: np.ndarray | None = None
        self.asked: tuple[Any, ...] | None = None
        self.scaled = False
        self.hessian: Any = None  # a matrix from the first step on, eV/A^2
        if self._has_model:
            self.pos0 = self.forces0 = None
            return
        if self.alpha is None:
            self.alpha = BFGS.defaults['alpha']
        super().initialize()

    def read(self) -> None:
        """Go on from a restart file, also from one that ASE's ``BFGS`` wrote."""
        if not self._has_model:
            super().read()
            return
        data = list(self.load())
        self.energy0 = self.reached = self.asked = None
        self.scaled = True
        if isinstance(data[-1], dict):
            vars(self).update(data.pop())
        self.hessian, self.pos0, self.forces0, self.maxstep = data[:4]
        if isinstance(self.atoms, UnitCellFilter):
            self.atoms.orig_cell = data[4]

    def run(self, *args: Any, **kwargs: Any) -> bool:
        """As ASE does. Energies of an earlier run with another calculator do not count."""
        self._compare_with_last_run()
        return super().run(*args, **kwargs)

    def irun(self, *args: Any, **kwargs: Any) -> Iterator[bool]:
        """See `run`."""
        self._compare_with_last_run()
        return super().irun(*args, **kwargs)

    def step(self, gradient: np.ndarray | None = None) -> None:
        """Take one step, or undo the last one and take a shorter one."""
        if not self._has_model:
            super().step(gradient)
            return
        gradient = np.ravel(self._get_gradient(gradient))
        x, energy = np.ravel(self.optimizable.get_x()), self.optimizable.get_value()
        longest = self.maxstep / 2 if self.pos0 is None else self.maxstep
        if self._climbed(x, energy):
            longest = self._length(x - self.pos0) / 2
            self.update(x, -gradient, self.pos0, self.forces0)
            x, gradient = np.array(self.pos0), -np.array(self.forces0)
        else:
            self.energy0 = float(np.asarray(energy).item())
        step = self._newton_step(x, gradient)
        step *= min(1.0, longest / max(self._length(step), 1e-12))
        self.optimizable.set_x(x + step)
        self.reached = np.ravel(self.optimizable.get_x())
        learnt: list[Any] = [self.hessian, self.pos0, self.forces0, self.maxstep]
        if isinstance(self.atoms, UnitCellFilter):
            learnt.append(self.atoms.orig_cell)
        names = 'energy0', 'reached', 'scaled'
        self.dump((*learnt, {name: getattr(self, name) for name in names}))

    def update(
        self,
        pos: np.ndarray,
        forces: np.ndarray,
        pos0: Any,
        forces0: Any,
    ) -> None:
        """Learn the curvature between two points; the first time, the scale of all."""
        if not self._has_model:
            super().update(pos, forces, pos0, forces0)
            return
        if self.hessian is None:
            self.hessian = model_hessian(self.atoms)  # of the structure at the first step
            return
        step, change = pos - pos0, forces0 - forces
        measured, guessed = step @ change, step @ self.hessian @ step
        if not self.scaled:
            self.scaled = True
            if measured > 0:
                factor = np.clip(measured / guessed, 1 / MOST_SCALING, MOST_SCALING)
                self.hessian = factor * self.hessian
                guessed = factor * guessed
        if measured == 0 or np.abs(step).max() < SAME_PLACE:
            return  # under a constant force there is nothing to learn, and no division by 0
        stretched = self.hessian @ step
        self.hessian += np.outer(change, change) / measured
        self.hessian -= np.outer(stretched, stretched) / guessed

    def _newton_step(self, x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """Learn from this point; the step from it takes negative curvatures as positive."""
        from scipy.linalg import cho_factor, cho_solve  # loads a part of SciPy

        self.update(x, -gradient, self.pos0, self.forces0)
        self.pos0, self.forces0 = x, -gradient
        try:  # in large cells this takes a tenth of the time that eigenvectors take
            factor = cho_factor(self.hessian, check_finite=False)
        except np.linalg.LinAlgError:  # not positive definite
            values, vectors = np.linalg.eigh(self.hessian)
            return -vectors @ (gradient @ vectors / np.abs(values))
        return -cho_solve(factor, gradient)

    @property
    def _has_model(self) -> bool:
        known = isinstance(self.atoms, (Atoms, UnitCellFilter))
        return known and self.alpha is None

    def _compare_with_last_run(self) -> None:
        """Forget the last step where calculator, moments or charges are others now."""
        if not self._has_model:
            return
        before, atoms = self.asked, getattr(self.atoms, 'atoms', self.atoms)
        moments = atoms.get_initial_magnetic_moments()
        now = self.asked = atoms.calc, moments, atoms.get_initial_charges()
        if before is None:
            return
        if now[0] is not before[0] or not all(map(np.array_equal, now[1:], before[1:])):
            self.reached = None  # the energy before it cannot be compared

    def _climbed(self, x: np.ndarray, energy: float) -> bool:
        """Whether the last step, and nobody else, led from a lower energy to here."""
        if self.energy0 is None or self.reached is None:
            return False
        if energy <= self.energy0 + RISE or self._length(x - self.pos0) <= SHORT:
            return False
        return bool(np.allclose(x, self.reached, rtol=0, atol=1e-6))

    def _length(self, step: np.ndarray) -> float:
        """The longest move of an atom, A, or row of the strain."""
        rows = step.reshape(-1, 3).copy()
        if isinstance(self.atoms, UnitCellFilter):
            rows[-3:] /= strain_factor(self.atoms)
        return float(np.linalg.norm(rows, axis=1).max(initial=0.0))


def strain_factor(target: UnitCellFilter) -> float:
    """What a cell filter multiplies strain by.

    >>> from ase.build import bulk
    >>> from ase.filters import FrechetCellFilter
    >>> strain_factor(FrechetCellFilter(bulk('Si')))
    2.0
    """
    return getattr(target, 'exp_cell_factor', target.cell_factor)


def model_hessian(target: Atoms | UnitCellFilter) -> np.ndarray:
    """The Hessian of the springs of `ElasticBFGS`.

    Parameters
    ----------
    target : ase.Atoms or ase.filters.UnitCellFilter
        Of ``n`` atoms; no calculator is needed.

    Returns
    -------
    (3 * n, 3 * n) or (3 * n + 9, 3 * n + 9), eV/A^2
        In the coordinates of the target; positive definite. What constraints or the filter
        hold is not coupled to what is free.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase.filters import FrechetCellFilter
    >>> model_hessian(bulk('Si')).shape, model_hessian(FrechetCellFilter(bulk('Si'))).shape
    ((6, 6), (15, 15))
    """
    from ase.neighborlist import neighbor_list  # loads a part of SciPy

    atoms = target if isinstance(target, Atoms) else target.atoms
    n = len(atoms)
    i, j, distance, vector = neighbor_list('ijdD', atoms, CUTOFF)
    stiffness = STIFFNESS * np.exp((LENGTH - distance) / DECAY)
    # Two atoms on one site have no direction.
    along = vector / np.maximum(distance, 1e-9)[:, None]
    springs = (1 - ACROSS) * along[:, :, None] * along[:, None, :] + ACROSS * np.eye(3)
    springs *= stiffness[:, None, None]
    # How a symmetric strain changes the vectors of the pairs: (n_pairs, 3, 9).
    stretch = (vector @ STRAIN_BASIS).transpose(1, 2, 0) @ STRAINS
    pulled = springs @ stretch

    hessian = np.zeros((3 * n + 9, 3 * n + 9))
    blocks = hessian[: 3 * n, : 3 * n].reshape(n, 3, n, 3)
    np.add.at(blocks.transpose(0, 2, 1, 3), (i, i), springs)
    np.add.at(blocks.transpose(0, 2, 1, 3), (i, j), -springs)
    np.add.at(hessian[: 3 * n, -9:].reshape(n, 3, 9), i, -pulled)
    hessian[-9:, : 3 * n] = hessian[: 3 * n, -9:].T
    hessian[-9:, -9:] = np.tensordot(stretch, pulled, ([0, 1], [0, 1])) / 2
    hessian[: 3 * n, : 3 * n] += ON_SITE * np.eye(3 * n)

    free = np.eye(3 * n + 9)
    free[: 3 * n, : 3 * n] = _free_moves(atoms)
    held = np.full(3 * n + 9, ON_SITE)
    if not isinstance(target, Atoms):
        volume = target.volume if isinstance(target, FreeCellFilter) else atoms.cell.volume
        hessian[-9:, -9:] += ON_STRAIN * volume * np.eye(9)
        held[-9:] = ROTATION * volume
        free[-9:, -9:] = _free_strains(target)
    hessian = free @ hessian @ free + (np.eye(3 * n + 9) - free) * held
    if isinstance(target, Atoms):
        return hessian[: 3 * n, : 3 * n]
    hessian[-9:] /= strain_factor(target)
    hessian[:, -9:] /= strain_factor(target)
    return hessian


def _free_moves(atoms: Atoms) -> np.ndarray:
    """(3 * n, 3 * n): the projection of moves on those that the constraints allow."""
    # The springs have the symmetry of the structure, so that FixSymmetry changes nothing.
    linear = [c for c in atoms.constraints if type(c) in SUPPORTED]
    linear = [c for c in linear if not isinstance(c, FixSymmetry)]
    moves = np.eye(3 * len(atoms))
    each = moves.reshape(-1, len(atoms), 3)
    for constraint in linear:
        # With a constraint for each atom, as in files of VASP, each meets its own moves.
        index = getattr(constraint, 'index', slice(None))
        for k in np.flatnonzero(each[:, index].any(axis=(1, 2))):
            constraint.adjust_forces(atoms, each[k])
    return moves


def _free_strains(target: UnitCellFilter) -> np.ndarray:
    """(9, 9): the projection of strains on those that a cell filter leaves free."""
    if isinstance(target, FreeCellFilter):
        return STRAINS.T @ target.free_strain @ STRAINS
    mask = np.diag(np.ravel(target.mask != 0).astype(float))
    pressure = np.ravel(np.eye(3)) / np.sqrt(3)
    if target.hydrostatic_strain:
        kept = mask @ pressure
        return np.outer(kept, kept) / max(kept @ kept, 1e-12)
    free = SYMMETRIC @ mask
    if target.constant_volume:
        shape = np.eye(9) - np.outer(pressure, pressure)
        return shape @ free @ shape
    return free
