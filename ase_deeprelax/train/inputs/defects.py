"""Point defects in supercells of crystals and layers, some of them distorted or rattled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from ase import Atoms
from ase.build import make_supercell
from ase.data import covalent_radii
from ase.geometry import get_distances

from ase_deeprelax.train.inputs.series import Series, repetitions
from ase_deeprelax.train.inputs.substitutions import draw_element

KINDS = ('vacancy', 'substitution', 'antisite', 'split interstitial')
# Bonds end at this multiple of the sum of covalent radii.
BOND = 1.3


@dataclass(frozen=True)
class DefectRecipe:
    """How point defects are made.

    Parameters
    ----------
    shares : 4 floats
        Of vacancies, substitutions, antisites and split interstitials, default 0.35, 0.3,
        0.2 and 0.15. Elements have no antisites: a vacancy takes the place of one.
    min_atoms, max_atoms : int
        Size of the supercell before the defect, default 30 to 64.
    max_parent_atoms : int
        Crystals with larger cells are not used, default 20.
    rattled : float
        Share in which all atoms are displaced by normal noise of 0.02 to 0.1 A, so that
        a symmetry may break; default 0.5.
    distorted : float
        Share in which some neighbours of the defect are moved towards it or away by up to
        half of their distance, as in ShakeNBreak; default 0.15.
    reach : float
        For substitutes, see `Recipe`; default 12.
    bold : float
        For substitutes, see `Recipe`; default 0.1.
    """

    shares: tuple[float, float, float, float] = (0.35, 0.3, 0.2, 0.15)
    min_atoms: int = 30
    max_atoms: int = 64
    max_parent_atoms: int = 20
    rattled: float = 0.5
    distorted: float = 0.15
    reach: float = 12.0
    bold: float = 0.1


@dataclass(frozen=True)
class Defects(Series):
    """Supercells of relaxed crystals with one point defect; the cell is fixed.

    Its parameters are those of `Series`; ``recipe`` is a `DefectRecipe`.
    """

    kind: ClassVar[str] = 'defect'

    recipe: DefectRecipe = field(default_factory=DefectRecipe)

    def make(self, rng: np.random.Generator) -> tuple[str, Atoms | str]:
        """One supercell with its defect, or why there is none."""
        parent, problem = self.draw_parent(rng)
        if problem:
            return parent.id, problem
        smallest, largest = self.recipe.min_atoms, self.recipe.max_atoms
        host = best_supercell(parent.relaxed, smallest, largest)
        if host is None:
            return parent.id, f'no supercell of {smallest} to {largest} atoms'
        defect = make_defect(host, self.elements, rng, self.recipe)
        return parent.id, 'nothing to substitute' if defect is None else defect


@dataclass(frozen=True)
class LayerDefects(Defects):
    """Supercells of monolayers with one point defect; the cell relaxes in the plane.

    Its parameters are those of `Series`; the parents are monolayers in the ab plane. Half
    of the substitutes are of any element, as metal atoms in graphene are.
    """

    kind: ClassVar[str] = 'layer-defect'

    recipe: DefectRecipe = field(default_factory=lambda: DefectRecipe(bold=0.5))


def best_supercell(crystal: Atoms, min_atoms: int, max_atoms: int) -> Atoms | None:
    """The repeated cell whose periodic images are farthest apart.

    Parameters
    ----------
    crystal : ase.Atoms
    min_atoms, max_atoms : int

    Returns
    -------
    ase.Atoms or None
        None where no repetition has a number of atoms in the range.

    Examples
    --------
    >>> from ase.build import bulk
    >>> len(best_supercell(bulk('NaCl', 'rocksalt', a=5.69, cubic=True), 30, 70))
    64
    """
    # The height of the cell along each vector, A; a vacuum has no images.
    heights = 1 / np.linalg.norm(np.linalg.inv(crystal.cell.array), axis=0)
    heights[~crystal.pbc] = np.inf
    candidates = repetitions(crystal, min_atoms, max_atoms)
    if not candidates:
        return None
    # The smallest height first, rounded so that its last digit decides nothing; then size.
    times = max(
        candidates, key=lambda t: (round(float((heights * t).min()), 3), -np.prod(t))
    )
    return make_supercell(crystal, np.diag(times))


def make_defect(
    host: Atoms,
    elements: frozenset[int],
    rng: np.random.Generator,
    recipe: DefectRecipe | None = None,
) -> Atoms | None:
    """A copy of a supercell with one point defect.

    Parameters
    ----------
    host : ase.Atoms
    elements : collection of int
        Atomic numbers that may come in.
    rng : numpy.random.Generator
    recipe : DefectRecipe, optional

    Returns
    -------
    ase.Atoms or None
        None where nothing can be substituted.

    Examples
    --------
    >>> from ase.build import bulk
    >>> rng = np.random.default_rng(0)
    >>> recipe = DefectRecipe(shares=(1, 0, 0, 0))
    >>> len(make_defect(bulk('MgO', 'rocksalt', a=4.25) * 3, range(1, 84), rng, recipe))
    53
    """
    recipe = recipe or DefectRecipe()
    kind = KINDS[rng.choice(4, p=recipe.shares)]
    site = int(rng.integers(len(host)))
    centre, old = host.positions[site].copy(), int(host.numbers[site])
    others = np.setdiff1d(host.numbers, [old])
    if kind == 'antisite' and not len(others):
        kind = 'vacancy'
    defect, core = host.copy(), [site]
    if kind == 'vacancy':
        del defect[site]
        core = []
    elif kind == 'antisite':
        defect.numbers[site] = rng.choice(others)
    elif kind == 'substitution':
        candidates = sorted(set(elements) - {old})
        new = draw_element(candidates, old, rng, recipe.reach, recipe.bold)
        if new is None:
            return None
        defect.numbers[site] = new
    else:
        new = int(rng.choice(np.unique(host.numbers)))
        axis = rng.normal(size=3)
        axis /= np.linalg.norm(axis)
        length = rng.uniform(0.75, 1.0) * (covalent_radii[old] + covalent_radii[new])
        defect.positions[site] = centre + axis * length / 2
        defect += Atoms([new], positions=[centre - axis * length / 2])
        core = [site, len(defect) - 1]
    if rng.random() < recipe.distorted:
        _distort(defect, centre, old, core, rng)
    if rng.random() < recipe.rattled:
        defect.positions += rng.normal(0, rng.uniform(0.02, 0.1), (len(defect), 3))
    return defect


def _distort(
    defect: Atoms,
    centre: np.ndarray,
    number: int,
    core: list[int],
    rng: np.random.Generator,
) -> None:
    """Move one to four neighbours of the defect along their bonds to it, in place."""
    vectors, distances = get_distances(
        [centre], defect.positions, cell=defect.cell, pbc=defect.pbc
    )
    vectors, distances = vectors[0], distances[0]
    reach = BOND * (covalent_radii[defect.numbers] + covalent_radii[number])
    near = np.setdiff1d(np.flatnonzero(distances < reach), core)
    chosen = rng.permutation(near)[: rng.integers(1, 5)]
    factor = rng.uniform(-0.5, 0.5)
    defect.positions[chosen] += factor * vectors[chosen]
