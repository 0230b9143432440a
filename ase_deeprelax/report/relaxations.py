"""Parts of all pages on relaxations: crystals for the viewer, and sections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from ase import Atoms

from ase_deeprelax import keys
from ase_deeprelax.compare.tables import WIDE_DASH, Table, number
from ase_deeprelax.data.formula import chemical_formula
from ase_deeprelax.data.one_line import count
from ase_deeprelax.data.pair import fixed_atoms
from ase_deeprelax.report.html_blocks import Section, figure_block, link, places
from ase_deeprelax.report.plot_relaxations import DRAWN, Columns, distributions
from ase_deeprelax.report.relaxation_table import relaxation_table, uncertainty_of
from ase_deeprelax.report.style import FEW
from ase_deeprelax.report.viewer_data import periodic_vectors, scene
from ase_deeprelax.result import Relaxation

# Most rows of structures on a page; JSON has all.
MOST_ROWS = 500
# What headline and distributions need.
COLUMNS = (*DRAWN, 'ood')
# The stage of what was not relaxed on, as it stands in ``info``.
PREDICTED = 'predicted'


def named(
    relaxations: Mapping[Any, Relaxation] | Iterable[Relaxation] | Relaxation,
) -> dict[str, Relaxation]:
    """Relaxations by name; those of a list are called by formula and place.

    Raises
    ------
    TypeError
        Something in it is no Relaxation.
    """
    if isinstance(relaxations, Relaxation):
        relaxations = [relaxations]
    by_name = isinstance(relaxations, Mapping)
    pairs = list(relaxations.items() if by_name else enumerate(relaxations))
    for key, result in pairs:
        if not isinstance(result, Relaxation):
            raise TypeError(
                f'relaxations: {key!r} is of type {type(result).__name__}; give what '
                'relax() returns'
            )
    if by_name:
        return {str(name): result for name, result in pairs}
    return {f'{chemical_formula(one.initial)}, {k}': one for k, one in pairs}


def columns_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The columns that headline and distributions need, from rows of relaxed structures."""
    rows = list(rows)
    return {name: [row.get(name) for row in rows] for name in COLUMNS}


def models_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Lines with name, hash and version of each model that answered."""
    found = dict.fromkeys(
        tuple(row.get(name) or 'unknown' for name in ('model', 'sha256', 'version'))
        for row in rows
        if row.get('model')  # what was relaxed without a prediction has none
    )
    return [
        f'Model {name}, SHA-256 {sha[:12]}, predicted with ase_deeprelax {version}.'
        for name, sha, version in found
    ]


def least_certain(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of the structures that a page has room for; of more, the least certain ones.

    >>> least_certain({'NaCl': {'error': 0.02}})
    ['NaCl']
    """
    if len(rows) <= MOST_ROWS:
        return list(rows)
    return sorted(rows, key=lambda name: -uncertainty_of(rows[name]))[:MOST_ROWS]


def relaxed_section(
    rows: Mapping[str, Mapping[str, Any]],
    scenes: Iterable[Mapping[str, Any]],
    caption: str = 'All relaxations',
) -> Section:
    """The table of relaxations, by name; names that the viewer shows open it."""
    where, shown = places(scenes), least_certain(rows)
    if len(shown) < len(rows):
        caption = f'The least certain ones, {len(shown)} of {len(rows):,}'
    table = relaxation_table(((link(name, where), rows[name]) for name in shown), caption)
    return Section('Relaxations', [], [table])


def distributions_section(columns: Columns) -> list[Section]:
    """A section with histograms; none where structures are few enough to be seen."""
    if len(next(iter(columns.values()))) < FEW:
        return []
    caption = 'How the structures that were relaxed are distributed.'
    figure = figure_block(distributions(columns), caption)
    return [Section('Distributions', [], [], [figure])]


def failures_section(problems: Sequence[str]) -> list[Section]:
    """A section on what failed, and why; none where nothing did."""
    if not problems:
        return []
    rows = [[problem] for problem in problems[:MOST_ROWS]]
    caption = count(len(problems), 'problem')
    caption += f', the first {len(rows)}' if len(rows) < len(problems) else ''
    return [Section('Failures', [], [Table(['what failed, and why'], rows, (0,), caption)])]


def relaxed_scene(name: str, before: Atoms, after: Atoms, **more: str) -> dict[str, Any]:
    """A relaxed structure for the viewer, with what its ``info`` says of the prediction.

    Parameters
    ----------
    name : str
    before, after : ase.Atoms
        ``after`` with the names of `keys`.
    **more : str
        Further facts, by title.
    """
    info = after.info
    drawn = scene(name, before, after, after.arrays.get(keys.SIGMA))
    facts = notes(before, after, max(drawn['distance'], default=0.0))
    # Where a structure was relaxed on, they are still those of its prediction.
    whose = '' if info.get(keys.STAGE, PREDICTED) == PREDICTED else ' of prediction'
    for key, title in ((keys.SIGMA, 'sigma'), (keys.ERROR, 'expected error')):
        known = number(info.get(key), '.3f')
        facts |= {f'{title}{whose} / Å': known} if known else {}
    facts |= {'relaxed as': info.get(keys.KIND, WIDE_DASH)}
    return drawn | {'notes': facts | more | {'model': info.get(keys.MODEL, WIDE_DASH)}}


def scenes_of(
    named: Mapping[str, Relaxation], rows: Mapping[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """The relaxations that a page has room for, for the viewer.

    Their space groups, which take milliseconds each, are also added to their rows.
    """
    scenes = []
    for name in least_certain(rows):
        one = named[name]
        if one.ok:
            groups = '{} → {}'.format(*one.spacegroup)
            rows[name]['spacegroup'] = groups
            fact = {'space group': groups}
            scenes.append(relaxed_scene(name, one.initial, one.atoms, **fact))
    return scenes


def notes(before: Atoms, after: Atoms, dmax: float | None) -> dict[str, str]:
    """Facts that the viewer shows beside a structure."""
    periodic = periodic_vectors(before)
    fixed = int(fixed_atoms(before).sum())
    facts = {
        'atoms': f'{len(before)}, {fixed} of them fixed' if fixed else f'{len(before)}'
    }
    what = {3: 'volume / Å³', 2: 'area / Å²'}.get(periodic.sum())
    if what:
        size = Atoms.get_volume if periodic.all() else partial(_area, periodic=periodic)
        old, new = size(before), size(after)
        facts |= {
            what: f'{old:.2f} → {new:.2f}',
            f'change of {what.split()[0]}': f'{100 * (new / old - 1):+z.1f} %',
        }
    lengths = zip('abc', before.cell.lengths(), after.cell.lengths(), strict=True)
    facts |= {
        f'{name} / Å': f'{a:.3f} → {b:.3f}'
        for (name, a, b), shown in zip(lengths, periodic, strict=True)
        if shown
    }
    return facts | {'moved at most / Å': number(dmax, '.3f') or WIDE_DASH}


def _area(atoms: Atoms, periodic: np.ndarray) -> float:
    return float(np.linalg.norm(np.cross(*atoms.cell.array[periodic])))
