"""What a prediction saves an iterative relaxation: every path side by side.

`compare` returns one dictionary, ready for JSON. Lengths are in A, energies in eV per atom,
volumes in A^3 per cell, times in s of wall time; ``lattice`` is ``[a, b, c, alpha, beta,
gamma]`` in A and degrees; a number that does not exist is None. *Calculators* are known by
the names that are keys of ``settings['calculators']``, *optimizers* by class names,
structures by ``id``.

``settings``
    ``model, sha256, version`` (of the prediction), ``fmax`` (eV/A), ``steps`` (the most
    that a run may take), ``relax_cell`` (what of the cells relaxes, None: all of them, of
    layers their plane), ``calculators`` {name: what was asked for}, ``optimizers`` [name],
    ``energy_tolerance`` (eV per atom), ``device, threads``, ``has_reference`` (whether
    structures have one).
``structures``
    [{``id, formula, n_atoms, spacegroup, kind`` ('bulk', 'layer' or 'other', with ', cell
    held' where it is), ``volume, lattice, numbers, cell, positions`` (of the input),
    ``sigma`` (of its prediction), ``reference``: None or {``spacegroup, volume, lattice,
    cell, positions``}}]
``predictions``
    The one-shot answer alone, one per structure: [{``structure, ok, problem, ood, seconds,
    sigma, sigma_atoms`` [n_atoms], ``dmax, spacegroup_kept, rmsd_to_reference, volume,
    lattice, cell, positions, energy_per_atom`` {calculator: eV}, ``fmax`` {calculator:
    eV/A}}]. Where ``ok`` is False, ``problem`` says why and numbers are None.
``runs``
    [{``structure, calculator, optimizer, start`` ('unrelaxed' or 'prediction'), ``ok``
    (False: failed), ``converged, reason`` (why it failed or did not converge, or ''),
    ``steps, calls`` (evaluations of the calculator), ``seconds`` (with the prediction's,
    where it started from that), ``energy_per_atom, fmax`` (eV/A, the largest force on an
    atom or on the cell), ``rmsd_to_reference`` (in (volume per atom)^(1/3), as
    matbench-discovery counts: 1.0 where nothing matches), ``spacegroup_kept`` (number
    equals the input's), ``volume, lattice, cell, positions, curve``
    [[energy_per_atom, fmax], one per call]}]. After a failure the numbers of the end are
    None, ``steps, calls, seconds, curve`` say how far it came.
``batched``
    Many structures per forward pass, the fair rival for time: [{``calculator, optimizer``
    ('ElasticBFGS'), ``start, n`` (structures that both starts could be run for),
    ``problem`` (why it failed as a whole, then the next are None, or ''), ``converged``
    (how many), ``calls`` {spread, over the converged}, ``seconds_per_structure`` (all of
    them together, with the prediction of all at once where they started from it, over n),
    ``one_pass`` (False: this potential cannot, they were evaluated one by one),
    ``batch_atoms, structures`` [id]}]; empty where it was not asked for.
``summary``
    One per calculator and optimizer: [{``calculator, optimizer, n`` (structures),
    ``unrelaxed`` and ``prediction``: {``failed, unconverged, converged`` (numbers that add
    up to n), ``converged_share, steps, calls, seconds`` {spread, over converged runs},
    ``spacegroup_kept`` (share of converged), ``rmsd_to_reference`` {spread}}, ``alone``
    (the prediction without a relaxation): {``failed, seconds`` {spread}, ``spacegroup_kept,
    rmsd_to_reference`` (of those that did not fail), ``energy_difference`` {spread, eV per
    atom above where the relaxation from the unrelaxed structure converged}}, ``both``:
    {``n`` (converged from both starts), ``steps_saved, calls_saved, seconds_saved,
    calls_ratio`` {spread over structures: difference, prediction over unrelaxed},
    ``median_calls_ratio`` (median calls from the prediction over median calls from the
    unrelaxed structure, both over these structures), ``energy_difference`` {spread, eV per
    atom, prediction minus unrelaxed}, ``equal, lower, higher`` (shares),
    ``higher_structures`` [id], ``lower_structures`` [id], ``uphill`` (share of predictions
    above their input's energy)}, ``only_unrelaxed, only_prediction`` ([id] converged from
    one start alone)}]. A *spread* is {``n, q25, median, q75``}; failed and unconverged runs
    never enter one.
``phonons``
    Not there before `phonons.compare_phonons` was asked for it; see there.
"""

import hashlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import ase
import numpy as np

from ase_deeprelax.compare.cases import (
    NOWHERE,
    Oracle,
    by_name,
    entries,
    named_calculators,
)
from ase_deeprelax.compare.relaxation_run import descend
from ase_deeprelax.compare.results_cache import Journal
from ase_deeprelax.compare.summary import ENERGY_TOLERANCE, spread, summary
from ase_deeprelax.errors import ConfigError
from ase_deeprelax.geometry.free_strain import check_relax_cell
from ase_deeprelax.optimize.elastic_bfgs import ElasticBFGS
from ase_deeprelax.optimize.relaxation_step import find_optimizer, optimizer_name

STARTS = ('unrelaxed', 'prediction')
BATCH_ATOMS = 200


def compare(
    structures,
    calculators=('chgnet',),
    *,
    optimizers=('FIRE',),
    model='default',
    fmax=0.05,
    steps=500,
    reference=None,
    relax_cell=None,
    batched=False,
    out=None,
    device='cpu',
    progress=False,
):
    """Relax structures from where they are and from their prediction, in all ways asked.

    Positions and cell relax together, until no force on an atom or on what is free of the
    cell exceeds ``fmax``; the same is free in the predictions and in the relaxations.
    Constraints are honoured. A run that fails is a row of the result and changes no other.

    Parameters
    ----------
    structures : list or mapping
        ``ase.Atoms``, pymatgen ``Structure`` or `Pair`, whose relaxed half is its
        reference. Those of a list, but for pairs, get their place in it as id; those of
        a mapping their key.
    calculators : list or mapping
        What `get_calculator` takes; the keys of a mapping are what they are called.
    optimizers : list of str or classes
        'FIRE', 'BFGS', 'ElasticBFGS' or another, see `find_optimizer`; default FIRE.
    model : str, path, RelaxationModel, Predictor or callable
        What predicts, as in `compare.evaluate.evaluate`; default 'default'.
    fmax : float, eV/A
        Default 0.05.
    steps : int
        At most so many for each run, default 500.
    reference : list or mapping, optional
        Relaxed structures to be compared with: a list as long as the structures (None:
        without), or a mapping from ids; atoms and lattice vectors in the same order.
    relax_cell : bool, str or array, optional
        What of the cells relaxes, as `relax` takes it, with the same default: all of it, of
        a layer its plane. The cell of a pair with a held cell is held in any case.
    batched : bool
        Also relax all structures together, many per forward pass; default no.
    out : str or Path, optional
        Folder for ``runs.jsonl``, where each finished run becomes a line. What stands there
        is not done again; more structures, calculators and optimizers may be added.
    device : str
        Where the model and potentials by name run; default 'cpu'.
    progress : bool
        Show a bar; default False.

    Returns
    -------
    dict
        Ready for JSON; its keys are explained at the top of this module.

    Raises
    ------
    StructureError
        Two structures have the same id; a reference without its structure.
    PairFileError
        A reference does not hold its structure's atoms in its order.
    ModelError, MissingDependencyError
        The model or a potential is not there.
    ConfigError
        There is no such optimizer; two of one name; no structure, calculator or optimizer
        at all; ``out`` was written with another model, fmax, steps or relax_cell; ``model``
        is a function that does not take ``relax_cell``, and that is asked for.
    ValueError
        ``relax_cell`` makes no sense.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase.calculators.emt import EMT
    >>> def oracle(structures):
    ...     return [bulk('Cu', a=3.6) for _ in structures]
    >>> result = compare([bulk('Cu', a=3.9)], [EMT()], model=oracle)
    >>> [(run['start'], run['converged']) for run in result['runs']]
    [('unrelaxed', True), ('prediction', True)]
    >>> result['summary'][0]['both']['median_calls_ratio'] < 0.5
    True
    """
    import torch
    from tqdm.auto import tqdm

    if relax_cell is not None:
        relax_cell = check_relax_cell(relax_cell)
    entrants = entries(structures, reference, relax_cell)
    if not entrants:
        raise ConfigError('structures is empty; give one or more')
    classes = [find_optimizer(optimizer) for optimizer in optimizers]
    makers = by_name('optimizers', [optimizer_name(o) for o in classes], classes)
    if not makers:
        raise ConfigError('optimizers is empty; give one or more, such as FIRE')
    potentials, asked = named_calculators(calculators, device)
    oracle = Oracle(model, device)
    oracle.check_can_be_told(entrants)
    free = relax_cell.tolist() if isinstance(relax_cell, np.ndarray) else relax_cell
    decisive = {**oracle.provenance, 'fmax': fmax, 'steps': steps, 'relax_cell': free}
    journal = Journal(None if out is None else Path(out) / 'runs.jsonl', decisive)
    work = _Work(oracle, potentials, makers, fmax, steps, journal)
    bar = tqdm(entrants, 'compare', disable=not progress, unit='structures')
    done = [work.one(entry) for entry in bar]
    result = {
        'settings': {
            **decisive,
            'calculators': asked,
            'optimizers': list(makers),
            'energy_tolerance': ENERGY_TOLERANCE,
            'has_reference': any(entry.pair is not None for entry in entrants),
            'device': device,
            'threads': torch.get_num_threads(),
            'ase': ase.__version__,
        },
        'structures': [
            entry.facts | {'sigma': one['sigma']}
            for entry, (one, _) in zip(entrants, done, strict=True)
        ],
        'predictions': [_with_energies(one, runs) for one, runs in done],
        'runs': [run for _, runs in done for run in runs],
        'batched': [],
    }
    if batched:
        result['batched'] = work.together(entrants, result)
    result['summary'] = summary(result)
    return result


@dataclass(frozen=True)
class _Work:
    """What is done with every structure."""

    oracle: Oracle
    potentials: dict
    makers: dict
    fmax: float
    steps: int
    journal: Journal
    warmed: set = field(default_factory=set)

    def one(self, entry):
        """The prediction of a structure, and its runs."""
        key = ('prediction', *entry.key)
        if key not in self.journal:
            self._warm('', lambda: self.oracle.ask([entry.atoms], entry.relax_cell))
            self.journal.add(key, self.oracle.record(entry))
        prediction = self.journal[key]
        runs = [
            self._run(entry, prediction, calculator, optimizer, start)
            for calculator in self.potentials
            for optimizer in self.makers
            for start in STARTS
        ]
        return prediction, runs

    def _run(self, entry, prediction, calculator, optimizer, start):
        key = ('run', *entry.key, calculator, optimizer, start)
        if key in self.journal:
            return self.journal[key]
        names = {
            'structure': entry.id,
            'calculator': calculator,
            'optimizer': optimizer,
            'start': start,
        }
        predicted = start == 'prediction'
        if predicted and not prediction['ok']:
            none = {'steps': 0, 'calls': 0, 'seconds': prediction['seconds'], 'curve': []}
            reason = f'no prediction: {prediction["problem"]}'
            ending = {'energy_per_atom': None, 'fmax': None, **NOWHERE}
            failed = {'ok': False, 'converged': False, 'reason': reason}
            return self.journal.add(key, names | failed | none | ending)
        potential = self.potentials[calculator]
        once = {'optimizer': find_optimizer('FIRE'), 'fmax': 0.0, 'steps': 1}
        self._warm(calculator, lambda: descend(entry.atoms, potential, **once))
        end = descend(
            entry.at(prediction) if predicted else entry.atoms,
            potential,
            optimizer=self.makers[optimizer],
            fmax=self.fmax,
            steps=self.steps,
            initial=entry.atoms,
            relax_cell=entry.relax_cell,
        )
        energy, force = end.curve[-1] if end.ok else (None, None)
        record = {
            'ok': end.ok,
            'converged': end.converged,
            'reason': end.reason,
            'steps': end.steps,
            'calls': end.calls,
            'seconds': end.seconds + (prediction['seconds'] if predicted else 0),
            'energy_per_atom': energy,
            'fmax': force,
            **(entry.judge(end.atoms) if end.ok else NOWHERE),
            'curve': end.curve,
        }
        return self.journal.add(key, names | record)

    def _warm(self, name, call):
        """Have done once what the first call of all would be blamed for."""
        if name not in self.warmed:
            self.warmed.add(name)
            with suppress(Exception):  # it will be reported when it counts
                call()

    def together(self, entrants, result):
        """The rows of relaxing everything that can be relaxed in batches."""
        failed = {(r['structure'], r['calculator']) for r in result['runs'] if not r['ok']}
        return [
            self._batch(
                [entry for entry in entrants if (entry.id, calculator) not in failed],
                calculator,
                start,
            )
            for calculator in self.potentials
            for start in STARTS
        ]

    def _batch(self, entrants, calculator, start):
        ids = [entry.id for entry in entrants]
        keys = repr([entry.key for entry in entrants])
        which = hashlib.sha256(keys.encode()).hexdigest()
        key = ('batched', calculator, start, which[:16])
        if key in self.journal:
            return self.journal[key]
        names = {'calculator': calculator, 'optimizer': 'ElasticBFGS', 'start': start}
        size = {'n': len(ids), 'batch_atoms': BATCH_ATOMS, 'structures': ids}
        try:
            figures = self._relax_batch(entrants, calculator, start) | {'problem': ''}
        except Exception as error:  # noqa: BLE001 - potentials raise anything
            nothing = ('converged', 'calls', 'seconds_per_structure', 'one_pass')
            problem = {'problem': f'{type(error).__name__}: {error}'}
            figures = dict.fromkeys(nothing) | problem
        return self.journal.add(key, names | size | figures)

    def _ask_all(self, entrants):
        """Predictions by index of the structure, and the wall time."""
        found, seconds = {}, 0.0
        for held in (False, True):
            group = {k: entry for k, entry in enumerate(entrants) if entry.held is held}
            if group:
                first, *_ = group.values()
                inputs = [entry.atoms for entry in group.values()]
                answers, spent = self.oracle.ask(inputs, first.relax_cell)
                atoms = (getattr(answer, 'atoms', answer) for answer in answers)
                found |= zip(group, atoms, strict=True)
                seconds += spent
        return found, seconds

    def _relax_batch(self, entrants, calculator, start):
        from ase_deeprelax.calculators.batched import (
            ChgnetBatch,
            MatglBatch,
            batch_potential,
        )
        from ase_deeprelax.optimize.many import relax_batched

        potential = batch_potential(self.potentials[calculator])
        inputs, seconds = {k: entry.atoms for k, entry in enumerate(entrants)}, 0.0
        if start == 'prediction':
            inputs, seconds = self._ask_all(entrants)
        begin = perf_counter()
        ends = relax_batched(
            inputs.items(),
            potential,
            optimizer=ElasticBFGS,
            relax_cell=lambda k: entrants[k].relax_cell,
            fmax=self.fmax,
            steps=self.steps,
            batch_atoms=BATCH_ATOMS,
        )
        good = [end.steps for _, end in ends if end.converged]
        seconds += perf_counter() - begin
        return {
            'converged': len(good),
            'calls': spread(good),
            'seconds_per_structure': seconds / max(len(entrants), 1),
            'one_pass': isinstance(potential, (MatglBatch, ChgnetBatch)),
        }


def _with_energies(prediction, runs):
    """What each calculator says of the prediction, which is where runs began."""
    first = {
        run['calculator']: run['curve'][0]
        for run in runs
        if run['start'] == 'prediction' and run['curve']
    }
    return prediction | {
        'energy_per_atom': {name: energy for name, (energy, _) in first.items()},
        'fmax': {name: force for name, (_, force) in first.items()},
    }
