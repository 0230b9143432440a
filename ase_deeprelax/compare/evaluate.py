"""How good a model is on pairs with a known answer, beside answers that cost nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from ase import Atoms
from joblib import Parallel, delayed, effective_n_jobs

from ase_deeprelax.compare.alignment import check_periodicity
from ase_deeprelax.compare.answers import ask, check_takes_relax_cell, collect, ready
from ase_deeprelax.compare.baselines import Dummy, ScaledDummy
from ase_deeprelax.compare.metrics import ERRORS, Errors, Reference, summarise
from ase_deeprelax.compare.tables import as_markdown, as_text
from ase_deeprelax.data.pair import Pair
from ase_deeprelax.errors import ConfigError

# Titles and rows, as `as_text` and `as_markdown` take them.
Table = tuple[list[str], list[list[str]]]

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
NONE = '-'
# This line stands below tables in which a figure has no meaning.
FOOTNOTE = '-: not scored where the cell is held, or (volume, match, rmsd) there is vacuum'
# Below this many pairs, workers take longer to start than they save.
_WORTH_WORKERS = 100


def evaluate(
    pairs: Sequence[Pair],
    model: Any = 'default',
    *,
    device: str = 'auto',
    jobs: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Errors of a model, of `Dummy` and of `ScaledDummy` on pairs.

    The model is asked what each pair asks: the pair's periodicity and fixed atoms belong to
    the structures that it gets, and where the cell is held it is called with
    ``relax_cell=False``.

    Parameters
    ----------
    pairs : list of Pair
    model : str, path, RelaxationModel, Predictor or callable
        Name or folder of a model, a model, a Predictor, or any function from a list of
        ``ase.Atoms`` to a list of relaxed ``ase.Atoms`` (or `Relaxation`) in the same
        order, atoms and lattice vectors in the same order; with the keyword
        ``relax_cell`` where there are pairs whose cell is held. Default 'default'.
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
        `metrics.SHARES`, over the pairs for which they have a meaning (None: for none,
        see `Reference.errors`); ``kinds``, for each kind of the pairs ``n`` and ``all``;
        and ``structures``, for each pair ``id, formula, n_atoms, ok, kind``, ``errors``
        {method: all figures}, ``lattice`` {method: [a, b, c, alpha, beta, gamma]} (A,
        degrees; None along the vacuum) beside ``relaxed_lattice``, and by model ``sigma``
        and ``bond_error`` (A, the mean absolute error of its bonds), None without a sigma.

    Raises
    ------
    PredictionError
        The model gave back another number of structures or of atoms.
    ConfigError
        There are no pairs, or the cell of some is held and the model cannot be told.
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
    return {
        'n': found['n'],
        'n_ok': found['n_ok'],
        **found['models']['model'],
        'all': found['all'],
        'ok': found['ok'],
        'kinds': found['kinds'],
        'structures': found['structures'],
    }


def evaluate_all(
    pairs: Sequence[Pair],
    models: Mapping[str, Any],
    *,
    device: str = 'auto',
    jobs: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
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
        and each model under its name; ``kinds`` and ``structures`` as `evaluate` gives
        them.

    Raises
    ------
    PredictionError
        A model gave back another number of structures or of atoms.
    ConfigError
        There are no pairs; a model is called like one of the baselines, or cannot be told
        that the cell is held.
    PairFileError
        A pair is neither a crystal nor a layer.

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
    rivals = {
        name: ready(model, device=device, progress=progress)
        for name, model in models.items()
    }
    for rival in rivals.values():
        check_takes_relax_cell(rival, pairs)
    for pair in pairs:
        check_periodicity(pair)
    answers = {name: ask(ready(make()), pairs) for name, make in BASELINES.items()}
    records, sigma, bond_error = {}, {}, {}
    for name, rival in rivals.items():
        answers[name], sigma[name], bond_error[name], record = collect(rival, pairs)
        records[name] = {'model': rival.name, 'device': rival.device, **record}
    rows = _compare(pairs, answers, jobs, progress)
    kinds = [kind_of(pair) for pair in pairs]
    ok = [row for pair, row in zip(pairs, rows, strict=True) if pair.ok]
    return {
        'n': len(pairs),
        'n_ok': len(ok),
        'models': records,
        'all': _summary(rows, answers),
        'ok': _summary(ok, answers),
        'kinds': {
            kind: {'n': kinds.count(kind), 'all': _summary(_of(kind, kinds, rows), answers)}
            for kind in dict.fromkeys(kinds)
        },
        'structures': [
            {
                'id': pair.id,
                'formula': pair.formula,
                'n_atoms': len(pair.numbers),
                'ok': pair.ok,
                'kind': kinds[k],
                'errors': row,
                'lattice': {
                    name: _lattice(pair, found[k]) for name, found in answers.items()
                },
                'relaxed_lattice': _lattice(pair, pair.relaxed),
                'sigma': {name: values[k] for name, values in sigma.items()},
                'bond_error': {name: values[k] for name, values in bond_error.items()},
            }
            for k, (pair, row) in enumerate(zip(pairs, rows, strict=True))
        ],
    }


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
    section: Mapping[str, Any], method: str = 'model'
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


def table(result: Mapping[str, Any], *, markdown: bool = False) -> str:
    """What `evaluate` or `evaluate_all` found, with a row for each method.

    Of all pairs, of those marked ok where these are not all, and of each kind where there
    are several: errors as mean / median; by how many percent they lie below Dummy's;
    shares, and what belongs to the model. A dash stands for what has no meaning.

    >>> print(table(evaluate(pairs)))  # doctest: +SKIP
    """
    # What `evaluate` says of its one model stands beside the errors.
    models = result.get('models') or {'model': result}
    parts = _errors(result['all'], f'all, {result["n"]:,}')
    parts.append(_shares(result['all'], models))
    if 0 < result['n_ok'] < result['n']:
        parts += _errors(result['ok'], f'ok, {result["n_ok"]:,}')
        parts.append(_shares(result['ok'], {}))
    if len(result['kinds']) > 1:
        for kind, found in result['kinds'].items():
            parts += _errors(found['all'], f'{kind}, {found["n"]:,}')
            parts.append(_shares(found['all'], {}))
    write = as_markdown if markdown else as_text
    text = [write(titles, rows) for titles, rows in parts]
    if any(NONE in row for _, rows in parts for row in rows):
        text.append(FOOTNOTE)
    return '\n\n'.join(text)


def _errors(section: Mapping[str, Any], title: str) -> list[Table]:
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


def _shares(section: Mapping[str, Any], models: Mapping[str, Any]) -> Table:
    """Titles and rows of the shares, and of what is known of each model."""
    known = ('n_failed', 'ms_per_structure', 'spearman_sigma') if models else ()
    rows = []
    for method, figures in section.items():
        row = [method, *(_share(figures[key]) for key in SHOWN_SHARES)]
        for key in known:
            value = models.get(method, {}).get(key)
            form = '.2f' if isinstance(value, float) else ''
            row.append('' if value is None else f'{value:{form}}')
        rows.append(row)
    return ['', *SHOWN_SHARES, *known], rows


def _cell(value: Mapping[str, float] | None, form: str) -> str:
    return NONE if value is None else f'{value["mean"]:{form}} / {value["median"]:{form}}'


def _share(value: float | None) -> str:
    return NONE if value is None else f'{value:.4f}'


def _lattice(pair: Pair, atoms: Atoms) -> list[float | None]:
    """Lengths and angles of a cell, None where the vacuum vector has a part in them."""
    a, b, c = pair.pbc
    meant = (a, b, c, b and c, a and c, a and b)
    values = atoms.cell.cellpar().tolist()
    return [value if good else None for value, good in zip(values, meant, strict=True)]


def _compare(
    pairs: Sequence[Pair],
    answers: Mapping[str, Sequence[Atoms]],
    jobs: int | None,
    progress: bool,
) -> list[dict[str, Errors]]:
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


def _judge(pair: Pair, answers: Mapping[str, Atoms]) -> dict[str, Errors]:
    reference = Reference(pair)
    return {method: reference.errors(atoms) for method, atoms in answers.items()}


def _of(kind: str, kinds: Sequence[str], rows: Sequence[Any]) -> list[Any]:
    return [row for one, row in zip(kinds, rows, strict=True) if one == kind]


def _summary(
    rows: Sequence[Mapping[str, Errors]], methods: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    return {method: summarise([row[method] for row in rows]) for method in methods}
