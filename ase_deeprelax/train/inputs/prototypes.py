"""Textbook structures of elements and simple compounds, at lattice constants from radii."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import chemical_symbols, covalent_radii
from ase.spacegroup import crystal

from ase_deeprelax.train.inputs.series import Series

NOBLE_GASES = frozenset({2, 10, 18, 36, 54, 86})
ANIONS = (1, 6, 7, 8, 9, 15, 16, 17, 33, 34, 35, 51, 52, 53)
# Nearest distance in units of the cubic (of hcp and wurtzite: basal) lattice constant.
ELEMENTS = {'fcc': 0.7071, 'bcc': 0.8660, 'hcp': 1.0, 'diamond': 0.4330, 'sc': 1.0}
BINARIES = {'rocksalt': 0.5, 'cesiumchloride': 0.8660, 'zincblende': 0.4330}
BINARIES |= {'wurtzite': 0.6124, 'fluorite': 0.4330}
PEROVSKITE = 0.5


@dataclass(frozen=True)
class PrototypeRecipe:
    """Shares of the kinds of structures.

    Parameters
    ----------
    elements : float
        Share of elements, default 0.2.
    alloys : float
        Share of ordered alloys of two metals (CsCl), default 0.15.
    perovskites : float
        Share of cubic perovskites, default 0.15. The rest are binary compounds.
    """

    elements: float = 0.2
    alloys: float = 0.15
    perovskites: float = 0.15


class Prototypes(Series):
    """Elements as fcc, bcc, hcp, diamond and sc; compounds of a metal and an anion as
    rocksalt, CsCl, zincblende, wurtzite and fluorite; alloys as CsCl; cubic perovskites.

    They have no parents. See `Series`.

    Examples
    --------
    >>> series = Prototypes([], frozenset({11, 12, 17}))
    >>> parent, atoms, _ = series[3]
    >>> len(atoms) <= 5
    True
    """

    kind: ClassVar[str] = 'prototype'

    def make(self, rng: np.random.Generator) -> tuple[str, Atoms | str]:
        recipe = self.recipe or PrototypeRecipe()
        known = sorted(self.elements - NOBLE_GASES)
        anions = [z for z in ANIONS if z in self.elements]
        metals = [z for z in known if z not in ANIONS]
        draw = rng.random()
        if draw < recipe.elements:
            return _element(rng.choice(known), rng.choice(list(ELEMENTS)))
        if not anions or len(metals) < 2:
            return 'prototype', 'too few elements'
        first, second = rng.permutation(metals)[:2]
        anion = rng.choice(anions)
        if draw < recipe.elements + recipe.alloys:
            return _binary(first, second, 'cesiumchloride')
        if draw < recipe.elements + recipe.alloys + recipe.perovskites:
            return _perovskite(first, second, anion)
        return _binary(first, anion, rng.choice(list(BINARIES)))


def _element(z: int, prototype: str) -> tuple[str, Atoms]:
    a = 2 * covalent_radii[z] / ELEMENTS[prototype]
    settings = {'c': 1.633 * a} if prototype == 'hcp' else {}
    return prototype, bulk(chemical_symbols[z], str(prototype), a=a, **settings)


def _binary(first: int, second: int, prototype: str) -> tuple[str, Atoms]:
    a = (covalent_radii[first] + covalent_radii[second]) / BINARIES[prototype]
    count = '2' if prototype == 'fluorite' else ''
    name = f'{chemical_symbols[first]}{chemical_symbols[second]}{count}'
    return prototype, bulk(name, str(prototype), a=a)


def _perovskite(first: int, second: int, anion: int) -> tuple[str, Atoms]:
    """ABX3 with the larger of two metals as A."""
    large, small = sorted((first, second), key=lambda z: -covalent_radii[z])
    a = (covalent_radii[small] + covalent_radii[anion]) / PEROVSKITE
    symbols = [chemical_symbols[z] for z in (large, small, anion)]
    places = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)]
    return 'perovskite', crystal(
        symbols, places, spacegroup=221, cellpar=[a] * 3 + [90] * 3
    )
