"""Bridge to ``torch_geometric``, for its data sets, loaders and layers.

Nothing else in this package needs torch_geometric, so it is imported on first use.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

import torch

from ase_deeprelax.data.batching import split
from ase_deeprelax.data.graph import CrystalGraph

if TYPE_CHECKING:
    from torch_geometric.data import Data


def to_pyg(graph: CrystalGraph) -> Data:
    """A graph as ``torch_geometric.data.Data``, or a batch as its ``Batch``.

    Parameters
    ----------
    graph : CrystalGraph
        A single graph or a batch (see `data.batching.collate`).

    Returns
    -------
    torch_geometric.data.Data
        With the same names and the same tensors, which are not copied for a single graph.
        Its ``Batch`` and ``DataLoader`` join such graphs as `collate` does.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase_deeprelax.data.graph import GraphSpec, build_graph
    >>> cu = bulk('Cu')
    >>> graph = build_graph(cu.numbers, cu.positions, cu.cell.array, GraphSpec(cutoff=3.0))
    >>> to_pyg(graph).num_edges
    12
    """
    from torch_geometric.data import Batch, Data

    if graph.batch is None:
        return Data(**graph.tensors())
    batch: Any = Batch.from_data_list([to_pyg(part) for part in split(graph)])
    return batch


def from_pyg(data: Data) -> CrystalGraph:
    """The inverse of `to_pyg`, of a single ``Data`` or of a ``Batch``.

    Parameters
    ----------
    data : torch_geometric.data.Data
        With all tensors that `CrystalGraph` lists; targets, ``batch`` and ``ptr`` may be
        missing. Other attributes are left out.

    Returns
    -------
    CrystalGraph
        With the same tensors, not copied.

    Raises
    ------
    ValueError
        A tensor is missing, by name.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase_deeprelax.data.graph import GraphSpec, build_graph
    >>> cu = bulk('Cu')
    >>> graph = build_graph(cu.numbers, cu.positions, cu.cell.array, GraphSpec(cutoff=3.0))
    >>> from_pyg(to_pyg(graph)).pos is graph.pos
    True
    """
    found, missing = {}, []
    for field in fields(CrystalGraph):
        value = data.get(field.name)
        if isinstance(value, torch.Tensor):
            found[field.name] = value
        elif field.default is MISSING:
            missing.append(field.name)
    if missing:
        raise ValueError(
            f'the data lack {", ".join(missing)}; CrystalGraph says what these tensors hold'
        )
    return CrystalGraph(**found)
