"""Inputs of all kinds: what holds for each of them, whatever the random numbers are."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, mx2
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

from ase_deeprelax.data.formula import composition, read_compositions
from ase_deeprelax.data.pair import fixed_atoms, make_pair
from ase_deeprelax.data.relaxed_structures import read_relaxed
from ase_deeprelax.geometry.vacuum import find_layer
from ase_deeprelax.train.inputs import (
    KINDS,
    SERIES,
    Alloys,
    DefectRecipe,
    FixedCells,
    LayerDefects,
    Monolayers,
    Recipe,
    SlabRecipe,
    Slabs,
    Substitutions,
)
from ase_deeprelax.train.inputs.adsorbates import ADSORBATES, add_adsorbate
from ase_deeprelax.train.inputs.defects import best_supercell, make_defect
from ase_deeprelax.train.inputs.slabs import cut_slab, lower_half, random_alloy, stand_up

DATA = Path(__file__).parents[2] / '../shared/data'
ELEMENTS = frozenset(range(1, 84)) - {2, 10, 18, 36, 54}
COUNT = 60

CRYSTALS = {
    'Cu': bulk('Cu', a=3.61),
    'Fe': bulk('Fe', a=2.85),
    'Mg': bulk('Mg'),
    'Si': bulk('Si'),
    'NaCl': bulk('NaCl', 'rocksalt', a=5.69),
    'GaAs': bulk('GaAs', 'zincblende', a=5.75),
    'SrTiO3': Atoms(
        'SrTiO3',
        cell=3 * [3.94],
        scaled_positions=[[0, 0, 0], [0.5] * 3, *(0.5 - np.eye(3) / 2)],
        pbc=True,
    ),
}


def as_seeds(crystals):
    return [make_pair(name, atoms, atoms) for name, atoms in crystals.items()]


@pytest.fixture(scope='module')
def crystals():
    return as_seeds(CRYSTALS)


@pytest.fixture(scope='module')
def layers():
    return as_seeds(
        {
            'MoS2': mx2('MoS2', vacuum=9),
            'WSe2': mx2('WSe2', kind='1T', a=3.3, thickness=3.35, vacuum=8),
        }
    )


@pytest.fixture(scope='module', params=sorted(SERIES))
def series(request, crystals, layers):
    parents = layers if in_plane(request.param) else crystals
    return SERIES[request.param](parents, ELEMENTS, seed=5)


def in_plane(kind):
    return KINDS[kind].relax_cell == 'in-plane'


def made(series, count=COUNT):
    found = [(k, *series[k]) for k in range(count)]
    return [(k, parent, atoms) for k, parent, atoms, _ in found if atoms is not None]


def test_there_is_a_series_for_each_kind():
    assert set(SERIES) == set(KINDS)
    assert all(series.kind == kind for kind, series in SERIES.items())


def test_input_depends_on_its_number_only(series, crystals, layers):
    parents = layers if in_plane(series.kind) else crystals
    again = type(series)(parents, ELEMENTS, seed=5)
    assert again.name == series.name
    for k in reversed(range(20)):
        assert again[k] == series[k]
    other = type(series)(parents, ELEMENTS, seed=6)
    assert other.name != series.name
    assert [other[k][1] for k in range(20)] != [series[k][1] for k in range(20)]


def test_inputs_are_structures_that_can_be_relaxed(series):
    found = made(series)
    assert len(found) > 0.6 * COUNT
    for _, _, atoms in found:
        assert np.isfinite(atoms.positions).all()
        # Prototypes of hydrogen are denser; `relax_batched` refuses the densest.
        assert atoms.cell.volume > (0.2 if 1 in atoms.numbers else 2) * len(atoms)
        assert set(atoms.numbers.tolist()) <= ELEMENTS
        assert not len(neighbor_list('i', atoms, 0.5 * covalent_radii[atoms.numbers]))


def test_excluded_compositions_are_not_made(series, crystals, layers):
    parents = layers if in_plane(series.kind) else crystals
    gone = frozenset(composition(atoms.numbers) for _, _, atoms in made(series)[::3])
    careful = type(series)(parents, ELEMENTS, seed=5, excluded=gone)
    assert careful.name == series.name
    for k in range(COUNT):
        _, atoms, problem = careful[k]
        before = series[k][1]
        if before is not None and composition(before.numbers) in gone:
            assert atoms is None
            assert 'excluded' in problem
        elif atoms is not None:
            assert atoms == before


@pytest.mark.parametrize('kind', [kind for kind in SERIES if in_plane(kind)])
def test_what_relaxes_in_the_plane_is_made_from_layers(kind, crystals, layers):
    assert SERIES[kind]([*crystals, *layers], ELEMENTS).parents == layers


def test_hubbard_inputs_can_be_left_out(crystals):
    series = FixedCells(crystals, ELEMENTS, seed=1, hubbard=False)
    found = [series[k] for k in range(200)]
    assert any(problem == 'needs a Hubbard U' for *_, problem in found)
    assert not any(
        {23, 24, 25, 26, 27, 28, 42, 74} & set(atoms.numbers)
        and {8, 9} & set(atoms.numbers)
        for _, atoms, _ in found
        if atoms is not None
    )


def test_name_tells_other_settings_and_other_parents(crystals):
    one = Slabs(crystals, ELEMENTS)
    assert one.name.startswith('slab-0-')
    names = {
        one.name,
        Slabs(crystals[:-1], ELEMENTS).name,
        Slabs(crystals, ELEMENTS, recipe=SlabRecipe(alloy=0.9)).name,
        Slabs(crystals, ELEMENTS - {1}).name,
        Slabs(crystals, ELEMENTS, seed=1).name,
    }
    assert len(names) == 5
    assert Substitutions(crystals, ELEMENTS, seed=3).name == 'substitution-3'


def test_fixed_cells_are_those_of_the_parent_some_of_them_scaled(crystals):
    parents = {seed.id: seed for seed in crystals}
    factors = []
    for _, parent, atoms in made(FixedCells(crystals, ELEMENTS, seed=2), 100):
        whole = len(atoms) // len(parents[parent])
        volume = atoms.cell.volume / whole / np.linalg.det(parents[parent].cell1)
        factors.append(volume ** (1 / 3))
    factors = np.array(factors)
    assert np.abs(factors - 1).max() < 0.0301
    assert 0.3 < np.mean(np.abs(factors - 1) < 1e-9) < 0.7


def test_bulk_inputs_keep_the_cell_of_the_parent(crystals):
    parents = {seed.id: seed for seed in crystals}
    recipe = Recipe(partial=0)
    for _, parent, atoms in made(Substitutions(crystals, ELEMENTS, recipe=recipe)):
        assert np.array_equal(atoms.cell.array, parents[parent].cell1)


def test_monolayers_keep_their_vacuum(layers):
    parents = {seed.id: seed for seed in layers}
    recipe = Recipe(partial=0.5)
    found = made(Monolayers(layers, ELEMENTS, recipe=recipe))
    assert {len(atoms) for *_, atoms in found} == {3, 6}
    for _, parent, atoms in found:
        assert atoms.pbc.tolist() == [True, True, False]
        assert np.array_equal(atoms.cell[2], parents[parent].cell1[2])


def test_defects_in_layers_keep_the_vacuum_and_repeat_in_the_plane(layers):
    parents = {seed.id: seed for seed in layers}
    found = made(LayerDefects(layers, ELEMENTS, seed=1))
    sizes = np.array([len(atoms) for *_, atoms in found])
    assert 29 <= sizes.min() < sizes.max() <= 65
    for _, parent, atoms in found:
        assert atoms.pbc.tolist() == [True, True, False]
        assert np.array_equal(atoms.cell[2], parents[parent].cell1[2])
        # The images of the defect are as far apart along a as along b.
        assert atoms.cell.lengths()[0] == pytest.approx(atoms.cell.lengths()[1], rel=0.4)


def test_alloys_are_parents_with_sites_that_are_shared_or_empty(crystals):
    parents = {seed.id: seed for seed in crystals}
    shared = empty = 0
    for _, parent, atoms in made(Alloys(crystals, ELEMENTS, seed=1), 150):
        host = parents[parent]
        size = atoms.cell.volume / np.linalg.det(host.cell1) * len(host)
        assert 8 <= round(size) <= 72
        assert size == pytest.approx(round(size))
        new = set(atoms.numbers.tolist()) - set(host.numbers.tolist())
        assert len(new) <= 1
        if len(atoms) < round(size):
            empty += 1
            assert not new
        else:
            shared += bool(new)
    assert shared > 50
    assert empty > 15


def test_slabs_stand_on_the_ab_plane_with_their_lower_half_fixed(crystals):
    fixed_share = []
    series = Slabs(crystals, ELEMENTS, seed=1)
    found = made(series, 150)
    for _, _, atoms in found:
        assert np.abs(atoms.cell.array[[0, 1, 2, 2], [2, 2, 0, 1]]).max() < 1e-9
        assert np.linalg.det(atoms.cell) > 0
        layer = find_layer(atoms)
        assert np.allclose(layer.normal, [0, 0, 1])
        assert 11.99 < layer.vacuum < 20.01
        assert len(atoms) <= series.recipe.max_atoms + 4
        heights, fixed = atoms.positions[:, 2], fixed_atoms(atoms)
        fixed_share.append(fixed.any())
        if fixed.any():
            assert heights[fixed].max() < heights[~fixed].min()
            assert fixed.sum() < len(atoms)
            assert len(atoms.constraints) == 1
    assert 0.7 < np.mean(fixed_share) < 0.98
    assert {atoms.pbc[2] for *_, atoms in found} == {True, False}
    names = {parent for _, parent, _ in found}
    assert {'Cu', 'NaCl', 'SrTiO3', 'alloy-fcc111', 'alloy-bcc110'} <= names
    covered = [len(atoms) for _, name, atoms in found if name.startswith('alloy-')]
    assert len(set(covered)) > 6


@pytest.mark.parametrize('name', sorted(CRYSTALS))
def test_cut_slabs_have_the_bonds_of_their_crystal(name):
    crystal = CRYSTALS[name]
    shortest = neighbor_list('d', crystal, 4.0).min()
    for seed in range(12):
        slab = cut_slab(crystal, np.random.default_rng(seed), SlabRecipe())
        assert composition(slab.numbers) == composition(crystal.numbers)
        slab = stand_up(slab, 15.0)
        assert neighbor_list('d', slab, 4.0).min() == pytest.approx(shortest, abs=1e-4)


def test_lower_half_is_whole_planes():
    slab = fcc111('Cu', (2, 2, 5), vacuum=8)
    slab.positions[:, 2] += np.random.default_rng(0).normal(0, 0.02, len(slab))
    fixed = lower_half(slab)
    assert fixed.reshape(5, 4).all(axis=1).tolist() == [True, True, False, False, False]
    one_plane = fcc111('Cu', (2, 2, 1), vacuum=8)
    assert not lower_half(one_plane).any()


def test_alloys_have_two_to_five_metals_of_similar_size():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        _, slab = random_alloy(ELEMENTS, rng, SlabRecipe())
        assert len(np.unique(slab.numbers)) <= 5
        nearest = [neighbor_list('d', slab, 5.0).min()]
        assert 2.2 < min(nearest) < 3.8
    assert random_alloy(frozenset({29}), np.random.default_rng(0), SlabRecipe())[1] is None


@pytest.mark.parametrize('seed', range(30))
def test_adsorbate_touches_the_surface_and_nothing_else(seed):
    slab = fcc111('Pt', (3, 3, 4), vacuum=8)
    covered = add_adsorbate(slab, ELEMENTS, np.random.default_rng(seed))
    new = covered[len(slab) :]
    assert new.get_chemical_formula(mode='all') in {
        Atoms(name).get_chemical_formula(mode='all') for name in ADSORBATES
    }
    assert np.array_equal(covered.positions[: len(slab)], slab.positions)
    binding = len(slab)
    distances = covered.get_distances(binding, np.arange(len(slab)), mic=True)
    touch = covalent_radii[78] + covalent_radii[new.numbers[0]]
    assert distances.min() == pytest.approx(touch, abs=0.02)
    assert new.positions[:, 2].min() > slab.positions[:, 2].max()


def test_no_adsorbate_of_unknown_elements():
    slab = fcc111('Pt', (2, 2, 3), vacuum=8)
    assert len(add_adsorbate(slab, frozenset({78}), np.random.default_rng(0))) == len(slab)


@pytest.mark.parametrize(
    ('shares', 'change'),
    [((1, 0, 0, 0), -1), ((0, 1, 0, 0), 0), ((0, 0, 1, 0), 0), ((0, 0, 0, 1), 1)],
)
def test_defects_change_one_site(shares, change):
    host = best_supercell(CRYSTALS['NaCl'], 30, 64)
    assert 30 <= len(host) <= 64
    recipe = DefectRecipe(shares=shares, rattled=0, distorted=0)
    for seed in range(10):
        defect = make_defect(host, ELEMENTS, np.random.default_rng(seed), recipe)
        assert len(defect) == len(host) + change
        assert np.array_equal(defect.cell, host.cell)
        counts = np.bincount(defect.numbers, minlength=100)
        moved = np.abs(counts - np.bincount(host.numbers, minlength=100)).sum()
        assert moved == (1 if change else 2)
        elements = set(host.numbers.tolist())
        if shares[1] == 0:
            assert set(defect.numbers.tolist()) <= elements


def test_distortions_and_noise_are_as_large_as_asked():
    host = best_supercell(CRYSTALS['SrTiO3'], 30, 64)
    vacancy = (1, 0, 0, 0)
    sizes = []
    for seed in range(20):
        ideal, noisy, bent = (
            make_defect(host, ELEMENTS, np.random.default_rng(seed), recipe)
            for recipe in (
                DefectRecipe(vacancy, rattled=0, distorted=0),
                DefectRecipe(vacancy, rattled=1, distorted=0),
                DefectRecipe(vacancy, rattled=0, distorted=1),
            )
        )
        sizes.append(np.std(noisy.positions - ideal.positions))
        moved = np.linalg.norm(bent.positions - ideal.positions, axis=1) > 1e-9
        assert 1 <= moved.sum() <= 4
    assert 0.017 < min(sizes) < max(sizes) < 0.11


def test_supercells_are_as_compact_as_they_can_be():
    assert np.allclose(best_supercell(bulk('Cu', cubic=True), 30, 64).cell.lengths(), 7.22)
    assert best_supercell(CRYSTALS['SrTiO3'] * (3, 3, 3), 30, 64) is None


@pytest.fixture(scope='module')
def real():
    if not DATA.exists():
        pytest.skip('../shared/data is not there')
    excluded = frozenset(read_compositions(DATA / 'exclude_formulas.txt'))
    bulk_seeds = read_relaxed(DATA / 'seeds_mp.jsonl.gz', (), 20)[::10]
    layers = [
        s for s in read_relaxed(DATA / 'seeds_2d.jsonl.gz', (), 20) if s.src != 'c2db'
    ]
    return excluded, bulk_seeds, layers


@pytest.mark.parametrize('kind', sorted(SERIES))
def test_real_seeds_make_inputs_without_held_out_compositions(real, kind):
    excluded, bulk_seeds, layers = real
    parents = layers if in_plane(kind) else bulk_seeds
    series = SERIES[kind](parents, ELEMENTS, excluded=excluded, hubbard=False)
    found = made(series, 80)
    assert len(found) > 40
    assert not excluded & {composition(atoms.numbers) for *_, atoms in found}
    parents = {parent.id: parent for parent in parents}
    if kind in ('slab', 'defect', 'layer-defect'):
        assert not excluded & {
            composition(parents[parent].numbers)
            for _, parent, _ in found
            if parent in parents
        }
