"""Phonons by finite displacements, of the same crystal relaxed in several ways."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ase import Atoms

from ase_deeprelax.compare.named_calculators import named_calculators
from ase_deeprelax.compare.phonon_calculation import load_phonopy, phonons
from ase_deeprelax.compare.schema import (
    Comparison,
    Geometry,
    PhononRow,
    PredictionRow,
    RunRow,
    StructureRow,
    check_version,
)
from ase_deeprelax.errors import ConfigError, reason_of
from ase_deeprelax.journal import Journal

KINDS = ('predicted', 'refined', 'iterative')


def compare_phonons(
    result: Comparison,
    calculators: Any,
    *,
    optimizer: str | None = None,
    min_length: float = 10.0,
    max_atoms: int = 250,
    displacement: float = 0.01,
    out: str | Path | None = None,
    device: str = 'cpu',
    progress: bool = False,
) -> list[PhononRow]:
    """Phonons of every structure of a comparison as predicted, refined and relaxed.

    Parameters
    ----------
    result : Comparison
        Of `savings.compare`.
    calculators : list or mapping, or a single one
        Those of the comparison, or some of them.
    optimizer : str, optional
        Whose relaxed structures; default the first of the comparison.
    min_length, max_atoms, displacement
        As in `phonon_calculation.phonons`.
    out : str or Path, optional
        Folder for ``phonons.jsonl``; what stands there is not done again.
    device : str
        Where potentials by name run; default 'cpu'.
    progress : bool
        Show a bar; default False.

    Returns
    -------
    list of PhononRow
        One for each structure, calculator and way of relaxing. ``problem`` holds the reason
        of a failure.

    Raises
    ------
    MissingDependencyError
        phonopy is not installed.
    ConfigError
        The comparison did not use such a calculator or optimizer; ``out`` was written with
        other settings.

    Examples
    --------
    >>> result = compare(structures, ['chgnet'])  # doctest: +SKIP
    >>> result['phonons'] = compare_phonons(result, ['chgnet'])  # doctest: +SKIP
    """
    from tqdm.auto import tqdm

    check_version(result)
    load_phonopy()
    made = named_calculators(calculators, device)
    used = result['settings']
    optimizer = optimizer or used['optimizers'][0]
    _check_known(optimizer, used['optimizers'])
    for name in made:
        _check_known(name, list(used['calculators']))
    settings = {
        'min_length': min_length,
        'max_atoms': max_atoms,
        'displacement': displacement,
    }
    predictions = {row['structure']: row for row in result['predictions']}
    runs = {
        (row['structure'], row['calculator'], row['start']): row
        for row in result['runs']
        if row['optimizer'] == optimizer
    }
    rows: list[PhononRow] = []
    path = None if out is None else Path(out) / 'phonons.jsonl'
    with Journal(path, settings) as journal:
        for given in tqdm(
            result['structures'], 'phonons', disable=not progress, unit='structures'
        ):
            for name, one in made.items():
                ends = (
                    predictions[given['id']],
                    runs[given['id'], name, 'prediction'],
                    runs[given['id'], name, 'unrelaxed'],
                )
                for kind, end in zip(KINDS, ends, strict=True):
                    row: PhononRow = {
                        'structure': given['id'],
                        'calculator': name,
                        'kind': kind,
                        'optimizer': None if kind == 'predicted' else optimizer,
                        'ok': False,
                        'problem': _problem(end),
                    }
                    if row['problem']:
                        rows.append(row)
                        continue
                    atoms, initial = _atoms(given, end), _atoms(given, given)
                    names = (given['id'], one.label, kind, str(row['optimizer']))
                    key = (*names, _digest(atoms, initial))
                    make = partial(
                        _add_phonons, row, atoms, one.calculator, settings, initial
                    )
                    rows.append(journal.once(key, make))
    return rows


def _check_known(name: str, known: list[str]) -> None:
    if name not in known:
        raise ConfigError(f'the comparison has no {name!r}, only {known}')


def _problem(end: PredictionRow | RunRow) -> str:
    """Why there is no relaxed structure, or ''."""
    return end.get('problem', '') or end.get('reason', '')


def _add_phonons(
    row: PhononRow,
    atoms: Atoms,
    calculator: Any,
    settings: Mapping[str, Any],
    initial: Atoms,
) -> PhononRow:
    """The row with phonons, or with the reason why there are none."""
    try:
        found = phonons(atoms, calculator, initial=initial, **settings)
    except Exception as error:  # noqa: BLE001 - calculators and phonopy raise anything
        return {**row, 'problem': reason_of(error)}
    return {**row, 'ok': True, **found}


def _digest(*structures: Atoms) -> str:
    digest = hashlib.sha256()
    for atoms in structures:
        digest.update(atoms.numbers.tobytes())
        digest.update(atoms.cell.array.tobytes() + atoms.positions.tobytes())
        digest.update(atoms.pbc.tobytes())
        for name in ('initial_magmoms', 'masses'):
            if atoms.has(name):
                digest.update(name.encode() + atoms.arrays[name].tobytes())
    return digest.hexdigest()[:16]


def _atoms(given: StructureRow, place: Geometry) -> Atoms:
    return Atoms(
        given['numbers'],
        positions=place['positions'],
        cell=place['cell'],
        pbc=given.get('pbc', True),
        magmoms=given.get('magmoms'),
        masses=given.get('masses'),
    )
