"""How good a model is on pairs with a known answer, compared with trivial baselines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from ase import Atoms
from joblib import Parallel, delayed, effective_n_jobs

from ase_deeprelax.compare.alignment import Alignment, check_periodicity
from ase_deeprelax.compare.baselines import Dummy, ScaledDummy
from ase_deeprelax.compare.evaluation_schema import (
    Errors,
    EvaluatedStructure,
    Evaluation,
    KindRecord,
    ManyEvaluation,
    MethodFigures,
    ModelRecord,
)
from ase_deeprelax.compare.metrics import ERRORS, Reference, summarise
from ase_deeprelax.compare.predictor_adapter import (
    Predicted,
    PredictorAdapter,
    atoms_of,
    predict_pairs,
    problem_of,
)
from ase_deeprelax.compare.schema import VERSION, Lattice
from ase_deeprelax.compare.uncertainty import (
    coverage_90,
    inside_90,
    rank_correlation,
    risk_coverage,
    uncertain_share,
)
from ase_deeprelax.data.formula import chemical_formula
from ase_deeprelax.data.one_line import count, one_line
from ase_deeprelax.data.pair import Pair
from ase_deeprelax.errors import ConfigError
from ase_deeprelax.result import Relaxation

T = TypeVar('T')

BASELINES = {'dummy': Dummy, 'scaled_dummy': ScaledDummy}
# Below this many pairs, workers take longer to start than they save.
_WORTH_WORKERS = 100


def evaluate(
    pairs: Sequence[Pair],
    model: Any = 'default',
    *,
    device: str = 'auto',
    jobs: int | None = None,
    progress: bool = False,
) -> Evaluation:
    """Errors of a model, of `Dummy` and of `ScaledDummy` on pairs.

    The structures that the model gets have the periodicity and the fixed atoms of their
    pairs, and where the cell is fixed it is called with ``relax_cell=False``.

    Parameters
    ----------
    pairs : list of Pair
    model : str, path, RelaxationModel, Predictor or callable
        Name or folder of a model, a model, a Predictor, or any function from a list of
        ``ase.Atoms`` to a list of relaxed ``ase.Atoms`` (or `Relaxation`) in the same
        order, atoms and lattice vectors in the same order; with the keyword
        ``relax_cell`` where there are pairs whose cell is fixed. Default 'default'.
    device : str
        Where a model that is no Predictor yet runs; default 'auto'.
    jobs : int, optional
        Processes that compare structures; default one per core.
    progress : bool
        Show bars; default False.

    Returns
    -------
    Evaluation
        A dict, ready for JSON; `evaluation_schema.Evaluation` explains its fields.
        Figures have no value (None) for pairs where they have no meaning, see
        `Reference.errors`.

    Raises
    ------
    PredictionError
        The model gave another number of structures, or other atoms.
    ConfigError
        There are no pairs, or the cell of some is fixed and the model has no keyword
        relax_cell.
    PairFileError
        A pair is neither a crystal nor a layer.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase_deeprelax.data.pairs import make_pair
    >>> pairs = [make_pair('Cu', bulk('Cu', a=3.5), bulk('Cu', a=3.6))]
    >>> result = evaluate(pairs, model=Dummy())
    >>> round(result['all']['model']['lattice_mae']['mean'], 4)
    0.0333
    """
    found = evaluate_all(
        pairs, {'model': model}, device=device, jobs=jobs, progress=progress
    )
    result: Evaluation = {
        'version': found['version'],
        'n': found['n'],
        'n_ok': found['n_ok'],
        **found['models']['model'],
        'all': found['all'],
        'ok': found['ok'],
        'kinds': found['kinds'],
        'structures': found['structures'],
    }
    return one_line(result, _line('a model', pairs))


def evaluate_all(
    pairs: Sequence[Pair],
    models: Mapping[str, Any],
    *,
    device: str = 'auto',
    jobs: int | None = None,
    progress: bool = False,
) -> ManyEvaluation:
    """Errors of several models side by side, and of `Dummy` and `ScaledDummy`.

    Parameters
    ----------
    pairs : list of Pair
        As `read_pairs` gives them.
    models : dict of str to model
        What to call them, and what `evaluate` takes as its ``model``.
    device : str
        Default 'auto': a GPU where there is one.
    jobs : int, optional
        Processes that compare structures; default one per core.
    progress : bool
        Show a bar; default False.

    Returns
    -------
    ManyEvaluation
        A dict, ready for JSON; `evaluation_schema.ManyEvaluation` explains its fields.

    Raises
    ------
    PredictionError
        A model gave another number of structures, or other atoms.
    ConfigError
        There are no pairs; a model has the name of a baseline, or no keyword relax_cell
        where the cell of some pairs is fixed.
    PairFileError
        A pair is neither a crystal nor a layer.

    Examples
    --------
    >>> from ase_deeprelax.compare.iterative import Iterative
    >>> models = {'mine': 'runs/mine/model', 'chgnet': Iterative('chgnet')}
    >>> print(evaluation_text(evaluate_all(pairs, models)))  # doctest: +SKIP
    """
    if not pairs:
        raise ConfigError('pairs is empty; give one or more')
    if taken := BASELINES.keys() & models.keys():
        raise ConfigError(f'{taken.pop()!r} is a baseline; give the model another name')
    # All models are made first: one that does not exist ends the work before it begins.
    adapters = {
        name: PredictorAdapter(model, device=device, progress=progress)
        for name, model in models.items()
    }
    if held := sum(pair.fixed_cell for pair in pairs):
        for adapter in adapters.values():
            adapter.check_accepts_relax_cell(
                f'the cell of {held} of {len(pairs)} pairs is fixed'
            )
    for pair in pairs:
        check_periodicity(pair)
    found = {
        name: [atoms_of(x) for x in predict_pairs(PredictorAdapter(make()), pairs)]
        for name, make in BASELINES.items()
    }
    predicted: dict[str, list[Predicted]] = {}
    seconds: dict[str, float] = {}
    for name, adapter in adapters.items():
        start = perf_counter()
        predicted[name] = predict_pairs(adapter, pairs)
        seconds[name] = perf_counter() - start
        found[name] = [_structure(*x) for x in zip(pairs, predicted[name], strict=True)]
    rows = [
        _row(pair, errors, _of_one(k, found), _of_one(k, predicted))
        for k, (pair, errors) in enumerate(
            zip(pairs, _compare(pairs, found, jobs, progress), strict=True)
        )
    ]
    inside = {
        name: [inside_90(*one) for one in zip(pairs, x, strict=True)]
        for name, x in predicted.items()
    }
    records: dict[str, ModelRecord] = {}
    for name, adapter in adapters.items():
        sigma = [row['sigma'][name] for row in rows]
        expected = [row['expected_error'][name] for row in rows]
        errors = [row['errors'][name]['coord_mae'] for row in rows]
        certain = sigma if None in expected else expected
        records[name] = {
            'model': adapter.name,
            'device': adapter.device,
            'n_failed': sum(bool(problem_of(one)) for one in predicted[name]),
            'ms_per_structure': 1e3 * seconds[name] / len(pairs),
            'spearman_sigma': rank_correlation(
                sigma, [row['bond_error'][name] for row in rows]
            ),
            'coverage_90': coverage_90(inside[name]),
            'risk_coverage': risk_coverage(certain, errors),
            'uncertain_20': uncertain_share(certain, errors),
        }
    kinds: dict[str, KindRecord] = {}
    for kind in dict.fromkeys(row['kind'] for row in rows):
        places = [k for k, row in enumerate(rows) if row['kind'] == kind]
        kinds[kind] = {
            'n': len(places),
            'all': _summary([rows[k] for k in places], found),
            'coverage_90': {
                name: coverage_90([shares[k] for k in places])
                for name, shares in inside.items()
            },
        }
    ok = [row for row in rows if row['ok']]
    result: ManyEvaluation = {
        'version': VERSION,
        'n': len(pairs),
        'n_ok': len(ok),
        'models': records,
        'all': _summary(rows, found),
        'ok': _summary(ok, found),
        'kinds': kinds,
        'structures': rows,
    }
    return one_line(result, _line(', '.join(records), pairs))


def _line(named: str, pairs: Sequence[Pair]) -> str:
    what = f'{named} on {count(len(pairs), "pair")}'
    return f'<evaluation of {what}; evaluation_text shows the tables>'


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


def cuts(
    section: MethodFigures, method: str = 'model'
) -> dict[str, dict[str, float] | None]:
    """By how many percent the model's errors lie below Dummy's.

    Parameters
    ----------
    section : dict
        ``result['all']``, ``result['ok']`` or ``result['kinds'][kind]['all']``.
    method : str
        Which of its keys; default 'model', the one that `evaluate` gives.

    Returns
    -------
    dict
        For each of `metrics.ERRORS` the cut of mean and median, %; None where it has no
        meaning.

    Examples
    --------
    >>> error = {'coord_mae': {'mean': 0.1, 'median': 0.08}}
    >>> half = {'coord_mae': {'mean': 0.05, 'median': 0.02}}
    >>> cuts({'dummy': error, 'model': half})
    {'coord_mae': {'mean': 50.0, 'median': 75.0}}
    """
    dummy, model = section['dummy'], section[method]
    return {
        key: None if dummy[key] is None else _cut(dummy[key], model[key])
        for key in ERRORS
        if key in dummy
    }


def _cut(dummy: Mapping[str, float], model: Mapping[str, float]) -> dict[str, float]:
    return {
        which: 100 * (1 - model[which] / value) if value else 0.0
        for which, value in dummy.items()
    }


def _lattice(pair: Pair, atoms: Atoms) -> Lattice:
    """Lengths and angles of a cell, None where the vacuum vector has a part in them."""
    a, b, c = pair.pbc
    meant = (a, b, c, b and c, a and c, a and b)
    values = atoms.cell.cellpar().tolist()
    return [value if good else None for value, good in zip(values, meant, strict=True)]


def _structure(pair: Pair, predicted: Predicted) -> Atoms:
    """The structure that a model predicts, or the input where it has no prediction."""
    return pair.unrelaxed if problem_of(predicted) else atoms_of(predicted)


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


def _compare(
    pairs: Sequence[Pair],
    found: Mapping[str, Sequence[Atoms]],
    jobs: int | None,
    progress: bool,
) -> list[dict[str, Errors]]:
    """For each pair a dict of method to figures."""
    from tqdm.auto import tqdm

    if jobs is None:
        jobs = effective_n_jobs(-1) if len(pairs) >= _WORTH_WORKERS else 1
    columns = zip(*found.values(), strict=True)
    work = (
        delayed(_errors)(pair, dict(zip(found, column, strict=True)))
        for pair, column in zip(pairs, columns, strict=True)
    )
    rows = Parallel(n_jobs=jobs, return_as='generator')(work)
    return list(tqdm(rows, 'compare', len(pairs), disable=not progress, unit='pairs'))


def _errors(pair: Pair, found: Mapping[str, Atoms]) -> dict[str, Errors]:
    reference = Reference(pair)
    return {method: reference.errors(atoms) for method, atoms in found.items()}


def _of_one(k: int, by_method: Mapping[str, Sequence[T]]) -> dict[str, T]:
    return {method: values[k] for method, values in by_method.items()}


def _row(
    pair: Pair,
    errors: dict[str, Errors],
    found: Mapping[str, Atoms],
    predicted: Mapping[str, Predicted],
) -> EvaluatedStructure:
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


def _summary(rows: Sequence[EvaluatedStructure], methods: Iterable[str]) -> MethodFigures:
    return {name: summarise([row['errors'][name] for row in rows]) for name in methods}
