"""Write the tables of the README and of the documentation from the results in JSON.

    python benchmarks/render.py            # writes the pages
    python benchmarks/render.py --check    # names the pages that differ, and fails

``benchmarks/results/NAME.json`` holds what one command measured, and where, when and on
what it was measured; `measure.py` writes it. A page shows it between the lines
``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``. All that stands between them is written
here. A part of a result, with shorter titles, is a view (`VIEWS`); `batches` is a sentence.
"""

import argparse
import hashlib
import json
import re
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / 'results'
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
MARKS = re.compile(r'<!-- ([a-z-]+):begin -->\n(.*?)<!-- \1:end -->', re.DOTALL)
NUMBER = re.compile(r'[-+]?\d')
DECIMAL = re.compile(r'[-+]?\d+\.\d+')


@dataclass(frozen=True)
class View:
    """Some rows and columns of the first table of a result.

    Parameters
    ----------
    result : str
        Name of the result.
    rows : dict of str to str
        First cell of each row that is shown, and what stands there instead.
    columns : dict of str to str
        The same of the titles of the columns.
    digits : dict of str to int
        Behind the point, for the numbers of a column, by its old title; default as many as
        the result has. A last digit 5 is rounded up, as readers of the result would do.
    """

    result: str
    rows: dict[str, str]
    columns: dict[str, str]
    digits: dict[str, int]

    def table(self):
        """Columns and rows, as in the parts of a result."""
        table = next(part for part in load(self.result)['parts'] if 'rows' in part)
        places = [table['columns'].index(title) for title in self.columns]
        rows = {row[0]: row for row in table['rows']}
        return {
            'columns': list(self.columns.values()),
            'rows': [
                [name, *(self._cell(rows[old][k], table['columns'][k]) for k in places[1:])]
                for old, name in self.rows.items()
            ],
        }

    def _cell(self, text, title):
        if title not in self.digits:
            return text
        unit = Decimal(1).scaleb(-self.digits[title])
        return DECIMAL.sub(
            lambda one: str(Decimal(one[0]).quantize(unit, ROUND_HALF_UP)), text
        )


VIEWS = {
    'headline': View(
        result='iterative',
        rows={
            'Dummy': 'the input, as it is',
            'deeprelax': '`deeprelax`, one shot',
            'ensemble': '`ensemble`, one shot (default)',
            'm3gnet': 'M3GNet, full relaxation',
            'tensornet': 'TensorNet-MatPES, full relaxation',
            'chgnet': 'CHGNet, full relaxation',
        },
        columns={
            '': '',
            'coord_mae': 'positions / Å',
            'lattice_mae': 'lattice vectors / Å',
            'volume_mae': 'volume / Å³',
            'CPU ms, one by one': 'time / ms',
        },
        digits={
            'coord_mae': 3,
            'lattice_mae': 3,
            'volume_mae': 2,
            'CPU ms, one by one': 0,
        },
    )
}


def load(name):
    """The result of this name."""
    return json.loads((RESULTS / f'{name}.json').read_text(encoding='utf-8'))


def drawn_from(*names):
    """What a figure says of itself: the results it shows, and a hash of their tables."""
    parts = json.dumps([load(name)['parts'] for name in names])
    digest = hashlib.sha256(parts.encode()).hexdigest()[:12]
    return f'drawn from {", ".join(names)}; SHA-256 of their tables {digest}'


def rows_of(result):
    """The rows of all tables of a result, as dicts of column to cell."""
    tables = [part for part in result['parts'] if 'rows' in part]
    return [
        dict(zip(titles_of(table), row, strict=True))
        for table in tables
        for row in table['rows']
    ]


def titles_of(table):
    """Titles of columns; those without one are called by their place."""
    return [title or f'#{k}' for k, title in enumerate(table['columns'])]


def provenance(result):
    """One line: on what, when, where, from which commit, with which weights."""
    data = ', '.join(
        f'{file["name"]} (SHA-256 {file["sha256"][:12]})' for file in result['data']
    )
    facts = [f'data: {data}'] if data else []
    facts += [result['date'], result['machine'], f'commit {result["commit"]}']
    if versions := result.get('versions'):
        facts.append(f'torch {versions["torch"]}')
    facts.append(f'weights: {result["weights"]}')
    return f'<small>Measured: {"; ".join(facts)}.</small>'


def markdown(part):
    """One part of a result: a paragraph, or a table."""
    if 'text' in part:
        return part['text']
    columns = list(zip(part['columns'], *part['rows'], strict=True))
    rules = [
        '---' if k == 0 or not all(_is_number(cell) for cell in cells) else '--:'
        for k, (_, *cells) in enumerate(columns)
    ]
    lines = [part['columns'], rules, *part['rows']]
    return '\n'.join(_row(cells) for cells in lines)


def _is_number(cell):
    return cell in {'', '-'} or NUMBER.match(cell) is not None


def _row(cells):
    return f'| {" | ".join(cells)} |'


def block(name):
    """What stands between the marks of a name."""
    if name == 'batches':
        return f'\n{batches()}\n\n'
    if name in VIEWS:
        view = VIEWS[name]
        return f'\n{markdown(view.table())}\n\n{provenance(load(view.result))}\n\n'
    result = load(name)
    parts = [markdown(part) for part in result['parts']]
    return '\n' + '\n\n'.join([*parts, provenance(result)]) + '\n\n'


def batches():
    """A sentence on the time of a structure in a batch, from the result `bench`."""
    result = load('bench')
    times = [
        float(row['CPU ms each'])
        for row in rows_of(result)
        if row['#1'] == 'one call' and row['threads'] == '1'
    ]
    shortest, longest = (f'{time:.0f}' for time in (min(times), max(times)))
    return (
        f'In batches of 256, a structure takes {shortest} to {longest} ms of processor '
        'time on one thread, depending on the model: `make bench`.\n\n'
        f'{provenance(result)}'
    )


def rendered(text):
    """A page with all its tables as the results have them."""
    return MARKS.sub(
        lambda found: (
            f'<!-- {found[1]}:begin -->\n{block(found[1])}<!-- {found[1]}:end -->'
        ),
        text,
    )


def main():
    """Write or check all pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help='write nothing')
    options = parser.parse_args()
    changed = []
    for page in PAGES:
        text = page.read_text(encoding='utf-8')
        if (new := rendered(text)) != text:
            changed.append(page.name)
            if not options.check:
                page.write_text(new, encoding='utf-8')
    print('changed:', ', '.join(changed) or 'nothing')
    if changed and options.check:
        raise SystemExit(1)


if __name__ == '__main__':
    main()
