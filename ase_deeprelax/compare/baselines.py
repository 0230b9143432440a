"""Two predictions that cost nothing and that a model has to beat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from ase_deeprelax.data.pair import Pair
from ase_deeprelax.geometry.element_volumes import by_number, element_volumes

# Re-weighting steps of the fit, and the relative error below which weights stop growing.
_STEPS = 30
_FLOOR = 0.01


class Dummy:
    """The input as the prediction.

    >>> from ase.build import bulk
    >>> Dummy()([bulk('Cu')])[0]
    Atoms(symbols='Cu', pbc=True, cell=[[0.0, 1.805, 1.805], ...)
    """

    def __call__(
        self,
        atoms_list: Iterable[Atoms],
        *,
        relax_cell: bool = True,  # noqa: ARG002 - the prediction is the same
    ) -> list[Atoms]:
        """Copies of the inputs, list of ase.Atoms, whether the cell relaxes or not."""
        return [atoms.copy() for atoms in atoms_list]


class ScaledDummy:
    """The input with its cell scaled isotropically to the sum of its elements' volumes.

    Only a crystal whose cell relaxes is scaled: neither a layer nor a fixed cell is.

    Parameters
    ----------
    volumes : dict of str to float, optional
        A^3 per atom by chemical symbol; default the table shipped with the package. A
        structure with an element that is not in it is left as it is.

    Examples
    --------
    >>> from ase.build import bulk
    >>> scaled = ScaledDummy({'Cu': 12.0})([bulk('Cu')])[0]
    >>> float(scaled.get_volume())
    12.0
    """

    def __init__(self, volumes: Mapping[str, float] | None = None) -> None:
        self._volumes = element_volumes() if volumes is None else by_number(volumes)

    def __call__(
        self, atoms_list: Iterable[Atoms], *, relax_cell: bool = True
    ) -> list[Atoms]:
        """Copies of the inputs, list of ase.Atoms, scaled if ``relax_cell`` (default)."""
        return [self._scale(atoms, relax_cell) for atoms in atoms_list]

    def _scale(self, atoms: Atoms, relax_cell: bool) -> Atoms:
        atoms = atoms.copy()
        if not relax_cell or not atoms.pbc.all():
            return atoms
        ratio = self._volumes[atoms.numbers].sum() / atoms.get_volume()
        if ratio > 0:  # not where an element is unknown: the sum is NaN
            atoms.set_cell(atoms.cell.array * ratio ** (1 / 3), scale_atoms=True)
        return atoms


def fit_element_volumes(pairs: Sequence[Pair]) -> dict[str, float]:
    """Volumes per element whose sums are closest to the relaxed cells of ``pairs``.

    Non-negative least squares, re-weighted until it minimises the mean absolute relative
    error: large cells and the few wrong targets must not decide.

    Parameters
    ----------
    pairs : list of Pair
        Of a training set.

    Returns
    -------
    dict of str to float
        A^3 per atom by chemical symbol, for the elements that occur.
    """
    from scipy.optimize import nnls

    n = len(chemical_symbols)
    counts = np.stack([np.bincount(pair.numbers, minlength=n) for pair in pairs])
    present = np.flatnonzero(counts.any(axis=0))
    counts = counts[:, present].astype(float)
    counts /= np.array([abs(np.linalg.det(pair.cell1)) for pair in pairs])[:, None]
    weights = np.ones(len(pairs))
    for _ in range(_STEPS):
        # Rows of [counts | 1] by QR: the fit then costs what its few columns do.
        rows = np.append(counts, np.ones((len(pairs), 1)), axis=1) * weights[:, None]
        reduced = np.asarray(np.linalg.qr(rows, mode='r'))
        volumes, _ = nnls(reduced[:, :-1], reduced[:, -1])
        weights = 1 / np.sqrt(np.maximum(np.abs(counts @ volumes - 1), _FLOOR))
    symbols = [chemical_symbols[z] for z in present]
    return dict(zip(symbols, volumes.round(3).tolist(), strict=True))
