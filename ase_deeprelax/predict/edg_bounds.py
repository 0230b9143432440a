"""Bounds on distances as tensors, and sums over the atoms and structures of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

HUBER = 0.03  # A; violations below it are averaged, above it outvoted


@dataclass(frozen=True)
class Bounds:
    """Bounds on ``|base + move[head] - move[tail]|``.

    Components come first, here and in ``move``: sums over rows of three are slow.
    """

    base: torch.Tensor  # (3, n), A: the vectors at the start
    head: torch.Tensor  # (n,): atom that the vector points to
    tail: torch.Tensor  # (n,): atom that it starts from; n_atoms for a fixed point
    lower: torch.Tensor  # (n,), A
    upper: torch.Tensor  # (n,), A
    weight: torch.Tensor  # (n,): one over the number of terms in its mean of eq. 16
    graph: torch.Tensor  # (n,)

    def fields(self) -> tuple[torch.Tensor, ...]:
        return tuple(vars(self).values())

    def joined(self, other: Bounds) -> Bounds:
        pairs = zip(self.fields(), other.fields(), strict=True)
        return Bounds(*(torch.cat(pair, dim=-1) for pair in pairs))

    def double(self) -> Bounds:
        fields = self.fields()
        return Bounds(*(x.double() if x.is_floating_point() else x for x in fields))

    def kept(self, mask: torch.Tensor) -> Bounds:
        index = mask.nonzero().squeeze(1)
        return Bounds(*(field.index_select(-1, index) for field in self.fields()))

    def difference(self, move: torch.Tensor) -> torch.Tensor:
        return move.index_select(1, self.head) - move.index_select(1, self.tail)

    def measure(self, move: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Violations (n,), positive where too long, and unit vectors (3, n)."""
        vector = self.base + self.difference(move)
        length = vector.square().sum(0).sqrt()
        excess = length - torch.clamp(length, min=self.lower, max=self.upper)
        # Coincident atoms have no direction to part in; their other bounds decide.
        return excess, vector / torch.where(length > 0, length, 1)

    def loss(self, excess: torch.Tensor, sums: Sums) -> torch.Tensor:
        """(n_graphs,), A; float64, because steps are judged by its differences."""
        over = excess.abs()
        near = over.clamp(max=HUBER)
        terms = self.weight * near * (over - near / 2) / HUBER
        return sums.of_bounds(terms.double(), self)

    def slope(self, excess: torch.Tensor) -> torch.Tensor:
        """(n,): the derivative of the loss with respect to each violation."""
        return self.weight * excess / excess.abs().clamp(min=HUBER)


def edge_bounds(
    pos: torch.Tensor,
    cell: torch.Tensor,
    graph_of_atom: torch.Tensor,
    edge_index: torch.Tensor,
    offset: torch.Tensor,
    *,
    lower: torch.Tensor,
    upper: torch.Tensor,
) -> Bounds:
    """Bounds on the lengths of edges, as `solve_edg` takes them."""
    head, tail = edge_index
    graph = graph_of_atom.index_select(0, tail)
    shift = (offset.unsqueeze(1) @ cell.index_select(0, graph)).squeeze(1)
    base = pos.index_select(0, head) - pos.index_select(0, tail) + shift
    return _bounds(base, head, tail, graph, lower=lower, upper=upper)


def anchor_bounds(
    pos: torch.Tensor,
    points: torch.Tensor,
    graph_of_atom: torch.Tensor,
    anchor_index: torch.Tensor,
    *,
    lower: torch.Tensor,
    upper: torch.Tensor,
) -> Bounds:
    """Bounds on the distances of atoms from fixed ``points``, as `solve_edg` takes them."""
    head, centre = anchor_index
    graph = graph_of_atom.index_select(0, centre)
    base = pos.index_select(0, head) - points.index_select(0, centre)
    fixed = torch.full_like(head, len(pos))
    return _bounds(base, head, fixed, graph, lower=lower, upper=upper)


def _bounds(
    base: torch.Tensor,
    head: torch.Tensor,
    tail: torch.Tensor,
    graph: torch.Tensor,
    *,
    lower: torch.Tensor,
    upper: torch.Tensor,
) -> Bounds:
    crossed = lower > upper
    middle = (lower + upper) / 2
    lower = torch.where(crossed, middle, lower).clamp(min=0)
    upper = torch.where(crossed, middle, upper).clamp(min=0)
    weight = 1 / torch.bincount(graph).to(base.dtype).index_select(0, graph)
    return Bounds(base.T.contiguous(), head, tail, lower, upper, weight, graph)


class Sums:
    """Sums per structure and per atom.

    Quantities per atom have one more column: the fixed points of the anchors. Moves and
    forces are zero there, and on fixed atoms.
    """

    def __init__(
        self, graph_of_atom: torch.Tensor, anchored: torch.Tensor, fixed: torch.Tensor
    ):
        self.n_graphs = len(anchored)
        self.graph = torch.cat([graph_of_atom, graph_of_atom.new_zeros(1)])
        self.count = torch.bincount(graph_of_atom, minlength=self.n_graphs).clamp(min=1)
        self.floating = ~anchored
        self.still = torch.cat([fixed, fixed.new_ones(1)])

    def of_bounds(self, values: torch.Tensor, bounds: Bounds) -> torch.Tensor:
        return values.new_zeros(self.n_graphs).index_add_(0, bounds.graph, values)

    def of_atoms(self, values: torch.Tensor) -> torch.Tensor:
        graph = self.graph[: len(values)]
        return values.new_zeros(self.n_graphs).index_add_(0, graph, values)

    def dot(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.of_atoms((a * b).sum(0))

    def largest(self, values: torch.Tensor, graph: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(self.n_graphs).scatter_reduce_(0, graph, values, 'amax')

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """From structures to atoms."""
        return values.index_select(-1, self.graph)

    def onto_atoms(
        self, values: torch.Tensor, bounds: Bounds, start: torch.Tensor
    ) -> torch.Tensor:
        """``start`` plus ``values`` on the heads, minus ``values`` on the tails."""
        out = start.index_add(1, bounds.head, values).index_add_(1, bounds.tail, -values)
        return out.masked_fill_(self.still, 0)

    def stiffness(self, values: torch.Tensor, bounds: Bounds) -> torch.Tensor:
        out = values.new_zeros(len(self.graph))
        return out.index_add_(0, bounds.head, values).index_add_(0, bounds.tail, values)

    def without_drift(self, move: torch.Tensor) -> torch.Tensor:
        """The moves at fixed centroid, where nothing anchors it."""
        total = move.new_zeros(3, self.n_graphs).index_add_(1, self.graph, move)
        out = move - self.spread(total * self.floating / self.count)
        return out.masked_fill_(self.still, 0)
