"""A part of a screen, relaxed on with a potential, many structures at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from ase_deeprelax import keys
from ase_deeprelax.journal import Journal
from ase_deeprelax.optimize.elastic_bfgs import ElasticBFGS
from ase_deeprelax.optimize.many import relax_batched
from ase_deeprelax.result import decode_atoms, encode_atoms
from ase_deeprelax.screening.results import Results


def refine(
    results: Results,
    table: Any,
    potential: Callable,
    journal: str | Path,
    *,
    name: str = 'potential',
    fmax: float = 0.05,
    steps: int = 500,
) -> Iterator[tuple[str, Atoms, str]]:
    """Relax the structures of a table from their predictions to the potential's minimum.

    The same part of their cells relaxes as in the screen.

    Parameters
    ----------
    results : Results
    table : pyarrow.Table
        Rows of ``results.table``, with the column ``kind``.
    potential : callable
        See `calculators.batched.batch_potential`.
    journal : str or Path
        Keeps what is finished, a line of JSON each; the same call goes on after a stop. It
        belongs to this screen and these settings; others are refused by ``ConfigError``.
    name : str
        Of the potential, for ``info['deeprelax_stage']`` and the journal.
    fmax, steps
        Limits, 0.05 eV/A and 500 by default.

    Yields
    ------
    id : str
    atoms : ase.Atoms
        With energy and forces of the potential, in the order of the table.
    problem : str
        Why it did not converge, or ''.

    Examples
    --------
    >>> from ase_deeprelax.calculators.batched import batch_potential
    >>> tail = found.table(sort='sigma', descending=True, limit=500)  # doctest: +SKIP
    >>> ends = refine(found, tail, batch_potential(calc), 'tail.jsonl')  # doctest: +SKIP
    """
    manifest = results.store.manifest()
    screen, source = manifest['settings'], manifest['sha256']
    settings = {'potential': name, 'fmax': fmax, 'steps': steps}
    settings |= {'screen': screen, 'source': source}
    asked = screen.get('relax_cell')
    free = True if asked is None else asked
    with Journal(journal, settings) as kept:
        held = {
            # 'held' in screens of version 0.2.
            row['id']: row['kind'].endswith(('cell fixed', 'cell held'))
            for row in table.select(['id', 'kind']).to_pylist()
        }
        todo = (
            (row['id'], atoms)
            for row, atoms in results.structures(table)
            if (row['id'],) not in kept
        )
        ends = relax_batched(
            todo,
            potential,
            optimizer=ElasticBFGS,
            relax_cell=lambda id: False if held[str(id)] else free,
            fmax=fmax,
            steps=steps,
        )
        for id, end in ends:
            known = {} if end.atoms.calc is None else end.atoms.calc.results
            record = {
                'atoms': encode_atoms(end.atoms),
                'problem': end.reason,
                'energy': known.get('energy'),
                'forces': None if 'forces' not in known else known['forces'].tolist(),
            }
            kept.add((str(id),), record)
        for id in held:
            record = kept[(id,)]
            yield id, _atoms(record, name), record['problem']


def _atoms(record: Mapping[str, Any], name: str) -> Atoms:
    atoms = decode_atoms(record['atoms'])
    atoms.info[keys.STAGE] = f'{name}, not converged' if record['problem'] else name
    known = {key: record[key] for key in ('energy', 'forces') if record[key] is not None}
    if known:
        atoms.calc = SinglePointCalculator(atoms, **known)
    return atoms
