"""A prediction as a potential: the objective of distance geometry as an ASE calculator."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from ase_deeprelax.data.formula import chemical_formula
from ase_deeprelax.data.pair import nearest_shift
from ase_deeprelax.errors import PredictionError, StructureError
from ase_deeprelax.models.base import RelaxationModel
from ase_deeprelax.predict import relax
from ase_deeprelax.predict.edg_bounds import HUBER, Sums, edge_bounds
from ase_deeprelax.result import Relaxation


class EDGCalculator(Calculator):
    """Energy, forces and stress that pull atoms and cell to a predicted structure.

    The energy is what `predict.edg_solver` minimises (paper eqs. 16-20), times one
    constant: a sum over the bonds of the model's graph of how far the bond's length lies
    outside ``d - tolerance`` to ``d + tolerance``, quadratic up to ``knee`` and linear
    beyond. ``d`` is the bond's length in the predicted structure, as it came out of the
    solver, the projection on the space group and the constraints: the distances that the
    network says one by one contradict each other a little, those of the structure do not,
    so that the energy is zero at the prediction, for positions and cell alike, and nowhere
    below.

    It is no energy of the material: only where its minimum lies means something. Use it to
    walk to a prediction under constraints that the prediction did not know, to start or to
    bias a path or a dynamics (``ase.calculators.mixing.SumCalculator``), or to see which
    bonds an unrelaxed structure strains.

    Rotations, translations and the periodic images that atoms are written in do not
    change the energy; half a cell away from its predicted place an atom belongs to the next
    image, and the energy has a kink. Bonds between fixed atoms count too, but are as long
    as the fixed atoms leave them.

    Parameters
    ----------
    prediction : Relaxation, str, path or RelaxationModel
        What `relax` returned, or a model; a model is asked, with the defaults of `relax`,
        about the first structure that is calculated. Default 'default', the shipped model
        that measured best.
    tolerance : float or 'sigma', A
        Half the width of the flat bottom. Default 0: every bond has its own minimum at
        the prediction, which then is a stable point of phonons and optimizers. 'sigma' is
        the paper's choice, the uncertainty of the bond: everything within it is as good as
        the prediction, with zero energy and zero forces.
    force_constant : float or (n_bonds,) array, eV/A^2
        Of all bonds, or of each, within ``knee`` of their bounds; default 1. An atom of a
        dense crystal has 20 to 60 bonds within 5 A and feels a third of their sum, about
        what atoms of crystals feel: optimizers take the steps that they are made for, and
        an ``fmax`` of 0.05 eV/A leaves some 0.01 A.
    knee : float, A
        Violation at which the energy turns from quadratic to linear; default 0.3. With the
        solver's own, 0.03, the energy is its loss times ``0.03 * force_constant`` and the
        number of bonds, and a sixth of all runs of BFGS, which has no line search, goes
        round in circles; FIRE comes through.

    Attributes
    ----------
    relaxation : Relaxation or None
        The prediction; None until a model was asked.

    Raises
    ------
    PredictionError
        The prediction did not pass its checks.
    StructureError
        On calculation: the atoms are not those of the prediction, are periodic along other
        vectors, have coordinates that are not finite, or a cell without a volume.
    ValueError
        A parameter makes no sense; on calculation: the prediction has another number of
        bonds than there are force constants.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase.filters import FrechetCellFilter
    >>> from ase.optimize import FIRE
    >>> atoms = bulk('NaCl', 'rocksalt', a=5.9)
    >>> atoms.calc = EDGCalculator()
    >>> converged = FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=0.001)
    >>> ratio = atoms.cell.volume / atoms.calc.relaxation.atoms.cell.volume
    >>> round(float(ratio), 3)
    1.0
    """

    implemented_properties = [  # noqa: RUF012 - ASE's
        'energy',
        'free_energy',
        'forces',
        'stress',
    ]
    default_parameters = {  # noqa: RUF012 - ASE's
        'tolerance': 0.0,
        'force_constant': 1.0,
        'knee': 0.3,
    }
    discard_results_on_any_change = True

    def __init__(
        self,
        prediction: Relaxation | str | Path | RelaxationModel = 'default',
        **parameters: Any,
    ):
        self.relaxation: Relaxation | None = None
        self._model: str | Path | RelaxationModel = 'default'
        super().__init__(**parameters)
        if isinstance(prediction, Relaxation):
            self._take(prediction)
        else:
            self._model = prediction

    def __repr__(self) -> str:
        prediction = self._model if self.relaxation is None else self.relaxation
        return f'EDGCalculator({prediction!r})'

    def set(self, **parameters: Any) -> dict[str, Any]:
        """Change ``tolerance``, ``force_constant`` or ``knee``.

        Returns
        -------
        dict
            The parameters that have changed.
        """
        unknown = sorted(set(parameters) - set(self.default_parameters))
        if unknown:
            raise ValueError(
                f'unknown parameter {unknown[0]!r}; there are '
                f'{", ".join(self.default_parameters)}'
            )
        tolerance = parameters.get('tolerance', 0.0)
        named = isinstance(tolerance, str) and tolerance == 'sigma'
        if not named and not (_finite(tolerance) and tolerance >= 0):
            raise ValueError(
                f"tolerance is {tolerance!r}; it must be 0, a length in A, or 'sigma'"
            )
        if 'force_constant' in parameters:
            constant = _force_constants(parameters['force_constant'])
            parameters['force_constant'] = constant
        knee = parameters.get('knee', 1.0)
        if not (_finite(knee) and knee > 0):
            raise ValueError(f'knee is {knee!r}; it must be a positive number, A')
        return super().set(**parameters)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ('energy',),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill ``results``; ASE calls it."""
        super().calculate(atoms, properties, system_changes)
        structure: Any = self.atoms  # a copy of the atoms, which ASE has just made
        if self.relaxation is None:
            self._take(relax(structure, model=self._model))
        self._check_same(structure)
        energy, gradient, virial = self._evaluate(structure)
        self.results = {
            'energy': energy,
            'free_energy': energy,
            'forces': -gradient,
            'stress': full_3x3_to_voigt_6_stress(virial / structure.cell.volume),
        }

    def _take(self, relaxation: Relaxation) -> None:
        """Lengths and ends of the bonds in the predicted structure."""
        if not relaxation.ok:
            raise PredictionError(
                f'the prediction did not pass its checks ({relaxation.problem}); there is '
                'no structure to pull to'
            )
        self.relaxation = relaxation
        self._initial, self._sigma_bonds = relaxation.initial, relaxation.sigma_bonds
        relaxed = relaxation.atoms
        self._frac = _fractional(relaxed.positions, relaxed.cell.array)
        i, j = relaxation.bonds.T
        offsets = relaxation.bond_offsets.astype(float)
        vectors = relaxed.positions[j] + offsets @ relaxed.cell.array - relaxed.positions[i]
        self._edges = torch.from_numpy(np.stack([j, i]))
        self._offsets = torch.from_numpy(offsets)
        self._lengths = torch.from_numpy(np.linalg.norm(vectors, axis=1))

    def _check_same(self, atoms: Atoms) -> None:
        expected = self._initial
        if len(atoms) != len(expected):
            raise StructureError(
                f'{len(atoms)} atoms, and a prediction for {len(expected)} '
                f'({chemical_formula(expected, reduced=False)}); {_ANEW}'
            )
        if (atoms.pbc != expected.pbc).any():
            raise StructureError(
                f'pbc is {atoms.pbc.tolist()}, in the prediction {expected.pbc.tolist()}; '
                f'{_ANEW}'
            )
        other = np.flatnonzero(atoms.numbers != expected.numbers)
        if len(other):
            k = other[0]
            raise StructureError(
                f'atom {k} is {atoms.symbols[k]}, in the prediction {expected.symbols[k]}; '
                f'{_ANEW}'
            )
        bad = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
        if len(bad) or not np.isfinite(atoms.cell.array).all():
            where = f'atom {bad[0]} ({atoms.symbols[bad[0]]})' if len(bad) else 'the cell'
            raise StructureError(f'{where} has coordinates that are not finite')
        if atoms.cell.volume <= 1e-12 * atoms.cell.lengths().prod():
            raise StructureError(
                f'the cell {atoms.cell.tolist()} has no volume; set that of a crystal'
            )

    def _evaluate(self, atoms: Atoms) -> tuple[float, np.ndarray, np.ndarray]:
        """Energy (eV), its gradient (n_atoms, 3) and its virial (3, 3)."""
        cell = atoms.cell.array
        # Into the images of the prediction: wrapped or not, a crystal is the same.
        shift = nearest_shift(_fractional(atoms.positions, cell) - self._frac, cell)
        parameters: Any = self.parameters
        width = parameters['tolerance']
        if width == 'sigma':
            width = torch.from_numpy(self._sigma_bonds)
        # Lengths in the unit in which the solver's knee is ours.
        scale = HUBER / parameters['knee']
        loss, gradient, virial = _objective(
            scale * torch.from_numpy((self._frac + shift) @ cell),
            scale * torch.from_numpy(cell),
            self._edges,
            self._offsets,
            lower=scale * (self._lengths - width),
            upper=scale * (self._lengths + width),
            weight=self._weights(parameters['force_constant']),
        )
        # A sum, not the solver's mean: forces of a supercell are those of its cell. Next to
        # a bound the loss is that of a spring over HUBER.
        unit = HUBER / scale**2
        return unit * loss, unit * scale * gradient, unit * virial

    def _weights(self, constants: float | np.ndarray) -> torch.Tensor:
        """(n_bonds,): the force constants, eV/A^2."""
        n_bonds = len(self._lengths)
        if isinstance(constants, np.ndarray) and len(constants) != n_bonds:
            raise ValueError(
                f'force_constant has {len(constants)} numbers, and the prediction '
                f'{n_bonds} bonds; give one number, or one for each of relaxation.bonds'
            )
        return torch.from_numpy(np.full(n_bonds, constants, dtype=float))


_ANEW = 'make another EDGCalculator for other atoms'


def _objective(
    pos: torch.Tensor,
    cell: torch.Tensor,
    edges: torch.Tensor,
    offsets: torch.Tensor,
    *,
    lower: torch.Tensor,
    upper: torch.Tensor,
    weight: torch.Tensor,
) -> tuple[float, np.ndarray, np.ndarray]:
    """The solver's loss for one structure (A), weighted, with gradient and virial."""
    graph = pos.new_zeros(len(pos), dtype=torch.long)
    nothing = torch.zeros_like(graph, dtype=torch.bool)
    sums = Sums(graph, anchored=nothing[:1], fixed=nothing)
    start = pos.new_zeros(3, len(pos) + 1)
    bounds = edge_bounds(pos, cell[None], graph, edges, offsets, lower=lower, upper=upper)
    bounds = replace(bounds, weight=weight)
    excess, unit = bounds.measure(start)
    loss = bounds.loss(excess, sums)
    pull = bounds.slope(excess) * unit
    gradient = sums.onto_atoms(pull, bounds, start)[:, :-1].T
    return loss.item(), gradient.numpy(), (pull @ bounds.base.T).numpy()


def _fractional(positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
    return np.linalg.solve(cell.T, positions.T).T


def _finite(value: Any) -> bool:
    """Whether a parameter is a finite number."""
    return isinstance(value, Real) and bool(np.isfinite(value))


def _force_constants(value: Any) -> float | np.ndarray:
    """One force constant, or an array of one for each bond."""
    with suppress(TypeError, ValueError):
        constants = np.array(value, dtype=float)
        if constants.ndim < 2 and (np.isfinite(constants) & (constants > 0)).all():
            return constants if constants.ndim else float(constants)
    raise ValueError(
        f'force_constant is {value!r}; it must be a positive number, eV/A^2, or one for '
        'each bond'
    )
