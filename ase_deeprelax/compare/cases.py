"""Cases of a comparison: structures with their references."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
from ase import Atoms

from ase_deeprelax.compare.metrics import Reference
from ase_deeprelax.compare.predictor_adapter import (
    Predicted,
    PredictorAdapter,
    atoms_of,
    problem_of,
)
from ase_deeprelax.compare.schema import (
    End,
    Geometry,
    PredictionRow,
    ReferenceRow,
    StructureRow,
)
from ase_deeprelax.data.disorder import check_ordered
from ase_deeprelax.data.formula import chemical_formula
from ase_deeprelax.data.pair import Pair, fixed_atoms, make_pair
from ase_deeprelax.data.structures import as_atoms
from ase_deeprelax.errors import StructureError, reason_of
from ase_deeprelax.geometry.free_strain import RelaxCell
from ase_deeprelax.geometry.symmetry import spacegroup_number
from ase_deeprelax.optimize.refinable import check_refinable
from ase_deeprelax.optimize.target import find_target
from ase_deeprelax.result import Relaxation

# The end of a prediction or a relaxation that failed.
NO_END: End = {
    'rmsd_to_reference': None,
    'spacegroup_kept': None,
    'volume': None,
    'lattice': None,
    'cell': None,
    'positions': None,
}


def find_cases(
    structures: Any,
    reference: Any = None,
    relax_cell: RelaxCell | None = None,
) -> list[Case]:
    """Structures in any of the forms that `savings.compare` takes, as a list of `Case`.

    Raises
    ------
    StructureError
        Two structures have the same id; a reference without its structure, or for a pair.
    PairFileError
        A reference does not hold its structure's atoms in its order.
    """
    if _is_one(structures):
        structures = [structures]
    if isinstance(structures, Mapping):
        ids, given = list(map(str, structures)), list(structures.values())
    else:
        given = list(structures)
        ids = [s.id if isinstance(s, Pair) else str(k) for k, s in enumerate(given)]
    check_unique(ids)
    found = _references(ids, reference)
    return [
        _case(id, structure, found.get(id), relax_cell)
        for id, structure in zip(ids, given, strict=True)
    ]


def _is_one(structures: Any) -> bool:
    """Whether this is a structure, also one of pymatgen, and no list or mapping of some."""
    return isinstance(structures, (Atoms, Pair)) or hasattr(structures, 'is_ordered')


def check_unique(ids: Iterable[str]) -> None:
    """Raise ``StructureError`` where two structures have the same id."""
    if twice := [id for id, n in Counter(ids).items() if n > 1]:
        raise StructureError(f'{min(twice)!r} is the id of more than one structure')


def _references(ids: Sequence[str], reference: Any) -> dict[str, Any]:
    if reference is None:
        return {}
    if _is_one(reference):
        reference = [reference]
    if not isinstance(reference, Mapping):
        if len(reference) != len(ids):
            raise StructureError(
                f'{len(reference)} references for {len(ids)} structures; give one for '
                'each, None for those without'
            )
        reference = dict(zip(ids, reference, strict=True))
    known = set(ids)
    for id in reference:
        if str(id) not in known:
            raise StructureError(f'reference {id!r} belongs to none of the structures')
    return {str(id): relaxed for id, relaxed in reference.items() if relaxed is not None}


def _case(id: str, structure: Any, reference: Any, relax_cell: RelaxCell | None) -> Case:
    if isinstance(structure, Pair):
        if reference is not None:
            raise StructureError(
                f'{id!r} is a pair, whose relaxed half is its reference; give no other one'
            )
        return Case(id, structure.unrelaxed, structure, relax_cell)
    atoms, pair = as_atoms(structure).copy(), None
    if reference is not None:
        pair = make_pair(id, atoms, as_atoms(reference))
    return Case(id, atoms, pair, relax_cell)


class Case:
    """One structure of a comparison, with its reference if there is one.

    Parameters
    ----------
    id : str
    atoms : ase.Atoms
        Unrelaxed.
    pair : Pair, optional
        It and its reference.
    relax_cell : bool, str, array or None
        The part of its cell that relaxes, as `relax` takes it; that of a pair with a fixed
        cell is fixed in any case.

    Attributes
    ----------
    key : tuple of str
        Its id and a hash of it, for the keys of a results cache.
    held : bool
        Whether its pair holds the cell.
    spacegroup : int
        International number, 0 for what is no crystal.
    reference : Reference or None
    reference_key : str
        A hash of it, '' without one.
    """

    def __init__(
        self,
        id: str,
        atoms: Atoms,
        pair: Pair | None = None,
        relax_cell: RelaxCell | None = None,
    ) -> None:
        self.id, self.atoms, self.pair = id, atoms, pair
        self.held = pair is not None and pair.fixed_cell
        self.relax_cell: RelaxCell | None = False if self.held else relax_cell
        self.spacegroup = _spacegroup(atoms)
        self.reference, self.reference_key = None, ''
        if pair is not None:
            self.reference = Reference(pair)
            self.reference_key = _digest(pair.cell1, pair.frac1).hexdigest()[:16]
        # Not by id alone: a file may have changed since the cache was written.
        digest = _digest(atoms.numbers, atoms.cell.array, atoms.positions)
        moves = [atoms.pbc.tolist(), [_described(one) for one in atoms.constraints]]
        digest.update(repr([*moves, self.held]).encode())
        for name in ('initial_magmoms', 'initial_charges'):
            if atoms.has(name):  # on which energies may depend
                digest.update(atoms.arrays[name].tobytes())
        self.key = (self.id, digest.hexdigest()[:16])

    def row(self, sigma: float | None) -> StructureRow:
        """Its row of ``structures``, with the uncertainty (A) of its prediction."""
        reference: ReferenceRow | None = None
        if self.pair is not None:
            relaxed = self.pair.relaxed
            reference = {'spacegroup': _spacegroup(relaxed), **geometry(relaxed)}
        return {
            'id': self.id,
            'formula': chemical_formula(self.atoms),
            'n_atoms': len(self.atoms),
            'spacegroup': self.spacegroup,
            'kind': self.kind,
            'numbers': self.atoms.numbers.tolist(),
            'pbc': self.atoms.pbc.tolist(),
            'fixed': np.flatnonzero(fixed_atoms(self.atoms)).tolist(),
            'magmoms': self._listed('initial_magmoms'),
            'masses': self._listed('masses'),
            **geometry(self.atoms),
            'reference': reference,
            'sigma': sigma,
        }

    def _listed(self, name: str) -> list[Any] | None:
        """An array of the atoms, None where it was not set."""
        return self.atoms.arrays[name].tolist() if self.atoms.has(name) else None

    @property
    def kind(self) -> str:
        """'bulk', 'layer' or 'other', and ', cell fixed' if so; '' if it is broken."""
        try:
            check_refinable(self.atoms)
        except StructureError:
            return ''
        return find_target(self.atoms, self.relax_cell).kind

    def end(self, atoms: Atoms) -> End:
        """End of a prediction or relaxation, without its distance from the reference."""
        kept = _spacegroup(atoms) == self.spacegroup
        return {
            'rmsd_to_reference': None,
            'spacegroup_kept': kept if self.spacegroup else None,
            **geometry(atoms),
        }

    def rmsd(self, row: End) -> float | None:
        """How far the end of a row is from the reference, see `Reference.rmsd`."""
        return None if self.reference is None else self.reference.rmsd(self.at(row))

    def at(self, row: Geometry) -> Atoms:
        """The structure with cell and positions of a row."""
        atoms = self.atoms.copy()
        atoms.set_cell(row['cell'], apply_constraint=False)
        positions = np.reshape(row['positions'] or [], (-1, 3))  # without atoms: []
        atoms.set_positions(positions, apply_constraint=False)
        return atoms

    def prediction(self, adapter: PredictorAdapter) -> PredictionRow:
        """The row of its prediction, without energies."""
        seconds: float | None = None
        predicted: Predicted | None = None
        try:
            check_ordered(self.atoms)
            [predicted], seconds = timed_predictions(adapter, [self])
            problem = problem_of(predicted)
        except Exception as error:  # noqa: BLE001 - any function may be a model
            problem = reason_of(error)
        row: PredictionRow = {
            'structure': self.id,
            'ok': not problem,
            'problem': problem,
            'ood': predicted.ood if isinstance(predicted, Relaxation) else '',
            'seconds': seconds,
            'sigma': None,
            'sigma_atoms': None,
            'dmax': None,
            **NO_END,
            'energy_per_atom': {},
            'fmax': {},
        }
        if problem or predicted is None:
            return row
        if isinstance(predicted, Relaxation):
            row['sigma'] = _finite(predicted.sigma)
            row['sigma_atoms'] = _finite(predicted.sigma_atoms)
            row['dmax'] = _finite(predicted.dmax)
        return {**row, **self.end(atoms_of(predicted))}


def _described(constraint: Any) -> Any:
    """The content of a constraint; one of the user's own need not have ``todict``."""
    if hasattr(constraint, 'todict'):
        return constraint.todict()
    return type(constraint).__name__, vars(constraint)


def _digest(*arrays: np.ndarray) -> Any:
    """A hash of arrays, which may be continued; numbers count to six places."""
    rounded = (np.ascontiguousarray(x.round(6)) for x in arrays)
    return hashlib.sha256(b''.join(x.tobytes() for x in rounded))


def timed_predictions(
    adapter: PredictorAdapter, cases: Sequence[Case]
) -> tuple[list[Predicted], float]:
    """Predictions for copies of structures, and the wall time of all together, s."""
    start = perf_counter()
    with warnings.catch_warnings():
        # The row of each structure holds this warning.
        warnings.filterwarnings('ignore', '.*outside the training range')
        structures = [case.atoms.copy() for case in cases]
        found = adapter.predict(structures, [case.relax_cell for case in cases])
    return found, perf_counter() - start


def geometry(atoms: Atoms) -> Geometry:
    """Volume, lattice, cell and positions, None where they are not finite."""
    return {
        'volume': _finite(abs(np.linalg.det(atoms.cell.array))),
        'lattice': _finite(atoms.cell.cellpar()),
        'cell': _finite(atoms.cell.array),
        'positions': _finite(atoms.positions),
    }


def _finite(value: Any) -> Any:
    """A number or nested lists, None where one is not finite: JSON cannot hold it."""
    value = np.asarray(value, dtype=float)
    return value.tolist() if np.isfinite(value).all() else None


def _spacegroup(atoms: Atoms) -> int:
    """International number, 0 for what is no crystal."""
    try:
        check_refinable(atoms)
    except StructureError:
        return 0
    return spacegroup_number(atoms) if atoms.pbc.all() else 0
