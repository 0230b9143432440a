"""The rows of a screen: counted, filtered, sorted, and their structures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ase import Atoms

from ase_deeprelax.errors import ConfigError
from ase_deeprelax.files import is_of_system
from ase_deeprelax.result import decode_atoms
from ase_deeprelax.screening.databases import need_pyarrow
from ase_deeprelax.screening.store import Store

# Columns that hold structures: left out of tables.
STRUCTURE = ('atoms', 'initial_cell', 'initial_positions')
CONDITION = re.compile(r'\s*(\w+)\s*(<=|>=|==|!=|<|>|=)\s*(.*?)\s*')
# A second condition after a first one, as in 'kind = layer and sigma < 0.05'.
SECOND = re.compile(r'\s(and|or|&+|\|+)\s+\w+\s*[<>=!]', re.IGNORECASE)
NUMBER = re.compile(r'-?\d+(\.\d+)?(e[+-]?\d+)?')
OPERATORS = {
    '<': 'less',
    '<=': 'less_equal',
    '>': 'greater',
    '>=': 'greater_equal',
    '=': 'equal',
    '==': 'equal',
    '!=': 'not_equal',
}
# Structures that are held at a time.
CHUNK = 20_000


class Results:
    """The rows of a screen, of as many packs as there are.

    ``pandas.read_parquet(out / 'packs')`` reads the same rows; a column ``atoms`` then
    holds a structure as JSON of ASE, for ``ase.io.jsonio.decode``.

    Parameters
    ----------
    out : str or Path
        Folder of a screen.

    Raises
    ------
    ConfigError
        There is none.

    Examples
    --------
    >>> found = Results('run1')  # doctest: +SKIP
    >>> best = found.table(['sigma < 0.05'], sort='sigma', limit=100)  # doctest: +SKIP
    >>> for row, atoms in found.structures(best):  # doctest: +SKIP
    ...     print(row['id'], atoms.cell.volume)
    """

    def __init__(self, out: str | Path):
        self.store = Store(out)
        self.plan = self.store.plan()
        self.packs = sorted(self.store.done())

    def __repr__(self) -> str:
        return f'Results({str(self.store.out)!r}, {len(self):,} structures)'

    def __len__(self) -> int:
        return sum(map(self.plan.size, self.packs))

    @cached_property
    def _data(self) -> Any:
        pa = need_pyarrow()
        if not self.packs:
            raise ConfigError(f'{self.store.out}: holds no finished pack yet')
        files = [str(self.store.path(pack)) for pack in self.packs]
        # Columns may be empty in some packs, or have been added by a later version.
        schemas = [_schema(file) for file in files]
        # A pack in which all structures are quarantined says nothing of these types.
        places = pa.list_(pa.float64())
        known = pa.schema([('atoms', pa.string()), ('initial_positions', places)])
        schema = pa.unify_schemas([*schemas, known], promote_options='permissive')
        checked = pa.dataset.ParquetFragmentScanOptions(page_checksum_verification=True)
        form = pa.dataset.ParquetFileFormat(default_fragment_scan_options=checked)
        return pa.dataset.dataset(files, schema=schema, format=form)

    @property
    def columns(self) -> list[str]:
        """Names of all columns."""
        return self._data.schema.names

    @cached_property
    def n_quarantined(self) -> int:
        """How many could not be read or relaxed."""
        if not self.packs:
            return 0
        return len(self._read(['position'], ~need_pyarrow().compute.field('ok')))

    def quarantine(self) -> dict[str, int]:
        """How many structures are quarantined for each reason, the commonest first.

        Numbers in the reasons are left out, so that those of one kind count together.
        """
        if not self.n_quarantined:
            return {}
        found = self.table(quarantined=True, columns=['problem'])['problem'].to_pylist()
        return dict(Counter(NUMBER.sub('#', text) for text in found).most_common())

    def table(
        self,
        where: str | Sequence[str] = (),
        *,
        sort: str = 'position',
        descending: bool = False,
        limit: int | None = None,
        quarantined: bool = False,
        columns: Sequence[str] | None = None,
    ) -> Any:
        """Rows without structures, as a ``pyarrow.Table``.

        Parameters
        ----------
        where : str or list of str
            One condition, or several that all hold: a column, ``< <= > >= = !=``, and a
            number, true, false, text or nothing, as in ``'sigma < 0.05'``,
            ``'kind = layer'`` or ``'ood ='``.
        sort : str
            A column; default the order of the source.
        descending : bool
            From the largest; default False.
        limit : int, optional
            At most so many rows; default all.
        quarantined : bool
            Those that could not be read or relaxed, in place of the others.
        columns : list of str, optional
            Default all but those that hold structures.

        Raises
        ------
        ConfigError
            A condition cannot be understood, or a column is not there.
        """
        pc = need_pyarrow().compute
        there = self._data.schema.names
        wanted = list(columns or [name for name in there if name not in STRUCTURE])
        for name in wanted:
            self._check(name, structures=True)
        self._check(sort)
        chosen = ~pc.field('ok') if quarantined else pc.field('ok')
        for text in [where] if isinstance(where, str) else where:
            chosen &= self._condition(text)
        keys = list(dict.fromkeys(['position', sort]))
        index = self._read(keys, chosen)
        order = [(sort, 'descending' if descending else 'ascending')]
        order += [] if sort == 'position' else [('position', 'ascending')]
        index = index.sort_by(order)
        if limit is not None:
            index = index.slice(0, limit)
        return self._rows(index['position'].to_pylist(), wanted)

    def structures(self, table: Any) -> Iterator[tuple[dict[str, Any], Atoms]]:
        """The rows of a table in its order, each with its relaxed structure.

        Parameters
        ----------
        table : pyarrow.Table
            Of `table`, with the column ``position``, without quarantined rows.

        Yields
        ------
        row : dict
        atoms : ase.Atoms
        """
        for start in range(0, len(table), CHUNK):
            part = table.slice(start, CHUNK)
            texts = self._rows(part['position'].to_pylist(), ['atoms'])['atoms']
            for row, text in zip(part.to_pylist(), texts, strict=True):
                yield row, decode_atoms(text.as_py())

    def initial(self, position: int, atoms: Atoms) -> Atoms:
        """The unrelaxed structure of a row, made from its relaxed one."""
        rows = self._rows([position], ['initial_cell', 'initial_positions']).to_pylist()
        before = atoms.copy()
        cell = [rows[0]['initial_cell'][k : k + 3] for k in (0, 3, 6)]
        before.set_cell(cell, apply_constraint=False)
        found = rows[0]['initial_positions']
        places = [found[k : k + 3] for k in range(0, len(found), 3)]
        before.set_positions(places, apply_constraint=False)
        return before

    def _read(self, columns: Sequence[str], chosen: Any) -> Any:
        """Columns of the rows that are chosen, or ``ConfigError`` that names a bad pack."""
        pa = need_pyarrow()
        try:
            return self._data.to_table(columns=list(columns), filter=chosen)
        except (OSError, pa.ArrowInvalid) as error:
            if is_of_system(error):
                raise
            for fragment in self._data.get_fragments():
                try:
                    fragment.to_table(schema=self._data.schema)
                except (OSError, pa.ArrowInvalid) as bad:
                    raise _damaged(fragment.path, bad) from bad
            raise

    def _rows(self, positions: Sequence[int], columns: Sequence[str]) -> Any:
        """Columns of the rows at these positions, in this order."""
        pa = need_pyarrow()
        wanted = pa.array(positions, pa.int64())
        names = list(dict.fromkeys(['position', *columns]))
        found = self._read(names, pa.compute.field('position').isin(wanted))
        places = pa.compute.index_in(wanted, found['position'].combine_chunks())
        return found.take(places).select(list(columns))

    def _condition(self, text: str) -> Any:
        pa = need_pyarrow()
        match = CONDITION.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"{text!r} is no condition; write COLUMN < NUMBER, as in 'sigma < 0.05' "
                "(with < <= > >= = !=), or COLUMN = TEXT, as in 'kind = layer'"
            )
        name, operator, value = match.groups()
        if SECOND.search(value):
            raise ConfigError(
                f'{text!r} holds two conditions; give each one by itself, those of a '
                'command each with its own --where'
            )
        kind = self._check(name)
        try:
            if pa.types.is_boolean(kind):
                scalar: Any = {'true': True, 'false': False}[value.lower()]
            elif pa.types.is_string(kind):
                scalar = value.strip('\'"')
            else:
                scalar = float(value)
        except (KeyError, ValueError):
            raise ConfigError(
                f'{text!r}: the column {name} holds {kind}, which {value!r} is not'
            ) from None
        return getattr(pa.compute, OPERATORS[operator])(pa.compute.field(name), scalar)

    def _check(self, name: str, *, structures: bool = False) -> Any:
        """The type of a column, or ``ConfigError`` that names those that are there.

        ``structures`` says whether one that holds structures, which have no order, will do.
        """
        schema = self._data.schema
        plain = [x for x in schema.names if x not in STRUCTURE]
        if name not in (schema.names if structures else plain):
            raise ConfigError(f'there is no column {name!r}; there are: {", ".join(plain)}')
        return schema.field(name).type


def _schema(file: str) -> Any:
    """The columns of a pack, or ``ConfigError`` where it is damaged."""
    pa = need_pyarrow()
    try:
        return pa.parquet.read_schema(file)
    except (OSError, pa.ArrowInvalid) as error:
        if is_of_system(error):
            raise
        raise _damaged(file, error) from error


def _damaged(file: str, error: Exception) -> ConfigError:
    return ConfigError(
        f'{file}: damaged ({error}); delete it, and give the command of the screen '
        'again, which makes it anew'
    )
