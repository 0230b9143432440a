"""E3Relax-H2 (Yang et al., arXiv 2603.23941 (2026)): atoms and lattice as nodes of one
graph, and a structure that moves layer by layer.

Each layer passes messages lattice -> atoms, atoms -> atoms and atoms -> lattice, and then
displaces the atoms and strains the cell; the next layer sees the moved structure, and
training supervises every layer (`ModelOutput.layers`). Where this differs from the
published code, which `reference=True` reproduces (`e3relax_h2_reference`):

* The three lattice nodes, with a vector each, are one matrix per channel. Written in the
  frame of space rather than in that of the axes,  M = sum_k b_k (x) V_k  with the
  reciprocal vectors b_k, the change of every lattice vector is  a_k M,  and M does not
  depend on their choice, order or sign. Its antisymmetric part would turn the crystal, so
  that one scalar (its trace) and five components (l = 2) are left: a lattice node is like
  an atom without vectors, whose neighbours are all atoms. Atoms are averaged, so that a
  supercell gets the same answer, and see the lattice through their own periodic images
  rather than through their place in the cell as it is written.
* Angles enter through the neighbours themselves, not through one reference direction per
  atom (which vanishes at a centrosymmetric site, where the code takes an arbitrary one):
  the invariant of degree l of an edge is the mean of the Legendre polynomial P_l over
  the angles to all other edges of its centre, found from moments of the neighbourhood.
* Features of degree l = 2 beside scalars and vectors: where all vectors vanish by symmetry,
  only they can tell in which direction the cell should change.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ase_deeprelax.data.graph import CrystalGraph, GraphSpec
from ase_deeprelax.models.base import (
    GraphNetwork,
    ModelOutput,
    RelaxationModel,
    moved_vectors,
)
from ase_deeprelax.models.blocks import Message, Update
from ase_deeprelax.models.heads import (
    DistanceHead,
    Features,
    free_displacement,
    free_strain,
    predicted_distances,
    stretch,
)
from ase_deeprelax.models.layers import (
    MotionEmbedding,
    Neighborhood,
    RadialBasis,
    autocast_dtype,
    envelope,
    mean_over_atoms,
    mlp,
    safe_norm,
    spherical,
    zero_last,
)
from ase_deeprelax.models.published.e3relax_h2 import ReferenceE3RelaxH2
from ase_deeprelax.models.topology import Topology

# Angular invariants of an edge: l = 1, 2, 3 (l = 0 is constant).
N_ANGULAR = 3
# No layer moves an atom farther, A: a step that is too long would spoil all that follow.
MAX_MOVE = 1.5


def e3relax_h2(*, reference: bool = False, **hyperparameters: Any) -> RelaxationModel:
    """E3Relax-H2: the form that honours symmetry, or the published arithmetic.

    Parameters
    ----------
    reference : bool
        True builds `ReferenceE3RelaxH2`, which takes published checkpoints; default False.
    **hyperparameters
        Of the class that is built.

    Examples
    --------
    >>> type(e3relax_h2(hidden=16, layers=2)).__name__
    'E3RelaxH2'
    """
    return (ReferenceE3RelaxH2 if reference else E3RelaxH2)(**hyperparameters)


class E3RelaxH2(GraphNetwork):
    """Layers that move atoms and cell as they pass messages between them.

    Parameters
    ----------
    hidden : int
        Width F of the features, default 128.
    layers : int
        Default 4.
    num_rbf : int
        Gaussians per edge, default 8.
    cutoff : float, A
        Radius of the graph, default 5. The graph is that of the input in all layers.
    """

    def __init__(
        self,
        *,
        hidden: int = 128,
        layers: int = 4,
        num_rbf: int = 8,
        cutoff: float = 5.0,
    ):
        super().__init__()
        self.spec = GraphSpec(cutoff=cutoff)
        n_radial = num_rbf + N_ANGULAR
        self.radial = RadialBasis(num_rbf, cutoff)
        self.embedding = nn.Embedding(119, hidden)
        nn.init.uniform_(self.embedding.weight, -math.sqrt(3), math.sqrt(3))
        self.lattice = nn.Parameter(torch.randn(hidden))
        self.to_atoms = nn.ModuleList(LatticeToAtoms(hidden) for _ in range(layers))
        self.messages = nn.ModuleList(Message(hidden, n_radial, 2) for _ in range(layers))
        self.updates = nn.ModuleList(Update(hidden, 2) for _ in range(layers))
        self.to_lattice = nn.ModuleList(AtomsToLattice(hidden) for _ in range(layers))
        self.moves = nn.ModuleList(Move(hidden) for _ in range(layers))
        self.strains = nn.ModuleList(Strain(hidden) for _ in range(layers))
        self.distances = DistanceHead(hidden, n_radial)
        self.motion = MotionEmbedding(hidden)

    def predict(self, graph: CrystalGraph, topology: Topology) -> ModelOutput:
        """Predict for a batch of graphs, with the structure after each layer."""
        device = graph.pos.device.type
        with torch.autocast(device, enabled=False):
            start = graph.edge_vectors()
        # Edges that begin beyond the cutoff are not there: those near it fade out.
        fade = envelope(start.norm(dim=1, keepdim=True) / self.spec.cutoff)
        scalars, t = self.motion(graph)
        s = self.embedding(graph.z) + scalars
        lattice_s = self.lattice.expand(graph.n_graphs, -1)
        lattice_t = s.new_zeros(graph.n_graphs, 5, s.shape[1])
        displacement = torch.zeros_like(graph.pos)
        log_strain = graph.pos.new_zeros(graph.n_graphs, 6)
        v, vectors, layers = None, start, []
        for k, message in enumerate(self.messages):
            with torch.autocast(device, enabled=False):
                if layers:
                    # Each layer has a target of its own: no gradient through the
                    # structure, which would cost half as much again and gains nothing here.
                    structure = [part.detach() for part in layers[-1]]
                    vectors = moved_vectors(graph, start, *structure)
                x, harmonics = self.edge_features(graph, vectors, fade)
            neighborhood = Neighborhood(topology, x, harmonics, autocast_dtype(x))
            s, t = self.to_atoms[k](s, t, lattice_s, lattice_t, graph)
            s, v, t = self.updates[k](*message(s, v, t, neighborhood))
            displacement = displacement + self.moves[k](v, graph)
            lattice_s, lattice_t = self.to_lattice[k](s, t, lattice_s, lattice_t, graph)
            change = self.strains[k](lattice_s, lattice_t, graph)
            log_strain = log_strain + free_strain(change, graph)
            deformation = stretch(log_strain)
            layers.append((deformation, displacement))
        bonds = topology.bonds
        lengths = predicted_distances(graph, start, deformation, displacement)
        # The angles at both ends of a bond count alike, whichever atom comes first.
        both = (x + x.index_select(0, topology.reverse)) / 2
        distance, log_b = self.distances(Features(s, v, t), both, graph, bonds, lengths)
        return ModelOutput(
            deformation,
            displacement,
            bonds,
            distance,
            log_b,
            features=s,
            layers=tuple(layers),
        )

    def edge_features(
        self, graph: CrystalGraph, vectors: torch.Tensor, fade: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Radial basis and angular invariants (n_edges, n_radial), and the harmonics."""
        distance = torch.linalg.vector_norm(vectors, dim=1)
        unit = vectors / distance.clamp(min=1e-3).unsqueeze(1)
        harmonics = spherical(unit, 2)
        weight = envelope(distance.unsqueeze(1) / self.spec.cutoff) * fade
        angular = legendre_means(harmonics, weight, graph.edge_index[1], graph.num_nodes)
        radial = self.radial.gaussians(distance)
        return weight * torch.cat([radial, angular], dim=1), harmonics


# P_1, P_2, P_3 of  x = e . e'  from the products of a constant, e (3 components), the
# traceless part T of  e (x) e  (5), and  T (x) e  (15):  T . T' = x^2 - 1/3.
LEGENDRE = torch.tensor(
    [[0, 0, 0], [1, 0, -2 / 3], [0, 3 / 2, 0], [0, 0, 5 / 2]], dtype=torch.float64
).repeat_interleave(torch.tensor([1, 3, 5, 15]), dim=0)


def legendre_means(
    harmonics: list[torch.Tensor],
    weight: torch.Tensor,
    centre: torch.Tensor,
    n_atoms: int,
) -> torch.Tensor:
    """Means of P_1, P_2, P_3 over the angles between an edge and all edges of its centre.

    By the addition theorem these need sums over each neighbourhood only, see `LEGENDRE`.
    Odd means vanish, smoothly, where the centre becomes a centre of inversion.

    Parameters
    ----------
    harmonics : list of (n_edges, 2l + 1)
        See `layers.spherical`, for l = 0, 1 and 2.
    weight : (n_edges, 1)
    centre : (n_edges,) int64
    n_atoms : int

    Returns
    -------
    (n_edges, 3)

    Examples
    --------
    >>> ends = torch.tensor([[0.0, 0, 1], [0, 0, -1]])
    >>> means = legendre_means(
    ...     spherical(ends, 2), torch.ones(2, 1), torch.zeros(2, dtype=int), 1
    ... )
    >>> means.abs().round(decimals=4)
    tensor([[0., 1., 0.],
            [0., 1., 0.]])
    """
    cubes = (harmonics[2].unsqueeze(2) * harmonics[1].unsqueeze(1)).flatten(1)
    powers = torch.cat([*harmonics, cubes], dim=1)
    moments = powers.new_zeros(n_atoms, powers.shape[1])
    moments = moments.index_add(0, centre, weight * powers)
    moments = moments / (moments[:, :1] + 1e-6)
    terms = powers * moments.index_select(0, centre)
    return terms @ LEGENDRE.to(terms)


class LatticeToAtoms(nn.Module):
    """Lattice -> atom messages: the lattice node's state joins each atom's."""

    def __init__(self, hidden: int):
        super().__init__()
        self.scalars = mlp(2 * hidden, hidden, hidden)
        self.tensors = nn.Linear(hidden, hidden, bias=False)

    def forward(
        self,
        s: torch.Tensor,
        t: torch.Tensor,
        lattice_s: torch.Tensor,
        lattice_t: torch.Tensor,
        graph: CrystalGraph,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scalars (n_atoms, F) and tensors (n_atoms, 5, F) of the atoms.

        The lattice nodes have ``lattice_s`` (n_graphs, F), ``lattice_t`` (n_graphs, 5, F).
        """
        index = graph.graph_of_atom
        ds = self.scalars(torch.cat([s, lattice_s.index_select(0, index)], dim=1))
        dt = self.tensors(lattice_t).index_select(0, index)
        return (s + ds) / math.sqrt(2), t + dt


class AtomsToLattice(nn.Module):
    """Atom -> lattice messages, means over atoms, and the gated update of the node."""

    def __init__(self, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.scalars = mlp(2 * hidden, hidden, hidden)
        self.tensors = nn.Linear(hidden, hidden, bias=False)
        self.mixed = nn.Linear(hidden, 2 * hidden, bias=False)
        self.gates = mlp(2 * hidden, hidden, 2 * hidden)

    def forward(
        self,
        s: torch.Tensor,
        t: torch.Tensor,
        lattice_s: torch.Tensor,
        lattice_t: torch.Tensor,
        graph: CrystalGraph,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scalars (n_graphs, F) and tensors (n_graphs, 5, F) of the lattice nodes.

        The atoms have ``s`` (n_atoms, F), ``t`` (n_atoms, 5, F).
        """
        pooled = mean_over_atoms(torch.cat([self.norm(s).unsqueeze(1), t], dim=1), graph)
        both = torch.cat([pooled[:, 0], lattice_s], dim=1)
        lattice_s = lattice_s + self.scalars(both)
        lattice_t = lattice_t + self.tensors(pooled[:, 1:] + lattice_t)
        p, q = self.mixed(lattice_t).chunk(2, dim=-1)
        b1, b2 = self.gates(torch.cat([lattice_s, safe_norm(q)], dim=1)).chunk(2, dim=1)
        return (lattice_s + b2) / math.sqrt(2), lattice_t + b1.unsqueeze(1) * p


class Move(nn.Module):
    """Displacement of each atom by one layer, A: ``v w``, bounded; fixed atoms stay."""

    def __init__(self, hidden: int):
        super().__init__()
        self.vectors = zero_last([nn.Linear(hidden, 1, bias=False)])[0]

    def forward(self, v: torch.Tensor, graph: CrystalGraph) -> torch.Tensor:
        """Moves (n_atoms, 3), A, from vectors (n_atoms, 3, F)."""
        u = self.vectors(v).squeeze(-1).to(graph.pos.dtype)
        size = safe_norm(u).unsqueeze(1) / MAX_MOVE
        u = u * (torch.tanh(size) / size)
        return free_displacement(u, graph)


class Strain(nn.Module):
    """Log strain of the cell by one layer: (n_graphs, 6), see `heads.stretch`."""

    def __init__(self, hidden: int):
        super().__init__()
        self.isotropic = zero_last([nn.Linear(hidden, 1)])[0]
        self.tensors = zero_last([nn.Linear(hidden, 1, bias=False)])[0]

    def forward(
        self, lattice_s: torch.Tensor, lattice_t: torch.Tensor, graph: CrystalGraph
    ) -> torch.Tensor:
        """Log strains (n_graphs, 6) from the features of the lattice nodes."""
        parts = self.isotropic(lattice_s), self.tensors(lattice_t).squeeze(-1)
        return torch.cat(parts, dim=1).to(graph.pos.dtype)
