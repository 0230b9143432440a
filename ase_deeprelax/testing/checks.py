"""Invariances and promises that hold for every crystal."""

from __future__ import annotations

import copy
import unittest

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from ase_deeprelax.data.formula import chemical_formula
from ase_deeprelax.geometry.symmetry import find_symmetry
from ase_deeprelax.models.base import RelaxationModel
from ase_deeprelax.testing.crystals import generic_crystals, symmetric_crystals
from ase_deeprelax.testing.output_checks import collated, raw_output
from ase_deeprelax.testing.predictions import (
    BATCH_TOLERANCE,
    TOLERANCE,
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
FEATURE_TOLERANCE = 1e-3
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
        Size of the outputs of such a layer for inputs of order one, default 0.05. Take a
        larger one where `says_something` finds that too little moves, and a smaller one
        where predictions are refused because atoms come too near.
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
    little = 'too little to test it; train the model, or awaken it with a larger scale'
    for result in predictions(model, dtype, generic_crystals(known_elements(model))[1:]):
        change = np.abs(result.deformation - np.eye(3)).max()
        expect(result.dmax > 5e-3, f'largest displacement is {result.dmax:.1e} A: {little}')
        expect(change > 1e-4, f'largest strain is {change:.1e}: {little}')


def ignores_orientation(model: RelaxationModel, dtype: str) -> None:
    """Rotated and mirrored crystals relax to the rotated and mirrored structures.

    The features of their atoms, where a model gives them, are the same.
    """
    for rotation in orthogonal_matrices(2):
        expect_same(model, dtype, lambda atoms, r=rotation: (rotated(atoms, r), r, None))
        _expect_same_features(model, dtype, rotation)


def _expect_same_features(model: RelaxationModel, dtype: str, rotation: np.ndarray) -> None:
    crystals = generic_crystals(known_elements(model))
    turned = [rotated(atoms, rotation) for atoms in crystals]
    before, after = (
        raw_output(model, dtype, collated(model, dtype, one)).features
        for one in (crystals, turned)
    )
    if before is None or after is None:
        return
    error, largest = float((after - before).abs().max()), float(before.abs().max())
    expect(
        error <= FEATURE_TOLERANCE * largest,
        f'features of turned crystals differ by {error:.1e}; the largest is {largest:.1e}',
    )


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
        where = f'the supercell of {chemical_formula(one.atoms)}'
        expect_close(two, one.deformation, displacement, SUPERCELL_TOLERANCE, where)
    _expect_same_move(model, dtype, crystals, large)


def _expect_same_move(
    model: RelaxationModel, dtype: str, crystals: list[Atoms], large: list[Atoms]
) -> None:
    """The network alone moves supercells as their cells, before the solver hides it."""
    cells, supercells = (collated(model, dtype, one) for one in (crystals, large))
    one, two = (raw_output(model, dtype, batch) for batch in (cells, supercells))
    moves = one.displacement.split(cells.starts.diff().tolist())
    twice = torch.cat([torch.cat([move, move]) for move in moves])
    stretch = cells.cell @ (two.deformation - one.deformation)
    error = float(max(stretch.abs().max(), (two.displacement - twice).abs().max()))
    expect(
        error <= TOLERANCE[dtype],
        f'what forward returns for a supercell differs by {error:.1e} A from what it '
        f'returns for the cell, allowed is {TOLERANCE[dtype]:g}',
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
    for structure in ('fcc', 'bcc', 'sc'):
        atoms = bulk('Cu', structure, a=3.4)
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
