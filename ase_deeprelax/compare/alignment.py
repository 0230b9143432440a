"""Predictions laid on the relaxed structures that they are compared with."""

from functools import cached_property

import numpy as np
from ase import Atoms
from ase.geometry import find_mic
from scipy.linalg import polar

from ase_deeprelax.data.pair import Pair, nearest_shift
from ase_deeprelax.errors import PairFileError
from ase_deeprelax.geometry.neighbors import neighbor_list
from ase_deeprelax.geometry.vacuum import layer_or_none
from ase_deeprelax.result import Relaxation

# Bonds are the edges of the paper's graph of the unrelaxed structure, in whole shells.
BOND_CUTOFF = 6.0
BOND_NEIGHBORS = 30
# A layer is compared in a box of this height, A: no image across the vacuum is near.
TALL = 1000.0
_IMAGES = np.stack(np.meshgrid(*3 * [[-1, 0, 1]], indexing='ij'), axis=-1).reshape(-1, 3)

# Centres i, neighbours j and lattice translations of j.
Bonds = tuple[np.ndarray, np.ndarray, np.ndarray]


class Alignment:
    """How predictions are laid on the relaxed structure of a pair.

    A prediction is turned onto the relaxed cell, each atom is taken in the image nearest to
    where it belongs, and the rigid drift is removed, or the drift of the fixed atoms where
    there are any. A layer is compared in one piece and in a tall box along its
    normal, so that neither the height nor the tilt of the given box counts, nor any image
    across the vacuum.

    Parameters
    ----------
    pair : Pair

    Attributes
    ----------
    periodic : (3,) bool
    cell0, cell1 : (3, 3), A
        The cells of the pair; for a layer those of the tall box.
    frac0, frac1 : (n_atoms, 3)
        Fractional coordinates in these cells.

    Raises
    ------
    PairFileError
        The pair is a wire, a molecule or a cluster.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase_deeprelax.data.pair import make_pair
    >>> alignment = Alignment(make_pair('Cu', bulk('Cu', a=3.5), bulk('Cu', a=3.6)))
    >>> cell, frac = alignment.align(bulk('Cu', a=3.5))
    >>> float(abs(cell - alignment.cell1).max())
    0.05
    """

    def __init__(self, pair: Pair) -> None:
        check_periodicity(pair)
        self.periodic = np.array(pair.pbc, dtype=bool)
        self._anchor = np.ones(len(pair), dtype=bool) if pair.fixed is None else pair.fixed
        self._any_fixed = pair.fixed is not None
        self.cell0, self.frac0 = pair.cell0, pair.frac0
        self.cell1, self.frac1 = pair.cell1, pair.frac1
        if not self.periodic.all():
            self._turns, self._has_vacuum = _turns(pair.unrelaxed, self.periodic)
            self.cell0, self.frac0 = self.box(pair.unrelaxed)
            cell1, self.frac1 = self.box(pair.relaxed)
            # The relaxed cell is turned so that it is a pure stretch of the unrelaxed one,
            # whatever the vacuum vectors are.
            change = np.linalg.solve(self.cell0, cell1)
            self.cell1 = self.cell0 @ polar(change, side='left')[1]

    def box(self, atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
        """Cell and fractional coordinates that a structure is compared in.

        Parameters
        ----------
        atoms : ase.Atoms
            Atoms and lattice vectors in the order of the pair. Where the box of a layer
            ends with the layer, its atoms are in the images of the pair across it: they
            cannot be distinguished from displacements there.

        Returns
        -------
        cell : (3, 3), A
            Of a layer: with a vector of `TALL` along the normal for the vacuum vector.
        frac : (n_atoms, 3)
        """
        cell, positions = atoms.cell.array.copy(), atoms.positions
        if not self.periodic.all():
            turns = self._turns
            if self._has_vacuum:
                own_turns, has_vacuum = _turns(atoms, self.periodic)
                turns = own_turns if has_vacuum else turns
            [k] = np.flatnonzero(~self.periodic)
            positions = positions + turns[:, None] * cell[k]
            normal = np.cross(cell[k - 2], cell[k - 1])
            normal *= np.sign(normal @ cell[k]) / np.linalg.norm(normal)
            cell[k] = TALL * normal
        return cell, np.linalg.solve(cell.T, positions.T).T

    def align(self, atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
        """A prediction in the orientation, images and origin of the relaxed structure.

        Parameters
        ----------
        atoms : ase.Atoms
            Atoms and lattice vectors in the order of the pair.

        Returns
        -------
        cell : (3, 3), A
            Turned onto ``cell1`` by a polar decomposition.
        frac : (n_atoms, 3)
            In the image nearest ``frac1``; without rigid drift, or relative to the fixed
            atoms where there are any.
        """
        cell, frac = self.box(atoms)
        _, stretch = polar(np.linalg.solve(self.cell1, cell), side='left')
        shift = frac - self.frac1
        if self._any_fixed:
            shift = shift - shift[self._anchor.argmax()]
            vectors = find_mic(shift @ self.cell1, self.cell1)[0]
            vectors -= vectors[self._anchor].mean(axis=0)
            shift = np.linalg.solve(self.cell1.T, vectors.T).T
        else:
            shift = nearest_shift(shift, self.cell1)
        return self.cell1 @ stretch, self.frac1 + shift

    def coordinate_error(self, cell: np.ndarray, frac: np.ndarray) -> float:
        """DeepRelax's coordinate MAE of an aligned prediction, A.

        The mean is over all atoms, fixed ones included, and x, y, z. Each atom counts in
        the nearest of the 27 images built with the relaxed cell (of the 9 in the plane of
        a layer). The drift is removed before that choice, because it decides the images,
        and after it, because the choice changes the mean.
        """
        vectors = frac @ cell - self.frac1 @ self.cell1
        vectors -= vectors[self._anchor].mean(axis=0)
        images = vectors[:, None] + _IMAGES @ self.cell1
        nearest = (images**2).sum(axis=2).argmin(axis=1)
        vectors = images[np.arange(len(images)), nearest]
        return float(np.abs(vectors - vectors[self._anchor].mean(axis=0)).mean())

    def lattice_error(self, cell: np.ndarray) -> float:
        """Mean absolute error of the periodic vectors of an aligned prediction, A."""
        return float(np.abs((cell - self.cell1)[self.periodic]).mean())

    def distance_error(self, cell: np.ndarray, frac: np.ndarray, bonds: Bonds) -> float:
        """Mean absolute error of the lengths of bonds in an aligned prediction, A.

        ``bonds`` are centres ``i``, neighbours ``j`` and lattice translations of ``j``, as
        `bonds` and `bonds_of` give them; the error is 0 without bonds.
        """
        i, j, offset = bonds
        predicted, true = (
            np.linalg.norm((f[j] + offset - f[i]) @ c, axis=1)
            for f, c in ((frac, cell), (self.frac1, self.cell1))
        )
        return float(np.abs(predicted - true).mean()) if len(true) else 0.0

    @cached_property
    def bonds(self) -> Bonds:
        """Edges of the paper's graph of the unrelaxed structure."""
        positions = self.frac0 @ self.cell0
        return neighbor_list(positions, self.cell0, BOND_CUTOFF, BOND_NEIGHBORS)

    def bonds_of(self, result: Relaxation) -> Bonds:
        """The bonds of the graph that a prediction was made with."""
        # A layer is compared in one piece.
        turns = np.zeros((len(result.initial), 3))
        if not self.periodic.all():
            turns[:, ~self.periodic] += self._turns[:, None]
        i, j = result.bonds.T
        return i, j, result.bond_offsets - turns[j] + turns[i]


def check_periodicity(pair: Pair) -> None:
    """Refuse a pair that is neither of crystals nor of layers with a PairFileError.

    >>> from ase.build import bulk
    >>> from ase_deeprelax.data.pair import make_pair
    >>> check_periodicity(make_pair('Cu', bulk('Cu'), bulk('Cu')))
    """
    if sum(pair.pbc) < 2:
        raise PairFileError(
            f'pair {pair.id!r}: pbc is {list(pair.pbc)}; pairs of crystals (pbc true along '
            'all vectors) and of layers (along two) can be compared, not those of wires, '
            'molecules or clusters'
        )


def _turns(atoms: Atoms, periodic: np.ndarray) -> tuple[np.ndarray, bool]:
    """(n_atoms,) vacuum vectors that bring a layer in one piece, and whether it has vacuum.

    Without vacuum, or with more than one layer, they are zero: the structure is compared as
    it is written.
    """
    layer = atoms.copy()
    layer.pbc = periodic
    found = layer_or_none(layer)
    if found is None:
        return np.zeros(len(atoms), dtype=np.int64), False
    return found.turns, bool(np.isfinite(found.vacuum))
