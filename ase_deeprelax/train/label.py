"""More pairs, made here: structures relaxed by a potential, many at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
from ase import Atoms

from ase_deeprelax.calculators.registry import potential_name
from ase_deeprelax.data.pair import Pair, make_pair
from ase_deeprelax.data.pairs import pair_record, spread
from ase_deeprelax.errors import ConfigError, DeepRelaxError
from ase_deeprelax.journal import Journal, check_settings
from ase_deeprelax.optimize.elastic_bfgs import ElasticBFGS
from ase_deeprelax.optimize.guide import pull_of, strength_for
from ase_deeprelax.optimize.many import RAISED, Outcome, relax_batched
from ase_deeprelax.predict import Predictor
from ase_deeprelax.predict.edg_calculator import EDGCalculator
from ase_deeprelax.predict.structure_checks import volume_ratio
from ase_deeprelax.result import Relaxation
from ase_deeprelax.train.inputs import KINDS, Kind, Series, Structures

log = logging.getLogger(__name__)

# Inputs that are made, and predicted, together.
CHUNK = 64
# A relaxation that goes farther has left its prototype: the pair would teach chance.
MAX_DISPLACEMENT = 1.5
VOLUME_RATIOS = (0.5, 2.0)
# A crystal with a smaller share of the usual volume of its elements has fallen into a hole
# of the potential; those of the Materials Project have at least 0.68.
SMALLEST_VOLUME_RATIO = 0.6
# So many pairs of a series are compared with the inputs that they should come from.
COMPARED = 10
# Atoms that are nearer than this, A, are at the same place, but for rounding.
SAME_PLACE = 1e-4
# A potential that fails for so many inputs one after the other is broken, not they.
BROKEN = 50


def label(
    out: str | Path,
    inputs: Series | Structures,
    potential: Callable,
    *,
    count: int | None = None,
    start: str | Path | None = 'default',
    guided: bool = False,
    fmax: float = 0.05,
    steps: int | None = None,
    batch_atoms: int = 160,
    name: str = 'potential',
) -> dict[str, int]:
    """Relax structures with a potential and append the pairs to a file.

    A run that was interrupted goes on where it stopped. The relaxation starts at the
    prediction of a model where that passes its checks, which saves half of the steps; the
    pair is from the input as it is to the potential's minimum, or, guided, to that of
    potential and prediction together. A structure that cannot be relaxed is listed as
    failed and ends nothing but itself.

    Parameters
    ----------
    out : path
        ``.jsonl`` file of pairs (`read_pairs` takes it). Inputs that failed go, with the
        reason, to ``out`` with the suffix ``.failed.jsonl``; they are tried again once
        their lines are taken out of it.
    inputs : Series or Structures
        The numbered series of unrelaxed structures; it says what may move. Several series
        may go to one file.
    potential : callable
        See `calculators.batched.batch_potential`.
    count : int, optional
        How many of the series, those that fail included; default all that it has (a
        `Series` never ends).
    start : str, path or None
        Model whose predictions relaxations start at, default 'default'; None starts at the
        input, and so does a model whose card does not say that it has learned this kind.
    guided : bool
        Relax under the potential and the prediction of ``start`` at once, see
        `optimize.guide`; default False. A structure that the model refuses has failed.
    fmax : float, eV/A
        Limit of the forces on atoms and cell, default 0.05.
    steps : int, optional
        Limit of each relaxation, default that of the `Kind`.
    batch_atoms : int
        Atoms that go through the potential together, default 160.
    name : str
        Of the potential; it is kept with each pair, and a series goes on with the same one.
        As `get_calculator` takes it, where relaxations are guided.

    Returns
    -------
    dict of str to int
        How many inputs of the series became ``pairs`` and how many ``failed``, over all
        runs into this file.

    Raises
    ------
    ConfigError
        ``out`` holds something else, or a series of this name with another potential,
        ``fmax``, kind or guide, or from other structures; or another process is writing to
        it; or a guided relaxation has no model that has learned the kind.
    DeepRelaxError
        The potential fails for every input.
    """
    if not callable(potential):
        raise ConfigError(
            f'potential is {potential!r:.60}, which is no batch potential; make one of a '
            'calculator by calculators.batched.batch_potential'
        )
    out, kind = Path(out), KINDS[inputs.kind]
    aside = out.with_suffix('.failed.jsonl')
    predictions = Predictions(start, kind, name, guided=guided)
    settings = {'potential': name, 'fmax': fmax, 'kind': inputs.kind}
    settings['guided'] = predictions.guide
    former = settings | {'guided': ''}  # what files of former versions do not say
    with Journal(out, key_of=_key) as good, Journal(aside, key_of=_key) as bad:
        pairs, failed = _done(good, inputs.name), _done(bad, inputs.name)
        for path, journal, done in ((out, good, pairs), (aside, bad, failed)):
            for k in done:
                known = journal[inputs.name, k]
                before = {x: known.get(x, former[x]) for x in settings}
                check_settings(path, before, settings)
        # Given structures are at hand, those of a series have to be made.
        most = None if isinstance(inputs, Structures) else COMPARED
        for k in spread(sorted(pairs), most):
            _check_same(out, inputs, good[inputs.name, k])
        if isinstance(inputs, Structures):
            numbers = range(len(inputs))[:count]
        else:
            numbers = range(cast('int', count))
        todo = [k for k in numbers if k not in pairs and k not in failed]

        def fail(k: int, problem: str) -> None:
            record = {'series': inputs.name, 'k': k, 'problem': problem}
            bad.add((inputs.name, k), record | settings)
            failed.add(k)

        ends = relax_batched(
            predictions.starts(_taken(inputs, todo, fail), fail),
            potential,
            optimizer=ElasticBFGS,
            relax_cell=kind.relax_cell,
            fmax=fmax,
            steps=kind.steps if steps is None else steps,
            batch_atoms=batch_atoms,
            guide=predictions.pull if guided else None,
        )
        raised = 0
        for key, outcome in ends:
            k, parent, atoms = cast('tuple[int, str, Atoms]', key)
            raised = raised + 1 if outcome.reason.startswith(RAISED) else 0
            if raised == BROKEN:
                raise DeepRelaxError(
                    f'the potential failed for {BROKEN} inputs one after the other, the '
                    f'last time with: {outcome.reason}. Mend it, take their lines out of '
                    f'{aside}, and start again'
                )
            pair, problem = _pair(f'{parent}-{inputs.name}-{k}', atoms, outcome, inputs)
            if pair is None:
                fail(k, problem)
                continue
            energy = outcome.atoms.get_potential_energy() / len(atoms)
            record = pair_record(pair) | {'series': inputs.name, 'k': k}
            # In files of labels the number of calls has always had this name.
            record |= {'parent': parent, 'steps': outcome.calls}
            record |= {'energy_per_atom': energy, **settings}
            good.add((inputs.name, k), record)
            pairs.add(k)
    return {'pairs': len(pairs), 'failed': len(failed)}


def _key(record: Any) -> tuple[str, int]:
    return record['series'], record['k']


def _done(journal: Journal, series: str) -> set[int]:
    """The inputs of a series that a file has."""
    return {k for name, k in journal if name == series}


def _check_same(out: Path, inputs: Series | Structures, known: dict[str, Any]) -> None:
    """Refuse a file whose pair ``known`` comes from another input than this series has."""
    try:
        _, atoms, _ = inputs[known['k']]
    except IndexError:  # there were more of them
        atoms = None
    if atoms is None or not _is_input(atoms, known):
        raise ConfigError(
            f'{out} holds pairs of {inputs.name!r} that were made from other structures; '
            'go on with these, or choose another seed, another name or another place'
        )


def _is_input(atoms: Atoms, known: dict[str, Any]) -> bool:
    """Whether a structure is the input of a pair, but for rounding and periodic images."""
    cell = atoms.cell.array
    same_numbers = np.array_equal(atoms.numbers, known['numbers'])
    if not (same_numbers and np.allclose(cell, known['cell0'], atol=1e-6)):
        return False
    shift = np.linalg.solve(cell.T, atoms.positions.T).T - known['frac0']
    return bool(np.abs((shift - shift.round()) @ cell).max() < SAME_PLACE)


def _taken(
    inputs: Series | Structures, todo: Sequence[int], fail: Callable
) -> Iterator[tuple[int, str, Atoms]]:
    """The structures to relax, as (k, parent, atoms)."""
    for position, k in enumerate(todo):
        if position % CHUNK == 0:
            log.info('%d of %d inputs taken', position, len(todo))
        try:
            parent, atoms, problem = inputs[k]
        except Exception as error:  # noqa: BLE001 - of the tools that make structures
            fail(k, f'cannot be made: {type(error).__name__}: {error}')
            continue
        if atoms is None:
            fail(k, problem)
        else:
            yield k, parent, atoms


class Predictions:
    """The predictions at which relaxations start, and which pull guided relaxations.

    Parameters
    ----------
    start : str, path or None
        The model; with None, relaxations start at the inputs.
    kind : Kind
        Of the structures. A model that was not trained on it is not asked.
    potential : str
        Its name, see `label`.
    guided : bool
        Whether the predictions pull.

    Attributes
    ----------
    guide : str
        The model that guides, and the beginning of its hash; '' where none does.
    """

    def __init__(
        self, start: str | Path | None, kind: Kind, potential: str, *, guided: bool
    ):
        self.predictor = None if start is None else Predictor(start)
        self.kind, self.potential = kind, potential
        self._waiting: dict[int, Relaxation] = {}  # those whose relaxation has not started
        self._strengths: dict[str, float] = {}
        self.guide = ''
        if self.predictor is None:
            if guided:
                raise ConfigError('a guided relaxation needs a model to start at, not None')
            return
        # Models that say nothing of it have learned from bulk crystals.
        missing = ', '.join(sorted(kind.needs - set(self.predictor.card.learned)))
        if missing and guided:
            raise ConfigError(
                f'the model {start} was not trained on: {missing}; it cannot guide these '
                'relaxations'
            )
        if guided:
            self.guide = f'{self.predictor.name} {self.predictor.sha256[:8]}'
        elif missing:
            log.info(
                'the model %s was not trained on: %s; relaxations start at the inputs',
                start,
                missing,
            )
            self.predictor = None

    def starts(
        self, taken: Iterator[tuple[int, str, Atoms]], fail: Callable
    ) -> Iterator[tuple[Any, Atoms]]:
        """Yield the structure at which each relaxation starts, and its key."""
        for chunk in iter(lambda: list(islice(taken, CHUNK)), []):
            structures = [atoms for *_, atoms in chunk]
            if self.predictor is None:
                yield from zip(chunk, structures, strict=True)
                continue
            results = self.predictor.relax(structures, relax_cell=self.kind.relax_cell)
            for key, result in zip(chunk, results, strict=True):
                if not self.guide:
                    yield key, result.atoms  # a refused prediction gives the input back
                elif result.ok:
                    self._waiting[key[0]] = result
                    yield key, result.atoms
                else:
                    fail(key[0], f'no prediction guides it: {result.problem}')

    def pull(self, key: Any) -> EDGCalculator:
        """Return the calculator that pulls a structure to its prediction, once for each."""
        result, predictor = self._waiting.pop(key[0]), cast('Predictor', self.predictor)
        if result.kind not in self._strengths:
            name = potential_name(self.potential)
            calibration = predictor.model.calibration
            self._strengths[result.kind] = strength_for(name, result.kind, calibration)
        return pull_of(result, self._strengths[result.kind])


def _pair(
    id: str, atoms: Atoms, outcome: Outcome, inputs: Series | Structures
) -> tuple[Pair | None, str]:
    """The pair, or None and why it is not one."""
    if not outcome.converged:
        return None, outcome.reason
    held = KINDS[inputs.kind].relax_cell is False
    # Symmetry often leaves nothing to relax where the cell is fixed.
    if held and np.array_equal(outcome.atoms.positions, atoms.positions):
        return None, 'nothing moves: the input is at its minimum'
    try:
        scale = 1.0
        if KINDS[inputs.kind].volume_known:
            scale = (outcome.atoms.cell.volume / atoms.cell.volume) ** (1 / 3)
        pair = make_pair(
            id,
            atoms,
            outcome.atoms,
            split='train',
            scale=scale,
            fixed_cell=held,
            kind=inputs.kind,
        )
        problem = _strayed(pair)
    except DeepRelaxError as error:
        return None, f'not a pair: {error}'
    return (None, problem) if problem else (pair, '')


def _strayed(pair: Pair) -> str:
    """Why a relaxation did not end at a minimum near its input, or ''."""
    ratio = np.linalg.det(pair.cell1) / np.linalg.det(pair.cell0)
    if not VOLUME_RATIOS[0] < ratio < VOLUME_RATIOS[1]:
        return f'volume {ratio:.3g} times that of the input'
    share = volume_ratio(pair.relaxed, None)  # of a layer: with its vacuum
    if share < SMALLEST_VOLUME_RATIO:
        return f'collapsed: {share:.2g} times the usual volume of its elements'
    _, displacement = pair.targets()
    largest = np.linalg.norm(displacement, axis=1).max()
    if largest > MAX_DISPLACEMENT:
        return f'an atom moved by {largest:.2f} A'
    return ''
