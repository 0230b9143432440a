"""PaEGNN, the network of DeepRelax (Yang et al., Nat. Commun. 15, 8148 (2024)).

Equation numbers are the paper's. Where this differs from the published code:

* the lattice head predicts a symmetric log strain, averaged over atoms: equivariant under
  rotation, the same for any cell or supercell; positions come from an equivariant
  displacement read-out; every distance is predicted relative to the structure that these
  two say, so that zero output means "already relaxed" and no unit can die;
* features of degree l = 2 beside scalars and vectors: at a centrosymmetric site all
  vectors vanish, and only these see in which direction the cell is too long;
* one smooth bound on log b, shared with the solver; whole-shell graphs.

``PUBLISHED`` holds the hyperparameters of the paper's form.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ase_deeprelax.data.graph import CrystalGraph, GraphSpec
from ase_deeprelax.models.base import GraphNetwork, ModelOutput
from ase_deeprelax.models.blocks import Message, Update
from ase_deeprelax.models.heads import (
    DisplacementHead,
    DistanceHead,
    Features,
    LatticeMatrixHead,
    StrainHead,
    predicted_distances,
)
from ase_deeprelax.models.layers import (
    MotionEmbedding,
    Neighborhood,
    RadialBasis,
    autocast_dtype,
    spherical,
)
from ase_deeprelax.models.topology import Topology

PUBLISHED = {
    'hidden': 512,
    'layers': 4,
    'num_rbf': 128,
    'cutoff': 6.0,
    'rbf_cutoff': 30.0,
    'max_neighbors': 30,
    'intra_neighbors': 20,
    'degree': 1,
    'offset_encoding': 128,
    'readout': 'distances',
}


class PaEGNN(GraphNetwork):
    """Periodicity-aware equivariant graph network with read-outs for a relaxation.

    Parameters
    ----------
    hidden : int
        Width F of the features, default 128.
    layers : int
        Message and update phases, default 4.
    num_rbf : int
        Gaussians per edge, default 8.
    cutoff : float, A
        Radius of the graph, default 5.
    rbf_cutoff : float, A, optional
        Where the envelope vanishes; default ``cutoff`` (the paper: 30).
    max_neighbors, intra_neighbors : int, optional
        See `GraphSpec`; default: neither.
    degree : 1 or 2
        Highest degree l of the features, default 2 (the paper: 1).
    offset_encoding : int, optional
        Width of the unit cell offset encoding, eqs. 2-3, an even number; default none (the
        paper: 128).
    readout : 'equivariant' or 'distances'
        'equivariant' (default): strain and displacements from tensor and vector features.
        'distances': the paper's heads, a raw 9-vector for the lattice (eq. 9) and cross
        distances within the cell (eq. 8); positions are the solver's.
    """

    def __init__(
        self,
        *,
        hidden: int = 128,
        layers: int = 4,
        num_rbf: int = 8,
        cutoff: float = 5.0,
        rbf_cutoff: float | None = None,
        max_neighbors: int | None = None,
        intra_neighbors: int | None = None,
        degree: int = 2,
        offset_encoding: int | None = None,
        readout: str = 'equivariant',
    ):
        super().__init__()
        if degree not in (1, 2):
            raise ValueError(f'degree is {degree!r}; it must be 1 or 2')
        if readout not in ('equivariant', 'distances'):
            raise ValueError(
                f"readout is {readout!r}; it must be 'equivariant' or 'distances'"
            )
        if offset_encoding is not None and (offset_encoding < 2 or offset_encoding % 2):
            raise ValueError(
                f'offset_encoding is {offset_encoding!r}; it must be an even number'
            )
        self.degree = degree
        self.offset_encoding = offset_encoding
        self.spec = GraphSpec(
            cutoff=cutoff,
            max_neighbors=max_neighbors,
            intra_neighbors=intra_neighbors,
            canonical=offset_encoding is not None
            or intra_neighbors is not None
            or readout == 'distances',
        )
        n_radial = num_rbf + (offset_encoding or 0)
        self.radial = RadialBasis(num_rbf, rbf_cutoff or cutoff)
        self.embedding = nn.Embedding(119, hidden)
        nn.init.uniform_(self.embedding.weight, -math.sqrt(3), math.sqrt(3))
        self.messages = nn.ModuleList(
            Message(hidden, n_radial, degree) for _ in range(layers)
        )
        self.updates = nn.ModuleList(Update(hidden, degree) for _ in range(layers))
        self.distances = DistanceHead(hidden, n_radial)
        if readout == 'equivariant':
            self.cross_distances = None
            self.lattice = StrainHead(hidden, degree)
            self.displacement = DisplacementHead(hidden)
        else:
            self.cross_distances = DistanceHead(hidden, n_radial)
            self.lattice = LatticeMatrixHead(hidden)
            self.displacement = None
        self.motion = MotionEmbedding(hidden, degree)

    def predict(self, graph: CrystalGraph, topology: Topology) -> ModelOutput:
        """Predict for a batch of graphs, see `ModelOutput`."""
        x, vectors, neighborhood = self.edge_features(graph, topology)
        features = self.features(graph, neighborhood)
        deformation = self.lattice(features, graph)
        if self.displacement is None:
            displacement = torch.zeros_like(graph.pos)
        else:
            displacement = self.displacement(features, graph)
        bonds = topology.bonds
        lengths = predicted_distances(graph, vectors, deformation, displacement)
        distance, log_b = self.distances(features, x, graph, bonds, lengths)
        output = ModelOutput(
            deformation, displacement, bonds, distance, log_b, features=features.s
        )
        if self.cross_distances is not None:
            output.cross_index = graph.intra.nonzero().squeeze(1)
            output.cross_distance, output.cross_log_b = self.cross_distances(
                features, x, graph, output.cross_index, lengths
            )
        return output

    def edge_features(
        self, graph: CrystalGraph, topology: Topology
    ) -> tuple[torch.Tensor, torch.Tensor, Neighborhood]:
        """Features x_e (n_edges, n_radial), vectors (n_edges, 3), A, and sums of x_e."""
        with torch.autocast(graph.pos.device.type, enabled=False):
            vectors = graph.edge_vectors()
            distance = torch.linalg.vector_norm(vectors, dim=1)
            x = self.radial(distance)
            if self.offset_encoding is not None:
                x = torch.cat(
                    [x, encode_offsets(graph.offset, self.offset_encoding)], dim=1
                )
            harmonics = spherical(vectors / distance.unsqueeze(1), self.degree)
        return x, vectors, Neighborhood(topology, x, harmonics, autocast_dtype(x))

    def features(self, graph: CrystalGraph, neighborhood: Neighborhood) -> Features:
        """Scalars (n, F), vectors (n, 3, F), tensors (n, 5, F) after all layers."""
        scalars, t = self.motion(graph)
        s, v = self.embedding(graph.z) + scalars, None
        for message, update in zip(self.messages, self.updates, strict=True):
            s, v, t = update(*message(s, v, t, neighborhood))
        return Features(s, v, t)


def encode_offsets(offset: torch.Tensor, width: int) -> torch.Tensor:
    """Unit cell offset encoding, eqs. 2-3: (n_edges, 3) integers -> (n_edges, width).

    The index ``k = (o1 + 2) + 5 (o2 + 2) + 25 (o3 + 2)`` of the paper is unique for
    offsets within +-2 only; beyond, ``k`` counts on in cubic shells, so that no two
    offsets share a code and those within +-2 keep the paper's.
    """
    shell = offset.abs().amax(dim=1).clamp(min=2)
    side = 2 * shell + 1
    o = offset + shell.unsqueeze(1)
    k = o[:, 0] + side * o[:, 1] + side**2 * o[:, 2] + torch.where(shell > 2, side**3, 0.0)
    exponent = torch.arange(0, width, 2, dtype=torch.float64, device=offset.device) / width
    angle = k.double().unsqueeze(1) * 10000.0**-exponent
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1).to(offset.dtype)
