"""Pairs from the answers of a model: what its second pass through the network meets."""

from __future__ import annotations

from collections.abc import Sequence

from ase_deeprelax.data.pair import Pair
from ase_deeprelax.predict.predictor import Predictor
from ase_deeprelax.train.augment import repaired


def recycled(pairs: Sequence[Pair], model: str) -> list[Pair]:
    """The pairs with a model's one-pass answers as inputs, and their targets as they are.

    A network that was trained on its own answers knows what is wrong with them, and the
    passes after the first one (`predict.passes`) bring more.

    Parameters
    ----------
    pairs : sequence of Pair
    model : str
        Name of a shipped model, or the folder of another one.

    Returns
    -------
    list of Pair
        Without those that the model has no answer to.
    """
    predictor = Predictor(model)
    predictor.max_passes = 1
    answers = []
    for fixed_cell in (False, True):
        chosen = [pair for pair in pairs if pair.fixed_cell is fixed_cell]
        results = predictor.relax(
            [pair.unrelaxed for pair in chosen], relax_cell=not fixed_cell
        )
        answers += [
            repaired(
                pair,
                result.atoms.cell.array,
                result.atoms.get_scaled_positions(wrap=False),
            )
            for pair, result in zip(chosen, results, strict=True)
            if result.ok
        ]
    return answers
