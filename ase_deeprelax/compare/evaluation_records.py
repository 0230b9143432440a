"""Records of an evaluation: of each pair, of each model and of each kind of pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from ase import Atoms

from ase_deeprelax.compare.alignment import Alignment
from ase_deeprelax.compare.evaluation_schema import (
    Errors,
    EvaluatedStructure,
    KindRecord,
    MethodFigures,
    ModelRecord,
)
from ase_deeprelax.compare.metrics import summarise
from ase_deeprelax.compare.predictor_adapter import (
    Predicted,
    PredictorAdapter,
    problem_of,
)
from ase_deeprelax.compare.schema import Lattice
from ase_deeprelax.compare.uncertainty import (
    coverage_90,
    rank_correlation,
    risk_coverage,
    uncertain_share,
)
from ase_deeprelax.data.formula import chemical_formula
from ase_deeprelax.data.pair import Pair
from ase_deeprelax.result import Relaxation


def pair_row(
    pair: Pair,
    errors: dict[str, Errors],
    found: Mapping[str, Atoms],
    predicted: Mapping[str, Predicted],
) -> EvaluatedStructure:
    """The record of a pair.

    Parameters
    ----------
    pair : Pair
    errors : dict of str to dict
        By method, see `metrics.Reference.errors`.
    found : dict of str to ase.Atoms
        The structures of all methods.
    predicted : dict of str to ase.Atoms or Relaxation
        What the models gave.
    """
    return {
        'id': pair.id,
        'formula': chemical_formula(pair.unrelaxed),
        'n_atoms': len(pair.numbers),
        'ok': pair.ok,
        'kind': kind_of(pair),
        'errors': errors,
        'lattice': {name: _lattice(pair, atoms) for name, atoms in found.items()},
        'relaxed_lattice': _lattice(pair, pair.relaxed),
        'sigma': {name: _length(one, 'sigma') for name, one in predicted.items()},
        'bond_error': {name: _bond_error(pair, one) for name, one in predicted.items()},
        'expected_error': {name: _length(one, 'error') for name, one in predicted.items()},
    }


def model_record(
    name: str,
    adapter: PredictorAdapter,
    predicted: Sequence[Predicted],
    rows: Sequence[EvaluatedStructure],
    *,
    seconds: float,
    inside: Sequence[Mapping[str, float]],
) -> ModelRecord:
    """The record of a model besides its errors.

    Parameters
    ----------
    name : str
        Its name in the rows.
    adapter : PredictorAdapter
    predicted : list of ase.Atoms or Relaxation
        For the pairs.
    rows : list of dict
        Of the pairs, see `pair_row`.
    seconds : float
        Wall time of all predictions.
    inside : list of dict
        Of the pairs, see `uncertainty.inside_90`.
    """
    sigma = [row['sigma'][name] for row in rows]
    expected = [row['expected_error'][name] for row in rows]
    errors = [row['errors'][name]['coord_mae'] for row in rows]
    # Sigma ranks all where a prediction has no expected error; a failed one has neither.
    gaps = [e is None and s is not None for e, s in zip(expected, sigma, strict=True)]
    certain = sigma if any(gaps) else expected
    bond_errors = [row['bond_error'][name] for row in rows]
    return {
        'model': adapter.name,
        'device': adapter.device,
        'n_failed': sum(bool(problem_of(one)) for one in predicted),
        'ms_per_structure': 1e3 * seconds / len(rows),
        'spearman_sigma': rank_correlation(sigma, bond_errors),
        'coverage_90': coverage_90(inside),
        'risk_coverage': risk_coverage(certain, errors),
        'uncertain_20': uncertain_share(certain, errors),
    }


def kind_records(
    rows: Sequence[EvaluatedStructure],
    methods: Iterable[str],
    inside: Mapping[str, Sequence[Mapping[str, float]]],
) -> dict[str, KindRecord]:
    """The records of all kinds, in the order in which they come.

    Parameters
    ----------
    rows : list of dict
        Of the pairs, see `pair_row`.
    methods : iterable of str
    inside : dict of str to list of dict
        By model, of the pairs, see `uncertainty.inside_90`.
    """
    kinds: dict[str, KindRecord] = {}
    for kind in dict.fromkeys(row['kind'] for row in rows):
        places = [k for k, row in enumerate(rows) if row['kind'] == kind]
        kinds[kind] = {
            'n': len(places),
            'all': figures([rows[k] for k in places], methods),
            'coverage_90': {
                name: coverage_90([shares[k] for k in places])
                for name, shares in inside.items()
            },
        }
    return kinds


def figures(rows: Sequence[EvaluatedStructure], methods: Iterable[str]) -> MethodFigures:
    """The errors of each method over some pairs, see `metrics.summarise`."""
    return {name: summarise([row['errors'][name] for row in rows]) for name in methods}


def kind_of(pair: Pair) -> str:
    """The kind under which tables count a pair.

    >>> from ase.build import bulk
    >>> from ase_deeprelax.data.pair import make_pair
    >>> cu = bulk('Cu')
    >>> [kind_of(make_pair('x', cu, cu, fixed_cell=held)) for held in (False, True)]
    ['bulk', 'fixed-cell']
    """
    if pair.kind not in ('', 'bulk'):
        return pair.kind
    if pair.fixed_cell:
        return 'fixed-cell'
    return 'bulk' if pair.kind or all(pair.pbc) else 'layer'


def _lattice(pair: Pair, atoms: Atoms) -> Lattice:
    """Lengths and angles of a cell, None where the vacuum vector has a part in them."""
    a, b, c = pair.pbc
    meant = (a, b, c, b and c, a and c, a and b)
    values = atoms.cell.cellpar().tolist()
    return [value if good else None for value, good in zip(values, meant, strict=True)]


def _length(predicted: Predicted, name: str) -> float | None:
    """A field of a prediction, A, where there is one and it is known."""
    if not isinstance(predicted, Relaxation) or not predicted.ok:
        return None
    value = float(getattr(predicted, name))
    return value if np.isfinite(value) else None


def _bond_error(pair: Pair, predicted: Predicted) -> float | None:
    """Mean absolute error of the bonds of the model's graph, A, where sigma is known."""
    if not isinstance(predicted, Relaxation) or _length(predicted, 'sigma') is None:
        return None
    alignment = Alignment(pair)
    bonds = alignment.bonds_of(predicted)
    return alignment.distance_error(*alignment.align(predicted.atoms), bonds)
