"""The frozen record of one relaxation."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from ase import Atoms
from ase.io.jsonio import decode, encode
from ase.spacegroup import Spacegroup
from monty.json import MontyDecoder, MontyEncoder, MSONable

from ase_deeprelax.data.formula import chemical_formula
from ase_deeprelax.data.one_line import count
from ase_deeprelax.data.structures import as_structure

if TYPE_CHECKING:
    from pymatgen.core import IStructure

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, repr=False)
class Relaxation(MSONable):
    """One prediction: the relaxed structure, how far to trust it, where it came from.

    With rows as vectors, the relaxed structure is ``cell = cell0 @ deformation`` and
    ``positions = (positions0 + displacement) @ deformation``.

    Attributes
    ----------
    atoms : ase.Atoms
        The relaxed structure; where ``ok`` is False, a copy of the input.
    initial : ase.Atoms
        A copy of the input.
    deformation : (3, 3) array
        Stretch of the cell (row vectors multiply it from the left); symmetric where all of
        the cell could change.
    displacement : (n_atoms, 3) array, A
        Displacements at the unrelaxed cell, without rigid drift.
    sigma : float, A
        System-level uncertainty, the mean over bonds (paper eq. 24).
    sigma_atoms : (n_atoms,) array, A
        Mean over the bonds of each atom.
    bonds : (n_bonds, 2) int array
        Atoms ``i, j`` of each bond of the model's graph.
    bond_offsets : (n_bonds, 3) int array
        Lattice translation of ``j``, for the atoms as they are written: the bond leads from
        ``positions[i]`` to ``positions[j] + offset @ cell``, in ``initial`` and ``atoms``.
    sigma_bonds : (n_bonds,) array, A
        Laplace scale of each bond's predicted distance.
    residual : float, A
        Mean violation of the distance bounds that the solver left.
    error : float, A
        Expected mean absolute error of the coordinates, strain of the cell included; it and
        all that follows down to ``fingerprint`` is nan where the model has no calibration
        for structures of this kind (`models.calibration`).
    position_90 : (n_atoms,) array, A
        In 90 % of all cases an atom is not farther from its true place in the cell.
    lattice_90 : (3, 2) array, A
        Intervals that hold the true lengths of the lattice vectors in 90 % of all cases;
        what cannot change is exact.
    volume_90 : (2,) array, A^3
        The same of the volume; nan for layers.
    novelty : float
        Largest distance of an atom's surroundings from those in training, over the limit
        that 99 % of structures like those in training keep; above 1, ``ood`` says why.
    fingerprint : (16,) or (0,) array
        Where the structure lies among those in training: near means alike.
    ok : bool
        Whether the prediction passed the checks.
    problem : str
        Why not, or ''.
    ood : str
        Why the input lies outside the training range, or ''.
    kind : str
        What was relaxed: 'bulk' or 'layer' (or slab), with ', cell fixed' where only atoms
        could move.
    model, sha256, version : str
        Provenance.
    timings : dict of str to float, s
        Wall time per part, shared evenly among the structures of a batch.
    source : pymatgen Structure or None
        The input, where it was one: `structure` keeps what ``atoms`` cannot hold.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase_deeprelax import relax
    >>> result = relax(bulk('NaCl', 'rocksalt', a=5.9))
    >>> result.to_row()['formula'], result.ok
    ('NaCl', True)
    >>> Relaxation.from_dict(result.as_dict()).sigma == result.sigma
    True
    """

    atoms: Atoms
    initial: Atoms
    deformation: np.ndarray
    displacement: np.ndarray
    sigma: float
    sigma_atoms: np.ndarray
    bonds: np.ndarray
    bond_offsets: np.ndarray
    sigma_bonds: np.ndarray
    residual: float
    error: float
    position_90: np.ndarray
    lattice_90: np.ndarray
    volume_90: np.ndarray
    novelty: float
    fingerprint: np.ndarray
    ok: bool
    problem: str
    ood: str
    kind: str
    model: str
    sha256: str
    version: str
    timings: dict[str, float] = field(default_factory=dict)
    source: IStructure | None = None

    def __repr__(self) -> str:
        formula = chemical_formula(self.initial)
        if not self.ok:
            return f'Relaxation({formula}, failed: {self.problem})'
        n_atoms = count(len(self.initial), 'atom')
        ood = ', out of distribution' if self.ood else ''
        error = f'expected error {self.error:.3f} A'
        if math.isnan(self.error):
            error = f'sigma {self.sigma:.3f} A'
        return (
            f'Relaxation({formula}, {n_atoms}, {self.kind}, '
            f'volume x {self.volume_ratio:.3f}, dmax {self.dmax:.3f} A, '
            f'{error}, model {self.model!r}{ood})'
        )

    @property
    def structure(self) -> IStructure:
        """The relaxed structure as a ``pymatgen.core.Structure``.

        Where the input was a structure of pymatgen, this is of its class (``Structure`` or
        ``IStructure``) and keeps its species, charge, site properties, labels and
        properties.
        """
        return as_structure(self.atoms, self.source)

    @cached_property
    def spacegroup(self) -> tuple[int, int]:
        """Space group numbers before and after (symprec 1e-2), 0 where not determined.

        Found on first use, because this takes longer than the prediction.
        """
        from ase_deeprelax.geometry.symmetry import spacegroup_number

        if not self.ok:
            return 0, 0
        return spacegroup_number(self.initial), spacegroup_number(self.atoms)

    @property
    def dmax(self) -> float:
        """Largest displacement of an atom at the unrelaxed cell, A."""
        return float(np.linalg.norm(self.displacement, axis=1).max(initial=0.0))

    @property
    def volume_ratio(self) -> float:
        """Predicted over input volume."""
        return float(np.linalg.det(self.deformation))

    def to_row(self) -> dict[str, str | int | float | bool]:
        """One flat row of a table: numbers and text by name, nan where not known.

        Examples
        --------
        >>> import pandas  # doctest: +SKIP
        >>> pandas.DataFrame([result.to_row() for result in results])  # doctest: +SKIP
        """
        n = len(self.initial)
        return {
            'formula': chemical_formula(self.initial),
            'n_atoms': n,
            'kind': self.kind,
            'ok': self.ok,
            'problem': self.problem,
            'ood': self.ood,
            'volume_ratio': self.volume_ratio,
            'volume_per_atom': float(self.atoms.cell.volume) / n if n else math.nan,
            'dmax': self.dmax,
            'sigma': float(self.sigma),
            'sigma_max': float(np.max(self.sigma_atoms, initial=-math.inf))
            if n
            else math.nan,
            'residual': float(self.residual),
            'error': float(self.error),
            'volume_low': float(self.volume_90[0]),
            'volume_high': float(self.volume_90[1]),
            'novelty': float(self.novelty),
            'seconds': float(sum(self.timings.values())),
            'model': self.model,
            'sha256': self.sha256,
            'version': self.version,
        }

    def as_dict(self) -> dict[str, Any]:
        """The whole record, ready for JSON, for `from_dict`.

        jobflow and monty's ``MontyEncoder`` store it in this way.
        Numbers that are not known are null, never nan.
        """
        record: dict[str, Any] = {
            '@module': type(self).__module__,
            '@class': type(self).__name__,
            '@version': self.version,
        }
        for name in (entry.name for entry in fields(self)):
            value = getattr(self, name)
            if isinstance(value, Atoms):
                value = encode_atoms(value)
            elif name == 'source' and value is not None:
                value = json.loads(MontyEncoder().encode(value))
            record[name] = _without_nan(value)
        return record

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> Self:
        """The inverse of `as_dict`, to the last bit; of subclasses too.

        Raises
        ------
        ValueError
            A part is missing, by name.
        """
        n_atoms = len(d.get('sigma_atoms') or ())
        values = no_errors(n_atoms)  # records of former versions lack them
        values |= {entry.name: d[entry.name] for entry in fields(cls) if entry.name in d}
        missing = [name for name in _needed(cls) if name not in values]
        if missing:
            raise ValueError(f'this is no record of a Relaxation: it lacks {missing[0]!r}')
        for name, shape in _ARRAYS.items():
            dtype = np.int64 if name in ('bonds', 'bond_offsets') else float
            values[name] = np.array(values[name], dtype=dtype).reshape(shape)
        for name in ('sigma', 'residual', 'error', 'novelty'):
            values[name] = math.nan if values[name] is None else values[name]
        for name in ('atoms', 'initial'):
            if isinstance(values[name], str):
                values[name] = decode_atoms(values[name])
        if isinstance(values.get('source'), dict):
            values['source'] = MontyDecoder().process_decoded(values['source'])
        return cls(**values)


_ARRAYS = {
    'deformation': (3, 3),
    'displacement': (-1, 3),
    'sigma_atoms': (-1,),
    'bonds': (-1, 2),
    'bond_offsets': (-1, 3),
    'sigma_bonds': (-1,),
    'position_90': (-1,),
    'lattice_90': (3, 2),
    'volume_90': (2,),
    'fingerprint': (-1,),
}


def _needed(record: type[Relaxation]) -> list[str]:
    """Names of the fields that have no default."""
    return [
        entry.name
        for entry in fields(record)
        if entry.default is MISSING and entry.default_factory is MISSING
    ]


def encode_atoms(atoms: Atoms) -> str:
    """Atoms as JSON text; information that JSON cannot hold is left out, by name."""
    try:
        return encode(atoms)
    except TypeError:
        atoms = atoms.copy()
    for key, value in list(atoms.info.items()):
        try:
            encode(value)
        except TypeError:
            del atoms.info[key]
            log.warning(
                'atoms.info[%r] of %s is a %s, which JSON cannot hold; it is left out of '
                'the record',
                key,
                chemical_formula(atoms),
                type(value).__name__,
            )
    return encode(atoms)


def decode_atoms(text: str) -> Atoms:
    """The inverse of `encode_atoms`."""
    atoms = decode(text)
    # ASE reads an empty array of positions back with one dimension.
    atoms.arrays['positions'] = atoms.arrays['positions'].reshape(-1, 3)
    group = atoms.info.get('spacegroup')
    # As ASE writes the space group of a CIF file; other dicts are those of the user.
    if isinstance(group, dict) and set(group) in ({'number'}, {'number', 'setting'}):
        atoms.info['spacegroup'] = Spacegroup(group['number'], group.get('setting', 1))
    return atoms


def _without_nan(value: Any) -> Any:
    """Plain lists and numbers, with None for nan."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return value


def no_uncertainty(n_atoms: int) -> dict[str, Any]:
    """The fields of a `Relaxation` of which nothing is known without a prediction.

    >>> no_uncertainty(2)['sigma_atoms']
    array([nan, nan])
    """
    return {
        'sigma': np.nan,
        'sigma_atoms': np.full(n_atoms, np.nan),
        'bonds': np.zeros((0, 2), dtype=np.int64),
        'bond_offsets': np.zeros((0, 3), dtype=np.int64),
        'sigma_bonds': np.zeros(0),
        'residual': np.nan,
        **no_errors(n_atoms),
    }


def no_errors(n_atoms: int) -> dict[str, Any]:
    """The fields of a `Relaxation` that a calibration fills, where there is none.

    >>> no_errors(2)['position_90']
    array([nan, nan])
    """
    return {
        'error': np.nan,
        'position_90': np.full(n_atoms, np.nan),
        'lattice_90': np.full((3, 2), np.nan),
        'volume_90': np.full(2, np.nan),
        'novelty': np.nan,
        'fingerprint': np.zeros(0),
    }
