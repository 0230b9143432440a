"""Random changes of training pairs leave the DFT answer what it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk, graphene, mx2
from ase.neighborlist import neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import logm

pytest.importorskip('pydantic')

from ase_deeprelax.data.graph import GraphSpec
from ase_deeprelax.data.pair import make_pair
from ase_deeprelax.data.radius_edges import with_radius_edges
from ase_deeprelax.geometry.motion import project_strain
from ase_deeprelax.models.base import moved_vectors, relaxed_structure
from ase_deeprelax.train.augment import changed, draw_weight, is_simple
from ase_deeprelax.train.config import Augment, Data, Denoise, Hold, Source
from ase_deeprelax.train.datamodule import TrainingBatches
from ase_deeprelax.train.samples import fit_thickness, to_samples

SEEDS = st.integers(0, 10_000)
quick = settings(max_examples=60, deadline=None)


def crystal_pair():
    relaxed = bulk('NaCl', 'rocksalt', a=5.6, cubic=True)
    relaxed.rattle(0.05, seed=1)
    unrelaxed = relaxed.copy()
    strain = np.array([[1.05, 0.02, 0.0], [0.02, 0.97, 0.01], [0.0, 0.01, 1.08]])
    unrelaxed.set_cell(relaxed.cell.array @ strain, scale_atoms=True)
    unrelaxed.rattle(0.1, seed=2)
    return make_pair('crystal', unrelaxed, relaxed)


def layer_pair():
    relaxed = mx2('MoS2', a=3.2, thickness=3.3, vacuum=9).repeat((2, 1, 1))
    relaxed.rattle(0.05, seed=3)
    unrelaxed = relaxed.copy()
    strain = np.array([[1.04, 0.02, 0.0], [0.02, 0.97, 0.0], [0.0, 0.0, 1.0]])
    unrelaxed.set_cell(relaxed.cell.array @ strain, scale_atoms=True)
    unrelaxed.rattle(0.1, seed=4)
    return make_pair('layer', unrelaxed, relaxed, kind='monolayer')


def slab_pair():
    """Half of the atoms are fixed, and the cell."""
    pair = layer_pair()
    fixed = pair.frac1[:, 2] < np.median(pair.frac1[:, 2])
    frac0 = np.where(fixed[:, None], pair.frac1, pair.frac0)
    return replace(pair, cell0=pair.cell1, frac0=frac0, fixed=fixed, fixed_cell=True)


PAIRS = {'crystal': crystal_pair(), 'layer': layer_pair(), 'slab': slab_pair()}
ALL = Data(
    pairs=[Source(path='x')],
    hold=Hold(probability=0.7),
    augment=Augment(strain_probability=0.8, noise_probability=0.8),
)


def batch(seed, data=ALL, denoised=False, copies=40):
    """Many copies of each pair, as they are, and changed at random."""
    pairs = [pair for pair in PAIRS.values() for _ in range(copies)]
    if denoised:
        pairs = [replace(pair, cell0=pair.cell1, frac0=pair.frac1) for pair in pairs]
    samples = to_samples(pairs, GraphSpec())
    which = torch.full((len(pairs),), denoised)
    generator = torch.Generator().manual_seed(seed)
    return samples, changed(samples, which, data, generator)


@pytest.mark.parametrize('denoised', [False, True])
def test_the_relaxed_structure_stays(denoised):
    """Beside a rotation: lattice vectors and distances in the cell are what they were."""
    before, after = batch(0, denoised=denoised)
    cells = [relaxed_structure(x.graph, *x.graph.targets()) for x in (before, after)]
    metrics, places = zip(*[(cell @ cell.mT, pos) for cell, pos in cells], strict=True)
    torch.testing.assert_close(*metrics, atol=1e-9, rtol=0)
    for one, two in zip(
        *(x.split(before.graph.starts.diff().tolist()) for x in places), strict=True
    ):
        torch.testing.assert_close(torch.cdist(one, one), torch.cdist(two, two))
    assert not torch.allclose(before.graph.pos, after.graph.pos)


def test_what_is_held_does_not_move():
    before, after = batch(1)
    graph = fit_thickness(after)
    logs = [logm(deformation.numpy()).real for deformation in graph.deformation_target]
    for free, strain in zip(graph.free_strain.numpy(), logs, strict=True):
        np.testing.assert_allclose(project_strain(free, strain), strain, atol=1e-9)
    assert not graph.displacement_target[graph.fixed].any()
    assert (graph.fixed >= before.graph.fixed).all()
    by_graph = graph.fixed.split(graph.starts.diff().tolist())
    assert not any(fixed.all() for fixed in by_graph)
    kinds = {
        tuple(free.diagonal().round(decimals=6).tolist()) for free in graph.free_strain
    }
    assert len(kinds) > 4  # all, none, hydrostatic, volume-conserving, in some plane


def test_fixed_atoms_and_vacuum_vectors_of_inputs_stay():
    data = ALL.model_copy(update={'hold': Hold(probability=0)})
    for denoised in (False, True):
        before, after = batch(2, data, denoised)
        layers = before.normal.any(1)
        vectors = [x.graph.cell[layers, 2] for x in (before, after)]
        torch.testing.assert_close(*vectors, atol=1e-9, rtol=0)
        fixed = before.graph.fixed
        torch.testing.assert_close(
            before.graph.pos[fixed], after.graph.pos[fixed], atol=1e-9, rtol=0
        )


@quick
@given(SEEDS, st.sampled_from(sorted(PAIRS)), st.booleans())
def test_targets_in_the_graph_lead_to_the_relaxed_structure(seed, name, denoised):
    """Every edge has the length that it has in the relaxed half of the pair."""
    pair = PAIRS[name]
    pairs, relaxed = [pair], [replace(pair, cell0=pair.cell1, frac0=pair.frac1)]
    batches = TrainingBatches(
        pairs, relaxed, GraphSpec(), data=ALL, seed=seed, dtype=torch.float64
    )
    graph = with_radius_edges(batches[0, 0, np.array([int(denoised)])], 6.0)
    vectors = moved_vectors(graph, graph.edge_vectors(), *graph.targets())
    found = np.sort(vectors.norm(dim=1).numpy())
    near = found < 4.0  # The graphs' own edges end at a radius before the relaxation.
    lengths_there = np.sort(neighbor_list('d', pair.relaxed, 4.0))
    np.testing.assert_allclose(found[near], lengths_there, atol=1e-6)


def test_a_batch_of_which_all_are_strained_too_far_is_of_the_pairs_as_they_are():
    too_far = Augment(strain=100, strain_probability=1)
    data = ALL.model_copy(update={'augment': too_far, 'hold': Hold(probability=0)})
    pairs, spec = [PAIRS['crystal']] * 2, GraphSpec(max_neighbors=12)
    changed_, given_ = (
        TrainingBatches(pairs, [], spec, data=settings_, seed=1)[0, 0, np.arange(2)]
        for settings_ in (data, None)
    )
    for name, tensor in given_.tensors().items():
        assert torch.equal(changed_.tensors()[name], tensor)


def test_targets_are_those_of_the_pair():
    for name, pair in PAIRS.items():
        graph = fit_thickness(to_samples([pair], GraphSpec()))
        for found, expected in zip(graph.targets(), pair.targets(), strict=True):
            np.testing.assert_allclose(found.squeeze(0), expected, atol=1e-9, err_msg=name)


def test_simple_crystals_are_strained_far_and_keep_their_symmetry():
    copper = bulk('Cu', cubic=True)
    pairs = [make_pair('Cu', copper, copper)] * 200
    samples = to_samples(pairs, GraphSpec(), [True] * len(pairs))
    which = torch.ones(len(pairs), dtype=torch.bool)
    after = changed(
        samples, which, ALL.model_copy(update={'hold': Hold()}), torch.Generator()
    )
    ratio = torch.linalg.det(after.graph.cell) / copper.get_volume()
    assert ratio.min() < 0.8
    assert ratio.max() > 1.3
    cells = after.graph.cell
    cubic = (cells - torch.eye(3) * cells[:, :1, :1]).abs().amax((1, 2)) < 1e-9
    assert 60 < cubic.sum() < 140


def test_elements_and_simple_compounds_are_drawn_often():
    def seed(atoms):
        return make_pair('x', atoms, atoms)

    settings_ = Denoise(simple_weight=5, element_weight=60)
    assert draw_weight(seed(bulk('Fe')), settings_) == 60
    assert draw_weight(seed(bulk('NaCl', 'rocksalt', a=5.6)), settings_) == 5
    assert draw_weight(seed(bulk('NaCl', 'rocksalt', a=5.6, cubic=True)), settings_) == 1
    assert draw_weight(seed(graphene(vacuum=9)), settings_) == 60
    assert is_simple(seed(mx2('MoS2', vacuum=5)))
    assert not is_simple(seed(graphene(vacuum=9).repeat((2, 2, 1))))
