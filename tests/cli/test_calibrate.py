"""``deeprelax calibrate``, and what a calibrated model is used for."""

import json
import warnings
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk
from ase.io import read, write

from ase_deeprelax.data.pairs import make_pair, read_pairs, write_pairs
from ase_deeprelax.errors import DeepRelaxWarning
from ase_deeprelax.models import config_file, store
from ase_deeprelax.models.calibration import CALIBRATION


@pytest.fixture(scope='module')
def many_pairs(tmp_path_factory):
    """Seventy inputs of copper gold, in part disordered."""
    rng = np.random.default_rng(0)
    pairs = []
    for k in range(70):
        relaxed = bulk('Cu', cubic=True, a=3.7)
        relaxed.symbols[:2] = 'Au'
        unrelaxed = relaxed.copy()
        unrelaxed.set_cell(relaxed.cell * rng.uniform(0.95, 1.05), scale_atoms=True)
        unrelaxed.rattle(rng.uniform(0, 0.1), seed=k)
        pairs.append(make_pair(f'{k}', unrelaxed, relaxed, split='val'))
    file = tmp_path_factory.mktemp('pairs') / 'mine.jsonl'
    write_pairs(file, pairs)
    return file


@pytest.fixture(scope='module')
def calibrated(many_pairs, tmp_path_factory, tiny_model):
    """A folder, and what the command printed."""
    from typer.testing import CliRunner

    from ase_deeprelax.cli import app

    out = tmp_path_factory.mktemp('models') / 'mine'
    words = ['calibrate', many_pairs, '--model', tiny_model, '--out', out, '--split', 'val']
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return out, result.output


def test_a_calibrated_copy_of_the_model_is_written(calibrated, tiny_model):
    out, printed = calibrated
    found, before = store.load_model(out), store.load_model(tiny_model)
    assert found.sha256 == before.sha256
    assert found.calibration.kinds == ('bulk',)
    assert before.calibration is None
    assert found.calibration.fitted_on[0]['file'] == 'mine.jsonl'
    assert f'wrote {out}' in printed
    share = 100 * found.calibration.fitted_on[0]['coverage']['positions']
    assert f'{share:.1f}' in printed
    assert 'fewer than' not in printed  # all shares are there


def test_what_a_model_knows_comes_from_its_training_without_what_was_held_back(
    run, many_pairs, tiny_model, tmp_path
):
    words = ['calibrate', many_pairs, '--model', tiny_model, '--out']
    with pytest.warns(DeepRelaxWarning, match='give the pairs of its training'):
        assert run(*words, tmp_path / 'x').exit_code == 0
    oxide = bulk('MgO', 'rocksalt', a=4.2)
    others = [replace(pair, split='train') for pair in read_pairs(many_pairs)]
    for split in ('train', 'val', 'test', ''):
        file, out = tmp_path / f'{split}.jsonl', tmp_path / f'of {split}'
        write_pairs(file, [*others, make_pair('MgO', oxide, oxide, split=split)])
        with warnings.catch_warnings():
            warnings.simplefilter('error', DeepRelaxWarning)
            result = run(*words, out, '--training', file)
        assert result.exit_code == 0, result.output
        strangers = store.load_model(out).calibration.environments.strangers([8, 12])
        assert (strangers is None) == (split in ('train', ''))


def test_files_of_one_name_are_all_used(run, many_pairs, tiny_model, tmp_path):
    pairs, files = read_pairs(many_pairs), []
    for folder, part in (('a', pairs[:32]), ('b', pairs[32:])):
        (tmp_path / folder).mkdir()
        files.append(tmp_path / folder / 'mine.jsonl')
        write_pairs(files[-1], part)
    out = tmp_path / 'model'
    result = run('calibrate', *files, '--model', tiny_model, '--out', out)
    assert result.exit_code == 0, result.output
    fitted = store.load_model(out).calibration.fitted_on
    assert [one['file'] for one in fitted] == list(map(str, files))
    assert sum(one['n'] for one in fitted) == 70
    # Neither is large enough to be fitted and tested by halves.
    assert all(one['coverage'] is None for one in fitted)
    assert 'fewer than 60 structures' in result.stdout


def test_unknown_potentials_are_named_before_the_work(run, many_pairs, tmp_path):
    result = run('calibrate', many_pairs, '--out', tmp_path / 'x', '--potential', 'nothing')
    assert result.exit_code == 1
    assert "calculator 'nothing' is not known" in result.stderr
    assert not result.stdout
    twice = ['--potential', 'chgnet', '--potential', 'chgnet:0.3.0']
    result = run('calibrate', many_pairs, '--out', tmp_path / 'x', *twice)
    assert result.exit_code == 1
    assert "two are called 'chgnet'" in result.stderr


def test_another_model_is_not_replaced(run, calibrated, many_pairs, tiny_model, tmp_path):
    store.save_model(store.load_model(tiny_model), tmp_path, {})
    words = ['--model', tiny_model, '--out', tmp_path]
    result = run('calibrate', many_pairs, *words)
    assert result.exit_code == 2
    assert 'holds a model' in result.stderr
    assert not (tmp_path / CALIBRATION).exists()
    # A copy that was cut short, or the weights of something else.
    (tmp_path / config_file.CONFIG).unlink()
    (tmp_path / config_file.WEIGHTS).write_bytes(b'part')
    result = run('calibrate', many_pairs, *words)
    assert result.exit_code == 2
    assert 'or a part of one' in ' '.join(result.stderr.split())
    assert [path.name for path in tmp_path.iterdir()] == [config_file.WEIGHTS]
    assert (tmp_path / config_file.WEIGHTS).read_bytes() == b'part'


def test_too_few_pairs_are_an_error(run, pairs_file, tiny_model, tmp_path):
    words = ['--model', tiny_model, '--out', tmp_path / 'new']
    result = run('calibrate', pairs_file, *words)
    assert result.exit_code == 1
    assert 'no file holds 30 pairs' in result.stderr
    assert not (tmp_path / 'new').exists()


@pytest.fixture
def inputs(tmp_path):
    """Ten crystals in one file."""
    structures = []
    for k in range(10):
        atoms = bulk('Cu', cubic=True, a=3.6 + 0.03 * k)
        atoms.symbols[: k % 4] = 'Au'
        structures.append(atoms)
    write(tmp_path / 'in.extxyz', structures)
    return tmp_path / 'in.extxyz'


def test_chosen_structures_are_written_ready_for_dft(run, inputs, calibrated, tmp_path):
    out = tmp_path / 'chosen'
    words = ['--count', 4, '--model', calibrated[0], '--out', out]
    result = run('select', inputs, *words)
    assert result.exit_code == 0, result.output
    folders = sorted(path.name for path in out.iterdir())
    assert len(folders) == 4
    assert [name[:4] for name in folders] == ['001-', '002-', '003-', '004-']
    frames = read(inputs, ':')
    for name in folders:
        atoms = read(out / name / 'POSCAR')
        number = int(name.rsplit('@', 1)[1])
        assert atoms.cell.volume == pytest.approx(frames[number].cell.volume, rel=1e-6)
        assert name in result.stdout
    lines = [line for line in result.stdout.splitlines() if line.startswith('001-')]
    assert lines
    again = run('select', inputs, '--count', 1, '--model', 'nowhere', '--out', out)
    assert again.exit_code == 2  # before the model is looked for
    assert 'chosen is not empty' in ' '.join(again.stderr.split())
    assert sorted(path.name for path in out.iterdir()) == folders


def test_what_is_out_of_distribution_is_told_in_the_table_alone(run, calibrated, tmp_path):
    write(tmp_path / 'large.extxyz', bulk('Cu') * (5, 5, 5))
    words = ['--model', calibrated[0], '--out', tmp_path / 'chosen']
    with warnings.catch_warnings():
        warnings.simplefilter('error', DeepRelaxWarning)
        result = run('select', tmp_path / 'large.extxyz', *words)
    assert result.exit_code == 0, result.output
    [line] = [line for line in result.stdout.splitlines() if line.startswith('001-')]
    assert len(line.split()) > len(['name', 'formula', 'atoms', 'error'])


def test_names_in_an_archive_lead_to_no_other_folder(run, inputs, calibrated, tmp_path):
    archive, out = tmp_path / 'in.zip', tmp_path / 'below' / 'chosen'
    with zipfile.ZipFile(archive, 'w') as file:
        for name in ('../../../a.extxyz', '/b/../c.extxyz'):
            file.write(inputs, name)
    words = ['--count', 6, '--model', calibrated[0], '--out', out]
    assert run('select', archive, *words).exit_code == 0
    assert len(list(out.glob('*/POSCAR'))) == 6
    assert {path.name for path in tmp_path.iterdir()} == {'below', 'in.extxyz', 'in.zip'}
    assert list(out.parent.iterdir()) == [out]


def test_what_cannot_be_read_is_named_where_nothing_can_be_chosen(
    run, calibrated, tmp_path
):
    words = ['--model', calibrated[0], '--out', tmp_path / 'new' / 'chosen']
    result = run('select', tmp_path / 'missing.cif', *words)
    assert result.exit_code == 1
    assert not (tmp_path / 'new').exists()
    assert 'missing.cif: cannot be read' in result.stderr
    assert 'expected error' not in result.stderr


def test_only_calibrated_models_can_select(run, inputs, tiny_model, tmp_path):
    result = run('select', inputs, '--model', tiny_model, '--out', tmp_path / 'x')
    assert result.exit_code == 1
    assert 'no prediction has an expected error' in result.stderr


def test_large_errors_can_be_refused(run, inputs, calibrated, tmp_path):
    table = tmp_path / 'all.json'
    words = ['--model', calibrated[0], '--json', table]
    assert run('relax', inputs, *words, '--out', tmp_path / 'all').exit_code == 0
    errors = [row['error'] for row in json.loads(table.read_text())]
    limit = float(np.median(errors))
    out = tmp_path / 'some.extxyz'
    result = run('relax', inputs, *words, '--out', out, '--accept-below', limit)
    assert result.exit_code == 1
    assert len(read(out, ':')) == sum(error < limit for error in errors)
    assert f'not below accept_below={limit:g}' in result.stderr


def test_a_potential_judges_and_guides(run, inputs, calibrated, many_pairs, tmp_path):
    pytest.importorskip('chgnet', reason="pip install 'ase-deeprelax[chgnet]'")
    model, few = tmp_path / 'model', tmp_path / 'few.jsonl'
    write_pairs(few, read_pairs(many_pairs)[:32])
    words = ['--model', calibrated[0], '--out', model, '--potential', 'chgnet']
    result = run('calibrate', few, *words)
    assert result.exit_code == 0, result.output
    potential = store.load_model(model).calibration.potentials['chgnet']['bulk']
    assert f'bulk, {potential.guide:g} eV/A: error' in result.stdout
    table = tmp_path / 'all.json'
    words = ['--model', model, '--json', table]
    result = run('relax', inputs, *words, '--out', tmp_path / 'a', '--verify', 'chgnet')
    assert result.exit_code == 0, result.output
    for row in json.loads(table.read_text()):
        assert row['verified'].startswith('chgnet would move the atoms by')
    words = ['--json', table, '--out', tmp_path / 'b', '--refine', 'chgnet', '--guided']
    result = run('relax', inputs, *words)
    assert result.exit_code == 0, result.output
    rows = json.loads(table.read_text())
    accepted = [row['stages'] for row in rows if row['stages'][0]['status'] == 'converged']
    assert accepted
    for _, guided in accepted:
        assert guided['pulled']['force'] > 0
    both = run('relax', inputs, *words, '--verify', 'chgnet')
    assert both.exit_code == 2
    alone = run('relax', inputs, '--guided', '--out', tmp_path / 'c')
    assert alone.exit_code == 2
