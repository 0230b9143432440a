"""Substitutions: known structures with one or two of their elements replaced."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from ase import Atoms
from ase.build import make_supercell
from ase.data import chemical_symbols
from pymatgen.core import Element

from ase_deeprelax.data.formula import composition
from ase_deeprelax.train.inputs.series import Series


@dataclass(frozen=True)
class Recipe:
    """How substitutions are made.

    Parameters
    ----------
    reach : float
        Substitutes are drawn with the weight ``exp(-change / reach)``, where change is that
        of the Mendeleev number; default 12, about one column of the periodic table.
    bold : float
        Share drawn from all elements alike, default 0.1.
    second : float
        Share in which a second element is replaced as well, default 0.25.
    partial : float
        Share in which half of an element's sites in a doubled cell are replaced,
        default 0.1: the cheap way to displacements that no symmetry forbids.
    max_atoms : int
        Larger cells are not made, default 20.
    scaled : float
        Share in which the cell is then scaled, default 0.
    scale : float
        Largest change of lengths by scaling, up or down, default 0.03.
    """

    reach: float = 12.0
    bold: float = 0.1
    second: float = 0.25
    partial: float = 0.1
    max_atoms: int = 20
    scaled: float = 0.0
    scale: float = 0.03


@dataclass(frozen=True)
class Substitutions(Series):
    """Bulk crystals with elements replaced; atoms and cell relax.

    What has the composition of a parent is not made: its relaxed structure is known.

    Its parameters are those of `Series`; ``recipe`` is a `Recipe`.
    """

    kind: ClassVar[str] = 'bulk'

    recipe: Recipe = field(default_factory=Recipe)

    @property
    def name(self) -> str:
        """As in all files of bulk substitutions so far."""
        return f'substitution-{self.seed}'

    def __post_init__(self) -> None:
        known = {composition(parent.numbers) for parent in self.parents}
        seen = {int(z) for parent in self.parents for z in parent.numbers}
        super().__post_init__()
        object.__setattr__(self, 'excluded', self.excluded | known)
        object.__setattr__(self, 'elements', self.elements & seen)

    def make(self, rng: np.random.Generator) -> tuple[str, Atoms | str]:
        """One crystal with one or two elements replaced, or why there is none."""
        parent = self.parents[rng.integers(len(self.parents))]
        child = substitute(parent.relaxed, self.elements, rng, self.recipe)
        if child is None:
            return parent.id, 'nothing to substitute'
        if self.recipe.scaled and rng.random() < self.recipe.scaled:
            factor = 1 + rng.uniform(-self.recipe.scale, self.recipe.scale)
            child.set_cell(child.cell.array * factor, scale_atoms=True)
        return parent.id, child


@dataclass(frozen=True)
class FixedCells(Substitutions):
    """Bulk crystals with elements replaced; the cell of the parent is fixed.

    Its parameters are those of `Series`. By default half of the cells are scaled by up to
    3 % in length, and 40 % are partial substitutions, because symmetry forbids many others
    to move at all.
    """

    kind: ClassVar[str] = 'fixed-cell'

    recipe: Recipe = field(default_factory=lambda: Recipe(partial=0.4, scaled=0.5))

    name = Series.name


@dataclass(frozen=True)
class Monolayers(Substitutions):
    """Monolayers with elements replaced; atoms and cell relax in the plane.

    Its parameters are those of `Series`; the parents are monolayers in the ab plane.
    """

    kind: ClassVar[str] = 'monolayer'

    name = Series.name


def substitute(
    parent: Atoms,
    elements: Collection[int],
    rng: np.random.Generator,
    recipe: Recipe | None = None,
) -> Atoms | None:
    """A copy of a crystal with one or two elements replaced, its cell unchanged.

    Parameters
    ----------
    parent : ase.Atoms
    elements : collection of int
        Atomic numbers that may come in.
    rng : numpy.random.Generator
    recipe : Recipe, optional

    Returns
    -------
    ase.Atoms or None
        None where nothing can be replaced so.

    Examples
    --------
    >>> from ase.build import bulk
    >>> rng = np.random.default_rng(0)
    >>> child = substitute(bulk('NaCl', 'rocksalt', a=5.6), range(1, 84), rng)
    >>> len(child), child.get_chemical_formula() != 'ClNa'
    (2, True)
    """
    recipe = recipe or Recipe()
    child = parent.copy()
    draw, second = rng.random(), rng.random() < recipe.second
    if draw < recipe.partial and 2 * len(child) <= recipe.max_atoms:
        child = _doubled(child)
        sites = np.flatnonzero(child.numbers == rng.choice(np.unique(child.numbers)))
        sites = rng.permutation(sites)[: len(sites) // 2]
        return _replace(child, sites, elements, rng, recipe)
    if len(child) > recipe.max_atoms:
        return None
    present = rng.permutation(np.unique(child.numbers))
    for old in present[: 2 if second and len(present) > 1 else 1]:
        child = _replace(child, child.numbers == old, elements, rng, recipe)
        if child is None:
            return None
    return child


def draw_element(
    candidates: Sequence[int] | np.ndarray,
    old: int,
    rng: np.random.Generator,
    reach: float,
    bold: float,
) -> np.integer | None:
    """One of ``candidates``, preferably a neighbour of ``old``; None of an empty list."""
    if not len(candidates):
        return None
    distance = np.abs(_mendeleev(candidates) - _mendeleev([old]))
    weights = np.exp(-distance / reach)
    weights = (1 - bold) * weights / weights.sum() + bold / len(weights)
    return rng.choice(candidates, p=weights / weights.sum())


def _doubled(atoms: Atoms) -> Atoms:
    """Twice the cell, along its shortest periodic vector."""
    factors = np.ones(3, int)
    factors[np.argmin(np.where(atoms.pbc, atoms.cell.lengths(), np.inf))] = 2
    return make_supercell(atoms, np.diag(factors))


def _replace(
    atoms: Atoms,
    sites: np.ndarray,
    elements: Collection[int],
    rng: np.random.Generator,
    recipe: Recipe,
) -> Atoms | None:
    """Another element on ``sites``: none that is there already, or atoms would merge."""
    old = int(atoms.numbers[sites][0])
    candidates = np.array(sorted(set(elements) - set(atoms.numbers.tolist())))
    new = draw_element(candidates, old, rng, recipe.reach, recipe.bold)
    if new is None:
        return None
    atoms.numbers[sites] = new
    return atoms


def _mendeleev(numbers: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.array([Element(chemical_symbols[z]).mendeleev_no for z in numbers])
