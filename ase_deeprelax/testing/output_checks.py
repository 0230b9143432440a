"""The form of what a network returns, before anything is made of it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from ase import Atoms

from ase_deeprelax.data.batching import collate
from ase_deeprelax.data.convert import to_graph
from ase_deeprelax.data.graph import CrystalGraph
from ase_deeprelax.models.base import LOG_B_RANGE, ModelOutput, RelaxationModel
from ase_deeprelax.predict import Predictor
from ase_deeprelax.predict.forward import DTYPES
from ase_deeprelax.testing.crystals import generic_crystals
from ase_deeprelax.testing.predictions import expect, known_elements


def output_is_sound(model: RelaxationModel, dtype: str) -> None:
    """Types, shapes, ranges; nothing of the input is changed."""
    batch = collated(model, dtype, generic_crystals(known_elements(model)))
    before = batch.clone()
    output = raw_output(model, dtype, batch)
    kind = type(output).__name__
    expect(isinstance(output, ModelOutput), f'forward returned {kind}, not ModelOutput')
    after = batch.tensors()
    for key, tensor in before.tensors().items():
        expect(torch.equal(after[key], tensor), f'the model changed graph.{key}')
    _check_structure(batch, output, DTYPES[dtype])
    _check_distances('', batch, output, DTYPES[dtype])
    _check_cross_distances(batch, output, DTYPES[dtype])
    ends = batch.edge_index[:, output.bond_index].flatten()
    bonds = torch.bincount(ends, minlength=len(batch.z))
    expect((bonds > 0).all(), 'an atom has no bond with a predicted distance')


def collated(
    model: RelaxationModel, dtype: str, structures: Iterable[Atoms]
) -> CrystalGraph:
    """Structures as one batch of the graphs that a model wants."""
    return collate([to_graph(a, model.spec, DTYPES[dtype])[0] for a in structures])


def raw_output(model: RelaxationModel, dtype: str, batch: CrystalGraph) -> ModelOutput:
    """What ``forward`` returns for a batch, if it keeps to its contract."""
    network = Predictor(model, device='cpu', dtype=dtype).model
    with torch.inference_mode():
        return network(batch)


def _check_structure(batch: CrystalGraph, output: ModelOutput, dtype: torch.dtype) -> None:
    """Deformations, displacements and features, the predictions of all layers included."""
    n_atoms = len(batch.z)
    for where, (stretch, displacement) in (
        ('', (output.deformation, output.displacement)),
        *((f'layer {k} ', layer) for k, layer in enumerate(output.layers)),
    ):
        _expect_form(f'{where}deformation', stretch, dtype, (batch.n_graphs, 3, 3))
        _expect_form(f'{where}displacement', displacement, dtype, (n_atoms, 3))
    stretch = output.deformation
    expect(torch.allclose(stretch, stretch.mT, atol=1e-6), 'deformation is not symmetric')
    positive = (torch.linalg.eigvalsh(stretch) > 0).all()
    expect(positive, 'deformation is not positive definite')
    drift = stretch.new_zeros(batch.n_graphs, 3)
    drift.index_add_(0, batch.graph_of_atom, output.displacement)
    expect(drift.abs().max() < 1e-4, 'displacements have a rigid drift')
    if (features := output.features) is not None:
        _expect_tensor('features', features)
        _expect_form('features', features, dtype, (n_atoms, *features.shape[1:2]))


def _check_cross_distances(
    batch: CrystalGraph, output: ModelOutput, dtype: torch.dtype
) -> None:
    """All three of their fields, or none."""
    fields = (output.cross_index, output.cross_distance, output.cross_log_b)
    n_given = sum(field is not None for field in fields)
    expect(
        n_given in (0, 3),
        'cross_index, cross_distance and cross_log_b belong together: give all or none',
    )
    if n_given:
        _check_distances('cross_', batch, output, dtype)


def _check_distances(
    prefix: str, batch: CrystalGraph, output: ModelOutput, dtype: torch.dtype
) -> None:
    """Distances of edges, and their scales."""
    names = 'cross_index' if prefix else 'bond_index', f'{prefix}distance', f'{prefix}log_b'
    index, distance, log_b = (getattr(output, name) for name in names)
    _expect_tensor(names[0], index)
    _expect_form(names[0], index, torch.int64, (index.numel(),))
    wrong = index[(index < 0) | (index >= batch.num_edges)]
    expect(
        not len(wrong),
        f'{names[0]} holds {wrong[:1].tolist()}; the edges of the graph are numbered from '
        f'0 to {batch.num_edges - 1}',
    )
    expect(len(index.unique()) == len(index), f'{names[0]} holds an edge twice')
    _expect_form(names[1], distance, dtype, (len(index),))
    _expect_form(names[2], log_b, dtype, (len(index),))
    expect((distance >= 0).all(), f'negative values in {names[1]}')
    low, high = LOG_B_RANGE
    inside = ((log_b >= low) & (log_b <= high)).all()
    expect(inside, f'{names[2]} is out of range: it must lie from {low:g} to {high:g}')


def _expect_form(
    name: str, value: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """A finite tensor of this type and shape."""
    _expect_tensor(name, value)
    expect(value.dtype == dtype, f'{name} is {value.dtype}, not {dtype}')
    expect(value.shape == shape, f'{name} has shape {tuple(value.shape)}, not {shape}')
    expect(torch.isfinite(value).all(), f'{name} is not finite')


def _expect_tensor(name: str, value: object) -> None:
    kind = type(value).__name__
    expect(isinstance(value, torch.Tensor), f'{name} is {kind}, not a tensor')
