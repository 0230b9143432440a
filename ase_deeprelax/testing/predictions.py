"""Predictions of a model under test, and their comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from ase import Atoms

from ase_deeprelax.data.formula import chemical_formula
from ase_deeprelax.errors import DeepRelaxError
from ase_deeprelax.geometry.free_strain import RelaxCell
from ase_deeprelax.models.base import RelaxationModel
from ase_deeprelax.predict import Predictor
from ase_deeprelax.result import Relaxation
from ase_deeprelax.testing.crystals import generic_crystals, symmetric_crystals

# Another way of writing a crystal: the atoms, the orthogonal matrix that turned them, and
# their order, None where it is the same.
Change = Callable[[Atoms], tuple[Atoms, np.ndarray, np.ndarray | None]]

# How far predictions for two ways of writing one crystal may differ, A.
TOLERANCE = {'float32': 1e-4, 'float64': 1e-8}
# The same for one crystal in two batches, whose sums are in another order.
BATCH_TOLERANCE = {'float32': 5e-5, 'float64': 1e-8}


def known_elements(model: RelaxationModel) -> tuple[int, ...]:
    """Eight elements that the model knows."""
    known = model.card.elements or (3, 8, 12, 13, 22, 26, 38, 50)
    return tuple(known[:: max(1, len(known) // 8)][:8])


def both_kinds(model: RelaxationModel) -> tuple[tuple[str, list[Atoms]], ...]:
    """Crystals without symmetry as the network sees them, symmetric ones projected.

    A solver that starts on a symmetric saddle point leaves it to where rounding says.
    """
    elements = known_elements(model)
    return (
        ('free', generic_crystals(elements)),
        ('keep', symmetric_crystals(6, elements)),
    )


def predictions(
    model: RelaxationModel,
    dtype: str,
    structures: Iterable[Atoms],
    symmetry: str = 'free',
    relax_cell: RelaxCell | None = None,
) -> list[Relaxation]:
    """A `Relaxation` of each structure; a refusal is a fault of the model."""
    predictor = Predictor(model, device='cpu', dtype=dtype, symmetry=symmetry)
    if dtype == 'float32':
        # What is seen here is the rounding of the network; where crystals are far from any
        # answer, several passes multiply it. In float64 all passes are seen.
        predictor.max_passes = 1
    try:
        return predictor.relax(structures, relax_cell=relax_cell, on_bad='raise')
    except DeepRelaxError as error:
        raise AssertionError(f'no prediction: {error}') from error


def expect_same(model: RelaxationModel, dtype: str, change: Change) -> None:
    """Predictions before and after ``change(atoms) -> atoms, rotation, order`` agree."""
    for symmetry, crystals in both_kinds(model):
        changed = [change(atoms) for atoms in crystals]
        before = predictions(model, dtype, crystals, symmetry)
        after = predictions(model, dtype, [new for new, *_ in changed], symmetry)
        for one, two, (_, r, order) in zip(before, after, changed, strict=True):
            displacement = one.displacement if order is None else one.displacement[order]
            where = f'{chemical_formula(one.atoms)} (symmetry={symmetry!r})'
            expect_close(
                two, r.T @ one.deformation @ r, displacement @ r, TOLERANCE[dtype], where
            )


def expect_close(
    result: Relaxation,
    deformation: np.ndarray,
    displacement: np.ndarray,
    tolerance: float,
    where: str,
) -> None:
    """A result has this deformation and these displacements, within a tolerance in A."""
    cell = result.initial.cell.array @ (result.deformation - deformation)
    error = max(np.abs(cell).max(), np.abs(result.displacement - displacement).max())
    expect(
        error <= tolerance, f'{where} differs by {error:.1e} A, allowed is {tolerance:g}'
    )


def orthogonal_matrices(n: int) -> np.ndarray:
    """(n, 3, 3) random orthogonal matrices, proper and improper in turn."""
    rng = np.random.default_rng(3)
    matrices = np.linalg.qr(rng.standard_normal((n, 3, 3)))[0]
    sign = np.sign(np.linalg.det(matrices)) * (-1.0) ** np.arange(n)
    return matrices * sign[:, None, None]


def rotated(atoms: Atoms, rotation: np.ndarray) -> Atoms:
    """A copy in another orientation."""
    rotated = atoms.copy()
    rotated.set_cell(atoms.cell.array @ rotation)
    rotated.positions = atoms.positions @ rotation
    return rotated


def expect(holds: object, message: str) -> None:
    """Raise where something is not true, also under ``python -O``."""
    if not holds:
        raise AssertionError(message)
