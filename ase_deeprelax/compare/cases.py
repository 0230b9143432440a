"""Who takes part in a comparison: structures and references, the model, calculators."""

import hashlib
import warnings
from collections.abc import Mapping
from inspect import signature
from time import perf_counter

import numpy as np

from ase_deeprelax import __version__
from ase_deeprelax.calculators.registry import get_calculator
from ase_deeprelax.compare.metrics import Reference
from ase_deeprelax.data.structures import as_atoms
from ase_deeprelax.data.pair import Pair, make_pair
from ase_deeprelax.errors import ConfigError, DeepRelaxError, StructureError
from ase_deeprelax.geometry.symmetry import spacegroup_number
from ase_deeprelax.optimize.relaxation_step import calculator_name, check_refinable
from ase_deeprelax.optimize.target import find_target

# What is said of a structure that is not there.
NOWHERE = dict.fromkeys(
    ('rmsd_to_reference', 'spacegroup_kept', 'volume', 'lattice', 'cell', 'positions')
)


def entries(structures, reference=None, relax_cell=None):
    """Structures in any of the forms that `savings.compare` takes, as a list of `Entry`."""
    if not isinstance(structures, Mapping):
        structures = list(structures)
        ids = [s.id if isinstance(s, Pair) else str(k) for k, s in enumerate(structures)]
    else:
        ids, structures = list(map(str, structures)), list(structures.values())
    twice = {id for id in ids if ids.count(id) > 1} if len(set(ids)) < len(ids) else ()
    if twice:
        raise StructureError(f'{min(twice)!r} is the id of more than one structure')
    found = _references(ids, reference)
    return [
        _entry(id, s, found.get(id), relax_cell)
        for id, s in zip(ids, structures, strict=True)
    ]


def _references(ids, reference):
    if reference is None:
        return {}
    if not isinstance(reference, Mapping):
        if len(reference) != len(ids):
            raise StructureError(
                f'{len(reference)} references for {len(ids)} structures; give one for '
                'each, None for those without'
            )
        reference = dict(zip(ids, reference, strict=True))
    for id in reference:
        if str(id) not in ids:
            raise StructureError(f'reference {id!r} belongs to none of the structures')
    return {str(id): relaxed for id, relaxed in reference.items() if relaxed is not None}


def _entry(id, structure, reference, relax_cell):
    if isinstance(structure, Pair):
        return Entry(id, structure.unrelaxed, structure, relax_cell)
    atoms, pair = as_atoms(structure).copy(), None
    if reference is not None:
        pair = make_pair(id, atoms, as_atoms(reference))
    return Entry(id, atoms, pair, relax_cell)


class Entry:
    """One structure, and what is known of it.

    Parameters
    ----------
    id : str
    atoms : ase.Atoms
        Unrelaxed.
    pair : Pair, optional
        It and its reference.
    relax_cell : bool, str, array or None
        What of its cell relaxes, see `find_freedom`; that of a pair with a held cell is
        held in any case.

    Attributes
    ----------
    key : tuple of str
        By what it is known in a journal.
    held : bool
        Whether its pair says that the cell is held.
    """

    def __init__(self, id, atoms, pair=None, relax_cell=None):
        self.id, self.atoms, self.pair = id, atoms, pair
        self.held = pair is not None and pair.fixed_cell
        self.relax_cell = False if self.held else relax_cell
        self.number = _spacegroup(atoms)
        self.reference = None if pair is None else Reference(pair)
        # Not by id alone: a file may have changed since the journal was written.
        parts = atoms.numbers, atoms.cell.array.round(6), atoms.positions.round(6)
        digest = hashlib.sha256(b''.join(np.ascontiguousarray(x).tobytes() for x in parts))
        moves = [atoms.pbc.tolist(), [one.todict() for one in atoms.constraints]]
        digest.update(repr([*moves, self.held]).encode())
        self.key = (self.id, digest.hexdigest()[:16])

    @property
    def facts(self):
        """Its row of ``structures``."""
        facts = {
            'id': self.id,
            'formula': self.atoms.get_chemical_formula('metal', empirical=True),
            'n_atoms': len(self.atoms),
            'spacegroup': self.number,
            'kind': self.kind,
            'numbers': self.atoms.numbers.tolist(),
            **geometry(self.atoms),
            'reference': None,
        }
        if self.pair is not None:
            relaxed = self.pair.relaxed
            number = {'spacegroup': _spacegroup(relaxed)}
            facts['reference'] = number | geometry(relaxed)
        return facts

    @property
    def kind(self):
        """'bulk', 'layer' or 'other', and ', cell held' where it is; '' if it is broken."""
        try:
            check_refinable(self.atoms)
        except StructureError:
            return ''
        return find_target(self.atoms, self.relax_cell).kind

    def judge(self, atoms):
        """Where a relaxation of this structure ended."""
        kept = _spacegroup(atoms) == self.number
        rmsd = None if self.reference is None else self.reference.errors(atoms)['rmsd']
        return {'rmsd_to_reference': rmsd, 'spacegroup_kept': kept, **geometry(atoms)}

    def at(self, record):
        """The structure with cell and positions of a record."""
        atoms = self.atoms.copy()
        atoms.set_cell(record['cell'], apply_constraint=False)
        atoms.set_positions(record['positions'], apply_constraint=False)
        return atoms


class Oracle:
    """What predicts, in one form: a model, or any function of structures.

    Parameters
    ----------
    model : str, path, RelaxationModel, Predictor or callable
    device : str
    """

    def __init__(self, model, device):
        from ase_deeprelax.models.base import RelaxationModel
        from ase_deeprelax.predict import Predictor

        name = getattr(model, '__name__', type(model).__name__)
        self.provenance = {'model': name, 'sha256': '', 'version': __version__}
        self._relax = model
        if isinstance(model, RelaxationModel) or not callable(model):
            if not isinstance(model, Predictor):
                model = Predictor(model, device=device)
            self._relax = model.relax
            self.provenance |= {'model': model.name, 'sha256': model.sha256}

    def check_can_be_told(self, entrants):
        """Refuse a function that cannot be told whether the cell is held.

        Raises
        ------
        ConfigError
            It has no keyword ``relax_cell``, and something other than the default is asked.
        """
        if all(entry.relax_cell is None for entry in entrants):
            return
        known = signature(self._relax).parameters.values()
        if not any(p.name == 'relax_cell' or p.kind is p.VAR_KEYWORD for p in known):
            raise ConfigError(
                f'model {self.provenance["model"]!r} does not take the keyword relax_cell, '
                'but what of the cells relaxes is asked for, or held in pairs; let it take '
                'the keyword, or leave these out'
            )

    def ask(self, structures, relax_cell=None):
        """Answers, and the wall time of all together.

        Parameters
        ----------
        structures : list of ase.Atoms
        relax_cell : bool, str, array or None
            What of their cells relaxes; None: the model is not told.
        """
        start = perf_counter()
        told = {} if relax_cell is None else {'relax_cell': relax_cell}
        with warnings.catch_warnings():
            # Said in the record of each structure.
            warnings.filterwarnings('ignore', '.*outside the training range')
            answers = self._relax([atoms.copy() for atoms in structures], **told)
        return answers, perf_counter() - start

    def record(self, entry):
        """The row of one prediction."""
        try:
            [answer], seconds = self.ask([entry.atoms], entry.relax_cell)
            problem = getattr(answer, 'problem', '')
        except DeepRelaxError as error:
            answer, seconds, problem = None, None, str(error)
        except Exception as error:  # noqa: BLE001 - any function may be a model
            answer, seconds, problem = None, None, f'{type(error).__name__}: {error}'
        ok = not problem
        atoms = getattr(answer, 'atoms', answer)
        return {
            'structure': entry.id,
            'ok': ok,
            'problem': problem,
            'ood': getattr(answer, 'ood', ''),
            'seconds': seconds,
            'sigma': _plain(getattr(answer, 'sigma', np.nan)) if ok else None,
            'sigma_atoms': _plain(getattr(answer, 'sigma_atoms', np.nan)) if ok else None,
            'dmax': _plain(getattr(answer, 'dmax', np.nan)) if ok else None,
            **(entry.judge(atoms) if ok else NOWHERE),
        }


def geometry(atoms):
    """Volume, lattice, cell and positions, None where they are not finite."""
    return {
        'volume': _plain(abs(np.linalg.det(atoms.cell.array))),
        'lattice': _plain(atoms.cell.cellpar()),
        'cell': _plain(atoms.cell.array),
        'positions': _plain(atoms.positions),
    }


def _plain(value):
    """For JSON, which has no word for nan."""
    value = np.asarray(value, dtype=float)
    return value.tolist() if np.isfinite(value).all() else None


def _spacegroup(atoms):
    """International number, 0 for what is no crystal."""
    try:
        check_refinable(atoms)
    except StructureError:
        return 0
    return spacegroup_number(atoms) if atoms.pbc.all() else 0


def named_calculators(calculators, device):
    """Calculators by name, and what was asked for by the same names.

    Parameters
    ----------
    calculators : list or mapping
        As `savings.compare` takes them.
    device : str
        Where potentials by name run.

    Returns
    -------
    dict of str to ase Calculator
    dict of str to str

    Raises
    ------
    ConfigError
        There is none, or two go by the same name.

    Examples
    --------
    >>> from ase.calculators.emt import EMT
    >>> named_calculators([EMT], 'cpu')[1]
    {'EMT': 'EMT'}
    """
    if not isinstance(calculators, Mapping):
        given = list(calculators)
        calculators = by_name('calculators', _names(given), given)
    if not calculators:
        raise ConfigError('calculators is empty; give one or more, such as chgnet')
    made = {
        str(name): get_calculator(c, **({'device': device} if isinstance(c, str) else {}))
        for name, c in calculators.items()
    }
    asked = {str(name): _asked(c) for name, c in calculators.items()}
    return made, asked


def by_name(kind, names, things):
    """A dict of things that have different names; ``ConfigError`` where two share one."""
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(
            f'{kind}: two are called {min(twice)!r}; leave one out, or give them names'
        )
    return dict(zip(names, things, strict=True))


def _names(calculators):
    """Short names where they tell calculators apart."""
    long = [_asked(calculator) for calculator in calculators]
    short = [text.partition(':')[0] for text in long]
    return [s if short.count(s) == 1 else full for s, full in zip(short, long, strict=True)]


def _asked(calculator):
    if isinstance(calculator, str):
        return calculator
    return getattr(calculator, '__name__', None) or calculator_name(calculator)
