"""Fit the errors of a model to pairs that it was never trained on."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from ase import Atoms

from ase_deeprelax.compare.alignment import Alignment
from ase_deeprelax.compare.error_laws import (
    FEWEST,
    Observed,
    count_kinds,
    cross_coverage,
    fit_laws,
)
from ase_deeprelax.compare.predictor_adapter import PredictorAdapter, predict_pairs
from ase_deeprelax.compare.tables import Table
from ase_deeprelax.data.pair import Pair
from ase_deeprelax.data.pairs import spread
from ase_deeprelax.errors import ConfigError, DeepRelaxError
from ase_deeprelax.geometry.degrees_of_freedom import KINDS
from ase_deeprelax.models.calibration import (
    QUANTITIES,
    Calibration,
    Environments,
    ErrorLaw,
    element_pairs,
)
from ase_deeprelax.predict import Predictor
from ase_deeprelax.predict.prepare import prepare
from ase_deeprelax.result import Relaxation

# The share of structures that are not flagged.
USUAL = 0.99
# So many structures of the training tell what the model knows.
MOST_KNOWN = 3000
# A distance of features that no atom reaches, so that nothing is flagged as unknown.
FAR = 1e6
# This line stands below a table of coverages in which one is missing.
FOOTNOTE = (
    f'-: not told: no such quantity, or fewer than {2 * FEWEST} structures, of which a '
    'half is too few for a fit'
)


def calibrate(
    files: Mapping[str, Sequence[Pair]],
    model: Any = 'default',
    *,
    known: Iterable[Atoms] | None = None,
    device: str = 'auto',
) -> Calibration:
    """Fit how errors grow with sigma, intervals that hold 90 % of them, and what is usual.

    Expected errors are a power of sigma with a factor for each kind of structure (gamma
    regression with logarithmic link). Intervals are conformal: 90 % of the errors in each
    file lie inside, so that among several files the one that is predicted worst decides.

    Parameters
    ----------
    files : dict of str to list of Pair
        Pairs that the model was not trained on, by the name of their file; at least 30 of
        a kind in a file.
    model : str, path, RelaxationModel or Predictor
        Default 'default'.
    known : iterable of ase.Atoms, optional
        Structures of the training. Default: what the model's former calibration knows, or
        else the inputs of the pairs.
    device : str
        Default 'auto'.

    Returns
    -------
    Calibration

    Raises
    ------
    ConfigError
        There are too few pairs.

    Examples
    --------
    >>> pairs = read_pairs('mine.jsonl.gz', split='val')  # doctest: +SKIP
    >>> calibration = calibrate({'mine': pairs})  # doctest: +SKIP
    >>> calibration.save('my-model', predictor.sha256)  # doctest: +SKIP
    """
    predictor = model if isinstance(model, Predictor) else Predictor(model, device=device)
    former = predictor.model.calibration
    if known is not None:
        environments = fit_environments(predictor, known)
    elif former is not None:
        environments = former.environments
    else:
        inputs = [pair.unrelaxed for pairs in files.values() for pair in pairs]
        environments = fit_environments(predictor, inputs)
    observed = [
        one
        for name, pairs in files.items()
        for one in observe(name, pairs, predictor, environments)
    ]
    counted = count_kinds(observed)
    if not counted:
        raise ConfigError(
            f'no file holds {FEWEST} pairs of one kind that could be predicted; a '
            'calibration needs as many'
        )
    laws = fit_laws(observed)
    covered = cross_coverage(observed)
    return Calibration(
        fitted_on=[
            {'file': name, 'kind': kind, 'n': n, 'coverage': covered.get((name, kind))}
            for (name, kind), n in counted.items()
        ],
        laws=laws,
        environments=with_limits(environments, observed),
        potentials={} if former is None else former.potentials,
    )


def coverage_table(calibration: Calibration) -> Table:
    """How often the 90 % intervals hold the true values, by file and kind, %.

    Parameters
    ----------
    calibration : Calibration

    Returns
    -------
    Table

    Examples
    --------
    >>> row = {'file': 'mine', 'kind': 'bulk', 'n': 40, 'coverage': {'lattice': 0.913}}
    >>> print(coverage_table(Calibration([row], {}, None)).as_text())
    inside 90 % intervals/%  kind   n  positions  lattice  volume
    mine                     bulk  40          -     91.3       -
    """
    quantities = ('positions', 'lattice', 'volume')
    rows = []
    for entry in calibration.fitted_on:
        covered = entry['coverage'] or {}
        shares = [f'{100 * covered[q]:.1f}' if q in covered else None for q in quantities]
        rows.append([entry['file'], entry['kind'], str(entry['n']), *shares])
    heads = ['inside 90 % intervals/%', 'kind', 'n', *quantities]
    return Table(heads, rows, text_columns=(0, 1))


def fit_environments(predictor: Predictor, structures: Iterable[Atoms]) -> Environments:
    """Mean and covariance of the features of atoms; each structure counts alike.

    Parameters
    ----------
    predictor : Predictor
    structures : iterable of ase.Atoms
        A sample of `MOST_KNOWN` goes through the network; the elements of all are noted.

    Returns
    -------
    Environments
        Without limits, see `with_limits`.
    """
    structures = list(structures)
    pairs = frozenset(pair for atoms in structures for pair in element_pairs(atoms.numbers))
    sample = spread(structures, MOST_KNOWN)
    found = [x for x in features_of(predictor, sample) if x is not None]
    if not found:
        raise ConfigError(f'model {predictor.name!r} gives no features of atoms')
    features = np.concatenate(found)
    weights = np.concatenate([np.full(len(x), 1 / len(x)) for x in found])
    mean = np.average(features, axis=0, weights=weights)
    covariance = np.cov((features - mean).T, aweights=weights)
    variances, axes = np.linalg.eigh(covariance)
    variances = np.maximum(variances, 1e-6 * variances.max())
    whitening = (axes / np.sqrt(variances))[:, ::-1]
    return Environments(mean, whitening, elements=pairs)


def features_of(
    predictor: Predictor, structures: Sequence[Atoms]
) -> list[np.ndarray | None]:
    """Features (n_atoms, F) of the atoms of each structure; None where it has none."""
    prepared = {}
    for k, atoms in enumerate(structures):
        try:
            prepared[k] = prepare(atoms, predictor.settings)
        except DeepRelaxError:
            continue
    found: list[np.ndarray | None] = [None] * len(structures)
    for k, output in predictor.outputs(prepared):
        features = getattr(output, 'features', None)
        if features is not None:
            found[k] = prepared[k].frame.per_atom(features)
    return found


def observe(
    file: str, pairs: Sequence[Pair], predictor: Predictor, environments: Environments
) -> list[Observed]:
    """Errors of the predictions for pairs, as far as there are predictions."""
    predicted = predict_pairs(PredictorAdapter(_bare(predictor, environments)), pairs)
    return [
        _observed(file, pair, one)
        for pair, one in zip(pairs, predicted, strict=True)
        if isinstance(one, Relaxation) and one.ok and np.isfinite(one.sigma)
    ]


def _bare(predictor: Predictor, environments: Environments) -> Predictor:
    """A predictor without error laws; its `Relaxation.novelty` is a distance over `FAR`."""
    bare = copy.copy(predictor)
    bare.model = copy.copy(predictor.model)
    unlimited = replace(environments, limit=dict.fromkeys(KINDS, FAR))
    no_laws = {name: ErrorLaw(1.0, {}, {}) for name in QUANTITIES}
    bare.model.calibration = Calibration([], no_laws, unlimited)
    bare.accept_below = None
    return bare


def errors_of(pair: Pair, predicted: Relaxation) -> dict[str, np.ndarray]:
    """The errors of a prediction, by `QUANTITIES`.

    Parameters
    ----------
    pair : Pair
    predicted : Relaxation

    Returns
    -------
    dict of str to (n,) array
        ``coordinates`` (1,), A; ``positions`` (n_atoms,), A, at the relaxed cell, nan for
        fixed atoms; ``lattice`` (3,), nan where a vector is held or has no meaning, and
        ``volume`` (1,) or (0,), both relative to the true ones.
    """
    alignment = Alignment(pair)
    cell, frac = alignment.align(predicted.atoms)
    inside = np.linalg.norm((frac - alignment.frac1) @ alignment.cell1, axis=1)
    if pair.fixed is not None:
        inside = np.where(pair.fixed, np.nan, inside)
    lengths, true = (np.linalg.norm(c, axis=1) for c in (cell, alignment.cell1))
    moves = alignment.periodic & (not pair.fixed_cell)
    volume = np.zeros(0)
    if moves.all():
        volume = np.abs(np.linalg.det(cell) / np.linalg.det(alignment.cell1) - 1)[None]
    return {
        'coordinates': np.array([alignment.coordinate_error(cell, frac)]),
        'positions': inside,
        'lattice': np.where(moves, np.abs(lengths / true - 1), np.nan),
        'volume': volume,
    }


def _observed(file: str, pair: Pair, predicted: Relaxation) -> Observed:
    errors = errors_of(pair, predicted)
    sigmas = {
        name: predicted.sigma_atoms
        if name == 'positions'
        else np.full(len(values), predicted.sigma)
        for name, values in errors.items()
    }
    there = {name: np.isfinite(values) for name, values in errors.items()}
    return Observed(
        file,
        predicted.kind,
        {name: values[there[name]] for name, values in errors.items()},
        {name: values[there[name]] for name, values in sigmas.items()},
        predicted.novelty * FAR,
    )


def with_limits(environments: Environments, observed: Sequence[Observed]) -> Environments:
    """Environments with the limit that a share of `USUAL` of the structures keeps.

    That of a kind is never below that of all together: the few slabs of one alloy are no
    measure for slabs.
    """
    known = [one for one in observed if math.isfinite(one.distance)]
    if not known:
        return environments
    usual = float(np.quantile([one.distance for one in known], USUAL))
    limits = {}
    for kind in sorted({kind for _, kind in count_kinds(observed)}):
        own = [one.distance for one in known if one.kind == kind]
        limits[kind] = max(usual, float(np.quantile(own, USUAL))) if own else usual
    return replace(environments, limit=limits)
