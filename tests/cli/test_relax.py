"""``deeprelax relax``, on real files with a small real network."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, mx2
from ase.constraints import FixAtoms
from ase.io import read, write

from ase_deeprelax import keys, relax
from ase_deeprelax.models import store


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


def test_relaxes_whatever_ase_reads_into_a_folder(run, salts, tiny_model):
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


def test_numbers_per_atom_are_written_as_the_function_gives_them(
    run, salts, calibrated_model
):
    out = salts / 'out.extxyz'
    result = run('relax', salts / 'one.cif', '--out', out, '--model', calibrated_model)
    assert result.exit_code == 0, result.output
    expected = relax(read(salts / 'one.cif'), calibrated_model).atoms
    written = {name: x for name, x in read(out).arrays.items() if keys.is_ours(name)}
    assert written.keys() == {keys.SIGMA, keys.POSITION_90}
    for name, values in written.items():
        np.testing.assert_allclose(values, expected.arrays[name], atol=1e-6)


def test_a_potential_that_cannot_verify_is_told_before_the_work(run, salts, tiny_model):
    words = ['--out', salts / 'out', '--model', tiny_model, '--verify', 'chgnet']
    result = run('relax', salts / 'one.cif', *words)
    assert result.exit_code == 1
    assert "verify is 'chgnet'; the error of this potential is not known" in result.stderr
    words = ['--out', salts / 'out', '--verify', 'chgnet:r2scan']
    result = run('relax', salts / 'one.cif', *words)
    assert result.exit_code == 1
    assert "verify is 'chgnet:r2scan'; the error of this" in result.stderr
    assert not list(salts.glob('out*'))


def test_prints_a_table_with_a_row_for_each_structure(run, salts, tiny_model):
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


def test_writes_all_structures_to_one_file(run, salts, tiny_model):
    out = salts / 'new' / 'all.traj'
    files = [salts / 'one.cif', salts / 'many.extxyz']
    result = run('relax', *files, '--out', out, '--model', tiny_model)
    assert result.exit_code == 0, result.output
    formulas = [atoms.get_chemical_formula('metal') for atoms in read(out, ':')]
    assert formulas == ['NaCl', 'KBr', 'MgO', 'LiF']
    ids = [atoms.info[keys.ID] for atoms in read(out, ':')]
    assert ids == ['one.cif', *(f'many.extxyz@{k}' for k in range(3))]


def test_same_names_keep_their_suffixes(run, salts, tiny_model):
    write(salts / 'one.vasp', bulk('MgO', 'rocksalt', a=4.3))
    files = [salts / 'one.cif', salts / 'one.vasp']
    result = run('relax', *files, '--out', salts / 'out', '--model', tiny_model)
    assert result.exit_code == 0, result.output
    assert len(read(salts / 'out/one.cif.extxyz')) == 2
    assert 'Mg' in read(salts / 'out/one.vasp.extxyz').symbols


def test_outputs_stay_in_the_folder_where_inputs_lie_beside_it(
    run, salts, tiny_model, monkeypatch
):
    monkeypatch.chdir(salts / 'a')
    result = run('relax', 'POSCAR', '../b/POSCAR', '--out', 'out', '--model', tiny_model)
    assert result.exit_code == 0, result.output
    assert sorted(str(p) for p in Path('out').glob('**/*.cif')) == [
        'out/a/POSCAR.cif',
        'out/b/POSCAR.cif',
    ]


def test_bad_files_are_reported_and_the_others_go_on(run, salts, tiny_model):
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
    # A frame that is damaged loses no other one.
    assert 'cut.extxyz@1: line 5: the frame has' in result.stderr
    assert 'K' in read(out / 'cut.extxyz').symbols


def test_bad_structures_are_reported_and_the_others_go_on(run, salts, tiny_model):
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


def test_nothing_is_relaxed_where_all_is_bad(run, tmp_path, tiny_model):
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
def test_refuses_before_work_what_it_could_not_write(run, salts, out, said):
    before = (salts / 'many.extxyz').read_bytes()
    result = run('relax', salts / 'many.extxyz', '--out', salts / out, '--model', 'nothing')
    assert result.exit_code == 2
    assert said in ' '.join(result.stderr.split())
    assert (salts / 'many.extxyz').read_bytes() == before


def test_out_of_range_is_told_in_the_table(run, salts, tmp_path, tiny_model):
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


# --- layers, slabs and fixed cells -------------------------------------------------------


@pytest.fixture
def kinds(tmp_path):
    """A crystal, a layer as POSCARs say it, and a slab whose lower atoms are fixed."""
    crystal = bulk('NaCl', 'rocksalt', a=5.3)
    crystal.rattle(0.05, seed=0)
    layer = mx2('MoS2', vacuum=9)
    layer.rattle(0.05, seed=1)
    layer.pbc = True
    slab = fcc111('Cu', (1, 1, 4), vacuum=9)
    slab.rattle(0.05, seed=2)
    slab.set_constraint(FixAtoms([0, 1]))
    write(tmp_path / 'crystal.vasp', crystal)
    write(tmp_path / 'layer.vasp', layer)
    write(tmp_path / 'slab.vasp', slab)
    return [tmp_path / f'{name}.vasp' for name in ('crystal', 'layer', 'slab')]


def relaxed(run, files, model, *words):
    """Rows of the JSON file, what was written, and the table."""
    out, table = files[0].parent / 'out.traj', files[0].parent / 'table.json'
    words = ['--out', out, '--json', table, '--model', model, *words]
    result = run('relax', *files, *words)
    assert result.exit_code == 0, result.output
    return json.loads(table.read_text()), read(out, ':'), result.stdout.splitlines()


def test_layers_keep_their_vacuum_and_slabs_what_is_fixed(run, kinds, tiny_model):
    rows, found, table = relaxed(run, kinds, tiny_model)
    said = ['bulk', 'layer', 'layer, cell fixed']
    assert [row['kind'] for row in rows] == said
    assert [atoms.info[keys.KIND] for atoms in found] == said
    crystal, layer, slab = (read(file) for file in kinds)
    assert not np.array_equal(found[0].cell.array, crystal.cell.array)
    assert np.array_equal(found[1].cell.array[2], layer.cell.array[2])
    assert not np.array_equal(found[1].cell.array[0], layer.cell.array[0])
    assert np.array_equal(found[2].cell.array, slab.cell.array)
    assert np.array_equal(found[2].positions[:2], slab.positions[:2])
    for line, kind in zip(table[1:], ('', 'layer', 'layer, cell fixed'), strict=False):
        assert kind in line
        assert ('layer' in line.replace('layer.vasp', '')) == bool(kind)


@pytest.mark.parametrize(
    'cell', ['fixed', 'in-plane', 'hydrostatic', '1,1,0,0,0,1', '0,0,0,0,0,0', 'free']
)
def test_what_of_the_cells_relaxes_can_be_said(run, kinds, tiny_model, cell):
    free = {'fixed': False, 'free': None, '1,1,0,0,0,1': [1, 1, 0, 0, 0, 1]}.get(cell, cell)
    free = np.zeros(6) if cell == '0,0,0,0,0,0' else free
    rows, found, table = relaxed(run, kinds, tiny_model, '--cell', cell)
    expected = relax([read(file) for file in kinds], tiny_model, relax_cell=free)
    for row, atoms, one in zip(rows, found, expected, strict=True):
        np.testing.assert_allclose(atoms.cell.array, one.atoms.cell.array, atol=1e-6)
        np.testing.assert_allclose(atoms.positions, one.atoms.positions, atol=1e-5)
        assert row['kind'] == one.kind
    if cell == 'fixed':
        assert 'bulk, cell fixed' in table[1]


@pytest.mark.parametrize('cell', ['sideways', '1,1,0', '1,1,0,0,0,2', ''])
def test_a_cell_that_makes_no_sense_is_told_before_the_work(run, kinds, cell):
    result = run('relax', kinds[0], '--cell', cell, '--model', 'nothing')
    assert result.exit_code == 2
    assert 'free, fixed, in-plane, hydrostatic' in ' '.join(result.stderr.split())


def test_processes_share_the_structures(run, tiny_model, tmp_path):
    file = tmp_path / 'crystals.traj'
    write(file, [bulk('Cu', a=3.4 + 0.001 * k) for k in range(150)])
    answers = []
    for workers in (1, 2):
        out = tmp_path / f'relaxed{workers}.extxyz'
        words = ('relax', file, '--model', tiny_model, '--out', out, '--workers', workers)
        assert run(*words).exit_code == 0
        answers.append(read(out, ':'))
    for one, other in zip(*answers, strict=True):
        np.testing.assert_allclose(one.cell.array, other.cell.array, atol=1e-5)


def test_processes_do_not_refine(run, kinds):
    result = run('relax', kinds[0], '--workers', 2, '--refine', 'emt')
    assert result.exit_code == 2
    assert '--workers shares predictions alone' in ' '.join(result.stderr.split())
