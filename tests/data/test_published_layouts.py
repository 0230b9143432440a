"""The papers' data sets in their published layouts, made small."""

import os
import re

import numpy as np
import pytest
from ase.build import bulk, mx2
from ase.db import connect
from ase.io import write
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.io.cif import CifWriter

from ase_deeprelax.compare.evaluate import evaluate
from ase_deeprelax.data import published_layouts as layouts
from ase_deeprelax.data.pairs import make_pair, read_pairs
from ase_deeprelax.errors import PairFileError
from tests.published import (
    crystals,
    layers,
    write_c2db,
    write_databases,
    write_lists,
    write_mp,
    write_xmno,
)


def assert_read_as_written(read, written):
    """Equal up to the orientation, which CIF loses, and the images of the input."""
    expected = {id: (split, make_pair(id, u, r)) for id, split, u, r in written}
    assert [pair.id for pair in read] == sorted(expected, key=order(written))
    for pair in read:
        split, other = expected[pair.id]
        assert pair.split == split
        assert np.array_equal(pair.numbers, other.numbers)
        for cell, known in ((pair.cell0, other.cell0), (pair.cell1, other.cell1)):
            assert np.allclose(cell @ cell.T, known @ known.T, atol=1e-5)
        turns = pair.frac0 - other.frac0
        assert np.allclose(turns, turns.round(), atol=1e-6)
        shift, known = pair.frac1 - pair.frac0, other.frac1 - other.frac0
        assert np.allclose(shift, known, atol=1e-6)
        assert np.allclose(shift.mean(axis=0), 0, atol=1e-9)
        stretch = np.linalg.solve(pair.cell0, pair.cell1)
        assert np.allclose(stretch, stretch.T, atol=1e-9)


def order(written):
    """Lists come as train, val, test; within one, ids keep their order."""
    splits = {id: ('train', 'val', 'test', '').index(split) for id, split, *_ in written}
    ids = list(splits)
    return lambda id: (splits[id], ids.index(id))


@pytest.mark.parametrize('place', ['CIF', 'cif', '.'])
@pytest.mark.parametrize('writer', [write_xmno, write_mp, write_c2db])
def test_cif_layouts_come_back(tmp_path, writer, place):
    written = list(crystals(np.random.default_rng(0)))
    writer(tmp_path, written, place)
    assert_read_as_written(read_pairs(tmp_path), written)
    for split in ('train', 'val', 'test'):
        part = [pair for pair in written if pair[1] == split]
        assert_read_as_written(read_pairs(tmp_path, split), part)


@pytest.mark.parametrize('listed', [True, False])
def test_databases_of_c2db_come_back(tmp_path, listed):
    written = list(layers(np.random.default_rng(0)))
    write_databases(tmp_path, written)
    if listed:
        write_lists(tmp_path, written)
    else:
        written = [(id, '', *halves) for id, _, *halves in written]
    assert_read_as_written(read_pairs(tmp_path), written)


def test_database_whose_rows_hold_the_unrelaxed_structure(tmp_path):
    written = [(id, '', *halves) for id, _, *halves in layers(np.random.default_rng(1))]
    for name, half in (('unrelaxed', 2), ('relaxed', 3)):
        with connect(tmp_path / f'{name}.db') as db:
            for pair in written:
                db.write(pair[half], folder=pair[0])
    assert_read_as_written(read_pairs(tmp_path), written)


def test_cif_files_made_from_the_databases_come_first(tmp_path):
    written = list(layers(np.random.default_rng(0)))
    write_databases(tmp_path, written[:1])
    write_c2db(tmp_path, written)
    assert_read_as_written(read_pairs(tmp_path), written)


def test_point_defect_in_a_large_supercell(tmp_path):
    rng = np.random.default_rng(0)
    relaxed = mx2(a=3.18, thickness=3.13, size=(8, 8, 1), vacuum=7.0)
    relaxed.pbc = True
    del relaxed[100]
    unrelaxed = relaxed.copy()
    unrelaxed.rattle(0.05, rng=rng)
    written = [('defect', 'test', unrelaxed, relaxed)]
    write_c2db(tmp_path, written)
    (pair,) = read_pairs(tmp_path, 'test')
    assert len(pair) == 191
    assert (pair.kind, pair.fixed_cell, pair.pbc) == ('defect', True, (True, True, False))
    assert_read_as_written([pair], written)


def test_layers_in_vacuum_are_evaluated(tmp_path, tiny_model):
    """Files drop the non-periodic direction; the vacuum tells it."""
    write_c2db(tmp_path, list(layers(np.random.default_rng(0))))
    result = evaluate(read_pairs(tmp_path, 'test'), tiny_model)
    assert (result['n'], result['n_failed']) == (1, 0)
    assert list(result['kinds']) == ['monolayer']
    dummy = result['all']['dummy']
    assert dummy['lattice_mae']['mean'] == pytest.approx(0.0376, abs=1e-4)  # 3 % of 3.18 A
    assert dummy['volume_mae'] is None


@pytest.mark.parametrize('writer', [write_c2db, write_databases])
def test_layers_are_monolayers_whatever_the_boxes(tmp_path, writer):
    """The relaxed layer stands in another box, and across its border."""
    written = []
    for id, split, unrelaxed, relaxed in layers(np.random.default_rng(0)):
        lower = relaxed.copy()
        lower.set_cell([*relaxed.cell.array[:2], (0, 0, 13)])
        lower.positions[:, 2] -= relaxed.positions[:, 2].mean()
        lower.positions[:, 2] %= 13
        written.append((id, split, unrelaxed, lower))
    writer(tmp_path, written)
    at_rest = layers(np.random.default_rng(0))
    straight = {id: make_pair(id, *halves) for id, _, *halves in at_rest}
    for pair in read_pairs(tmp_path):
        assert (pair.pbc, pair.kind, pair.fixed_cell) == ((1, 1, 0), 'monolayer', False)
        assert np.allclose(pair.cell0[2], pair.cell1[2])
        expected = straight[pair.id]
        for found, known in zip(pair.targets(), expected.targets(), strict=True):
            assert np.allclose(found, known, atol=1e-5)


def test_a_vacuum_along_any_vector_is_found(tmp_path):
    written = []
    for id, split, *halves in layers(np.random.default_rng(0)):
        for atoms in halves:
            atoms.set_cell(atoms.cell.array[[2, 0, 1]])
            atoms.pbc = True
        written.append((id, split, *halves))
    write_c2db(tmp_path, written)
    assert {pair.pbc for pair in read_pairs(tmp_path)} == {(False, True, True)}


def test_crystals_are_of_no_kind_but_in_a_set_of_layered_ones(tmp_path):
    for name, kind in (('mp', ''), ('vdW', 'layered')):
        folder = tmp_path / name
        folder.mkdir()
        write_c2db(folder, list(crystals(np.random.default_rng(0))))
        for pair in read_pairs(folder):
            assert (pair.kind, pair.fixed_cell, all(pair.pbc)) == (kind, False, True)


def test_cells_that_stay_were_held(tmp_path):
    """In any set all of whose cells stay; pair by pair in a set of defects."""
    free = list(crystals(np.random.default_rng(0)))
    held = []
    for id, split, unrelaxed, _ in free:
        relaxed = unrelaxed.copy()
        relaxed.rattle(0.05, seed=1)
        relaxed.cell[0, 0] += 2e-5  # as much as files round
        held.append((id, split, unrelaxed, relaxed))
    mixed = [*held[:3], *free[3:]]
    for name, written, count in (
        ('a', held, 7),
        ('b', mixed, 0),
        ('defects', mixed, 3),
    ):
        folder = tmp_path / name
        folder.mkdir()
        write_c2db(folder, written)
        pairs = read_pairs(folder)
        assert sum(pair.fixed_cell for pair in pairs) == count
        for pair in pairs:
            assert pair.kind == ('defect' if pair.fixed_cell else '')
            assert np.array_equal(pair.cell0, pair.cell1) == pair.fixed_cell


def test_symmetry_of_a_cif_is_applied(tmp_path):
    atoms = bulk('MgO', 'rocksalt', a=4.3, cubic=True)
    (tmp_path / 'train.csv').write_text('atoms_id\nx\n')
    for half, a in (('unrelaxed', 4.3), ('relaxed', 4.2)):
        atoms.set_cell([a] * 3, scale_atoms=True)
        structure = AseAtomsAdaptor.get_structure(atoms)
        CifWriter(structure, symprec=0.01).write_file(tmp_path / f'x_{half}.cif')
    assert 'Fm-3m' in (tmp_path / 'x_relaxed.cif').read_text()
    (pair,) = read_pairs(tmp_path)
    assert sorted(pair.numbers) == [8] * 4 + [12] * 4
    deformation, displacement = pair.targets()
    assert np.allclose(deformation, np.eye(3) * 4.2 / 4.3, atol=1e-6)
    assert np.allclose(displacement, 0, atol=1e-6)


@pytest.mark.parametrize(
    'text',
    [
        '\ufeffatoms_id\nc-0\n',
        ' atoms_id ,energy\r\nc-0,1\r\n',
        'c-0\n',
        '\n"name, or so",atoms_id\n\n1,c-0\n',
    ],
)
def test_lists_as_spreadsheets_write_them(tmp_path, text):
    written = list(crystals(np.random.default_rng(0), 1))
    write_c2db(tmp_path, written)
    (tmp_path / 'train.csv').write_text(text, newline='', encoding='utf-8')
    assert [pair.id for pair in read_pairs(tmp_path)] == ['c-0']


def test_many_files_are_read_by_workers_with_the_same_result(tmp_path, monkeypatch):
    written = list(crystals(np.random.default_rng(0), 6))
    write_mp(tmp_path, written)
    monkeypatch.setattr(layouts, 'WORTH_WORKERS', 1)
    assert_read_as_written(read_pairs(tmp_path), written)
    (tmp_path / 'CIF/c-4_R.cif').write_text('data_')
    with pytest.raises(PairFileError, match=r"val\.csv, line 3, id 'c-4'.*c-4_R\.cif"):
        read_pairs(tmp_path)


def test_tests_without_an_answer_do_not_stop_training(tmp_path):
    """The layout for one's own data: the published code predicts test.csv."""
    write_c2db(tmp_path, list(crystals(np.random.default_rng(0), 6)))
    (tmp_path / 'CIF/c-5_relaxed.cif').unlink()
    assert len(read_pairs(tmp_path, ('train', 'val'))) == 4
    with pytest.raises(PairFileError, match=r'test\.csv, line 3.*c-5_relaxed\.cif'):
        read_pairs(tmp_path)


@pytest.mark.parametrize(
    ('writer', 'gone', 'message'),
    [
        (write_mp, 'CIF/c-3_U.cif', r"train\.csv, line 3: id 'c-3' has no .*CIF/c-3_U.cif"),
        (
            write_c2db,
            'CIF/c-1_relaxed.cif',
            r'val\.csv, line 2: .*c-1_relaxed\.cif; 1 of 6',
        ),
        (write_xmno, 'c-2_unrelaxed.cif', r'id_prop_test_all.csv, line 2: .*c-2_unrelaxed'),
    ],
)
def test_missing_file_is_named_before_any_is_read(tmp_path, writer, gone, message):
    write_pairs = list(crystals(np.random.default_rng(0), 6))
    writer(tmp_path, write_pairs)
    (tmp_path / gone).unlink()
    for path in tmp_path.rglob('*.cif'):
        path.write_text('')
    with pytest.raises(PairFileError, match=message.replace('/', re.escape(os.sep))):
        read_pairs(tmp_path)


def test_both_files_missing_are_sought_under_the_published_name(tmp_path):
    (tmp_path / 'CIF').mkdir()
    (tmp_path / 'test.csv').write_text('mp_id\nmp-1\nmp-2\n')
    with pytest.raises(PairFileError, match=r'CIF.mp-1_U\.cif; 2 of 2 listed pairs'):
        read_pairs(tmp_path)


@pytest.mark.parametrize('half', ['unrelaxed', 'relaxed'])  # by ASE, by pymatgen
def test_truncated_cif_is_refused_or_whole(tmp_path, half):
    """Cut at any byte: named with id, list and line, unless only blanks were lost."""
    written = list(crystals(np.random.default_rng(0), 1))
    write_c2db(tmp_path, written)
    path = tmp_path / f'CIF/c-0_{half}.cif'
    content = path.read_bytes()
    errors = []
    for size in range(0, len(content) + 1, 7):
        path.write_bytes(content[:size])
        try:
            read = read_pairs(tmp_path)
        except PairFileError as error:
            errors.append(str(error))
        else:
            assert_read_as_written(read, written)
    assert len(errors) > 0.95 * len(content) / 7
    assert all(re.search(r"train\.csv, line 2.*'c-0'", error) for error in errors)


def test_partial_occupancy_is_refused(tmp_path):
    write_c2db(tmp_path, list(crystals(np.random.default_rng(0), 1)))
    path = tmp_path / 'CIF/c-0_unrelaxed.cif'
    path.write_text(path.read_text().replace('1.0000', '0.5000', 1))
    with pytest.raises(PairFileError, match=r"id 'c-0'.*c-0_unrel.*an occupancy of 0\.5"):
        read_pairs(tmp_path)
    path.write_text(path.read_text().replace('0.5000', '?', 1))
    assert len(read_pairs(tmp_path)) == 1


def test_other_order_of_atoms_is_refused_with_what_to_do(tmp_path):
    write_c2db(tmp_path, list(crystals(np.random.default_rng(0), 1)))
    (_, _, unrelaxed, _) = next(crystals(np.random.default_rng(0), 1))
    write(tmp_path / 'CIF/c-0_relaxed.cif', unrelaxed[::-1])
    message = (
        r"train\.csv, line 2: pair 'c-0': atom 0 is .* sort those of .*c-0_relaxed\.cif"
    )
    with pytest.raises(PairFileError, match=message):
        read_pairs(tmp_path)
    write(tmp_path / 'CIF/c-0_relaxed.cif', unrelaxed[1:])
    with pytest.raises(PairFileError, match=r'line 2.*8 atoms unrelaxed, 7 relaxed'):
        read_pairs(tmp_path)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'atoms_id,x\n,1\n', r'train\.csv, line 2: no id in column 1'),
        (b'x,atoms_id\n1\n', r'train\.csv, line 2: no id in column 2'),
        (b'atoms_id\n\xff\xfe\n', r'train\.csv: not a readable csv'),
        (b'name\nc-0\n', r"train\.csv, line 1: id 'name' has no"),
    ],
)
def test_damaged_list_is_named(tmp_path, content, message):
    write_c2db(tmp_path, list(crystals(np.random.default_rng(0), 1)))
    (tmp_path / 'train.csv').write_bytes(content)
    with pytest.raises(PairFileError, match=message):
        read_pairs(tmp_path)


def test_databases_that_do_not_fit_are_named(tmp_path):
    written = list(layers(np.random.default_rng(0)))
    write_databases(tmp_path, written)
    (tmp_path / 'train.csv').write_text('atoms_id\nMoS2-0\nMoS2-9\n')
    message = r"train\.csv, line 3: id 'MoS2-9' is not in .*unrelaxed\.db"
    with pytest.raises(PairFileError, match=message):
        read_pairs(tmp_path)
    (tmp_path / 'train.csv').unlink()
    connect(tmp_path / 'unrelaxed.db').write(bulk('Cu'), folder='x/Cu-1')
    with pytest.raises(PairFileError, match=r"id 'Cu-1' is not in .*[/\\]relaxed\.db"):
        read_pairs(tmp_path)
    connect(tmp_path / 'relaxed.db').write(bulk('Cu'), folder='y/MoS2-1')
    with pytest.raises(PairFileError, match=r"relaxed\.db: row 4 is a second 'MoS2-1'"):
        read_pairs(tmp_path)
    connect(tmp_path / 'unrelaxed.db').write(bulk('Cu'))
    with pytest.raises(PairFileError, match=r"unrelaxed\.db: row 5 lacks the key 'folder'"):
        read_pairs(tmp_path)
    (tmp_path / 'unrelaxed.db').write_bytes(b'SQLite format 3\0 and no more')
    with pytest.raises(PairFileError, match=r'unrelaxed\.db: not a readable ase database'):
        read_pairs(tmp_path)
