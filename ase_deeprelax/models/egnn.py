"""EGNN (Satorras, Hoogeboom, Welling, ICML 2021), a baseline of the DeepRelax paper.

Equation numbers are those of EGNN. What a periodic crystal needs beside them:

* neighbours are periodic images within a cutoff, images move as their atoms do and the
  cell stays as it is; the squared distance enters through radial functions; a weight w
  that vanishes smoothly at the cutoff goes with every message;
* C is 1 / (1 + sum_j w), and no edge moves its centre by more than its own length;
* the cell: beside each move of the atoms (eq. 4) a symmetric strain of the same form,
  ``C sum_j e (x) e phi_L(m_ij)`` less its trace, averaged over atoms, and a trace from h.

The answer is the sum of all moves: the last layers of phi_x and phi_L start at zero, so
that an untrained network says "already relaxed".
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ase_deeprelax.data.graph import CrystalGraph, GraphSpec
from ase_deeprelax.models.base import GraphNetwork, ModelOutput
from ase_deeprelax.models.blocks import MESSAGE_SCALE
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
    RadialBasis,
    ScaledSiLU,
    envelope,
    mean_over_atoms,
    mlp,
    project_symmetric,
    safe_norm,
    zero_last,
)
from ase_deeprelax.models.topology import Topology


class EGNN(GraphNetwork):
    """E(n) equivariant graph network with read-outs for a relaxation.

    Parameters
    ----------
    hidden : int
        Width F of features and messages, default 128.
    layers : int
        Equivariant graph convolutions, default 4.
    num_rbf : int
        Gaussians per edge, default 8.
    cutoff : float, A
        Radius of the graph, default 5.

    Examples
    --------
    >>> EGNN(hidden=16, layers=2).spec.cutoff
    5.0
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
        self.radial = RadialBasis(num_rbf, cutoff)
        self.embedding = nn.Embedding(119, hidden)
        nn.init.uniform_(self.embedding.weight, -math.sqrt(3), math.sqrt(3))
        self.layers = nn.ModuleList(Layer(hidden, num_rbf) for _ in range(layers))
        self.trace = zero_last(mlp(hidden, hidden, 1))
        self.distances = DistanceHead(hidden, num_rbf)
        self.motion = MotionEmbedding(hidden, degree=1)

    def predict(self, graph: CrystalGraph, topology: Topology) -> ModelOutput:
        """Predict for a batch of graphs, see `ModelOutput`."""
        j, i = graph.edge_index
        with torch.autocast(graph.pos.device.type, enabled=False):
            start = graph.edge_vectors()
        distance = safe_norm(start)
        # The weight stays that of the distance at the start: a pair that is just out of
        # reach, and so has no edge, may come closer between two layers.
        weight = envelope(distance / self.spec.cutoff).unsqueeze(1)
        total = weight.new_zeros(graph.num_nodes, 1).index_add(0, i, weight)
        c = 1 / (1 + total)
        h, vectors = self.embedding(graph.z) + self.motion(graph)[0], start
        moves = graph.pos.new_zeros(graph.num_nodes, 8)
        for layer in self.layers:
            h, pull = layer(h, vectors, weight, graph, self.radial)
            moves = moves + c * pull
            u = moves[:, :3]
            vectors = start + u.index_select(0, j) - u.index_select(0, i)
        displacement = free_displacement(u, graph)
        trace = self.trace(h).to(u.dtype)
        strain = mean_over_atoms(torch.cat([trace, moves[:, 3:]], dim=1), graph)
        deformation = stretch(free_strain(strain, graph))
        bonds = topology.bonds
        lengths = predicted_distances(graph, start, deformation, displacement)
        features, x = Features(h, None, None), self.radial(distance)
        distance, log_b = self.distances(features, x, graph, bonds, lengths)
        return ModelOutput(deformation, displacement, bonds, distance, log_b, features=h)


class Layer(nn.Module):
    """Equivariant graph convolutional layer, eqs. 3-6, and its counterpart for the cell."""

    def __init__(self, hidden: int, n_radial: int):
        super().__init__()
        # phi_e; its first linear map is taken once per atom for both ends of an edge.
        self.centre = nn.Linear(hidden, hidden)
        self.neighbor = nn.Linear(hidden, hidden, bias=False)
        self.edge = nn.Linear(n_radial, hidden, bias=False)
        self.message = nn.Sequential(ScaledSiLU(), nn.Linear(hidden, hidden), ScaledSiLU())
        self.moves = zero_last(mlp(hidden, hidden, 2))  # phi_x and phi_L
        self.update = mlp(2 * hidden, hidden, hidden)  # phi_h

    def forward(
        self,
        h: torch.Tensor,
        vectors: torch.Tensor,
        weight: torch.Tensor,
        graph: CrystalGraph,
        radial: RadialBasis,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One convolution.

        Parameters
        ----------
        h : (n_atoms, F)
        vectors : (n_edges, 3), A
            From centre to neighbour.
        weight : (n_edges, 1)
            Vanishes at the cutoff.
        graph : CrystalGraph
        radial : RadialBasis

        Returns
        -------
        h : (n_atoms, F)
        pull : (n_atoms, 8)
            Sums over edges: a move, A, in three columns, a traceless strain in five.
        """
        j, i = graph.edge_index
        distance = safe_norm(vectors)
        unit = vectors / distance.unsqueeze(1)
        m = self.message(
            self.centre(h).index_select(0, i)
            + self.neighbor(h).index_select(0, j)
            + self.edge(radial(distance))
        )
        phi_x, phi_l = self.moves(m).chunk(2, dim=1)
        # Neighbours all around nearly cancel in the strain: phi_L has to be free to grow.
        pull = [-torch.tanh(phi_x) * vectors, phi_l * project_symmetric(unit, unit)]
        pull = weight * torch.cat(pull, dim=1)
        pull = pull.new_zeros(h.shape[0], 8).index_add(0, i, pull)
        total = torch.zeros_like(h).index_add(0, i, weight * m)
        return h + self.update(torch.cat([h, MESSAGE_SCALE * total], dim=1)), pull
