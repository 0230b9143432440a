"""Full iterative relaxation with a potential: the rival of a prediction."""

from dataclasses import dataclass

import numpy as np

from ase_deeprelax._version import __version__
from ase_deeprelax.compare.descent import descend, filter_for, optimizer_class
from ase_deeprelax.potentials.calculators import get_calculator
from ase_deeprelax.refine.descent import calculator_name, optimizer_name
from ase_deeprelax.result import Relaxation, no_uncertainty


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
    cell_filter : callable, optional
        What of the cell moves, default all of it (``FrechetCellFilter``). Its forces, those
        on the cell too, decide when a relaxation is over.
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
    ConfigError
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
        cell_filter=None,
        fmax=0.05,
        steps=200,
        device='cpu',
        progress=False,
    ):
        self.optimizer = optimizer_class(optimizer)
        self.calculator = get_calculator(potential, device=device)
        self.cell_filter = cell_filter or filter_for(self.optimizer)
        self.fmax = fmax
        self.steps = steps
        self.progress = progress
        # What `evaluate` calls it.
        self.__name__ = (
            f'{calculator_name(self.calculator)} + {optimizer_name(self.optimizer)}'
        )

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
        end = descend(
            initial,
            self.calculator,
            optimizer=self.optimizer,
            fmax=self.fmax,
            steps=self.steps,
            cell_filter=self.cell_filter,
        )
        n, atoms, deformation = len(initial), initial.copy(), np.eye(3)
        if end.ok:
            atoms = end.atoms
            deformation = np.linalg.solve(initial.cell.array, atoms.cell.array)
        return IterativeRelaxation(
            atoms=atoms,
            initial=initial,
            deformation=deformation,
            displacement=atoms.positions @ np.linalg.inv(deformation) - initial.positions,
            **no_uncertainty(n),
            ok=end.ok,
            problem='' if end.ok else end.reason,
            ood='',
            model=self.__name__,
            sha256='',
            version=__version__,
            timings={'relax': end.seconds},
            steps=end.steps,
            converged=end.converged,
            reason=end.reason,
        )
