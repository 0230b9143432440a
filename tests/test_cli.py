"""The command line, on real files with a small real network."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read, write
from typer.testing import CliRunner

from ase_deeprelax import keys, relax
from ase_deeprelax.cli import EXTRAS, app
from ase_deeprelax.data.pairs import make_pair, write_pairs
from ase_deeprelax.weights import store

ROOT = Path(__file__).parents[1]


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words], prog_name='deeprelax')


@pytest.fixture
def salts(tmp_path):
    """A CIF, a trajectory of three, and a POSCAR in each of two folders."""
    crystals = [bulk(name, 'rocksalt', a=5.3) for name in ('NaCl', 'KBr', 'MgO', 'LiF')]
    for seed, atoms in enumerate(crystals):
        atoms.rattle(0.05, seed=seed)
    write(tmp_path / 'one.cif', crystals[0])
    write(tmp_path / 'many.extxyz', crystals[1:])
    for folder, atoms in zip('ab', crystals, strict=False):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / 'POSCAR', atoms)
    return tmp_path


def test_relaxes_whatever_ase_reads_into_a_folder(salts, tiny_model):
    files = [salts / name for name in ('one.cif', 'many.extxyz', 'a/POSCAR', 'b/POSCAR')]
    result = run('relax', *files, '--out', salts / 'out', '--model', tiny_model)
    assert result.exit_code == 0, result.output
    written = sorted(str(p.relative_to(salts / 'out')) for p in salts.glob('out/**/*.*'))
    assert written == sorted(
        f'{stem}.{suffix}'
        for stem in ('one', 'many', 'a/POSCAR', 'b/POSCAR')
        for suffix in ('cif', 'extxyz')
    )
    expected = relax(read(salts / 'many.extxyz', ':'), tiny_model)
    for suffix in ('cif', 'extxyz'):
        found = read(salts / f'out/many.{suffix}', ':')
        assert len(found) == 3
        for atoms, one in zip(found, expected, strict=True):
            assert atoms.cell.volume == pytest.approx(one.atoms.cell.volume, rel=1e-5)
    for atoms, one in zip(read(salts / 'out/many.extxyz', ':'), expected, strict=True):
        np.testing.assert_allclose(atoms.positions, one.atoms.positions, atol=1e-5)
        assert atoms.pbc.all()
        assert keys.OOD not in atoms.info
        assert atoms.info[keys.SIGMA] == pytest.approx(one.sigma, rel=1e-3)
        np.testing.assert_allclose(atoms.arrays[keys.SIGMA], one.sigma_atoms, atol=1e-5)


def test_prints_a_table_with_a_row_for_each_structure(salts, tiny_model):
    out = salts / 'out'
    result = run('relax', salts / 'many.extxyz', '--out', out, '--model', tiny_model)
    titles, *rows = result.stdout.splitlines()[:4]
    assert titles.split()[:3] == ['structure', 'formula', 'atoms']
    for row, atoms in zip(rows, read(salts / 'many.extxyz', ':'), strict=True):
        name, formula, n, before, after, dmax, sigma, ms = row.split()
        assert formula == atoms.get_chemical_formula('metal')
        assert name.startswith('many.extxyz@')
        assert int(n) == 2
        assert float(before) == pytest.approx(atoms.cell.volume, abs=0.01)
        assert float(after) > 0
        assert float(dmax) >= 0
        assert float(sigma) > 0
        assert float(ms) >= 0


def test_writes_all_structures_to_one_file(salts, tiny_model):
    out = salts / 'new' / 'all.traj'
    files = [salts / 'one.cif', salts / 'many.extxyz']
    result = run('relax', *files, '--out', out, '--model', tiny_model)
    assert result.exit_code == 0, result.output
    formulas = [atoms.get_chemical_formula('metal') for atoms in read(out, ':')]
    assert formulas == ['NaCl', 'KBr', 'MgO', 'LiF']


def test_same_names_keep_their_suffixes(salts, tiny_model):
    write(salts / 'one.vasp', bulk('MgO', 'rocksalt', a=4.3))
    files = [salts / 'one.cif', salts / 'one.vasp']
    result = run('relax', *files, '--out', salts / 'out', '--model', tiny_model)
    assert result.exit_code == 0, result.output
    assert len(read(salts / 'out/one.cif.extxyz')) == 2
    assert 'Mg' in read(salts / 'out/one.vasp.extxyz').symbols


def test_outputs_stay_in_the_folder_where_inputs_lie_beside_it(
    salts, tiny_model, monkeypatch
):
    monkeypatch.chdir(salts / 'a')
    result = run('relax', 'POSCAR', '../b/POSCAR', '--out', 'out', '--model', tiny_model)
    assert result.exit_code == 0, result.output
    assert sorted(str(p) for p in Path('out').glob('**/*.cif')) == [
        'out/a/POSCAR.cif',
        'out/b/POSCAR.cif',
    ]


def test_bad_files_are_reported_and_the_others_go_on(salts, tiny_model):
    (salts / 'broken.cif').write_text('data_x\n_cell_length_a nonsense\n')
    (salts / 'empty.extxyz').write_text('')
    content = (salts / 'many.extxyz').read_bytes()
    (salts / 'cut.extxyz').write_bytes(content[: len(content) // 2])
    bad = [salts / name for name in ('broken.cif', 'empty.extxyz', 'cut.extxyz', 'no.cif')]
    out = salts / 'out'
    result = run('relax', *bad, salts / 'one.cif', '--out', out, '--model', tiny_model)
    assert result.exit_code == 1
    for file in bad:
        assert f'failed: {file}' in result.stderr
    assert len(read(out / 'one.extxyz')) == 2
    assert not list(out.glob('cut*'))


def test_bad_structures_are_reported_and_the_others_go_on(salts, tiny_model):
    clash = Atoms('NaCl', cell=[5, 5, 5], positions=[[1, 1, 1], [1, 1, 1]], pbc=True)
    molecule = Atoms('H2', positions=[[0, 0, 0], [0, 0, 0.74]])
    good = read(salts / 'one.cif')
    write(salts / 'mixed.extxyz', [good, clash, molecule, good])
    out = salts / 'out'
    result = run('relax', salts / 'mixed.extxyz', '--out', out, '--model', tiny_model)
    assert result.exit_code == 1
    assert 'mixed.extxyz@1: ' in result.stderr
    assert 'mixed.extxyz@2: ' in result.stderr
    assert len(read(out / 'mixed.extxyz', ':')) == 2


def test_nothing_is_relaxed_where_all_is_bad(tmp_path, tiny_model):
    result = run(
        'relax', tmp_path / 'no.cif', '--out', tmp_path / 'out', '--model', tiny_model
    )
    assert result.exit_code == 1
    assert 'no.cif' in result.stderr
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('out', 'said'),
    [
        ('.', 'one of the inputs'),
        ('many.extxyz', 'one of the inputs'),
        ('x.nothing', 'suffix'),
    ],
)
def test_refuses_before_work_what_it_could_not_write(salts, out, said):
    before = (salts / 'many.extxyz').read_bytes()
    result = run('relax', salts / 'many.extxyz', '--out', salts / out, '--model', 'nothing')
    assert result.exit_code == 2
    assert said in ' '.join(result.stderr.split())
    assert (salts / 'many.extxyz').read_bytes() == before


def test_refuses_many_structures_in_a_format_of_one(salts):
    result = run('relax', salts / 'many.extxyz', '--out', salts / 'x.vasp')
    assert result.exit_code == 2
    assert 'holds one structure, there are 3' in ' '.join(result.stderr.split())


def test_errors_are_one_message_without_traceback(salts):
    result = run('relax', salts / 'one.cif', '--model', 'deeprelaks')
    assert result.exit_code == 1
    assert result.stderr.startswith('Error: ')
    assert 'deeprelaks' in result.stderr
    assert 'Traceback' not in result.output


def test_out_of_range_is_told_in_the_table(salts, tmp_path, tiny_model):
    model = store.load_model(tiny_model)
    card = {'elements': [11, 17], 'range': {'n_atoms': [4, 20]}}
    store.save_model(model, tmp_path / 'narrow', card)
    out = salts / 'out'
    result = run('relax', salts / 'one.cif', '--out', out, '--model', tmp_path / 'narrow')
    assert result.exit_code == 0, result.output
    back = read(out / 'one.extxyz')
    assert '4 to 20' in back.info[keys.OOD]
    assert f'! {back.info[keys.OOD]}' in result.stdout
    assert back.pbc.all()


@pytest.fixture
def pairs_file(tmp_path):
    pairs = []
    for k, name in enumerate(('NaCl', 'KBr', 'MgO', 'LiF', 'CaO', 'AgCl')):
        before, after = (bulk(name, 'rocksalt', a=a) for a in (5.3, 5.1 + 0.1 * k))
        pairs.append(make_pair(f'pair-{k}', before, after, split='train'))
    file = tmp_path / 'pairs.jsonl.gz'
    write_pairs(file, pairs)
    return file


def test_evaluate_prints_and_writes_the_figures(pairs_file, tmp_path, tiny_model):
    out = tmp_path / 'figures' / 'result.json'
    result = run('evaluate', pairs_file, '--model', tiny_model, '--json', out)
    assert result.exit_code == 0, result.output
    figures = json.loads(out.read_text())
    assert {'n', 'device', 'ms_per_structure', 'spearman_sigma', 'all', 'ok'} <= set(
        figures
    )
    assert figures['n'] == 6
    for part in ('all', 'ok'):
        assert {'dummy', 'scaled_dummy', 'model'} <= set(figures[part])
        for method in figures[part].values():
            assert {'mean', 'median'} <= set(method['lattice_mae'])
            assert 0 <= method['match_rate'] <= 1
    dummy = figures['all']['dummy']['lattice_mae']['mean']
    assert f'{dummy:.4f}' in result.stdout


def test_evaluate_takes_pairs_from_all_over_the_file(pairs_file, tmp_path, tiny_model):
    out = tmp_path / 'result.json'
    result = run('evaluate', pairs_file, '--model', tiny_model, '--json', out, '--limit', 2)
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text())['n'] == 2


def test_evaluate_names_a_file_that_is_no_pairs(tmp_path, tiny_model):
    file = tmp_path / 'pairs.jsonl'
    file.write_text('{"id": 1}\n')
    result = run('evaluate', file, '--model', tiny_model)
    assert result.exit_code == 1
    assert 'pairs.jsonl' in result.stderr


@pytest.mark.filterwarnings('ignore:.*outside the training range')
def test_a_trained_model_can_be_used(pairs_file, tmp_path):
    config = tmp_path / 'config.yaml'
    config.write_text(f"""
name: small
output: {tmp_path / 'runs'}
model: {{architecture: paegnn, hidden: 16, layers: 1}}
data: {{pairs: [{{path: {pairs_file}}}], workers: 0}}
optimize: {{max_steps: 100, threads: 1}}
""")
    result = run('train', config, '--set', 'optimize.max_steps=2')
    assert result.exit_code == 0, result.output
    folder = tmp_path / 'runs' / 'small' / 'model'
    assert str(folder) in result.stdout
    assert store.load_model(folder).card['training']['steps'] == 2
    assert np.float64(1e-310) / 2 > 0, 'training leaves subnormal numbers switched off'
    result = run('evaluate', pairs_file, '--model', folder)
    assert result.exit_code == 0, result.output


def test_train_names_the_setting_that_is_wrong(tmp_path):
    config = tmp_path / 'config.yaml'
    config.write_text('name: x\nmodel: {}\ndata: {pairs: []}\nwheels: 4\n')
    result = run('train', config)
    assert result.exit_code == 1
    assert 'wheels' in result.stderr


def test_models_lists_what_is_shipped(tiny_model, monkeypatch):
    monkeypatch.setattr(store, 'SHIPPED', tiny_model.parent)
    result = run('models')
    assert result.exit_code == 0, result.output
    size = sum(p.numel() for p in store.load_model(tiny_model).parameters())
    row = result.stdout.splitlines()[1].split()
    assert row[:3] == ['tiny', 'paegnn', f'{size:,}']


def test_shipped_models_name_data_licences_and_figures():
    result = run('models')
    assert result.exit_code == 0, result.output
    for name, card in store.available_models().items():
        assert name in result.stdout
        assert card['training']
        assert card['metrics']
        for source in card['training']['sources']:
            assert source['licence']
            assert source['licence'] in result.stdout


def test_doctor_finds_a_sound_installation(tiny_model):
    result = run('doctor', '--model', tiny_model, '--device', 'cpu')
    assert result.exit_code == 0, result.output
    assert 'all is well' in result.stdout
    for word in ('torch', 'spglib', 'cpu', *EXTRAS):
        assert f'\n  {word} ' in result.stdout


def test_doctor_finds_damaged_weights(tiny_model, tmp_path):
    folder = tmp_path / 'damaged'
    store.save_model(store.load_model(tiny_model), folder, {})
    weights = bytearray((folder / store.WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (folder / store.WEIGHTS).write_bytes(weights)
    result = run('doctor', '--model', folder, '--device', 'cpu')
    assert result.exit_code == 1
    assert 'FAILED' in result.stdout
    assert str(folder) in result.stdout


def test_doctor_knows_the_extras():
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    extras = project['optional-dependencies']
    assert set(EXTRAS) == set(extras) - {'all', 'test', 'tutorials'}
    assert extras['all'] == [f'ase-deeprelax[{",".join(EXTRAS)}]']
    imported = {'yaml': 'pyyaml'}
    for extra, names in EXTRAS.items():
        packages = {line.split('>')[0] for line in extras[extra]}
        assert {imported.get(name, name) for name in names} == packages


def test_help_is_quick():
    code = """
import sys
from ase_deeprelax.cli import app
app(['--help'], standalone_mode=False)
print([name for name in ('torch', 'lightning', 'pymatgen', 'scipy') if name in sys.modules])
"""
    words = [sys.executable, '-c', code]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == '[]'


def test_version():
    result = run('--version')
    assert result.exit_code == 0
    assert result.stdout.startswith('ase-deeprelax ')
