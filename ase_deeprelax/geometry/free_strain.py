"""Which strains of the cell are free: filters, symmetry constraints, layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase.filters import StrainFilter, UnitCellFilter
from ase.spacegroup.symmetrize import symmetrize_rank2
from ase.stress import voigt_6_to_full_3x3_stress

from ase_deeprelax.geometry.motion import STRAIN_BASIS, project_strain

# A strain counts as free where the rules take away a smaller part of it than this: in cells
# from files, which have few digits, right angles are not quite right.
PARALLEL = 1e-3

# What `relax_cell` may be: yes, no, a word of `RELAX_CELL_WORDS`, or a mask of strains.
RelaxCell = bool | str | Sequence[float] | np.ndarray
RELAX_CELL_WORDS = ('in-plane', 'hydrostatic')


def check_relax_cell(relax_cell: RelaxCell) -> bool | str | np.ndarray:
    """What ``relax_cell`` says, or why it cannot be understood.

    Parameters
    ----------
    relax_cell : bool, str or array
        True: the whole cell relaxes (of a layer, its two vectors). False: it is fixed.
        'in-plane': the plane of the layer, or of the vectors a and b of a crystal.
        'hydrostatic': the volume at constant shape (of a layer, the area). A mask of six
        strains (xx, yy, zz, yz, xz, xy) or (3, 3): those that are not zero, as
        ``FrechetCellFilter`` takes it.

    Returns
    -------
    bool, str or (3, 3) bool array

    Raises
    ------
    ValueError
        It is none of these.

    Examples
    --------
    >>> check_relax_cell([1, 1, 0, 0, 0, 1]).astype(int).tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    """
    if isinstance(relax_cell, (bool, np.bool_)):
        return bool(relax_cell)
    if isinstance(relax_cell, str):
        if relax_cell in RELAX_CELL_WORDS:
            return relax_cell
    else:
        with suppress(ValueError):  # lists of unequal lengths
            mask = np.asarray(relax_cell)
            if mask.shape == (6,):
                mask = voigt_6_to_full_3x3_stress(mask)
            if (
                mask.shape == (3, 3)
                and mask.dtype.kind in 'biuf'
                and np.isfinite(mask).all()
            ):
                return (mask != 0) & (mask.T != 0)
    raise ValueError(
        f"relax_cell is {relax_cell!r}; it must be True, False, 'in-plane', 'hydrostatic', "
        'or a mask of the strains xx, yy, zz, yz, xz, xy (six numbers, or 3 x 3)'
    )


def plain_relax_cell(relax_cell: RelaxCell | None) -> bool | str | list | None:
    """The checked value of ``relax_cell`` in a form for JSON; None stays None.

    Parameters
    ----------
    relax_cell : bool, str, array or None
        As `check_relax_cell` takes it.

    Returns
    -------
    bool, str, None or (3, 3) list of bool

    Raises
    ------
    ValueError
        It is none of these.

    Examples
    --------
    >>> plain_relax_cell('in-plane'), plain_relax_cell([0.5, 0, 0, 0, 0, 0])
    ('in-plane', [[True, False, False], [False, False, False], [False, False, False]])
    """
    checked = None if relax_cell is None else check_relax_cell(relax_cell)
    return checked.tolist() if isinstance(checked, np.ndarray) else checked


@dataclass(frozen=True, eq=False)
class StrainRule:
    """Which strains are free, on the logarithm of the deformation.

    Attributes
    ----------
    cell : (3, 3), A
        The present cell.
    free_strain : (6, 6) or None
        Projection on the strains that layers and ``relax_cell`` leave, see
        `motion.Motion`; None: all.
    mask : (3, 3)
        Entries of the deformation from the filter's first cell that may change.
    hydrostatic, constant_volume : bool
        As in ASE's cell filters.
    symmetric : bool
        Whether the filter takes the symmetric part of the deformation.
    origin : (3, 3), A
        The filter's first cell.
    rotations : list of (n, 3, 3)
        Of ``FixSymmetry`` constraints, in fractional coordinates.
    """

    cell: np.ndarray
    free_strain: np.ndarray | None = None
    mask: np.ndarray = field(default_factory=lambda: np.ones((3, 3)))
    hydrostatic: bool = False
    constant_volume: bool = False
    symmetric: bool = False
    origin: np.ndarray | None = None
    rotations: list[np.ndarray] = field(default_factory=list)

    @property
    def frees_all(self) -> bool:
        """Whether no strain is held, beside those that ``FixSymmetry`` holds."""
        return (
            self.free_strain is None
            and bool(self.mask.all())
            and not (self.hydrostatic or self.constant_volume)
        )

    def projection(self) -> np.ndarray:
        """(6, 6): the projection on all that is free, in `motion.STRAIN_BASIS`."""
        if self.frees_all and not self.rotations:
            return np.eye(6)
        rules = self._by_plane, self._by_symmetry, self._by_filter
        taken = [[strain - rule(strain) for rule in rules] for strain in STRAIN_BASIS]
        # Free are the strains that none of the rules takes anything from.
        strains, sizes, _ = np.linalg.svd(np.reshape(taken, (6, -1)), full_matrices=False)
        free = strains[:, sizes < PARALLEL]
        return free @ free.T

    def relaxed_cell(self, deformation: np.ndarray) -> np.ndarray:
        """The cell, (3, 3) in A, after what is free of a deformation."""
        origin = self.cell if self.origin is None else np.asarray(self.origin, float)
        # Exactly nothing where nothing happened, so that such a cell stays to the last bit.
        same = np.array_equal(origin, self.cell)
        start = np.zeros((3, 3)) if same else np.linalg.solve(origin, self.cell) - np.eye(3)
        strain = project_strain(self.projection(), of_symmetric(np.log, deformation))
        return self.cell + origin @ (self._total(strain, start) - start)

    def _total(self, strain: np.ndarray, start: np.ndarray) -> np.ndarray:
        """(3, 3): deformation from the filter's first cell less 1, given a free strain."""
        if not self.constant_volume:
            return self._apply(strain, start)
        # The exponential of a traceless strain keeps the volume, its masked part does so
        # only to first order: finish with Newton steps along what the mask leaves.
        diagonal = self.mask * np.eye(3)
        target = np.linalg.det(np.eye(3) + start)
        for _ in range(20):
            total = self._apply(strain, start)
            excess = np.log(np.linalg.det(np.eye(3) + total) / target)
            if abs(excess) < 1e-14 or not diagonal.any():
                break
            strain = strain - diagonal * excess / diagonal.sum()
        return total if abs(excess) < 1e-12 else start

    def _apply(self, strain: np.ndarray, start: np.ndarray) -> np.ndarray:
        change = of_symmetric(np.expm1, strain)
        total = start + change + start @ change
        if self.symmetric:
            total = (total + total.T) / 2
        return total * self.mask

    def _by_plane(self, strain: np.ndarray) -> np.ndarray:
        if self.free_strain is None:
            return strain
        return project_strain(self.free_strain, strain)

    def _by_filter(self, strain: np.ndarray) -> np.ndarray:
        strain = strain * (self.mask != 0)
        diagonal = (self.mask != 0) * np.eye(3)
        if not (self.hydrostatic or self.constant_volume) or not diagonal.any():
            return np.zeros((3, 3)) if self.hydrostatic else strain
        mean = (strain * diagonal).sum() / diagonal.sum() * diagonal
        if self.hydrostatic:
            return np.zeros((3, 3)) if self.constant_volume else mean
        return strain - mean

    def _by_symmetry(self, strain: np.ndarray) -> np.ndarray:
        for rotations in self.rotations:
            strain = symmetrize_rank2(
                self.cell, np.linalg.inv(self.cell), strain, rotations
            )
            strain = (strain + strain.T) / 2
        return strain


def filter_settings(cell_filter: StrainFilter | UnitCellFilter | None) -> dict[str, Any]:
    """The settings of a cell filter of ASE, as keywords of `StrainRule`."""
    if cell_filter is None:
        return {}
    if isinstance(cell_filter, StrainFilter):
        mask = voigt_6_to_full_3x3_stress(cell_filter.mask)
        return {'origin': cell_filter.origcell, 'mask': mask, 'symmetric': True}
    return {
        'origin': cell_filter.orig_cell,
        'mask': np.asarray(cell_filter.mask, float),
        'hydrostatic': cell_filter.hydrostatic_strain,
        'constant_volume': cell_filter.constant_volume,
    }


def of_symmetric(
    function: Callable[[np.ndarray], np.ndarray], matrix: np.ndarray
) -> np.ndarray:
    """A function of a symmetric matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * function(values)) @ vectors.T
