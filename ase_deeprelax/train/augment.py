"""Random changes of training samples: other inputs, other freedom, the same DFT minimum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ase_deeprelax.data.graph import CrystalGraph
from ase_deeprelax.data.pair import Pair
from ase_deeprelax.geometry.motion import STRAIN_BASIS
from ase_deeprelax.models.heads import project_strains
from ase_deeprelax.models.layers import mean_over_atoms
from ase_deeprelax.train.samples import Samples, with_input

if TYPE_CHECKING:
    from ase_deeprelax.train.config import Augment, Data, Denoise, Hold


def changed(
    samples: Samples, denoised: torch.Tensor, settings: Data, generator: torch.Generator
) -> Samples:
    """All random changes of a batch.

    Parameters
    ----------
    samples : Samples
    denoised : (n_graphs,) bool
        Relaxed structures that become denoising pairs.
    settings : train.config.Data
    generator : torch.Generator
    """
    dice = Dice(samples.graph, generator)
    samples = disturb(samples, settings.denoise, dice, denoised)
    samples = hold(samples, settings.hold, dice)
    return augment(samples, settings.augment, Dice(samples.graph, generator), ~denoised)


class Dice:
    """Random numbers for a batch, on its device."""

    def __init__(self, graph: CrystalGraph, generator: torch.Generator):
        self.graph, self.generator = graph, generator

    def uniform(
        self, low: float | torch.Tensor = 0.0, high: float | torch.Tensor = 1.0
    ) -> torch.Tensor:
        """(n_graphs,) uniform numbers between two bounds."""
        numbers = self._draw(torch.rand, self.graph.n_graphs)
        return low + (high - low) * numbers

    def normal(self) -> torch.Tensor:
        """(n_graphs,) normal numbers."""
        return self._draw(torch.randn, self.graph.n_graphs)

    def symmetric(self) -> torch.Tensor:
        """(n_graphs, 3, 3) symmetric matrices of normal numbers."""
        noise = self._draw(torch.randn, self.graph.n_graphs, 3, 3)
        return (noise + noise.mT) / 2

    def displacements(self, rms: torch.Tensor) -> torch.Tensor:
        """(n_atoms, 3) normal numbers; each graph has its rms, and fixed atoms stay."""
        graph = self.graph
        noise = self._draw(torch.randn, graph.num_nodes, 3)
        noise = noise * rms.index_select(0, graph.graph_of_atom).unsqueeze(1)
        return noise.masked_fill(graph.fixed.unsqueeze(1), 0.0)

    def directions(self) -> torch.Tensor:
        """(n_graphs, 3) normal numbers."""
        return self._draw(torch.randn, self.graph.n_graphs, 3)

    def _draw(self, law: Callable[..., torch.Tensor], *size: int) -> torch.Tensor:
        pos = self.graph.pos
        return law(*size, generator=self.generator, dtype=pos.dtype, device=pos.device)


def augment(
    samples: Samples, settings: Augment, dice: Dice, which: torch.Tensor
) -> Samples:
    """Inputs displaced and strained at random, with the targets that they had.

    What may not move stays as it is, and so do graphs that are not ``which``, (n_graphs,)
    bool.
    """
    graph = samples.graph
    of_atom = graph.graph_of_atom
    fixed = mean_over_atoms(graph.fixed.to(graph.pos.dtype), graph) > 0
    eye = torch.eye(6, dtype=graph.pos.dtype, device=graph.pos.device)
    all_free = (graph.free_strain == eye).all(2).all(1) & ~fixed
    scale = torch.where((dice.uniform() < 0.5) & all_free & which, samples.scale, 1.0)
    strain = settings.shear * dice.symmetric()
    strain = strain + isotropic(settings.strain * dice.normal())
    strained = (dice.uniform() < settings.strain_probability) & which
    strain = free_part(samples, strain * strained[:, None, None])
    deformation = scale[:, None, None] * torch.linalg.matrix_exp(strain)
    rms = dice.uniform(0.0, settings.noise)
    noisy = (dice.uniform() < settings.noise_probability) & which
    rms = torch.where(noisy, rms, 0.0)
    # The noise acts on the strained structure.
    noise = dice.displacements(rms)
    noise = torch.linalg.solve(
        deformation.mT.index_select(0, of_atom), noise.unsqueeze(2)
    ).squeeze(2)
    return replace(samples, graph=with_input(graph, noise, deformation))


def disturb(
    samples: Samples, settings: Denoise, dice: Dice, which: torch.Tensor
) -> Samples:
    """Denoising pairs: relaxed structures strained and displaced at random.

    Only graphs that are ``which``, (n_graphs,) bool, are changed.

    The size of the change is drawn first, so that small ones are frequent: many inputs of
    users are nearly relaxed. Simple crystals are strained farther, and often keep their
    symmetry: this is how people write down a crystal whose lattice constant they do not
    know.
    """
    simple, size = samples.simple, dice.uniform().square()
    bounds = torch.tensor(
        [settings.volume, settings.simple_volume], dtype=size.dtype, device=size.device
    )
    low, high = bounds.log1p().index_select(0, simple.long()).unbind(1)
    strain = isotropic(dice.uniform(low, high) / 3)
    whole = simple & (dice.uniform() < settings.symmetric)
    other = size[:, None, None] * (strain + settings.shear * dice.symmetric())
    strain = torch.where(whole[:, None, None], strain, other)
    rms = torch.where(whole | ~which, 0.0, size * dice.uniform(*settings.displacement))
    strain = free_part(samples, strain * which[:, None, None])
    deformation = torch.linalg.matrix_exp(strain)
    return replace(
        samples, graph=with_input(samples.graph, dice.displacements(rms), deformation)
    )


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


def hold(samples: Samples, settings: Hold, dice: Dice) -> Samples:
    """Samples of which some lost a part of their freedom; their targets are still exact.

    The minimum over all atoms and strains is also the minimum over any subset of them that
    leads there: the input keeps a part of the strain that separates it from the relaxed
    cell, and only this part is free; some atoms sit where they are relaxed, and are fixed.
    """
    graph = samples.graph
    of_atom, (target, displacement) = graph.graph_of_atom, graph.targets()
    held = (dice.uniform() < settings.probability) & graph.free_strain.flatten(1).any(1)
    free_strain = random_free_strain(samples, dice)
    lengths, axes = torch.linalg.eigh(target)
    strain = (axes * lengths.log().unsqueeze(1)) @ axes.mT
    kept = project_strains(free_strain, strain)
    deformation = target @ torch.linalg.matrix_exp(-kept)
    eye = torch.eye(3, dtype=target.dtype, device=target.device)
    deformation = torch.where(held[:, None, None], deformation, eye)
    fixing = held & ~free_strain.flatten(1).any(1)
    fixing &= dice.uniform() < settings.fix_probability
    fixed = one_side(graph, dice) & fixing.index_select(0, of_atom)
    moved = torch.where(fixed.unsqueeze(1), displacement, 0.0)
    graph = replace(
        with_input(graph, moved, deformation),
        fixed=graph.fixed | fixed,
        free_strain=torch.where(held[:, None, None], free_strain, graph.free_strain),
    )
    return replace(samples, graph=graph)


def random_free_strain(samples: Samples, dice: Dice) -> torch.Tensor:
    """Projections (n_graphs, 6, 6) of the kinds that people use, the same for no layer.

    No strain at all in most cases and for layers, else hydrostatic, volume-conserving or
    within the plane of two lattice vectors.
    """
    graph = samples.graph
    basis = torch.from_numpy(STRAIN_BASIS).to(graph.pos)
    hydrostatic = torch.zeros(6, 6, dtype=basis.dtype, device=basis.device)
    hydrostatic[0, 0] = 1
    eye = torch.eye(6, dtype=basis.dtype, device=basis.device)
    deformation, _ = graph.targets()
    vectors = graph.cell @ deformation
    normals = vectors.roll(-1, dims=1).cross(vectors, dim=2)
    which = (dice.uniform() * 3).long().clamp(max=2)[:, None, None].expand(-1, 1, 3)
    normal = torch.nn.functional.normalize(normals.gather(1, which).squeeze(1), dim=1)
    in_plane = eye - out_of_plane(normal, basis)
    draw = dice.uniform()[:, None, None]
    layer = samples.normal.any(1)[:, None, None]
    choice = torch.where(draw < 0.8, eye - hydrostatic, in_plane)
    choice = torch.where(draw < 0.7, hydrostatic, choice)
    return torch.where((draw < 0.6) | layer, 0.0, choice)


def out_of_plane(normal: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Projections (n, 6, 6) on the strains that involve unit vectors ``normal`` (n, 3)."""
    eye = torch.eye(3, dtype=normal.dtype, device=normal.device)
    first = normal.cross(eye.index_select(0, normal.abs().argmin(1)), dim=1)
    first = torch.nn.functional.normalize(first, dim=1)
    axes = torch.stack([normal, first, normal.cross(first, dim=1)], dim=1)
    strains = normal[:, None, :, None] * axes[:, :, None, :]
    strains = torch.einsum('gkij,aij->gka', strains + strains.mT, basis)
    strains = torch.nn.functional.normalize(strains, dim=2)
    return strains.mT @ strains


def one_side(graph: CrystalGraph, dice: Dice) -> torch.Tensor:
    """(n_atoms,) bool: the atoms on one side of a plane in a random direction.

    At least one atom of each graph is on the other side.
    """
    of_atom, (deformation, displacement) = graph.graph_of_atom, graph.targets()
    place = (graph.pos + displacement).unsqueeze(1)
    direction = deformation @ dice.directions().unsqueeze(2)
    heights = (place @ direction.index_select(0, of_atom)).flatten()
    order = heights.argsort(stable=True)
    order = order[of_atom.index_select(0, order).argsort(stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    rank = rank - graph.starts[:-1].index_select(0, of_atom)
    sizes = graph.starts.diff()
    # one atom to all but one
    count = (1 + dice.uniform() * (sizes - 1)).floor().long().clamp(max=sizes - 1)
    return rank < count.index_select(0, of_atom)


def isotropic(strain: torch.Tensor) -> torch.Tensor:
    """(n,) strains of all directions alike as matrices (n, 3, 3)."""
    eye = torch.eye(3, dtype=strain.dtype, device=strain.device)
    return strain[:, None, None] * eye


def free_part(samples: Samples, strain: torch.Tensor) -> torch.Tensor:
    """The part of log strains (n_graphs, 3, 3) that is free and keeps vacuum vectors."""
    strain = project_strains(samples.graph.free_strain, strain)
    n = samples.normal
    across = torch.einsum('gi,gij,gj->g', n, strain, n)
    return strain - across[:, None, None] * n.unsqueeze(2) * n.unsqueeze(1)
