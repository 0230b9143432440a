"""`deeprelax compare` on real structures with a real potential."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule, mx2
from ase.io import write
from pymatgen.core import Structure
from typer.testing import CliRunner

from ase_deeprelax.cli import app
from ase_deeprelax.cli.compare import _kinds, _structures


@pytest.fixture
def structures(tmp_path):
    for name, a in (('NaCl', 5.9), ('MgO', 4.1)):
        write(tmp_path / f'{name}.cif', bulk(name, 'rocksalt', a=a))
    return [str(tmp_path / 'NaCl.cif'), str(tmp_path / 'MgO.cif')]


def test_every_path_is_in_the_file_and_in_the_report(structures, tmp_path, tiny_model):
    pytest.importorskip('chgnet', reason="pip install 'ase-deeprelax[chgnet]'")
    command = ['compare', *structures, '--calculators', 'chgnet', '--optimizers', 'FIRE']
    command += ['--model', str(tiny_model), '--out', str(tmp_path / 'runs')]
    files = tmp_path / 'out.json', tmp_path / 'report.html'
    command += ['--json', str(files[0]), '--html', str(files[1])]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    assert [f'wrote {file}' in first.stderr for file in files] == [True, True]
    result = json.loads(files[0].read_text())
    starts = {(run['structure'], run['start']) for run in result['runs']}
    assert len(starts) == 4
    assert all(run['converged'] for run in result['runs'])
    assert all(len(run['curve']) == run['calls'] for run in result['runs'])
    page = files[1].read_text()
    assert 'MgO' in page
    # Done once, it is not done again: the same rows, the same times.
    assert CliRunner().invoke(app, command).exit_code == 0
    assert json.loads(files[0].read_text())['runs'] == result['runs']


def test_an_archive_is_compared_structure_by_structure(structures, tmp_path, tiny_model):
    pytest.importorskip('chgnet', reason="pip install 'ase-deeprelax[chgnet]'")
    archive = tmp_path / 'both.zip'
    with zipfile.ZipFile(archive, 'w') as file:
        for name in structures:
            file.write(name, Path(name).name)
    command = ['compare', str(archive), '--model', str(tiny_model), '--steps', '1']
    command += ['--optimizers', 'FIRE', '--json', str(tmp_path / 'out.json')]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / 'out.json').read_text())['structures']
    assert [row['id'] for row in rows] == [f'{archive}@NaCl.cif', f'{archive}@MgO.cif']


def test_a_folder_and_json_lines_of_structures_are_no_pairs(structures, tmp_path):
    lines = tmp_path / 'docs.jsonl'
    records = [
        {'material_id': name, 'structure': Structure.from_file(file).as_dict()}
        for name, file in zip(('mp-1', 'mp-2'), structures, strict=True)
    ]
    lines.write_text('\n'.join(map(json.dumps, records)))
    found = _structures([str(lines)])
    assert [id for id, _ in found] == [f'{lines}@mp-1', f'{lines}@mp-2']
    lines.unlink()
    found = _structures([str(tmp_path)])
    assert sorted(id for id, _ in found) == sorted(structures)


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / 'broken.cif').write_text('data_\n_cell_length_a x\n')
    result = CliRunner().invoke(app, ['compare', str(tmp_path / 'broken.cif')])
    assert result.exit_code != 0
    assert 'broken.cif' in result.output


def test_two_structures_of_one_name_are_refused(structures):
    words = ['compare', structures[0], *structures]
    for limit in ([], ['--limit', '1']):
        result = CliRunner().invoke(app, words + limit)
        assert result.exit_code == 2
        assert 'more than one structure' in ' '.join(result.output.split())


def test_a_calculator_given_twice_and_an_unknown_optimizer_are_named(
    structures, tiny_model
):
    for option, value, said in (
        ('--optimizers', 'FIRE, fire', "optimizer is 'fire'"),
        ('--calculators', 'chgnet, chgnet', "two are called 'chgnet'"),
    ):
        words = ['compare', *structures, '--model', str(tiny_model), option, value]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 1
        assert said in ' '.join(result.output.split())


@pytest.mark.parametrize(
    ('cell', 'kind'), [('free', 'layer'), ('fixed', 'layer, cell fixed')]
)
def test_what_of_the_cells_relaxes_can_be_said(tmp_path, tiny_model, cell, kind):
    pytest.importorskip('chgnet', reason="pip install 'ase-deeprelax[chgnet]'")
    atoms = mx2('MoS2', vacuum=8)
    atoms.pbc = True
    write(tmp_path / 'MoS2.vasp', atoms)
    words = ['compare', str(tmp_path / 'MoS2.vasp'), '--model', str(tiny_model)]
    words += ['--optimizers', 'ElasticBFGS', '--json', str(tmp_path / 'out.json')]
    answer = CliRunner().invoke(app, [*words, '--cell', cell])
    assert answer.exit_code == 0, answer.output
    assert f'{kind}, 1 structure: {tmp_path / "MoS2.vasp"}' in answer.output
    result = json.loads((tmp_path / 'out.json').read_text())
    assert result['structures'][0]['kind'] == kind
    [start] = [np.array(row['cell']) for row in result['structures']]
    for row in result['predictions'] + result['runs']:
        end = np.array(row['cell'])
        assert np.array_equal(end[2], start[2])
        assert np.array_equal(end, start) == (cell == 'fixed')


def test_of_many_layers_the_first_are_named():
    ids = [f'layer-{k}' for k in range(300)]
    rows = [{'id': id, 'kind': 'layer'} for id in ids]
    runs = [{'structure': id, 'ok': True} for id in ids]
    [line] = _kinds({'structures': rows, 'runs': runs})
    assert line.startswith('layer, 300 structures: layer-0, layer-1, ')
    assert line.endswith('layer-9, and 290 more')


def test_failed_runs_are_named_with_their_reasons(tmp_path, tiny_model):
    pytest.importorskip('chgnet', reason="pip install 'ase-deeprelax[chgnet]'")
    name = tmp_path / 'mol.xyz'
    write(name, molecule('H2O'))
    words = ['compare', str(name), '--model', str(tiny_model), '--optimizers', 'FIRE']
    answer = CliRunner().invoke(app, words)
    assert answer.exit_code == 0, answer.output
    for start in ('unrelaxed', 'prediction'):
        assert f'failed: {name} (chgnet + FIRE, start: {start}): ' in answer.output
    assert 'cell fixed: ' not in answer.output  # it was not relaxed


def test_a_cell_that_makes_no_sense_is_told_before_the_work(structures):
    result = CliRunner().invoke(app, ['compare', *structures, '--cell', 'sideways'])
    assert result.exit_code == 2
    assert 'in-plane' in ' '.join(result.output.split())
