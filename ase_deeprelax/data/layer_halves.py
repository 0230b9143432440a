"""The two structures of a pair become layers in one box, where there is vacuum."""

from __future__ import annotations

import numpy as np
from ase import Atoms

from ase_deeprelax.geometry.layer import Layer
from ase_deeprelax.geometry.vacuum import layer_or_none


def as_layers(unrelaxed: Atoms, relaxed: Atoms) -> tuple[Atoms, Atoms]:
    """Both halves of a pair as layers in boxes of one height, where there is vacuum.

    Parameters
    ----------
    unrelaxed, relaxed : ase.Atoms
        The same atoms in the same order; not changed.

    Returns
    -------
    unrelaxed, relaxed : ase.Atoms
        Where both have vacuum along one vector of their cells, or say that they are not
        periodic along it: not periodic along it, and the relaxed structure with the vacuum
        vector of the unrelaxed one. Otherwise the structures as given: a gap that closes
        as the crystal relaxes was no vacuum.

    Examples
    --------
    >>> from ase.build import mx2
    >>> halves = [mx2(a=3.2, vacuum=vacuum) for vacuum in (15, 9)]
    >>> for half in halves:
    ...     half.pbc = True
    >>> a, b = as_layers(*halves)
    >>> a.pbc.tolist(), float(b.cell.lengths()[2] - a.cell.lengths()[2])
    ([True, True, False], 0.0)
    """
    layer = layer_or_none(unrelaxed)
    if layer is None or layer_or_none(relaxed) is None:
        return unrelaxed, relaxed
    # A vector of the cell that has no part in the two of the layer leads across it.
    across = ~layer.basis[:2].any(axis=0)
    if not across.any():
        return unrelaxed, relaxed
    unrelaxed, relaxed = unrelaxed.copy(), relaxed.copy()
    unrelaxed.pbc = relaxed.pbc = ~across
    unrelaxed_layer, relaxed_layer = layer_or_none(unrelaxed), layer_or_none(relaxed)
    if unrelaxed_layer is not None and relaxed_layer is not None:
        relaxed.positions = relaxed_layer.in_one_piece(relaxed)
        parts = np.linalg.solve(
            _plane_and_normal(unrelaxed, unrelaxed_layer).T, unrelaxed.cell[across][0]
        )
        cell = relaxed.cell.array.copy()
        cell[across] = parts @ _plane_and_normal(relaxed, relaxed_layer)
        relaxed.set_cell(cell)
    return unrelaxed, relaxed


def _plane_and_normal(atoms: Atoms, layer: Layer) -> np.ndarray:
    """(3, 3): the two vectors of the layer, and the unit vector across it."""
    return np.array([*(layer.basis[:2] @ atoms.cell.array), layer.normal])
