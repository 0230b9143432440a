"""A numbered series of unrelaxed structures that are made from relaxed ones."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.data import covalent_radii

from ase_deeprelax.data.formula import composition
from ase_deeprelax.data.pair import Pair
from ase_deeprelax.geometry.neighbors import close_pairs

# MP and WBM computed oxides and fluorides of these with a Hubbard U: a potential trained
# without it relaxes them to other volumes than the pairs from DFT have.
HUBBARD = frozenset({23, 24, 25, 26, 27, 28, 42, 74})
HUBBARD_ANIONS = frozenset({8, 9})
# Atoms closer than this share of the sum of their covalent radii are not a structure that
# anybody relaxes.
CLOSEST = 0.5


@dataclass(frozen=True)
class Kind:
    """What relaxes in structures of one kind.

    Attributes
    ----------
    relax_cell : bool or str
        See `optimize.many.relax_batched`.
    needs : frozenset of str
        What a model has to have learned, as its card says, to predict such structures.
    steps : int
        The usual limit of steps of a relaxation; lower for bulk crystals, which start near
        their minimum with a model.
    volume_known : bool
        Whether half of the training inputs begin at the relaxed volume, as Vegard's law
        gives it for alloys: the ``scale`` of the pair leads there.
    """

    relax_cell: bool | str
    needs: frozenset[str]
    steps: int = 120
    volume_known: bool = False


KINDS = {
    'bulk': Kind(True, frozenset({'bulk'}), steps=45),
    'prototype': Kind(True, frozenset({'bulk'})),
    'fixed-cell': Kind(False, frozenset({'bulk', 'fixed cell'})),
    'monolayer': Kind('in-plane', frozenset({'layer'})),
    'slab': Kind(False, frozenset({'layer', 'fixed cell', 'fixed atoms'})),
    'defect': Kind(False, frozenset({'bulk', 'fixed cell'})),
    'layer-defect': Kind('in-plane', frozenset({'layer'})),
    'alloy': Kind(True, frozenset({'bulk'}), volume_known=True),
}


@dataclass(frozen=True)
class Series:
    """A numbered series of new structures: number ``k`` depends on ``seed`` and ``k`` only.

    Each kind of structure is a subclass that says how one input is made.

    Parameters
    ----------
    parents : list of Pair
        Relaxed structures to start from.
    elements : collection of int
        Atomic numbers that may occur.
    seed : int
    excluded : set
        Compositions that must not be made, see `formula.composition`; parents of these
        compositions are not used either.
    hubbard : bool
        Whether to make what `needs_hubbard`, default True.
    recipe : object
        Settings of the kind.

    Attributes
    ----------
    kind : str
        A key of `KINDS`.
    """

    kind: ClassVar[str]

    parents: list[Pair]
    elements: frozenset[int]
    seed: int = 0
    excluded: frozenset = frozenset()
    hubbard: bool = True
    recipe: Any = field(default=None)

    def __post_init__(self) -> None:
        usable = [p for p in self.parents if self.usable(p)]
        object.__setattr__(self, 'parents', usable)

    @property
    def name(self) -> str:
        """The kind, the seed, and a short hash of the settings and the parents.

        Two series with the same name have the same structure number ``k``.
        """
        text = repr((self.recipe, sorted(self.elements), [p.id for p in self.parents]))
        return f'{self.kind}-{self.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}'

    def __getitem__(self, k: int) -> tuple[str, Atoms | None, str]:
        """Id of the parent, the new structure or None, and why there is none or ''."""
        rng = np.random.default_rng((self.seed, k))
        parent, child = self.make(rng)
        if isinstance(child, str):
            return parent, None, child
        if composition(child.numbers) in self.excluded:
            return parent, None, 'composition excluded'
        if not self.hubbard and needs_hubbard(child):
            return parent, None, 'needs a Hubbard U'
        if atoms_overlap(child):
            return parent, None, 'atoms overlap'
        return parent, child, ''

    def usable(self, parent: Pair) -> bool:
        """Whether inputs are made from this parent: small enough, of known elements, and
        a layer where the kind relaxes in the plane.
        """
        if KINDS[self.kind].relax_cell == 'in-plane' and all(parent.pbc):
            return False
        if len(parent) > getattr(self.recipe, 'max_parent_atoms', math.inf):
            return False
        return self.elements.issuperset(parent.numbers.tolist())

    def make(self, rng: np.random.Generator) -> tuple[str, Atoms | str]:
        """Id of the parent, and one new structure or the reason why there is none."""
        raise NotImplementedError

    def draw_parent(self, rng: np.random.Generator) -> tuple[Pair, str]:
        """A parent at random, and why it must not be used or ''."""
        parent = self.parents[rng.integers(len(self.parents))]
        excluded = composition(parent.numbers) in self.excluded
        return parent, 'composition of the parent excluded' if excluded else ''


def repetitions(
    crystal: Atoms, min_atoms: int, max_atoms: int
) -> list[tuple[int, int, int]]:
    """All numbers of repetitions along the periodic vectors that give so many atoms.

    >>> from ase.build import bulk
    >>> repetitions(bulk('Cu'), 2, 2)
    [(1, 1, 2), (1, 2, 1), (2, 1, 1)]
    """
    most = max_atoms // len(crystal)
    a, b, c = (most if periodic else 1 for periodic in crystal.pbc)
    return [
        (i, j, k)
        for i in range(1, a + 1)
        for j in range(1, min(b, most // i) + 1)
        for k in range(1, min(c, most // (i * j)) + 1)
        if i * j * k * len(crystal) >= min_atoms
    ]


def needs_hubbard(atoms: Atoms) -> bool:
    """Whether Materials Project's settings would add a Hubbard U.

    >>> from ase import Atoms
    >>> needs_hubbard(Atoms('FeO')), needs_hubbard(Atoms('FeS'))
    (True, False)
    """
    present = set(atoms.numbers.tolist())
    return bool(present & HUBBARD and present & HUBBARD_ANIONS)


def atoms_overlap(atoms: Atoms) -> bool:
    """Whether two atoms are closer than `CLOSEST` times the sum of their covalent radii.

    >>> from ase import Atoms
    >>> atoms_overlap(Atoms('H2', [[0, 0, 0], [0, 0, 0.2]]))
    True
    """
    radii = CLOSEST * covalent_radii[atoms.numbers]
    i, j, distance = close_pairs(
        atoms.positions, atoms.cell.array, 2 * radii.max(), atoms.pbc
    )
    return bool((distance < radii[i] + radii[j]).any())
