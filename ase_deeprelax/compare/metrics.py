"""How far a predicted structure is from the reference: the paper's metrics and two more.

Neither the orientation of the prediction, nor a rigid drift, nor the image an atom is
written in counts as an error (paper 4.10 counts the first two). What a pair holds, such as
its cell, is not scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms

from ase_deeprelax.compare.alignment import Alignment
from ase_deeprelax.compare.evaluation_schema import Errors
from ase_deeprelax.data.pair import Pair
from ase_deeprelax.geometry.symmetry import spacegroup_number

if TYPE_CHECKING:
    from pymatgen.core import Structure

# Errors reported as mean and median, and yes-or-no figures reported as a share or mean.
ERRORS = (
    'coord_mae',
    'internal_mae',
    'bond_mae',
    'lattice_mae',
    'volume_mae',
    'relative_volume',
    'metric_error',
)
SHARES = ('match_rate', 'rmsd', 'spacegroup_kept', 'spacegroup_right')

SYMPREC = 1e-2
# Added to the atomic number of a fixed atom: only fixed atoms are its equivalents.
FIXED = 1000


@dataclass(frozen=True, eq=False)
class Reference:
    """The relaxed half of a pair, ready to be compared with any number of predictions.

    Parameters
    ----------
    pair : Pair

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase_deeprelax.data.pair import make_pair
    >>> pair = make_pair('Cu', bulk('Cu', a=3.5), bulk('Cu', a=3.6))
    >>> Reference(pair).errors(bulk('Cu', a=3.5))['relative_volume']
    0.081
    """

    pair: Pair

    def errors(self, atoms: Atoms) -> Errors:
        """All figures of one prediction.

        Parameters
        ----------
        atoms : ase.Atoms
            The predicted structure: atoms and lattice vectors in the order of the pair,
            in any orientation and images.

        Returns
        -------
        dict of str to float or None
            ``coord_mae, internal_mae, bond_mae, lattice_mae`` in A, ``volume_mae`` in
            A^3, ``relative_volume``, ``metric_error`` in A^2 (E3Relax-H2's: the Frobenius
            norm of the difference of L L^T); ``match_rate``, ``spacegroup_kept`` (number
            equals the input's) and ``spacegroup_right`` (the relaxed structure's), 0 or
            1; and ``rmsd``, in units of (volume per atom)^(1/3), 1.0 where nothing
            matches.

            Coordinates are relative to the fixed atoms where there are any, else without
            drift. ``lattice_mae`` and ``metric_error`` are those of the periodic vectors.
            None stands for what has no meaning: all figures of the cell where it is held;
            volumes where there is vacuum; ``match_rate`` and ``rmsd`` in both cases (their
            tolerances scale with the volume). The space group of a layer is that of a
            crystal of such layers far apart; fixed and free atoms count as different.
        """
        alignment = self._alignment
        cell, frac = alignment.align(atoms)
        inside = (frac - alignment.frac1) @ alignment.cell1
        number = self._spacegroup(atoms)
        return {
            'coord_mae': alignment.coordinate_error(cell, frac),
            'internal_mae': float(np.abs(inside).mean()),
            'bond_mae': alignment.distance_error(cell, frac, alignment.bonds),
            **self._cell_errors(cell),
            'match_rate': self._match(atoms),
            'rmsd': self.rmsd(atoms),
            'spacegroup_kept': float(number == self._spacegroups[0]),
            'spacegroup_right': float(number == self._spacegroups[1]),
        }

    def rmsd(self, atoms: Atoms) -> float | None:
        """matbench-discovery's RMSD of one prediction alone, see `errors`.

        Parameters
        ----------
        atoms : ase.Atoms
            As `errors` takes it.

        Returns
        -------
        float or None
            In units of (volume per atom)^(1/3), 1.0 where nothing matches; None where
            there is vacuum or the cell is fixed.

        Examples
        --------
        >>> from ase.build import bulk
        >>> from ase_deeprelax.data.pair import make_pair
        >>> Reference(make_pair('Cu', bulk('Cu'), bulk('Cu'))).rmsd(bulk('Cu'))
        0.0
        """
        from ase_deeprelax.compare.structure_matcher import Matcher

        if not self._is_free_crystal:
            return None
        matcher = Matcher(stol=1.0, scale=False)
        found = matcher.get_rms_dist(self._structure, _structure(atoms))
        return 1.0 if found is None else float(found[0])

    @cached_property
    def _alignment(self) -> Alignment:
        return Alignment(self.pair)

    def _cell_errors(self, cell: np.ndarray) -> Errors:
        """Errors of an aligned cell."""
        if self.pair.fixed_cell:
            names = ('lattice_mae', 'volume_mae', 'relative_volume', 'metric_error')
            return dict.fromkeys(names)
        periodic, true = self._alignment.periodic, self._alignment.cell1
        errors: Errors = {
            'lattice_mae': self._alignment.lattice_error(cell),
            'volume_mae': None,
            'relative_volume': None,
            'metric_error': float(
                np.linalg.norm(_metric(cell[periodic]) - _metric(true[periodic]))
            ),
        }
        if periodic.all():
            volume, reference = (abs(np.linalg.det(c)) for c in (cell, true))
            errors['volume_mae'] = float(abs(volume - reference))
            errors['relative_volume'] = float(abs(volume / reference - 1))
        return errors

    @cached_property
    def _spacegroups(self) -> tuple[int, int]:
        return self._spacegroup(self.pair.unrelaxed), self._spacegroup(self.pair.relaxed)

    def _spacegroup(self, atoms: Atoms) -> int:
        cell, positions, numbers = atoms.cell.array, atoms.positions, atoms.numbers
        if not self._alignment.periodic.all():
            cell, frac = self._alignment.box(atoms)
            positions = frac @ cell
        if self.pair.fixed is not None:
            numbers = numbers + FIXED * self.pair.fixed
        crystal = Atoms(numbers, cell=cell, positions=positions, pbc=True)
        return spacegroup_number(crystal, symprec=SYMPREC)

    @cached_property
    def _structure(self) -> 'Structure':
        return _structure(self.pair.relaxed)

    @property
    def _is_free_crystal(self) -> bool:
        """Whether structures can be matched: tolerances scale with the volume."""
        return not self.pair.fixed_cell and all(self.pair.pbc)

    def _match(self, atoms: Atoms) -> float | None:
        """The paper's yes (1) or no (0)."""
        from ase_deeprelax.compare.structure_matcher import Matcher

        if not self._is_free_crystal:
            return None
        matcher = Matcher(ltol=0.2, stol=0.3, angle_tol=5)
        return float(matcher.fit(self._structure, _structure(atoms)))


def summarise(rows: Sequence[Errors]) -> dict[str, float | dict[str, float] | None]:
    """Mean and median of each error, mean of each share, over rows of `Reference.errors`.

    Rows in which a figure is None do not count for it; where it is None in all of them, so
    it is here.

    >>> summarise([{'rmsd': 0.0}, {'rmsd': 1.0}, {'rmsd': None}])
    {'rmsd': 0.5}
    """
    summary = {}
    for key in rows[0] if rows else ():
        values = np.array([row[key] for row in rows if row[key] is not None])
        if not len(values):
            summary[key] = None
        elif key in ERRORS:
            middle = float(np.median(values))
            summary[key] = {'mean': float(values.mean()), 'median': middle}
        else:
            summary[key] = float(values.mean())
    return summary


def _metric(vectors: np.ndarray) -> np.ndarray:
    return vectors @ vectors.T


def _structure(atoms: Atoms) -> 'Structure':
    from pymatgen.core import Structure

    return Structure(
        atoms.cell.array, atoms.numbers, atoms.positions, coords_are_cartesian=True
    )
