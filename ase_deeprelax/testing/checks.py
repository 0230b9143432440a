"""Invariances and promises that hold for every crystal."""

from __future__ import annotations

import copy
import unittest
from dataclasses import fields

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from ase_deeprelax.data.batching import collate
from ase_deeprelax.data.convert import to_graph
from ase_deeprelax.data.formula import chemical_formula
from ase_deeprelax.data.graph import CrystalGraph
from ase_deeprelax.geometry.symmetry import find_symmetry
from ase_deeprelax.models.base import LOG_B_RANGE, ModelOutput, RelaxationModel
from ase_deeprelax.predict import Predictor
from ase_deeprelax.predict.forward import DTYPES
from ase_deeprelax.testing.crystals import generic_crystals, symmetric_crystals
from ase_deeprelax.testing.predictions import (
    BATCH_TOLERANCE,
    both_kinds,
    expect,
    expect_close,
    expect_same,
    known_elements,
    orthogonal_matrices,
    predictions,
    rotated,
)

SUPERCELL_TOLERANCE = 1e-3
SIGMA_TOLERANCE = 1e-3
SYMPREC = 1e-3


def awaken(
    model: RelaxationModel, *, scale: float = 0.05, seed: int = 0
) -> RelaxationModel:
    """A copy whose zero-initialised weights are random, so that it predicts something.

    Models start with read-outs of zero ("already relaxed"), on which every invariance
    holds trivially.

    Parameters
    ----------
    model : RelaxationModel
    scale : float
        Size of the outputs of such a layer for inputs of order one, default 0.05.
    seed : int

    Returns
    -------
    RelaxationModel
        In eval mode.
    """
    model = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and not parameter.any():
                size = scale / parameter.shape[1] ** 0.5
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return model


def says_something(model: RelaxationModel, dtype: str) -> None:
    """The checks below mean nothing for a model that moves nothing."""
    for result in predictions(model, dtype, generic_crystals(known_elements(model))[1:]):
        change = np.abs(result.deformation - np.eye(3)).max()
        expect(result.dmax > 5e-3, f'largest displacement is {result.dmax:.1e} A')
        expect(change > 1e-4, f'largest strain is {change:.1e}')


def output_is_sound(model: RelaxationModel, dtype: str) -> None:
    """Shapes, types, ranges; nothing of the input is changed."""
    predictor = Predictor(model, device='cpu', dtype=dtype)
    spec, torch_dtype = predictor.model.spec, DTYPES[dtype]
    crystals = generic_crystals(known_elements(model))
    batch = collate([to_graph(a, spec, torch_dtype)[0] for a in crystals])
    before = batch.clone()
    with torch.inference_mode():
        output = predictor.model(batch)
    kind = type(output).__name__
    expect(isinstance(output, ModelOutput), f'forward returned {kind}, not ModelOutput')
    after = batch.tensors()
    for key, tensor in before.tensors().items():
        expect(torch.equal(after[key], tensor), f'the model changed graph.{key}')
    n_bonds = len(output.bond_index)
    shapes = {
        'deformation': (batch.n_graphs, 3, 3),
        'displacement': (len(batch.z), 3),
        'distance': (n_bonds,),
        'log_b': (n_bonds,),
    }
    for name, shape in shapes.items():
        value = getattr(output, name)
        expect(value.shape == shape, f'{name} has shape {tuple(value.shape)}, not {shape}')
        expect(value.dtype == torch_dtype, f'{name} is {value.dtype}, not {torch_dtype}')
    values = {field.name: getattr(output, field.name) for field in fields(output)}
    for k, (deformation, displacement) in enumerate(values.pop('layers')):
        values |= {f'layer {k} deformation': deformation}
        values |= {f'layer {k} displacement': displacement}
    for name, value in values.items():
        if value is not None:
            expect(not value.requires_grad, f'{name} is not detached')
            expect(torch.isfinite(value).all(), f'{name} is not finite')
    _check_ranges(batch, output)


def _check_ranges(batch: CrystalGraph, output: ModelOutput) -> None:
    stretch = output.deformation
    expect(torch.allclose(stretch, stretch.mT, atol=1e-6), 'deformation is not symmetric')
    positive = (torch.linalg.eigvalsh(stretch) > 0).all()
    expect(positive, 'deformation is not positive definite')
    drift = stretch.new_zeros(batch.n_graphs, 3)
    drift.index_add_(0, batch.graph_of_atom, output.displacement)
    expect(drift.abs().max() < 1e-4, 'displacements have a rigid drift')
    low, high = LOG_B_RANGE
    for log_b in (output.log_b, output.cross_log_b):
        inside = log_b is None or ((log_b >= low) & (log_b <= high)).all()
        expect(inside, 'log_b is out of range')
    expect((output.distance >= 0).all(), 'negative distances')
    ends = batch.edge_index[:, output.bond_index].flatten()
    bonds = torch.bincount(ends, minlength=len(batch.z))
    expect((bonds > 0).all(), 'an atom has no bond with a predicted distance')


def ignores_orientation(model: RelaxationModel, dtype: str) -> None:
    """Rotated and mirrored crystals relax to the rotated and mirrored structures."""
    for rotation in orthogonal_matrices(2):
        expect_same(model, dtype, lambda atoms, r=rotation: (rotated(atoms, r), r, None))


def ignores_origin(model: RelaxationModel, dtype: str) -> None:
    """A rigid translation changes nothing."""

    def move(atoms: Atoms) -> tuple[Atoms, np.ndarray, None]:
        moved = atoms.copy()
        moved.positions += [0.31, 1.77, -2.13]
        return moved, np.eye(3), None

    expect_same(model, dtype, move)


def ignores_order(model: RelaxationModel, dtype: str) -> None:
    """Atoms may come in any order."""
    rng = np.random.default_rng(1)

    def permute(atoms: Atoms) -> tuple[Atoms, np.ndarray, np.ndarray]:
        order = rng.permutation(len(atoms))
        return atoms[order], np.eye(3), order

    expect_same(model, dtype, permute)
    crystals = generic_crystals(known_elements(model))
    orders = [rng.permutation(len(atoms)) for atoms in crystals]
    permuted = [atoms[order] for atoms, order in zip(crystals, orders, strict=True)]
    before = predictions(model, dtype, crystals)
    after = predictions(model, dtype, permuted)
    for one, two, order in zip(before, after, orders, strict=True):
        error = np.abs(one.sigma_atoms[order] / two.sigma_atoms - 1).max()
        expect(
            error < SIGMA_TOLERANCE,
            f'sigma of {chemical_formula(one.atoms)} differs by {error:.1e} of itself',
        )


def ignores_images(model: RelaxationModel, dtype: str) -> None:
    """Atoms may be written in any periodic image, and stay in it."""
    rng = np.random.default_rng(2)

    def scatter(atoms: Atoms) -> tuple[Atoms, np.ndarray, None]:
        moved = atoms.copy()
        moved.positions += rng.integers(-3, 4, (len(atoms), 3)) @ atoms.cell.array
        return moved, np.eye(3), None

    expect_same(model, dtype, scatter)


def ignores_lattice_vectors(model: RelaxationModel, dtype: str) -> None:
    """Any three vectors that span the lattice will do, left-handed ones too."""
    for matrix in ([[1, 0, 0], [1, 1, 0], [-1, 2, 1]], [[0, 1, 0], [1, 0, 1], [0, 0, 1]]):

        def choose(
            atoms: Atoms, matrix: list[list[int]] = matrix
        ) -> tuple[Atoms, np.ndarray, None]:
            moved = atoms.copy()
            moved.set_cell(np.array(matrix) @ atoms.cell.array)
            return moved, np.eye(3), None

        expect_same(model, dtype, choose)


def ignores_supercell(model: RelaxationModel, dtype: str) -> None:
    """A 2x1x1 supercell relaxes as its cell does; for models that do not see the cell.

    For models that do, it raises ``unittest.SkipTest``.
    """
    if model.spec.canonical:
        raise unittest.SkipTest('this model sees the choice of cell')
    crystals = generic_crystals(known_elements(model)) + symmetric_crystals(
        4, known_elements(model)
    )
    large = [atoms.repeat((2, 1, 1)) for atoms in crystals]
    pairs = zip(
        predictions(model, dtype, crystals), predictions(model, dtype, large), strict=True
    )
    for one, two in pairs:
        displacement = np.concatenate([one.displacement] * 2)
        expect_close(
            two, one.deformation, displacement, SUPERCELL_TOLERANCE, 'the supercell'
        )


def ignores_company(model: RelaxationModel, dtype: str) -> None:
    """What shares the batch does not matter."""
    for symmetry, crystals in both_kinds(model):
        together = predictions(model, dtype, crystals, symmetry)
        for atoms, one in zip(crystals, together, strict=True):
            (alone,) = predictions(model, dtype, [atoms], symmetry)
            where = f'{chemical_formula(atoms)} alone'
            expect_close(
                alone, one.deformation, one.displacement, BATCH_TOLERANCE[dtype], where
            )


def leaves_input_alone(model: RelaxationModel, dtype: str) -> None:
    """The atoms handed in are bit for bit what they were."""
    crystals = generic_crystals(known_elements(model))
    before = [atoms.copy() for atoms in crystals]
    predictions(model, dtype, crystals)
    for atoms, copied in zip(crystals, before, strict=True):
        expect(atoms == copied, f'{chemical_formula(copied)} was changed')


def keeps_single_atoms(model: RelaxationModel, dtype: str) -> None:
    """In a cell of one atom only the cell can relax."""
    for name, structure in (('Cu', 'fcc'), ('Fe', 'bcc'), ('Po', 'sc')):
        atoms = bulk(name, structure, a=3.4)
        atoms.numbers[:] = known_elements(model)[0]
        (result,) = predictions(model, dtype, [atoms])
        expect(result.dmax < 1e-6, f'one atom moved by {result.dmax:.1e} A')
        expect(np.isfinite(result.sigma), 'sigma is not finite')


def keeps_space_group(model: RelaxationModel, dtype: str, n: int = 100) -> None:
    """The space group is not lowered, by equivariance or, without it, by projection."""
    symmetry = 'keep' if model.spec.canonical else 'free'
    crystals = symmetric_crystals(n, known_elements(model))
    for atoms, result in zip(
        crystals, predictions(model, dtype, crystals, symmetry), strict=True
    ):
        before, after = (
            len(find_symmetry(structure, SYMPREC).rotations)
            for structure in (atoms, result.atoms)
        )
        expect(
            after >= before,
            f'{chemical_formula(atoms)}: {before} operations became {after}',
        )
