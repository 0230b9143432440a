"""Phonons by finite displacements, of the same crystal relaxed in several ways.

`compare_phonons` gives a list, ready for JSON, that ``compare``'s result holds under
``phonons``: one entry per structure, calculator and ``kind``:

``structure, calculator``
    As in `savings`.
``kind``
    'predicted' (the one-shot answer alone), 'refined' (and then relaxed with the
    calculator), 'iterative' (relaxed with it from the unrelaxed structure).
``optimizer``
    Which one relaxed it, None for 'predicted'.
``ok, problem``
    Whether there are phonons, or why not; the keys below are then missing.
``fmax, supercell, n_supercell, shortest, capped, displacements, seconds``
    Largest force on an atom of the structure, eV/A; the supercell as (3, 3) integers, rows
    times the cell; its atoms; its shortest lattice vector, A; whether the cap on atoms
    made it shorter than asked for; how many displaced supercells; wall time, s.
``imaginary``
    {``threshold`` (THz, below minus which a frequency counts), ``n_modes, n, lowest``
    (modes, imaginary ones and lowest frequency, in THz and negative where imaginary, at
    the wave vectors that fit into the supercell, where force constants are exact),
    ``gamma`` {``n, lowest, frequencies``}}; always without the three translations, so that
    a crystal of one atom has no frequency at Gamma, and None for the lowest
``bands``
    {``path`` (such as 'GXWKGLUWLK,UX'), ``x`` [n], ``ticks`` [x], ``labels`` [text, one per
    tick], ``breaks`` [index of the first point after each comma in the path],
    ``frequencies`` [n][bands] in THz}. Wave vectors and ``x`` are those of the unrelaxed
    cell for all kinds of one structure.
``dos``
    {``frequencies`` THz, ``density`` states per THz and atom}; it integrates to 3.
``thermal``
    {``temperatures`` K, ``free_energy`` eV per atom, ``entropy`` and ``heat_capacity``
    J/(K mol of atoms), ``left_out`` (share of modes on the mesh that are imaginary or zero
    and so not counted)}.
"""

import hashlib
from pathlib import Path

from ase import Atoms

from ase_deeprelax.compare.cases import named_calculators
from ase_deeprelax.compare.phonon_calculation import load_phonopy, phonons
from ase_deeprelax.compare.results_cache import Journal
from ase_deeprelax.errors import ConfigError, DeepRelaxError

KINDS = ('predicted', 'refined', 'iterative')


def compare_phonons(
    result,
    calculators,
    *,
    optimizer=None,
    min_length=10.0,
    max_atoms=250,
    displacement=0.01,
    out=None,
    device='cpu',
    progress=False,
):
    """Phonons of every structure of a comparison as predicted, refined and relaxed.

    Parameters
    ----------
    result : dict
        Of `savings.compare`.
    calculators : list or mapping
        Those of the comparison, or some of them.
    optimizer : str, optional
        Whose relaxed structures; default the first of the comparison.
    min_length, max_atoms, displacement
        As in `harmonic.phonons`.
    out : str or Path, optional
        Folder for ``phonons.jsonl``; what stands there is not done again.
    device : str
        Where potentials by name run; default 'cpu'.
    progress : bool
        Show a bar; default False.

    Returns
    -------
    list of dict
        See the top of this module. What fails says why in ``problem``.

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

    load_phonopy()
    made, _ = named_calculators(calculators, device)
    used = result['settings']
    optimizer = optimizer or used['optimizers'][0]
    for name, known in ((optimizer, 'optimizers'), *((c, 'calculators') for c in made)):
        if name not in used[known]:
            raise ConfigError(f'the comparison has no {name!r}, only {list(used[known])}')
    settings = {
        'min_length': min_length,
        'max_atoms': max_atoms,
        'displacement': displacement,
    }
    journal = Journal(out and Path(out) / 'phonons.jsonl', settings)
    predictions = {row['structure']: row for row in result['predictions']}
    runs = {
        (row['structure'], row['calculator'], row['start']): row
        for row in result['runs']
        if row['optimizer'] == optimizer
    }
    rows = []
    for facts in tqdm(
        result['structures'], 'phonons', disable=not progress, unit='structures'
    ):
        for name, calculator in made.items():
            ends = (
                predictions[facts['id']],
                runs[facts['id'], name, 'prediction'],
                runs[facts['id'], name, 'unrelaxed'],
            )
            for kind, end in zip(KINDS, ends, strict=True):
                row = {
                    'structure': facts['id'],
                    'calculator': name,
                    'kind': kind,
                    'optimizer': None if kind == 'predicted' else optimizer,
                }
                problem = end.get('problem', end.get('reason'))
                if problem:
                    rows.append(row | {'ok': False, 'problem': problem})
                    continue
                atoms, initial = _atoms(facts, end), _atoms(facts, facts)
                key = (*map(str, row.values()), _digest(atoms, initial))
                if key not in journal:
                    figures = _figures(atoms, calculator, settings, initial)
                    journal.add(key, row | figures)
                rows.append(journal[key])
    return rows


def _figures(atoms, calculator, settings, initial):
    """What there is to say of one structure, good or bad."""
    try:
        found = phonons(atoms, calculator, initial=initial, **settings)
    except DeepRelaxError as error:
        return {'ok': False, 'problem': str(error)}
    except Exception as error:  # noqa: BLE001 - calculators and phonopy raise anything
        return {'ok': False, 'problem': f'{type(error).__name__}: {error}'}
    return {'ok': True, 'problem': ''} | found


def _digest(*structures):
    digest = hashlib.sha256()
    for atoms in structures:
        digest.update(atoms.cell.tobytes() + atoms.positions.tobytes())
    return digest.hexdigest()[:16]


def _atoms(facts, place):
    return Atoms(
        facts['numbers'], positions=place['positions'], cell=place['cell'], pbc=True
    )
