"""Pairs of layers: how each half is written down does not matter."""

import itertools
import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111, mx2
from ase.constraints import FixAtoms, FixCartesian, FixScaled

from ase_deeprelax.data.pairs import make_pair, pair_record, read_pairs


def halves():
    """A rattled monolayer and a relaxed one, in a box of one height."""
    unrelaxed = mx2('MoS2', a=3.3, vacuum=10) * (2, 1, 1)
    unrelaxed.rattle(0.05, seed=1)
    relaxed = mx2('MoS2', a=3.18, thickness=3.13, vacuum=10.03) * (2, 1, 1)
    return unrelaxed, relaxed


def in_another_box(layer, height, *, lift, pbc, fixed=None):
    """The layer in another box, and wrapped into it where pbc is True along it."""
    atoms = layer.copy()
    atoms.positions[:, 2] += lift
    atoms.cell[2, 2] = height
    atoms.pbc = True, True, pbc
    if pbc:
        atoms.wrap()
    if fixed is not None:
        atoms.set_constraint(fixed)
    return atoms


def assert_same_targets(pair, other):
    assert pair.pbc == other.pbc
    for x, y in zip(pair.targets(), other.targets(), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-7)
    np.testing.assert_allclose(pair.motion().free_strain, other.motion().free_strain)


@pytest.mark.parametrize('pbc', itertools.product([True, False], repeat=2))
@pytest.mark.parametrize('heights', [(23.0, 17.0), (17.0, 40.0)])
def test_boxes_of_the_halves_do_not_matter(pbc, heights):
    unrelaxed, relaxed = halves()
    straight = make_pair('x', unrelaxed, relaxed)
    assert straight.pbc == (True, True, False)
    # Lifted to the border of the box, which cuts the layer where it is periodic.
    lifts = [-unrelaxed.positions[:, 2].min() - 1.0 if one else 0.5 for one in pbc]
    boxed = [
        in_another_box(atoms, height, lift=lift, pbc=one)
        for atoms, height, lift, one in zip(
            (unrelaxed, relaxed), heights, lifts, pbc, strict=True
        )
    ]
    assert_same_targets(make_pair('x', *boxed), straight)


@pytest.mark.parametrize('lift', [0.0, -4.0, 9.0])
@pytest.mark.parametrize(
    'fixed', [FixAtoms([0, 1]), FixScaled([0, 1], [True] * 3), FixCartesian([0, 1])]
)
def test_fixed_atoms_of_a_slab_say_where_the_others_went(fixed, lift):
    slab = fcc111('Cu', (1, 1, 4), vacuum=6)
    moved = slab.copy()
    moved.positions[2:] += [[0.01, 0.0, 0.1], [0.0, -0.02, 0.2]]
    start = in_another_box(slab, slab.cell[2, 2], lift=0.0, pbc=True, fixed=fixed)
    end = in_another_box(moved, slab.cell[2, 2], lift=lift, pbc=True)
    pair = make_pair('x', start, end, fixed_cell=True)
    assert pair.fixed.tolist() == [True, True, False, False]
    _, displacement = pair.targets()
    expected = moved.positions - slab.positions
    np.testing.assert_allclose(displacement, expected, atol=1e-9)


def test_a_gap_that_closes_was_no_vacuum():
    opened = mx2('MoS2', vacuum=4)
    closed = mx2('MoS2', vacuum=1.5)
    opened.pbc = closed.pbc = True
    assert make_pair('x', opened, closed).pbc == (True, True, True)


def test_records_with_boxes_of_their_own(tmp_path):
    """Written by other programs, as they may be."""
    unrelaxed, relaxed = halves()
    straight = make_pair('x', unrelaxed, relaxed)
    lower = in_another_box(relaxed, 17.0, lift=-3.0, pbc=False)
    record = pair_record(straight)
    record['cell1'] = lower.cell.array.tolist()
    record['frac1'] = lower.get_scaled_positions(wrap=False).tolist()
    path = tmp_path / 'pairs.jsonl'
    path.write_text(json.dumps(record))
    [pair] = read_pairs(path)
    for x, y in zip(pair.targets(), straight.targets(), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)


def test_crystals_are_left_alone():
    atoms = Atoms('NaCl', [[0, 0, 0], [2.8, 0, 0]], cell=[5.6, 4, 4], pbc=True)
    assert make_pair('x', atoms, atoms).pbc == (True, True, True)
