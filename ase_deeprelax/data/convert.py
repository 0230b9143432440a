"""Structures to graphs, and a prediction back to the user's orientation and order."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from ase import Atoms
from numpy.typing import ArrayLike

from ase_deeprelax.data.graph import CrystalGraph, GraphSpec, build_graph
from ase_deeprelax.geometry.canonical import CanonicalCrystal, canonicalize
from ase_deeprelax.geometry.lattice import compact
from ase_deeprelax.geometry.layer import Layer
from ase_deeprelax.geometry.motion import Motion, everything_free, rotate_projection
from ase_deeprelax.geometry.vacuum import split_at_widest_gap


@dataclass(frozen=True, eq=False)
class Frame:
    """The way back from a graph to the atoms it was built of.

    Attributes
    ----------
    rotation : (3, 3) or None
        Orthogonal; ``user @ rotation`` is a vector of the graph. None: same orientation.
    order : (n_atoms,) int64 or None
        Atom ``k`` of the graph is the user's ``order[k]``. None: same order.
    basis : (3, 3) int64 or None
        The graph's cell is ``basis @ user_cell @ rotation``. None: same cell.
    shift : (n_atoms, 3) int64 or None
        Graph cells by which each atom of the graph was moved from where the user wrote it
        (beside a common translation). None: zeros.
    """

    rotation: np.ndarray | None = None
    order: np.ndarray | None = None
    basis: np.ndarray | None = None
    shift: np.ndarray | None = None

    def to_user(
        self, deformation: ArrayLike, displacement: ArrayLike
    ) -> tuple[np.ndarray, np.ndarray]:
        """Carry a prediction back to the user's orientation and atom order.

        Parameters
        ----------
        deformation : (3, 3)
            Array or CPU tensor, in the frame of the graph.
        displacement : (n_atoms, 3), A

        Returns
        -------
        deformation : (3, 3) float64 array
        displacement : (n_atoms, 3) float64 array, A
        """
        deformation = np.asarray(deformation, dtype=float)
        displacement = np.asarray(displacement, dtype=float)
        if self.rotation is not None:
            deformation = self.rotation @ deformation @ self.rotation.T
            displacement = displacement @ self.rotation.T
        if self.order is not None:
            displacement = self._reorder(displacement)
        return deformation, displacement

    def from_user(
        self, deformation: np.ndarray, displacement: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The inverse of `to_user`: targets of training, in the frame of the graph."""
        if self.rotation is not None:
            deformation = self.rotation.T @ deformation @ self.rotation
            displacement = displacement @ self.rotation
        if self.order is not None:
            displacement = displacement[self.order]
        return deformation, displacement

    def per_atom(self, values: ArrayLike) -> np.ndarray:
        """Per-atom values of the graph, ``(n_atoms, ...)``, in the user's order."""
        values = np.asarray(values)
        return values if self.order is None else self._reorder(values)

    def bonds(
        self, centre: ArrayLike, neighbour: ArrayLike, offset: ArrayLike
    ) -> tuple[np.ndarray, np.ndarray]:
        """Edges of the graph in the user's terms.

        Parameters
        ----------
        centre, neighbour : (n_bonds,) int
        offset : (n_bonds, 3) int
            As in `CrystalGraph`.

        Returns
        -------
        bonds : (n_bonds, 2) int64
            The user's atoms ``i, j``.
        offsets : (n_bonds, 3) int64
            Lattice translation of ``j``, for the atoms as the user wrote them.
        """
        bonds = np.stack([np.asarray(centre), np.asarray(neighbour)], axis=1)
        offsets = np.asarray(offset).astype(np.int64)
        if self.shift is not None:
            offsets = offsets + self.shift[bonds[:, 1]] - self.shift[bonds[:, 0]]
        if self.basis is not None:
            offsets = offsets @ self.basis
        if self.order is not None:
            bonds = self.order[bonds]
        return bonds, offsets

    def _reorder(self, values: np.ndarray) -> np.ndarray:
        result = np.empty_like(values)
        result[self.order] = values
        return result


# Room that a layer gets beyond the cutoff of its graph, A: the layer may get thicker.
LAYER_MARGIN = 3.0


def to_graph(
    atoms: Atoms,
    spec: GraphSpec,
    dtype: torch.dtype = torch.float32,
    *,
    motion: Motion | None = None,
    layer: Layer | None = None,
) -> tuple[CrystalGraph, Frame]:
    """The graph of a crystal or layer, and the way back.

    Atoms are wrapped in float64 first, wherever they sit. Badly skewed cells are replaced
    by their reduced cell: the radius graph does not depend on the choice, and offsets
    refer to the graph's own cell. With ``spec.canonical`` the crystal is written in its
    canonical frame before. A layer is put into a box of agreed height, so that its graph
    does not depend on the user's box.

    Parameters
    ----------
    atoms : ase.Atoms
    spec : GraphSpec
    dtype : torch.dtype
        Default float32.
    motion : Motion, optional
        What may move, in the user's axes and order; default everything.
    layer : Layer, optional
        What `find_layer` found; default none, a crystal that is periodic along all three
        vectors.

    Returns
    -------
    graph : CrystalGraph
    frame : Frame

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase_deeprelax.data.graph import GraphSpec
    >>> graph, frame = to_graph(bulk('Cu'), GraphSpec(cutoff=3.0))
    >>> graph.num_edges
    12
    """
    motion = motion or everything_free(len(atoms))
    given, own_cell = atoms.positions, atoms.cell.array
    if layer is not None:
        given, own_cell = layer.standard_box(atoms, spec.cutoff + LAYER_MARGIN)
    positions, cell, basis = compact(given, own_cell)
    if not spec.canonical:
        graph = build_graph(atoms.numbers, positions, cell, spec, dtype, motion=motion)
        whole = basis if layer is None else _product(basis, layer.basis)
        return graph, Frame(basis=whole, shift=_shift(given, positions, cell, whole, layer))
    crystal = canonicalize(atoms.numbers, positions, cell, motion.fixed)
    if layer is not None:
        crystal = _in_one_piece(crystal, layer)
    order = crystal.order
    free_strain = rotate_projection(motion.free_strain, crystal.rotation)
    graph = build_graph(
        crystal.numbers,
        crystal.positions,
        crystal.cell,
        spec,
        dtype,
        motion=Motion(motion.fixed[order], free_strain),
    )
    first = np.eye(3, dtype=np.int64) if layer is None else layer.basis
    whole = crystal.basis @ _product(basis, first)
    moved = _shift(given, positions, crystal.basis @ cell, whole, layer)
    return graph, Frame(crystal.rotation, order, whole, crystal.shift + moved[order])


def _in_one_piece(crystal: CanonicalCrystal, layer: Layer) -> CanonicalCrystal:
    """The same with the layer in one piece, so that no pair of atoms spans the vacuum."""
    axis = int(np.abs(crystal.cell @ (layer.normal @ crystal.rotation)).argmax())
    _, turns = split_at_widest_gap(
        (crystal.positions @ np.linalg.inv(crystal.cell))[:, axis]
    )
    cells = np.outer(turns, np.eye(3, dtype=np.int64)[axis])
    return replace(
        crystal,
        positions=crystal.positions + cells @ crystal.cell,
        shift=crystal.shift + cells,
    )


def _product(basis: np.ndarray | None, first: np.ndarray) -> np.ndarray:
    return first if basis is None else basis @ first


def _shift(
    given: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
    basis: np.ndarray | None,
    layer: Layer | None,
) -> np.ndarray:
    """Graph cells by which each atom of the graph lies off where the user wrote it.

    The atom went from there to ``given`` (by vacuum vectors where it belongs to a layer)
    and on to ``positions``.
    """
    shift = (positions - given) @ np.linalg.inv(cell)
    if layer is not None and basis is not None:
        shift += layer.turns[:, None] * (layer.basis[2] @ np.linalg.inv(basis))
    return np.rint(shift).astype(np.int64)
