"""Schema of the results of `evaluate` and `evaluate_all`: dictionaries ready for JSON.

Units and the version of the format are those of `schema`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict, cast

from ase_deeprelax.compare.schema import Lattice

# Figures of one prediction, see `metrics.Reference.errors`; None where one has no meaning.
Errors = dict[str, float | None]
# By method ('dummy', 'scaled_dummy' and each model): {'mean', 'median'} of each of
# `metrics.ERRORS` and the value of each of `metrics.SHARES`, over the pairs for which they
# have a meaning (None: for none).
MethodFigures = Mapping[str, Mapping[str, Any]]


class ModelRecord(TypedDict):
    """A model besides its errors."""

    model: str
    device: str
    n_failed: int  # pairs without a prediction; the input replaces it
    ms_per_structure: float  # wall time of all together over their number, ms
    # Rank correlation of a structure's sigma with the mean absolute error of its bonds;
    # None where the model gives no sigma.
    spearman_sigma: float | None
    # Structures are ranked by their expected errors, or by sigma where there are none; the
    # errors are coordinate errors, A.
    risk_coverage: NotRequired[list[RiskPoint] | None]
    uncertain_20: NotRequired[
        float | None
    ]  # share of the errors in the most uncertain 20 %
    coverage_90: NotRequired[Coverage | None]


class RiskPoint(TypedDict):
    """A point of a risk-coverage curve."""

    share: float  # of the structures, the most certain ones
    error: float  # their mean error, A


class Coverage(TypedDict):
    """Shares of true values inside their 90 % intervals; None: not for these pairs."""

    n: int  # structures
    position: float | None
    lattice: float | None
    volume: float | None


class KindRecord(TypedDict):
    """Pairs of one kind."""

    n: int
    all: MethodFigures
    coverage_90: NotRequired[dict[str, Coverage | None]]  # by model


class EvaluatedStructure(TypedDict):
    """One pair."""

    id: str
    formula: str
    n_atoms: int
    ok: bool  # whether the pair is marked ok
    kind: str
    errors: dict[str, Errors]  # by method
    lattice: dict[str, Lattice]  # by method; None along the vacuum
    relaxed_lattice: Lattice
    sigma: dict[str, float | None]  # by model, A
    bond_error: dict[str, float | None]  # by model: mean absolute error of its bonds, A
    expected_error: NotRequired[dict[str, float | None]]  # by model, of the coordinates, A


class EvaluationBase(TypedDict):
    """Fields that the results of `evaluate` and of `evaluate_all` share."""

    version: int  # of this format, see `check_version`
    n: int  # pairs
    n_ok: int  # those marked ok
    all: MethodFigures  # over all pairs
    ok: MethodFigures  # over those marked ok
    kinds: dict[str, KindRecord]
    structures: list[EvaluatedStructure]


class Evaluation(EvaluationBase, ModelRecord):
    """The result of `evaluate`, whose only model is called 'model'."""


class ManyEvaluation(EvaluationBase):
    """The result of `evaluate_all`."""

    models: dict[str, ModelRecord]  # by name


AnyEvaluation = Evaluation | ManyEvaluation


def models_of(evaluation: AnyEvaluation) -> dict[str, ModelRecord]:
    """The records of all models of an evaluation, by the name of their method."""
    found = evaluation.get('models', {'model': evaluation})
    return cast('dict[str, ModelRecord]', found)
