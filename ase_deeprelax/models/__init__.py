"""Networks by name."""

from __future__ import annotations

from typing import Any

from ase_deeprelax.errors import ModelError
from ase_deeprelax.models.base import RelaxationModel
from ase_deeprelax.models.e3relax_h2 import e3relax_h2
from ase_deeprelax.models.egnn import EGNN
from ase_deeprelax.models.paegnn import PaEGNN
from ase_deeprelax.models.painn import PaiNN

ARCHITECTURES = {'paegnn': PaEGNN, 'e3relax-h2': e3relax_h2, 'painn': PaiNN, 'egnn': EGNN}
# Without any of these there is no network; with a cutoff below zero, atoms see nothing.
SIZES = ('hidden', 'layers', 'num_rbf', 'cutoff', 'rbf_cutoff')


def create_model(architecture: str, **hyperparameters: Any) -> RelaxationModel:
    """A new model with random weights.

    Parameters
    ----------
    architecture : str
        One of ``ARCHITECTURES``.
    **hyperparameters
        Keyword arguments of its class.

    Returns
    -------
    RelaxationModel
        With ``architecture`` and ``hyperparameters`` set.

    Raises
    ------
    ModelError
        Unknown architecture, a hyperparameter that it does not have, or a size of nothing.

    Examples
    --------
    >>> create_model('paegnn', hidden=16, layers=2).spec.cutoff
    5.0
    """
    if architecture not in ARCHITECTURES:
        known = ', '.join(sorted(ARCHITECTURES))
        raise ModelError(
            f'unknown architecture {architecture!r}; known are: {known}; make one of your '
            f'own known by ase_deeprelax.models.ARCHITECTURES[{architecture!r}] = ITS_CLASS'
        )
    for name in SIZES:
        size = hyperparameters.get(name, 1)
        if isinstance(size, (int, float)) and not size > 0:
            raise ModelError(
                f'architecture {architecture!r}: {name} is {size}; it must be above 0'
            )
    try:
        model = ARCHITECTURES[architecture](**hyperparameters)
    except (TypeError, ValueError) as error:
        raise ModelError(f'architecture {architecture!r}: {error}') from error
    model.architecture = architecture
    model.hyperparameters = dict(hyperparameters)
    return model
