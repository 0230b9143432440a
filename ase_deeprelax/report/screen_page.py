"""One HTML page on a screen: distributions, uncertain structures, quarantine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ase_deeprelax.compare.tables import Table
from ase_deeprelax.data.one_line import count
from ase_deeprelax.report import headlines
from ase_deeprelax.report.html import write_page
from ase_deeprelax.report.html_blocks import Section, link, places
from ase_deeprelax.report.relaxation_table import relaxation_table
from ase_deeprelax.report.relaxations import (
    COLUMNS,
    distributions_section,
    models_of,
    relaxed_scene,
)
from ase_deeprelax.screening import Results

# So many of the most uncertain structures can be turned by hand.
TURNED = 12


def write_screen_page(
    path: str | Path,
    results: Results,
    *,
    where: Sequence[str] = (),
    provenance: Sequence[str] = (),
) -> Path:
    """Write a page on a screen, in one HTML file that needs no network.

    Parameters
    ----------
    path : str or Path
        Overwritten; its folder is made.
    results : Results
        Of a screen that has a pack at least.
    where : list of str
        Conditions of `Results.table`: the page is on these structures alone, and leaves out
        what was quarantined. Default: on all.
    provenance : list of str
        How the page was made, such as the command; default nothing.

    Returns
    -------
    Path

    Raises
    ------
    ConfigError
        There is no pack yet, or a condition means no column.
    MissingDependencyError
        matplotlib is not there.
    """
    known = [name for name in COLUMNS if name in results.columns]
    table = results.table(where, columns=known)
    columns = {name: table[name].to_numpy() for name in known}
    scenes, worst = _worst(results, where)
    viewed = places(scenes)
    shown = relaxation_table(
        ((link(id, viewed), row) for id, row in worst.items()),
        'The most uncertain structures, the largest sigma first',
    )
    parts = distributions_section(columns)
    parts += [Section('Most uncertain', [], [shown])] if worst else []
    reasons = {} if where else results.quarantine()
    if reasons:
        lines = [[reason, f'{n:,}'] for reason, n in reasons.items()]
        left_out = Table(['reason', 'structures'], lines, (0,), 'Quarantine by reason')
        parts.append(Section('Quarantine', ['Numbers in reasons stand as #.'], [left_out]))
    about = [*_source(results), *models_of(worst.values()), *provenance]
    if where:
        about.insert(0, f'Only the structures with {" and ".join(where)}.')
    title = f'Screen {results.store.out.name}'
    failed = 0 if where else results.n_quarantined
    first = [headlines.of_relaxations(columns, failed)]
    return write_page(path, title, about, scenes, parts, first=first)


def _source(results: Results) -> list[str]:
    """Lines on what was screened, and how much of it is done."""
    known, n = results.store.manifest(), results.plan.n_structures
    name, digest = Path(known['source']).name, known['sha256'][:12]
    line = f'Data: {name}, SHA-256 of names and contents {digest}, {count(n)}'
    done = len(results)
    return [f'{line}.' if done == n else f'{line}, {done:,} of them done.']


def _worst(
    results: Results, where: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """The most uncertain structures for the viewer, and their rows by id."""
    scenes, rows = [], {}
    table = results.table(where, sort='sigma', descending=True, limit=TURNED)
    for row, atoms in results.structures(table):
        before = results.initial(row['position'], atoms)
        scenes.append(relaxed_scene(row['id'], before, atoms))
        rows[row['id']] = row
    return scenes, rows
