"""How far to trust a potential beside a model, from pairs relaxed with DFT."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ase.calculators.calculator import Calculator

from ase_deeprelax.calculators.batched import batch_potential
from ase_deeprelax.compare.alignment import Alignment
from ase_deeprelax.compare.error_laws import FEWEST
from ase_deeprelax.compare.predictor_adapter import PredictorAdapter, predict_pairs
from ase_deeprelax.data.one_line import count
from ase_deeprelax.data.pair import Pair
from ase_deeprelax.data.pairs import spread
from ase_deeprelax.errors import ConfigError, reason_of, warn
from ase_deeprelax.geometry.cell_filter import free_cell
from ase_deeprelax.models.calibration import PotentialErrors
from ase_deeprelax.optimize.elastic_bfgs import ElasticBFGS
from ase_deeprelax.optimize.guide import pull_of
from ase_deeprelax.optimize.many import relax_batched
from ase_deeprelax.optimize.verify import mean_newton_step
from ase_deeprelax.predict import Predictor
from ase_deeprelax.result import Relaxation

# Strengths of the pull of a prediction that are tried, eV/A.
STRENGTHS = (0.01, 0.02, 0.04, 0.08, 0.16)
# Strengths whose errors differ by less than this share are equally good: another sample of
# pairs would put them in another order.
TIE = 0.02
# Pairs of each kind that a potential is called for, at most, and with how many atoms.
MOST_PAIRS, MOST_ATOMS = 200, 24
# Limits of the guided relaxations.
FMAX, STEPS = 0.05, 20
# The share of the structures relaxed with DFT whose step is within the error.
USUAL = 0.9


def calibrate_potential(
    pairs: Sequence[Pair],
    predictor: Predictor,
    calculator: Calculator,
    *,
    tell: Callable[[str], None] | None = None,
) -> dict[str, PotentialErrors]:
    """Fit the strength of a prediction beside a potential, and the potential's own error.

    Each kind of structure with `FEWEST` pairs of at most `MOST_ATOMS` atoms has numbers of
    its own, from a spread sample of `MOST_PAIRS`. The strength is that of `STRENGTHS` whose
    guided relaxations end closest to DFT: the smallest sum of the errors of coordinates and
    lattice, each in units of the input's, means and medians alike. Of those that are
    equally good (`TIE`) it is the weakest, which takes the fewest calls. The error is what
    90 % of the structures relaxed with DFT are off by, in the potential's own view
    (`verify.mean_newton_step`). Pairs for which the potential fails are left out, with a
    warning.

    Parameters
    ----------
    pairs : list of Pair
        Relaxed with DFT, and never seen by the model.
    predictor : Predictor
    calculator : ase Calculator
        Of the potential.
    tell : callable, optional
        Gets a line for each strength.

    Returns
    -------
    dict of str to PotentialErrors
        By `Relaxation.kind`.

    Raises
    ------
    ConfigError
        There are too few pairs of each kind, or the potential fails for too many of them.
    """
    pairs = [pair for pair in pairs if len(pair) <= MOST_ATOMS]
    predicted = predict_pairs(PredictorAdapter(predictor), pairs)
    kinds: dict[str, list[tuple[Pair, Relaxation]]] = {}
    for pair, one in zip(pairs, predicted, strict=True):
        if isinstance(one, Relaxation) and one.ok:
            kinds.setdefault(one.kind, []).append((pair, one))
    enough = {kind: found for kind, found in kinds.items() if len(found) >= FEWEST}
    if not enough:
        raise ConfigError(
            f'no kind of structure has {FEWEST} pairs with at most {MOST_ATOMS} atoms that '
            'the model predicts; a potential needs as many, see `deeprelax evaluate`'
        )
    judged = {
        kind: _judge(kind, spread(found, MOST_PAIRS), calculator)
        for kind, found in enough.items()
    }
    judged = {kind: found for kind, found in judged.items() if len(found) >= FEWEST}
    if not judged:
        raise ConfigError(
            f'the potential works for fewer than {FEWEST} pairs of each kind; choose '
            'another one, or pairs of elements that it knows'
        )
    return {
        kind: _calibrate_kind(kind, found, calculator, tell)
        for kind, found in judged.items()
    }


def _judge(
    kind: str, found: Sequence[tuple[Pair, Relaxation]], calculator: Calculator
) -> list[tuple[Pair, Relaxation, float]]:
    """Pairs with the step (A) that the potential would make from DFT's structure."""
    judged, problem = [], ''
    for pair, predicted in found:
        try:
            judged.append((pair, predicted, _step_at(pair, calculator)))
        except Exception as error:  # noqa: BLE001 - potentials raise anything
            problem = f'{pair.id!r}: {reason_of(error)}'
    if problem:
        n = f'{len(found) - len(judged)} of {count(len(found), "pair")}'
        warn(
            f'{kind}: the potential fails for {n}, which are left out; the last: {problem}'
        )
    return judged


def _calibrate_kind(
    kind: str,
    judged: Sequence[tuple[Pair, Relaxation, float]],
    calculator: Calculator,
    tell: Callable[[str], None] | None,
) -> PotentialErrors:
    pairs, relaxations, steps = zip(*judged, strict=True)
    predicted = dict(enumerate(relaxations))
    scores = {}
    for strength in STRENGTHS:
        errors = guided_errors(pairs, predicted, calculator, strength)
        scores[strength] = _score(errors)
        if tell is not None:
            tell(
                f'{kind}, {strength:g} eV/A: error {scores[strength]:.3f} of that of the '
                'inputs'
            )
    return PotentialErrors(guide=weakest(scores), step=float(np.quantile(steps, USUAL)))


def weakest(scores: Mapping[float, float]) -> float:
    """The weakest of the strengths whose scores are best or equally good.

    Parameters
    ----------
    scores : dict of float to float
        Error by strength, eV/A.

    Examples
    --------
    >>> weakest({0.01: 0.45, 0.02: 0.401, 0.04: 0.4})
    0.02
    """
    limit = (1 + TIE) * min(scores.values())
    return min(strength for strength, score in scores.items() if score <= limit)


def guided_errors(
    pairs: Sequence[Pair],
    predicted: Mapping[Any, Relaxation],
    calculator: Calculator,
    strength: float,
) -> np.ndarray:
    """Errors of guided relaxations and of the inputs.

    Parameters
    ----------
    pairs : list of Pair
    predicted : dict of int to Relaxation
        By the place of their pair.
    calculator : ase Calculator
    strength : float, eV/A

    Returns
    -------
    (n, 2, 2)
        For each pair, of the guided structure and of the input: coordinates and lattice, A.
    """
    known: dict[Any, Pair] = dict(enumerate(pairs))
    ends = relax_batched(
        ((k, one.atoms) for k, one in predicted.items()),
        batch_potential(calculator),
        optimizer=ElasticBFGS,
        relax_cell=lambda k: not known[k].fixed_cell,
        fmax=FMAX,
        steps=STEPS,
        guide=lambda k: pull_of(predicted[k], strength),
    )
    return np.array(
        [
            [_errors(known[k], end.atoms), _errors(known[k], known[k].unrelaxed)]
            for k, end in ends
        ]
    )


def _errors(pair: Pair, atoms: Any) -> list[float]:
    alignment = Alignment(pair)
    cell, frac = alignment.align(atoms)
    return [alignment.coordinate_error(cell, frac), alignment.lattice_error(cell)]


def _score(errors: np.ndarray) -> float:
    """Errors in units of those of the inputs: mean over quantities, means and medians."""
    ratios = [
        average(errors[:, 0, k]) / average(errors[:, 1, k])
        for average in (np.mean, np.median)
        for k in (0, 1)
        if average(errors[:, 1, k]) > 0
    ]
    return float(np.mean(ratios))


def _step_at(pair: Pair, calculator: Calculator) -> float:
    """Mean move that the potential would make from the structure relaxed with DFT, A."""
    relaxed = pair.relaxed
    relaxed.calc = calculator
    return mean_newton_step(free_cell(relaxed, not pair.fixed_cell))
