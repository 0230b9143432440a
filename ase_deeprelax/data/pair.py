"""A pair: an unrelaxed structure and its relaxed one, atoms in the same order."""

from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.geometry import find_mic

from ase_deeprelax.errors import PairFileError

# A cell with less room than this is flat or missing, A^3 per atom.
SMALLEST_VOLUME = 1e-3
# How many atoms' own shifts are tried as the rigid drift of a pair.
DRIFT_CANDIDATES = 8


@dataclass(frozen=True, eq=False)
class Pair:
    """An unrelaxed structure (0) and its relaxed one (1), atoms in the same order.

    Attributes
    ----------
    id : str
    numbers : (n_atoms,) int64
    cell0, cell1 : (3, 3), A
        Row vectors; ``cell1`` is turned so that ``cell0 -> cell1`` is a pure stretch.
    frac0, frac1 : (n_atoms, 3)
        Fractional coordinates; ``frac1`` in the image nearest ``frac0``, without drift.
    ok : bool
        Whether the pair looks sane; default True. It looks at the target, so tests are
        reported with and without.
    split : str
        ``'train'``, ``'val'``, ``'test'`` or '' where the file does not say.
    formula : str
    scale : float
        Isotropic factor for ``cell0`` that brings its volume close; default 1.
    """

    id: str
    numbers: np.ndarray
    cell0: np.ndarray
    frac0: np.ndarray
    cell1: np.ndarray
    frac1: np.ndarray
    ok: bool = True
    split: str = ''
    formula: str = ''
    scale: float = 1.0

    def __len__(self):
        return len(self.numbers)

    @property
    def unrelaxed(self):
        """The input as ``ase.Atoms``."""
        return _atoms(self.numbers, self.cell0, self.frac0)

    @property
    def relaxed(self):
        """The target as ``ase.Atoms``, in the orientation and images of the input."""
        return _atoms(self.numbers, self.cell1, self.frac1)

    def targets(self):
        """What a model has to predict.

        Returns
        -------
        deformation : (3, 3)
            Symmetric, positive definite; ``cell0 @ deformation`` is the relaxed cell.
        displacement : (n_atoms, 3), A
            At the unrelaxed cell, without rigid drift.

        Examples
        --------
        >>> from ase.build import bulk
        >>> pair = make_pair('Cu', bulk('Cu', a=3.5), bulk('Cu', a=3.6))
        >>> deformation, displacement = pair.targets()
        >>> deformation.round(4).diagonal().tolist()
        [1.0286, 1.0286, 1.0286]
        """
        deformation, _ = polar(np.linalg.solve(self.cell0, self.cell1))
        shift = self.frac1 - self.frac0
        return deformation, (shift - shift.mean(axis=0)) @ self.cell0


def polar(gradient):
    """Split ``gradient`` (3, 3) into a symmetric stretch times a rotation.

    Rows are vectors: ``gradient = stretch @ rotation``, so ``cell @ gradient`` turned back
    is ``cell @ stretch``. A mirror in ``gradient`` ends up in ``rotation`` (det -1).
    """
    left, stretches, right = np.linalg.svd(gradient)
    return (left * stretches) @ left.T, left @ right


def make_pair(id, unrelaxed, relaxed, *, ok=True, split='', scale=1.0):
    """A pair from two structures: nearest images, no drift, no rotation.

    Parameters
    ----------
    id : str
    unrelaxed, relaxed : ase.Atoms
        Same atoms in the same order, lattice vectors in the same order.
    ok, split, scale
        As in `Pair`.

    Returns
    -------
    Pair

    Raises
    ------
    PairFileError
        Different atoms, cells that are flat or of different handedness, or values that
        are not finite.

    Examples
    --------
    >>> from ase.build import bulk
    >>> pair = make_pair('mp-30', bulk('Cu', a=3.5), bulk('Cu', a=3.6))
    >>> pair.formula, float(pair.relaxed.get_volume())
    ('Cu', 11.66)
    """
    if len(unrelaxed) != len(relaxed):
        raise PairFileError(
            f'pair {id!r}: {len(unrelaxed)} atoms unrelaxed, {len(relaxed)} relaxed; '
            'a pair needs the same atoms in the same order'
        )
    differ = np.flatnonzero(unrelaxed.numbers != relaxed.numbers)
    if len(differ):
        k = differ[0]
        raise PairFileError(
            f'pair {id!r}: atom {k} is {unrelaxed.symbols[k]} unrelaxed and '
            f'{relaxed.symbols[k]} relaxed; a pair needs the same atoms in the same order'
        )
    cell0, cell1 = unrelaxed.cell.array, relaxed.cell.array
    check_halves(f'pair {id!r}', unrelaxed.positions, relaxed.positions, cell0, cell1)
    frac0 = np.linalg.solve(cell0.T, unrelaxed.positions.T).T
    frac1 = np.linalg.solve(cell1.T, relaxed.positions.T).T
    stretch, rotation = polar(np.linalg.solve(cell0, cell1))
    if np.linalg.det(rotation) < 0:
        raise PairFileError(
            f'pair {id!r}: the cells are of different handedness; give the lattice vectors '
            'of both structures in the same order'
        )
    return Pair(
        id=str(id),
        numbers=unrelaxed.numbers.astype(np.int64),
        cell0=cell0.copy(),
        frac0=frac0,
        cell1=cell0 @ stretch,
        frac1=frac0 + nearest_shift(frac1 - frac0, cell0),
        ok=bool(ok),
        split=split,
        formula=unrelaxed.get_chemical_formula('hill'),
        scale=float(scale),
    )


def nearest_shift(shift, cell):
    """Fractional differences ``shift`` (n, 3) in their nearest image and without drift.

    The drift comes first: an origin shift of half a cell would otherwise send every atom
    to an image of its own. Candidates are the circular mean and the shifts of the first
    atoms; the one that leaves the smallest displacements wins.
    """
    mean = np.angle(np.exp(2j * np.pi * shift).mean(axis=0)) / (2 * np.pi)
    drifts = np.concatenate([mean[None], shift[:DRIFT_CANDIDATES]])
    trials = shift - drifts[:, None]
    vectors = find_mic(trials.reshape(-1, 3) @ cell, cell)[0].reshape(trials.shape)
    vectors -= vectors.mean(axis=1, keepdims=True)
    # Rounded, so that among equals the first wins and not the last digit.
    best = vectors[(vectors**2).sum(axis=(1, 2)).round(9).argmin()]
    return np.linalg.solve(cell.T, best.T).T


def check_halves(name, x0, x1, cell0, cell1):
    """Refuse coordinates (n_atoms, 3) that are not finite, and cells without a volume.

    ``name`` is what the PairFileError calls the pair.
    """
    for label, x, cell in (('unrelaxed', x0, cell0), ('relaxed', x1, cell1)):
        # A sum is finite only where every entry is, and costs one pass.
        if not np.isfinite(x.sum() + cell.sum()):
            raise PairFileError(
                f'{name}: the {label} structure has values that are not finite'
            )
        a, b, c = cell.tolist()
        volume = abs(
            a[0] * (b[1] * c[2] - b[2] * c[1])
            - a[1] * (b[0] * c[2] - b[2] * c[0])
            + a[2] * (b[0] * c[1] - b[1] * c[0])
        )
        if volume < SMALLEST_VOLUME * len(x) or len(x) == 0:
            raise PairFileError(
                f'{name}: the {label} structure has {len(x)} atoms in a cell of '
                f'{volume:.2g} A^3; a pair needs a crystal that is periodic along all '
                'three vectors'
            )


def _atoms(numbers, cell, frac):
    return Atoms(numbers=numbers, cell=cell, positions=frac @ cell, pbc=True)
