"""How good a model is on pairs with a known answer, beside answers that cost nothing."""

from time import perf_counter

import numpy as np
from joblib import Parallel, delayed, effective_n_jobs

from ase_deeprelax.compare.dummy import Dummy, ScaledDummy
from ase_deeprelax.compare.metrics import (
    ERRORS,
    SHARES,
    Reference,
    align,
    distance_error,
    spearman,
    summarise,
)
from ase_deeprelax.errors import PredictionError

METHODS = ('dummy', 'scaled_dummy', 'model')
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
        `metrics.SHARES`.

    Raises
    ------
    PredictionError
        The model gave back another number of structures or of atoms.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase_deeprelax.data.pairs import make_pair
    >>> pairs = [make_pair('Cu', bulk('Cu', a=3.5), bulk('Cu', a=3.6))]
    >>> result = evaluate(pairs, model=Dummy())
    >>> round(result['all']['model']['lattice_mae']['mean'], 4)
    0.0333
    """
    relax, name, device = _relaxer(model, device, progress)
    inputs = [pair.unrelaxed for pair in pairs]
    start = perf_counter()
    results = relax([atoms.copy() for atoms in inputs])
    seconds = perf_counter() - start
    good = [getattr(result, 'ok', True) for result in results]
    answers = [
        getattr(result, 'atoms', result) if ok else atoms
        for result, ok, atoms in zip(results, good, inputs, strict=False)
    ]
    _check_answers(pairs, results, answers)
    columns = zip(Dummy()(inputs), ScaledDummy()(inputs), answers, strict=True)
    rows = _compare(pairs, columns, jobs, progress)
    ok = [row for pair, row in zip(pairs, rows, strict=True) if pair.ok]
    return {
        'n': len(pairs),
        'n_ok': len(ok),
        'n_failed': len(good) - sum(good),
        'model': name,
        'device': device,
        'ms_per_structure': 1e3 * seconds / max(len(pairs), 1),
        'spearman_sigma': _spearman_sigma(pairs, results),
        'all': _summary(rows),
        'ok': _summary(ok),
    }


def cuts(section):
    """By how many percent the model's errors lie below Dummy's.

    Parameters
    ----------
    section : dict
        ``result['all']`` or ``result['ok']``.

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
            which: 100 * (1 - section['model'][key][which] / value) if value else 0.0
            for which, value in section['dummy'][key].items()
        }
        for key in ERRORS
        if key in section['dummy']
    }


def table(result):
    """What `evaluate` found, as text with one line per figure: mean / median.

    >>> print(table(evaluate(pairs)))  # doctest: +SKIP
    """
    sigma = result['spearman_sigma']
    head = (
        f'{result["n"]} pairs, model {result["model"]!r} on {result["device"]}: '
        f'{result["ms_per_structure"]:.2f} ms per structure, {result["n_failed"]} failed, '
        f'Spearman of sigma {"-" if sigma is None else format(sigma, ".2f")}'
    )
    lines = [head]
    for part, n in (('all', result['n']), ('ok', result['n_ok'])):
        section = result[part]
        if n == 0:
            continue
        heads = ''.join(f'{head:>18}' for head in (*METHODS, 'cut / %'))
        lines += ['', f'{f"{part} ({n})":<18}{heads}']
        cut = cuts(section)
        for key in ERRORS:
            cells = [_cell(section[method][key], '.4f') for method in METHODS]
            cells.append(_cell(cut[key], '.1f'))
            lines.append(f'{key:<18}' + ''.join(f'{cell:>18}' for cell in cells))
        for key in SHARES:
            cells = [f'{section[method][key]:.4f}' for method in METHODS]
            lines.append(f'{key:<18}' + ''.join(f'{cell:>18}' for cell in cells))
    return '\n'.join(lines)


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


def _compare(pairs, columns, jobs, progress):
    """For each pair a dict of method to figures."""
    from tqdm.auto import tqdm

    if jobs is None:
        jobs = effective_n_jobs(-1) if len(pairs) >= _WORTH_WORKERS else 1
    work = zip(pairs, columns, strict=True)
    rows = Parallel(n_jobs=jobs, return_as='generator')(delayed(_judge)(*w) for w in work)
    return list(tqdm(rows, 'compare', len(pairs), disable=not progress, unit='pairs'))


def _judge(pair, column):
    reference = Reference(pair)
    return {m: reference.errors(atoms) for m, atoms in zip(METHODS, column, strict=True)}


def _summary(rows):
    return {method: summarise([row[method] for row in rows]) for method in METHODS}


def _spearman_sigma(pairs, results):
    """Over the structures with a sigma: does it rank them by the error of their bonds?"""
    both = [
        (result.sigma, _bond_error(pair, result))
        for pair, result in zip(pairs, results, strict=True)
        if getattr(result, 'ok', False) and np.isfinite(result.sigma)
    ]
    value = spearman(*zip(*both, strict=True)) if both else np.nan
    return float(value) if np.isfinite(value) else None


def _bond_error(pair, result):
    """Mean absolute error of the model's own bonds, A."""
    # The model's offsets hold for wrapped atoms, the pair is written in any images.
    turns = np.floor(result.initial.positions @ np.linalg.inv(result.initial.cell.array))
    i, j = result.bonds.T
    bonds = (i, j, result.bond_offsets - turns[j] + turns[i])
    return distance_error(*align(result.atoms, pair), pair, bonds)
