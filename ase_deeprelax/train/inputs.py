"""Unrelaxed structures to make pairs from: substitutions in known ones, or given ones."""

from dataclasses import dataclass, field

import numpy as np
from ase.build import make_supercell
from ase.data import chemical_symbols
from pymatgen.core import Element

from ase_deeprelax.data.pair import Pair
from ase_deeprelax.train.datamodule import composition

# MP and WBM computed oxides and fluorides of these with a Hubbard U: a potential trained
# without it relaxes them to other volumes than the pairs from DFT have.
HUBBARD = frozenset({23, 24, 25, 26, 27, 28, 42, 74})
HUBBARD_ANIONS = frozenset({8, 9})


@dataclass(frozen=True)
class Recipe:
    """How inputs are made.

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
    """

    reach: float = 12.0
    bold: float = 0.1
    second: float = 0.25
    partial: float = 0.1
    max_atoms: int = 20


@dataclass(frozen=True)
class Substitutions:
    """A numbered series of new structures: number ``k`` depends on ``seed`` and ``k`` only.

    Parameters
    ----------
    parents : list of Pair
        Relaxed structures. What has the composition of one of them is not made: its
        relaxed structure is known.
    elements : collection of int
        Atomic numbers that may come in.
    seed : int
    excluded : set
        Compositions that must not be made, see `datamodule.composition`.
    hubbard : bool
        Whether to make what `needs_hubbard`, default True.
    recipe : Recipe
    """

    parents: list[Pair]
    elements: frozenset[int]
    seed: int = 0
    excluded: frozenset = frozenset()
    hubbard: bool = True
    recipe: Recipe = field(default_factory=Recipe)

    @property
    def name(self):
        """Tells this series from those of other seeds."""
        return f'substitution-{self.seed}'

    def __post_init__(self):
        known = {composition(parent.numbers) for parent in self.parents}
        seen = {int(z) for parent in self.parents for z in parent.numbers}
        usable = [p for p in self.parents if self.elements.issuperset(p.numbers.tolist())]
        object.__setattr__(self, 'excluded', self.excluded | known)
        object.__setattr__(self, 'elements', self.elements & seen)
        object.__setattr__(self, 'parents', usable)

    def __getitem__(self, k):
        """Id of the parent, the new structure or None, and why there is none or ''."""
        rng = np.random.default_rng((self.seed, k))
        parent = self.parents[rng.integers(len(self.parents))]
        child = substitute(parent.relaxed, self.elements, rng, self.recipe)
        if child is None:
            return parent.id, None, 'nothing to substitute'
        if composition(child.numbers) in self.excluded:
            return parent.id, None, 'composition excluded or known'
        if not self.hubbard and needs_hubbard(child):
            return parent.id, None, 'needs a Hubbard U'
        return parent.id, child, ''


@dataclass(frozen=True)
class Structures:
    """A numbered series of given structures, such as a generator's.

    Parameters
    ----------
    structures : list of Pair
        Unrelaxed structures, see `datamodule.read_seeds`.
    elements : collection of int
        Atomic numbers that the potential knows.
    name : str
        Tells this series from others in the same file.
    excluded : set
        Compositions to leave out.
    hubbard : bool
        Whether to take what `needs_hubbard`, default True.
    """

    structures: list[Pair]
    elements: frozenset[int]
    name: str
    excluded: frozenset = frozenset()
    hubbard: bool = True

    def __len__(self):
        return len(self.structures)

    def __getitem__(self, k):
        """Id, structure or None, and why there is none or ''."""
        given = self.structures[k]
        if composition(given.numbers) in self.excluded:
            return given.id, None, 'composition excluded'
        if not self.elements.issuperset(given.numbers.tolist()):
            return given.id, None, 'element that the potential does not know'
        if not self.hubbard and needs_hubbard(given.unrelaxed):
            return given.id, None, 'needs a Hubbard U'
        return given.id, given.unrelaxed, ''


def substitute(parent, elements, rng, recipe=None):
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


def needs_hubbard(atoms):
    """Whether Materials Project's settings would add a Hubbard U.

    >>> from ase import Atoms
    >>> needs_hubbard(Atoms('FeO')), needs_hubbard(Atoms('FeS'))
    (True, False)
    """
    present = set(atoms.numbers.tolist())
    return bool(present & HUBBARD and present & HUBBARD_ANIONS)


def _doubled(atoms):
    """Twice the cell, along its shortest vector."""
    factors = np.ones(3, int)
    factors[np.argmin(atoms.cell.lengths())] = 2
    return make_supercell(atoms, np.diag(factors))


def _replace(atoms, sites, elements, rng, recipe):
    """Another element on ``sites``: none that is there already, or atoms would merge."""
    old = atoms.numbers[sites][0]
    candidates = np.array(sorted(set(elements) - set(atoms.numbers.tolist())))
    if not len(candidates):
        return None
    distance = np.abs(_mendeleev(candidates) - _mendeleev([old]))
    weights = np.exp(-distance / recipe.reach)
    weights = (1 - recipe.bold) * weights / weights.sum() + recipe.bold / len(weights)
    atoms.numbers[sites] = rng.choice(candidates, p=weights / weights.sum())
    return atoms


def _mendeleev(numbers):
    return np.array([Element(chemical_symbols[z]).mendeleev_no for z in numbers])
