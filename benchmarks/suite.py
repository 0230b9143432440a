"""All figures of speed in one table.

    python benchmarks/suite.py

Reads what `throughput`, `published_speed`, `scaling`, `roofline` and `rivals` measured, in
``benchmarks/results/``. A ratio is always one of two numbers of the same run.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from render import load, rows_of

from ase_deeprelax.compare.tables import Table

LARGE = 1_000  # values above are shown without decimals
FEWEST, MOST = 100, 20_000  # atoms between which the cost per atom should be flat


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Parameters
    ----------
    name : str
    result : str
        Name of the result that holds its numbers.
    value : function of a list of dicts
        From the rows of that result, each a dict of column to cell.
    unit : str
        Behind the value.
    """

    name: str
    result: str
    value: Callable[[list[dict[str, str]]], float]
    unit: str = ''

    def row(self) -> list[str]:
        """Name, value, and where it was measured."""
        result = load(self.result)
        value = self.value(rows_of(result))
        source = f'{self.result}, {result["date"]}, {result["commit"]}'
        number = f'{value:,.0f}' if value >= LARGE else f'{value:.3g}'
        return [self.name, f'{number}{self.unit}', source]


def cell(rows, column, **first):
    """The number in a column of the row whose given cells are as given; '#0' is ``_0``."""
    wanted = {re.sub(r'^_(\d)$', r'#\1', key): value for key, value in first.items()}
    found = [row for row in rows if all(row.get(k) == v for k, v in wanted.items())]
    if len(found) != 1 or column not in found[0]:
        raise SystemExit(
            f'{len(found)} rows with {wanted}, column {column!r}: measure again'
        )
    return float(found[0][column])


def bench(model, way, threads='1', column='ms each'):
    """A cell of `throughput`."""
    return lambda rows: cell(rows, column, model=model, _1=way, threads=threads)


def by_code(model, way):
    """How much less time a structure takes with machine code."""
    compiled = f'{model}, compiled'
    return lambda rows: bench(model, way)(rows) / bench(compiled, way)(rows)


def share(model, part):
    """Share of a part of the time in one call, on one thread, %."""

    def value(rows):
        whole = bench(model, 'one call')(rows)
        return 100 * bench(model, 'one call', column=f'{part} / ms')(rows) / whole

    return value


def in_batch(model):
    """How much less time a structure takes in one call than by itself."""
    return lambda rows: bench(model, 'one by one')(rows) / bench(model, 'one call')(rows)


def published(title, column='x published'):
    """A cell of `published_speed`."""
    return lambda rows: cell(rows, column, _0=title)


def rival(potential, way):
    """CPU time of a relaxation over that of ``deeprelax`` in one call."""
    column = 'x deeprelax, one call'
    return lambda rows: cell(rows, column, _0=potential, _1=way)


def fastest_batched(rows):
    """That of the fastest relaxation of many crystals at once."""
    return min(
        float(row['x deeprelax, one call']) for row in rows if row.get('#1') == 'batched'
    )


def flatness(kind):
    """Cost per atom of the dearest size over the cheapest, from 100 atoms on."""

    def value(rows):
        times = [
            float(row['ms per atom'])
            for row in rows
            if row['supercells of MgO'] == kind and FEWEST <= int(row['atoms']) <= MOST
        ]
        return max(times) / min(times)

    return value


def memory(rows):
    """Of the largest cell of any kind, MB per million edges."""
    return max(
        float(row['MB per million edges']) for row in rows if row['MB per million edges']
    )


def roofline(model):
    """Share of the bound that the network stage reaches, %."""
    column = 'share of the bound / %'
    return lambda rows: cell(rows, column, model=model, operations='whole network')


MODELS = ('deeprelax', 'ensemble')
WORKERS = 'one call, 2 workers'
KINDS = ('symmetric', 'displaced', 'nearly symmetric', 'vacancy')
FIGURES = [
    *(
        Figure(f'{model}, {way}, 2 threads', 'bench', bench(model, way, '2'), ' ms')
        for way in ('one call', 'one by one')
        for model in MODELS
    ),
    *(
        Figure(f'{model}, {WORKERS}', 'bench', bench(model, WORKERS), ' ms')
        for model in MODELS
    ),
    *(
        Figure(
            f'{model}, {way}, machine code',
            'bench-compiled',
            bench(f'{model}, compiled', way),
            ' ms',
        )
        for way in ('one call', 'one by one', WORKERS)
        for model in MODELS
    ),
    *(
        Figure(
            f'{model}, {way}: without machine code over with',
            'bench-compiled',
            by_code(model, way),
        )
        for way in ('one call', 'one by one')
        for model in MODELS
    ),
    *(
        Figure(f'{model}: one by one over one call', 'bench', in_batch(model))
        for model in MODELS
    ),
    *(
        Figure(
            f'{model} in one call: 1 thread over 2',
            'bench',
            bench(model, 'one call', '2', 'x 1 threads'),
        )
        for model in MODELS
    ),
    *(
        Figure(
            f'deeprelax in one call: share of {part}',
            'bench',
            share('deeprelax', part),
            unit=' %',
        )
        for part in ('checks', 'symmetry', 'graph', 'network', 'solver', 'rest')
    ),
    Figure(
        'published pipeline over ours at the published size, one call',
        'published',
        published('ours, published size, one call'),
    ),
    Figure(
        'published pipeline over deeprelax, one call',
        'published',
        published('ours, deeprelax, one call'),
    ),
    Figure(
        'published pipeline, flushed, over deeprelax, one call',
        'published',
        published('ours, deeprelax, one call', 'x flushed'),
    ),
    Figure(
        'published pipeline over ensemble, one call',
        'published',
        published('ours, ensemble, one call'),
    ),
    Figure(
        'M3GNet and FIRE, one by one, over deeprelax, one call',
        'rivals',
        rival('m3gnet, FIRE', 'one by one'),
    ),
    Figure(
        'fastest batched relaxation over deeprelax, one call',
        'rivals',
        fastest_batched,
    ),
    *(
        Figure(
            f'time per atom, dearest over cheapest size from 100 atoms on: {kind}',
            'scaling',
            flatness(kind),
        )
        for kind in KINDS
    ),
    Figure('peak memory, MB per million edges', 'scaling', memory),
    *(
        Figure(
            f'network stage of {model}: share of its bound',
            'roofline',
            roofline(model),
            ' %',
        )
        for model in MODELS
    ),
]


def main():
    """Print the table."""
    heads = ['figure', 'value', 'measured']
    rows = [figure.row() for figure in FIGURES]
    print(Table(heads, rows, text_columns=(0, 2)).as_markdown())


if __name__ == '__main__':
    main()
