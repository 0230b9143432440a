"""How good a model is on pairs with a known answer, compared with trivial baselines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any, TypeVar

from ase import Atoms
from joblib import Parallel, delayed, effective_n_jobs

from ase_deeprelax.compare.alignment import check_periodicity
from ase_deeprelax.compare.baselines import Dummy, ScaledDummy
from ase_deeprelax.compare.evaluation_records import (
    figures,
    kind_records,
    model_record,
    pair_row,
)
from ase_deeprelax.compare.evaluation_schema import (
    Errors,
    Evaluation,
    ManyEvaluation,
    MethodFigures,
)
from ase_deeprelax.compare.metrics import ERRORS, Reference
from ase_deeprelax.compare.predictor_adapter import (
    Predicted,
    PredictorAdapter,
    atoms_of,
    predict_pairs,
    problem_of,
)
from ase_deeprelax.compare.schema import VERSION
from ase_deeprelax.compare.uncertainty import inside_90
from ase_deeprelax.data.one_line import count, one_line
from ase_deeprelax.data.pair import Pair
from ase_deeprelax.errors import ConfigError

T = TypeVar('T')

# Mean and median of a cut, %.
Cut = dict[str, float | None]

BASELINES = {'dummy': Dummy, 'scaled_dummy': ScaledDummy}
# Errors up to this are rounding (A, A^2, A^3): a share of them has no meaning.
ROUNDING = 1e-8
# Below this many pairs, workers take longer to start than they save.
_WORTH_WORKERS = 100


def evaluate(
    pairs: Iterable[Pair] | Pair,
    model: Any = 'default',
    *,
    device: str = 'auto',
    workers: int | None = None,
    progress: bool = False,
) -> Evaluation:
    """Errors of a model, of `Dummy` and of `ScaledDummy` on pairs.

    The structures that the model gets have the periodicity and the fixed atoms of their
    pairs, and where the cell is fixed it is called with ``relax_cell=False``. Where it is
    free, a shipped model relaxes all of it, and a function of your own does what it does
    without this keyword.

    Parameters
    ----------
    pairs : iterable of Pair, or a single one
    model : str, path, RelaxationModel, Predictor or callable
        Name or folder of a model, a model, a Predictor, or any function from a list of
        ``ase.Atoms`` to a list of relaxed ``ase.Atoms`` (or `Relaxation`) in the same
        order, atoms and lattice vectors in the same order; with the keyword
        ``relax_cell`` where there are pairs whose cell is fixed. Default 'default'.
    device : str
        Where a model that is no Predictor yet runs; default 'auto'.
    workers : int, optional
        Processes that compare structures; default one per core, or one alone for fewer than
        100 pairs.
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
    pairs = _listed(pairs)
    found = evaluate_all(
        pairs, {'model': model}, device=device, workers=workers, progress=progress
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
    pairs: Iterable[Pair] | Pair,
    models: Mapping[str, Any],
    *,
    device: str = 'auto',
    workers: int | None = None,
    progress: bool = False,
) -> ManyEvaluation:
    """Errors of several models side by side, and of `Dummy` and `ScaledDummy`.

    Parameters
    ----------
    pairs : iterable of Pair, or a single one
        As `read_pairs` gives them.
    models : dict of str to model
        What to call them, and what `evaluate` takes as its ``model``.
    device : str
        Default 'auto': a GPU where there is one.
    workers : int, optional
        Processes that compare structures; default one per core, or one alone for fewer than
        100 pairs.
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
    pairs = _listed(pairs)
    if not pairs:
        raise ConfigError('pairs is empty; give one or more')
    if not isinstance(models, Mapping):
        raise TypeError(
            f'models is a {type(models).__name__}; give a dict of names and models'
        )
    if taken := BASELINES.keys() & models.keys():
        raise ConfigError(f'{taken.pop()!r} is a baseline; give the model another name')
    for pair in pairs:
        if not isinstance(pair, Pair):
            raise TypeError(
                f'pairs holds {type(pair).__name__}, no Pair; read_pairs(path) makes pairs '
                'of a file, make_pair(...) of two structures'
            )
        check_periodicity(pair)
    adapters = _adapters(pairs, models, device, progress)
    trivial = {
        name: predict_pairs(PredictorAdapter(make()), pairs)
        for name, make in BASELINES.items()
    }
    predicted: dict[str, list[Predicted]] = {}
    seconds: dict[str, float] = {}
    for name, adapter in adapters.items():
        predicted[name], seconds[name] = _timed(adapter, pairs)
    found = {
        name: [_structure(*one) for one in zip(pairs, answers, strict=True)]
        for name, answers in (trivial | predicted).items()
    }
    errors = _compare(pairs, found, workers, progress)
    rows = [
        pair_row(pair, one, _of_one(k, found), _of_one(k, predicted))
        for k, (pair, one) in enumerate(zip(pairs, errors, strict=True))
    ]
    inside = {
        name: [inside_90(*one) for one in zip(pairs, answers, strict=True)]
        for name, answers in predicted.items()
    }
    ok = [row for row in rows if row['ok']]
    result: ManyEvaluation = {
        'version': VERSION,
        'n': len(pairs),
        'n_ok': len(ok),
        'models': {
            name: model_record(
                name,
                adapter,
                predicted[name],
                rows,
                seconds=seconds[name],
                inside=inside[name],
            )
            for name, adapter in adapters.items()
        },
        'all': figures(rows, found),
        'ok': figures(ok, found),
        'kinds': kind_records(rows, found, inside),
        'structures': rows,
    }
    return one_line(result, _line(', '.join(models), pairs))


def _adapters(
    pairs: Sequence[Pair], models: Mapping[str, Any], device: str, progress: bool
) -> dict[str, PredictorAdapter]:
    """All models, so that one that does not exist ends the work before it begins."""
    adapters = {
        name: PredictorAdapter(model, device=device, progress=progress)
        for name, model in models.items()
    }
    if held := sum(pair.fixed_cell for pair in pairs):
        for adapter in adapters.values():
            adapter.check_accepts_relax_cell(
                f'the cell of {held} of {len(pairs)} pairs is fixed'
            )
    return adapters


def _timed(
    adapter: PredictorAdapter, pairs: Sequence[Pair]
) -> tuple[list[Predicted], float]:
    """The predictions of a model, and the wall time of all together, s."""
    start = perf_counter()
    predicted = predict_pairs(adapter, pairs)
    return predicted, perf_counter() - start


def _listed(pairs: Iterable[Pair] | Pair) -> list[Pair]:
    return [pairs] if isinstance(pairs, Pair) else list(pairs)


def _line(named: str, pairs: Sequence[Pair]) -> str:
    what = f'{named} on {count(len(pairs), "pair")}'
    return f'<evaluation of {what}; evaluation_text shows the tables>'


def cuts(section: MethodFigures, method: str = 'model') -> dict[str, Cut | None]:
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
        For each of `metrics.ERRORS` the cut of mean and median, %. None stands for what
        has no meaning: the median, or both, where Dummy has no error beyond rounding.

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


def _cut(dummy: Mapping[str, float], model: Mapping[str, float]) -> Cut | None:
    shares = {
        which: 100 * (1 - model[which] / value) if value > ROUNDING else None
        for which, value in dummy.items()
    }
    return None if set(shares.values()) == {None} else shares


def _structure(pair: Pair, predicted: Predicted) -> Atoms:
    """The structure that a model predicts, or the input where it has no prediction."""
    return pair.unrelaxed if problem_of(predicted) else atoms_of(predicted)


def _compare(
    pairs: Sequence[Pair],
    found: Mapping[str, Sequence[Atoms]],
    workers: int | None,
    progress: bool,
) -> list[dict[str, Errors]]:
    """For each pair a dict of method to figures."""
    from tqdm.auto import tqdm

    if workers is None:
        workers = effective_n_jobs(-1) if len(pairs) >= _WORTH_WORKERS else 1
    columns = zip(*found.values(), strict=True)
    work = (
        delayed(_errors)(pair, dict(zip(found, column, strict=True)))
        for pair, column in zip(pairs, columns, strict=True)
    )
    rows = Parallel(n_jobs=workers, return_as='generator')(work)
    return list(tqdm(rows, 'compare', len(pairs), disable=not progress, unit='pairs'))


def _errors(pair: Pair, found: Mapping[str, Atoms]) -> dict[str, Errors]:
    reference = Reference(pair)
    return {method: reference.errors(atoms) for method, atoms in found.items()}


def _of_one(k: int, by_method: Mapping[str, Sequence[T]]) -> dict[str, T]:
    return {method: values[k] for method, values in by_method.items()}
