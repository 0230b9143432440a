"""What ``deeprelax relax`` reads and writes, and what a stop leaves behind."""

import bz2
import gzip
import json
import lzma
import os
import re
import signal
import subprocess
import sys
import textwrap
import zipfile

import numpy as np
import pytest
from ase.build import bulk
from ase.constraints import FixAtoms, FixCartesian
from ase.db import connect
from ase.io import read, write

from ase_deeprelax import keys
from ase_deeprelax.cli.answers import OneShot, answer_key, part_file


def salt(a=5.6, seed=0):
    atoms = bulk('NaCl', 'rocksalt', a=a)
    atoms.rattle(0.05, seed=seed)
    return atoms


@pytest.fixture
def relaxed(run, tmp_path, tiny_model):
    """Run the command in a folder of its own; the result and the folder of outputs."""

    def relaxed(*words, out='out', code=0, **kwargs):
        words = [*words, '--out', tmp_path / out, '--model', tiny_model]
        result = run('relax', *words, **kwargs)
        assert result.exit_code == code, result.output
        return result, tmp_path / out

    return relaxed


@pytest.mark.parametrize('name', ['POSCAR', 'CONTCAR_2', 'OUTCAR', 'x.POSCAR.1'])
def test_the_name_of_an_output_decides_no_format(relaxed, tmp_path, name):
    write(tmp_path / 'in.traj', salt())
    _, out = relaxed(tmp_path / 'in.traj', out=f'{name}.extxyz')
    assert read(out, format='extxyz').info[keys.SIGMA] > 0
    _, out = relaxed(tmp_path / 'in.traj', out=f'{name}.cif')
    assert 'data_' in out.read_text()


@pytest.mark.parametrize('name', ['POSCAR', 'CONTCAR'])
def test_files_of_vasp_are_read_by_their_names(relaxed, tmp_path, name):
    write(tmp_path / name, salt(), format='vasp')
    _, out = relaxed(tmp_path / name)
    assert 'data_' in (out / f'{name}.cif').read_text()
    assert read(out / f'{name}.extxyz', format='extxyz').info[keys.SIGMA] > 0


@pytest.mark.parametrize('name', ['CONTCAR.cif', 'my_OUTCAR.extxyz', 'POSCAR.cif.gz'])
def test_a_known_suffix_decides_how_a_file_is_read(relaxed, tmp_path, name):
    form = 'extxyz' if 'extxyz' in name else 'cif'
    write(tmp_path / f'plain.{form}', salt(), format=form)
    content = (tmp_path / f'plain.{form}').read_bytes()
    (tmp_path / name).write_bytes(
        gzip.compress(content) if name.endswith('gz') else content
    )
    relaxed(tmp_path / name)


@pytest.mark.timeout(60)
def test_pipes_devices_links_to_themselves_and_bombs_are_named(relaxed, tmp_path):
    os.mkfifo(tmp_path / 'pipe.cif')
    (tmp_path / 'zero.cif').symlink_to('/dev/zero')
    (tmp_path / 'loop.cif').symlink_to('loop.cif')
    for name, module in {'gz': gzip, 'bz2': bz2, 'xz': lzma}.items():
        (tmp_path / f'bomb.json.{name}').write_bytes(module.compress(b' ' * (1 << 25)))
    write(tmp_path / 'good.cif', salt())
    result, out = relaxed(*sorted(tmp_path.iterdir()), code=1)
    failed = [line for line in result.stderr.splitlines() if line.startswith('failed')]
    assert len(failed) == 6
    assert sum('is no regular file' in line for line in failed) == 2
    assert sum('expands to more than' in line for line in failed) == 3
    assert sum('loop.cif' in line for line in failed) == 1
    assert (out / 'good.cif').exists()


@pytest.mark.parametrize('suffix', ['traj', 'db', 'json'])
def test_a_frame_that_is_not_there_is_named(relaxed, tmp_path, suffix):
    write(tmp_path / f'run.{suffix}', [salt(), salt()])
    result, _ = relaxed(f'{tmp_path}/run.{suffix}@5', code=1)
    assert f'run.{suffix}@5: holds no structure 5' in result.stderr
    assert not part_file(tmp_path / 'out').exists()


def test_formats_of_one_structure_are_refused_before_the_work(relaxed, tmp_path):
    write(tmp_path / 'run.traj', [salt(), salt()])
    for out, words in (('out', ['--format', 'vasp']), ('out.vasp', [])):
        result, _ = relaxed(tmp_path / 'run.traj', *words, out=out, code=2)
        assert 'would get 2 structures' in result.output
        assert not part_file(tmp_path / out).exists()


@pytest.mark.parametrize('suffix', ['pdb', 'xsf'])
def test_formats_of_the_same_atoms_are_refused_for_others(relaxed, tmp_path, suffix):
    """ASE writes the elements of the first structure for all of them."""
    name = f'out.{suffix}'
    write(tmp_path / 'salts.traj', [salt(), bulk('KBr', 'rocksalt', a=6.5)])
    result, out = relaxed(tmp_path / 'salts.traj', out=name, code=2)
    assert 'holds the same atoms in all structures' in ' '.join(result.output.split())
    assert not out.exists()
    write(tmp_path / 'salts.traj', [salt(), salt(5.8)])
    _, out = relaxed(tmp_path / 'salts.traj', out=name)
    symbols = [str(atoms.symbols) for atoms in read(out, ':')]
    assert symbols == ['NaCl', 'NaCl']


@pytest.mark.parametrize('limit', ['nan', '-1', '0'])
def test_a_limit_that_is_no_length_is_refused(relaxed, tmp_path, limit):
    write(tmp_path / 'a.cif', salt())
    result, _ = relaxed(tmp_path / 'a.cif', '--accept-below', limit, code=2)
    assert '--accept-below' in result.output


@pytest.mark.parametrize(
    ('index', 'expected'),
    [('@-1', [3]), ('@0', [0]), ('@1:3', [1, 2]), ('@::2', [0, 2]), ('', [0, 1, 2, 3])],
)
def test_frames_are_chosen_as_in_ase(relaxed, tmp_path, index, expected):
    volumes = [salt(a).cell.volume for a in (5.3, 5.4, 5.5, 5.6)]
    write(tmp_path / 'run.traj', [salt(a) for a in (5.3, 5.4, 5.5, 5.6)])
    relaxed(f'{tmp_path}/run.traj{index}', '--json', tmp_path / 'a.json')
    rows = json.loads((tmp_path / 'a.json').read_text())
    found = [row['volume_before'] for row in rows]
    np.testing.assert_allclose(found, [volumes[k] for k in expected])


def test_a_file_of_exactly_that_name_comes_first(relaxed, tmp_path):
    write(tmp_path / 'run', [salt(5.3), salt(5.4)], format='traj')
    write(tmp_path / 'run@0', salt(5.6), format='traj')
    relaxed(tmp_path / 'run@0', '--json', tmp_path / 'a.json')
    (row,) = json.loads((tmp_path / 'a.json').read_text())
    assert row['volume_before'] == pytest.approx(salt(5.6).cell.volume)


@pytest.mark.parametrize('suffix', ['db', 'json'])
def test_databases_keep_their_columns_and_gain_ours(relaxed, tmp_path, suffix):
    with connect(tmp_path / f'in.{suffix}') as database:
        for k in range(3):
            columns = {'tag': f'salt {k}', 'gap': 1.5 * k, 'good': True}
            database.write(salt(seed=k), columns, data={'mesh': [4, 4, k]})
    _, out = relaxed(tmp_path / f'in.{suffix}', out=f'out.{suffix}')
    rows = list(connect(out).select())
    assert [row.tag for row in rows] == ['salt 0', 'salt 1', 'salt 2']
    assert [row.gap for row in rows] == [0.0, 1.5, 3.0]
    assert [row.data['mesh'] for row in rows] == [[4, 4, 0], [4, 4, 1], [4, 4, 2]]
    assert [row[keys.ID] for row in rows] == [f'in.{suffix}@{k}' for k in range(3)]
    for row in rows:
        assert row.key_value_pairs[keys.SIGMA] > 0
        assert row.key_value_pairs[keys.MODEL] == 'tiny'
        assert len(row.data[keys.SIGMA_ATOMS]) == 2


def test_columns_of_a_former_prediction_are_not_taken_over(relaxed, tmp_path):
    former = {keys.OOD: 'the volume is too large', keys.VERIFIED: 'chgnet: implausible'}
    data = {f'{keys.PREFIX}mine': 1, 'yours': 2}
    with connect(tmp_path / 'in.db') as database:
        database.write(salt(), price=3, **former, data=data)
    _, out = relaxed(tmp_path / 'in.db', out='out.db')
    row = connect(out).get()
    assert (row.price, row.data['yours']) == (3, 2)
    assert not set(former) & set(row.key_value_pairs)
    assert f'{keys.PREFIX}mine' not in row.data


@pytest.mark.parametrize(
    ('out', 'words'),
    [('proj.db', []), ('proj.json', []), ('new', ['--format', 'db'])],
)
def test_a_database_that_exists_is_not_replaced(relaxed, tmp_path, monkeypatch, out, words):
    write(tmp_path / 'a.cif', salt())
    place = tmp_path / out / 'a.db' if words else tmp_path / out
    place.parent.mkdir(exist_ok=True)
    with connect(place) as database:
        for k in range(5):
            database.write(salt(seed=k))
    work = OneShot.answer
    monkeypatch.setattr(OneShot, 'answer', lambda *_: pytest.fail('work was done'))
    result, _ = relaxed(tmp_path / 'a.cif', *words, out=out, code=2)
    assert 'choose another name' in ' '.join(result.stderr.split())
    assert connect(place).count() == 5
    # A command that was stopped may have written it.
    monkeypatch.setattr(OneShot, 'answer', work)
    part_file(tmp_path / out).write_text('')
    relaxed(tmp_path / 'a.cif', *words, out=out)
    assert connect(place).count() == 1


def test_a_bad_record_of_a_file_is_named_and_the_others_go_on(relaxed, tmp_path):
    from pymatgen.io.ase import AseAtomsAdaptor

    good = AseAtomsAdaptor.get_structure(salt()).as_dict()
    entries = [{'id': f'mp-{k}', 'structure': s} for k, s in enumerate([good, None, good])]
    (tmp_path / 'mp.json').write_text(json.dumps(entries))
    result, out = relaxed(tmp_path / 'mp.json', out='out.db', code=1)
    assert f'failed: {tmp_path / "mp.json"}@mp-1: no structure' in result.stderr
    rows = list(connect(out).select())
    assert [row[keys.ID] for row in rows] == ['mp.json@mp-0', 'mp.json@mp-2']
    assert [row.data['id'] for row in rows] == ['mp-0', 'mp-2']


def test_structures_of_json_keep_their_names(relaxed, tmp_path):
    """Keys of a dictionary, or ids of records, of which numbers tell equal ones apart."""
    from pymatgen.io.ase import AseAtomsAdaptor

    found = [AseAtomsAdaptor.get_structure(salt(seed=k)).as_dict() for k in range(2)]
    lines = [json.dumps({'id': 'mp-1', 'structure': one}) for one in found]
    (tmp_path / 'a.json').write_text(json.dumps(dict(zip('xy', found, strict=True))))
    (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
    for word, names in (
        ('a.json', ['a.json@x', 'a.json@y']),
        ('a.json@1', ['a.json@1']),
        ('a.jsonl', ['a.jsonl@mp-1', 'a.jsonl@mp-1[1]']),
    ):
        result, out = relaxed(tmp_path / word, out='out.extxyz')
        assert [atoms.info[keys.ID] for atoms in read(out, ':')] == names
        assert all(f'{name} ' in result.stdout for name in names)


def test_structures_of_pymatgen_folders_patterns_and_standard_input(relaxed, tmp_path, run):
    from pymatgen.io.ase import AseAtomsAdaptor

    many = tmp_path / 'many'
    many.mkdir()
    structures = [AseAtomsAdaptor.get_structure(salt(seed=k)) for k in range(2)]
    structures[0].to(filename=str(many / 'one.json'))
    (many / 'list.json').write_text(json.dumps([s.as_dict() for s in structures]))
    write(many / 'a.cif', salt())
    (many / 'notes.txt').write_text('not a structure')
    for words, count in (
        ([many], 4),
        ([f'{many}/*.json'], 3),
        ([many / 'one.json', many / 'a.cif'], 2),
    ):
        table = tmp_path / 'table.json'
        relaxed(*words, '--json', table)
        assert len(json.loads(table.read_text())) == count
    relaxed('-', '--json', table, input=(many / 'a.cif').read_text())
    assert len(json.loads(table.read_text())) == 1
    assert (tmp_path / 'out/stdin.cif').exists()


def test_records_of_the_materials_project_are_read_one_or_many(relaxed, tmp_path):
    from pymatgen.io.ase import AseAtomsAdaptor

    record = {
        'material_id': 'mp-22862',
        'structure': AseAtomsAdaptor.get_structure(salt()).as_dict(),
    }
    (tmp_path / 'one.json').write_text(json.dumps(record))
    with gzip.open(tmp_path / 'one.json.gz', 'wt') as file:
        json.dump(record, file)
    _, out = relaxed(tmp_path / 'one.json.gz', out='zipped.extxyz')
    assert read(out).info['id'] == 'mp-22862'
    (tmp_path / 'odd.json').write_text('{"data": [1, 2]}')
    result, _ = relaxed(tmp_path / 'odd.json', code=1)
    assert 'nor structures of pymatgen' in result.stderr
    (tmp_path / 'bad.jsonl').write_text(json.dumps(record) + '\n{"lattice": 3}\n')
    _, out = relaxed(tmp_path / 'one.json', out='one.extxyz')
    assert read(out).info['id'] == 'mp-22862'
    result, _ = relaxed(tmp_path / 'bad.jsonl', code=1)
    assert 'bad.jsonl@mp-22862 ' in result.stdout
    assert f'{tmp_path / "bad.jsonl"}@1: no structure' in result.stderr


def test_outputs_of_many_inputs_never_collide(relaxed, tmp_path):
    write(tmp_path / 'a.cif', salt())
    write(tmp_path / 'a.vasp', salt())
    write(tmp_path / 'a.cif.vasp', salt(), format='vasp')
    files = [tmp_path / name for name in ('a.cif', 'a.vasp', 'a.cif.vasp')]
    result, out = relaxed(*files)
    assert 'out: 6 files' in result.stdout
    assert len(list(out.iterdir())) == 6
    result, _ = relaxed(files[0], files[0], code=2)
    assert 'given twice' in result.stderr


def test_a_file_by_two_names_is_one_file(relaxed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write('run.traj', [salt(seed=k) for k in range(2)])
    result, out = relaxed(tmp_path / 'run.traj@0', 'run.traj@1', '--format', 'cif')
    assert {path.name for path in out.iterdir()} == {'run@0.cif', 'run@1.cif'}
    assert 'out: 2 files' in result.stdout
    result, _ = relaxed(tmp_path / 'run.traj', '../' + tmp_path.name + '/run.traj', code=2)
    assert 'given twice' in result.stderr


def test_odd_info_spoils_no_file(relaxed, tmp_path):
    frames = []
    odd = [
        'two\nlines',
        '',
        'a=b',
        'x' * 5000,
        {'a': [1, 2]},
        ['\n'],
        '"',
        "it's",
        '\udc80',
    ]
    for k, value in enumerate(odd):
        atoms = salt(seed=k)
        atoms.info.update({'note': value, 'index': k, 'odd = name': 1, '': 2})
        frames.append(atoms)
    write(tmp_path / 'odd.traj', frames)
    _, out = relaxed(tmp_path / 'odd.traj')
    back = read(out / 'odd.extxyz', ':')
    assert [atoms.info['index'] for atoms in back] == list(range(len(odd)))
    assert all(atoms.info[keys.SIGMA] > 0 for atoms in back)
    assert back[0].info['note'] == 'two lines'
    assert back[4].info['note'] == {'a': [1, 2]}


def test_a_format_by_name(relaxed, tmp_path):
    write(tmp_path / 'a.cif', salt())
    _, out = relaxed(tmp_path / 'a.cif', '--format', 'vasp')
    assert [file.name for file in out.iterdir()] == ['a.vasp']
    assert len(read(out / 'a.vasp')) == 2
    result, _ = relaxed(tmp_path / 'a.cif', '--format', 'nothing', code=2)
    assert "format 'nothing'" in ' '.join(result.stderr.split())


def test_json_on_standard_output_is_alone_there(relaxed, tmp_path):
    write(tmp_path / 'a.cif', salt())
    result, _ = relaxed(tmp_path / 'a.cif', '--json', '-')
    (row,) = json.loads(result.stdout)
    assert row['formula'] == 'NaCl'
    assert not result.stderr
    result, _ = relaxed(tmp_path / 'a.cif', '--quiet')
    assert not result.output


def test_a_folder_of_calculations_is_named_with_the_remedy(run, tmp_path, tiny_model):
    (tmp_path / 'v_Cd' / 'Unperturbed').mkdir(parents=True)
    write(tmp_path / 'v_Cd' / 'Unperturbed' / 'POSCAR', salt(), format='vasp')
    words = ['--out', tmp_path / 'out', '--model', tiny_model]
    result = run('relax', tmp_path / 'v_Cd', *words)
    assert result.exit_code == 1
    pattern = re.search(r"a pattern, as '(.*)'", result.stderr).group(1)
    assert run('relax', pattern, *words).exit_code == 0


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_a_folder_without_permission_is_refused_before_the_work(relaxed, tmp_path):
    write(tmp_path / 'a.cif', salt())
    (tmp_path / 'closed').mkdir(mode=0o500)
    result, _ = relaxed(tmp_path / 'a.cif', out='closed/out', code=1)
    assert 'Permission denied' in result.stderr


def test_what_cannot_be_written_is_refused_before_the_work(relaxed, tmp_path, monkeypatch):
    write(tmp_path / 'a.cif', salt())
    (tmp_path / 'file').write_text('not a folder')
    monkeypatch.setattr(OneShot, 'answer', lambda *_: pytest.fail('work was done'))
    for words, out in (([], 'file/out'), (['--json', tmp_path / 'file/x.json'], 'out')):
        result, _ = relaxed(tmp_path / 'a.cif', *words, out=out, code=1)
        assert 'Error: ' in result.stderr
        assert 'Traceback' not in result.stderr


@pytest.mark.parametrize('option', ['--json', '--html'])
def test_no_output_replaces_an_input_or_another_output(relaxed, tmp_path, option):
    write(tmp_path / 'a.cif', salt())
    before = (tmp_path / 'a.cif').read_bytes()
    (tmp_path / 'b.cif').symlink_to('a.cif')
    for place in ('a.cif', 'b.cif'):
        result, _ = relaxed(tmp_path / 'a.cif', option, tmp_path / place, code=2)
        assert 'is one of the inputs' in result.output
    result, _ = relaxed(tmp_path / 'a.cif', option, tmp_path / 'out' / 'a.cif', code=2)
    assert 'is written to already' in result.output
    result, _ = relaxed(
        tmp_path / 'a.cif', '--json', tmp_path / 'x', '--html', tmp_path / 'x', code=2
    )
    assert 'is written to already' in result.output
    assert (tmp_path / 'a.cif').read_bytes() == before


def test_one_structure_that_cannot_be_written_loses_no_other(relaxed, tmp_path):
    frames = [salt(seed=k) for k in range(3)]
    frames[1].info['huge'] = 10**400  # no column takes it, as it is no float
    write(tmp_path / 'in.traj', frames)
    result, out = relaxed(tmp_path / 'in.traj', out='out.db', code=1)
    assert 'structure 1: ' in result.stderr
    assert connect(out).count() == 2


def test_a_stopped_one_shot_command_goes_on_where_it_was(relaxed, tmp_path, monkeypatch):
    write(tmp_path / 'many.traj', [salt(seed=k) for k in range(6)])
    seen, work = [], OneShot.answer

    def stopped(worker, structures):
        if len(seen) >= 4:
            raise KeyboardInterrupt
        seen.extend(structures)
        return work(worker, structures)

    monkeypatch.setattr(OneShot, 'batch', 2)
    monkeypatch.setattr(OneShot, 'answer', stopped)
    make = OneShot.__init__
    monkeypatch.setattr(
        OneShot,
        '__init__',
        lambda self, *asked: make(self, *asked, batch=2),
    )
    result, out = relaxed(tmp_path / 'many.traj', code=130)
    assert 'the same command goes on' in result.stderr
    assert part_file(out).exists()
    monkeypatch.setattr(
        OneShot, 'answer', lambda worker, s: seen.extend(s) or work(worker, s)
    )
    _, out = relaxed(tmp_path / 'many.traj')
    assert len(seen) == 6
    assert len(read(out / 'many.extxyz', ':')) == 6
    assert not part_file(out).exists()


SCRIPT = """
    import os, signal, sys
    from ase_deeprelax.cli import answers, main
    work = answers.OneShot.answer
    def answer(worker, structures):
        done = work(worker, structures)
        os.kill(os.getpid(), signal.SIGTERM)
        return done
    answers.OneShot.answer = answer
    sys.argv = ['deeprelax', *sys.argv[1:]]
    main()
"""


@pytest.mark.skipif(sys.platform == 'win32', reason='no SIGTERM there')
def test_sigterm_ends_with_143_and_the_way_to_go_on(tmp_path, tiny_model):
    write(tmp_path / 'a.cif', salt())
    words = ['relax', tmp_path / 'a.cif', '--out', tmp_path / 'out', '--model', tiny_model]
    ended = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(SCRIPT), *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 128 + signal.SIGTERM
    assert 'the same command goes on' in ended.stderr
    assert 'Traceback' not in ended.stderr


def test_a_second_command_with_the_same_output_is_refused(relaxed, tmp_path):
    from ase_deeprelax.journal import Journal

    write(tmp_path / 'a.cif', salt())
    with Journal(part_file(tmp_path / 'out')):
        result, _ = relaxed(tmp_path / 'a.cif', code=1)
    assert 'another process is writing' in result.stderr


def test_an_answer_belongs_to_all_that_it_depends_on():
    class Worker:
        settings, batch = ['model', None], 1

    def key(change=None, settings=None):
        atoms, worker = salt(), Worker()
        if settings is not None:
            worker.settings = settings
        if change is not None:
            change(atoms)
        return answer_key(worker, 'name', atoms)

    changes = (
        lambda atoms: atoms.set_constraint(FixAtoms([0])),
        lambda atoms: atoms.set_constraint(FixAtoms([1])),
        lambda atoms: atoms.set_constraint(FixCartesian([0], (True, False, False))),
        lambda atoms: atoms.translate([1e-9, 0, 0]),
        lambda atoms: atoms.set_pbc([True, True, False]),
        lambda atoms: atoms.set_cell(atoms.cell * (1 + 1e-9)),
        lambda atoms: atoms.symbols.__setitem__(0, 'K'),
        lambda atoms: atoms.set_initial_magnetic_moments([1] * len(atoms)),
        lambda atoms: atoms.set_initial_charges([1] * len(atoms)),
    )
    found = [key(), *map(key, changes), key(settings=['model', False])]
    assert len(set(found)) == len(found) == 11
    assert key() == found[0]


def test_archives_and_tables_are_read_like_files(relaxed, tmp_path):
    write(tmp_path / 'a.cif', salt())
    with zipfile.ZipFile(tmp_path / 'all.zip', 'w') as archive:
        archive.write(tmp_path / 'a.cif', 'x/a.cif')
        archive.writestr('x/b.cif', 'data_x\n_cell_length_a nonsense\n')
        archive.write(tmp_path / 'a.cif', 'x/c.cif')
    result, out = relaxed(tmp_path / 'all.zip', out='all.extxyz', code=1)
    assert len(read(out, ':')) == 2
    assert f'failed: {tmp_path}/all.zip@x/b.cif: holds no structure' in result.stderr
    assert 'all.zip@x/c.cif' in result.stdout


@pytest.mark.parametrize('name', ['out', 'out.extxyz', 'out.db', 'out.json'])
def test_a_full_disk_is_told_by_name_and_no_answer_is_lost(
    relaxed, tmp_path, largest_file, monkeypatch, name
):
    atoms = salt()
    atoms.info['title'] = 'x' * 200_000  # is in the outputs, not in the answers
    write(tmp_path / 'in.extxyz', [atoms, salt(seed=1)])
    words = [tmp_path / 'in.extxyz', *(['--format', 'extxyz'] if name == 'out' else [])]
    with largest_file(100_000):
        result, out = relaxed(*words, out=name, code=1)
    place = out / 'in.extxyz' if name == 'out' else out
    assert f'Error: {place}: ' in result.stderr
    assert not place.exists()
    assert part_file(out).exists()
    monkeypatch.setattr(OneShot, 'answer', lambda *_: pytest.fail('it was lost'))
    relaxed(*words, out=name)
    assert place.exists()
    assert not part_file(out).exists()


def test_what_holds_no_structure_is_named(relaxed, tmp_path):
    (tmp_path / 'CONTCAR').touch()  # as a calculation leaves it that has just begun
    (tmp_path / 'none.jsonl').touch()
    with zipfile.ZipFile(tmp_path / 'none.zip', 'w') as archive:
        archive.writestr('README', 'nothing')
    result, _ = relaxed(*sorted(tmp_path.iterdir()), tmp_path / 'no*.cif', code=1)
    for name, problem in {
        'no*.cif': 'no file matches this pattern',
        'CONTCAR': 'is empty',
        'none.jsonl': 'holds no structure',
        'none.zip': 'holds no structure',
    }.items():
        assert f'failed: {tmp_path / name}: {problem}' in result.stderr


def test_a_table_is_checked_where_no_structure_can_be_read(relaxed, tmp_path):
    (tmp_path / 'a.cif').touch()
    result, _ = relaxed(tmp_path / 'a.cif', '--json', tmp_path, code=1)
    assert f'{tmp_path} cannot be written: Is a directory' in result.stderr


def test_frames_of_all_files_of_a_pattern(relaxed, tmp_path):
    for name in ('a', 'b'):
        write(tmp_path / f'{name}.traj', [salt(seed=k) for k in range(3)])
    _, out = relaxed(f'{tmp_path}/*.traj@-1', out='last.extxyz')
    names = [atoms.info[keys.ID] for atoms in read(out, ':')]
    assert names == ['a.traj@-1', 'b.traj@-1']


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16'])
def test_standard_input_may_begin_with_a_mark_of_byte_order(relaxed, tmp_path, encoding):
    write(tmp_path / 'a.cif', salt())
    marked = (tmp_path / 'a.cif').read_text().encode(encoding)
    _, out = relaxed('-', input=marked)
    assert len(read(out / 'stdin.cif')) == 2


def test_a_poscar_without_elements_says_what_to_add(run, tmp_path):
    lines = ['salt', '1.0', '5.6 0 0', '0 5.6 0', '0 0 5.6', '1 1', 'Direct']
    (tmp_path / 'POSCAR').write_text('\n'.join([*lines, '0 0 0', '0.5 0.5 0.5', '']))
    shown = run('relax', tmp_path / 'POSCAR', '--out', tmp_path / 'out')
    assert shown.exit_code == 1
    assert 'names no elements; add a line of their symbols' in shown.stderr


def test_compressed_standard_input_is_refused_by_what_it_is(run, tmp_path):
    content = gzip.compress(b'2\nPbc="F F F"\nNa 0 0 0\nCl 0 0 2.8\n')
    shown = run('relax', '-', '--out', tmp_path / 'out', input=content)
    assert shown.exit_code == 1
    assert 'is compressed, an archive or a database; save it to a file' in shown.stderr
