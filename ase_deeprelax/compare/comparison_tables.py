"""Tables of a comparison: costs, ends, both starts, batches, runs and phonons.

The report and the command line draw the same tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ase_deeprelax.compare.schema import (
    Comparison,
    PhononRow,
    RunRow,
    StructureRow,
    SummaryRow,
    check_version,
)
from ase_deeprelax.compare.tables import (
    Cell,
    Table,
    counts_text,
    number,
    percent,
    quartiles_text,
)
from ase_deeprelax.data.one_line import count

_MEV = 1000
# The text names so many failures, and so many structures in a sentence.
_MOST_FAILURES = 6
_MOST_NAMED = 10


def comparison_text(result: Comparison) -> str:
    """A comparison as tables of text: median (quartiles) of converged runs, failures apart.

    Energies are above those of the relaxation from the unrelaxed structure. Lines below the
    tables give the reasons of the first failures.

    Parameters
    ----------
    result : Comparison
        With ``phonons`` these have a table, too.

    Returns
    -------
    str

    Examples
    --------
    >>> print(comparison_text(compare(structures)))  # doctest: +SKIP
    """
    check_version(result)
    settings = result['settings']
    head = (
        f'{count(len(result["structures"]))}, model {settings["model"]!r}, to '
        f'{settings["fmax"]:g} eV/A in at most {count(settings["steps"], "step")}, '
        f'{count(settings["threads"], "thread")}'
    )
    tables = [cost_table(result), end_table(result)]
    if any(row['both']['n'] for row in result['summary']):
        tables.append(both_starts_table(result))
    if result['batched']:
        tables.append(batch_table(result))
    if result.get('phonons'):
        tables.append(phonon_table(result))
    parts = [head, *(table.as_text() for table in tables)]
    failures = '\n'.join(_failures(result))
    return '\n\n'.join([*parts, *warnings_of(result), *filter(None, [failures])])


def structure_title(row: StructureRow) -> str:
    """Formula and id of a structure."""
    id, formula = row['id'], row['formula']
    return formula if id == formula else f'{formula}, {id}'


def _ways(row: SummaryRow) -> list[Mapping[str, Any]]:
    """All three ways to a structure, in the order of the tables."""
    above = {'energy_difference': row['both']['energy_difference']}
    return [
        {'start': 'unrelaxed', **row['unrelaxed']},
        {'start': 'prediction alone', **row['alone']},
        {'start': 'prediction', **row['prediction'], **above},
    ]


def cost_table(result: Comparison) -> Table:
    """The cost of relaxations that converged."""
    rows = [
        [
            *(row['calculator'], row['optimizer'], way['start']),
            *(way.get(what) for what in ('converged', 'unconverged', 'failed')),
            counts_text(way.get('calls')),
            counts_text(way.get('steps')),
            quartiles_text(way['seconds'], '.2f'),
        ]
        for row in result['summary']
        for way in _ways(row)
    ]
    heads = ['calculator', 'optimizer', 'start', 'converged', 'unconverged', 'failed']
    heads += ['calls', 'steps', 'time / s']
    table = Table(heads, rows, (0, 1, 2), 'Costs of relaxations that converged')
    return table.without_empty_columns()


def end_table(result: Comparison) -> Table:
    """Energies and structures of relaxations that converged."""
    rows = [
        [
            *(row['calculator'], row['optimizer'], way['start']),
            percent(way.get('converged_share')),
            quartiles_text(way.get('energy_difference'), '.1f', _MEV),
            quartiles_text(way['rmsd_to_reference'], '.3f'),
            percent(way['spacegroup_kept']),
        ]
        for row in result['summary']
        for way in _ways(row)
    ]
    heads = ['calculator', 'optimizer', 'start', 'converged', 'energy / meV per atom']
    heads += ['RMSD to reference', 'space group kept']
    caption = 'Results; energies are above the relaxation from the unrelaxed structure'
    table = Table(heads, rows, (0, 1, 2), caption)
    return table.without_empty_columns()


def both_starts_table(result: Comparison) -> Table:
    """Structures that converged from both starts."""
    rows: list[list[Cell]] = []
    for row in result['summary']:
        both = row['both']
        shares = (both['equal'], both['lower'], both['higher'], both['uphill'])
        rows.append(
            [
                *(row['calculator'], row['optimizer'], both['n']),
                percent(both['median_calls_ratio']),
                counts_text(both['calls_saved']),
                quartiles_text(both['seconds_saved'], '.2f'),
                *map(percent, shares),
            ]
        )
    heads = ['calculator', 'optimizer', 'both converged', 'calls with/without prediction']
    heads += ['calls saved', 'time saved / s', 'same energy', 'lower', 'higher']
    tolerance = _MEV * result['settings']['energy_tolerance']
    caption = (
        'Relaxation from the prediction compared with the unrelaxed start (same energy: '
        f'within {tolerance:g} meV per atom)'
    )
    table = Table([*heads, 'prediction uphill'], rows, (0, 1), caption)
    return table.without_empty_columns()


def batch_table(result: Comparison) -> Table:
    """Structures relaxed together."""
    rows = [
        [
            *(row['calculator'], row['optimizer'], row['start'], row['n']),
            row['converged'],
            counts_text(row['calls']),
            number(row['seconds_per_structure'], '.3f'),
            row['problem'],
        ]
        for row in result['batched']
    ]
    heads = ['calculator', 'optimizer', 'start', 'structures', 'converged', 'calls']
    heads += ['time per structure / s', 'problem']
    table = Table(heads, rows, (0, 1, 2, 7), 'Many structures per forward pass')
    return table.without_empty_columns()


def run_table(result: Comparison) -> Table:
    """Every relaxation."""
    titles = {row['id']: structure_title(row) for row in result['structures']}
    rows = [
        [
            *(titles[run['structure']], run['calculator'], run['optimizer'], run['start']),
            *(run['calls'], run['steps'], number(run['seconds'], '.2f')),
            *(number(run['energy_per_atom'], '.4f'), number(run['fmax'], '.3f')),
            'yes' if run['converged'] else run['reason'] or 'no',
        ]
        for run in result['runs']
    ]
    heads = ['structure', 'calculator', 'optimizer', 'start', 'calls', 'steps']
    heads += ['time / s', 'energy / eV per atom', 'fmax / eV Å⁻¹', 'converged']
    table = Table(heads, rows, (0, 1, 2, 3, 9), 'All runs', folded=True)
    return table.without_empty_columns()


def phonon_table(result: Comparison) -> Table:
    """Imaginary modes of structures relaxed in several ways."""
    titles = {row['id']: structure_title(row) for row in result['structures']}
    rows = [_phonon_cells(titles, row) for row in result.get('phonons', [])]
    heads = ['structure', 'calculator', 'relaxed', 'fmax / eV Å⁻¹', 'imaginary modes']
    heads += ['lowest / THz', 'atoms of supercell', 'problem']
    table = Table(heads, rows, (0, 1, 2, 7), 'Imaginary modes')
    return table.without_empty_columns()


def _phonon_cells(titles: dict[str, str], row: PhononRow) -> list[Cell]:
    names = [titles[row['structure']], row['calculator'], row['kind']]
    if not row['ok']:
        return [*names, None, None, None, None, row['problem']]
    modes = row['imaginary']
    return [
        *(*names, number(row['fmax'], '.3f'), f'{modes["n"]} of {modes["n_modes"]}'),
        *(number(modes['lowest'], '.2f'), row['n_supercell'], ''),
    ]


def _failures(result: Comparison) -> Iterator[str]:
    """Lines on failed runs: the structure, the way and the reason of the first few.

    A structure that fails in every way for one reason takes one line.
    """
    failed: dict[tuple[str, str], list[RunRow]] = {}
    for run in result['runs']:
        if not run['ok']:
            failed.setdefault((run['structure'], run['reason']), []).append(run)
    alike = list(failed.items())
    for (structure, reason), [first, *others] in alike[:_MOST_FAILURES]:
        way = f'{first["calculator"]} + {first["optimizer"]}, start: {first["start"]}'
        way += f', and {count(len(others), "more run")}' if others else ''
        yield f'failed: {structure} ({way}): {reason}'
    if more := sum(len(runs) for _, runs in alike[_MOST_FAILURES:]):
        n = count(more, 'more run')
        yield f'failed: {n}; the files of --html and --json name all'


def warnings_of(result: Comparison) -> Iterator[str]:
    """Sentences on structures that the prediction did no good."""
    for row in result['summary']:
        name = f'{row["calculator"]} + {row["optimizer"]} from the prediction'
        if higher := row['both']['higher_structures']:
            yield f'{name} ended higher for {first_named(higher)}'
        if lost := row['only_unrelaxed']:
            yield f'{name} did not converge for {first_named(lost)}'


def first_named(ids: Sequence[str]) -> str:
    """How many structures, and the ids of the first ones.

    >>> first_named(['NaCl', 'KCl'])
    '2 structures: NaCl, KCl'
    """
    left_out = len(ids) - _MOST_NAMED
    more = f', and {left_out:,} more' if left_out > 0 else ''
    return f'{count(len(ids))}: {", ".join(ids[:_MOST_NAMED])}{more}'
