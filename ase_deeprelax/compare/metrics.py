"""How far a predicted structure is from the reference: the paper's metrics and two more.

Neither the orientation of the prediction, nor a rigid drift, nor the image an atom is
written in counts as an error (paper 4.10 counts the first two).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ase_deeprelax.data.neighbors import neighbor_list
from ase_deeprelax.data.pair import Pair, nearest_shift, polar
from ase_deeprelax.symmetry import spacegroup_number

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

# Bonds are the edges of the paper's graph of the unrelaxed structure, in whole shells.
BOND_CUTOFF = 6.0
BOND_NEIGHBORS = 30
SYMPREC = 1e-2
_IMAGES = np.stack(np.meshgrid(*3 * [[-1, 0, 1]], indexing='ij'), axis=-1).reshape(-1, 3)


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

    def errors(self, atoms):
        """All figures of one prediction.

        Parameters
        ----------
        atoms : ase.Atoms
            The predicted structure: atoms and lattice vectors in the order of the pair,
            in any orientation and images.

        Returns
        -------
        dict of str to float
            ``coord_mae, internal_mae, bond_mae, lattice_mae`` in A, ``volume_mae`` in
            A^3, ``relative_volume``, ``metric_error`` in A^2 (E3Relax-H2's: the Frobenius
            norm of the difference of L L^T); ``match_rate``, ``spacegroup_kept`` (number
            equals the input's) and ``spacegroup_right`` (the relaxed structure's), 0 or
            1; and ``rmsd``, in units of (volume per atom)^(1/3), 1.0 where nothing
            matches.
        """
        pair = self.pair
        cell, frac = align(atoms, pair)
        volume, reference = (abs(np.linalg.det(c)) for c in (cell, pair.cell1))
        metric = cell @ cell.T - pair.cell1 @ pair.cell1.T
        number = spacegroup_number(atoms, symprec=SYMPREC)
        match, rmsd = self._match(atoms)
        return {
            'coord_mae': coordinate_error(cell, frac, pair),
            'internal_mae': float(np.abs((frac - pair.frac1) @ pair.cell1).mean()),
            'bond_mae': distance_error(cell, frac, pair, self._bonds),
            'lattice_mae': float(np.abs(cell - pair.cell1).mean()),
            'volume_mae': float(abs(volume - reference)),
            'relative_volume': float(abs(volume / reference - 1)),
            'metric_error': float(np.linalg.norm(metric)),
            'match_rate': float(match),
            'rmsd': rmsd,
            'spacegroup_kept': float(number == self._spacegroups[0]),
            'spacegroup_right': float(number == self._spacegroups[1]),
        }

    @cached_property
    def _bonds(self):
        cell = self.pair.cell0
        return neighbor_list(self.pair.frac0 @ cell, cell, BOND_CUTOFF, BOND_NEIGHBORS)

    @cached_property
    def _spacegroups(self):
        pair = self.pair
        halves = (pair.unrelaxed, pair.relaxed)
        return tuple(spacegroup_number(atoms, symprec=SYMPREC) for atoms in halves)

    @cached_property
    def _structure(self):
        return _structure(self.pair.relaxed)

    def _match(self, atoms):
        """The paper's yes or no, and matbench-discovery's RMSD."""
        from pymatgen.analysis.structure_matcher import StructureMatcher

        structure = _structure(atoms)
        paper = StructureMatcher(ltol=0.2, stol=0.3, angle_tol=5)
        discovery = StructureMatcher(stol=1.0, scale=False)
        match = paper.fit(self._structure, structure)
        found = discovery.get_rms_dist(self._structure, structure)
        return match, 1.0 if found is None else float(found[0])


def align(atoms, pair):
    """A prediction in the orientation, images and origin of the relaxed structure.

    Returns
    -------
    cell : (3, 3), A
        Turned onto ``pair.cell1`` by a polar decomposition.
    frac : (n_atoms, 3)
        In the image nearest ``pair.frac1``, without rigid drift.
    """
    cell = atoms.cell.array
    frac = np.linalg.solve(cell.T, atoms.positions.T).T
    stretch, _ = polar(np.linalg.solve(pair.cell1, cell))
    shift = nearest_shift(frac - pair.frac1, pair.cell1)
    return pair.cell1 @ stretch, pair.frac1 + shift


def coordinate_error(cell, frac, pair):
    """DeepRelax's coordinate MAE of an aligned prediction, A.

    Each atom counts in the nearest of the 27 images built with the relaxed cell. The drift
    goes before that choice, because it decides the images, and after it, because the
    choice changes the mean.
    """
    vectors = frac @ cell - pair.frac1 @ pair.cell1
    vectors -= vectors.mean(axis=0)
    images = vectors[:, None] + _IMAGES @ pair.cell1
    nearest = (images**2).sum(axis=2).argmin(axis=1)
    vectors = images[np.arange(len(images)), nearest]
    return float(np.abs(vectors - vectors.mean(axis=0)).mean())


def distance_error(cell, frac, pair, bonds):
    """Mean absolute error of the lengths of bonds in an aligned prediction, A.

    ``bonds`` are centres ``i``, neighbours ``j`` and lattice translations of ``j`` for the
    images that ``pair`` is written in; 0 without bonds.
    """
    i, j, offset = bonds
    predicted, true = (
        np.linalg.norm((f[j] + offset - f[i]) @ c, axis=1)
        for f, c in ((frac, cell), (pair.frac1, pair.cell1))
    )
    return float(np.abs(predicted - true).mean()) if len(true) else 0.0


def summarise(rows):
    """Mean and median of each error, mean of each share, over rows of `Reference.errors`.

    >>> summarise([{'rmsd': 0.0}, {'rmsd': 1.0}])
    {'rmsd': 0.5}
    """
    keys = rows[0].keys() if rows else ()
    columns = {key: np.array([row[key] for row in rows]) for key in keys}
    return {
        key: (
            {'mean': float(column.mean()), 'median': float(np.median(column))}
            if key in ERRORS
            else float(column.mean())
        )
        for key, column in columns.items()
    }


def spearman(x, y):
    """Rank correlation of two sequences; NaN where one of them does not vary.

    >>> round(spearman([1, 2, 3], [10, 20, 40]), 6)
    1.0
    """
    from scipy.stats import rankdata

    x, y = rankdata(x), rankdata(y)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float('nan')
    return float(np.corrcoef(x, y)[0, 1])


def _structure(atoms):
    from pymatgen.core import Structure

    return Structure(
        atoms.cell.array, atoms.numbers, atoms.positions, coords_are_cartesian=True
    )
