"""How errors grow with sigma, and intervals that hold 90 % of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from ase_deeprelax.models.calibration import QUANTITIES, ErrorLaw

# The share of errors that intervals hold.
COVERAGE = 0.9
# Fewer structures of a kind in a file give no interval.
FEWEST = 30
# Exponents of sigma among which the best one is looked for.
POWERS = (0.2, 2.5)
# Errors are never exactly zero: what a relaxed structure is uncertain by, A and relative.
FLOOR = 1e-4


@dataclass(frozen=True, eq=False)
class Observed:
    """Errors of one prediction, by quantity: each with the sigma that goes with it.

    Attributes
    ----------
    file, kind : str
    errors, sigmas : dict of str to (n,) array
        By `QUANTITIES`; empty arrays where a quantity has no meaning.
    distance : float
        Largest distance of an atom from what the model knows, see `Environments`.
    """

    file: str
    kind: str
    errors: dict[str, np.ndarray]
    sigmas: dict[str, np.ndarray]
    distance: float = math.nan


def count_kinds(observed: Sequence[Observed]) -> dict[tuple[str, str], int]:
    """How many structures of a kind each file holds, where it is `FEWEST` or more."""
    counts = Counter((one.file, one.kind) for one in observed)
    return {key: n for key, n in counts.items() if n >= FEWEST}


def fit_laws(
    observed: Sequence[Observed], groups: Collection[tuple[str, str]] | None = None
) -> dict[str, ErrorLaw]:
    """A law for each of `QUANTITIES`.

    Files and kinds that count are those of `count_kinds`, unless ``groups`` says which.
    """
    groups = count_kinds(observed) if groups is None else groups
    used = [one for one in observed if (one.file, one.kind) in groups]
    return {name: _fit_law(name, used) for name in QUANTITIES}


def _fit_law(name: str, observed: Sequence[Observed]) -> ErrorLaw:
    used = [one for one in observed if len(one.errors[name])]
    if not used:
        return ErrorLaw(1.0, {}, {})
    errors = np.concatenate([one.errors[name] for one in used]) + FLOOR
    sigmas = np.concatenate([one.sigmas[name] for one in used])
    repeats = [len(one.errors[name]) for one in used]
    weights = np.concatenate([np.full(n, 1 / n) for n in repeats])
    kinds = np.repeat([one.kind for one in used], repeats)
    groups = np.repeat([f'{one.file}\n{one.kind}' for one in used], repeats)

    names, kind_of = np.unique(kinds, return_inverse=True)
    total = np.bincount(kind_of, weights)

    def scales(power: float) -> np.ndarray:
        return np.bincount(kind_of, weights * errors / sigmas**power) / total

    def deviance(power: float) -> float:
        expected = scales(power)[kind_of] * sigmas**power
        return float(np.sum(weights * (errors / expected + np.log(expected))))

    power = float(minimize_scalar(deviance, bounds=POWERS, method='bounded').x)
    found = scales(power)
    scale = dict(zip(names.tolist(), found.tolist(), strict=True))
    ratio = errors / (found[kind_of] * sigmas**power)
    bound: dict[str, float] = {}
    for group in np.unique(groups):
        inside = groups == group
        kind = str(group).split('\n')[1]
        limit = conformal_quantile(ratio[inside], weights[inside])
        bound[kind] = max(bound.get(kind, 0.0), limit)
    return ErrorLaw(power, scale, bound)


def conformal_quantile(values: np.ndarray, weights: np.ndarray) -> float:
    """The value that a new one does not exceed with a probability of `COVERAGE`.

    Parameters
    ----------
    values : (n,)
    weights : (n,)
        Their sum is the number of structures.

    Examples
    --------
    >>> conformal_quantile(np.arange(1.0, 100.0), np.ones(99))
    90.0
    """
    order = np.argsort(values)
    total = weights[order].cumsum()
    wanted = min(COVERAGE * (total[-1] + 1), total[-1])
    return float(values[order][np.searchsorted(total, wanted - 1e-9)])


def coverage(
    laws: Mapping[str, ErrorLaw], observed: Sequence[Observed]
) -> dict[str, float]:
    """The share of errors inside their intervals, by quantity; structures count alike."""
    found = {}
    for name in ('positions', 'lattice', 'volume'):
        shares = [
            np.mean(one.errors[name] <= laws[name].within(one.kind, one.sigmas[name]))
            for one in observed
            if len(one.errors[name])
        ]
        if shares:
            found[name] = round(float(np.mean(shares)), 3)
    return found


def cross_coverage(
    observed: Sequence[Observed],
) -> dict[tuple[str, str], dict[str, float]]:
    """The coverage of each half of the data by laws that were fitted to the other half.

    It is not told where a half has fewer than `FEWEST` structures, but these count in the
    fits as they do in that to all data.
    """
    keys = count_kinds(observed)
    groups = {key: [o for o in observed if (o.file, o.kind) == key] for key in keys}
    folds = [[o for one in groups.values() for o in one[k::2]] for k in (0, 1)]
    laws = [fit_laws(fold, keys) for fold in folds]
    found = {}
    for key, one in groups.items():
        if len(one) < 2 * FEWEST:  # a half is too small for a fit
            continue
        halves = [coverage(laws[1 - k], one[k::2]) for k in (0, 1)]
        found[key] = {
            name: round((halves[0][name] + halves[1][name]) / 2, 3)
            for name in halves[0].keys() & halves[1].keys()
        }
    return found
