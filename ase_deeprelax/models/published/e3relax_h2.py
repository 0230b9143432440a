"""E3Relax-H2 with the arithmetic of its published code, so that its weights can be loaded.

Atoms and the three lattice vectors are nodes that exchange messages; every layer moves
both (arXiv:2603.23941). Kept as published, although it breaks symmetries:

* the changes of the lattice vectors are added to the *columns* of a cell whose rows are
  the vectors;
* self-image neighbours give way to six images on one side of the atom;
* where the mean direction to the neighbours vanishes, (1, 0, 0) stands for it;
* the three lattice vectors have weights of their own and act one after the other, and
  the projection of an atom on them enters the radial basis with its sign.

So the graph is built in the canonical frame, where every crystal has one answer. The
published data took cells and orientations as their CIF files had them, and cut shells at
exactly 50 neighbours; here shells stay whole.

At the published settings the network has 72,770,168 parameters (291 MB). Spherical
harmonics enter only as products summed over m, which are Legendre polynomials of one
cosine: no library of irreducible representations is needed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from ase_deeprelax.data.graph import CrystalGraph, GraphSpec
from ase_deeprelax.errors import UnsupportedElementError
from ase_deeprelax.models.base import ModelOutput, RelaxationModel
from ase_deeprelax.models.heads import (
    free_deformation,
    free_displacement,
    predicted_distances,
    stretch_of,
)
from ase_deeprelax.models.layers import (
    RadialBasis,
    ScaledSiLU,
    mean_over_atoms,
    mlp,
)
from ase_deeprelax.models.published.lattice import GatedUpdate, Lattice
from ase_deeprelax.models.topology import undirected

# Images of an atom that stand for its self-image neighbours.
SELF_IMAGES = ((0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0))


class Edges(NamedTuple):
    """The published graph, which stays the same while the structure moves."""

    j: torch.Tensor  # (n_edges,) neighbours
    i: torch.Tensor  # (n_edges,) centres
    offset: torch.Tensor  # (n_edges, 3)
    degree: torch.Tensor  # (n_atoms, 1) edges of each centre


class State(NamedTuple):
    """What every layer changes."""

    s: torch.Tensor  # (n_atoms, F) scalars of atoms
    v: torch.Tensor  # (n_atoms, 3, F) vectors of atoms
    axis_s: torch.Tensor  # (n_graphs, 3, F) scalars of the lattice vectors
    axis_v: torch.Tensor  # (n_graphs, 3, 3, F) vectors of the lattice vectors
    pos: torch.Tensor  # (n_atoms, 3), A
    cell: torch.Tensor  # (n_graphs, 3, 3), A


class ReferenceE3RelaxH2(RelaxationModel):
    """E3Relax-H2 as published; the defaults are those of its training script.

    The published network has no distances and no uncertainty: ``distance`` is that of the
    predicted structure, and ``log_b`` is 0 throughout (a scale of 1 A: nothing is known).

    Parameters
    ----------
    hidden : int
        Width F of the features, default 512.
    layers : int
        Default 4.
    num_rbf : int
        Gaussians, default 128.
    cutoff : float, A
        Radius of the graph, default 6.
    rbf_cutoff : float, A
        Where the envelope of the Gaussians vanishes, default 30.
    max_neighbors : int, optional
        Default 50, self-images counted.
    lmax : int
        Highest degree of the Legendre polynomials, default 3.
    num_elements : int
        Rows of the table of elements, default 118. The row is the atomic number, so that
        the published table ends with Z = 117.
    """

    def __init__(
        self,
        *,
        hidden: int = 512,
        layers: int = 4,
        num_rbf: int = 128,
        cutoff: float = 6.0,
        rbf_cutoff: float = 30.0,
        max_neighbors: int | None = 50,
        lmax: int = 3,
        num_elements: int = 118,
    ):
        super().__init__()
        self.spec = GraphSpec(cutoff=cutoff, max_neighbors=max_neighbors, canonical=True)
        self.radial = RadialBasis(num_rbf, rbf_cutoff)
        self.embedding = nn.Embedding(num_elements, hidden)
        nn.init.uniform_(self.embedding.weight, -math.sqrt(3), math.sqrt(3))
        self.axis_embedding = nn.Embedding(3, hidden)
        self.layers = nn.ModuleList(Layer(hidden, num_rbf, lmax) for _ in range(layers))

    def forward(self, graph: CrystalGraph) -> ModelOutput:
        """ModelOutput for a batch of graphs.

        Raises
        ------
        UnsupportedElementError
            An atomic number beyond the table of elements.
        """
        structures = self.structures(graph)
        with torch.autocast(graph.pos.device.type, enabled=False):
            layers = tuple(as_relaxation(graph, *structure) for structure in structures)
        bonds = undirected(graph).nonzero().squeeze(1)
        distance = predicted_distances(graph, graph.edge_vectors(), *layers[-1])[bonds]
        log_b = torch.zeros_like(distance)
        return ModelOutput(*layers[-1], bonds, distance, log_b, layers=layers)

    def structures(self, graph: CrystalGraph) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What the network says as published, layer by layer.

        Returns
        -------
        list of (positions, cells)
            (n_atoms, 3) and (n_graphs, 3, 3), A.
        """
        self._check_elements(graph.z)
        edges = published_edges(graph)
        s = self.embedding(graph.z)
        v = s.new_zeros(len(s), 3, s.shape[1])
        axis_s = self.axis_embedding.weight.expand(graph.n_graphs, -1, -1)
        axis_v = s.new_zeros(graph.n_graphs, 3, *v.shape[1:])
        state = State(s, v, axis_s, axis_v, graph.pos, graph.cell)
        structures = []
        for layer in self.layers:
            state = layer(state, edges, self.radial, graph)
            structures.append((state.pos, state.cell))
        return structures

    def _check_elements(self, z: torch.Tensor) -> None:
        # On a GPU an index out of range would end the process's use of the device.
        unknown = (z >= self.embedding.num_embeddings).nonzero().flatten()
        if len(unknown):
            atom = int(unknown[0])
            raise UnsupportedElementError(
                f'atom {atom} has atomic number {int(z[atom])}; the published table of '
                f'elements ends with {self.embedding.num_embeddings - 1}: use another model'
            )


class Layer(nn.Module):
    """Lattice to atoms, atoms to atoms, atoms alone, positions, atoms to lattice, cell."""

    def __init__(self, hidden: int, num_rbf: int, lmax: int):
        super().__init__()
        self.features = nn.Sequential(
            nn.Linear(2 * num_rbf, num_rbf), nn.SiLU(), nn.Linear(num_rbf, num_rbf)
        )
        self.lattice = Lattice(hidden, num_rbf)
        self.messages = Messages(hidden, num_rbf, lmax)
        self.update = GatedUpdate(hidden)
        self.move = nn.Linear(hidden, 1, bias=False)
        self.move_scale = nn.Parameter(torch.tensor(1.0))

    def forward(
        self, state: State, edges: Edges, radial: RadialBasis, graph: CrystalGraph
    ) -> State:
        s, v, axis_s, axis_v, pos, cell = state
        index = graph.graph_of_atom
        with torch.autocast(pos.device.type, enabled=False):
            along, across, to_axes = lattice_geometry(pos, cell, graph)
            x_axes = torch.cat([radial(along), radial(across)], dim=-1)
            vectors = edge_vectors(pos, cell, edges, index)
            distance = clamped_norm(vectors)
            x = radial(distance)
            unit = -vectors / (distance + 1e-9).unsqueeze(1)  # from neighbour to centre

        x_axes = self.features(x_axes)
        axes = axis_s.index_select(0, index), axis_v.index_select(0, index)
        s, v = self.lattice.give(s, v, axes, x_axes, to_axes)
        axis_s, axis_v = self.lattice.mix(axis_s, axis_v)

        ds, dv = self.messages(s, v, edges, x, unit)
        s, v = (s + ds) / math.sqrt(2), v + dv
        ds, gate, dv = self.update(s, v)
        s, v = (s + ds / math.sqrt(2) + s * gate) / math.sqrt(2), v + dv
        pos = pos + (self.move_scale * self.move(v).squeeze(-1)).to(pos.dtype)

        axis_s, axis_v = self.lattice.take(s, v, axis_s, axis_v, graph)
        axis_s, axis_v = self.lattice.mix(axis_s, axis_v)
        cell = cell + self.lattice.cell_change(axis_v).to(cell.dtype)
        return State(s, v, axis_s, axis_v, pos, cell)


class Messages(nn.Module):
    """From neighbours, gated by the angle with their mean direction."""

    def __init__(self, hidden: int, num_rbf: int, lmax: int):
        super().__init__()
        self.lmax = lmax
        self.atoms = mlp(hidden, hidden // 2, 3 * hidden)
        self.radial = nn.Linear(num_rbf, 3 * hidden)
        self.norm = nn.LayerNorm(lmax + 1)
        self.gate = nn.Sequential(nn.Linear(lmax + 2, 3 * hidden), ScaledSiLU())

    def forward(
        self,
        s: torch.Tensor,
        v: torch.Tensor,
        edges: Edges,
        x: torch.Tensor,
        unit: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        j, i = edges.j, edges.i
        gate = torch.tanh(self.gate(self.angles(edges, unit)))
        m = self.atoms(s).index_select(0, j) * (self.radial(x) * (1 + gate)) / math.sqrt(3)
        m1, m2, m3 = m.unsqueeze(1).chunk(3, dim=-1)
        passed = m1 * v.index_select(0, j) + m2 * unit.unsqueeze(2)
        ds = m.new_zeros(s.shape).index_add(0, i, m3.squeeze(1))
        dv = passed.new_zeros(v.shape).index_add(0, i, passed)
        return ds, dv / math.sqrt(s.shape[1])

    def angles(self, edges: Edges, unit: torch.Tensor) -> torch.Tensor:
        """(n_edges, lmax + 2): the cosine, and its normalised Legendre polynomials."""
        with torch.autocast(unit.device.type, enabled=False):
            mean = unit.new_zeros(len(edges.degree), 3).index_add(0, edges.i, unit)
            direction = reference_direction(mean / edges.degree).index_select(0, edges.i)
            cosine = (unit * direction).sum(1)
            # Neither factor is exactly of length one; spherical harmonics make them so.
            normalize = nn.functional.normalize
            exact = (normalize(unit) * normalize(direction)).sum(1)
            polynomials = self.norm(legendre(exact, self.lmax))
            return torch.cat([cosine.unsqueeze(1), polynomials], dim=1)


def published_edges(graph: CrystalGraph) -> Edges:
    """The graph's edges with `SELF_IMAGES` of each atom in place of all its own images."""
    j, i = graph.edge_index
    others = (j != i).nonzero().squeeze(1)
    n = len(graph.z)
    images = graph.offset.new_tensor(SELF_IMAGES)
    own = torch.arange(n, device=i.device).repeat_interleave(len(images))
    i = torch.cat([i.index_select(0, others), own])
    return Edges(
        j=torch.cat([j.index_select(0, others), own]),
        i=i,
        offset=torch.cat([graph.offset.index_select(0, others), images.repeat(n, 1)]),
        degree=torch.bincount(i, minlength=n).unsqueeze(1),
    )


def edge_vectors(
    pos: torch.Tensor, cell: torch.Tensor, edges: Edges, graph_of_atom: torch.Tensor
) -> torch.Tensor:
    """(n_edges, 3), A: from centre to neighbour."""
    cells = cell.index_select(0, graph_of_atom.index_select(0, edges.i))
    shift = (edges.offset.unsqueeze(1) @ cells).squeeze(1)
    return pos.index_select(0, edges.j) + shift - pos.index_select(0, edges.i)


def lattice_geometry(
    pos: torch.Tensor, cell: torch.Tensor, graph: CrystalGraph
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How atoms, seen from their centroid, lie beside the three lattice vectors.

    Returns
    -------
    along, across : (n_atoms, 3), A
        Signed projection on each vector, and distance from its line.
    directions : (n_atoms, 3, 3)
        Units from the tip of each vector to the atom.
    """
    index = graph.graph_of_atom
    r = (pos - mean_over_atoms(pos, graph).index_select(0, index)).unsqueeze(1)
    cell = cell.index_select(0, index)
    length = clamped_norm(cell) + 1e-9
    along = (r * cell).sum(-1) / length
    across = clamped_norm(torch.linalg.cross(r.expand_as(cell), cell)) / length
    apart = r - cell
    return along, across, apart / (clamped_norm(apart) + 1e-9).unsqueeze(-1)


def reference_direction(mean: torch.Tensor) -> torch.Tensor:
    """Units of the mean directions (n, 3); (1, 0, 0) where these vanish."""
    length = (mean.square().sum(1, keepdim=True) + 1e-9).sqrt()
    fallback = torch.eye(3, dtype=mean.dtype, device=mean.device)[0]
    return torch.where(length < 5e-5, fallback, mean / length)


def legendre(x: torch.Tensor, lmax: int) -> torch.Tensor:
    """(n,) -> (n, lmax + 1): P_0(x), P_1(x), ... by Bonnet's recursion."""
    p = [torch.ones_like(x), x]
    for k in range(1, lmax):
        p.append(((2 * k + 1) * x * p[k] - k * p[k - 1]) / (k + 1))
    return torch.stack(p[: lmax + 1], dim=1)


def clamped_norm(x: torch.Tensor) -> torch.Tensor:
    """Norm over the last dimension, never below 1e-4."""
    return x.square().sum(-1).clamp(min=1e-8).sqrt()


def as_relaxation(
    graph: CrystalGraph, pos: torch.Tensor, cell: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Stretch (n_graphs, 3, 3) and displacements (n_atoms, 3) that lead to a structure.

    What turns the whole crystal is dropped, and so is rigid drift: with
    ``cell = graph.cell @ F`` and ``F = S @ R`` it is S, and ``pos @ F^-1 - graph.pos``
    less its mean. What is held stays: the published network does not know of it.
    """
    general = torch.linalg.solve(graph.cell, cell)
    index = graph.graph_of_atom
    # Weights that diverged give numbers that are not finite, never an exception.
    back = torch.linalg.inv_ex(general).inverse.index_select(0, index)
    u = (pos.unsqueeze(1) @ back).squeeze(1) - graph.pos
    deformation = free_deformation(stretch_of(general), graph)
    return deformation, free_displacement(u, graph)
