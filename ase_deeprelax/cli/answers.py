"""Answers of ``deeprelax relax``: one by one, kept until all are written."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Generator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from tqdm import tqdm

from ase_deeprelax import __version__, keys
from ase_deeprelax.calculators.registry import get_calculator, potential_name
from ase_deeprelax.journal import Journal
from ase_deeprelax.predict import Predictor
from ase_deeprelax.result import Relaxation

# A line per stage, in the info of what is written.
STAGES = f'{keys.PREFIX}stages'
# So many structures go through the network before their answers are kept.
BATCH = 500


class Worker(Protocol):
    """Maker of answers: the same settings give the same answers.

    Attributes
    ----------
    settings : list
        All that answers depend on beside the structures, ready for JSON.
    batch : int
        How many structures it takes at a time.
    """

    settings: list[Any]
    batch: int

    def answer(self, structures: list[Atoms]) -> list[dict[str, Any]]:
        """An answer, ready for JSON, for each structure; see `OneShot.answer`."""
        ...


@dataclass(frozen=True)
class OneShot:
    """Answers of a network alone.

    Parameters
    ----------
    predictor : Predictor
    relax_cell : bool, str, list or None
    verify : str or None
        A potential that is called once for each prediction. It is made, and its error
        looked up, before there is any.
    workers : int
        Processes that share the predictions; default 1.

    Raises
    ------
    ConfigError
        The error of the potential is not known.
    MissingDependencyError, ModelError
        See `get_calculator`.
    """

    predictor: Predictor
    relax_cell: Any
    verify: str | None = None
    workers: int = 1
    batch: int = BATCH
    _potential: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.verify is not None:
            from ase_deeprelax.optimize.verify import known_error

            known_error(self._name, self.predictor.model.calibration)
            potential = get_calculator(self.verify, device=str(self.predictor.device))
            object.__setattr__(self, '_potential', potential)

    @property
    def settings(self) -> list[Any]:
        """Model and freedom."""
        predictor = self.predictor
        settings = [predictor.sha256, str(predictor.symmetry), self.relax_cell]
        return [*settings, predictor.accept_below, self.verify]

    def answer(self, structures: list[Atoms]) -> list[dict[str, Any]]:
        """Predictions.

        Returns
        -------
        list of dict
            ``problem``: why there is no structure, or ''; ``problems``: all that the user
            has to know; ``seconds``; ``cell, positions``; ``info``: names of `keys`;
            ``results``: energy, forces, stress, as far as they are known; ``lines``: one
            per stage.
        """
        with warnings.catch_warnings():
            # The table tells it for each structure.
            warnings.filterwarnings('ignore', '.*outside the training range')
            results = self.predictor.relax(
                structures, relax_cell=self.relax_cell, workers=self.workers
            )
        if self._potential is not None:
            for result in results:
                if result.ok:
                    result.atoms.info[keys.VERIFIED] = self._verified(result.atoms)
        return [self._record(result) for result in results]

    @property
    def _name(self) -> str:
        """The name of the potential in the calibration."""
        return potential_name(str(self.verify))

    def _verified(self, atoms: Atoms) -> str:
        """The verdict of the potential on a prediction, or the error that it raised."""
        from ase_deeprelax.optimize.verify import failure, verify

        name, calibration = self._name, self.predictor.model.calibration
        try:
            return str(verify(atoms, self._potential, name, calibration, self.relax_cell))
        except Exception as error:  # noqa: BLE001 - potentials raise anything
            return failure(name, error)

    def _record(self, result: Relaxation) -> dict[str, Any]:
        return {
            'problem': result.problem,
            'problems': [result.problem] if result.problem else [],
            'seconds': sum(result.timings.values()),
            **structure_entries(result.atoms),
            'results': {},
            'lines': [],
        }


def structure_entries(atoms: Atoms) -> dict[str, Any]:
    """Entries of an answer that describe the relaxed structure, see `OneShot.answer`."""
    return {
        'cell': atoms.cell.tolist(),
        'positions': atoms.positions.tolist(),
        'info': {
            name: np.asarray(value).tolist() for name, value in keys.ours(atoms).items()
        },
    }


def answer_all(
    frames: list[tuple[str, Atoms]], worker: Worker, out: Path, *, progress: bool = False
) -> Generator[dict[str, Any]]:
    """Answers in order, each as soon as it is there.

    They are kept in `part_file`, so that the same command goes on after it was stopped, by
    whatever; a second command with the same output meets an error.

    Parameters
    ----------
    frames : list of (str, ase.Atoms)
    worker : Worker
    out : Path
    progress : bool
        Show a bar; default False.

    Yields
    ------
    dict
        As of `Worker.answer`.
    """
    if not frames:
        return
    with (
        Journal(part_file(out)) as journal,
        tqdm(
            total=len(frames), desc='relax', unit='structure', disable=not progress
        ) as bar,
    ):
        rest = iter(frames)
        while batch := list(islice(rest, worker.batch)):
            named = [answer_key(worker, name, atoms) for name, atoms in batch]
            todo = [k for k, key in enumerate(named) if key not in journal]
            if todo:
                answers = worker.answer([batch[k][1] for k in todo])
                for k, answer in zip(todo, answers, strict=True):
                    journal.add(named[k], answer)
            for key in named:
                bar.update()
                yield journal[key]


def answer_key(worker: Worker, name: str, atoms: Atoms) -> tuple[str, str]:
    """Key of an answer: another structure or other settings have another key."""
    held = [constraint.todict() for constraint in atoms.constraints]
    digest = hashlib.sha256(repr((__version__, worker.settings, held)).encode())
    # A calculator starts from the moments and charges.
    own = atoms.get_initial_magnetic_moments(), atoms.get_initial_charges()
    for part in (atoms.numbers, atoms.pbc, atoms.cell.array, atoms.positions, *own):
        digest.update(part.tobytes())
    return name, digest.hexdigest()


def part_file(out: Path) -> Path:
    """File that keeps the finished answers until all are written.

    >>> str(part_file(Path('out/best.db'))), str(part_file(Path('.')))
    ('out/best.db.part.jsonl', 'relaxed.part.jsonl')
    """
    if out.name in ('', '..'):  # a folder that has no name here, and none beside it
        return out / 'relaxed.part.jsonl'
    return out.with_name(f'{out.name}.part.jsonl')


def relaxed_atoms(answer: dict[str, Any], initial: Atoms) -> Atoms:
    """The relaxed structure, with numbers in place of a calculator.

    Parameters
    ----------
    answer : dict
        As of `Worker.answer`.
    initial : ase.Atoms
        The input; not changed.
    """
    atoms = initial.copy()
    keys.strip(atoms)
    atoms.set_cell(answer['cell'], apply_constraint=False)
    atoms.set_positions(answer['positions'], apply_constraint=False)
    for name, value in answer['info'].items():
        atoms.info[name] = np.array(value) if isinstance(value, list) else value
    keys.arrays_from_info(atoms)
    if answer['lines']:
        atoms.info[STAGES] = '; '.join(answer['lines'])
    if answer['results']:
        atoms.calc = SinglePointCalculator(atoms, **answer['results'])
    return atoms
