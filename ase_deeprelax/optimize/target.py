"""What an ordinary relaxation moves: atoms alone, or a filter that frees their cell too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from ase import Atoms
from ase.filters import Filter, FrechetCellFilter, StrainFilter, UnitCellFilter
from ase.optimize.cellawarebfgs import CellAwareBFGS

from ase_deeprelax.calculators.attached import calculator_name, has_stress
from ase_deeprelax.errors import StructureError, warn
from ase_deeprelax.geometry.cell_filter import FreeCellFilter, free_cell
from ase_deeprelax.geometry.degrees_of_freedom import unwrap
from ase_deeprelax.geometry.free_strain import RelaxCell
from ase_deeprelax.geometry.layer import Layer
from ase_deeprelax.geometry.vacuum import find_layer
from ase_deeprelax.optimize.ase_optimizers import find_optimizer, inside_partial


@dataclass(frozen=True, eq=False)
class Target:
    """What the optimizer of a relaxation is given.

    Attributes
    ----------
    moving : ase.Atoms or ase.filters.Filter
    layer : Layer or None
        What `find_layer` found.
    refusal : str
        Why the structure is neither a crystal nor one layer, or ''.
    cell_fixed : bool
        Whether the cell stays as it is.
    given : bool
        Whether ``moving`` is a filter that the user made.
    """

    moving: Atoms | Filter
    layer: Layer | None
    refusal: str
    cell_fixed: bool
    given: bool

    @property
    def kind(self) -> str:
        """'bulk', 'layer' or 'other', and ', cell fixed' where it is, as `Freedom.kind`."""
        kind = 'bulk' if self.layer is None else 'layer'
        kind = 'other' if self.refusal else kind
        return f'{kind}, cell fixed' if self.cell_fixed else kind

    @property
    def free_strain(self) -> np.ndarray:
        """(6, 6): projection on the strains that a target of `find_target` leaves free."""
        if isinstance(self.moving, FreeCellFilter):
            return self.moving.free_strain
        return np.zeros((6, 6)) if self.cell_fixed else np.eye(6)

    def of_stage(
        self,
        relax_cell: RelaxCell | Callable | None,
        calculator: Any,
        optimizer: str | Callable,
    ) -> Target:
        """The target of one stage of a chain, for its calculator and optimizer.

        Parameters
        ----------
        relax_cell : bool, str, array or callable, optional
            What the stage says; None: this target.
        calculator : ase Calculator
            Where it gives no stress, the cell is fixed, with a warning.
        optimizer : str or callable
        """
        atoms, target = unwrap(self.moving), self
        if relax_cell is not None:
            target = find_target(atoms, relax_cell)
        if not (target.cell_fixed or target.given or has_stress(calculator)):
            warn(
                f'{calculator_name(calculator)} gives no stress, so the cell is fixed '
                'while it refines the positions; relax_cell=False says so without this '
                'warning, and a calculator with a stress relaxes the cell too'
            )
            target = find_target(atoms, False)
        return target.fitted(optimizer)

    def fitted(self, optimizer: str | Callable) -> Target:
        """The target that an optimizer can take, unless the user made the filter.

        ASE's ``CellAwareBFGS`` takes no bare Atoms, and no filter but one of true strains.
        """
        if self.given:
            return self
        kind = inside_partial(find_optimizer(optimizer))
        true_strains = isinstance(kind, type) and issubclass(kind, CellAwareBFGS)
        if isinstance(self.moving, FrechetCellFilter):
            factor = 1.0 if true_strains else float(len(self.moving.atoms))
            self.moving.exp_cell_factor = factor
        elif true_strains:
            nothing = FrechetCellFilter(self.moving, np.zeros(6), exp_cell_factor=1.0)
            return replace(self, moving=nothing)
        return self

    def decision(self, relax_cell: RelaxCell | None) -> str:
        """What was decided about the cell, in words; '' where a user expects that.

        Parameters
        ----------
        relax_cell : bool, str, array or None
            What the user asked for; None: nothing.
        """
        asked = relax_cell is not None
        if self.refusal:
            plain = not asked and unwrap(self.moving).pbc.sum() < 2
            silent = self.given or plain or relax_cell is False
            return '' if silent else f'cell fixed: {self.refusal}'
        if self.layer is None:
            if asked or self.given or not self.cell_fixed:
                return ''
            return 'cell fixed: use FrechetCellFilter or relax_cell=True to relax it'
        what = f'layer ({_evidence(self.layer)})'
        if self.cell_fixed:
            remedy = '' if asked or self.given else ', relax_cell=True relaxes its plane'
            return f'{what}: cell fixed{remedy}'
        if self.given:
            name = type(self.moving).__name__
            return f'{what}: the prediction keeps it, then {name} decides about the cell'
        return f'{what}: cell relaxes in the plane'


def find_target(
    given: Atoms | Filter,
    relax_cell: RelaxCell | Callable[[Atoms], Atoms | Filter] | None = None,
) -> Target:
    """What shall move, ready for an optimizer.

    Parameters
    ----------
    given : ase.Atoms or ase.filters.Filter
        A filter is taken as it is.
    relax_cell : bool, str, array or callable, optional
        For Atoms: what of the cell relaxes, see `find_freedom`, or a function from atoms to
        the filter around them. The cell of a structure that is neither a crystal nor one
        layer (a molecule, a wire) is held, unless a filter frees it.

    Returns
    -------
    Target

    Examples
    --------
    >>> from ase.build import bulk, molecule
    >>> find_target(bulk('Cu'), False).kind, find_target(molecule('H2O')).kind
    ('bulk, cell fixed', 'other, cell fixed')
    """
    atoms = unwrap(given)
    layer, refusal = None, ''
    try:
        layer = find_layer(atoms)
    except StructureError as error:
        refusal = str(error)
    user_made = given is not atoms or callable(relax_cell)
    moving: Atoms | Filter
    if given is not atoms:
        moving = given
    elif callable(relax_cell):
        moving = cast('Atoms | Filter', relax_cell(atoms))
    else:
        moving = atoms if refusal else free_cell(atoms, relax_cell)
    return Target(moving, layer, refusal, not _frees_cell(moving), user_made)


def get_origin(target: Atoms | Filter) -> dict[str, np.ndarray]:
    """The cell that a filter measures strain from, and the strain that it keeps itself."""
    names = ('orig_cell', 'origcell', 'strain') if isinstance(target, Filter) else ()
    return {
        name: np.array(getattr(target, name)) for name in names if hasattr(target, name)
    }


def put_origin(target: Atoms | Filter, origin: dict[str, np.ndarray]) -> None:
    """Let a new filter measure strain as an earlier one did."""
    for name, value in origin.items():
        setattr(target, name, np.array(value, float))


def _frees_cell(moving: Atoms | Filter) -> bool:
    while isinstance(moving, Filter):
        if isinstance(moving, (StrainFilter, UnitCellFilter)):
            return True
        moving = moving.atoms
    return False


def _evidence(layer: Layer) -> str:
    entries = layer.basis[2]
    axis = 'one lattice vector'
    if np.abs(entries).sum() == 1:
        axis = 'abc'[np.abs(entries).argmax()]
    if layer.found_by == 'pbc':
        return f'pbc is False along {axis}'
    return f'gap of {layer.vacuum:.1f} A along {axis} is vacuum'
