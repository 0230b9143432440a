"""Alloys: supercells of crystals whose sites of one element are shared or partly empty."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from ase import Atoms
from ase.build import make_supercell

from ase_deeprelax.train.inputs.series import Series, repetitions
from ase_deeprelax.train.inputs.substitutions import draw_element


@dataclass(frozen=True)
class AlloyRecipe:
    """How alloys are made.

    Parameters
    ----------
    min_atoms, max_atoms : int
        Size of the supercell, default 8 to 72.
    max_parent_atoms : int
        Crystals with larger cells are not used, default 8.
    vacancies : float
        Share in which sites are left empty instead of shared with a second element,
        default 0.25.
    layered : float
        Share in which the two elements fill layers, as in a superlattice, default 0.2;
        otherwise they sit at random.
    reach, bold : float
        For the second element, see `Recipe`; default 8 and 0.05.
    """

    min_atoms: int = 8
    max_atoms: int = 72
    max_parent_atoms: int = 8
    vacancies: float = 0.25
    layered: float = 0.2
    reach: float = 8.0
    bold: float = 0.05


@dataclass(frozen=True)
class Alloys(Series):
    """Supercells of relaxed crystals in which one element shares its sites; all relaxes.

    Its parameters are those of `Series`; ``recipe`` is an `AlloyRecipe`.
    """

    kind: ClassVar[str] = 'alloy'

    recipe: AlloyRecipe = field(default_factory=AlloyRecipe)

    def make(self, rng: np.random.Generator) -> tuple[str, Atoms | str]:
        """One alloy, or why there is none."""
        parent, problem = self.draw_parent(rng)
        if problem:
            return parent.id, problem
        host = random_supercell(parent.relaxed, self.recipe, rng)
        if host is None:
            return parent.id, 'no supercell of the right size'
        old = int(rng.choice(np.unique(host.numbers)))
        sites = np.flatnonzero(host.numbers == old)
        if len(sites) < 2:
            return parent.id, 'a single site cannot be shared'
        count = int(rng.integers(1, len(sites)))
        if rng.random() < self.recipe.vacancies:
            count = max(1, min(count, len(sites) // 2))
            del host[rng.permutation(sites)[:count]]
            return parent.id, host
        candidates = sorted(self.elements - {old})
        new = draw_element(candidates, old, rng, self.recipe.reach, self.recipe.bold)
        if new is None:
            return parent.id, 'nothing to substitute'
        order = rng.permutation(sites)
        if rng.random() < self.recipe.layered:
            axis = rng.integers(3)
            height = host.get_scaled_positions()[order, axis]
            order = order[np.argsort(height.round(3), kind='stable')]
        host.numbers[order[:count]] = new
        return parent.id, host


def random_supercell(
    crystal: Atoms, recipe: AlloyRecipe, rng: np.random.Generator
) -> Atoms | None:
    """A repeated cell, any number of times along each vector that the size allows."""
    fitting = repetitions(crystal, recipe.min_atoms, recipe.max_atoms)
    times = [t for t in fitting if max(t) <= 4]
    if not times:
        return None
    # Small ones are as frequent as large ones.
    sizes = sorted({int(np.prod(t)) for t in times})
    size = sizes[rng.integers(len(sizes))]
    times = [t for t in times if np.prod(t) == size]
    return make_supercell(crystal, np.diag(times[rng.integers(len(times))]))
