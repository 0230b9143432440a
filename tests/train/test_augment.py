"""Random changes of training pairs leave the DFT answer what it is."""

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
from ase_deeprelax.geometry.motion import project_strain
from ase_deeprelax.models.base import moved_vectors
from ase_deeprelax.train.augment import augment, disturb, draw_weight, hold, is_simple
from ase_deeprelax.train.config import Augment, Data, Denoise, Hold, Source
from ase_deeprelax.train.datamodule import PairGraphs

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


PAIRS = {'crystal': crystal_pair(), 'layer': layer_pair()}


def lengths(pair):
    """What the relaxed structure is, in whatever orientation."""
    metric = pair.cell1 @ pair.cell1.T
    frac = pair.frac1 - pair.frac1[0]
    return metric, frac - np.rint(frac)


@pytest.mark.parametrize('name', PAIRS)
@quick
@given(SEEDS)
def test_held_pairs_keep_their_answer_and_obey(name, seed):
    rng = np.random.default_rng(seed)
    pair = PAIRS[name]
    changed, motion = hold(pair, Hold(probability=1, fix_probability=0.5), rng)
    changed = augment(changed, motion, Augment(strain_probability=1), rng)
    for new, old in zip(lengths(changed), lengths(pair), strict=True):
        np.testing.assert_allclose(new, old, atol=1e-9)
    deformation, displacement = changed.targets()
    strain = np.real(logm(deformation))
    np.testing.assert_allclose(
        project_strain(motion.free_strain, strain), strain, atol=1e-9
    )
    assert not displacement[motion.fixed].any()
    assert not motion.fixed.all()


@quick
@given(SEEDS)
def test_layers_keep_their_vacuum_vector(seed):
    rng = np.random.default_rng(seed)
    pair = PAIRS['layer']
    for changed in (
        augment(pair, pair.motion(), Augment(strain_probability=1), rng),
        disturb(pair, Denoise(), rng),
    ):
        np.testing.assert_allclose(changed.cell0[2], pair.cell0[2], atol=1e-9)
        assert changed.layer is not None


@pytest.mark.parametrize('name', PAIRS)
@pytest.mark.parametrize('held', [0.0, 1.0])
def test_targets_in_the_graph_lead_to_the_relaxed_structure(name, held):
    """Every edge has the length that it has in the relaxed half of the pair."""
    pair = PAIRS[name]
    data = Data(pairs=[Source(path='x')], hold=Hold(probability=held))
    graphs = PairGraphs([pair], [], GraphSpec(), data=data, dtype=torch.float64)
    for epoch in range(10):
        graph = graphs[epoch, 0]
        target = graph.deformation_target, graph.displacement_target
        vectors = moved_vectors(graph, graph.edge_vectors(), *target)
        found = np.sort(vectors.norm(dim=1).numpy())
        near = found < 4.0  # The graphs' own edges end at a radius before the relaxation.
        lengths_there = np.sort(neighbor_list('d', pair.relaxed, 4.0))
        np.testing.assert_allclose(found[near], lengths_there, atol=1e-6)


def test_thickness_is_a_strain_and_the_rest_displacement():
    relaxed = mx2('MoS2', a=3.2, thickness=3.3, vacuum=9)
    thin = relaxed.copy()
    middle = thin.positions[0, 2]
    thin.positions[:, 2] = middle + (thin.positions[:, 2] - middle) / 1.1
    deformation, displacement = make_pair('x', thin, relaxed).targets()
    np.testing.assert_allclose(deformation, np.diag([1, 1, 1.1]), atol=1e-9)
    np.testing.assert_allclose(displacement, 0, atol=1e-9)
    # A layer that loses its form is displacement: no growth near -1, no division by it.
    flat = relaxed.copy()
    flat.positions[:, 2] = middle - 0.99 * (relaxed.positions[:, 2] - middle)
    _, displacement = make_pair('x', relaxed, flat).targets()
    assert np.abs(displacement).max() < 10


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
