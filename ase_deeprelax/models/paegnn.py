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

import math

import torch
from torch import nn

from ase_deeprelax.data.graph import GraphSpec
from ase_deeprelax.models.base import ModelOutput, RelaxationModel
from ase_deeprelax.models.heads import (
    DisplacementHead,
    DistanceHead,
    Features,
    LatticeMatrixHead,
    StrainHead,
    predicted_distances,
    undirected,
)
from ase_deeprelax.models.layers import (
    MotionEmbedding,
    Neighborhood,
    RadialBasis,
    autocast_dtype,
    mlp,
    project_symmetric,
    safe_norm,
    spherical,
    symmetric_matrix,
)

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


class PaEGNN(RelaxationModel):
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
        Width of the unit cell offset encoding, eqs. 2-3; default none (the paper: 128).
    readout : 'equivariant' or 'distances'
        'equivariant' (default): strain and displacements from tensor and vector features.
        'distances': the paper's heads, a raw 9-vector for the lattice (eq. 9) and cross
        distances within the cell (eq. 8); positions are the solver's.
    """

    def __init__(
        self,
        *,
        hidden=128,
        layers=4,
        num_rbf=8,
        cutoff=5.0,
        rbf_cutoff=None,
        max_neighbors=None,
        intra_neighbors=None,
        degree=2,
        offset_encoding=None,
        readout='equivariant',
    ):
        super().__init__()
        if degree not in (1, 2):
            raise ValueError(f'degree is {degree!r}; it must be 1 or 2')
        if readout not in ('equivariant', 'distances'):
            raise ValueError(
                f"readout is {readout!r}; it must be 'equivariant' or 'distances'"
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

    def forward(self, graph):
        """ModelOutput for a batch of graphs."""
        x, neighborhood, vectors = self.edge_features(graph)
        features = self.features(graph, neighborhood)
        deformation = self.lattice(features, graph)
        if self.displacement is None:
            displacement = torch.zeros_like(graph.pos)
        else:
            displacement = self.displacement(features, graph)
        bonds = undirected(graph).nonzero().squeeze(1)
        said = predicted_distances(graph, vectors, deformation, displacement)
        distance, log_b = self.distances(features, x, graph, bonds, said)
        prediction = ModelOutput(deformation, displacement, bonds, distance, log_b)
        if self.cross_distances is not None:
            anchors = graph.intra.nonzero().squeeze(1)
            prediction.anchor_index = anchors
            prediction.anchor_distance, prediction.anchor_log_b = self.cross_distances(
                features, x, graph, anchors, said
            )
        return prediction

    def edge_features(self, graph):
        """Edge features x_e (n_edges, n_radial), their sums, and the edge vectors."""
        with torch.autocast(graph.pos.device.type, enabled=False):
            vectors = graph.edge_vectors()
            distance = vectors.norm(dim=1)
            x = self.radial(distance)
            if self.offset_encoding is not None:
                x = torch.cat(
                    [x, encode_offsets(graph.offset, self.offset_encoding)], dim=1
                )
            harmonics = spherical(vectors / distance.unsqueeze(1), self.degree)
        neighborhood = Neighborhood(graph, x, harmonics, autocast_dtype(x))
        return x, neighborhood, vectors

    def features(self, graph, neighborhood):
        """Scalars (n, F), vectors (n, 3, F), tensors (n, 5, F) after all layers."""
        scalars, t = self.motion(graph)
        s, v = self.embedding(graph.z) + scalars, None
        for message, update in zip(self.messages, self.updates, strict=True):
            s, v, t = update(*message(s, v, t, neighborhood))
        return Features(s, v, t)


class Message(nn.Module):
    """Message passing phase, eqs. 4-5, and its counterpart for l = 2."""

    def __init__(self, hidden, n_radial, degree):
        super().__init__()
        self.degree = degree
        n = 2 + degree
        self.norm = nn.LayerNorm(hidden)
        self.mlp = mlp(hidden, hidden, n * hidden)
        # W of  phi_e = W x_e. No bias: messages vanish where the radial basis does.
        self.filters = nn.Parameter(torch.randn(n, n_radial, hidden) / math.sqrt(n_radial))

    def forward(self, s, v, t, neighborhood):
        f = s.shape[1]
        m = self.mlp(self.norm(s)) * (MESSAGE_SCALE / math.sqrt(3))
        m = m.split(f, dim=1)
        gather, total = neighborhood.gather, neighborhood.sum
        ds = total(0, gather(m[0]), self.filters[0]).squeeze(1)
        dv = total(1, gather(m[1]), self.filters[1])
        if v is not None:  # m1 * v_j, taken once per atom rather than once per edge
            passed = (m[-1].unsqueeze(1) * v).flatten(1)
            dv = v + dv + total(0, gather(passed), self.filters[-1])
        if self.degree == 2:
            dt = total(2, gather(m[2]), self.filters[2])
            t = dt if t is None else t + dt
        return (s + ds) / math.sqrt(2), dv, t


class Update(nn.Module):
    """Message updating phase, eqs. 6-7: each atom mixes its own features.

    With l = 2 the products that couple the degrees join in: t.t to scalars, t.v to
    vectors, v (x) v to tensors.
    """

    def __init__(self, hidden, degree):
        super().__init__()
        self.degree = degree
        self.vectors = nn.Linear(hidden, 2 * hidden, bias=False)
        n_in, n_out = (2, 3) if degree == 1 else (3, 7)
        if degree == 2:
            self.tensors = nn.Linear(hidden, 2 * hidden, bias=False)
        self.norm = nn.LayerNorm(hidden)
        self.mlp = mlp(n_in * hidden, hidden, n_out * hidden)

    def forward(self, s, v, t):
        f = s.shape[1]
        p, q = self.vectors(v).chunk(2, dim=-1)
        invariants = [self.norm(s), safe_norm(q)]
        if self.degree == 2:
            tp, tq = self.tensors(t).chunk(2, dim=-1)
            invariants.append(safe_norm(tq))
        b = self.mlp(torch.cat(invariants, dim=-1)).split(f, dim=-1)
        ds = b[0] + b[1] * (p * q).sum(1) / math.sqrt(f)
        dv = b[2].unsqueeze(1) * p
        if self.degree == 2:
            ds = ds + b[3] * (tp * tq).sum(1) / math.sqrt(f)
            turned = (symmetric_matrix(tq) * q.unsqueeze(1)).sum(2)
            dv = dv + b[4].unsqueeze(1) * turned
            t = t + b[5].unsqueeze(1) * tp + b[6].unsqueeze(1) * project_symmetric(p, q)
        return s + ds / math.sqrt(2), v + dv, t


# Whole shells hold some fifty neighbours: keeps the first sums of order one.
MESSAGE_SCALE = 0.2


def encode_offsets(offset, width):
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
