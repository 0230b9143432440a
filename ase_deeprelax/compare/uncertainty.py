"""How well the uncertainties of a model tell its errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ase_deeprelax.compare.calibrate import errors_of
from ase_deeprelax.compare.evaluation_schema import Coverage, RiskPoint
from ase_deeprelax.compare.predictor_adapter import Predicted
from ase_deeprelax.data.pair import Pair
from ase_deeprelax.result import Relaxation

# Shares of the structures, the most certain ones first, at which errors are averaged.
SHARES = tuple(k / 20 for k in range(1, 21))
# The most uncertain part whose share of the error is reported.
UNCERTAIN = 0.2


def rank_correlation(
    sigma: Sequence[float | None], error: Sequence[float | None]
) -> float | None:
    """Spearman's, over structures that have both; None where one does not vary.

    >>> rank_correlation([0.1, 0.2, None, 0.3], [1.0, 2.0, 3.0, 4.0])
    1.0
    """
    from scipy.stats import spearmanr

    known = _known(sigma, error)
    if len(known) < 2 or (np.ptp(known, axis=0) == 0).any():
        return None
    return round(float(spearmanr(*known.T).statistic), 12)


def risk_coverage(
    uncertainty: Sequence[float | None], error: Sequence[float | None]
) -> list[RiskPoint] | None:
    """Mean error of the most certain structures; None where nothing tells which they are.

    Parameters
    ----------
    uncertainty : list of float or None
        Anything that ranks them.
    error : list of float or None

    Returns
    -------
    list of RiskPoint

    Examples
    --------
    >>> points = risk_coverage([1.0, 2.0], [0.1, 0.3])
    >>> points[-1] == {'share': 1.0, 'error': 0.2}
    True
    """
    known = _known(uncertainty, error)
    if _all_alike(known):
        return None
    errors = known[np.argsort(known[:, 0], kind='stable'), 1]
    counts = [max(1, round(share * len(errors))) for share in SHARES]
    return [
        {'share': share, 'error': float(errors[:n].mean())}
        for share, n in zip(SHARES, counts, strict=True)
    ]


def uncertain_share(
    uncertainty: Sequence[float | None], error: Sequence[float | None]
) -> float | None:
    """The part of the whole error that the most uncertain 20 %, one at least, carry.

    None where nothing tells which they are.

    >>> uncertain_share([1, 2, 3, 4, 5], [0.1, 0.1, 0.1, 0.1, 0.6])
    0.6
    """
    known = _known(uncertainty, error)
    total = known[:, 1].sum()
    if not total > 0 or _all_alike(known):
        return None
    most = max(1, round(UNCERTAIN * len(known)))
    order = np.argsort(-known[:, 0], kind='stable')[:most]
    return float(known[order, 1].sum() / total)


def inside_90(pair: Pair, predicted: Predicted) -> dict[str, float]:
    """The share of the true values of a pair that lie inside their 90 % intervals.

    Parameters
    ----------
    pair : Pair
    predicted : ase.Atoms or Relaxation

    Returns
    -------
    dict of str to float
        ``position``, ``lattice`` and ``volume``, as far as there are intervals.
    """
    if not isinstance(predicted, Relaxation):
        return {}
    if not (predicted.ok and np.isfinite(predicted.error)):
        return {}
    errors, cell = errors_of(pair, predicted), predicted.atoms.cell
    limits = {
        'position': (errors['positions'], predicted.position_90),
        # Upper ends of intervals are those of the largest relative error.
        'lattice': (errors['lattice'], cell.lengths() / predicted.lattice_90[:, 0] - 1),
        'volume': (errors['volume'], cell.volume / predicted.volume_90[:1] - 1),
    }
    shares = {}
    for name, (values, limit) in limits.items():
        # A layer that the pair takes for a crystal has no interval for its volume.
        there = np.isfinite(values) & np.isfinite(limit)
        if there.any():
            shares[name] = float((values[there] <= limit[there] + 1e-9).mean())
    return shares


def coverage_90(shares: Sequence[Mapping[str, float]]) -> Coverage | None:
    """The share of true values inside their 90 % intervals; each structure counts alike.

    Parameters
    ----------
    shares : list of dict
        Of the structures, see `inside_90`.

    Returns
    -------
    Coverage or None
        None where no prediction has intervals.

    Examples
    --------
    >>> coverage_90([{'position': 1.0, 'lattice': 0.0}, {'position': 0.5}, {}])
    {'n': 2, 'position': 0.75, 'lattice': 0.0, 'volume': None}
    """
    found = {
        name: [one[name] for one in shares if name in one]
        for name in ('position', 'lattice', 'volume')
    }
    if not found['position']:
        return None
    means = {name: float(np.mean(x)) if x else None for name, x in found.items()}
    return {
        'n': len(found['position']),
        'position': means['position'],
        'lattice': means['lattice'],
        'volume': means['volume'],
    }


def _all_alike(known: np.ndarray) -> bool:
    """Whether all uncertainties are the same: their order would be that of the file."""
    return not len(known) or (len(known) > 1 and np.ptp(known[:, 0]) == 0)


def _known(*columns: Sequence[float | None]) -> np.ndarray:
    """(n, n_columns): the rows without None."""
    rows = [row for row in zip(*columns, strict=True) if None not in row]
    return np.array(rows, dtype=float).reshape(-1, len(columns))
