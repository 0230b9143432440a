"""Models are asked what pairs ask: which structure relaxes, and whether its cell does."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from ase import Atoms

from ase_deeprelax.compare.alignment import Alignment
from ase_deeprelax.compare.metrics import spearman
from ase_deeprelax.data.pair import Pair
from ase_deeprelax.errors import ConfigError, PredictionError
from ase_deeprelax.result import Relaxation

# A model answers with one of these for each structure.
Answer = Atoms | Relaxation


@dataclass(frozen=True, eq=False)
class Asked:
    """A model, ready to be asked about pairs.

    Attributes
    ----------
    name : str
    device : str
    relax : callable
        From a list of ``ase.Atoms`` to a list of answers. It takes ``relax_cell=False``
        for structures whose cell is held.
    """

    name: str
    device: str
    relax: Callable[..., Sequence[Answer]]


def ready(model: Any, *, device: str = 'auto', progress: bool = False) -> Asked:
    """A model of any kind, ready to be asked.

    Parameters
    ----------
    model : str, path, RelaxationModel, Predictor or callable
        As `evaluate` takes it.
    device : str
        Where a model that is no Predictor yet runs; default 'auto'.
    progress : bool
        Show bars; default False.

    Returns
    -------
    Asked

    Examples
    --------
    >>> from ase_deeprelax.compare.baselines import Dummy
    >>> ready(Dummy()).name
    'Dummy'
    """
    from ase_deeprelax.models.base import RelaxationModel
    from ase_deeprelax.predict import Predictor

    if callable(model) and not isinstance(model, RelaxationModel):
        return Asked(getattr(model, '__name__', type(model).__name__), 'cpu', model)
    if not isinstance(model, Predictor):
        model = Predictor(model, device=device)

    def relax(atoms_list: list[Atoms], *, relax_cell: bool = True) -> list[Relaxation]:
        return model.relax(atoms_list, relax_cell=relax_cell, progress=progress)

    return Asked(model.name, str(model.device), relax)


def check_takes_relax_cell(asked: Asked, pairs: Sequence[Pair]) -> None:
    """Refuse a model that cannot be told that the cell is held, where it has to be.

    Raises
    ------
    ConfigError
        Its function has no keyword ``relax_cell``, and there are pairs with a held cell.
    """
    held = sum(pair.fixed_cell for pair in pairs)
    parameters = inspect.signature(asked.relax).parameters.values()
    if held and not any(
        one.name == 'relax_cell' or one.kind is one.VAR_KEYWORD for one in parameters
    ):
        raise ConfigError(
            f'model {asked.name!r} does not take the keyword relax_cell, but the cell of '
            f'{held} of {len(pairs)} pairs is held; let it take relax_cell=False, or leave '
            'these pairs out'
        )


def ask(asked: Asked, pairs: Sequence[Pair]) -> list[Answer]:
    """Answers to all pairs, in their order.

    The model is called once for the pairs whose cell relaxes, and once with
    ``relax_cell=False`` for those whose cell is held.

    Parameters
    ----------
    asked : Asked
    pairs : sequence of Pair

    Returns
    -------
    list of ase.Atoms or Relaxation

    Raises
    ------
    PredictionError
        The model gave back another number of structures or of atoms.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase_deeprelax.compare.baselines import Dummy
    >>> from ase_deeprelax.data.pair import make_pair
    >>> cu = make_pair('Cu', bulk('Cu', a=3.5), bulk('Cu', a=3.6))
    >>> ask(ready(Dummy()), [cu])
    [Atoms(symbols='Cu', pbc=True, cell=...)]
    """
    held = np.array([pair.fixed_cell for pair in pairs], dtype=bool)
    found: dict[int, Answer] = {}
    for places, keywords in (
        (np.flatnonzero(~held), {}),
        (np.flatnonzero(held), {'relax_cell': False}),
    ):
        if not len(places):
            continue
        answers = asked.relax([pairs[k].unrelaxed for k in places], **keywords)
        if len(answers) != len(places):
            raise PredictionError(
                f'the model gave {len(answers)} structures for {len(places)}; it must '
                'answer each, in order'
            )
        found |= zip(places.tolist(), answers, strict=True)
    for k, pair in enumerate(pairs):
        _check_atoms(pair, getattr(found[k], 'atoms', found[k]))
    return [found[k] for k in range(len(pairs))]


def collect(
    asked: Asked, pairs: Sequence[Pair]
) -> tuple[list[Atoms], list[float | None], list[float | None], dict[str, Any]]:
    """Structures that a model gives for pairs, and what there is to say of them.

    Parameters
    ----------
    asked : Asked
    pairs : sequence of Pair

    Returns
    -------
    atoms : list of ase.Atoms
        The input where the model gave no answer.
    sigma, bond_error : list of float or None, A
        Uncertainty of each structure, and mean absolute error of the bonds of the model's
        graph; None without an uncertainty.
    record : dict
        ``n_failed``, ``ms_per_structure`` and ``spearman_sigma``, see `evaluate`.
    """
    start = perf_counter()
    answers = ask(asked, pairs)
    seconds = perf_counter() - start
    good = [getattr(answer, 'ok', True) for answer in answers]
    atoms = [
        getattr(answer, 'atoms', answer) if ok else pair.unrelaxed
        for answer, ok, pair in zip(answers, good, pairs, strict=True)
    ]
    both = [
        _sigma_and_error(pair, answer) for pair, answer in zip(pairs, answers, strict=True)
    ]
    known = [one for one in both if one[0] is not None]
    rank = spearman(*zip(*known, strict=True)) if known else np.nan
    record = {
        'n_failed': len(good) - sum(good),
        'ms_per_structure': 1e3 * seconds / len(pairs),
        'spearman_sigma': float(rank) if np.isfinite(rank) else None,
    }
    sigma, error = (list(column) for column in zip(*both, strict=True))
    return atoms, sigma, error, record


def _check_atoms(pair: Pair, atoms: Atoms) -> None:
    if not np.array_equal(atoms.numbers, pair.numbers):
        raise PredictionError(
            f'pair {pair.id!r}: the model gave {atoms.get_chemical_formula()} with its '
            f'atoms in another order or number than {pair.formula or "the input"}'
        )


def _sigma_and_error(pair: Pair, answer: Answer) -> tuple[float | None, float | None]:
    if not getattr(answer, 'ok', False) or not np.isfinite(answer.sigma):
        return None, None
    alignment = Alignment(pair)
    bonds = alignment.bonds_of(answer)
    error = alignment.distance_error(*alignment.align(answer.atoms), bonds)
    return float(answer.sigma), error
