"""One HTML page on the answers of ``deeprelax relax``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ase import Atoms

from ase_deeprelax.report import headlines
from ase_deeprelax.report.html import write_page
from ase_deeprelax.report.relaxation_table import uncertainty_of
from ase_deeprelax.report.relaxations import (
    columns_of,
    distributions_section,
    failures_section,
    models_of,
    relaxed_scene,
    relaxed_section,
)

# So many of the least certain, farthest moved and most stretched structures can be turned
# by hand; where there are at most three times as many, all of them.
TURNED = 8


class Answer(NamedTuple):
    """A structure that was relaxed.

    Attributes
    ----------
    row : mapping
        See `relaxation_table`.
    before, after : ase.Atoms
        ``after`` with the names of `keys`.
    """

    row: Mapping[str, Any]
    before: Atoms
    after: Atoms


def write_relax_page(
    path: str | Path,
    answers: Mapping[str, Answer],
    problems: Sequence[str] = (),
    *,
    failed: int = 0,
    provenance: Sequence[str] = (),
) -> Path:
    """Write a page on relaxed structures, in one HTML file that needs no network.

    Parameters
    ----------
    path : str or Path
        Overwritten; its folder is made.
    answers : mapping of str to Answer
        Structures that were relaxed, by name.
    problems : list of str
        What failed, and why; default nothing.
    failed : int
        How many structures were not relaxed; default 0.
    provenance : list of str
        How they were made, such as the command; default nothing.

    Returns
    -------
    Path

    Raises
    ------
    MissingDependencyError
        matplotlib is not there, which draws the figure for many structures.

    Examples
    --------
    >>> row = {**result.to_row()}  # doctest: +SKIP
    >>> one = Answer(row, result.initial, result.atoms)  # doctest: +SKIP
    >>> write_relax_page('page.html', {'NaCl': one})  # doctest: +SKIP
    """
    rows = {name: answer.row for name, answer in answers.items()}
    scenes = [
        relaxed_scene(name, answers[name].before, answers[name].after)
        for name in worth_a_look(rows)
        if answers[name].before.cell.rank == 3  # a molecule without a cell is not drawn
    ]
    columns = columns_of(rows.values())
    parts = distributions_section(columns)
    parts += [relaxed_section(rows, scenes)] if rows else []
    parts += failures_section(problems)
    about = [*models_of(rows.values()), *provenance]
    unconverged = sum(map(_did_not_converge, rows.values()))
    first = [headlines.of_relaxations(columns, failed, unconverged=unconverged)]
    return write_page(path, 'Relaxed structures', about, scenes, parts, first=first)


def _did_not_converge(row: Mapping[str, Any]) -> bool:
    """Whether it was relaxed on, and the last calculator failed or stopped too early."""
    stages = row.get('stages')
    return bool(stages) and stages[-1]['status'] not in ('converged', 'skipped')


def worth_a_look(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of the least certain, farthest moved and most stretched structures.

    Parameters
    ----------
    rows : mapping
        By name, see `relaxation_table`.

    Examples
    --------
    >>> worth_a_look({'NaCl': {'error': 0.02, 'dmax': 0.1, 'volume_ratio': 1.0}})
    ['NaCl']
    """
    if len(rows) <= 3 * TURNED:
        return list(rows)
    measures = (
        uncertainty_of,
        lambda row: row.get('dmax') or 0.0,
        lambda row: abs((row.get('volume_ratio') or 1.0) - 1),
    )
    found: dict[str, None] = {}
    for measure in measures:
        order = sorted(rows, key=lambda name: -measure(rows[name]))
        found |= dict.fromkeys(order[:TURNED])
    return list(found)
