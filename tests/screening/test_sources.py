"""Sources are streams: the same items from any start, damage told at its place."""

import codecs
import errno
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pandas as pd
import pytest
from ase.db import connect
from ase.io import read, write
from ase.io.jsonio import encode
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor

from ase_deeprelax.data.structure_files import StructureFile, read_structures
from ase_deeprelax.errors import ConfigError, StructureError
from ase_deeprelax.screening.sources import open_source, scan

N = 23


@pytest.fixture(scope='module')
def atoms():
    from ase_deeprelax.testing import symmetric_crystals

    return symmetric_crystals(N, seed=3)


def cif(one):
    file = io.BytesIO()
    write(file, one, format='cif')
    return file.getvalue()


def as_extxyz(path, atoms):
    write(path / 'all.extxyz', atoms)
    return path / 'all.extxyz'


def as_folder(path, atoms):
    folder = path / 'cifs'
    for k, one in enumerate(atoms):
        file = folder / f'{k % 3}' / f'{k:02}.cif'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(cif(one))
    (folder / 'README.md').write_text('not a structure')
    return folder


def as_zip(path, atoms):
    with zipfile.ZipFile(path / 'all.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('README.md', 'nothing')
        for k, one in enumerate(atoms):
            archive.writestr(f'../../{k:02}.cif', cif(one))
    return path / 'all.zip'


def as_tar(path, atoms, suffix='tar.gz'):
    with tarfile.open(path / f'all.{suffix}', 'w:gz') as archive:
        for k, one in enumerate(atoms):
            content = cif(one)
            member = tarfile.TarInfo(f'x/{k:02}.cif')
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path / f'all.{suffix}'


def as_database(path, atoms):
    with connect(path / 'all.db') as database:
        for k, one in enumerate([atoms[0], *atoms]):
            database.write(one, number=k)
        database.delete([1])
    return path / 'all.db'


def as_aselmdb(path, atoms):
    pytest.importorskip('ase_db_backends', reason='the extra aselmdb is not installed')
    with connect(path / 'all.aselmdb', type='aselmdb') as database:
        for k, one in enumerate([atoms[0], *atoms]):
            database.write(one, number=k)
        database.delete([1])
    return path / 'all.aselmdb'


def as_json(path, atoms):
    found = [AseAtomsAdaptor.get_structure(one).as_dict() for one in atoms]
    (path / 'all.json').write_text(json.dumps(found))
    return path / 'all.json'


def as_named_json(path, atoms):
    found = {
        f'mp-{k}': AseAtomsAdaptor.get_structure(one).as_dict()
        for k, one in enumerate(atoms)
    }
    (path / 'named.json').write_text(json.dumps(found, indent=2))
    return path / 'named.json'


def as_json_lines(path, atoms):
    with gzip.open(path / 'all.jsonl.gz', 'wt') as file:
        for one in atoms:
            json.dump(AseAtomsAdaptor.get_structure(one).as_dict(), file)
            file.write('\n')
    return path / 'all.jsonl.gz'


def as_parquet(path, atoms, way='atoms'):
    columns = {
        'atoms': {'atoms': [encode(one) for one in atoms]},
        'structure': {
            'structure': [
                json.dumps(AseAtomsAdaptor.get_structure(one).as_dict()) for one in atoms
            ]
        },
        'cif': {'cif': [cif(one).decode() for one in atoms]},
        'numbers': {
            'numbers': [one.numbers.tolist() for one in atoms],
            'positions': [one.positions.tolist() for one in atoms],
            'cell': [one.cell.array.tolist() for one in atoms],
        },
        'lemat': {
            'species_at_sites': [one.get_chemical_symbols() for one in atoms],
            'cartesian_site_positions': [one.positions.tolist() for one in atoms],
            'lattice_vectors': [one.cell.array.tolist() for one in atoms],
        },
    }[way]
    columns = {'id': [f'x-{k}' for k in range(len(atoms))], **columns}
    pd.DataFrame(columns).to_parquet(path / f'{way}.parquet', row_group_size=7)
    return path / f'{way}.parquet'


def as_trajectory(path, atoms):
    write(path / 'all.traj', atoms)
    return path / 'all.traj'


def parquet_of(way):
    return lambda path, atoms: as_parquet(path, atoms, way)


WAYS = {
    'extxyz': as_extxyz,
    'folder': as_folder,
    'zip': as_zip,
    'tar.gz': as_tar,
    'db': as_database,
    'aselmdb': as_aselmdb,
    'json list': as_json,
    'json dictionary': as_named_json,
    'json lines': as_json_lines,
    'trajectory': as_trajectory,
    **{
        f'parquet {way}': parquet_of(way)
        for way in ('atoms', 'structure', 'cif', 'numbers', 'lemat')
    },
}


@pytest.mark.parametrize('way', WAYS)
def test_any_source_gives_all_structures_from_any_start(way, tmp_path, atoms):
    path = WAYS[way](tmp_path, atoms)
    source = open_source(path)
    found = [(item.id, item.load()) for item in source.items()]
    assert len({id for id, _ in found}) == len(found) == N
    order = sorted(range(N), key=lambda k: (k % 3, k)) if way == 'folder' else range(N)
    for k, (_, one) in zip(order, found, strict=True):
        assert sorted(one.numbers) == sorted(atoms[k].numbers)
        assert one.cell.volume == pytest.approx(atoms[k].cell.volume, rel=1e-4)
    count, digest = scan(source)
    assert count == N
    for start in (0, 1, 7, 16, N - 1, N):
        fresh = open_source(path)
        for reader in (source, fresh):  # with marks and without
            ids = [item.id for item in reader.items(start)]
            assert ids == [id for id, _ in found][start:]
        fresh.marks = json.loads(json.dumps(source.marks))
        for item, (_, one) in zip(fresh.items(start), found[start:], strict=True):
            assert item.load().cell.volume == pytest.approx(one.cell.volume, abs=1e-9)
    assert scan(open_source(path)) == (count, digest)


def test_columns_of_databases_come_along(tmp_path, atoms):
    source = open_source(as_database(tmp_path, atoms))
    item = next(source.items(4))
    assert item.load().info['key_value_pairs'] == {'number': 5}


def test_the_id_of_a_row_is_that_of_ase_and_of_relax(tmp_path, atoms):
    path = as_database(tmp_path, atoms)
    for number, item in enumerate(open_source(path).items()):
        assert item.id == f'all.db@{number}'
        [one] = read_structures(StructureFile(path, str(number)))
        assert one == item.load() == read(tmp_path / item.id)


def test_a_folder_may_hold_anything(tmp_path, atoms):
    folder = as_folder(tmp_path, atoms[:4])
    as_extxyz(folder, atoms[:5])
    (folder / '0' / 'broken.cif').write_text('data_x\n_cell_length_a nonsense\n')
    (folder / 'cut.zip').write_bytes(as_zip(tmp_path, atoms).read_bytes()[:2000])
    (folder / 'cut.traj').write_bytes(as_trajectory(tmp_path, atoms).read_bytes()[:-5])
    (folder / 'two.vasp').write_text('')
    source = open_source(folder)
    found = {}
    for item in source.items():
        try:
            found[item.id] = item.load()
        except Exception as error:  # noqa: BLE001
            found[item.id] = str(error)
    assert len(found) == scan(source)[0] == 4 + 5 + 1 + 1 + 1 + 1
    wrong = {id: text for id, text in found.items() if isinstance(text, str)}
    assert set(wrong) == {'0/broken.cif', 'cut.traj', 'cut.zip', 'two.vasp'}
    assert 'damaged archive' in wrong['cut.zip']
    for start in range(len(found) + 1):
        ids = [item.id for item in source.items(start)]
        assert ids == list(found)[start:]


def test_a_folder_gives_compressed_files_and_lists_and_counts_the_rest(
    tmp_path, atoms, caplog
):
    folder = tmp_path / 'in'
    (folder / 'below').mkdir(parents=True)
    (folder / 'below' / 'a.cif.gz').write_bytes(gzip.compress(cif(atoms[0])))
    frames = as_extxyz(tmp_path, atoms[:2]).read_bytes()
    (folder / 'b.extxyz.gz').write_bytes(gzip.compress(frames))
    as_json(folder, atoms[:2])
    one = AseAtomsAdaptor.get_structure(atoms[0]).as_dict()
    (folder / 'one.json').write_text(json.dumps(one))
    (folder / 'README.md').write_text('not a structure')
    source = open_source(folder)
    found = {item.id: len(item.load()) for item in source.items()}
    n, m = len(atoms[0]), len(atoms[1])
    assert found == {
        'all.json@0': n,
        'all.json@1': m,
        'b.extxyz.gz@0': n,
        'b.extxyz.gz@1': m,
        'below/a.cif.gz': n,
        'one.json': n,
    }
    assert not caplog.records
    scan(source)
    assert f'{folder}: left out 1 of its entries, the first is README.md' in caplog.text


def test_cut_archives_and_files_tell_where(tmp_path, atoms):
    for path in (as_tar(tmp_path, atoms), as_json(tmp_path, atoms)):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        ids, last = [], None
        for item in open_source(path).items():
            ids.append(item.id)
            try:
                item.load()
            except StructureError as error:
                last = str(error)
        assert 2 < len(ids) < N
        assert ids[-1] == f'{path.name}@damaged'
        assert last is not None


READ_ALL = """
import sys
from ase_deeprelax.errors import StructureError
from ase_deeprelax.screening.sources import open_source
for path in sys.argv[1:]:
    try:
        for item in open_source(path).items():
            item.load()
    except StructureError as error:
        print(error)
"""


def test_databases_that_were_cut_are_refused(tmp_path, atoms):
    """In another process: the system ends one that reads beyond the end of such a file."""
    content = as_aselmdb(tmp_path, atoms).read_bytes()
    paths = [tmp_path / f'{k}.aselmdb' for k in range(8)]
    for k, path in enumerate(paths):
        path.write_bytes(content[: len(content) * k // 8])
    command = [sys.executable, '-c', READ_ALL, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    refusals = done.stdout.splitlines()
    assert len(refusals) == len(paths)
    for path, refusal in zip(paths, refusals, strict=True):
        assert refusal.startswith(f'{path}: cannot be opened as .aselmdb file')
    assert 'cut to less than its' in refusals[-1]


@pytest.mark.parametrize('pbc', [[True, True, False], False])
def test_columns_say_along_what_there_is_periodicity(tmp_path, atoms, pbc):
    path = as_parquet(tmp_path, atoms, 'numbers')
    table = pd.read_parquet(path)
    table['pbc'] = [pbc] * len(table)
    table.to_parquet(path)
    loaded = next(iter(open_source(path).items())).load()
    assert np.array_equal(loaded.pbc, np.broadcast_to(pbc, 3))


def test_empty_entries_of_a_table_mean_what_a_missing_column_means(tmp_path, atoms):
    path = as_parquet(tmp_path, atoms, 'numbers')
    table = pd.read_parquet(path)
    table['pbc'] = [None] * (N - 1) + [[True, True, False]]
    table.loc[[2, 3], 'id'] = None
    table.loc[4, 'cell'] = None
    table.to_parquet(path)
    items = list(open_source(path).items())
    assert scan(open_source(path))[0] == N
    assert [item.id for item in items[1:5]] == [
        'x-1',
        f'{path.name}@2',
        f'{path.name}@3',
        'x-4',
    ]
    assert items[2].load().pbc.all()
    with pytest.raises(StructureError, match='its cell'):
        items[4].load()


def test_an_id_that_is_there_twice_is_told_before_the_work(tmp_path, atoms):
    path = as_parquet(tmp_path, atoms)
    table = pd.read_parquet(path)
    table.loc[9, 'id'] = 'x-3'
    table.to_parquet(path)
    with pytest.raises(ConfigError, match="'x-3' is there twice"):
        scan(open_source(path))


@settings(max_examples=150)
@given(
    cuts=st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 80)), max_size=3),
    junk=st.lists(st.tuples(st.integers(0, 10**4), st.binary(max_size=12)), max_size=3),
)
def test_damage_to_frames_takes_at_most_its_neighbours(tmp_path_factory, atoms, cuts, junk):
    file = io.StringIO()
    write(file, atoms, format='extxyz')
    content = bytearray(file.getvalue().encode())
    for place, length in cuts:
        del content[place : place + length]
    for place, extra in junk:
        content[place:place] = extra
    path = tmp_path_factory.mktemp('x') / 'damaged.extxyz'
    path.write_bytes(bytes(content))
    good = 0
    source = open_source(path)
    for item in source.items():
        try:
            item.load()
        except StructureError:
            continue
        good += 1
    # A cut of 80 bytes lies in two frames at most, and so does what it makes of them.
    assert good >= N - 3 * len(cuts) - 3 * len(junk)
    ids = [item.id for item in source.items()]
    assert ids == [f'damaged.extxyz@{k}' for k in range(len(ids))]
    shutil.rmtree(path.parent)


def test_memory_is_flat_however_long_the_source(tmp_path, atoms):
    path = as_extxyz(tmp_path, atoms)
    peaks = []
    for copies in (20, 200):
        long = tmp_path / f'{copies}.extxyz'
        long.write_bytes(path.read_bytes() * copies)
        tracemalloc.start()
        total = sum(1 for _ in open_source(long).items())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert total == copies * N
    assert peaks[1] < 1.2 * peaks[0] + 1e5


def test_a_long_header_does_not_swallow_the_file(tmp_path, atoms):
    path = as_extxyz(tmp_path, atoms)
    lines = path.read_text().splitlines()
    lines[0] = '1000000'
    path.write_text('\n'.join(lines))
    items = list(open_source(path).items())
    assert len(items) == N
    with pytest.raises(StructureError, match='of 1000000 lines'):
        items[0].load()
    np.testing.assert_array_equal(items[1].load().numbers, atoms[1].numbers)


def test_structures_of_pymatgen_keep_what_atoms_can_hold(tmp_path):
    structure = Structure(
        np.eye(3) * 4, ['Na', 'Cl'], [[0] * 3, [0.5] * 3], site_properties={'tag': [1, 2]}
    )
    (tmp_path / 'one.json').write_text(json.dumps([structure.as_dict()]))
    [item] = open_source(tmp_path / 'one.json').items()
    assert item.load().arrays['tag'].tolist() == [1, 2]


def records(atoms):
    """Records as the Materials Project gives them."""
    return [
        {
            'material_id': f'mp-{k}',
            'structure': AseAtomsAdaptor.get_structure(one).as_dict(),
            'band_gap': 0.1,
        }
        for k, one in enumerate(atoms)
    ]


def test_records_of_the_materials_project_keep_their_names(tmp_path, atoms):
    found = records(atoms[:3])
    (tmp_path / 'docs.json').write_text(json.dumps(found))
    (tmp_path / 'docs.jsonl').write_text('\n'.join(map(json.dumps, found)))
    with gzip.open(tmp_path / 'docs.json.gz', 'wt') as file:
        json.dump(found, file)
    for name in ('docs.json', 'docs.json.gz', 'docs.jsonl'):
        items = list(open_source(tmp_path / name).items())
        assert [item.id for item in items] == ['mp-0', 'mp-1', 'mp-2']
        for item, one in zip(items, atoms[:3], strict=True):
            assert sorted(item.load().numbers) == sorted(one.numbers)
            assert item.load().info['id'] == item.id


def test_a_record_without_a_structure_says_what_it_holds(tmp_path):
    (tmp_path / 'docs.jsonl').write_text('{"material_id": "mp-1", "volume": 40.1}\n')
    [item] = open_source(tmp_path / 'docs.jsonl').items()
    with pytest.raises(StructureError, match='there is: material_id, volume'):
        item.load()


def as_zip_of(path, files):
    with zipfile.ZipFile(path / 'mixed.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, f'below/{file.name}')
    return path / 'mixed.zip'


def as_tar_of(path, files):
    with tarfile.open(path / 'mixed.tar.gz', 'w:gz') as archive:
        for file in files:
            archive.add(file, f'below/{file.name}')
    return path / 'mixed.tar.gz'


@pytest.mark.parametrize('packed', [as_zip_of, as_tar_of])
def test_an_archive_gives_what_a_folder_gives(packed, tmp_path, atoms, caplog):
    folder = tmp_path / 'below'
    folder.mkdir()
    ways = (as_extxyz, as_database, as_json, as_json_lines, as_trajectory, as_parquet)
    files = [way(folder, atoms[:3]) for way in ways]
    (folder / 'NaCl.cif').write_bytes(cif(atoms[0]))
    one = AseAtomsAdaptor.get_structure(atoms[0]).as_dict()
    (folder / 'one.json').write_text(json.dumps(one))
    (folder / 'cut.db').write_bytes(b'nothing')
    (folder / 'inner.zip').write_bytes(as_zip(tmp_path, atoms[:1]).read_bytes())
    (folder / 'README.md').write_text('nothing')
    archive = packed(tmp_path, sorted(folder.iterdir()))
    (folder / 'inner.zip').unlink()
    found, source = {}, open_source(archive)
    for item in source.items():
        try:
            found[item.id] = len(item.load())
        except StructureError as error:
            found[item.id] = 'no database of ASE' in str(error)
    parquet = [f'x-{k}' for k in range(3)]  # rows have names of their own
    wanted = [item.id for item in open_source(folder).items()]
    wanted = {id if id in parquet else f'below/{id}' for id in wanted}
    assert found.keys() == wanted
    assert len(found) == 3 * len(files) + 3
    assert found['below/cut.db'] is True
    assert found['below/all.json@2'] == len(atoms[2])
    for start in (0, 5, 11):
        assert [item.id for item in source.items(start)] == list(found)[start:]
    assert scan(source)[0] == len(found)
    assert f'{archive}: left out 2 of its entries, the first is below/' in caplog.text


def test_archives_of_a_folder_may_hold_files_of_one_name(tmp_path, atoms, caplog):
    (tmp_path / 'in/b').mkdir(parents=True)
    for folder, k in (('in', 0), ('in/b', 3)):
        as_zip(tmp_path / folder, atoms[k : k + 2])
        as_tar(tmp_path / folder, atoms[k : k + 2])
    source = open_source(tmp_path / 'in')
    found = {item.id: str(item.load().symbols) for item in source.items()}
    assert len(found) == scan(source)[0] == 8
    for k in range(2):
        assert found[f'all.tar.gz/x/0{k}.cif'] == str(atoms[k].symbols)
        assert found[f'b/all.zip/../../0{k}.cif'] == str(atoms[3 + k].symbols)
    assert 'left out 2 of its entries, the first is all.zip/README.md' in caplog.text


def test_a_folder_that_may_not_be_read_is_told(tmp_path, atoms, caplog, monkeypatch):
    folder, list_folder = as_folder(tmp_path, atoms[:6]), os.scandir
    number = errno.EACCES

    def closed(place):
        if str(place).endswith('/1'):
            raise OSError(number, os.strerror(number), str(place))
        return list_folder(place)

    monkeypatch.setattr(os, 'scandir', closed)
    assert scan(open_source(folder))[0] == 4
    assert 'left out 2 of its entries, the first is 1;' in caplog.text
    number = errno.ESTALE  # as a network disk gives it for a moment
    with pytest.raises(OSError, match='cifs/1'):
        open_source(folder)


def test_damage_in_a_table_takes_what_follows_it_alone(tmp_path, atoms):
    folder = tmp_path / 'in'
    folder.mkdir()
    as_extxyz(folder, atoms[:2])
    path = as_parquet(folder, atoms)
    content = bytearray(path.read_bytes())
    column = parquet.ParquetFile(path).metadata.row_group(1).column(1)
    begin = column.dictionary_page_offset or column.data_page_offset
    content[begin : begin + 40] = bytes(40)
    path.write_bytes(content)
    source = open_source(folder)
    ids = [item.id for item in source.items()]
    assert ids[-1] == 'atoms.parquet@damaged'
    assert len(ids) == scan(source)[0] == 2 + 7 + 1
    for start in range(len(ids) + 1):
        assert [item.id for item in source.items(start)] == ids[start:]


def test_suffixes_in_capitals_mean_the_same(tmp_path, atoms):
    path = as_json_lines(tmp_path, atoms[:3]).rename(tmp_path / 'ALL.JSONL.GZ')
    assert [len(item.load()) for item in open_source(path).items()] == [
        len(one) for one in atoms[:3]
    ]


def test_files_that_unpack_to_more_than_any_structure_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / 'bomb.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        for name in ('a.cif', 'b.extxyz'):
            archive.writestr(name, b' ' * (1 << 26))
    for item in open_source(tmp_path / 'bomb.zip').items():
        with pytest.raises(StructureError, match='more than 500 times the size'):
            item.load()


def test_a_bad_line_of_json_takes_no_other_one(tmp_path, atoms):
    lines = list(map(json.dumps, records(atoms[:4])))
    lines[1] = lines[1][:50]
    (tmp_path / 'docs.jsonl').write_text('\n'.join(lines))
    items = list(open_source(tmp_path / 'docs.jsonl').items())
    assert [item.id for item in items] == ['mp-0', 'docs.jsonl@1', 'mp-2', 'mp-3']
    with pytest.raises(StructureError, match=r'^line 2: not a JSON object'):
        items[1].load()
    for k in (0, 2, 3):
        assert len(items[k].load()) == len(atoms[k])


def test_a_cut_list_in_a_compressed_file_tells_where(tmp_path, atoms):
    text = json.dumps(records(atoms) * 100).encode()
    (tmp_path / 'docs.json.gz').write_bytes(gzip.compress(text)[:-500])
    items = list(open_source(tmp_path / 'docs.json.gz').items())
    assert len(items) > N
    assert items[-1].id == 'docs.json.gz@damaged'
    with pytest.raises(StructureError, match=r'damaged after \d+ structures'):
        items[-1].load()


def test_links_of_a_folder_that_are_not_followed_are_counted(tmp_path, atoms, caplog):
    folder = as_folder(tmp_path, atoms[:4])
    (folder / 'README.md').unlink()
    (folder / 'again').symlink_to('0')
    (folder / 'gone.cif').symlink_to('nowhere.cif')
    assert scan(open_source(folder))[0] == 4
    assert f'{folder}: left out 2 of its entries, the first is again' in caplog.text


@pytest.mark.parametrize('way', [as_extxyz, as_json, as_named_json])
def test_a_mark_of_byte_order_is_passed_over(way, tmp_path, atoms):
    path = way(tmp_path, atoms)
    plain = [(item.id, len(item.load())) for item in open_source(path).items()]
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    source = open_source(path)
    assert scan(source)[0] == N
    for start in (0, 1, 20):
        found = [(item.id, len(item.load())) for item in source.items(start)]
        assert found == plain[start:]
