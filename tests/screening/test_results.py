"""Rows of a screen: chosen, sorted, exported, and drawn on a page."""

import json

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.db import connect
from ase.io import read, write
from typer.testing import CliRunner

from ase_deeprelax import keys, screen
from ase_deeprelax.calculators.batched import batch_potential
from ase_deeprelax.cli import app
from ase_deeprelax.errors import ConfigError
from ase_deeprelax.screening import Results
from ase_deeprelax.screening import results as results_module
from ase_deeprelax.screening.export import chosen, export, file_name
from ase_deeprelax.screening.refine import refine


@pytest.fixture(scope='module')
def out(tmp_path_factory, crystals, tiny_model):
    """A screen of 60 crystals and two that cannot be relaxed."""
    folder = tmp_path_factory.mktemp('screen')
    clash = Atoms('NaCl', cell=[5, 5, 5], positions=[[1, 1, 1], [1, 1, 1]], pbc=True)
    write(folder / 'many.extxyz', [*crystals[:30], clash, *crystals[30:60], clash])
    screen(folder / 'many.extxyz', folder / 'out', model=tiny_model, pack=9)
    return folder / 'out'


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words], prog_name='deeprelax')


def test_rows_are_chosen_and_sorted_as_pandas_would(out):
    frame = pd.read_parquet(out / 'packs')
    good = frame[frame.ok]
    middle = float(good.sigma.median())
    found = Results(out)
    assert (len(found), found.n_quarantined) == (62, 2)
    table = found.table([f'sigma < {middle}', 'n_atoms >= 3'], sort='sigma', limit=10)
    expected = good[(good.sigma < middle) & (good.n_atoms >= 3)].sort_values('sigma')
    assert table['id'].to_pylist() == expected.id.tolist()[:10]
    table = found.table(['kind = bulk', 'ok = true'], sort='dmax', descending=True)
    assert np.all(np.diff(table['dmax']) <= 0)
    assert len(table) == 60
    name = frame.id[5]
    assert found.table([f'id == {name}'])['id'].to_pylist() == [name]
    assert len(found.table([f'id != {name}'])) == 59
    assert found.table(f'id == {name}')['id'].to_pylist() == [name]  # one condition


@pytest.mark.parametrize(
    ('condition', 'said'),
    [
        ('sigma', 'is no condition'),
        ('sigma <', "double, which '' is not"),
        ('energy < 3', "no column 'energy'; there are: id, position"),
        ('sigma < much', "double, which 'much' is not"),
        ('initial_cell < 3', "no column 'initial_cell'"),
        ("__import__('os') < 3", 'is no condition'),
        ('kind = bulk and sigma < 3', 'holds two conditions'),
        ('sigma < 3 && kind = bulk', 'holds two conditions'),
    ],
)
def test_conditions_that_make_no_sense_are_told(out, condition, said):
    with pytest.raises(ConfigError, match=said.replace("('", '.*')):
        Results(out).table([condition])


def test_a_condition_may_ask_for_empty_text(out):
    found = Results(out)
    empty = found.table('ood =')
    assert set(empty['ood'].to_pylist()) == {''}
    assert len(empty) + len(found.table(' ood != ')) == len(found.table())


def test_structures_come_in_the_order_of_the_table(out, monkeypatch, crystals):
    monkeypatch.setattr(results_module, 'CHUNK', 7)
    found = Results(out)
    table = found.table(sort='sigma', descending=True)
    rows = list(found.structures(table))
    assert [row['id'] for row, _ in rows] == table['id'].to_pylist()
    for row, atoms in rows:
        assert atoms.info[keys.SIGMA] == pytest.approx(row['sigma'])
        before = found.initial(row['position'], atoms)
        given = crystals[row['position'] - (row['position'] > 30)]
        np.testing.assert_allclose(before.positions, given.positions, atol=1e-7)
        np.testing.assert_allclose(before.cell.array, given.cell.array, atol=1e-7)


def test_structures_are_exported(out, tmp_path):
    found = Results(out)
    table = found.table(sort='sigma', limit=12)
    ids = table['id'].to_pylist()
    assert export(chosen(found, table), tmp_path / 'best.extxyz') == 12
    written = read(tmp_path / 'best.extxyz', ':')
    assert [atoms.info[keys.ID] for atoms in written] == ids
    assert export(chosen(found, table), tmp_path / 'best.db') == 12
    rows = list(connect(tmp_path / 'best.db').select(f'{keys.SIGMA}>0'))
    assert [row[keys.ID] for row in rows] == ids
    assert export(chosen(found, table), tmp_path / 'cifs') == 12
    cif = read(tmp_path / 'cifs' / f'{file_name(ids[0])}.cif')
    assert cif.cell.volume == pytest.approx(written[0].cell.volume, rel=1e-4)
    assert export(chosen(found, table), tmp_path / 'dft', 'vasp') == 12
    assert len(read(tmp_path / 'dft' / f'{file_name(ids[3])}.vasp')) == len(written[3])
    assert not list(tmp_path.glob('**/.*'))


def test_a_folder_may_have_a_dot_in_its_name(out, tmp_path):
    found = Results(out)
    table = found.table(limit=3)
    assert export(chosen(found, table), tmp_path / 'dft.v1', 'vasp') == 3
    assert len(list((tmp_path / 'dft.v1').glob('*.vasp'))) == 3
    with pytest.raises(ConfigError, match='format vasp holds one structure'):
        export(chosen(found, table), tmp_path / 'best.vasp')
    one = found.table(limit=1)
    assert export(chosen(found, one), tmp_path / 'best.vasp') == 1
    assert len(read(tmp_path / 'best.vasp')) == one['n_atoms'][0].as_py()


def test_command_shows_exports_and_draws(out, tmp_path):
    shown = run('results', out)
    assert shown.exit_code == 0, shown.output
    assert '62 of 62 structures done, 2 of them quarantined; 60 rows chosen' in shown.stdout
    assert '... and 40 more' in shown.stdout
    shown = run('results', out, '--quarantined')
    assert '2  atom # (Na) and atom # (Cl) sit on one site' in shown.stdout
    assert 'many.extxyz@30' in shown.stdout
    shown = run('results', out, '--where', 'sigma > 0', '--limit', 3, '--json', '-')
    assert len(json.loads(shown.stdout)) == 3
    shown = run('results', out, '--limit', 4, '--export', tmp_path / 'x.extxyz')
    assert 'x.extxyz: 4 structures' in shown.stderr
    kept = (tmp_path / 'x.extxyz').read_bytes()
    shown = run('results', out, '--where', 'sigma > 99', '--export', tmp_path / 'x.extxyz')
    assert shown.exit_code == 1
    assert 'x.extxyz is not written, because no relaxed structure' in ' '.join(
        shown.stderr.split()
    )
    assert (tmp_path / 'x.extxyz').read_bytes() == kept
    words = ['results', out, '--limit', 4, '--export', tmp_path / 'x.db']
    assert run(*words).exit_code == 0
    shown = run(*words)
    assert shown.exit_code == 2
    assert 'choose another name' in ' '.join(shown.stderr.split())
    assert run('results', tmp_path).exit_code == 1
    assert run('results', out, '--format', 'vasp').exit_code == 2
    page = tmp_path / 'page.html'
    shown = run('results', out, '--html', page)
    assert shown.exit_code == 0, shown.output
    text = page.read_text()
    top = text[: text.index('<main>')]
    assert '60 structures relaxed, 2 refused' in top
    digest = Results(out).store.manifest()['sha256'][:12]
    assert f'many.extxyz, SHA-256 of names and contents {digest}, 62 structures' in top
    assert f'Command: deeprelax results {out} --html' in top
    assert 'Quarantine by reason' in text
    assert 'atom # (Na) and atom # (Cl) sit on one site' in text
    assert 'sigma / Å' in text
    worst = Results(out).table(sort='sigma', descending=True)['id'][0].as_py()
    assert f'"name":"{worst}"' in text
    assert text.count('"deformation"') == 12


def test_the_commonest_reasons_of_a_quarantine_are_printed(tmp_path, tiny_model):
    sites = {'cell': [5, 5, 5], 'positions': [[1, 1, 1], [1, 1, 1]], 'pbc': True}
    metals = ('Na', 'K', 'Rb', 'Cs', 'Mg', 'Ca', 'Sr', 'Ba')
    clashes = [Atoms(metal + x, **sites) for x in ('F', 'Cl', 'Br') for metal in metals]
    write(tmp_path / 'many.extxyz', [*clashes, clashes[-1]])
    screen(tmp_path / 'many.extxyz', tmp_path / 'out', model=tiny_model)
    shown = run('results', tmp_path / 'out', '--quarantined', '--limit', 1)
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert 'atom # (Ba) and atom # (Br)' in lines[1]
    assert lines[21] == '... and 4 rarer reasons'


def test_a_page_is_on_the_chosen_rows(out, tmp_path):
    table = Results(out).table(sort='sigma')
    limit = table['sigma'][20].as_py()
    page = tmp_path / 'page.html'
    shown = run('results', out, '--where', f'sigma < {limit}', '--html', page)
    assert shown.exit_code == 0, shown.output
    text = page.read_text()
    top = text[: text.index('<main>')]
    assert '20 structures relaxed' in top
    assert f'Only the structures with sigma &lt; {limit}' in top
    assert 'Quarantine by reason' not in text
    assert f'"name":"{table["id"][19].as_py()}"' in text
    assert f'"name":"{table["id"][20].as_py()}"' not in text
    shown = run('results', out, '--where', 'sigma < 0', '--html', page)
    assert shown.exit_code == 0, shown.output
    assert '0 structures relaxed' in page.read_text()


def test_an_unfinished_screen_can_be_looked_at(out, tmp_path, tiny_model, crystals):
    write(tmp_path / 'many.extxyz', crystals[:20])
    half = tmp_path / 'half'
    done = screen(tmp_path / 'many.extxyz', half, model=tiny_model, pack=5, shard=(1, 2))
    assert (done.n_done, done.n_structures) == (10, 20)
    assert '10 of 20 structures done' in run('results', half).stdout
    for file in (half / 'packs').iterdir():
        file.unlink()
    shown = run('results', half)
    assert shown.exit_code == 1
    assert 'holds no finished pack yet' in shown.stderr


def test_packs_of_quarantined_structures_may_come_first_and_last(tmp_path, tiny_model):
    clash = Atoms('NaCl', cell=[5, 5, 5], positions=[[1, 1, 1], [1, 1, 1]], pbc=True)
    salt = bulk('NaCl', 'rocksalt', a=5.5)
    file = tmp_path / 'many.extxyz'
    write(file, [clash, clash, salt, salt, clash, clash])
    lines = file.read_text().splitlines()
    for frame in (0, 1, 4, 5):
        lines[4 * frame + 2] = 'Na 0 0 what'  # no structure at all
    for name, text in (('clash', file.read_text()), ('unreadable', '\n'.join(lines))):
        file.write_text(text)
        found = screen(file, tmp_path / name, model=tiny_model, pack=2).results
        assert (len(found), found.n_quarantined) == (6, 4)
        for row, atoms in found.structures(found.table()):
            before = found.initial(row['position'], atoms)
            np.testing.assert_allclose(before.positions, salt.positions, atol=1e-7)


def emt_screen(folder, model):
    """Crystals that ASE's EMT knows, a slab with fixed atoms among them."""
    slab = fcc111('Cu', (1, 1, 3), vacuum=8)
    slab.set_constraint(FixAtoms([0]))
    lattices = {'Cu': 3.7, 'Au': 4.2, 'Ag': 4.0}
    metals = [bulk(name, a=a) * (2, 1, 1) for name, a in lattices.items()]
    for k, atoms in enumerate(metals):
        atoms.rattle(0.05, seed=k)
    write(folder / 'metals.extxyz', [*metals, slab])
    return screen(folder / 'metals.extxyz', folder / 'out', model=model).results


def test_a_part_is_refined_and_goes_on_after_a_stop(tmp_path, tiny_model):
    found = emt_screen(tmp_path, tiny_model)
    table = found.table(sort='sigma', descending=True)
    asked = batch_potential(EMT())
    calls = []

    def potential(structures):
        calls.append(len(structures))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return asked(structures)

    journal = tmp_path / 'tail.jsonl'
    with pytest.raises(KeyboardInterrupt):
        list(refine(found, table, potential, journal, steps=100))
    ends = list(refine(found, table, potential, journal, steps=100))
    assert [id for id, *_ in ends] == table['id'].to_pylist()
    for id, atoms, problem in ends:
        assert problem == ''
        assert atoms.info[keys.STAGE] == 'potential'
        assert np.abs(atoms.get_forces()).max() < 0.05
        again = atoms.copy()
        again.calc = EMT()
        assert again.get_potential_energy() == pytest.approx(atoms.get_potential_energy())
        if id == 'metals.extxyz@3':  # the slab
            before = read(tmp_path / 'metals.extxyz', 3)
            assert atoms.cell.array.tolist() == before.cell.array.tolist()
            assert atoms.positions[0].tolist() == before.positions[0].tolist()
    n = len(calls)
    assert len(list(refine(found, table, potential, journal, steps=100))) == 4
    assert len(calls) == n
    with pytest.raises(ConfigError, match='steps 100, now it is 50'):
        list(refine(found, table, potential, journal, steps=50))


def test_refinements_free_what_the_screen_freed(tmp_path, tiny_model):
    crystals = [bulk('Cu', a=3.7), bulk('Au', a=4.3)]
    write(tmp_path / 'metals.extxyz', crystals)
    asked = [1, 0, 0, 0, 0, 0]
    out = tmp_path / 'out'
    screen(tmp_path / 'metals.extxyz', out, model=tiny_model, relax_cell=asked)
    found = Results(out)
    potential = batch_potential(EMT())
    ends = list(refine(found, found.table(), potential, tmp_path / 'tail.jsonl'))
    for (_, atoms, problem), before in zip(ends, crystals, strict=True):
        assert problem == ''
        strain = np.linalg.solve(before.cell.array, atoms.cell.array) - np.eye(3)
        assert abs(strain[0, 0]) > 0.005
        strain[0, 0] = 0.0
        assert np.abs(strain).max() < 1e-9


def test_command_refines_what_it_exports(tmp_path, tiny_model, monkeypatch):
    emt_screen(tmp_path, tiny_model)
    monkeypatch.setattr(
        'ase_deeprelax.calculators.registry.get_calculator', lambda *_, **__: EMT()
    )
    out = tmp_path / 'tail.db'
    words = ['--descending', '--limit', 2, '--refine', 'emt', '--export', out]
    shown = run('results', tmp_path / 'out', *words)
    assert shown.exit_code == 0, shown.output
    rows = list(connect(out).select())
    assert len(rows) == 2
    assert all(row.energy is not None and row[keys.STAGE] == 'emt' for row in rows)
    assert not list(tmp_path.glob('*.part.jsonl'))


def test_ctrl_c_in_a_refinement_says_how_to_go_on(tmp_path, tiny_model, monkeypatch):
    emt_screen(tmp_path, tiny_model)
    calls = []

    class Interrupted(EMT):
        def calculate(self, *args, **options):
            calls.append(1)
            if len(calls) == 5:
                raise KeyboardInterrupt
            super().calculate(*args, **options)

    monkeypatch.setattr(
        'ase_deeprelax.calculators.registry.get_calculator', lambda *_, **__: Interrupted()
    )
    words = ['--refine', 'emt', '--export', tmp_path / 'tail.extxyz']
    shown = run('results', tmp_path / 'out', *words)
    assert shown.exit_code == 130
    assert 'the same command goes on from here' in shown.stderr
    assert run('results', tmp_path / 'out', *words).exit_code == 0
    assert len(read(tmp_path / 'tail.extxyz', ':')) == 4


def test_a_refinement_belongs_to_one_screen(tmp_path, tiny_model):
    table, journal = {}, tmp_path / 'tail.jsonl'
    for name in ('one', 'two'):
        (tmp_path / name).mkdir()
        metals = [bulk('Cu', a=3.7 if name == 'one' else 3.9)]
        write(tmp_path / name / 'metals.extxyz', metals)
        out = tmp_path / name / 'out'
        table[name] = screen(tmp_path / name / 'metals.extxyz', out, model=tiny_model)
    potential = batch_potential(EMT())
    found = table['one'].results
    assert len(list(refine(found, found.table(), potential, journal))) == 1
    other = table['two'].results
    with pytest.raises(ConfigError, match='was written with source'):
        list(refine(other, other.table(), potential, journal))


def test_an_export_leaves_a_stopped_refinement_alone(out, tmp_path):
    part = tmp_path / 'best.db.part.jsonl'
    part.write_text('hours of work')
    words = ['results', out, '--limit', 2, '--export', tmp_path / 'best.db']
    assert run(*words).exit_code == 0
    assert part.read_text() == 'hours of work'
    assert run(*words).exit_code == 2  # the database is not that of the refinement


def test_a_damaged_pack_is_named_with_the_remedy(tmp_path, tiny_model, crystals):
    write(tmp_path / 'many.extxyz', crystals[:6])
    words = {'model': tiny_model, 'pack': 2}
    done = screen(tmp_path / 'many.extxyz', tmp_path / 'out', **words)
    pack = tmp_path / 'out/packs/000001.parquet'
    pack.write_bytes(pack.read_bytes()[:100])
    shown = run('results', tmp_path / 'out')
    assert shown.exit_code == 1
    assert f'{pack}: damaged' in shown.stderr
    pack.unlink()
    again = screen(tmp_path / 'many.extxyz', tmp_path / 'out', **words)
    assert again == done
    assert len(again.results.table()) == 6


def test_no_damage_to_a_pack_changes_an_answer(tmp_path, tiny_model, crystals):
    write(tmp_path / 'many.extxyz', crystals[:6])
    screen(tmp_path / 'many.extxyz', tmp_path / 'out', model=tiny_model, pack=2)

    def answers():
        found = Results(tmp_path / 'out')
        return [(str(row), atoms) for row, atoms in found.structures(found.table())]

    expected, told = answers(), []
    pack = tmp_path / 'out/packs/000001.parquet'
    whole = pack.read_bytes()
    for place in range(40, len(whole), len(whole) // 30):
        pack.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        try:
            found = answers()
        except ConfigError as error:
            told.append(str(error))
        else:
            assert found == expected
    assert len(told) > 3
    assert all(f'{pack}: damaged' in text for text in told)


def test_a_format_that_needs_more_is_refused_by_name(out, tmp_path):
    words = ['--limit', 1, '--export', tmp_path / 'qe', '--format', 'espresso-in']
    shown = run('results', out, *words)
    assert shown.exit_code == 1
    assert 'cannot write it in the format espresso-in' in shown.stderr
    assert not list((tmp_path / 'qe').iterdir())


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    atoms = bulk('Cu')
    atoms.arrays['spacegroup_kinds'] = np.array([1])
    atoms.info['occupancy'] = {'0': {'Cu': 1}}  # of another kind of site
    file = tmp_path / 'best.cif'
    with pytest.raises(ConfigError, match=f'{file}: ase.io cannot write it'):
        export([('a', atoms), ('b', bulk('Au'))], file)
    assert not list(tmp_path.iterdir())


def test_no_output_replaces_a_part_of_the_screen(out):
    for option in ('--json', '--html'):
        for file in (out / 'manifest.json', out / 'packs' / '000001.parquet'):
            before = file.read_bytes()
            shown = run('results', out, option, file)
            assert shown.exit_code == 2
            assert 'is one of the inputs' in shown.output
            assert file.read_bytes() == before


def test_nothing_is_written_among_the_packs(out):
    before = sorted((out / 'packs').iterdir())
    for option in ('--export', '--json', '--html'):
        shown = run('results', out, '--limit', 2, option, out / 'packs' / 'best')
        assert shown.exit_code == 2
        assert 'where the screen keeps its rows' in shown.output
    assert sorted((out / 'packs').iterdir()) == before


def test_what_else_is_in_a_folder_is_told(out, tmp_path):
    words = ['results', out, '--sort', 'id', '--export', tmp_path / 'cifs']
    for more, said in (
        (['--limit', 5], '5 structures'),
        (['--limit', 5], '5 structures'),
        (['--limit', 2], '2 structures, beside 3 that were there before'),
    ):
        shown = run(*words, *more)
        assert shown.stderr.strip() == f'wrote {tmp_path / "cifs"}: {said}'


def test_a_file_for_one_structure_is_refused_before_a_refinement(
    out, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        'ase_deeprelax.calculators.registry.get_calculator',
        lambda *_, **__: pytest.fail('work was done'),
    )
    words = ['--limit', 2, '--refine', 'emt', '--export', tmp_path / 'best.vasp']
    shown = run('results', out, *words)
    assert shown.exit_code == 1
    assert 'format vasp holds one structure; name a folder' in shown.stderr
    assert not list(tmp_path.iterdir())


def test_structures_are_not_exported_to_standard_output(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = run('results', out, '--export', '-')
    assert shown.exit_code == 2
    assert '--json - prints the rows' in shown.output
    assert not list(tmp_path.iterdir())
