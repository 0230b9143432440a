"""More pairs, made here: structures relaxed by a potential, many at a time."""

import json
import logging
from pathlib import Path

import numpy as np
from ase.optimize import BFGS

from ase_deeprelax.data.pair import make_pair
from ase_deeprelax.data.pairs import pair_record
from ase_deeprelax.errors import PairFileError
from ase_deeprelax.potentials.batched import relax_batched
from ase_deeprelax.predict import Predictor
from ase_deeprelax.train.datamodule import composition, read_compositions, read_seeds
from ase_deeprelax.train.substitute import Recipe, needs_hubbard, substitute

log = logging.getLogger(__name__)

# Inputs that are made, and predicted, together.
CHUNK = 64
# A relaxation that goes farther has left its prototype: the pair would teach chance.
MAX_DISPLACEMENT = 1.5
VOLUME_RATIOS = (0.5, 2.0)


def label(
    out,
    seeds,
    potential,
    elements,
    *,
    count,
    seed=0,
    exclude=(),
    recipe=None,
    hubbard=True,
    start='default',
    fmax=0.05,
    steps=45,
    batch_atoms=160,
):
    """Make pairs by substitution, relax them with a potential and append them to a file.

    Input ``k`` depends on ``seed`` and ``k`` only, so that a run that was interrupted goes
    on where it stopped, and one with another ``seed`` adds to it. The relaxation starts at
    the prediction of a model where that passes its checks, which saves half of the steps;
    the pair is from the substituted structure to the potential's minimum.

    Parameters
    ----------
    out : path
        ``.jsonl`` file of pairs (`read_pairs` takes it); those that came to nothing go,
        with the reason, to ``out`` with the suffix ``.failed.jsonl``.
    seeds : list of path
        Files of relaxed parents, see `datamodule.read_seeds`. What has the composition of
        one of them is not made: DFT's answer is there.
    potential : callable
        See `potentials.batched.batch_potential`.
    elements : collection of int
        Atomic numbers that the potential knows.
    count : int
        Inputs to make, those that come to nothing included.
    seed : int
        Default 0.
    exclude : list of path
        Files of reduced formulas that must not be made.
    recipe : Recipe, optional
    hubbard : bool
        False leaves out oxides and fluorides that Materials Project computes with a
        Hubbard U, for potentials trained without; default True.
    start : str, path or None
        Model to start from, default 'default'; None starts at the substituted structure.
    fmax, steps, batch_atoms
        See `relax_batched`; defaults 0.05 eV/A, 45, 160.

    Returns
    -------
    dict of str to int
        How many inputs ended how, over all runs into this file.

    Raises
    ------
    PairFileError
        ``out`` or a file of seeds cannot be read.
    """
    out = Path(out)
    failed = out.with_suffix('.failed.jsonl')
    out.parent.mkdir(parents=True, exist_ok=True)
    done = _done(out, seed) | _done(failed, seed)
    recipe = recipe or Recipe()
    excluded = set().union(*(read_compositions(path) for path in exclude))
    parents = [p for path in seeds for p in read_seeds(path, (), recipe.max_atoms)]
    known = {composition(parent.numbers) for parent in parents}
    allowed = set(elements) & {int(z) for parent in parents for z in parent.numbers}
    parents = [p for p in parents if set(p.numbers.tolist()) <= set(elements)]

    def make(k):
        rng = np.random.default_rng((seed, k))
        parent = parents[rng.integers(len(parents))]
        child = substitute(parent.relaxed, allowed, rng, recipe)
        if child is None:
            return parent.id, None, 'nothing to substitute'
        name = composition(child.numbers)
        if name in excluded or name in known:
            return parent.id, None, 'composition excluded or known'
        if not hubbard and needs_hubbard(child):
            return parent.id, None, 'needs a Hubbard U'
        return parent.id, child, ''

    inputs = {}
    with out.open('a') as good, failed.open('a') as bad:

        def note(file, record):
            file.write(json.dumps(record, separators=(',', ':')) + '\n')
            file.flush()

        def starts():
            """Structures to relax, predicted a chunk at a time."""
            todo = [k for k in range(count) if k not in done]
            predictor = None if start is None else Predictor(start)
            for first in range(0, len(todo), CHUNK):
                keys = []
                for k in todo[first : first + CHUNK]:
                    parent, child, problem = make(k)
                    if child is None:
                        note(bad, {'seed': seed, 'k': k, 'problem': problem})
                    else:
                        inputs[k] = parent, child
                        keys.append(k)
                children = [inputs[k][1] for k in keys]
                if predictor is not None:
                    children = [result.atoms for result in predictor.relax(children)]
                yield from zip(keys, children, strict=True)
                log.info('%d of %d inputs taken', first + CHUNK, len(todo))

        ends = relax_batched(
            starts(),
            potential,
            optimizer=BFGS,
            fmax=fmax,
            steps=steps,
            batch_atoms=batch_atoms,
        )
        for k, outcome in ends:
            parent, child = inputs.pop(k)
            pair, problem = _pair(f'{parent}-{seed}-{k}', child, outcome)
            if pair is None:
                note(bad, {'seed': seed, 'k': k, 'problem': problem})
            else:
                energy = outcome.atoms.get_potential_energy() / len(child)
                extra = {'seed': seed, 'k': k, 'parent': parent, 'steps': outcome.steps}
                note(good, pair_record(pair) | extra | {'energy_per_atom': energy})
    return {
        'pairs': len(_done(out, seed)),
        'failed': len(_done(failed, seed)),
    }


def _pair(id, child, outcome):
    """The pair, or None and why it is not one."""
    if not outcome.converged:
        return None, outcome.reason
    pair = make_pair(id, child, outcome.atoms, split='train')
    deformation, displacement = pair.targets()
    ratio = np.linalg.det(deformation)
    if not VOLUME_RATIOS[0] < ratio < VOLUME_RATIOS[1]:
        return None, f'volume {ratio:.3g} times that of the input'
    largest = np.linalg.norm(displacement, axis=1).max()
    if largest > MAX_DISPLACEMENT:
        return None, f'an atom moved by {largest:.2f} A'
    return pair, ''


def _done(path, seed):
    """The inputs of a seed that a file has; a line that was cut off is taken away."""
    if not path.exists():
        return set()
    text = path.read_bytes()
    whole = text[: text.rfind(b'\n') + 1]
    if len(whole) < len(text):
        path.write_bytes(whole)
    try:
        records = [json.loads(line) for line in whole.splitlines()]
        return {record['k'] for record in records if record['seed'] == seed}
    except (ValueError, KeyError, TypeError) as error:
        raise PairFileError(f'{path}: not written by label: {error!r}') from error
