"""How large the errors of a model are: fitted on pairs that it was never trained on.

A file ``calibration.safetensors`` beside the weights holds it: arrays, and as metadata a
text of JSON with the numbers and what they were fitted on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from ase.data import atomic_numbers, chemical_symbols

from ase_deeprelax.errors import ModelError
from ase_deeprelax.files import write_atomically

CALIBRATION = 'calibration.safetensors'
# Quantities with an error: the coordinates of a structure (mean, A), the positions of its
# atoms in the cell (A), the lengths of its lattice vectors and its volume (both relative).
QUANTITIES = ('coordinates', 'positions', 'lattice', 'volume')
# Principal directions of the features that tell structures apart.
FINGERPRINT = 16
# Larger files are not those of a calibration.
_MOST_BYTES = 50_000_000
# Errors that reading raises where a file holds no calibration.
_ERRORS = (OSError, ValueError, TypeError, KeyError, AttributeError)


@dataclass(frozen=True)
class ErrorLaw:
    """The error of a quantity as a power of sigma, kind by kind.

    The expected error is ``scale[kind] * sigma ** power``; 90 % of the errors lie below
    ``bound[kind]`` times that (split conformal prediction).

    Attributes
    ----------
    power : float
    scale, bound : dict of str to float
        By `Relaxation.kind`.
    """

    power: float
    scale: dict[str, float]
    bound: dict[str, float]

    def expected(self, kind: str, sigma: float | np.ndarray) -> float | np.ndarray:
        """Expected error; nan for a kind that was not calibrated."""
        return self.scale.get(kind, math.nan) * sigma**self.power

    def within(self, kind: str, sigma: float | np.ndarray) -> float | np.ndarray:
        """Upper limit of 90 % of the errors; nan for a kind that was not calibrated."""
        return self.bound.get(kind, math.nan) * self.expected(kind, sigma)


@dataclass(frozen=True)
class PotentialErrors:
    """How far to trust a potential beside the model.

    Attributes
    ----------
    guide : float, eV/A
        Strength of the prediction's pull in a guided relaxation, see `optimize.guide`.
    step : float, A
        What 90 % of the relaxed structures are off by, in the potential's own view: mean
        move of the atoms by one step of `ElasticBFGS`.
    """

    guide: float
    step: float


@dataclass(frozen=True, eq=False, repr=False)
class Environments:
    """The surroundings of atoms that the model knows: mean and spread of its features.

    Attributes
    ----------
    mean : (F,) array
    whitening : (F, F) array
        Features minus ``mean``, times this, have unit covariance; the directions of largest
        variance come first.
    limit : dict of str to float
        By `Relaxation.kind`: 99 % of the structures that the calibration saw have no atom
        farther away.
    elements : frozenset of (int, int)
        Pairs of atomic numbers, the smaller first, that were in one structure in training;
        empty: not known.
    """

    mean: np.ndarray
    whitening: np.ndarray
    limit: dict[str, float] = field(default_factory=dict)
    elements: frozenset[tuple[int, int]] = frozenset()

    def __repr__(self) -> str:
        n_pairs = f'{len(self.elements)} pairs of elements'
        return f'Environments({len(self.mean)} features, {n_pairs})'

    def distances(self, features: np.ndarray) -> np.ndarray:
        """(n_atoms,): Mahalanobis distance of features (n_atoms, F) over sqrt(F).

        Near 1 for atoms as in training.
        """
        whitened = (features - self.mean) @ self.whitening
        return np.sqrt(np.square(whitened).mean(axis=1))

    def fingerprint(self, features: np.ndarray) -> np.ndarray:
        """(`FINGERPRINT`,): where the mean of the atoms lies; near means alike."""
        return (features.mean(axis=0) - self.mean) @ self.whitening[:, :FINGERPRINT]

    def strangers(self, numbers: np.ndarray) -> tuple[int, int] | None:
        """The first pair of elements that were never together in training, or None."""
        if not self.elements:
            return None
        pairs = element_pairs(numbers)
        return next((pair for pair in pairs if pair not in self.elements), None)


def element_pairs(numbers: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of different elements of a structure, the lighter one first.

    >>> element_pairs(np.array([22, 8, 8, 1]))
    [(1, 8), (1, 22), (8, 22)]
    """
    return list(combinations(np.unique(numbers).tolist(), 2))


@dataclass(frozen=True, eq=False, repr=False)
class Calibration:
    """What is known about the errors of a model.

    Attributes
    ----------
    fitted_on : list of dict
        The files, with numbers of structures by kind and the coverage of the 90 % intervals
        where each half of a file was covered by a fit to the other halves.
    laws : dict of str to ErrorLaw
        By `QUANTITIES`.
    environments : Environments
    potentials : dict of str to dict of str to PotentialErrors
        By name, as 'chgnet', and by `Relaxation.kind`.

    Examples
    --------
    >>> from ase_deeprelax.models.store import load_model
    >>> law = load_model('default').calibration.laws['coordinates']  # doctest: +SKIP
    >>> law.expected('bulk', 0.03)  # doctest: +SKIP
    0.02
    """

    fitted_on: list[dict[str, Any]]
    laws: dict[str, ErrorLaw]
    environments: Environments
    potentials: dict[str, dict[str, PotentialErrors]] = field(default_factory=dict)

    def __repr__(self) -> str:
        n = sum(file.get('n', 0) for file in self.fitted_on)
        beside = f', beside {", ".join(self.potentials)}' if self.potentials else ''
        return f'Calibration({n} structures: {"; ".join(self.kinds)}{beside})'

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of structures that it was fitted on."""
        return tuple(self.laws['coordinates'].scale)

    def beside(self, potential: str, kind: str) -> PotentialErrors | None:
        """How far to trust a potential; None where that is not known.

        Parameters
        ----------
        potential : str
            Its name, as 'chgnet'.
        kind : str
            That of the structure. For one that was not fitted, the kind with the cell free
            stands, or else the first one that was fitted.
        """
        known = self.potentials.get(potential, {})
        first = next(iter(known.values()), None)
        return known.get(kind, known.get(kind.partition(',')[0], first))

    def to_dict(self) -> dict[str, Any]:
        """All but the arrays, and the pairs of elements, ready for JSON."""
        return {
            'fitted_on': self.fitted_on,
            'laws': {name: asdict(law) for name, law in self.laws.items()},
            'potentials': {
                name: {kind: asdict(errors) for kind, errors in kinds.items()}
                for name, kinds in self.potentials.items()
            },
            'limit': self.environments.limit,
        }

    def save(self, folder: str | Path, sha256: str) -> None:
        """Write it into the folder of a model.

        Parameters
        ----------
        folder : str or path
        sha256 : str
            Of the model that it belongs to.
        """
        known = self.environments
        belonging = {'sha256': sha256, 'elements': _as_text(known.elements)}
        text = json.dumps(belonging | self.to_dict())
        arrays = {'mean': known.mean, 'whitening': known.whitening}
        arrays = {name: np.asarray(x, np.float32) for name, x in arrays.items()}
        data = safetensors.numpy.save(arrays, metadata={'calibration': text})
        write_atomically(Path(folder) / CALIBRATION, data)

    @classmethod
    def load(cls, folder: str | Path, sha256: str) -> Calibration | None:
        """Read the one of a model; None where its folder holds none.

        Raises
        ------
        ModelError
            The file is damaged, or belongs to another model.
        """
        path = Path(folder) / CALIBRATION
        if not path.is_file():
            return None
        if path.stat().st_size > _MOST_BYTES:
            raise _damaged(path, ValueError('it is too large'))
        try:
            with safetensors.safe_open(path, framework='numpy') as file:
                text = (file.metadata() or {})['calibration']
                # As files of version 0.2 say it.
                data = json.loads(text.replace(', cell held"', ', cell fixed"'))
                arrays = {name: file.get_tensor(name) for name in ('mean', 'whitening')}
            found = cls._from(data, arrays)
        except (*_ERRORS, safetensors.SafetensorError) as error:
            raise _damaged(path, error) from error
        if data['sha256'] != sha256:
            raise ModelError(
                f'{path} belongs to other weights; run "deeprelax calibrate" for these, or '
                'delete the file'
            )
        return found

    @classmethod
    def _from(cls, data: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> Calibration:
        mean, whitening = (arrays[name].astype(float) for name in ('mean', 'whitening'))
        if mean.ndim != 1 or whitening.shape != 2 * mean.shape:
            raise ValueError('its arrays do not fit together')
        if not (np.isfinite(mean).all() and np.isfinite(whitening).all()):
            raise ValueError('its arrays hold values that are not finite')
        return cls(
            fitted_on=list(data['fitted_on']),
            laws={name: _law(data['laws'][name]) for name in QUANTITIES},
            environments=Environments(
                mean, whitening, _numbers(data['limit']), _from_text(data['elements'])
            ),
            potentials={
                name: _by_kind(entry) for name, entry in data['potentials'].items()
            },
        )


def potentials_beside(calibration: Calibration | None) -> str:
    """The names of the potentials that a model is calibrated beside, or 'none'."""
    return ', '.join(calibration.potentials if calibration else ()) or 'none'


def keep_calibration(folder: str | Path, sha256: str, own: Calibration | None) -> None:
    """Leave no calibration in the folder of a model but one that belongs to it.

    Parameters
    ----------
    folder : str or path
    sha256 : str
        Of the model.
    own : Calibration or None
        That of the model, to be written; None: one in the folder stays if it is that of
        the model, and is removed if it is that of another one or cannot be read.
    """
    if own is not None:
        own.save(folder, sha256)
        return
    try:
        Calibration.load(folder, sha256)
    except ModelError:
        (Path(folder) / CALIBRATION).unlink()


def _by_kind(entry: dict[str, Any]) -> dict[str, PotentialErrors]:
    """The errors of a potential; files of version 0.2 hold those of bulk crystals alone."""
    kinds = {'bulk': entry} if 'guide' in entry else entry
    return {kind: PotentialErrors(**_numbers(errors)) for kind, errors in kinds.items()}


def _law(entry: Mapping[str, Any]) -> ErrorLaw:
    [power] = _numbers({'power': entry['power']}).values()
    return ErrorLaw(power, _numbers(entry['scale']), _numbers(entry['bound']))


def _numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of a file by name; ``ValueError`` where one cannot be computed with."""
    for name, value in entry.items():
        if not (isinstance(value, (int, float)) and math.isfinite(value)):
            raise ValueError(f'{name} is {value!r}; it must be a number')
    return dict(entry)


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f'{path} cannot be read ({error}); run "deeprelax calibrate", or delete the file'
    )


def _as_text(pairs: frozenset[tuple[int, int]]) -> dict[str, str]:
    """For each element the heavier ones beside it, by symbols."""
    partners: dict[str, list[str]] = {}
    for light, heavy in sorted(pairs):
        partners.setdefault(chemical_symbols[light], []).append(chemical_symbols[heavy])
    return {symbol: ' '.join(others) for symbol, others in partners.items()}


def _from_text(partners: Mapping[str, str]) -> frozenset[tuple[int, int]]:
    return frozenset(
        (atomic_numbers[symbol], atomic_numbers[other])
        for symbol, others in partners.items()
        for other in others.split()
    )
