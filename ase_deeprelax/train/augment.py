"""Random changes of training pairs: other inputs, other freedom, the same DFT minimum."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import expm, polar

from ase_deeprelax.data.pair import Pair
from ase_deeprelax.geometry.motion import (
    Motion,
    in_plane_strains,
    project_strain,
    strain_projection,
)

if TYPE_CHECKING:
    from ase_deeprelax.train.config import Augment, Denoise, Hold


def augment(
    pair: Pair, motion: Motion, settings: Augment, rng: np.random.Generator
) -> Pair:
    """The pair with its input displaced and strained at random, its target unchanged.

    What may not move stays as it is.
    """
    cell0, frac0 = pair.cell0, pair.frac0
    if pair.scale != 1 and rng.random() < 0.5 and motion.all_free:
        cell0 = cell0 * pair.scale
    if rng.random() < settings.strain_probability and motion.free_strain.any():
        strain = settings.shear * symmetric_noise(rng)
        strain = strain + np.eye(3) * rng.normal(0, settings.strain)
        cell0 = strained(pair, cell0, project_strain(motion.free_strain, strain))
    if rng.random() < settings.noise_probability:
        noise = rng.normal(0, rng.uniform(0, settings.noise), frac0.shape)
        frac0 = displaced(pair, cell0, frac0, noise)
    return repaired(pair, cell0, frac0)


def disturb(pair: Pair, settings: Denoise, rng: np.random.Generator) -> Pair:
    """A denoising pair: a relaxed structure strained and displaced at random.

    The size of the change is drawn first, so that small ones are frequent: many inputs of
    users are nearly relaxed. Simple crystals are strained farther, and often keep their
    symmetry: this is how people write down a crystal whose lattice constant they do not
    know.
    """
    simple, size = is_simple(pair), rng.random() ** 2
    low, high = np.log1p(settings.simple_volume if simple else settings.volume)
    strain = np.eye(3) * rng.uniform(low, high) / 3
    noise = np.zeros(pair.frac1.shape)
    if not (simple and rng.random() < settings.symmetric):
        strain = size * (strain + settings.shear * symmetric_noise(rng))
        rms = size * rng.uniform(*settings.displacement)
        noise = rng.normal(0, rms, pair.frac1.shape)
    if not all(pair.pbc):
        strain = project_strain(pair.motion().free_strain, strain)
    cell0 = strained(pair, pair.cell1, strain)
    return repaired(pair, cell0, displaced(pair, cell0, pair.frac1, noise))


def is_simple(pair: Pair) -> bool:
    """Whether a structure is an element or a binary compound with a small cell.

    The textbook structures are among them: fcc, bcc, hcp, diamond, rocksalt, CsCl,
    zincblende, wurtzite, fluorite, rutile; graphene, hexagonal BN and MoS2, as sheets and
    as layered crystals.
    """
    return len(pair) <= 6 and len(set(pair.numbers.tolist())) <= 2


def draw_weight(pair: Pair, settings: Denoise) -> float:
    """How often a relaxed structure is drawn for denoising, others 1.

    There are few elements, and they are what people try first.
    """
    if not is_simple(pair):
        return 1.0
    is_element = len(set(pair.numbers.tolist())) == 1
    return settings.element_weight if is_element else settings.simple_weight


def hold(pair: Pair, settings: Hold, rng: np.random.Generator) -> tuple[Pair, Motion]:
    """The pair with a part of its freedom taken away, and a target that is still exact.

    The minimum over all atoms and strains is also the minimum over any subset of them that
    leads there: the input keeps a part of the strain that separates it from the relaxed
    cell, and only this part is free; some atoms sit where they are relaxed, and are fixed.

    Returns
    -------
    pair : Pair
    motion : Motion
        What may move in it.
    """
    if pair.fixed_cell or rng.random() >= settings.probability:
        return pair, pair.motion()
    free_strain = random_free_strain(pair, rng)
    if free_strain.any():
        _, stretch = polar(np.linalg.solve(pair.cell0, pair.cell1), side='left')
        lengths, axes = np.linalg.eigh(stretch)
        kept = project_strain(free_strain, (axes * np.log(lengths)) @ axes.T)
        pair = replace(pair, cell0=pair.cell1 @ expm(-kept))
        return pair, Motion(np.zeros(len(pair), dtype=bool), free_strain)
    frac0, fixed = pair.frac0, None
    if len(pair) > 1 and rng.random() < settings.fix_probability:
        fixed = random_atoms(pair, rng)
        frac0 = np.where(fixed[:, None], pair.frac1, frac0)
    pair = replace(pair, cell0=pair.cell1, frac0=frac0, fixed=fixed, fixed_cell=True)
    return pair, pair.motion()


def random_free_strain(pair: Pair, rng: np.random.Generator) -> np.ndarray:
    """No strain at all in most cases, else hydrostatic, volume-conserving or in-plane."""
    draw = rng.random()
    if draw < 0.6 or not all(pair.pbc):
        return np.zeros((6, 6))
    hydrostatic = strain_projection(np.eye(3)[None])
    if draw < 0.7:
        return hydrostatic
    if draw < 0.8:
        return np.eye(6) - hydrostatic
    a, b = rng.permutation(3)[:2]
    normal = np.cross(pair.cell1[a], pair.cell1[b])
    strains = in_plane_strains(normal / np.linalg.norm(normal), thickness=False)
    return strain_projection(strains)


def random_atoms(pair: Pair, rng: np.random.Generator) -> np.ndarray:
    """(n_atoms,) bool: one side of a plane in a random direction, never all atoms."""
    heights = pair.frac1 @ pair.cell1 @ rng.normal(size=3)
    count = rng.integers(1, len(pair))
    return heights <= np.sort(heights)[count - 1]


def strained(pair: Pair, cell: np.ndarray, strain: np.ndarray) -> np.ndarray:
    """A cell after a logarithmic strain; the vacuum vector of a layer stays."""
    if (layer := pair.layer) is not None:
        normal = layer.normal
        strain = strain - (normal @ strain @ normal) * np.outer(normal, normal)
    return cell @ expm(strain)


def displaced(
    pair: Pair, cell: np.ndarray, frac: np.ndarray, displacement: np.ndarray
) -> np.ndarray:
    """Fractional coordinates after displacements, A; fixed atoms stay."""
    if pair.fixed is not None:
        displacement = np.where(pair.fixed[:, None], 0.0, displacement)
    return frac + np.linalg.solve(cell.T, displacement.T).T


def symmetric_noise(rng: np.random.Generator) -> np.ndarray:
    """(3, 3) symmetric normal numbers."""
    noise = rng.normal(size=(3, 3))
    return (noise + noise.T) / 2


def repaired(pair: Pair, cell0: np.ndarray, frac0: np.ndarray) -> Pair:
    """A pair with another input: the target turned so that the change is a pure stretch."""
    _, stretch = polar(np.linalg.solve(cell0, pair.cell1), side='left')
    return replace(pair, cell0=cell0, frac0=frac0, cell1=cell0 @ stretch)
