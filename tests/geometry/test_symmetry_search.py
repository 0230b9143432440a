"""Operations near the tolerance: the same for every way of writing down a crystal."""

import gzip
import itertools
import json
import subprocess
import sys
from pathlib import Path
from time import process_time

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from hypothesis import given
from hypothesis import strategies as st

from ase_deeprelax import relax
from ase_deeprelax.geometry.symmetry import find_symmetry
from tests.strategies import crystals, orthogonal, prototypes, quick

REAL = Path(__file__).parents[3] / 'shared' / 'data' / 'seeds_mp.jsonl.gz'
needs_real = pytest.mark.skipif(
    not REAL.exists(), reason='needs ../shared/data/seeds_mp.jsonl.gz'
)


def real_crystals(count):
    with gzip.open(REAL, 'rt') as lines:
        for line in itertools.islice(lines, 0, 100 * count, 100):
            record = json.loads(line)
            yield Atoms(
                numbers=record['numbers'],
                cell=record['cell'],
                scaled_positions=record['frac'],
                pbc=True,
            )


def rewritten(atoms, seed):
    """The same crystal with another order, origin, images and cell vectors."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(atoms))
    other = atoms[order]
    other.positions += rng.normal(size=3)
    other.positions += rng.integers(-2, 3, (len(atoms), 3)) @ atoms.cell.array
    other.set_cell(np.array([[1, 1, 0], [0, 1, 0], [2, 0, -1]]) @ atoms.cell.array)
    return other, order


def assert_same_projection(atoms, seed):
    rng = np.random.default_rng(seed)
    strain = np.eye(3) + 0.1 * rng.normal(size=(3, 3))
    strain, moves = strain + strain.T, rng.normal(size=(len(atoms), 3))
    other, order = rewritten(atoms, seed)
    first = find_symmetry(atoms).project(strain, moves)
    second = find_symmetry(other).project(strain, moves[order])
    np.testing.assert_allclose(first[0], second[0], atol=1e-8)
    np.testing.assert_allclose(first[1][order], second[1], atol=1e-8)


@needs_real
@pytest.mark.parametrize('rattle', [0.001, 0.002, 0.003, 0.004, 0.006])
def test_operations_of_rattled_real_crystals_do_not_depend_on_the_writing(rattle):
    for seed, atoms in enumerate(real_crystals(120)):
        atoms.rattle(rattle, seed=seed)
        assert_same_projection(atoms, seed)


@quick
@given(st.sampled_from(sorted(prototypes())), st.floats(0, 8e-3), st.integers(0, 10_000))
def test_operations_of_rattled_prototypes_do_not_depend_on_the_writing(name, rattle, seed):
    atoms = prototypes()[name] * (1 + seed % 2, 1, 1)
    atoms.rattle(rattle, seed=seed)
    assert_same_projection(atoms, seed)


@quick
@given(crystals(max_atoms=8), st.integers(0, 10_000))
def test_operations_of_any_crystal_do_not_depend_on_the_writing(atoms, seed):
    assert_same_projection(atoms, seed)


@needs_real
@pytest.mark.filterwarnings('ignore::ase_deeprelax.errors.DeepRelaxWarning')
@pytest.mark.parametrize('rattle', [0.0003, 0.002, 0.004])
def test_predictions_of_rattled_crystals_do_not_depend_on_the_order(rattle):
    pairs = []
    for seed, atoms in enumerate(real_crystals(40)):
        if len(atoms) > 24:
            continue
        atoms.rattle(rattle, seed=seed)
        order = np.random.default_rng(seed).permutation(len(atoms))
        pairs.append((atoms, order))
    first = relax([atoms for atoms, _ in pairs])
    second = relax([atoms[order] for atoms, order in pairs])
    for a, b, (_, order) in zip(first, second, pairs, strict=True):
        assert a.ok == b.ok
        np.testing.assert_allclose(a.deformation, b.deformation, atol=1e-5)
        np.testing.assert_allclose(a.displacement[order], b.displacement, atol=1e-5)
        np.testing.assert_allclose(a.sigma, b.sigma, rtol=1e-3)


@pytest.mark.parametrize(('shift', 'count'), [(0.5, 48), (0.9, 48), (1.1, 8), (2.5, 8)])
def test_the_tolerance_is_a_hundredth_of_an_angstrom(shift, count):
    """An atom off its centre by d is 1.6 d (2 d less the mean) from its mirror image."""
    atoms = prototypes()['SrTiO3']
    atoms.positions[atoms.numbers == 22] += [0.0, 0.0, shift * 0.01 / 1.6]
    assert len(find_symmetry(atoms).rotations) == count


@pytest.mark.parametrize('kind', ['perfect', 'vacancy', 'scatter'])
def test_large_cells_are_searched_fast(kind):
    atoms = bulk('Si', 'diamond', a=5.43, cubic=True) * (5, 5, 5)
    if kind == 'vacancy':
        del atoms[3]
    if kind == 'scatter':
        atoms.rattle(0.01, seed=1)
    start = process_time()
    found = find_symmetry(atoms)
    seconds = process_time() - start
    expected = {'perfect': (48, 2), 'vacancy': (24, 999), 'scatter': (1, 1000)}[kind]
    assert found.permutations.shape == expected
    assert seconds < 3  # The network needs about as long; this search a tenth of it.


@pytest.mark.filterwarnings('ignore::ase_deeprelax.errors.DeepRelaxWarning')
def test_a_supercell_is_in_range_as_its_crystal_is():
    cell = bulk('NaCl', 'rocksalt', a=5.6, cubic=True)
    large = cell * (3, 3, 2)
    assert relax(large).ood == relax(cell).ood
    del large[5]
    assert '143 atoms' in relax(large).ood


def test_flushed_denormals_do_not_end_the_process():
    """SciPy's trees of points of which most lie in a plane through the origin."""
    code = """
import torch
from ase.build import bulk, fcc111
from ase_deeprelax.geometry.neighbors import close_pairs
from ase_deeprelax.geometry.symmetry import find_symmetry

torch.set_flush_denormal(True)
atoms = bulk('NaCl', 'rocksalt', a=5.64, cubic=True).repeat((1, 2, 2))
del atoms[1]
find_symmetry(atoms)
slab = fcc111('Cu', (6, 6, 1), vacuum=5)
slab.positions[:, 2] = 0
print(len(close_pairs(slab.positions, slab.cell.array, 1.0, slab.pbc)[0]))
"""
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, '0\n')


@pytest.mark.parametrize('name', ['lengths', 'places'])
def test_misfits_of_just_the_tolerance_count_in_all_orientations(name):
    """Round numbers: lengths that differ by 0.01 A, an atom that is off by 0.01 A."""
    atoms = Atoms('Cu', cell=[4.0, 4.0, 4.01], pbc=True)
    if name == 'places':
        atoms = bulk('Cu', a=3.6, cubic=True)
        atoms.positions[0] += [0, 0, 0.01]
    counts = set()
    for seed in range(20):
        turned = atoms.copy()
        turned.set_cell(atoms.cell.array @ orthogonal(seed), scale_atoms=True)
        counts.add(len(find_symmetry(turned).rotations))
    assert counts == {48}
