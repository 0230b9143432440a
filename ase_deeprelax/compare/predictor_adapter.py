"""One form for all that predicts: names of models, networks, Predictors, functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ase import Atoms

from ase_deeprelax.data.formula import chemical_formula
from ase_deeprelax.data.pair import Pair
from ase_deeprelax.errors import ConfigError, PredictionError
from ase_deeprelax.result import Relaxation

# A model gives one of these for each structure.
Predicted = Atoms | Relaxation
# A cell below this is flat, A^3.
SMALLEST_VOLUME = 1e-6


class PredictorAdapter:
    """Whatever predicts relaxed structures, in one form.

    Parameters
    ----------
    model : str, path, RelaxationModel, Predictor or callable
        As `evaluate` takes it.
    device : str
        Where a model that is no Predictor yet runs; default 'auto'.
    progress : bool
        Show bars; default False.

    Attributes
    ----------
    name, device : str
    sha256 : str
        Hash of the model; '' for a function.
    options : dict
        What else the answers of a Predictor depend on, ready for JSON; {} for a function.
    is_function : bool
        Whether it is a function of the user, which need not know the keyword relax_cell.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase_deeprelax.compare.baselines import Dummy
    >>> adapter = PredictorAdapter(Dummy())
    >>> adapter.name, adapter.predict([bulk('Cu')])
    ('Dummy', [Atoms(symbols='Cu', pbc=True, cell=...)])
    """

    def __init__(self, model: Any, *, device: str = 'auto', progress: bool = False) -> None:
        from ase_deeprelax.models.base import RelaxationModel
        from ase_deeprelax.predict import Predictor

        self.is_function = callable(model) and not isinstance(model, RelaxationModel)
        self._keywords: dict[str, Any] = {}
        self.options: dict[str, Any] = {}
        if self.is_function:
            self._relax: Callable[..., Sequence[Predicted]] = model
            self.name = str(getattr(model, '__name__', type(model).__name__))
            self.device, self.sha256 = 'cpu', ''
            return
        predictor = (
            model if isinstance(model, Predictor) else Predictor(model, device=device)
        )
        self._relax, self._keywords = predictor.relax, {'progress': progress}
        self.name, self.sha256 = predictor.name, predictor.sha256
        self.device = str(predictor.device)
        self.options = {
            'symmetry': predictor.symmetry,
            'dtype': str(predictor.dtype).removeprefix('torch.'),
            'accept_below': predictor.accept_below,
            'max_passes': predictor.max_passes,
        }

    def check_accepts_relax_cell(self, reason: str) -> None:
        """Refuse a function without a keyword for the part of the cell that relaxes.

        Parameters
        ----------
        reason : str
            Why that has to be passed on, for the message.

        Raises
        ------
        ConfigError
            The function has no keyword ``relax_cell``.
        """
        parameters = inspect.signature(self._relax).parameters.values()
        if any(p.name == 'relax_cell' or p.kind is p.VAR_KEYWORD for p in parameters):
            return
        raise ConfigError(
            f'model {self.name!r} does not take the keyword relax_cell, but {reason}; let '
            'it take the keyword, or leave these structures out'
        )

    def predict(
        self,
        structures: Sequence[Atoms],
        relax_cells: Sequence[Any] | None = None,
        *,
        names: Sequence[str] | None = None,
    ) -> list[Predicted]:
        """Predictions for all structures, in their order.

        The model is called once for the structures whose cell relaxes, and once with
        ``relax_cell=False`` for those whose cell is fixed.

        Parameters
        ----------
        structures : list of ase.Atoms
        relax_cells : list, optional
            For each structure, the part of its cell that relaxes, the same for all whose
            cell is not fixed; None, and by default: that of the model.
        names : list of str, optional
            The structures in messages; default their places in the list.

        Returns
        -------
        list of ase.Atoms or Relaxation

        Raises
        ------
        PredictionError
            The model gave another number of structures, other atoms, or something else.
        """
        relax_cells = relax_cells or [None] * len(structures)
        names = names or [f'structure {k}' for k in range(len(structures))]
        found: dict[int, Predicted] = {}
        for fixed in (False, True):
            places = [k for k, cell in enumerate(relax_cells) if (cell is False) is fixed]
            if places:
                relax_cell = relax_cells[places[0]]
                keywords = {} if relax_cell is None else {'relax_cell': relax_cell}
                given = [structures[k] for k in places]
                predicted = list(self._relax(given, **keywords, **self._keywords))
                if len(predicted) != len(given):
                    raise PredictionError(
                        f'the model gave {len(predicted)} structures for {len(given)}; it '
                        'must give one for each, in order'
                    )
                found |= zip(places, predicted, strict=True)
        for k, predicted in found.items():
            _check_atoms(names[k], structures[k], predicted)
        return [found[k] for k in range(len(structures))]


def atoms_of(predicted: Predicted) -> Atoms:
    """The structure that a model predicts.

    >>> from ase.build import bulk
    >>> atoms_of(bulk('Cu'))
    Atoms(symbols='Cu', pbc=True, cell=...)
    """
    return predicted.atoms if isinstance(predicted, Relaxation) else predicted


def problem_of(predicted: Predicted) -> str:
    """Why a prediction cannot be used, or ''.

    >>> from ase.build import bulk
    >>> problem_of(bulk('Cu'))
    ''
    """
    if isinstance(predicted, Relaxation) and not predicted.ok:
        return predicted.problem or 'the model gave no prediction, and no reason'
    atoms = atoms_of(predicted)
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
        return 'the model gave positions or a cell that are not finite'
    if abs(np.linalg.det(atoms.cell.array)) < SMALLEST_VOLUME:
        return 'the model gave a cell without volume'
    return ''


def predict_pairs(adapter: PredictorAdapter, pairs: Sequence[Pair]) -> list[Predicted]:
    """Predictions for all pairs, in their order; fixed cells stay.

    Parameters
    ----------
    adapter : PredictorAdapter
    pairs : sequence of Pair

    Returns
    -------
    list of ase.Atoms or Relaxation

    Raises
    ------
    PredictionError
        See `PredictorAdapter.predict`.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase_deeprelax.compare.baselines import Dummy
    >>> from ase_deeprelax.data.pair import make_pair
    >>> cu = make_pair('Cu', bulk('Cu', a=3.5), bulk('Cu', a=3.6))
    >>> predict_pairs(PredictorAdapter(Dummy()), [cu])
    [Atoms(symbols='Cu', pbc=True, cell=...)]
    """
    # A function need not know the keyword as long as all cells relax.
    free = None if adapter.is_function else True
    return adapter.predict(
        [pair.unrelaxed for pair in pairs],
        [False if pair.fixed_cell else free for pair in pairs],
        names=[f'pair {pair.id!r}' for pair in pairs],
    )


def _check_atoms(name: str, given: Atoms, predicted: Any) -> None:
    if not isinstance(predicted, Predicted):
        raise PredictionError(
            f'{name}: the model gave {type(predicted).__name__}; it must give ase.Atoms or '
            'a Relaxation'
        )
    answer = atoms_of(predicted)
    if not np.array_equal(given.numbers, answer.numbers):
        asked, got = (chemical_formula(x, reduced=False) for x in (given, answer))
        raise PredictionError(
            f'{name}: the model gave {got} with its atoms in another order or number than '
            f'{asked or "the input"}'
        )
