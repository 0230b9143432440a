"""The work of ``deeprelax relax --refine``: one structure after another, stage by stage."""

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from time import perf_counter

import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from tqdm.auto import tqdm

from ase_deeprelax import __version__, keys
from ase_deeprelax.compare.results_cache import ResultsCache
from ase_deeprelax.errors import DeepRelaxError, DeepRelaxWarning
from ase_deeprelax.optimize.optimizer import DeepRelaxOptimizer
from ase_deeprelax.optimize.target import find_target

# A line per stage, in the info of what is written.
STAGES = f'{keys.PREFIX}stages'
# What an answer says besides the structure.
SAID = ('energy', 'fmax', 'seconds', 'way', 'stages')
PROPERTIES = ('energy', 'forces', 'stress')


@dataclass(frozen=True)
class Refiner:
    """From a structure to its refined one.

    Parameters
    ----------
    stages : list of Stage
        With calculators that are made.
    optimizer : callable
        Class of an ASE optimizer.
    fmax : float, eV/A
    how : dict
        ``model, symmetry, device, relax_cell``, as `DeepRelaxOptimizer` takes them.
    asked : list
        What else tells an answer from others.
    """

    stages: list
    optimizer: Callable
    fmax: float
    how: dict
    _: KW_ONLY
    asked: list

    def key(self, name, atoms):
        """By what an answer is known: a file may have changed, and what is asked for."""
        held = [constraint.todict() for constraint in atoms.constraints]
        asked = self.asked, self.how['relax_cell']
        digest = hashlib.sha256(repr((__version__, asked, held)).encode())
        for part in (atoms.numbers, atoms.pbc, atoms.cell.array, atoms.positions):
            digest.update(part.tobytes())
        return name, digest.hexdigest()

    def refine(self, atoms):
        """The answer for one structure, ready for JSON.

        Parameters
        ----------
        atoms : ase.Atoms
            Not changed.

        Returns
        -------
        dict
            ``problem``: why there is no structure, or ''; ``problems`` [text]: that, stages
            that failed, no convergence; ``stages``: dictionaries as of `StageRecord`,
            ``lines`` the same in words, ``way`` in few; ``energy`` (eV), ``fmax`` (eV/A) of
            the last stage that knew them, or None; ``seconds``; ``cell, positions``;
            ``info``: names of `keys`; ``sigma``: of the atoms, or None; ``results``:
            energy, forces and stress, as far as they are known.
        """
        begun, given, atoms, problem = perf_counter(), atoms, atoms.copy(), ''
        optimizer = DeepRelaxOptimizer(
            atoms,
            logfile=None,
            refine=self.stages,
            optimizer=self.optimizer,
            **self.how,
        )
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeepRelaxWarning)  # the records tell
            try:
                optimizer.run(fmax=self.fmax)
            except DeepRelaxError as error:
                problem = str(error)
            except Exception as error:  # noqa: BLE001 - files hold anything
                problem = f'{type(error).__name__}: {error}'
        records = optimizer.stages
        if not problem and atoms == given and not any(r.converged for r in records):
            problem = '; '.join(_problems(records))
        if not problem and keys.KIND not in atoms.info:  # nothing had to be moved
            atoms.info[keys.KIND] = find_target(atoms, self.how['relax_cell']).kind
        known = [record for record in records if record.energy_after is not None]
        info = {k: v for k, v in atoms.info.items() if k.startswith(keys.PREFIX)}
        sigma = atoms.arrays.get(keys.SIGMA)
        return {
            'problem': problem,
            'problems': [problem] if problem else list(_problems(records)),
            'stages': [record.to_dict() for record in records],
            'lines': [' '.join(str(record).split()) for record in records],
            'way': ' > '.join(map(_few_words, records)),
            'energy': known[-1].energy_after if known else None,
            'fmax': known[-1].fmax if known else None,
            'seconds': perf_counter() - begun,
            'cell': atoms.cell.tolist(),
            'positions': atoms.positions.tolist(),
            'info': {name: np.asarray(value).tolist() for name, value in info.items()},
            'sigma': None if sigma is None else sigma.tolist(),
            'results': _results(atoms),
        }


def refine_all(frames, refiner, out, *, progress=False):
    """Answers in order, each as soon as it is there.

    They are kept in `part_file`, so that the same command goes on after it was stopped.

    Parameters
    ----------
    frames : list of (str, ase.Atoms)
    refiner : Refiner
    out : Path
    progress : bool
        Show a bar; default False.

    Yields
    ------
    dict
        As of `Refiner.refine`.
    """
    with ResultsCache(part_file(out)) as cache:
        for name, atoms in tqdm(frames, 'refine', disable=not progress, unit='structures'):
            key = refiner.key(name, atoms)
            if key not in cache:
                cache.add(key, refiner.refine(atoms))
            yield cache[key]


def part_file(out):
    """Where finished answers are kept until all are written."""
    return out.with_name(f'{out.name}.part.jsonl')


def put(answer, initial):
    """The refined structure, with numbers in place of a calculator.

    Parameters
    ----------
    answer : dict
        Of `Refiner.refine`.
    initial : ase.Atoms
        What was refined; not changed.

    Returns
    -------
    ase.Atoms
    """
    atoms = initial.copy()
    keys.strip(atoms)
    atoms.set_cell(answer['cell'], apply_constraint=False)
    atoms.set_positions(answer['positions'], apply_constraint=False)
    for name, value in answer['info'].items():
        atoms.info[name] = np.array(value) if isinstance(value, list) else value
    atoms.info[STAGES] = '; '.join(answer['lines'])
    if answer['sigma'] is not None:
        atoms.arrays[keys.SIGMA] = np.array(answer['sigma'])
    if answer['results']:
        atoms.calc = SinglePointCalculator(atoms, **answer['results'])
    return atoms


def _problems(records):
    """Stages that failed, and a last one that did not converge."""
    refined = [r for r in records if r.name != 'prediction' and r.status != 'skipped']
    for record in refined:
        if record.status == 'failed':
            yield f'{record.name} failed and was rolled back: {record.reason}'
    if refined and refined[-1].status in ('not converged', 'running'):
        yield f'{refined[-1].name} did not converge: {refined[-1].reason}'


def _few_words(record):
    """Such as ``chgnet 12`` for a stage that converged in twelve steps."""
    if not record.converged:
        return f'{record.name} {record.status}'
    return record.name if record.name == 'prediction' else f'{record.name} {record.steps}'


def _results(atoms):
    """What the last calculator said of this very structure; it is not asked again."""
    calculator = atoms.calc
    if calculator is None or calculator.calculation_required(atoms, ['energy', 'forces']):
        return {}
    said = calculator.results
    return {name: np.asarray(said[name]).tolist() for name in PROPERTIES if name in said}
