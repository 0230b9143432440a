"""A prediction for one structure within its freedom, and how ASE's dynamics sees it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.utils.abc import Optimizable

from ase_deeprelax import keys
from ase_deeprelax.geometry.degrees_of_freedom import Freedom, find_freedom
from ase_deeprelax.result import Relaxation


@dataclass(frozen=True, eq=False)
class Plan:
    """A checked prediction that is not yet written into its structure.

    Attributes
    ----------
    freedom : Freedom
        Of the structure, which is ``freedom.atoms``.
    before, after : ase.Atoms
        Bare copies, without constraints.
    relaxation : Relaxation
        What the model says, within constraints and filters.
    """

    freedom: Freedom
    before: Atoms
    after: Atoms
    relaxation: Relaxation

    @property
    def dmax(self):
        """Largest displacement of an atom at the cell before, A."""
        back = np.linalg.solve(self.after.cell.array, self.before.cell.array)
        step = self.after.positions @ back - self.before.positions
        return float(np.linalg.norm(step, axis=1).max(initial=0.0))

    @property
    def volume_ratio(self):
        """Volume after over before."""
        return float(self.after.cell.volume / self.before.cell.volume)

    def put(self):
        """Move the atoms and their cell; nothing else."""
        self.freedom.write(self.after.cell.array, self.after.positions)

    def try_on(self, optimizable, gate):
        """`put`, and back again bit for bit where the energy says no.

        Parameters
        ----------
        optimizable : ase.utils.abc.Optimizable
            Gives energy and forces of the atoms.
        gate : float or None, eV/atom
            How much the energy may rise; None: any amount.

        Returns
        -------
        kept : bool
        rise : float, eV/atom
        """
        start, state = optimizable.get_value(), self.freedom.state()
        try:
            self.put()
            rise = (optimizable.get_value() - start) / len(self.before)
            kept = np.isfinite(optimizable.get_gradient()).all()
        except BaseException:
            self.freedom.restore(state)
            raise
        kept = bool(kept and (gate is None or rise <= gate))
        if not kept:
            self.freedom.restore(state)
        return kept, rise

    @property
    def note(self):
        """For the log line of its step."""
        sigma = self.relaxation.sigma
        return f'prediction, volume x {self.volume_ratio:.3f}, sigma {sigma:.3f} A'

    def sign(self):
        """Write the names of `keys`, and drop stored results of the former structure."""
        atoms, said = self.freedom.atoms, self.relaxation.atoms
        if isinstance(atoms.calc, SinglePointCalculator):
            atoms.calc = None
        keys.strip(atoms)
        atoms.info.update({k: v for k, v in said.info.items() if k.startswith(keys.PREFIX)})
        atoms.arrays[keys.SIGMA] = said.arrays[keys.SIGMA].copy()
        atoms.info[keys.DMAX] = self.dmax
        atoms.info[keys.VOLUME_RATIO] = self.volume_ratio


def make_plan(target, relax_cell, predictor):
    """Predict for a structure, within what filters and constraints leave free.

    Parameters
    ----------
    target : ase.Atoms or ase.filters.Filter
    relax_cell : bool, str, array or None
        For bare Atoms, see `find_freedom`.
    predictor : Predictor

    Returns
    -------
    Plan

    Raises
    ------
    StructureError, UnsupportedConstraintError, PredictionError
        The structure is as it was.
    """
    [relaxation] = predictor.relax([target], relax_cell=relax_cell, on_bad='raise')
    freedom = find_freedom(target, relax_cell)
    atoms = freedom.atoms
    before = Atoms(
        atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell,
        pbc=atoms.pbc,
        celldisp=atoms.get_celldisp(),
        info=atoms.info,
    )
    after = before.copy()
    after.set_cell(relaxation.atoms.cell)
    after.positions = relaxation.atoms.positions
    return Plan(freedom, before, after, relaxation)


def has_calculator(atoms):
    """Whether forces of a moved structure can be had; stored results are none."""
    return atoms.calc is not None and not isinstance(atoms.calc, SinglePointCalculator)


class OneShot(Optimizable):
    """Atoms without a calculator: downhill is where the prediction lies.

    Coordinates are positions and cell, the gradient is minus the displacement that is
    still to be made, in A. The prediction is made when it is first asked for, and made
    anew for atoms that were changed since.

    Parameters
    ----------
    atoms : ase.Atoms
    predict : callable
        Returns a `Plan` for the atoms as they are.
    """

    def __init__(self, atoms: Atoms, predict: Callable[[], Plan]):
        self.atoms = atoms
        self._predict = predict
        self._plan = None
        self._written = False

    @property
    def plan(self):
        """The `Plan` that fits the atoms as they are now."""
        if self._plan is not None and not self._at(self._plan.after):
            self._written = False
            if not self._at(self._plan.before):
                self._plan = None
        if self._plan is None:
            self._plan = self._predict()
        return self._plan

    @property
    def sigma(self):
        """System-level uncertainty of the prediction, A."""
        return self.plan.relaxation.sigma

    @property
    def dmax(self):
        """Largest displacement of an atom that is still to be made, A."""
        dmax = self.plan.dmax
        return 0.0 if self._written else dmax

    def write(self):
        """The one step."""
        plan = self.plan
        plan.put()
        plan.sign()
        self._written = True

    def _at(self, structure):
        return (
            np.array_equal(structure.numbers, self.atoms.numbers)
            and np.array_equal(structure.pbc, self.atoms.pbc)
            and np.array_equal(structure.cell.array, self.atoms.cell.array)
            and np.array_equal(structure.positions, self.atoms.positions)
        )

    def ndofs(self):
        return 3 * len(self.atoms) + 9

    def get_x(self):
        return np.concatenate([self.atoms.positions, self.atoms.cell.array]).ravel()

    def set_x(self, x):
        rows = x.reshape(-1, 3)
        self.atoms.set_cell(rows[-3:], apply_constraint=False)
        self.atoms.set_positions(rows[:-3], apply_constraint=False)

    def get_gradient(self):
        after = self.plan.after
        return self.get_x() - np.concatenate([after.positions, after.cell.array]).ravel()

    def get_value(self):
        """Half the square of the gradient, A^2."""
        return 0.5 * float(np.square(self.get_gradient()).sum())

    def iterimages(self):
        return self.atoms.iterimages()

    def converged(self, gradient, fmax):  # noqa: ARG002 - fmax is a force, not a length
        return self._written and not gradient.any()
