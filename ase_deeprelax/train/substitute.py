"""New unrelaxed structures from known ones: other elements on the same sites."""

from dataclasses import dataclass

import numpy as np
from ase.build import make_supercell
from ase.data import chemical_symbols
from pymatgen.core import Element

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
