"""``deeprelax relax --refine``, with a real potential on real files."""

import json

import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule, mx2
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.io import read, write

from ase_deeprelax import keys
from ase_deeprelax.calculators.registry import POTENTIALS, Entry, get_calculator
from ase_deeprelax.cli.answers import STAGES, answer_key
from ase_deeprelax.cli.refine import Refiner
from ase_deeprelax.optimize.elastic_bfgs import ElasticBFGS


@pytest.fixture
def oxides(tmp_path):
    for name, a in (('MgO', 4.4), ('CaO', 4.7)):
        atoms = bulk(name, 'rocksalt', a=a)
        atoms.rattle(0.02, seed=0)
        write(tmp_path / f'{name}.extxyz', atoms)
    return [tmp_path / f'{name}.extxyz' for name in ('MgO', 'CaO')]


@pytest.fixture
def refine(run, tmp_path, tiny_model):
    pytest.importorskip('chgnet', reason="pip install 'ase-deeprelax[chgnet]'")

    def refine(*words):
        common = ['--refine', 'chgnet', '--model', tiny_model, '--device', 'cpu']
        if '--out' not in words:
            common += ['--out', tmp_path / 'out']
        return run('relax', *words, *common)

    return refine


def test_minima_and_the_record_of_every_stage_are_written(refine, oxides, tmp_path):
    file = tmp_path / 'table.json'
    result = refine(*oxides, '--fmax', 0.02, '--optimizer', 'FIRE', '--json', file)
    assert result.exit_code == 0, result.output
    rows = json.loads(file.read_text())
    assert [row['structure'] for row in rows] == ['MgO.extxyz', 'CaO.extxyz']
    chgnet = get_calculator('chgnet')
    for name, a, row in zip(('MgO', 'CaO'), (4.26, 4.84), rows, strict=True):
        atoms = read(tmp_path / f'out/{name}.extxyz')
        assert (4 * atoms.get_volume()) ** (1 / 3) == pytest.approx(a, abs=0.04)
        said = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
        assert np.linalg.norm(said[1], axis=1).max() < 0.02
        atoms.calc = chgnet
        assert said[0] == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
        np.testing.assert_allclose(said[1], atoms.get_forces(), atol=1e-3)
        np.testing.assert_allclose(said[2], atoms.get_stress(), atol=1e-4)
        assert atoms.info[keys.STAGE].startswith('chgnet, FIRE')
        assert 'chgnet, FIRE: converged, ' in atoms.info[STAGES]
        first, last = row['stages']
        assert (first['name'], last['name'], last['optimizer']) == (
            'prediction',
            'chgnet',
            'FIRE',
        )
        assert last['status'] == 'converged'
        assert last['fmax'] == row['fmax'] < 0.02
        assert row['energy'] == pytest.approx(said[0], abs=1e-4)
        assert row['volume'] == pytest.approx(atoms.get_volume(), rel=1e-6)
        assert f'chgnet {last["steps"]}' in result.stdout
    assert not list(tmp_path.glob('*.part.jsonl'))


def test_a_potential_that_fails_leaves_the_prediction_and_is_told(refine, oxides, tmp_path):
    """CHGNet was not trained on polonium, this network was."""
    polonium = bulk('Po', 'sc', a=3.4)
    write(tmp_path / 'Po.cif', polonium)
    out = tmp_path / 'all.extxyz'
    result = refine(tmp_path / 'Po.cif', oxides[0], '--out', out)
    assert result.exit_code == 1
    assert 'Po.cif: chgnet failed and was rolled back: atom 0 (Po)' in result.stderr
    assert 'MgO' not in result.stderr.replace('MgO.extxyz:', '')
    first, second = read(out, ':')
    assert first.info[keys.STAGE] == 'predicted'
    assert 'chgnet, ElasticBFGS: failed (atom 0 (Po)' in first.info[STAGES]
    assert first.calc is None
    assert second.info[keys.STAGE].startswith('chgnet, ElasticBFGS')
    assert second.calc is not None


def test_where_nothing_could_be_done_nothing_is_written(run, oxides, tmp_path):
    """No shipped model and no CHGNet knows polonium."""
    pytest.importorskip('chgnet', reason="pip install 'ase-deeprelax[chgnet]'")
    write(tmp_path / 'Po.cif', bulk('Po', 'sc', a=3.4))
    out = tmp_path / 'out'
    result = run(
        'relax', tmp_path / 'Po.cif', oxides[0], '--refine', 'chgnet', '--out', out
    )
    assert result.exit_code == 1
    assert 'Po.cif: chgnet failed' in result.stderr
    assert sorted(file.name for file in out.iterdir()) == ['MgO.cif', 'MgO.extxyz']


def test_what_did_not_converge_is_written_and_told(refine, oxides, tmp_path):
    result = refine(oxides[0], '--steps', 1, '--fmax', 1e-4)
    assert result.exit_code == 1
    assert 'MgO.extxyz: chgnet did not converge: no more than 1 step may' in result.stderr
    atoms = read(tmp_path / 'out/MgO.extxyz')
    assert 'not converged' in atoms.info[STAGES]
    assert np.isfinite(atoms.get_potential_energy())


def test_molecules_are_refined_without_a_prediction(refine, tmp_path):
    atoms = molecule('H2O', vacuum=4)
    write(tmp_path / 'water.extxyz', atoms)
    result = refine(tmp_path / 'water.extxyz')
    assert result.exit_code == 0, result.output
    assert 'prediction skipped > chgnet' in result.stdout
    after = read(tmp_path / 'out/water.extxyz')
    assert keys.SIGMA not in after.info
    np.testing.assert_allclose(after.cell.array, atoms.cell.array)


def test_what_has_no_box_is_refined_too(run, tmp_path, tiny_model, monkeypatch):
    """A molecule without a cell, a wire with one vector, a slab with two."""
    emt = Entry('ase', '', 'usual', lambda *_: (EMT(), None), reads_paths=False)
    monkeypatch.setitem(POTENTIALS, 'emt', emt)
    water, wire, slab = molecule('H2O'), molecule('H2O'), fcc111('Cu', (1, 1, 3))
    wire.set_cell([4, 0, 0])
    wire.cell[1:] = 0
    wire.pbc = [True, False, False]
    slab.cell[2] = 0
    files = [tmp_path / f'{name}.extxyz' for name in ('water', 'wire', 'slab')]
    for file, atoms in zip(files, (water, wire, slab), strict=True):
        write(file, atoms)
    out, table = tmp_path / 'out.extxyz', tmp_path / 'table.json'
    words = ['--refine', 'emt', '--model', tiny_model, '--out', out, '--json', table]
    result = run('relax', *files, *words)
    assert result.exit_code == 0, result.output
    for row, atoms, file in zip(
        json.loads(table.read_text()), read(out, ':'), files, strict=True
    ):
        start = read(file)
        moved = np.linalg.norm(atoms.positions - start.positions, axis=1).max()
        assert row['dmax'] == pytest.approx(moved, abs=1e-6)
        assert moved > 0
        assert row['volume_ratio'] is None
        assert np.array_equal(atoms.cell.array, start.cell.array)


def test_a_stopped_command_goes_on_where_it_was(refine, oxides, tmp_path, monkeypatch):
    done, work = [], Refiner.refine

    def stopped(refiner, atoms):
        if atoms.symbols[0] == 'Ca':
            raise KeyboardInterrupt
        done.append(str(atoms.symbols))
        return work(refiner, atoms)

    def counted(refiner, atoms):
        done.append(str(atoms.symbols))
        return work(refiner, atoms)

    monkeypatch.setattr(Refiner, 'refine', stopped)
    result = refine(*oxides)
    assert result.exit_code == 130
    assert 'goes on from here' in result.stderr
    first = read(tmp_path / 'out/MgO.extxyz')
    assert not (tmp_path / 'out/CaO.extxyz').exists()
    monkeypatch.setattr(Refiner, 'refine', counted)
    assert refine(*oxides).exit_code == 0
    assert done == ['MgO', 'CaO']
    again = read(tmp_path / 'out/MgO.extxyz')
    assert again == first
    assert again.info[STAGES] == first.info[STAGES]
    # Finished, it begins anew; with another fmax nothing is taken over either.
    assert refine(oxides[0]).exit_code == 0
    assert done == ['MgO', 'CaO', 'MgO']


@pytest.mark.parametrize(
    ('words', 'code', 'said'),
    [
        (['--fmax', 0.02], 2, 'need --refine'),
        (['--refine', 'chgnet', '--optimizer', 'fire'], 1, "optimizer is 'fire'"),
        (['--refine', 'megnet'], 1, "calculator 'megnet' is not known"),
        (['--refine', 'chgnet,'], 1, "calculator '' is not known"),
    ],
)
def test_mistakes_are_told_before_the_work(
    run, oxides, tmp_path, tiny_model, words, code, said
):
    out = tmp_path / 'out'
    result = run('relax', oxides[0], '--out', out, '--model', tiny_model, *words)
    assert result.exit_code == code
    assert said in ' '.join(result.stderr.split())
    assert not out.exists()


@pytest.mark.parametrize('cell', ['free', 'fixed'])
def test_refinement_has_the_freedom_of_the_prediction(refine, tmp_path, cell):
    layer = mx2('MoS2', vacuum=8)
    layer.rattle(0.03, seed=0)
    layer.pbc = True
    slab = fcc111('Cu', (1, 1, 3), vacuum=8)
    slab.rattle(0.03, seed=0)
    slab.set_constraint(FixAtoms([0]))
    crystal = bulk('MgO', 'rocksalt', a=4.4)
    files = [tmp_path / f'{name}.vasp' for name in ('layer', 'slab', 'crystal')]
    for file, atoms in zip(files, (layer, slab, crystal), strict=True):
        write(file, atoms)
    out, table = tmp_path / 'out.traj', tmp_path / 'table.json'
    result = refine(*files, '--cell', cell, '--out', out, '--json', table)
    assert result.exit_code == 0, result.output
    found = read(out, ':')
    held = [cell == 'fixed', True, cell == 'fixed']
    rows = json.loads(table.read_text())
    for row, atoms, file, fixed in zip(rows, found, files, held, strict=True):
        start = read(file)
        assert np.array_equal(atoms.cell.array, start.cell.array) == fixed
        if file.stem != 'crystal':
            assert np.array_equal(atoms.cell.array[2], start.cell.array[2])
            assert row['kind'].startswith('layer')
        assert row['kind'].endswith('cell fixed') == fixed
        assert atoms.info[keys.KIND] == row['kind']
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.05
    assert np.array_equal(found[1].positions[0], read(files[1]).positions[0])


def test_an_interrupted_command_with_another_cell_begins_anew(tmp_path):
    """The key of an answer holds what of the cell relaxes."""
    atoms = bulk('Cu')
    found = set()
    for asked in (None, False, 'in-plane', [True, False, False, False, False, False]):
        how = {'model': 'default', 'relax_cell': asked}
        refiner = Refiner([], ElasticBFGS, 0.05, how, asked=[])
        found.add(answer_key(refiner, 'Cu', atoms))
    assert len(found) == 4
