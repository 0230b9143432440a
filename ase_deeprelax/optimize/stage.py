"""A stage of a refinement: what it shall do, and the record of what it did."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, fields
from functools import cached_property
from numbers import Integral, Real
from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator

from ase_deeprelax.calculators.registry import get_calculator, potential_name
from ase_deeprelax.geometry.free_strain import RelaxCell, check_relax_cell
from ase_deeprelax.geometry.symmetry import spacegroup_number
from ase_deeprelax.optimize.ase_optimizers import find_optimizer, optimizer_name

# The limits of a stage that are 0 or larger.
LIMITS = {
    'fmax': 'a force in eV/A',
    'min_sigma': 'a length in A',
    'min_error': 'a length in A',
}


@dataclass(frozen=True, eq=False)
class Stage:
    """A part of a refinement: one calculator, and how far to go with it.

    Parameters
    ----------
    calculator : str, ase Calculator or callable
        As `get_calculator` takes it: 'chgnet', 'tensornet:/path', ``GPAW(...)``, or a
        function that makes one: once in each thread, when the first run begins there.
        A calculator itself serves one thread only.
    optimizer : str or callable, optional
        As for `DeepRelaxOptimizer`, whose own is the default.
    fmax : float, optional, eV/A
        Default: that of ``run``.
    steps : int, optional
        At most so many steps; default as many as it takes.
    relax_cell : bool, str, array or callable, optional
        What of the cell relaxes in this stage: True (of a layer: its plane), False,
        'in-plane', 'hydrostatic' or a mask, as `relax` takes it, or a function from atoms
        to the filter that says how, as ``partial(FrechetCellFilter, mask=...)``. Default:
        as everywhere else in the optimizer, whose filter this replaces.
    min_sigma, min_error : float, optional, A
        The stage is skipped where the prediction's sigma, or its expected error, is below;
        default: never. It is not skipped where there is no prediction in the atoms, or one
        from outside the model's training range.
    guided : bool or float
        Whether the prediction pulls too: the stage looks for the most probable structure
        given prediction and potential, see `guide`. A number is the strength of the pull,
        eV/A; True: as the model is calibrated beside this potential. Default False. Where
        there is no prediction in the atoms, the stage is an ordinary one.

    Raises
    ------
    ValueError
        ``fmax``, ``steps``, ``guided`` or a limit is no such number, or ``relax_cell`` not
        one of the above.

    Examples
    --------
    >>> from ase.calculators.emt import EMT
    >>> Stage(EMT(), fmax=0.02, steps=100).name
    'emt'
    >>> Stage('tensornet:/some/folder', min_sigma=0.05).name
    'tensornet'
    """

    calculator: Any
    _: KW_ONLY
    optimizer: str | Callable | None = None
    fmax: float | None = None
    steps: int | None = None
    relax_cell: RelaxCell | Callable | None = None
    min_sigma: float | None = None
    min_error: float | None = None
    guided: bool | float = False
    _built: threading.local = field(default_factory=threading.local, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.optimizer is not None:
            find_optimizer(self.optimizer)
        steps, guided = self.steps, self.guided
        if steps is not None and not (isinstance(steps, Integral) and steps >= 1):
            raise ValueError(f'steps is {steps!r}; a stage takes one step or more')
        for name, quantity in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not (isinstance(value, Real) and value >= 0):
                raise ValueError(f'{name} is {value!r}; it must be {quantity}')
        if not (isinstance(guided, bool) or (isinstance(guided, Real) and guided > 0)):
            raise ValueError(
                f'guided is {guided!r}; it must be True, False or a strength in eV/A'
            )
        if self.relax_cell is not None and not callable(self.relax_cell):
            check_relax_cell(self.relax_cell)

    @property
    def name(self) -> str:
        """What records and logs call it, known before the calculator is made."""
        if isinstance(self.calculator, str):
            return potential_name(self.calculator)
        name = getattr(self.calculator, 'name', None)
        return name if isinstance(name, str) else optimizer_name(self.calculator)

    def __repr__(self) -> str:
        changed = {
            entry.name: getattr(self, entry.name)
            for entry in fields(self)
            # A mask may be an array, which has no single answer to `!=`.
            if entry.kw_only
            and entry.init
            and getattr(self, entry.name) is not entry.default
        }
        if self.optimizer is not None:
            changed['optimizer'] = optimizer_name(find_optimizer(self.optimizer))
        return (
            f'Stage({", ".join([self.name, *(f"{k}={v!r}" for k, v in changed.items())])})'
        )

    def build_calculator(self) -> Calculator:
        """The calculator itself, made at the first call in this thread and kept."""
        # Shared by threads, it would answer one with the forces of the other's atoms.
        if not hasattr(self._built, 'calculator'):
            self._built.calculator = get_calculator(self.calculator)
        return self._built.calculator

    def __getstate__(self) -> dict[str, Any]:
        # A calculator by name is copied as its name.
        return {name: value for name, value in vars(self).items() if name != '_built'}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _built=threading.local())


def as_stages(refine: Any, *, guided: bool | float = False) -> list[Stage]:
    """Stages from what ``refine=`` takes: one or more stages or calculators.

    Parameters
    ----------
    refine : str, ase Calculator, callable, Stage or a list of them, or None
    guided : bool or float
        Of what is no `Stage` yet; default False.

    Examples
    --------
    >>> [stage.name for stage in as_stages(['chgnet', Stage('m3gnet', fmax=0.1)])]
    ['chgnet', 'm3gnet']
    """
    if refine is None:
        return []
    if not isinstance(refine, (list, tuple)):
        refine = [refine]
    return [
        stage if isinstance(stage, Stage) else Stage(stage, guided=guided)
        for stage in refine
    ]


@dataclass(frozen=True, eq=False, repr=False)
class StageRecord:
    """What became of a stage.

    Attributes
    ----------
    name : str
        Of the calculator; 'prediction' for the prediction.
    optimizer : str
        Name of its class, '' for the prediction.
    status : str
        'converged', 'not converged', 'failed' (and rolled back), 'skipped', or 'running'
        where a run ended, or was interrupted, before the stage did.
    reason : str
        Why it is not converged, or ''.
    steps : int
        Made in this stage.
    energy_before, energy_after : float or None, eV
        What ``atoms.get_potential_energy()`` says with the calculator of the stage; for the
        prediction, with that of the first stage. The log has the energy that the optimizer
        follows, which may be another one (`own_energy`). None: not known.
    fmax : float or None, eV/A
        Largest force at the end, generalised ones of the cell included.
    seconds : float, s
        Wall time.
    atoms : ase.Atoms or None
        The structure at the end, bare.
    pulled : dict or None
        Of a guided stage: how far the potential pulled the structure away from the
        prediction, and the prediction away from the potential's minimum, see
        `GuidedCalculator.pulled`.

    Examples
    --------
    >>> StageRecord('emt', 'BFGS', 'converged', steps=4)
    StageRecord(emt, BFGS: converged, 4 steps, ...)
    """

    name: str
    optimizer: str = ''
    status: str = 'running'
    reason: str = ''
    steps: int = 0
    energy_before: float | None = None
    energy_after: float | None = None
    fmax: float | None = None
    seconds: float = 0.0
    atoms: Atoms | None = None
    pulled: dict[str, float] | None = None

    @property
    def converged(self) -> bool:
        """Whether ``status`` says so."""
        return self.status == 'converged'

    @cached_property
    def spacegroup(self) -> int:
        """Number of the space group at the end (symprec 1e-2), 0: not determined."""
        if self.atoms is None or not self.atoms.pbc.all() or self.atoms.cell.rank != 3:
            return 0
        return spacegroup_number(self.atoms)

    def to_dict(self) -> dict[str, Any]:
        """The record without ``atoms``, with ``spacegroup``, ready for JSON.

        Energies and forces that are not finite become None.

        Examples
        --------
        >>> StageRecord('emt', 'BFGS', 'converged', steps=4).to_dict()['steps']
        4
        """
        data = self.to_state() | {'spacegroup': self.spacegroup}
        del data['atoms']
        for name in ('energy_before', 'energy_after', 'fmax'):
            if data[name] is not None and not math.isfinite(data[name]):
                data[name] = None
        return data

    def to_state(self) -> dict[str, Any]:
        """The arguments it was made with, for `Chain.state_dict`."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    def __repr__(self) -> str:
        return f'StageRecord({self})'

    def __str__(self) -> str:
        """One line, as in the log."""
        parts = [self.status + (f' ({self.reason})' if self.reason else '')]
        if self.status != 'skipped':
            parts.append(f'{self.steps} step{"" if self.steps == 1 else "s"}')
        if None not in (self.energy_before, self.energy_after):
            parts.append(f'energy {self.energy_before:.6f} -> {self.energy_after:.6f} eV')
        if self.fmax is not None:
            parts.append(f'fmax {self.fmax:.4f} eV/A')
        if self.pulled is not None:
            parts.append(
                'pulled from the prediction by {moved:.3f} A and {strained:.1f} %, from '
                'the minimum of the potential by {force:.2f} eV/A'.format(**self.pulled)
            )
        if self.status != 'skipped':
            parts.append(f'{self.seconds:.1f} s, space group {self.spacegroup}')
        title = f'{self.name}, {self.optimizer}' if self.optimizer else self.name
        return f'{title}: {", ".join(parts)}'


def bare(atoms: Atoms) -> Atoms:
    """The input of a calculator: the crystal, its initial magnetic moments and charges.

    Constraints, calculators, info and further arrays are left out.
    """
    return Atoms(
        atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell,
        pbc=atoms.pbc,
        celldisp=atoms.get_celldisp(),
        magmoms=atoms.arrays.get('initial_magmoms'),
        charges=atoms.arrays.get('initial_charges'),
    )
