"""Slabs: low-index surfaces of crystals and of random alloys, some with an adsorbate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.build import bcc110, fcc100, fcc111, hcp0001
from ase.constraints import FixAtoms
from ase.data import atomic_numbers, covalent_radii, reference_states
from pymatgen.core import Structure
from pymatgen.core.surface import SlabGenerator
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from ase_deeprelax.geometry.vacuum import layer_or_none
from ase_deeprelax.train.inputs.adsorbates import add_adsorbate
from ase_deeprelax.train.inputs.series import Series

MILLER = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))
# Atoms whose heights differ by less belong to one atomic plane, A.
PLANE = 0.3
# An adsorbate and its image in the next cell are at least this far apart, A.
ADSORBATE_ROOM = 4.5
# Metals for random alloys. Those of the platinum and coinage groups come in more often:
# most alloy surfaces that people relax with adsorbates are made of them.
NOBLE = ('Co', 'Ni', 'Cu', 'Ru', 'Rh', 'Pd', 'Ag', 'Ir', 'Pt', 'Au')
METALS = (
    *NOBLE,
    *('Mg', 'Al', 'Sc', 'Ti', 'V', 'Cr', 'Mn', 'Fe', 'Zn', 'Y', 'Zr', 'Nb'),
    *('Mo', 'Cd', 'Hf', 'Ta', 'W', 'Re', 'Os', 'Pb'),
)
# Atoms per cell of the cubic lattices.
PER_CUBE = {'fcc': 4, 'bcc': 2}


@dataclass(frozen=True)
class SlabRecipe:
    """How slabs are made.

    Parameters
    ----------
    alloy : float
        Share of random metal alloys, default 0.45; the rest are cut from relaxed crystals.
    adsorbate : float
        Share that carry an adsorbate, where the cell has room for one, default 0.65.
    free : float
        Share without fixed atoms, default 0.15.
    noble : float
        Share of the alloys that are made of `NOBLE` metals only, default 0.5.
    max_atoms : int
        Larger slabs are not made, default 40.
    max_parent_atoms : int
        Crystals with larger cells are not cut, default 8.
    thickness : (float, float), A
        Range for slabs that are cut from crystals, default 5 to 9.
    vacuum : (float, float), A
        Range, default 12 to 20.
    """

    alloy: float = 0.45
    adsorbate: float = 0.65
    free: float = 0.15
    noble: float = 0.5
    max_atoms: int = 40
    max_parent_atoms: int = 8
    thickness: tuple[float, float] = (5.0, 9.0)
    vacuum: tuple[float, float] = (12.0, 20.0)


@dataclass(frozen=True)
class Slabs(Series):
    """Ideal slabs, as cut from a relaxed crystal or built from a random alloy.

    The cell is fixed. The lower half of the atomic planes is fixed in most of them.

    Its parameters are those of `Series`; ``recipe`` is a `SlabRecipe`.
    """

    kind: ClassVar[str] = 'slab'

    recipe: SlabRecipe = field(default_factory=SlabRecipe)

    def make(self, rng: np.random.Generator) -> tuple[str, Atoms | str]:
        """One slab, with its adsorbate and its fixed atoms, or why there is none."""
        recipe, vacuum = self.recipe, rng.uniform(*self.recipe.vacuum)
        if not self.parents or rng.random() < recipe.alloy:
            name, slab = random_alloy(self.elements, rng, recipe)
        else:
            parent, problem = self.draw_parent(rng)
            if problem:
                return parent.id, problem
            name, slab = parent.id, cut_slab(parent.relaxed, rng, recipe)
        if slab is None:
            return name, f'no slab of at most {recipe.max_atoms} atoms'
        slab = stand_up(slab, vacuum)
        if slab is None:
            return name, 'not one slab: vacuum within it'
        fixed = lower_half(slab)
        if rng.random() < recipe.adsorbate and _room(slab) > ADSORBATE_ROOM:
            slab = stand_up(add_adsorbate(slab, self.elements, rng), vacuum)
            if slab is None:
                return name, 'the adsorbate is too far from the slab'
            fixed = np.append(fixed, np.zeros(len(slab) - len(fixed), dtype=bool))
        if rng.random() >= recipe.free:
            slab.set_constraint(FixAtoms(mask=fixed))
        slab.pbc = (True, True, rng.random() < 0.5)
        return name, slab


def cut_slab(crystal: Atoms, rng: np.random.Generator, recipe: SlabRecipe) -> Atoms | None:
    """A low-index slab with a termination drawn at random, repeated in the plane.

    Parameters
    ----------
    crystal : ase.Atoms
    rng : numpy.random.Generator
    recipe : SlabRecipe

    Returns
    -------
    ase.Atoms or None
        None where no slab has at most ``recipe.max_atoms`` atoms.
    """
    miller = MILLER[rng.integers(len(MILLER))]
    structure = AseAtomsAdaptor.get_structure(crystal)
    # Low-index planes of the reduced primitive cell. To look for the primitive cell of each
    # slab instead would be slow, and can crash in pymatgen.
    primitive = SpacegroupAnalyzer(structure).find_primitive() or structure
    generator = SlabGenerator(
        primitive.get_reduced_structure('niggli'),
        miller,
        min_slab_size=rng.uniform(*recipe.thickness),
        min_vacuum_size=recipe.vacuum[0],
        primitive=False,
        lll_reduce=True,
        max_normal_search=1,
    )
    cuts = _cuts(generator.oriented_unit_cell)
    slab = generator.get_slab(shift=float(cuts[rng.integers(len(cuts))]))
    found: Any = AseAtomsAdaptor.get_atoms(slab, msonable=False)
    slab = Atoms(found.numbers, cell=found.cell, positions=found.positions, pbc=True)
    sizes = [
        (i, j, 1)
        for i in (1, 2, 3)
        for j in (1, 2, 3)
        if i * j * len(slab) <= recipe.max_atoms
    ]
    return slab.repeat(sizes[rng.integers(len(sizes))]) if sizes else None


def random_alloy(
    elements: frozenset[int], rng: np.random.Generator, recipe: SlabRecipe
) -> tuple[str, Atoms | None]:
    """A close-packed or bcc slab with two to five metals on random sites.

    Parameters
    ----------
    elements : collection of int
        Atomic numbers that may occur.
    rng : numpy.random.Generator
    recipe : SlabRecipe

    Returns
    -------
    name : str
    slab : ase.Atoms or None
        None where the metals do not suffice.
    """
    names = NOBLE if rng.random() < recipe.noble else METALS
    metals = [m for m in names if atomic_numbers[m] in elements]
    build = (fcc111, fcc111, fcc100, hcp0001, bcc110)[rng.integers(5)]
    name = f'alloy-{build.__name__}'
    count = int(rng.integers(2, 6))
    if len(metals) < 2:
        return name, None
    # The others are drawn with a preference for metals of about the same size.
    first = metals[rng.integers(len(metals))]
    volumes = np.array([atomic_volume(m) for m in metals])
    chances = np.exp(-np.abs(np.log(volumes / atomic_volume(first))) / 0.15)
    chances[metals.index(first)] = 0
    count = min(count, int((chances > 0).sum()) + 1)
    others = rng.choice(metals, count - 1, replace=False, p=chances / chances.sum())
    chosen = [first, *others.tolist()]
    shares = rng.dirichlet(np.full(count, 2.0))
    sides = [
        (n, n, layers)
        for n in (2, 3)
        for layers in (3, 4, 5)
        if n * n * layers <= recipe.max_atoms
    ]
    if not sides:
        return name, None
    size = sides[rng.integers(len(sides))]
    symbols = rng.choice(chosen, int(np.prod(size)), p=shares)
    volume = np.mean([atomic_volume(m) for m in symbols])
    volume *= rng.uniform(0.96, 1.05)
    if build is hcp0001:
        a = (np.sqrt(2) * volume) ** (1 / 3)
        slab = build('Mg', size, a=a, c=np.sqrt(8 / 3) * a, vacuum=6.0)
    else:
        lattice = 'bcc' if build is bcc110 else 'fcc'
        slab = build('Cu', size, a=(PER_CUBE[lattice] * volume) ** (1 / 3), vacuum=6.0)
    return name, Atoms(symbols, cell=slab.cell, positions=slab.positions, pbc=slab.pbc)


def atomic_volume(symbol: str) -> float:
    """Volume per atom of a metal, A^3, from ASE's table or the covalent radius.

    >>> round(atomic_volume('Cu'), 1)
    11.8
    """
    number = atomic_numbers[symbol]
    state: Any = reference_states[number]
    if state['symmetry'] in PER_CUBE:
        return state['a'] ** 3 / PER_CUBE[state['symmetry']]
    if state['symmetry'] == 'hcp':
        return 3**0.5 / 4 * state['a'] ** 3 * state['c/a']
    return float(4 * np.sqrt(2) * covalent_radii[number] ** 3)


def stand_up(slab: Atoms, vacuum: float) -> Atoms | None:
    """The slab in the ab plane, the third vector perpendicular to it.

    Parameters
    ----------
    slab : ase.Atoms
        Its third vector crosses the vacuum.
    vacuum : float, A

    Returns
    -------
    ase.Atoms or None
        None where it is not one slab.
    """
    slab = slab.copy()
    slab.pbc = (True, True, False)
    layer = layer_or_none(slab)
    if layer is None:
        return None
    positions, cell = layer.standard_box(slab, vacuum)
    flat = Atoms(slab.numbers, cell=cell, positions=positions, pbc=slab.pbc)
    flat.set_cell(flat.cell.standard_form()[0], scale_atoms=True)
    flat.wrap(pbc=(True, True, False))
    return flat


def lower_half(slab: Atoms) -> np.ndarray:
    """Atoms of the lower half of the slab, in whole atomic planes.

    Parameters
    ----------
    slab : ase.Atoms
        Its layers are perpendicular to z.

    Returns
    -------
    (n_atoms,) bool
        At most half of the atoms, but one plane at least where there are two or more.
    """
    heights = slab.positions[:, 2]
    order = np.argsort(heights, kind='stable')
    plane = np.zeros(len(slab), dtype=int)
    plane[order] = np.append(0, np.cumsum(np.diff(heights[order]) > PLANE))
    sizes = np.bincount(plane)
    lower = np.flatnonzero(np.cumsum(sizes) <= len(slab) / 2)
    last = lower.max(initial=0)
    return plane <= last if len(sizes) > 1 else np.zeros(len(slab), dtype=bool)


def _cuts(crystal: Structure) -> np.ndarray:
    """Heights between the atomic planes along the third vector, as fractions of it."""
    heights = np.sort(crystal.frac_coords[:, 2] % 1.0)
    gaps = np.diff(heights, append=heights[0] + 1.0)
    period = crystal.lattice.volume / np.linalg.norm(np.cross(*crystal.lattice.matrix[:2]))
    wide = gaps * period > PLANE
    return (heights + gaps / 2)[wide] % 1.0 if wide.any() else np.zeros(1)


def _room(slab: Atoms) -> float:
    """The shortest distance between parallel lattice lines of the plane, A."""
    a, b = slab.cell[0], slab.cell[1]
    area = np.linalg.norm(np.cross(a, b))
    return float(area / max(np.linalg.norm(a), np.linalg.norm(b)))
