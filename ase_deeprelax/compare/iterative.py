"""Full iterative relaxation with a potential, which predictions are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms

from ase_deeprelax import __version__
from ase_deeprelax.calculators.attached import calculator_name
from ase_deeprelax.calculators.registry import get_calculator
from ase_deeprelax.compare.relaxation_run import run_relaxation
from ase_deeprelax.data.structures import as_atoms
from ase_deeprelax.errors import ConfigError
from ase_deeprelax.geometry.free_strain import RelaxCell, check_relax_cell
from ase_deeprelax.optimize.ase_optimizers import find_optimizer, optimizer_name
from ase_deeprelax.optimize.relaxation_step import check_limits
from ase_deeprelax.result import Relaxation, no_uncertainty


@dataclass(frozen=True, eq=False)
class IterativeRelaxation(Relaxation):
    """The iterative relaxation of one structure with a potential.

    A `Relaxation` whose ``atoms`` carry energy, forces and stress; nothing about
    uncertainty. ``timings['relax']`` is the wall time in s.

    Attributes
    ----------
    steps : int
        Steps taken; the potential was evaluated once more.
    converged : bool
        Whether all forces, those on the cell too, fell below fmax. A relaxation
        that did not converge is still ``ok``.
    reason : str
        Why it did not converge, or ''.
    """

    steps: int = 0
    converged: bool = False
    reason: str = ''


class Iterative:
    """A potential and an ordinary optimizer as a function from crystals to relaxed ones.

    `compare.evaluate` takes it as its ``model``. Constraints of the atoms are honoured.

    Parameters
    ----------
    potential : str, ase Calculator or callable
        As `get_calculator` takes it.
    optimizer : str or callable
        A class of ``ase.optimize`` or its name; default 'FIRE'.
    relax_cell : bool, str or array, optional
        What of the cell moves, as `relax` takes it, with the same default: all of it, of a
        layer its plane, of a layer with fixed atoms nothing.
    cell_filter : callable, optional
        A function from atoms to a filter of ASE, in place of ``relax_cell``. Its
        forces, those on the cell too, decide when a relaxation is over.
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
        ASE has no optimizer of that name; ``relax_cell`` and ``cell_filter`` together.
    ValueError
        ``fmax``, ``steps`` or ``relax_cell`` makes no sense.
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
        potential: Any,
        *,
        optimizer: str | Callable = 'FIRE',
        relax_cell: RelaxCell | None = None,
        cell_filter: Callable | None = None,
        fmax: float = 0.05,
        steps: int = 200,
        device: str = 'cpu',
        progress: bool = False,
    ):
        if relax_cell is not None and cell_filter is not None:
            raise ConfigError(
                'relax_cell and cell_filter both choose what of the cell relaxes; give one'
            )
        check_limits(fmax, steps)
        if relax_cell is not None:
            check_relax_cell(relax_cell)
        self.optimizer = find_optimizer(optimizer)
        self.calculator = get_calculator(potential, device=device)
        self.relax_cell = relax_cell if cell_filter is None else cell_filter
        self.fmax = fmax
        self.steps = steps
        self.progress = progress
        # Tables of `evaluate` use this name.
        self.__name__ = (
            f'{calculator_name(self.calculator)} + {optimizer_name(self.optimizer)}'
        )

    def __call__(
        self, atoms_list: Sequence[Any], relax_cell: RelaxCell | None = None
    ) -> list[IterativeRelaxation]:
        """Relax each structure from where it is.

        Parameters
        ----------
        atoms_list : list of ase.Atoms or pymatgen Structure
            Not changed.
        relax_cell : bool, str or array, optional
            Freedom of the cells of these structures; default that of the constructor.

        Returns
        -------
        list of IterativeRelaxation
            In the order of the input. Where the potential raises or returns numbers that
            are not finite, or the structure runs away or ends as what `check_prediction`
            refuses, ``ok`` is False, ``atoms`` a copy of the input, and the others go on.
        """
        from tqdm.auto import tqdm

        bar = tqdm(atoms_list, self.__name__, disable=not self.progress, unit='structures')
        free = self.relax_cell if relax_cell is None else check_relax_cell(relax_cell)
        return [self._relax(as_atoms(given).copy(), free) for given in bar]

    def _relax(
        self, initial: Atoms, relax_cell: RelaxCell | Callable | None
    ) -> IterativeRelaxation:
        run = run_relaxation(
            initial,
            self.calculator,
            optimizer=self.optimizer,
            fmax=self.fmax,
            steps=self.steps,
            relax_cell=relax_cell,
        )
        n, atoms, deformation = len(initial), initial.copy(), np.eye(3)
        if run.ok:
            atoms = run.atoms
            deformation = np.linalg.solve(initial.cell.array, atoms.cell.array)
        return IterativeRelaxation(
            atoms=atoms,
            initial=initial,
            deformation=deformation,
            displacement=atoms.positions @ np.linalg.inv(deformation) - initial.positions,
            **no_uncertainty(n),
            ok=run.ok,
            problem='' if run.ok else run.reason,
            ood='',
            kind=run.kind,
            model=self.__name__,
            sha256='',
            version=__version__,
            timings={'relax': run.seconds},
            steps=run.steps,
            converged=run.converged,
            reason=run.reason,
        )
