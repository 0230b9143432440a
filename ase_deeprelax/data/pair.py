"""A pair: an unrelaxed structure and its relaxed one, atoms in the same order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from ase.geometry import find_mic
from scipy.linalg import polar

from ase_deeprelax.data.formula import chemical_formula
from ase_deeprelax.data.json_lines import check_text
from ase_deeprelax.data.layer_halves import as_layers
from ase_deeprelax.data.one_line import count
from ase_deeprelax.data.structures import as_atoms
from ase_deeprelax.errors import PairFileError, StructureError
from ase_deeprelax.geometry.constraints import constraint_labels
from ase_deeprelax.geometry.layer import Layer
from ase_deeprelax.geometry.motion import Motion, in_plane_strains, strain_projection
from ase_deeprelax.geometry.vacuum import find_layer

# A cell with less room than this is flat or missing, A^3 per atom.
SMALLEST_VOLUME = 1e-3
# A layer whose atoms lie within this of one plane has no thickness to strain, A (rms).
FLAT = 0.3
# Relative changes of a layer's thickness that count as a strain; the rest of larger ones,
# of layers that lose their form, is displacement.
GROWTH = (-0.3, 0.4)
# How many atoms' own shifts are tried as the rigid drift of a pair.
DRIFT_CANDIDATES = 8


@dataclass(frozen=True, eq=False)
class Pair:
    """An unrelaxed structure (0) and its relaxed one (1), atoms in the same order.

    Attributes
    ----------
    id : str
        What tables and reports call it.
    numbers : (n_atoms,) int64
        Atomic numbers.
    cell0, cell1 : (3, 3), A
        Row vectors; ``cell1`` is turned so that ``cell0 -> cell1`` is a pure stretch.
    frac0, frac1 : (n_atoms, 3)
        Fractional coordinates; ``frac1`` in the image nearest ``frac0``. A rigid drift that
        a file has may be in them; it is no part of `targets`.
    ok : bool
        Whether the pair looks sane; default True. It looks at the target, so tests are
        reported with and without.
    split : str
        ``'train'``, ``'val'``, ``'test'`` or '' where the file does not say.
    formula : str
        As the file says it; default ''.
    scale : float
        Isotropic factor for ``cell0`` that brings its volume close; default 1.
    pbc : tuple of 3 bool
        Along which vectors the structure is periodic; default all. The target of a layer
        moves its atoms and the cell in the plane.
    fixed_cell : bool
        Whether the cell is fixed; default False.
    fixed : (n_atoms,) bool or None
        Atoms that keep their fractional coordinates; default none.
    kind : str
        What the structure is, for tables: 'bulk', 'monolayer', 'slab', 'defect' ...;
        default ''.
    src : str
        The collection that the pair comes from; default ''.

    Examples
    --------
    >>> from ase.build import bulk
    >>> pair = make_pair('mp-30', bulk('Cu', a=3.5), bulk('Cu', a=3.6))
    >>> len(pair), float(pair.relaxed.get_volume())
    (1, 11.66)
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
    pbc: tuple[bool, bool, bool] = (True, True, True)
    fixed_cell: bool = False
    fixed: np.ndarray | None = None
    kind: str = ''
    src: str = ''

    def __repr__(self) -> str:
        kind = self.kind or ('bulk' if all(self.pbc) else 'layer')
        formula = chemical_formula(self.unrelaxed)
        volumes = (abs(np.linalg.det(cell)) for cell in (self.cell1, self.cell0))
        ratio = f'volume x {np.divide(*volumes):.3f}'
        n_atoms = count(len(self), 'atom')
        return f'Pair({self.id!r}, {formula}, {n_atoms}, {kind}, {ratio})'

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def unrelaxed(self) -> Atoms:
        """The input as ``ase.Atoms``."""
        return self._atoms(self.cell0, self.frac0)

    @property
    def relaxed(self) -> Atoms:
        """The target as ``ase.Atoms``, in the orientation and images of the input."""
        return self._atoms(self.cell1, self.frac1)

    def targets(self) -> tuple[np.ndarray, np.ndarray]:
        """What a model has to predict.

        Returns
        -------
        deformation : (3, 3)
            Symmetric, positive definite; ``cell0 @ deformation`` is the relaxed cell, but
            for the height of a layer's box. Along the normal of a layer, whose thickness
            may change, it is the stretch that fits the heights of its atoms best.
        displacement : (n_atoms, 3), A
            At the unrelaxed cell; without rigid drift where no atom is fixed.

        Examples
        --------
        >>> from ase.build import bulk
        >>> pair = make_pair('Cu', bulk('Cu', a=3.5), bulk('Cu', a=3.6))
        >>> deformation, displacement = pair.targets()
        >>> deformation.round(4).diagonal().tolist()
        [1.0286, 1.0286, 1.0286]
        """
        _, deformation = polar(np.linalg.solve(self.cell0, self.cell1), side='left')
        displacement = (self.frac1 - self.frac0) @ self.cell0
        layer = self.layer
        if layer is not None and self.thickness_is_free:
            heights = layer.in_one_piece(self.unrelaxed) @ layer.normal
            heights = heights - heights.mean()
            rise = displacement @ layer.normal
            spread = heights @ heights
            if spread > FLAT**2 * len(heights):
                growth = np.clip(heights @ rise / spread, *GROWTH)
                along = np.outer(layer.normal, layer.normal)
                deformation = deformation + growth * along
                # At the unrelaxed thickness:  h + u = (h + rise) / (1 + growth).
                rest = (heights + rise) / (1 + growth) - heights - rise
                displacement = displacement + np.outer(rest, layer.normal)
        if self.fixed is None:
            displacement = displacement - displacement.mean(axis=0)
        else:
            displacement = np.where(self.fixed[:, None], 0.0, displacement)
        return deformation, displacement

    @property
    def layer(self) -> Layer | None:
        """The layer that the input is, or None for a crystal."""
        return None if all(self.pbc) else find_layer(self.unrelaxed)

    @property
    def thickness_is_free(self) -> bool:
        """Whether a strain may make the layer thicker or thinner."""
        return self.fixed is None and not self.fixed_cell

    def motion(self) -> Motion:
        """What may move between the two structures.

        >>> from ase.build import bulk
        >>> make_pair('Cu', bulk('Cu', a=3.5), bulk('Cu', a=3.6)).motion().all_free
        True
        """
        free_strain, layer = np.eye(6), self.layer
        if self.fixed_cell:
            free_strain = np.zeros((6, 6))
        elif layer is not None:
            strains = in_plane_strains(layer.normal, thickness=self.thickness_is_free)
            free_strain = strain_projection(strains)
        fixed = np.zeros(len(self), dtype=bool) if self.fixed is None else self.fixed
        return Motion(fixed, free_strain)

    def _atoms(self, cell: np.ndarray, frac: np.ndarray) -> Atoms:
        atoms = Atoms(self.numbers, cell=cell, positions=frac @ cell, pbc=self.pbc)
        if self.fixed is not None:
            atoms.set_constraint(FixAtoms(mask=self.fixed))
        return atoms


def make_pair(
    id: Any,
    unrelaxed: Any,
    relaxed: Any,
    *,
    ok: bool = True,
    split: str | None = '',
    scale: float = 1.0,
    fixed_cell: bool = False,
    kind: str | None = '',
) -> Pair:
    """A pair from two structures: nearest images, no drift, no rotation.

    Parameters
    ----------
    id : str
        What tables and reports call it.
    unrelaxed, relaxed : ase.Atoms or pymatgen Structure
        Same atoms in the same order, lattice vectors in the same order. Fixed atoms are
        those of ``unrelaxed``; one that is fixed along some axes only counts as free. So is
        the periodicity, but for vacuum in both: such a pair is one of layers, as `relax`
        takes them, and the height of the box of ``relaxed`` does not matter.
    ok : bool
        Default True; this and the rest as in `Pair`.
    split : str, optional
        Default ''; None is the same.
    scale : float
        Default 1.
    fixed_cell : bool
        Default False.
    kind : str, optional
        Default ''; None is the same.

    Returns
    -------
    Pair
        With the deformation and the displacements between the two.

    Raises
    ------
    PairFileError
        No structures, or disordered ones; different atoms, cells that are flat or of
        different handedness, or values that are not finite.

    Examples
    --------
    >>> from ase.build import bulk
    >>> pair = make_pair('mp-30', bulk('Cu', a=3.5), bulk('Cu', a=3.6))
    >>> pair.formula, float(pair.relaxed.get_volume())
    ('Cu', 11.66)
    """
    check_text(str(id), 'id', f'pair {id!a}')
    try:
        unrelaxed, relaxed = as_atoms(unrelaxed), as_atoms(relaxed)
    except StructureError as error:
        raise PairFileError(f'pair {id!r}: {error}') from error
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
    unrelaxed, relaxed = as_layers(unrelaxed, relaxed)
    cell1 = relaxed.cell.array
    frac0 = np.linalg.solve(cell0.T, unrelaxed.positions.T).T
    frac1 = np.linalg.solve(cell1.T, relaxed.positions.T).T
    # Rows are vectors: the change is a stretch, then a rotation, which may mirror.
    rotation, stretch = polar(np.linalg.solve(cell0, cell1), side='left')
    if np.linalg.det(rotation) < 0:
        raise PairFileError(
            f'pair {id!r}: the cells are of different handedness; give the lattice vectors '
            'of both structures in the same order'
        )
    fixed = fixed_atoms(unrelaxed)
    return Pair(
        id=str(id),
        numbers=unrelaxed.numbers.astype(np.int64),
        cell0=cell0.copy(),
        frac0=frac0,
        cell1=cell0.copy() if fixed_cell else cell0 @ stretch,
        frac1=frac0 + fractional_moves(frac1 - frac0, cell0, fixed),
        ok=bool(ok),
        split=str(split or ''),
        formula=chemical_formula(unrelaxed),
        scale=float(scale),
        pbc=tuple(unrelaxed.pbc.tolist()),
        fixed_cell=bool(fixed_cell),
        fixed=fixed if fixed.any() else None,
        kind=str(kind or ''),
    )


def fixed_atoms(atoms: Atoms) -> np.ndarray:
    """(n_atoms,) bool: atoms that constraints fix along all axes.

    >>> cu = Atoms('Cu2', constraint=FixAtoms([1]))
    >>> fixed_atoms(cu).tolist()
    [False, True]
    """
    return constraint_labels(atoms, np.ones(len(atoms), dtype=bool)) == 1


def fractional_moves(shift: np.ndarray, cell: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    """How atoms have moved, from fractional differences in any images and with any drift.

    Parameters
    ----------
    shift : (n_atoms, 3)
    cell : (3, 3), A
    fixed : (n_atoms,) bool

    Returns
    -------
    (n_atoms, 3)
        In the nearest images: zero for fixed atoms, or without drift where there are none.

    Examples
    --------
    >>> shift = np.array([[0.98, 0.0, 0.0], [0.0, 0.0, 0.0]])
    >>> fractional_moves(shift, 4 * np.eye(3), np.array([False, True])).round(6).tolist()
    [[-0.02, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    if not fixed.any():
        return nearest_shift(shift, cell)
    # Fixed atoms say where the other atoms have gone.
    moves = find_mic((shift - shift[fixed][0]) @ cell, cell)[0]
    return np.linalg.solve(cell.T, np.where(fixed[:, None], 0.0, moves).T).T


def nearest_shift(shift: np.ndarray, cell: np.ndarray) -> np.ndarray:
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


def check_halves(
    name: str, x0: np.ndarray, x1: np.ndarray, cell0: np.ndarray, cell1: np.ndarray
) -> None:
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
