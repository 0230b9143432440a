"""Full iterative relaxation with a potential: the rival of a prediction."""

from dataclasses import dataclass
from time import perf_counter

import ase.optimize
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.filters import FrechetCellFilter

from ase_deeprelax._version import __version__
from ase_deeprelax.checks import check_prediction
from ase_deeprelax.errors import DeepRelaxError, RefinementError
from ase_deeprelax.potentials.calculators import get_calculator
from ase_deeprelax.refine.attempt import RUNAWAY
from ase_deeprelax.refine.descent import Refinement, check_refinable, optimizer_name
from ase_deeprelax.result import Relaxation


@dataclass(frozen=True, eq=False)
class IterativeRelaxation(Relaxation):
    """How one structure went down with a potential.

    A `Relaxation` whose ``atoms`` carry energy, forces and stress; nothing about
    uncertainty. ``timings['relax']`` is the wall time in s.

    Attributes
    ----------
    steps : int
        Steps taken; the potential was evaluated once more.
    converged : bool
        Whether all forces, those on the cell too, fell below fmax. An answer that did not
        get there still counts as one (``ok``).
    reason : str
        Why it did not converge, or ''.
    """

    steps: int = 0
    converged: bool = False
    reason: str = ''


class Iterative:
    """A potential and an ordinary optimizer as a function from crystals to relaxed ones.

    `compare.evaluate` takes it as its ``model``.

    Parameters
    ----------
    potential : str, ase Calculator or callable
        As `get_calculator` takes it.
    optimizer : str or callable
        A class of ``ase.optimize`` or its name; default 'FIRE'.
    cell_filter : callable
        What of the cell moves, default all of it (``FrechetCellFilter``).
    fmax : float, eV/A
        Default 0.05.
    steps : int
        At most so many steps each, default 200.
    device : str
        Where a potential by name runs; default 'cpu'.
    progress : bool
        Show a bar; default False.

    Raises
    ------
    ValueError
        ASE has no optimizer of that name.
    ModelError, MissingDependencyError
        See `get_calculator`.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase.calculators.emt import EMT
    >>> [result] = Iterative(EMT())([bulk('Cu', a=3.8)])
    >>> result.converged, float((4 * result.atoms.get_volume()) ** (1 / 3))
    (True, 3.59)
    >>> evaluate(pairs, Iterative('chgnet'))  # doctest: +SKIP
    """

    def __init__(
        self,
        potential,
        *,
        optimizer='FIRE',
        cell_filter=FrechetCellFilter,
        fmax=0.05,
        steps=200,
        device='cpu',
        progress=False,
    ):
        self.optimizer = _optimizer(optimizer)
        self.calculator = get_calculator(potential, device=device)
        self.cell_filter = cell_filter
        self.fmax = fmax
        self.steps = steps
        self.progress = progress
        # What `evaluate` calls it.
        self.__name__ = f'{_name(self.calculator)} + {optimizer_name(self.optimizer)}'

    def __call__(self, atoms_list):
        """Relax each structure from where it is.

        Parameters
        ----------
        atoms_list : list of ase.Atoms
            Not changed.

        Returns
        -------
        list of IterativeRelaxation
            In the order of the input. Where the potential raises or returns numbers that
            are not finite, or the structure runs away or ends as what `check_prediction`
            refuses, ``ok`` is False, ``atoms`` a copy of the input, and the others go on.
        """
        from tqdm.auto import tqdm

        bar = tqdm(atoms_list, self.__name__, disable=not self.progress, unit='structures')
        return [self._relax(atoms.copy()) for atoms in bar]

    def _relax(self, initial):
        start = perf_counter()
        run = _Run(initial, self)
        problem = ''
        try:
            run.go()
            check_prediction(initial, run.atoms)
        except DeepRelaxError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001 - calculators raise anything
            problem = f'{type(error).__name__}: {error}'
        return self._record(run, problem, perf_counter() - start)

    def _record(self, run, problem, seconds):
        initial, n = run.initial, len(run.initial)
        atoms, deformation = initial.copy(), np.eye(3)
        if not problem:
            atoms = run.atoms
            # Numbers instead of a calculator that goes on to the next structure.
            atoms.calc = SinglePointCalculator(atoms, **run.results)
            deformation = np.linalg.solve(initial.cell.array, atoms.cell.array)
        return IterativeRelaxation(
            atoms=atoms,
            initial=initial,
            deformation=deformation,
            displacement=atoms.positions @ np.linalg.inv(deformation) - initial.positions,
            sigma=np.nan,
            sigma_atoms=np.full(n, np.nan),
            bonds=np.zeros((0, 2), dtype=np.int64),
            bond_offsets=np.zeros((0, 3), dtype=np.int64),
            sigma_bonds=np.zeros(0),
            residual=np.nan,
            ok=not problem,
            problem=problem,
            ood='',
            model=self.__name__,
            sha256='',
            version=__version__,
            timings={'relax': seconds},
            steps=run.steps,
            converged=run.converged and not problem,
            reason=problem or run.reason,
        )


class _Run:
    """One structure on its way down; what it holds is true after an error as well."""

    def __init__(self, initial, settings):
        self.initial, self.settings = initial, settings
        self.atoms = initial.copy()
        self.steps, self.converged, self.reason = 0, False, ''
        self.results = {}

    def go(self):
        settings, atoms = self.settings, self.atoms
        check_refinable(atoms)
        atoms.calc = settings.calculator
        target = settings.cell_filter(atoms)
        refinement = Refinement(target, settings.optimizer, keep=_forget)
        optimizer = refinement.optimizer
        optimizer.fmax = settings.fmax
        while True:
            gradient = optimizer.optimizable.get_gradient()
            self.converged = bool(optimizer.gradient_converged(gradient))
            if self.converged or self.steps == settings.steps:
                break
            refinement.step(settings.fmax)
            self.steps += 1
            self._check_volume()
        if not self.converged:
            self.reason = f'not converged to {settings.fmax:g} eV/A in {self.steps} steps'
        self._take_results()

    def _check_volume(self):
        ratio = self.atoms.get_volume() / self.initial.get_volume()
        low, high = RUNAWAY
        if not low < ratio < high:
            raise RefinementError(
                f'the cell ran away: after {self.steps} steps its volume is {ratio:.3g} '
                'times that of the input; use another potential or optimizer'
            )

    def _take_results(self):
        calculator = self.atoms.calc
        for name in ('energy', 'forces', 'stress'):
            if name in calculator.implemented_properties:
                self.results[name] = calculator.get_property(name, self.atoms)
                if not np.isfinite(self.results[name]).all():
                    raise RefinementError(f'the {name} is not finite')


def _forget(memory):
    """Nothing is restarted here, so what an optimizer remembers goes nowhere."""


def _optimizer(optimizer):
    if not isinstance(optimizer, str):
        return optimizer
    if optimizer not in ase.optimize.__all__:
        raise ValueError(
            f"optimizer is {optimizer!r}; ase.optimize has 'FIRE', 'BFGS', 'LBFGS' and "
            'others, or give a class'
        )
    return getattr(ase.optimize, optimizer)


def _name(calculator):
    return getattr(calculator, 'name', type(calculator).__name__)
