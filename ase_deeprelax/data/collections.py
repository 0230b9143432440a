"""Pairs and relaxed structures of some collections only."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from ase_deeprelax.data.pair import Pair
from ase_deeprelax.errors import PairFileError


def of_collections(
    pairs: Sequence[Pair], names: Collection[str] | None, where: str | Path
) -> list[Pair]:
    """The pairs whose field ``src`` is one of these names.

    Parameters
    ----------
    pairs : sequence of Pair
    names : collection of str or None
        None or empty: all pairs.
    where : str or Path
        What the pairs were read from, for messages.

    Returns
    -------
    list of Pair
        In their order.

    Raises
    ------
    PairFileError
        No pair is of one of the names: it is misspelt, or from another file.

    Examples
    --------
    >>> pairs = read_pairs('pairs_2d.jsonl.gz')  # doctest: +SKIP
    >>> some = of_collections(pairs, ['2dmatpedia'], 'pairs_2d.jsonl.gz')  # doctest: +SKIP
    """
    if not names:
        return list(pairs)
    there = {pair.src for pair in pairs}
    for name in names:
        if name not in there:
            known = ', '.join(map(repr, sorted(filter(None, there)))) or 'none'
            raise PairFileError(
                f'{where}: holds nothing of src {name!r}; there are: {known}'
            )
    return [pair for pair in pairs if pair.src in names]
