"""More pairs, made here: structures relaxed by a potential, many at a time."""

import json
import logging
from itertools import islice
from pathlib import Path

import numpy as np

from ase_deeprelax.data.pair import make_pair
from ase_deeprelax.data.pairs import pair_record
from ase_deeprelax.errors import PairFileError
from ase_deeprelax.potentials.batched import relax_batched
from ase_deeprelax.predict import Predictor
from ase_deeprelax.refine.elastic import ElasticBFGS

log = logging.getLogger(__name__)

# Inputs that are made, and predicted, together.
CHUNK = 64
# A relaxation that goes farther has left its prototype: the pair would teach chance.
MAX_DISPLACEMENT = 1.5
VOLUME_RATIOS = (0.5, 2.0)


def label(
    out,
    inputs,
    potential,
    *,
    count=None,
    start='default',
    fmax=0.05,
    steps=45,
    batch_atoms=160,
):
    """Relax structures with a potential and append the pairs to a file.

    A run that was interrupted goes on where it stopped. The relaxation starts at the
    prediction of a model where that passes its checks, which saves half of the steps; the
    pair is from the input as it is to the potential's minimum.

    Parameters
    ----------
    out : path
        ``.jsonl`` file of pairs (`read_pairs` takes it). Inputs that came to nothing go,
        with the reason, to ``out`` with the suffix ``.failed.jsonl``.
    inputs : Substitutions or Structures
        The numbered series of unrelaxed structures. Several series may go to one file.
    potential : callable
        See `potentials.batched.batch_potential`.
    count : int, optional
        How many of the series, those that come to nothing included; default all that it
        has (`Substitutions` never end).
    start : str, path or None
        Model to start from, default 'default'; None starts at the input.
    fmax, steps, batch_atoms
        See `relax_batched`; defaults 0.05 eV/A, 45, 160.

    Returns
    -------
    dict of str to int
        How many inputs of the series became ``pairs`` and how many ``failed``, over all
        runs into this file.

    Raises
    ------
    PairFileError
        ``out`` holds something else.
    """
    out = Path(out)
    failed = out.with_suffix('.failed.jsonl')
    out.parent.mkdir(parents=True, exist_ok=True)
    done = _done(out, inputs.name) | _done(failed, inputs.name)
    todo = [k for k in range(len(inputs) if count is None else count) if k not in done]
    with out.open('a') as good, failed.open('a') as bad:
        ends = relax_batched(
            _predicted(_taken(inputs, todo, bad), start),
            potential,
            optimizer=ElasticBFGS,
            fmax=fmax,
            steps=steps,
            batch_atoms=batch_atoms,
        )
        for (k, parent, atoms), outcome in ends:
            key = {'series': inputs.name, 'k': k}
            pair, problem = _pair(f'{parent}-{inputs.name}-{k}', atoms, outcome)
            if pair is None:
                _write(bad, key | {'problem': problem})
            else:
                energy = outcome.atoms.get_potential_energy() / len(atoms)
                extra = {'parent': parent, 'steps': outcome.steps}
                extra |= {'energy_per_atom': energy}
                _write(good, pair_record(pair) | key | extra)
    done, lost = _done(out, inputs.name), _done(failed, inputs.name)
    return {'pairs': len(done), 'failed': len(lost)}


def _taken(inputs, todo, bad):
    """The structures to relax, as (k, parent, atoms)."""
    for position, k in enumerate(todo):
        if position % CHUNK == 0:
            log.info('%d of %d inputs taken', position, len(todo))
        parent, atoms, problem = inputs[k]
        if atoms is None:
            _write(bad, {'series': inputs.name, 'k': k, 'problem': problem})
        else:
            yield k, parent, atoms


def _predicted(taken, start):
    """Where each relaxation begins, a chunk of predictions at a time."""
    predictor = None if start is None else Predictor(start)
    for chunk in iter(lambda: list(islice(taken, CHUNK)), []):
        structures = [atoms for *_, atoms in chunk]
        if predictor is not None:
            # A refused prediction gives the input back.
            structures = [result.atoms for result in predictor.relax(structures)]
        yield from zip(chunk, structures, strict=True)


def _write(file, record):
    file.write(json.dumps(record, separators=(',', ':')) + '\n')
    file.flush()


def _pair(id, atoms, outcome):
    """The pair, or None and why it is not one."""
    if not outcome.converged:
        return None, outcome.reason
    pair = make_pair(id, atoms, outcome.atoms, split='train')
    deformation, displacement = pair.targets()
    ratio = np.linalg.det(deformation)
    if not VOLUME_RATIOS[0] < ratio < VOLUME_RATIOS[1]:
        return None, f'volume {ratio:.3g} times that of the input'
    largest = np.linalg.norm(displacement, axis=1).max()
    if largest > MAX_DISPLACEMENT:
        return None, f'an atom moved by {largest:.2f} A'
    return pair, ''


def _done(path, series):
    """The inputs of a series that a file has; a line that was cut off is taken away."""
    if not path.exists():
        return set()
    text = path.read_bytes()
    whole = text[: text.rfind(b'\n') + 1]
    if len(whole) < len(text):
        path.write_bytes(whole)
    try:
        records = [json.loads(line) for line in whole.splitlines()]
        return {record['k'] for record in records if record['series'] == series}
    except (ValueError, KeyError, TypeError) as error:
        raise PairFileError(f'{path}: not written by label: {error!r}') from error
