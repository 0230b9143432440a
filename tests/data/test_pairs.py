import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, graphene
from ase.constraints import FixAtoms
from ase.io import write
from scipy.spatial.transform import Rotation

from ase_deeprelax.data.pair import Pair
from ase_deeprelax.data.pairs import make_pair, pair_record, read_pairs, write_pairs
from ase_deeprelax.errors import PairFileError
from ase_deeprelax.geometry.degrees_of_freedom import find_freedom

ALL = (True, True, True)
SHARED = Path(__file__).parents[2] / '../shared/data'


def crystal(rng, n=6, numbers=None):
    """Atoms in a random, possibly oblique cell of about 20 A^3 per atom."""
    cell = 5.0 * (np.eye(3) + rng.uniform(-0.25, 0.25, (3, 3)))
    numbers = rng.choice([8, 22, 38], n) if numbers is None else numbers
    return Atoms(numbers, scaled_positions=rng.random((n, 3)), cell=cell, pbc=True)


def moves(rng, n):
    """A symmetric stretch and drift-free displacements of up to 0.3 A."""
    strain = rng.uniform(-0.1, 0.1, (3, 3))
    shift = rng.uniform(-0.3, 0.3, (n, 3))
    return np.eye(3) + (strain + strain.T) / 2, shift - shift.mean(axis=0)


def relaxed(atoms, deformation, displacement):
    positions = (atoms.positions + displacement) @ deformation
    return Atoms(atoms.numbers, positions, cell=atoms.cell.array @ deformation, pbc=True)


def some_pairs(seed=0, n=4):
    rng = np.random.default_rng(seed)
    pairs = []
    for k in range(n):
        atoms = crystal(rng)
        answer = relaxed(atoms, *moves(rng, len(atoms)))
        split = ('train', 'val', 'test')[k % 3]
        pairs.append(make_pair(f'p{k}', atoms, answer, ok=k != 1, split=split, scale=1 + k))
    return pairs


def assert_same(first, second, tolerance=1e-6):
    assert [p.id for p in first] == [p.id for p in second]
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.numbers, b.numbers)
        for x, y in zip(a.targets(), b.targets(), strict=True):
            assert np.allclose(x, y, atol=tolerance)
        assert np.allclose(a.cell0, b.cell0, atol=tolerance)


@pytest.mark.parametrize('seed', range(20))
def test_targets_come_back_whatever_orientation_drift_and_image(seed):
    rng = np.random.default_rng(seed)
    atoms = crystal(rng)
    deformation, displacement = moves(rng, len(atoms))
    answer = relaxed(atoms, deformation, displacement)
    answer.positions += rng.integers(-2, 3, (len(atoms), 3)) @ answer.cell.array
    answer.positions += rng.random(3) @ answer.cell.array
    turn = Rotation.random(random_state=seed).as_matrix()
    answer.set_cell(answer.cell.array @ turn)
    answer.positions = answer.positions @ turn

    pair = make_pair('x', atoms, answer)

    found_deformation, found_displacement = pair.targets()
    assert np.allclose(found_deformation, deformation, atol=1e-9)
    assert np.allclose(found_deformation, found_deformation.T, atol=1e-12)
    assert np.allclose(found_displacement, displacement, atol=1e-9)
    assert np.allclose(pair.cell0 @ found_deformation, pair.cell1, atol=1e-9)
    # what the whole package relies on: r1 = (r0 + u) @ S, up to a rigid drift
    moved = (atoms.positions + found_displacement) @ found_deformation
    drift = moved - pair.relaxed.positions
    assert np.allclose(drift, drift.mean(axis=0), atol=1e-9)


def test_unrelaxed_atoms_stay_in_the_images_they_were_written_in():
    rng = np.random.default_rng(3)
    atoms = crystal(rng)
    atoms.positions += [[1], [0], [-2], [0], [3], [0]] @ atoms.cell.array[:1]
    pair = make_pair('x', atoms, atoms)
    assert np.allclose(pair.unrelaxed.positions, atoms.positions)
    assert np.allclose(pair.targets()[1], 0, atol=1e-12)


@pytest.mark.parametrize('name', ['p.jsonl', 'p.jsonl.gz'])
def test_json_lines_round_trip(tmp_path, name):
    pairs = [replace(pair, id=f'é {pair.id}') for pair in some_pairs()]
    write_pairs(tmp_path / name, pairs)
    read = read_pairs(tmp_path / name)
    assert_same(pairs, read)
    for key in ('ok', 'split', 'formula', 'scale'):
        assert [getattr(p, key) for p in read] == [getattr(p, key) for p in pairs]


def test_choice_of_split_and_of_ok_pairs(tmp_path):
    write_pairs(tmp_path / 'p.jsonl.gz', some_pairs(n=6))
    path = tmp_path / 'p.jsonl.gz'
    assert [p.id for p in read_pairs(path, 'val')] == ['p1', 'p4']
    assert [p.id for p in read_pairs(path, 'val', ok_only=True)] == ['p4']
    said = r"of split 'dev'; its splits are 'test', 'train', 'val'$"
    with pytest.raises(PairFileError, match=said):
        read_pairs(path, 'dev')


def test_defaults_of_a_record_with_the_bare_keys(tmp_path):
    write_pairs(tmp_path / 'p.jsonl', some_pairs(n=1))
    record = json.loads((tmp_path / 'p.jsonl').read_text())
    keys = ('id', 'numbers', 'cell0', 'frac0', 'cell1', 'frac1')
    (tmp_path / 'p.jsonl').write_text(json.dumps({k: record[k] for k in keys}) + '\n\n')
    (pair,) = read_pairs(tmp_path / 'p.jsonl')
    assert (pair.ok, pair.split, pair.formula, pair.scale) == (True, '', '', 1.0)
    bare = Pair(*(getattr(pair, key) for key in keys))
    assert pair_record(bare) == pair_record(pair)
    assert bare.motion().all_free


def test_a_pair_says_what_it_is():
    crystal, layer = bulk('Cu'), graphene(vacuum=9)
    for atoms, given, said in (
        (crystal, '', 'bulk'),
        (layer, '', 'layer'),
        (layer, 'monolayer', 'monolayer'),
    ):
        assert f', {said}, volume' in repr(make_pair('x', atoms, atoms, kind=given))


def in_other_images(record, drift):
    """The record with relaxed atoms in the cell, as other programs write them."""
    return record | {'frac1': ((np.array(record['frac1']) + drift) % 1).tolist()}


@pytest.mark.parametrize('drift', [0.0, 0.3], ids=['no drift', 'drift'])
@pytest.mark.parametrize('form', ['crystal', 'layer', 'fixed atoms'])
def test_relaxed_atoms_of_json_lines_may_be_in_any_image(tmp_path, form, drift):
    pairs = some_pairs()
    if form == 'layer':
        pairs = [replace(p, cell1=p.cell0, pbc=(True, True, False)) for p in pairs]
    if form == 'fixed atoms':
        fixed = np.arange(6) < 3
        pairs = [
            replace(p, fixed=fixed, frac1=np.where(fixed[:, None], p.frac0, p.frac1))
            for p in pairs
        ]
    moved = [in_other_images(pair_record(pair), drift) for pair in pairs]
    assert any(np.abs(np.subtract(r['frac1'], r['frac0'])).max() > 0.5 for r in moved)
    (tmp_path / 'p.jsonl').write_text('\n'.join(map(json.dumps, moved)))
    assert_same(pairs, read_pairs(tmp_path / 'p.jsonl'))


def test_a_cell_that_was_fixed_is_that_of_the_input_whatever_the_file_says(tmp_path):
    cell = 3.6 * np.eye(3)
    record = {'id': 'a', 'numbers': [29, 29], 'fixed_cell': True}
    record |= {'cell0': cell.tolist(), 'frac0': [[0, 0, 0], [0.4, 0.5, 0.5]]}
    record |= {'cell1': (1.01 * cell).tolist(), 'frac1': [[0, 0, 0], [0.5, 0.5, 0.5]]}
    (tmp_path / 'p.jsonl').write_text(json.dumps(record))
    (pair,) = read_pairs(tmp_path / 'p.jsonl')
    assert (pair.cell1 == cell).all()
    assert (pair.targets()[0] == np.eye(3)).all()


def test_numbers_of_json_lines_in_the_nearest_image_are_read_as_they_are(tmp_path):
    records = [pair_record(pair) for pair in some_pairs()]
    (tmp_path / 'p.jsonl').write_text('\n'.join(map(json.dumps, records)))
    for record, pair in zip(records, read_pairs(tmp_path / 'p.jsonl'), strict=True):
        assert pair.frac1.tolist() == record['frac1']
        assert pair.cell1.tolist() == record['cell1']


def test_extxyz_side_by_side(tmp_path):
    pairs = some_pairs()
    for role in ('unrelaxed', 'relaxed'):
        frames = [getattr(p, role) for p in pairs]
        for k, atoms in enumerate(frames):
            atoms.info['pair_id'] = f'p{k}'
        write(tmp_path / f'{role}.extxyz', frames)
    assert_same(pairs, read_pairs(tmp_path))


def test_extxyz_in_one_file_in_any_order(tmp_path):
    pairs = some_pairs()
    frames = []
    for role in ('relaxed', 'unrelaxed'):
        for pair in pairs:
            atoms = getattr(pair, role)
            atoms.info |= {'pair_id': pair.id, 'role': role, 'split': pair.split}
            frames.append(atoms)
    write(tmp_path / 'p.extxyz', frames)
    assert_same(pairs, read_pairs(tmp_path / 'p.extxyz'))
    assert [p.id for p in read_pairs(tmp_path / 'p.extxyz', 'test')] == ['p2']

    write(tmp_path / 'q.extxyz', frames[1:])
    with pytest.raises(PairFileError, match=r"q\.extxyz: pair 'p0' has only its unrelaxed"):
        read_pairs(tmp_path / 'q.extxyz')
    write(tmp_path / 'twice.extxyz', [*frames, frames[2]])
    with pytest.raises(PairFileError, match="frame 8 is a second relaxed one of 'p2'"):
        read_pairs(tmp_path / 'twice.extxyz')
    write(tmp_path / 'r.extxyz', [bulk('Cu')])
    with pytest.raises(PairFileError, match=r'r\.extxyz: frame 0 needs info pair_id'):
        read_pairs(tmp_path / 'r.extxyz')


def test_collections_of_extxyz_frames_are_kept(tmp_path):
    halves = [[], []]
    for pair in some_pairs(n=2):
        for half, atoms in zip(halves, (pair.unrelaxed, pair.relaxed), strict=True):
            atoms.info['src'] = f'of {pair.id}'
            half.append(atoms)
    write(tmp_path / 'unrelaxed.extxyz', halves[0])
    write(tmp_path / 'relaxed.extxyz', halves[1])
    assert [pair.src for pair in read_pairs(tmp_path)] == ['of p0', 'of p1']


@pytest.mark.parametrize('name', ['pairs.json', 'pairs.extxyz', 'pairs.gz', 'pairs'])
def test_no_file_is_written_that_could_not_be_read(tmp_path, name):
    with pytest.raises(PairFileError, match=rf'{name}: pairs are written as \.jsonl'):
        write_pairs(tmp_path / name, some_pairs(n=1))
    assert not list(tmp_path.iterdir())


def test_pairs_of_pymatgen_structures_are_those_of_their_atoms():
    adaptor = pytest.importorskip('pymatgen.io.ase').AseAtomsAdaptor
    slab = fcc111('Cu', (1, 1, 3), vacuum=8)
    slab.set_constraint(FixAtoms([0]))
    moved = slab.copy()
    moved.positions[2, 2] += 0.1
    structures = [adaptor.get_structure(atoms) for atoms in (slab, moved)]
    made, expected = make_pair('Cu', *structures), make_pair('Cu', slab, moved)
    assert_same([made], [expected])
    assert made.fixed.tolist() == expected.fixed.tolist() == [True, False, False]
    with pytest.raises(PairFileError, match=r"pair 'Cu': .*list is not a structure"):
        make_pair('Cu', structures[:1], structures[1])


def test_missing_and_unknown_paths(tmp_path):
    with pytest.raises(PairFileError, match=r'nothing.jsonl: there is no such'):
        read_pairs(tmp_path / 'nothing.jsonl')
    with pytest.raises(PairFileError, match=r'neither train\.csv'):
        read_pairs(tmp_path)
    (tmp_path / 'p.txt').write_text('')
    with pytest.raises(PairFileError, match=r'p\.txt: not a known kind'):
        read_pairs(tmp_path / 'p.txt')
    (tmp_path / 'p.jsonl').write_text('')
    with pytest.raises(PairFileError, match=r'p\.jsonl: holds no pair'):
        read_pairs(tmp_path / 'p.jsonl')


@pytest.mark.parametrize('kept', [0.1, 0.5, 0.99])
def test_truncated_archive_is_named(tmp_path, kept):
    path = tmp_path / 'p.jsonl.gz'
    write_pairs(path, some_pairs(n=50))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(PairFileError, match=r'p\.jsonl\.gz'):
        read_pairs(path)


def test_damaged_archive_is_named(tmp_path):
    path = tmp_path / 'p.jsonl.gz'
    path.write_bytes(b'these are not gzipped bytes')
    with pytest.raises(PairFileError, match=r'p\.jsonl\.gz: damaged after line 0'):
        read_pairs(path)
    path.write_bytes(gzip.compress(b'\xff\xfe\n'))
    with pytest.raises(PairFileError, match=r'p\.jsonl\.gz'):
        read_pairs(path)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'frac1': None}, "key 'frac1' is missing"),
        ({'frac0': [[0, 0, 0]]}, '6 numbers, 1 unrelaxed and 6 relaxed positions'),
        ({'cell1': [[1, 0, 0], [0, 1, 0]]}, 'cells of 3 and 2 vectors'),
        ({'cell0': [[1, 0, 0], [0, 1, 0], [1, 1, 0]]}, 'a cell of 0 A'),
        ({'frac1': [[0, 0, float('nan')]] * 6}, 'the relaxed structure has values that'),
        ({'numbers': ['Ti'] * 6}, 'invalid literal'),
    ],
)
def test_bad_record_is_named_by_path_line_and_id(tmp_path, change, message):
    path = tmp_path / 'p.jsonl'
    write_pairs(path, some_pairs(n=3))
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for key, value in change.items():
        records[1][key] = value
        if value is None:
            del records[1][key]
    path.write_text('\n'.join(map(json.dumps, records)))
    with pytest.raises(PairFileError, match=r"p\.jsonl, line 2, id 'p1': .*" + message):
        read_pairs(path)


def test_halves_that_do_not_belong_together_are_refused():
    rng = np.random.default_rng(0)
    atoms = crystal(rng, 3, numbers=[22, 8, 8])
    other = atoms.copy()
    other.numbers = [22, 16, 8]
    with pytest.raises(PairFileError, match="'x': atom 1 is O unrelaxed and S relaxed"):
        make_pair('x', atoms, other)
    with pytest.raises(PairFileError, match="'x': 3 atoms unrelaxed, 2 relaxed"):
        make_pair('x', atoms, atoms[:2])
    mirrored = atoms.copy()
    mirrored.set_cell(-atoms.cell.array, scale_atoms=True)
    with pytest.raises(PairFileError, match="'x': the cells are of different handedness"):
        make_pair('x', atoms, mirrored)
    with pytest.raises(PairFileError, match='periodic along all three'):
        make_pair('x', atoms, Atoms(atoms.numbers, atoms.positions))
    with pytest.raises(PairFileError, match='has 0 atoms'):
        make_pair('x', atoms[:0], atoms[:0])


@pytest.mark.parametrize('seed', range(5))
def test_flat_cells_are_refused_however_they_lie(seed):
    rng = np.random.default_rng(seed)
    atoms = crystal(rng)
    flat = atoms.copy()
    flat.set_cell([*atoms.cell[:2], rng.normal(size=2) @ atoms.cell[:2]])
    for halves, role in (((flat, atoms), 'unrelaxed'), ((atoms, flat), 'relaxed')):
        with pytest.raises(PairFileError, match=f'the {role} structure has 6 atoms in a'):
            make_pair('x', *halves)


def test_drift_that_a_pair_has_is_no_part_of_its_targets():
    for pair in some_pairs():
        drifted = replace(pair, frac1=pair.frac1 + np.array([0.01, -0.02, 0.03]))
        for found, expected in zip(drifted.targets(), pair.targets(), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-12)


def test_most_atoms_say_what_the_drift_is_where_the_first_ones_go_far():
    atoms = bulk('Cu', 'sc', a=3.3) * (3, 3, 3)
    going = np.zeros((27, 3))
    going[:4, 0], going[4:8, 0] = 4.4, -2.0
    answer = relaxed(atoms, np.eye(3), going + np.array([1.0, 2.0, 3.0]))
    answer.wrap()
    _, displacement = make_pair('x', atoms, answer).targets()
    np.testing.assert_allclose(displacement, going - going.mean(axis=0), atol=1e-9)


# -- layers and what is held ---------------------------------------------------------------


def sheet(thickness, size=(2, 1, 1)):
    """A buckled sheet of silicon, rattled within its plane."""
    atoms = graphene('Si2', a=3.87, thickness=thickness, size=size, vacuum=9)
    rng = np.random.default_rng(0)
    atoms.positions[:, :2] += rng.normal(0, 0.03, (len(atoms), 2))
    return atoms


@pytest.mark.parametrize('growth', [-0.25, -0.1, 0.1, 0.35])
def test_a_change_of_thickness_is_a_strain_and_the_rest_displacement(growth):
    unrelaxed = sheet(1.5)
    relaxed = sheet(1.5 * (1 + growth))
    relaxed.set_cell(relaxed.cell.array @ np.diag([1.02, 1.02, 1]), scale_atoms=True)
    deformation, displacement = make_pair('x', unrelaxed, relaxed).targets()
    np.testing.assert_allclose(deformation, np.diag([1.02, 1.02, 1 + growth]), atol=1e-9)
    np.testing.assert_allclose(displacement, 0, atol=1e-9)


@pytest.mark.parametrize('growth', [-1.9, -0.99, -0.7, 0.8, 2.0])
def test_a_layer_that_loses_its_form_is_displaced_for_the_rest(growth):
    """Its strain stays that of a layer, and both together lead to the relaxed one."""
    unrelaxed, relaxed = sheet(1.5), sheet(1.5)
    middle = relaxed.positions[:, 2].mean()
    relaxed.positions[:, 2] = middle + (1 + growth) * (relaxed.positions[:, 2] - middle)
    relaxed.positions[0, 2] += 0.2
    deformation, displacement = make_pair('x', unrelaxed, relaxed).targets()
    assert 0.6 < deformation[2, 2] < 1.5
    assert (deformation[2, 2] > 1) == (growth > 0)
    off = (unrelaxed.positions + displacement) @ deformation - relaxed.positions
    np.testing.assert_allclose(off, off.mean(axis=0) * np.ones((len(off), 1)), atol=1e-9)


def test_flat_layers_and_layers_with_fixed_atoms_get_no_thicker():
    silicene = make_pair('x', sheet(0.45), sheet(0.55))
    assert silicene.targets()[0][2, 2] == 1
    assert make_pair('x', sheet(0.9), sheet(1.0)).targets()[0][2, 2] > 1.1
    start, end = sheet(1.5), sheet(1.7)
    assert make_pair('x', start, end, fixed_cell=True).targets()[0][2, 2] == 1
    start.set_constraint(FixAtoms([0]))
    assert make_pair('x', start, end).targets()[0][2, 2] == 1


HELD = {
    'crystal': (bulk('NaCl', 'rocksalt', a=5.6), None, True),
    'crystal, cell fixed': (bulk('NaCl', 'rocksalt', a=5.6), None, False),
    'layer': (sheet(1.5), None, True),
    'layer, cell fixed': (sheet(1.5), None, False),
    'fixed atoms': (bulk('NaCl', 'rocksalt', a=5.6), FixAtoms([1]), True),
    'layer with fixed atoms': (sheet(1.5), FixAtoms([0, 2]), True),
    'slab': (fcc111('Cu', (1, 1, 4), vacuum=8), FixAtoms([0, 1]), False),
}


@pytest.mark.parametrize('name', HELD)
def test_trainings_are_told_the_same_of_what_is_held_as_predictions(name):
    atoms, constraint, relax_cell = HELD[name]
    atoms = atoms.copy()
    atoms.set_constraint(constraint)
    pair = make_pair('x', atoms, atoms, fixed_cell=not relax_cell)
    told = pair.motion()
    for one in (atoms, pair.unrelaxed, pair.relaxed):
        expected = find_freedom(one, relax_cell).motion
        np.testing.assert_array_equal(told.fixed, expected.fixed)
        np.testing.assert_allclose(told.free_strain, expected.free_strain, atol=1e-9)


def test_layers_that_a_file_calls_crystals_are_warned_of(tmp_path, caplog):
    layers = [make_pair(k, sheet(1.5), sheet(1.6)) for k in range(3)]
    for pairs, warned in ((layers, False), ([replace(p, pbc=ALL) for p in layers], True)):
        caplog.clear()
        write_pairs(tmp_path / 'p.jsonl', [*some_pairs(), *pairs])
        read_pairs(tmp_path / 'p.jsonl')
        text = (
            'in 3 of 7 pairs that were looked at and count as crystals; the first is id 0'
        )
        assert (text in caplog.text) is warned


def test_none_is_no_split_and_no_kind():
    pair = make_pair('x', bulk('Cu'), bulk('Cu'), split=None, kind=None)
    assert (pair.split, pair.kind) == ('', '')


def test_real_pairs_are_in_their_nearest_images_and_without_rotation():
    path = SHARED / 'pairs_wbm_dev.jsonl.gz'
    if not path.exists():
        pytest.skip(f'{path} is not on this machine')
    pairs = read_pairs(path)
    assert len(pairs) == 2068
    rng = np.random.default_rng(0)
    for pair in pairs[::10]:
        deformation, displacement = pair.targets()
        gradient = np.linalg.solve(pair.cell0, pair.cell1)
        assert np.allclose(gradient, deformation, atol=1e-5)
        scrambled = pair.relaxed
        scrambled.positions += rng.random(3)
        scrambled.wrap()
        again = make_pair(pair.id, pair.unrelaxed, scrambled).targets()[1]
        # never longer; where it is another image, two are equally near
        assert (again**2).sum() <= (displacement**2).sum() + 1e-6


def test_pairs_are_written_whole_or_not_at_all(tmp_path):
    atoms = crystal(np.random.default_rng(0), 3)
    pair = make_pair('x', atoms, atoms)

    def damaged():
        yield pair
        raise KeyboardInterrupt

    for name in ('mine.jsonl', 'mine.jsonl.gz'):
        write_pairs(tmp_path / name, [pair] * 3)
        with pytest.raises(KeyboardInterrupt):
            write_pairs(tmp_path / name, damaged())
        assert len(read_pairs(tmp_path / name)) == 3
    assert len(list(tmp_path.iterdir())) == 2
