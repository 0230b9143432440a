"""Unrelaxed structures that come from a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms, FixCartesian, FixScaled, FixSymmetry

from ase_deeprelax.data.formula import composition
from ase_deeprelax.data.pair import Pair
from ase_deeprelax.errors import ConfigError, StructureError
from ase_deeprelax.geometry.vacuum import find_layer, layer_or_none
from ase_deeprelax.predict.structure_checks import check_cell
from ase_deeprelax.train.inputs.series import KINDS, needs_hubbard


@dataclass(frozen=True)
class Given:
    """An unrelaxed structure and its id."""

    id: str
    unrelaxed: Atoms

    @property
    def numbers(self) -> np.ndarray:
        """Atomic numbers."""
        return self.unrelaxed.numbers


@dataclass(frozen=True)
class Structures:
    """A numbered series of given structures, such as a generator's.

    Parameters
    ----------
    structures : list of Given or Pair
        Of pairs, the unrelaxed structures are taken.
    elements : collection of int
        Atomic numbers that the potential knows.
    name : str
        Tells this series from others in the same file.
    excluded : set
        Compositions to leave out.
    hubbard : bool
        Whether to take what `needs_hubbard`, default True.
    kind : str
        A key of `KINDS`, which says what relaxes; default 'bulk'.

    Raises
    ------
    ConfigError
        There is no such kind.
    """

    structures: Sequence[Given | Pair]
    elements: frozenset[int]
    name: str
    excluded: frozenset = frozenset()
    hubbard: bool = True
    kind: str = 'bulk'

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f'kind is {self.kind!r}; it must be {", ".join(KINDS)}')

    def __len__(self) -> int:
        return len(self.structures)

    def __getitem__(self, k: int) -> tuple[str, Atoms | None, str]:
        """Id, structure or None, and why there is none or ''."""
        given = self.structures[k]
        if composition(given.numbers) in self.excluded:
            return given.id, None, 'composition excluded'
        if not self.elements.issuperset(given.numbers.tolist()):
            return given.id, None, 'element that the potential does not know'
        if not self.hubbard and needs_hubbard(given.unrelaxed):
            return given.id, None, 'needs a Hubbard U'
        problem = _not_of_kind(given.unrelaxed, self.kind)
        return given.id, None if problem else given.unrelaxed, problem


def _not_of_kind(atoms: Atoms, kind: str) -> str:
    """Why a pair could not tell what relaxed in a structure, or ''."""
    if 'layer' in KINDS[kind].needs:
        try:
            check_cell(atoms)
            layer = find_layer(atoms)
        except StructureError as error:
            return str(error)
        if layer is None:
            return f'not a layer, which the kind {kind} is; use the kind bulk or fixed-cell'
    elif layer_or_none(atoms) is not None:
        return f'a layer, which the kind {kind} is not; use the kind monolayer or slab'
    for constraint in atoms.constraints:
        known = isinstance(constraint, (FixAtoms, FixScaled, FixCartesian, FixSymmetry))
        if not known or not np.all(getattr(constraint, 'mask', True)):
            return (
                f'constraint {type(constraint).__name__}: a pair can say only that atoms '
                'are fixed along all axes; fix them so, or remove the constraint'
            )
    return ''
