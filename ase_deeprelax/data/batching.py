"""Batches of graphs: which graphs share one, and their tensors joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import torch

from ase_deeprelax.data.graph import CrystalGraph

# Tensors with one row for each atom, for each edge, and for each graph.
PER_ATOM = ('z', 'pos', 'fixed', 'displacement_target')
_PER_EDGE = ('offset', 'intra')
PER_GRAPH = ('cell', 'free_strain', 'deformation_target')


def collate(graphs: Sequence[CrystalGraph]) -> CrystalGraph:
    """One batch of several graphs: their tensors joined, atoms numbered through.

    Parameters
    ----------
    graphs : sequence of CrystalGraph
        Single graphs, at least one; all with targets, or none.

    Returns
    -------
    CrystalGraph
        With ``batch`` and ``ptr``.

    Raises
    ------
    ValueError
        No graph, or a tensor that only some of the graphs have.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase_deeprelax.data.graph import GraphSpec, build_graph
    >>> graphs = [
    ...     build_graph(cu.numbers, cu.positions, cu.cell.array, GraphSpec(cutoff=3.0))
    ...     for cu in (bulk('Cu'), bulk('Cu', cubic=True))
    ... ]
    >>> batch = collate(graphs)
    >>> batch.n_graphs, batch.num_edges, batch.batch.tolist(), batch.ptr.tolist()
    (2, 60, [0, 1, 1, 1, 1], [0, 1, 5])
    """
    if len(graphs) == 0:
        raise ValueError('a batch needs at least one graph')
    counts = torch.tensor([graph.num_nodes for graph in graphs])
    ptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    joined = {
        'ptr': ptr,
        'batch': torch.repeat_interleave(torch.arange(len(graphs)), counts),
    }
    starts = ptr.tolist()
    joined['edge_index'] = torch.cat(
        [graph.edge_index + start for graph, start in zip(graphs, starts, strict=False)],
        dim=1,
    )
    for field in fields(CrystalGraph):
        if field.name in joined:
            continue
        parts = [getattr(graph, field.name) for graph in graphs]
        there = [part for part in parts if part is not None]
        if len(there) == len(parts):
            joined[field.name] = torch.cat(there)
        elif there:
            raise ValueError(
                f'{len(there)} of {len(parts)} graphs have {field.name}; all or none of a '
                'batch must have it'
            )
    return CrystalGraph(**joined)


def split(batch: CrystalGraph) -> list[CrystalGraph]:
    """The single graphs of a batch, the inverse of `collate`; they share its memory.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase_deeprelax.data.graph import GraphSpec, build_graph
    >>> cu = bulk('Cu')
    >>> graph = build_graph(cu.numbers, cu.positions, cu.cell.array, GraphSpec(cutoff=3.0))
    >>> [part.num_edges for part in split(collate([graph, graph]))]
    [12, 12]
    """
    if batch.ptr is None:
        return [batch]
    atoms = batch.ptr.diff().tolist()
    # Edges of one graph stand together, and so do its atoms.
    graph_of_edge = batch.graph_of_atom.index_select(0, batch.edge_index[1])
    edges = torch.bincount(graph_of_edge, minlength=batch.n_graphs).tolist()
    starts = batch.ptr.index_select(0, graph_of_edge)
    tensors = batch.tensors()
    edge_index = (tensors.pop('edge_index') - starts).split(edges, dim=1)
    parts = {'edge_index': edge_index}
    for names, sizes in (
        (PER_ATOM, atoms),
        (_PER_EDGE, edges),
        (PER_GRAPH, [1] * batch.n_graphs),
    ):
        parts |= {name: tensors[name].split(sizes) for name in names if name in tensors}
    return [
        CrystalGraph(**{name: values[k] for name, values in parts.items()})
        for k in range(batch.n_graphs)
    ]


def counted(counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For counts (n,): ``counts[k]`` times the number k, and 0 to ``counts[k] - 1``."""
    which = torch.repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    nth = torch.arange(len(which), device=counts.device) - first.index_select(0, which)
    return which, nth


def group_by_size(
    n_atoms: Sequence[int], n_edges: Sequence[int], budget: int
) -> list[np.ndarray]:
    """Group graphs of similar size so that no batch holds more than ``budget`` edges.

    Networks pad neighbours per atom, so graphs are sorted by atoms, then edges, and batches
    are runs of that order: little padding, and the same batches for the same input.

    Parameters
    ----------
    n_atoms, n_edges : (n,) int
        Sizes of the graphs.
    budget : int
        Most edges of a batch; a graph that has more gets a batch of its own.

    Returns
    -------
    list of (n_in_batch,) int arrays
        Indices of the graphs; each index occurs once.

    Examples
    --------
    >>> [p.tolist() for p in group_by_size([2, 9, 2, 3], [10, 90, 10, 30], 50)]
    [[0, 2, 3], [1]]
    """
    sizes = np.asarray(n_edges, dtype=np.int64)
    return runs(np.lexsort((sizes, np.asarray(n_atoms))), sizes, budget)


def runs(order: np.ndarray, sizes: np.ndarray, budget: int) -> list[np.ndarray]:
    """Cut ``order`` into runs whose ``sizes`` add up to ``budget`` at most.

    Parameters
    ----------
    order : (n,) int array
        Indices into ``sizes``.
    sizes : int array
    budget : int
        What is larger by itself gets a run of its own.

    Returns
    -------
    list of int arrays

    Examples
    --------
    >>> [run.tolist() for run in runs(np.array([2, 0, 1]), np.array([3, 5, 2]), 5)]
    [[2, 0], [1]]
    """
    parts: list[np.ndarray] = []
    start, total = 0, 0
    for position, size in enumerate(sizes[order].tolist()):
        if position > start and total + size > budget:
            parts.append(order[start:position])
            start, total = position, 0
        total += size
    if start < len(order):
        parts.append(order[start:])
    return parts


def halve(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two halves of a batch that did not fit into memory."""
    middle = len(indices) // 2
    return indices[:middle], indices[middle:]
