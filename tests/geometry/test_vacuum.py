"""Layers: found in any box, and never where there is none."""

import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, graphene, graphene_nanoribbon, molecule, mx2
from hypothesis import given
from hypothesis import strategies as st

from ase_deeprelax.data.convert import to_graph
from ase_deeprelax.data.graph import GraphSpec
from ase_deeprelax.errors import StructureError
from ase_deeprelax.geometry.vacuum import (
    DOUBTFUL_GAP,
    LAYER_GAP,
    STACK_GAP,
    VACUUM_GAP,
    doubtful_gap,
    find_layer,
    layer_or_none,
)
from tests.layers import real_layers, rewrite, with_adsorbate, written_layers
from tests.strategies import (
    crystals,
    disguises,
    orthogonal,
    prototypes,
    quick,
    random_crystal,
    seeds,
)

SHARED = Path(__file__).parents[2] / '../shared/data'
SPEC = GraphSpec(cutoff=4.5)


def heights_of(layer, atoms):
    """(n_atoms,) heights above the middle plane, A, as often in each sense."""
    heights = layer.in_one_piece(atoms) @ layer.normal
    heights = heights - layer.middle(layer.in_one_piece(atoms))
    return heights if np.sum(heights**3) >= 0 else -heights


def in_old_order(other, values):
    """Values per atom in the order that the atoms had before they were rewritten."""
    values = np.asarray(values)
    result = np.empty_like(values)
    result[other.arrays['was']] = values
    return result


def edges_of_atoms(atoms, layer):
    """For each atom, in its own order, the sorted lengths of its edges, and elements."""
    graph, frame = to_graph(atoms, SPEC, torch.float64, layer=layer)
    centre = graph.edge_index[1].numpy()
    lengths = graph.edge_vectors().norm(dim=1).numpy()
    neighbours = graph.z[graph.edge_index[0]].numpy()
    rows = [
        sorted(zip(lengths[centre == k].round(6), neighbours[centre == k], strict=True))
        for k in range(len(atoms))
    ]
    assert frame.order is None
    return rows


@quick
@given(written_layers())
def test_a_layer_is_the_same_in_any_box(written):
    atoms, other = written
    layer, same = find_layer(atoms), find_layer(other)
    assert same.found_by == ('vacuum' if other.pbc.all() else 'pbc')
    before = np.sort(np.abs(heights_of(layer, atoms)))
    after = np.sort(np.abs(heights_of(same, other)))
    np.testing.assert_allclose(after, before, atol=1e-6)
    np.testing.assert_allclose(
        np.abs(in_old_order(other, heights_of(same, other))),
        np.abs(heights_of(layer, atoms)),
        atol=1e-6,
    )
    rows = same.basis @ other.cell.array
    assert round(abs(np.linalg.det(same.basis))) == 1
    np.testing.assert_allclose(rows[:2] @ same.normal, 0, atol=1e-7)
    area = np.linalg.norm(np.cross(rows[0], rows[1]))
    flat = atoms.cell.array
    assert area == pytest.approx(np.linalg.norm(np.cross(flat[0], flat[1])), rel=1e-6)
    assert rows[2] @ same.normal > 0
    assert np.linalg.norm(same.normal) == pytest.approx(1)


@quick
@given(written_layers())
def test_the_width_of_the_vacuum(written):
    _, other = written
    layer = find_layer(other)
    height = other.cell.volume / np.linalg.norm(
        np.cross(*(layer.basis @ other.cell.array)[:2])
    )
    thickness = np.ptp(layer.in_one_piece(other) @ layer.normal)
    assert layer.vacuum == pytest.approx(height - thickness, abs=1e-6)


@quick
@given(written_layers())
def test_the_standard_box_gives_the_same_graph(written):
    atoms, other = written
    before = edges_of_atoms(atoms, find_layer(atoms))
    rows = edges_of_atoms(other, find_layer(other))
    for k, old in enumerate(other.arrays['was']):
        assert len(rows[k]) == len(before[old])
        np.testing.assert_allclose(rows[k], before[old], atol=2e-6)


@quick
@given(written_layers(), st.floats(5, 20))
def test_the_standard_box_is_upright_and_around_the_layer(written, vacuum):
    _, other = written
    layer = find_layer(other)
    positions, cell = layer.standard_box(other, vacuum)
    heights = positions @ layer.normal
    height = np.linalg.norm(cell[2])
    np.testing.assert_allclose(cell[2] / height, layer.normal, atol=1e-9)
    assert height == pytest.approx(np.ptp(heights) + vacuum, abs=1e-6)
    assert heights.min() == pytest.approx(vacuum / 2, abs=1e-6)
    np.testing.assert_array_equal(cell[:2], (layer.basis @ other.cell.array)[:2])


@quick
@given(written_layers())
def test_the_volume_of_a_layer_is_that_with_the_gap_of_a_layered_crystal(written):
    for atoms in written:
        layer = find_layer(atoms)
        thickness = np.ptp(layer.in_one_piece(atoms) @ layer.normal)
        area = np.linalg.norm(np.cross(*(layer.basis @ atoms.cell.array)[:2]))
        assert layer.solid_volume(atoms) == pytest.approx(area * (thickness + 3.0))


def test_a_layer_in_one_piece_is_taken_as_it_is():
    for name, atoms in real_layers().items():
        for pbc in (True, (True, True, False)):
            atoms.pbc = pbc
            for lift in (0.0, -10.0, 300.0):
                atoms.positions[:, 2] += lift
                assert not find_layer(atoms).turns.any(), name


@pytest.mark.parametrize('name', list(real_layers()))
def test_the_users_own_vectors_are_kept_where_two_lie_in_the_layer(name):
    atoms = real_layers()[name]
    atoms.cell[2] += 2 * atoms.cell[0] - 7 * atoms.cell[1]
    for pbc in (True, (True, True, False)):
        atoms.pbc = pbc
        np.testing.assert_array_equal(find_layer(atoms).basis, np.eye(3))


@st.composite
def strains_of_layers(draw, normal):
    """(3, 3) symmetric deformations that mix no vector of the plane with the normal."""
    rng = np.random.default_rng(draw(seeds()))
    strain = rng.uniform(-0.1, 0.1, (3, 3))
    flat = np.eye(3) - np.outer(normal, normal)
    thicker = rng.uniform(-0.1, 0.1) * np.outer(normal, normal)
    return np.eye(3) + flat @ (strain + strain.T) @ flat / 2 + thicker


@pytest.mark.parametrize('gap', [6.0, 7.0])
def test_a_gap_that_is_just_the_limit_is_the_same_in_all_orientations(gap):
    """Slabs are often given 3.5 A of vacuum on either side, which makes 7 A."""
    slab = fcc111('Cu', (1, 1, 4), a=3.61, vacuum=gap / 2, periodic=True)
    above = slab.copy()
    above.positions[:, 2] += slab.cell[2, 2]
    twice = slab + above
    twice.cell[2, 2] = 2 * slab.cell[2, 2] + 20.0
    for seed in range(20):
        rotation = orthogonal(seed)
        for atoms in (slab, twice):
            turned = atoms.copy()
            turned.set_cell(atoms.cell.array @ rotation)
            turned.positions = atoms.positions @ rotation
            found = layer_or_none(turned)
            # Gaps of just 7 A are none, and those of just 6 A part no layers.
            assert (found is None) == (atoms is slab or gap > LAYER_GAP)


@quick
@given(st.data())
def test_a_strain_moves_the_layer_about_its_middle_and_not_the_vacuum(data):
    _, atoms = data.draw(written_layers())
    layer = find_layer(atoms)
    deformation = data.draw(strains_of_layers(layer.normal))
    cell, positions = layer.strain(atoms, deformation)

    before, after = (basis @ layer.basis.T for basis in (atoms.cell.array.T, cell.T))
    np.testing.assert_allclose(after.T[2], before.T[2], atol=1e-9)
    np.testing.assert_allclose(after.T[:2], before.T[:2] @ deformation, atol=1e-9)
    strained = Atoms(atoms.numbers, positions, cell=cell, pbc=atoms.pbc)
    pieces = layer.in_one_piece(atoms), layer.in_one_piece(strained)
    vacuum = layer.basis[2] @ atoms.cell.array
    middle = layer.middle(pieces[0]) / (vacuum @ layer.normal) * vacuum
    np.testing.assert_allclose(
        pieces[1] - middle, (pieces[0] - middle) @ deformation, atol=1e-8
    )
    assert layer.middle(pieces[1]) == pytest.approx(layer.middle(pieces[0]), abs=1e-8)
    # At the unrelaxed cell, a layer elsewhere in its box moves in the same way.
    shifted = atoms.copy()
    shifted.translate(7.0 * data.draw(st.sampled_from(list(np.eye(3)))))
    moves = [
        end @ np.linalg.solve(cell, atoms.cell.array) - start.positions
        for start, end in (
            (atoms, positions),
            (shifted, layer.strain(shifted, deformation)[1]),
        )
    ]
    np.testing.assert_allclose(*moves, atol=1e-7)
    # In the plane, fractional coordinates stay.
    old, new = (np.linalg.inv(layer.basis @ c)[:, :2] for c in (atoms.cell.array, cell))
    upright = np.eye(3) - np.outer(layer.normal, layer.normal)
    leaning = layer.basis[2] @ atoms.cell.array @ upright
    if np.abs(leaning).max() < 1e-9:
        np.testing.assert_allclose(positions @ new, atoms.positions @ old, atol=1e-8)

    cell, positions = layer.strain(strained, np.linalg.inv(deformation))
    np.testing.assert_allclose(cell, atoms.cell.array, atol=1e-8)
    np.testing.assert_allclose(positions, atoms.positions, atol=1e-8)


@pytest.mark.parametrize('axis', [0, 1, 2])
@pytest.mark.parametrize('periodic', [True, False])
def test_a_strain_leaves_the_vacuum_vector_to_the_last_bit(axis, periodic):
    for seed, atoms in enumerate(real_layers().values()):
        rng = np.random.default_rng(seed)
        other = rewrite(atoms, rng, vacuum=11.3, pbc=periodic)
        cell = np.roll(other.cell.array, axis, axis=0)
        other.set_cell(cell)
        other.pbc = np.roll(other.pbc, axis)
        layer = find_layer(other)
        row = int(np.abs(layer.basis[2]).argmax())
        flat = np.eye(3) - np.outer(layer.normal, layer.normal)
        strained, _ = layer.strain(other, np.eye(3) + 0.07 * flat)
        assert strained[row].tobytes() == cell[row].tobytes()
        assert not np.allclose(strained, cell, atol=0.01)


@quick
@given(crystals(max_atoms=12))
def test_dense_crystals_are_no_layers(atoms):
    assert find_layer(atoms) is None


@quick
@given(st.data())
def test_prototypes_are_no_layers_however_skewed(data):
    known = {name: atoms for name, atoms in prototypes().items() if 'vacuum' not in name}
    atoms = data.draw(disguises(data.draw(st.sampled_from(list(known.values())))))
    assert find_layer(atoms) is None


def reference_gaps(atoms, largest):
    """Widest gap for each lattice plane by a plain search: {Miller indices: gap, A}."""
    found = {}
    for hkl in itertools.product(range(-largest, largest + 1), repeat=3):
        if hkl <= (0, 0, 0) or np.gcd.reduce(hkl) != 1:
            continue
        period = 1 / np.linalg.norm(np.linalg.inv(atoms.cell.array) @ hkl)
        places = np.sort(atoms.get_scaled_positions() @ hkl % 1.0)
        found[hkl] = period * np.diff(np.append(places, places[0] + 1)).max()
    return found


@quick
@given(seeds(), st.integers(1, 6), st.floats(1.2, 3.5))
def test_the_search_finds_what_a_plain_one_does(seed, n_atoms, expansion):
    """Expanded crystals: all but dense, with gaps in no, one or several directions."""
    atoms = random_crystal(seed, n_atoms)
    atoms.set_cell(atoms.cell.array * expansion, scale_atoms=True)
    wide = {k: g for k, g in reference_gaps(atoms, 5).items() if g > VACUUM_GAP}
    if len(wide) > 1:
        with pytest.raises(StructureError, match='vacuum along several lattice vectors'):
            find_layer(atoms)
    elif not wide:
        assert find_layer(atoms) is None
        widest = max(reference_gaps(atoms, 5).values())
        doubtful = widest if widest > DOUBTFUL_GAP else 0.0
        assert doubtful_gap(atoms) == pytest.approx(doubtful, rel=1e-9)
    else:
        layer = find_layer(atoms)
        assert layer.vacuum == pytest.approx(*wide.values(), rel=1e-9)
        assert np.abs(layer.basis @ next(iter(wide))).tolist() == [0, 0, 1]


def test_planes_that_no_two_vectors_of_the_reduced_cell_span():
    """Short and wide, stacked with an offset: three vectors of equal length lean out."""
    slab = fcc111('Pt', (6, 6, 2), vacuum=5.5)
    slab.cell[2] += (slab.cell[0] + slab.cell[1]) / 2
    slab.pbc = True
    slab.set_cell(np.array([[0, 0, 1], [-1, 0, 1], [0, -1, 1]]) @ slab.cell.array)
    layer = find_layer(slab)
    assert layer.vacuum == pytest.approx(11.0)
    np.testing.assert_allclose(np.abs(layer.normal), [0, 0, 1], atol=1e-9)
    rows = layer.basis @ slab.cell.array
    assert np.linalg.norm(rows[:2], axis=1) == pytest.approx(2 * [6 * 3.92 / 2**0.5])


def test_wide_layers_whose_images_lean_over_by_twice_their_distance():
    """Of the shortest three vectors, one leads two planes on."""
    slab = fcc111('Cu', (1, 24, 2), orthogonal=True)
    slab.cell[2, 2] = slab.cell[1, 1] / 4
    slab.cell[2, 1] = slab.cell[1, 1] / 2
    slab.pbc = True
    vacuum = slab.cell[2, 2] - np.ptp(slab.positions[:, 2])
    slab.set_cell(np.array([[1, 0, 0], [0, -1, 2], [0, 0, 1]]) @ slab.cell.array)
    layer = find_layer(slab)
    assert layer.vacuum == pytest.approx(vacuum)
    np.testing.assert_allclose(np.abs(layer.normal), [0, 0, 1], atol=1e-9)


@pytest.mark.parametrize('turns', [(7, 0), (-6, 5), (40, -300)])
def test_vectors_that_lead_many_layers_up_hide_no_layer(turns):
    sheet = mx2('MoS2', vacuum=5)
    vacuum = 10.0
    sheet.pbc = True
    sheet.cell[:2] += np.outer(turns, sheet.cell[2])
    assert find_layer(sheet).vacuum == pytest.approx(vacuum)


def test_a_wide_sheet_whose_images_lean_over_by_a_fifth_of_it():
    """In the reduced cell the planes of the sheet have a Miller index of 4."""
    chain = Atoms('Cu', cell=[2.5, 2.5, 7.6], pbc=True) * (24, 1, 1)
    chain.cell[2, 0] = 12.0
    layer = find_layer(chain)
    assert layer.vacuum == pytest.approx(7.6)
    np.testing.assert_allclose(np.abs(layer.normal), [0, 0, 1], atol=1e-9)


@pytest.mark.parametrize('lean', [(0.31, 0.53), (0.37, 0.11), (0.17, 0.39)])
def test_a_sheet_of_150_angstrom_whose_images_lean_over(lean):
    sheet = graphene(vacuum=7.5) * (60, 60, 1)
    sheet.cell[2] += lean @ sheet.cell.array[:2]
    sheet.pbc = True
    assert find_layer(sheet).vacuum == pytest.approx(15.0)


@pytest.mark.parametrize('first', [0, 1])
def test_a_large_crystal_is_searched_to_the_last_atom(first):
    """The search looks at every other atom first; the others may bridge the gap."""
    slab = fcc111('Cu', (6, 6, 3), vacuum=8)
    slab.pbc = True
    assert find_layer(slab) is not None
    top = slab.positions[:, 2].max()
    order = list(range(len(slab)))
    for k in range(1, 6):
        order.insert(2 * k + first, len(slab))
        slab += Atoms('Cu', [[0.0, 0.0, top + 2.6 * k]])
    assert find_layer(slab) is None
    assert find_layer(slab[order]) is None


# Layers that the box ends with


@pytest.mark.parametrize('height', ['thickness', 0.4, 3.0, 12.8, 60.0])
def test_the_box_of_an_open_layer_may_be_as_small_as_it_likes(height):
    atoms = fcc111('Cu', (1, 1, 4), vacuum=10)
    reference = edges_of_atoms(atoms, find_layer(atoms))
    thickness = np.ptp(atoms.positions[:, 2])
    atoms.positions[:, 2] -= atoms.positions[:, 2].min()
    atoms.cell[2, 2] = thickness if height == 'thickness' else height
    layer = find_layer(atoms)
    assert layer.found_by == 'pbc'
    assert np.isinf(layer.vacuum) == (height != 60.0)
    assert edges_of_atoms(atoms, layer) == reference


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_a_layer_without_a_box_is_refused_with_the_remedy(axis):
    atoms = fcc111('Cu', (1, 1, 4), vacuum=None)
    atoms.set_cell(np.roll(atoms.cell.array, axis - 2, axis=0))
    atoms.pbc = np.roll(atoms.pbc, axis - 2)
    remedy = f'atoms.center(vacuum=10, axis={axis})'
    with pytest.raises(StructureError, match='no box along cell vector') as caught:
        find_layer(atoms)
    assert f'cell vector {"abc"[axis]}' in str(caught.value)
    assert remedy in str(caught.value)
    exec(remedy)  # What the message says.
    assert find_layer(atoms).vacuum == pytest.approx(20.0)


def test_an_open_vector_within_the_plane_is_refused():
    atoms = graphene(vacuum=10)
    atoms.cell[2] = atoms.cell[0] + atoms.cell[1]
    for angle in (0, 13, 71):
        atoms.rotate(angle, (1, 2, 3), rotate_cell=True)
        with pytest.raises(StructureError, match=r'no box along cell vector c'):
            find_layer(atoms)


def test_vectors_of_a_layer_that_span_no_plane_are_refused():
    atoms = graphene(vacuum=10)
    atoms.cell[1] = 0
    with pytest.raises(StructureError, match='span no plane'):
        find_layer(atoms)


def test_a_flat_cell_is_refused():
    atoms = Atoms('Cu', cell=[[9, 0, 0], [0, 9, 0], [9, 9, 0]], pbc=True)
    with pytest.raises(StructureError, match='no volume'):
        find_layer(atoms)


# What is no layer


def parts(*heights):
    """A Cu(111) slab of two planes at each height, A, in a box that ends 10 A above."""
    slab = fcc111('Cu', (1, 1, 2), vacuum=5)
    slab.positions[:, 2] -= slab.positions[:, 2].min()
    result = slab[:0]
    for height in heights:
        other = slab.copy()
        other.positions[:, 2] += height
        result += other
    result.cell[2, 2] = np.ptp(result.positions[:, 2]) + 10.0
    return result


@pytest.mark.parametrize('pbc', [True, (True, True, False)])
@pytest.mark.parametrize('lift', [0.0, 1.0, 9.0, -4.0])
def test_two_slabs_in_a_cell_are_refused(pbc, lift):
    for gap in (6.5, 8.0, 10.0, 25.0):
        atoms = parts(0.0, gap + 2.0842)
        atoms.pbc = pbc
        atoms.positions[:, 2] += lift
        for _ in range(2):
            with pytest.raises(StructureError, match=r'2 layers share this cell.*A'):
                find_layer(atoms)
            atoms.wrap(pbc=True)


@pytest.mark.parametrize('pbc', [True, (True, True, False)])
def test_parts_of_one_layer(pbc):
    for gap in (2.1, 3.5, 5.5):
        atoms = parts(0.0, gap + 2.0842, 2 * gap + 4.1684)
        atoms.pbc = pbc
        assert find_layer(atoms).vacuum == pytest.approx(10.0)


@pytest.mark.parametrize('vacuum', [6.0, 7.0, 8.0, 12.0])
def test_a_molecule_far_above_a_slab_is_refused(vacuum):
    slab = with_adsorbate(fcc111('Cu', (2, 2, 3), vacuum=vacuum), 'Ar', 8.0)
    with pytest.raises(StructureError, match='layers share this cell'):
        find_layer(slab)
    slab.pbc = True
    if vacuum < 8:  # Now it is less than 5 A below the next image of the slab.
        assert find_layer(slab).vacuum == pytest.approx(8.0)
    else:
        with pytest.raises(StructureError, match='layers share this cell'):
            find_layer(slab)


@pytest.mark.parametrize('pbc', [True, (True, True, False)])
@pytest.mark.parametrize('height', [1.0, 2.0, 3.0, 4.0])
def test_an_adsorbate_belongs_to_its_slab(pbc, height):
    slab = with_adsorbate(fcc111('Cu', (2, 2, 3), vacuum=10), molecule('N2'), height)
    slab.pbc = pbc
    layer = find_layer(slab)
    top = slab.positions[:, 2].max()
    assert layer.vacuum == pytest.approx(slab.cell[2, 2] + 10.0 - top)


@pytest.mark.parametrize('sheets', [1, 2, 3])
def test_sheets_that_repeat_with_open_galleries_are_a_crystal(sheets):
    between = (VACUUM_GAP + STACK_GAP) / 2
    one = mx2('MoS2', vacuum=between / 2)
    one.pbc = True
    many = one * (1, 1, sheets)
    assert (find_layer(many) is None) == (sheets > 1)
    if sheets > 1:  # Gaps that differ by a little are equal, others tell layers.
        assert doubtful_gap(many) == pytest.approx(between)
        many.positions[: len(one), 2] += 0.15
        assert find_layer(many) is None
        many.positions[: len(one), 2] += 0.25
        with pytest.raises(StructureError, match=f'{sheets} layers'):
            find_layer(many)


def test_sheets_of_one_composition_are_alike_in_any_sense():
    janus = mx2('MoS2', vacuum=4.0)
    janus.symbols[1] = 'Se'
    turned = janus.copy()
    turned.positions[:, 2] = janus.cell[2, 2] - janus.positions[:, 2]
    turned.positions[:, 2] += janus.cell[2, 2]
    both = janus + turned
    both.cell[2, 2] *= 2
    both.pbc = True
    assert find_layer(both) is None
    both.symbols[both.symbols == 'Mo'] = ['Mo', 'W']
    with pytest.raises(StructureError, match='2 layers'):
        find_layer(both)


def test_a_layer_that_the_border_cuts_beside_another_one_is_refused():
    atoms = parts(0.0, 12.0)
    atoms.pbc = True, True, False
    atoms.positions[:, 2] -= 1.0
    atoms.wrap(pbc=True)
    with pytest.raises(StructureError, match=r'^2 layers share this cell'):
        find_layer(atoms)


def wires():
    ribbon = graphene_nanoribbon(3, 2, saturated=True, vacuum=6.0)
    ribbon.pbc = True
    chain = Atoms('Au', cell=[12, 12, 2.7], pbc=True)
    leaning = chain.copy()
    leaning.set_cell(np.array([[1, 0, 4], [2, 1, -3], [0, 0, 1]]) @ chain.cell.array)
    hexagonal = Atoms('Au2', [[0, 0, 0], [0.6, 0, 2.0]], cell=[14, 14, 4, 90, 90, 120])
    hexagonal.pbc = True
    half_open = graphene_nanoribbon(3, 2, saturated=True, vacuum=6.0)
    half_open.pbc = np.ptp(half_open.positions, axis=0) > 0.1
    return {
        'ribbon': ribbon,
        'chain': chain,
        'chain, leaning': leaning,
        'chain, hexagonal': hexagonal,
        'ribbon, open across': half_open,
    }


@pytest.mark.parametrize('name', list(wires()))
def test_wires_are_refused(name):
    where = 'within the layer' if 'open across' in name else 'along several lattice vectors'
    with pytest.raises(StructureError, match=f'vacuum {where} .* this is a wire'):
        find_layer(wires()[name])


def test_wires_that_pbc_tells_are_refused():
    atoms = fcc111('Cu', (2, 2, 3), vacuum=10)
    atoms.pbc = True, False, False
    with pytest.raises(StructureError, match=r'pbc is \[True, False, False\].*wire'):
        find_layer(atoms)


@pytest.mark.parametrize('name', ['H2O', 'C60', 'N2'])
def test_molecules_are_refused(name):
    atoms = molecule(name, vacuum=6.0)
    with pytest.raises(StructureError, match='molecule or cluster'):
        find_layer(atoms)
    for pbc in (True, (True, True, False)):
        atoms.pbc = pbc
        with pytest.raises(StructureError, match='molecule or cluster'):
            find_layer(atoms)


def test_layers_are_told_from_all_else_without_an_error():
    sheet = mx2('MoS2', vacuum=8)
    assert repr(layer_or_none(sheet)) == repr(find_layer(sheet))
    wide = sheet.copy()
    wide.cell[0] = 2 * wide.cell[1]  # the plane has no area
    for atoms in (bulk('Cu'), molecule('H2O', vacuum=8), molecule('H2O'), wide):
        assert layer_or_none(atoms) is None


# Real structures


def real_structures(name, every=1):
    """Those of a file of the shared data, as POSCAR would have them: pbc True."""
    path = SHARED / f'{name}.jsonl.gz'
    if not path.exists():
        pytest.skip(f'{path} is not there')
    with gzip.open(path, 'rt') as lines:
        for line in itertools.islice(lines, 0, None, every):
            record = json.loads(line)
            cell = record['cell0'] if 'cell0' in record else record['cell']
            frac = record['frac0'] if 'frac0' in record else record['frac']
            atoms = Atoms(record['numbers'], scaled_positions=frac, cell=cell, pbc=True)
            yield record['id'], atoms


@pytest.mark.parametrize(('name', 'every'), [('pairs_slab', 5), ('pairs_2d', 20)])
def test_all_real_slabs_and_monolayers_are_found(name, every):
    heights = []
    for key, atoms in real_structures(name, every):
        if key == '2dmp-K16Sn32<-2dmp-Rb16Sn32':  # Two sheets, 9.4 A apart.
            continue
        layer = find_layer(atoms)
        assert layer is not None, key
        np.testing.assert_array_equal(layer.basis, np.eye(3), err_msg=key)
        heights.append(layer.vacuum)
    assert len(heights) > 500
    assert min(heights) > 2 * LAYER_GAP


@pytest.mark.parametrize('name', ['pairs_wbm_dev', 'layered_lm26'])
def test_no_real_crystal_is_taken_for_a_layer(name):
    for key, atoms in real_structures(name):
        assert find_layer(atoms) is None, key
        assert doubtful_gap(atoms) == 0.0, key
