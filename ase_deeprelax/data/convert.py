"""Structures to graphs, and a prediction back to the user's orientation and order."""

import sys
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase import Atoms

from ase_deeprelax.data.graph import CrystalGraph, GraphSpec, build_graph
from ase_deeprelax.errors import StructureError
from ase_deeprelax.geometry.canonical import CanonicalCrystal, canonicalize
from ase_deeprelax.geometry.lattice import compact
from ase_deeprelax.geometry.motion import Motion, everything_free, rotate_projection
from ase_deeprelax.geometry.vacuum import Layer, split_at_widest_gap


def as_atoms(obj):
    """``ase.Atoms`` of what users hand in.

    Parameters
    ----------
    obj : ase.Atoms or pymatgen Structure
        Atoms, subclasses included, are returned as they are, not copied.

    Returns
    -------
    ase.Atoms

    Raises
    ------
    StructureError
        For anything else, and for disordered structures.

    Examples
    --------
    >>> from ase.build import bulk
    >>> cu = bulk('Cu')
    >>> as_atoms(cu) is cu
    True
    """
    if isinstance(obj, Atoms):
        return obj
    # pymatgen takes long to import, and none of its structures exists before it is
    if 'pymatgen.core' not in sys.modules:
        raise StructureError(_not_accepted(obj))
    from pymatgen.core import IStructure
    from pymatgen.io.ase import AseAtomsAdaptor

    if not isinstance(obj, IStructure):
        raise StructureError(_not_accepted(obj))
    for k, site in enumerate(obj):
        if not site.is_ordered:
            raise StructureError(
                f'site {k} ({site.species_string}) is disordered; order the structure '
                'first, e.g. with pymatgen OrderDisorderedStructureTransformation'
            )
    return AseAtomsAdaptor.get_atoms(obj, msonable=False)


def _not_accepted(obj):
    kind = type(obj)
    hint = ''
    if isinstance(obj, (list, tuple)):
        hint = '; hand in its elements one by one'
    elif hasattr(obj, 'atoms'):
        hint = '; hand in its .atoms'
    return (
        f'{kind.__module__}.{kind.__qualname__} is not a structure: accepted are '
        f'ase.Atoms and pymatgen.core.Structure{hint}'
    )


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
        Graph cells by which each atom of the graph was moved from the image within the
        user's cell (beside a common translation). None: zeros.
    """

    rotation: np.ndarray | None = None
    order: np.ndarray | None = None
    basis: np.ndarray | None = None
    shift: np.ndarray | None = None

    def to_user(self, deformation, displacement):
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

    def from_user(self, deformation, displacement):
        """The inverse of `to_user`: targets of training, in the frame of the graph."""
        if self.rotation is not None:
            deformation = self.rotation.T @ deformation @ self.rotation
            displacement = displacement @ self.rotation
        if self.order is not None:
            displacement = displacement[self.order]
        return deformation, displacement

    def per_atom(self, values):
        """Per-atom values of the graph, ``(n_atoms, ...)``, in the user's order."""
        values = np.asarray(values)
        return values if self.order is None else self._reorder(values)

    def bonds(self, centre, neighbour, offset):
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
            Lattice translation of ``j``, for atoms wrapped into the user's cell.
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

    def _reorder(self, values):
        result = np.empty_like(values)
        result[self.order] = values
        return result


_SAME = Frame()


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
        if basis is None and layer is None:
            return graph, _SAME
        whole = basis if layer is None else _product(basis, layer.basis)
        return graph, Frame(
            basis=whole, shift=_shift(atoms, given, positions, cell, whole, layer)
        )
    crystal = canonicalize(atoms.numbers, positions, cell)
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
    whole, shift = crystal.basis, crystal.shift
    if basis is not None or layer is not None:
        before = _product(
            basis, np.eye(3, dtype=np.int64) if layer is None else layer.basis
        )
        whole = crystal.basis @ before
        moved = _shift(atoms, given, positions, crystal.basis @ cell, whole, layer)
        shift = shift + moved[order]
    return graph, Frame(crystal.rotation, order, whole, shift)


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


def _shift(  # noqa: PLR0917
    atoms: Atoms,
    given: np.ndarray,
    positions: np.ndarray,
    cell: np.ndarray,
    basis: np.ndarray,
    layer: Layer | None,
) -> np.ndarray:
    """Cells by which each atom of the graph lies off its image in the user's own cell.

    The atom went from there to ``atoms.positions``, on to ``given`` (by vacuum vectors
    where it belongs to a layer) and on to ``positions``.
    """
    cells = np.floor(atoms.positions @ np.linalg.inv(atoms.cell.array))
    to_graph_cells = np.linalg.inv(basis)
    shift = cells @ to_graph_cells - (given - positions) @ np.linalg.inv(cell)
    if layer is not None:
        shift += layer.turns[:, None] * (layer.basis[2] @ to_graph_cells)
    return np.rint(shift).astype(np.int64)
