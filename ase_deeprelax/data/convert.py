"""Structures to graphs, and a prediction back to the user's orientation and order."""

import sys
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms

from ase_deeprelax.data.canonical import canonicalize
from ase_deeprelax.data.graph import build_graph
from ase_deeprelax.data.lattice import compact
from ase_deeprelax.errors import StructureError


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


def to_graph(atoms, spec, dtype=torch.float32):
    """The graph of a crystal, and the way back.

    Atoms are wrapped in float64 first, wherever they sit. Badly skewed cells are replaced
    by their reduced cell: the radius graph does not depend on the choice, and offsets
    refer to the graph's own cell. With ``spec.canonical`` the crystal is written in its
    canonical frame before.

    Parameters
    ----------
    atoms : ase.Atoms
        Periodic along all three vectors, as `check_structure` grants.
    spec : GraphSpec
    dtype : torch.dtype
        Default float32.

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
    numbers = atoms.numbers
    given = atoms.cell.array
    positions, cell, basis = compact(atoms.positions, given)
    if spec.canonical:
        crystal = canonicalize(numbers, positions, cell)
        graph = build_graph(crystal.numbers, crystal.positions, crystal.cell, spec, dtype)
        shift = crystal.shift
        if basis is not None:
            shift = shift + _cells_between(
                atoms, positions, crystal.basis @ cell, crystal.order
            )
            basis = crystal.basis @ basis
        else:
            basis = crystal.basis
        return graph, Frame(crystal.rotation, crystal.order, basis, shift)
    graph = build_graph(numbers, positions, cell, spec, dtype)
    if basis is None:
        return graph, _SAME
    return graph, Frame(basis=basis, shift=_cells_between(atoms, positions, cell))


def _cells_between(atoms, positions, cell, order=slice(None)):
    """Cells by which ``positions`` lie off the images within the user's own cell."""
    frac = atoms.positions @ np.linalg.inv(atoms.cell.array)
    wrapped = (frac - np.floor(frac)) @ atoms.cell.array
    moved = (positions - wrapped) @ np.linalg.inv(cell)
    return np.rint(moved).astype(np.int64)[order]
