"""How good a model is on pairs with a known answer, beside answers that cost nothing."""

from time import perf_counter

import numpy as np
from joblib import Parallel, delayed, effective_n_jobs

from ase_deeprelax.compare.dummy import Dummy, ScaledDummy
from ase_deeprelax.compare.metrics import (
    ERRORS,
    Reference,
    align,
    distance_error,
    spearman,
    summarise,
)
from ase_deeprelax.compare.table import as_markdown, as_text
from ase_deeprelax.errors import ConfigError, PredictionError

BASELINES = {'dummy': Dummy, 'scaled_dummy': ScaledDummy}
# What `table` shows of a result, in 100 columns: errors with unit and format, and shares.
SHOWN = {
    'coord_mae': ('A', '.4f'),
    'internal_mae': ('A', '.4f'),
    'bond_mae': ('A', '.4f'),
    'lattice_mae': ('A', '.4f'),
    'volume_mae': ('A^3', '.2f'),
}
SHOWN_SHARES = ('match_rate', 'rmsd', 'spacegroup_kept')
# Below this many pairs, workers take longer to start than they save.
_WORTH_WORKERS = 100


def evaluate(pairs, model='default', *, device='auto', jobs=None, progress=False):
    """Errors of a model, of `Dummy` and of `ScaledDummy` on pairs.

    Parameters
    ----------
    pairs : list of Pair
    model : str, path, RelaxationModel, Predictor or callable
        Name or folder of a model, a model, a Predictor, or any function from a list of
        ``ase.Atoms`` to a list of relaxed ``ase.Atoms`` (or `Relaxation`) in the same
        order, atoms and lattice vectors in the same order. Default 'default'.
    device : str
        Where a model that is no Predictor yet runs; default 'auto'.
    jobs : int, optional
        Processes that compare structures; default one per core.
    progress : bool
        Show bars; default False.

    Returns
    -------
    dict
        Ready for JSON. ``n`` pairs, ``n_ok`` of them marked ok, ``n_failed`` that the model
        gave no answer for (the input then counts as its answer); ``model``, ``device``,
        ``ms_per_structure`` (wall time of all together, over n); ``spearman_sigma``, the
        rank correlation of a structure's sigma with the mean absolute error of its bonds
        (None where the model gives no sigma); ``all`` and ``ok``, each with ``dummy``,
        ``scaled_dummy`` and ``model``: means and medians of `metrics.ERRORS`, and
        `metrics.SHARES`; and ``structures``, for each pair ``id, formula, n_atoms, ok``,
        ``errors`` {method: all figures}, ``lattice`` {method: [a, b, c, alpha, beta,
        gamma]} (A, degrees) beside ``relaxed_lattice``, and by model ``sigma`` and
        ``bond_error`` (A, the mean absolute error of its bonds), None without a sigma.

    Raises
    ------
    PredictionError
        The model gave back another number of structures or of atoms.
    ConfigError
        There are no pairs.

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
    return {
        'n': found['n'],
        'n_ok': found['n_ok'],
        **found['models']['model'],
        'all': found['all'],
        'ok': found['ok'],
        'structures': found['structures'],
    }


def evaluate_all(pairs, models, *, device='auto', jobs=None, progress=False):
    """Errors of several models side by side, and of `Dummy` and `ScaledDummy`.

    Parameters
    ----------
    pairs : list of Pair
    models : dict of str to model
        What to call them, and what `evaluate` takes as its ``model``.
    device, jobs, progress
        As `evaluate` takes them.

    Returns
    -------
    dict
        Ready for JSON. ``n``, ``n_ok``; ``models``: what `evaluate` says of each model
        besides its errors; ``all`` and ``ok``: the errors of ``dummy``, ``scaled_dummy``
        and each model under its name; ``structures`` as `evaluate` gives them.

    Raises
    ------
    PredictionError
        A model gave back another number of structures or of atoms.
    ConfigError
        There are no pairs, or a model is called like one of the baselines.

    Examples
    --------
    >>> from ase_deeprelax.compare.iterative import Iterative
    >>> models = {'mine': 'runs/mine/model', 'chgnet': Iterative('chgnet')}
    >>> print(table(evaluate_all(pairs, models)))  # doctest: +SKIP
    """
    if not pairs:
        raise ConfigError('pairs is empty; give one or more')
    if taken := BASELINES.keys() & models.keys():
        raise ConfigError(f'{taken.pop()!r} is a baseline; give the model another name')
    # All of them first, so that one that is not there ends it before hours of work.
    relaxers = {name: _relaxer(model, device, progress) for name, model in models.items()}
    inputs = [pair.unrelaxed for pair in pairs]
    answers = {name: baseline()(inputs) for name, baseline in BASELINES.items()}
    records, said = {}, {}
    for name, (relax, model, place) in relaxers.items():
        answers[name], said[name], record = _answers(pairs, inputs, relax)
        records[name] = {'model': model, 'device': place, **record}
    rows = _compare(pairs, answers, jobs, progress)
    ok = [row for pair, row in zip(pairs, rows, strict=True) if pair.ok]
    return {
        'n': len(pairs),
        'n_ok': len(ok),
        'models': records,
        'all': _summary(rows, answers),
        'ok': _summary(ok, answers),
        'structures': [
            {
                'id': pair.id,
                'formula': pair.formula,
                'n_atoms': len(pair.numbers),
                'ok': pair.ok,
                'errors': row,
                'lattice': {name: _lattice(found[k]) for name, found in answers.items()},
                'relaxed_lattice': _lattice(pair.relaxed),
                'sigma': {name: pairwise[k][0] for name, pairwise in said.items()},
                'bond_error': {name: pairwise[k][1] for name, pairwise in said.items()},
            }
            for k, (pair, row) in enumerate(zip(pairs, rows, strict=True))
        ],
    }


def cuts(section, method='model'):
    """By how many percent the model's errors lie below Dummy's.

    Parameters
    ----------
    section : dict
        ``result['all']`` or ``result['ok']``.
    method : str
        Which of its keys; default 'model', the one that `evaluate` gives.

    Returns
    -------
    dict
        For each of `metrics.ERRORS` the cut of mean and median, %.

    Examples
    --------
    >>> error = {'coord_mae': {'mean': 0.1, 'median': 0.08}}
    >>> half = {'coord_mae': {'mean': 0.05, 'median': 0.02}}
    >>> cuts({'dummy': error, 'model': half})
    {'coord_mae': {'mean': 50.0, 'median': 75.0}}
    """
    return {
        key: {
            which: 100 * (1 - section[method][key][which] / value) if value else 0.0
            for which, value in section['dummy'][key].items()
        }
        for key in ERRORS
        if key in section['dummy']
    }


def table(result, *, markdown=False):
    """What `evaluate` or `evaluate_all` found, with a row for each method.

    Of all pairs, and of those marked ok where these are not all: errors as mean / median;
    by how many percent they lie below Dummy's; shares, and what belongs to the model.

    >>> print(table(evaluate(pairs)))  # doctest: +SKIP
    """
    # What `evaluate` says of its one model stands beside the errors.
    models = result.get('models') or {'model': result}
    parts = _errors(result['all'], f'all, {result["n"]:,}')
    parts.append(_shares(result['all'], models))
    if 0 < result['n_ok'] < result['n']:
        parts += _errors(result['ok'], f'ok, {result["n_ok"]:,}')
        parts.append(_shares(result['ok'], {}))
    write = as_markdown if markdown else as_text
    return '\n\n'.join(write(titles, rows) for titles, rows in parts)


def _errors(section, title):
    """Titles and rows of the errors, and of how far they are below Dummy's."""
    errors = [
        [method, *(_cell(figures[key], form) for key, (_, form) in SHOWN.items())]
        for method, figures in section.items()
    ]
    below = []
    for method in section:
        if method != 'dummy':
            cut = cuts(section, method)
            below.append([method, *(_cell(cut[key], 'z.1f') for key in SHOWN)])
    units = [f'{key}/{unit}' for key, (unit, _) in SHOWN.items()]
    return [([title, *units], errors), (['cut below dummy/%', *SHOWN], below)]


def _shares(section, models):
    """Titles and rows of the shares, and of what is known of each model."""
    known = ('n_failed', 'ms_per_structure', 'spearman_sigma') if models else ()
    rows = []
    for method, figures in section.items():
        row = [method, *(f'{figures[key]:.4f}' for key in SHOWN_SHARES)]
        for key in known:
            value = models.get(method, {}).get(key)
            form = '.2f' if isinstance(value, float) else ''
            row.append('' if value is None else f'{value:{form}}')
        rows.append(row)
    return ['', *SHOWN_SHARES, *known], rows


def _cell(value, form):
    return f'{value["mean"]:{form}} / {value["median"]:{form}}'


def _relaxer(model, device, progress):
    """A function from list to list, the name of the model, and its device."""
    from ase_deeprelax.models.base import RelaxationModel
    from ase_deeprelax.predict import Predictor

    if callable(model) and not isinstance(model, RelaxationModel):
        return model, getattr(model, '__name__', type(model).__name__), 'cpu'
    if not isinstance(model, Predictor):
        model = Predictor(model, device=device)

    def relax(atoms_list):
        return model.relax(atoms_list, progress=progress)

    return relax, model.name, str(model.device)


def _answers(pairs, inputs, relax):
    """The model's structures, and what there is to say of it besides its errors."""
    start = perf_counter()
    results = relax([atoms.copy() for atoms in inputs])
    seconds = perf_counter() - start
    good = [getattr(result, 'ok', True) for result in results]
    answers = [
        getattr(result, 'atoms', result) if ok else atoms
        for result, ok, atoms in zip(results, good, inputs, strict=False)
    ]
    _check_answers(pairs, results, answers)
    said = [
        _sigma_and_error(pair, result) for pair, result in zip(pairs, results, strict=True)
    ]
    return (
        answers,
        said,
        {
            'n_failed': len(good) - sum(good),
            'ms_per_structure': 1e3 * seconds / len(pairs),
            'spearman_sigma': _spearman_sigma(said),
        },
    )


def _lattice(atoms):
    return atoms.cell.cellpar().tolist()


def _check_answers(pairs, results, answers):
    if len(results) != len(pairs):
        raise PredictionError(
            f'the model gave {len(results)} structures for {len(pairs)}; it must answer '
            'each, in order'
        )
    for pair, atoms in zip(pairs, answers, strict=True):
        if not np.array_equal(atoms.numbers, pair.numbers):
            raise PredictionError(
                f'pair {pair.id!r}: the model gave {atoms.get_chemical_formula()} with its '
                f'atoms in another order or number than {pair.formula or "the input"}'
            )


def _compare(pairs, answers, jobs, progress):
    """For each pair a dict of method to figures."""
    from tqdm.auto import tqdm

    if jobs is None:
        jobs = effective_n_jobs(-1) if len(pairs) >= _WORTH_WORKERS else 1
    columns = zip(*answers.values(), strict=True)
    work = (
        delayed(_judge)(pair, dict(zip(answers, column, strict=True)))
        for pair, column in zip(pairs, columns, strict=True)
    )
    rows = Parallel(n_jobs=jobs, return_as='generator')(work)
    return list(tqdm(rows, 'compare', len(pairs), disable=not progress, unit='pairs'))


def _judge(pair, answers):
    reference = Reference(pair)
    return {method: reference.errors(atoms) for method, atoms in answers.items()}


def _summary(rows, methods):
    return {method: summarise([row[method] for row in rows]) for method in methods}


def _sigma_and_error(pair, result):
    """Uncertainty and error of a structure, A; None without an uncertainty."""
    if not getattr(result, 'ok', False) or not np.isfinite(result.sigma):
        return None, None
    return float(result.sigma), _bond_error(pair, result)


def _spearman_sigma(said):
    """Does sigma rank the structures that have one by the error of their bonds?"""
    both = [pair for pair in said if pair[0] is not None]
    value = spearman(*zip(*both, strict=True)) if both else np.nan
    return float(value) if np.isfinite(value) else None


def _bond_error(pair, result):
    """Mean absolute error of the model's own bonds, A."""
    # The model's offsets hold for wrapped atoms, the pair is written in any images.
    turns = np.floor(result.initial.positions @ np.linalg.inv(result.initial.cell.array))
    i, j = result.bonds.T
    bonds = (i, j, result.bond_offsets - turns[j] + turns[i])
    return distance_error(*align(result.atoms, pair), pair, bonds)
