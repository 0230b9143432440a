"""A screen gives what `relax` gives, as rows, whatever is among the structures."""

import json
import os
import re
import tarfile
from itertools import islice

import numpy as np
import pandas as pd
import pytest
from ase import Atoms
from ase.build import bulk, mx2
from ase.constraints import FixAtoms
from ase.io import read, write
from ase.io.jsonio import decode

from ase_deeprelax import keys, relax, screen
from ase_deeprelax.errors import ConfigError
from ase_deeprelax.screening import Results
from ase_deeprelax.screening.sources import open_source
from ase_deeprelax.screening.store import Plan
from ase_deeprelax.screening.work import read_packs


def frame(out):
    return pd.read_parquet(out / 'packs').sort_values('position', ignore_index=True)


def test_rows_are_what_relax_gives(source, tmp_path, tiny_model):
    out = tmp_path / 'out'
    done = screen(source, out, model=tiny_model, pack=50)
    assert (done.n_structures, done.n_done, done.n_quarantined) == (240, 240, 0)
    assert not done.stopped
    rows = frame(out)
    assert rows.id.tolist() == [f'many.extxyz@{k}' for k in range(240)]
    crystals = read(source, ':')  # with the digits that the file has
    for row, one in zip(rows.itertuples(), relax(crystals, tiny_model), strict=True):
        atoms = decode(row.atoms)
        np.testing.assert_allclose(atoms.cell.array, one.atoms.cell.array, atol=1e-5)
        np.testing.assert_allclose(atoms.positions, one.atoms.positions, atol=1e-4)
        assert row.sigma == pytest.approx(one.sigma, rel=1e-4)
        assert (row.kind, row.sha256, row.ok) == (one.kind, one.sha256, True)
        expected = one.to_row()
        assert set(expected) <= set(rows.columns)
        initial = np.reshape(row.initial_positions, (-1, 3))
        np.testing.assert_allclose(initial, one.initial.positions, atol=1e-7)


def test_the_bar_tells_rate_and_time_left(source, tmp_path, tiny_model, capsys):
    screen(source, tmp_path / 'out', model=tiny_model, pack=60, progress=True)
    shown = capsys.readouterr().err
    assert re.search(r'screen: 100%.* 240/240 \[\d\d:\d\d<00:00, .*structure/s\]', shown)


def test_a_finished_screen_does_nothing_again(source, tmp_path, tiny_model):
    out = tmp_path / 'out'
    screen(source, out, model=tiny_model, pack=100)
    before = {file: file.stat().st_mtime_ns for file in (out / 'packs').iterdir()}
    assert screen(source, out, model=tiny_model, pack=100).n_done == 240
    assert {file: file.stat().st_mtime_ns for file in (out / 'packs').iterdir()} == before


def test_what_atoms_carry_travels_with_their_row(tmp_path, tiny_model):
    slab = mx2('MoS2', vacuum=9)
    slab.set_constraint(FixAtoms([0]))
    slab.info['batch'] = 'b7'
    slab.set_tags([1, 2, 3])
    write(tmp_path / 'kinds.extxyz', [slab, bulk('NaCl', 'rocksalt', a=5.5)])
    out = tmp_path / 'out'
    screen(tmp_path / 'kinds.extxyz', out, model=tiny_model)
    rows = frame(out)
    assert rows.kind.tolist() == ['layer, cell fixed', 'bulk']
    atoms = decode(rows.atoms[0])
    assert atoms.constraints[0].index.tolist() == [0]
    assert atoms.info['batch'] == 'b7'
    assert atoms.get_tags().tolist() == [1, 2, 3]
    assert atoms.info[keys.SIGMA] == pytest.approx(rows.sigma[0])
    assert atoms.positions[0].tolist() == slab.positions[0].tolist()


def test_one_bad_structure_among_thousands_is_quarantined(tmp_path, tiny_model):
    good = bulk('NaCl', 'rocksalt', a=5.5)
    clash = Atoms('NaCl', cell=[5, 5, 5], positions=[[1, 1, 1], [1, 1, 1]], pbc=True)
    many = [good] * 1500 + [clash] + [good] * 500
    file = tmp_path / 'many.extxyz'
    write(file, many)
    text = file.read_text().splitlines()
    text[4 * 700 + 2] = 'Na 0 0 what'  # an atom of frame 700
    del text[4 * 900 + 3]  # frame 900 lacks an atom
    text[4 * 1000 - 1 : 4 * 1000 - 1] = ['so what']  # a line before frame 1000
    file.write_text('\n'.join(text))
    done = screen(file, tmp_path / 'out', model=tiny_model)
    assert done.n_structures == 2002
    bad = done.results.table(quarantined=True).to_pandas()
    assert bad.position.tolist() == [700, 900, 1000, 1501]
    assert 'what' in bad.problem[0]
    assert '1 of 2 lines' in bad.problem[1]
    assert "'so what'" in bad.problem[2]
    assert 'atom 0 (Na) and atom 1 (Cl)' in bad.problem[3]
    rows = frame(tmp_path / 'out')
    assert rows.ok.sum() == 1998
    assert rows.atoms.isna().sum() == 4
    assert np.ptp(rows.volume_ratio[rows.ok]) < 1e-5


def test_settings_and_source_of_a_screen_are_kept(source, tmp_path, tiny_model, crystals):
    out = tmp_path / 'out'
    screen(source, out, model=tiny_model, pack=100)
    with pytest.raises(ConfigError, match="symmetry 'keep', now it is 'free'"):
        screen(source, out, model=tiny_model, pack=100, symmetry='free')
    with pytest.raises(ConfigError, match='pack 100, now it is 50'):
        screen(source, out, model=tiny_model, pack=50)
    write(source, crystals)  # the same content at another time
    assert screen(source, out, model=tiny_model, pack=100).n_done == 240
    write(source, crystals[1:])
    with pytest.raises(ConfigError, match='content has changed'):
        screen(source, out, model=tiny_model, pack=100)


@pytest.mark.filterwarnings('ignore:.*outside the training range')
def test_masks_of_the_cell_mean_what_they_mean_to_relax(tmp_path, tiny_model):
    crystal = bulk('NaCl', 'rocksalt', a=5.5, cubic=True)
    write(tmp_path / 'one.extxyz', crystal)
    asked = [0.5, 0, 0, 0, 0, 0]
    choices = {'model': tiny_model, 'relax_cell': asked}
    done = screen(tmp_path / 'one.extxyz', tmp_path / 'out', **choices)
    expected = relax(crystal, tiny_model, relax_cell=asked).atoms.cell.array
    assert not np.allclose(expected, crystal.cell.array, atol=1e-4)
    [(_, atoms)] = done.results.structures(done.results.table())
    np.testing.assert_allclose(atoms.cell.array, expected, atol=1e-5)
    # The former form of a mask: as it was given, with whole numbers.
    file = tmp_path / 'out/manifest.json'
    manifest = json.loads(file.read_text())
    manifest['settings']['relax_cell'] = [1, 0, 0, 0, 0, 0]
    file.write_text(json.dumps(manifest))
    assert screen(tmp_path / 'one.extxyz', tmp_path / 'out', **choices).n_done == 1
    choices['relax_cell'] = [0, 1, 0, 0, 0, 0]
    with pytest.raises(ConfigError, match='was written with relax_cell'):
        screen(tmp_path / 'one.extxyz', tmp_path / 'out', **choices)


def test_a_mask_that_makes_no_sense_is_refused_before_the_work(
    source, tmp_path, tiny_model
):
    with pytest.raises(ValueError, match=r'relax_cell is \[1, 2\]'):
        screen(source, tmp_path / 'out', model=tiny_model, relax_cell=[1, 2])
    assert not (tmp_path / 'out').exists()


def test_choices_that_make_no_sense_are_refused(source, tmp_path, tiny_model):
    with pytest.raises(ConfigError, match='no such file'):
        screen(tmp_path / 'no.extxyz', tmp_path / 'out', model=tiny_model)
    with pytest.raises(ConfigError, match='outside'):
        screen(tmp_path, tmp_path / 'out', model=tiny_model)
    with pytest.raises(ConfigError, match='1/N to N/N'):
        screen(source, tmp_path / 'out', model=tiny_model, shard=(3, 2))
    for place in (tmp_path, source):
        with pytest.raises(ConfigError, match='holds no screen'):
            Results(place)
    (tmp_path / 'web').mkdir()
    (tmp_path / 'web/manifest.json').write_text('{"name": "another program"}')
    with pytest.raises(ConfigError, match='is not that of a screen'):
        screen(source, tmp_path / 'web', model=tiny_model)
    (tmp_path / 'empty.extxyz').write_text('')
    with pytest.raises(ConfigError, match='holds no structure'):
        screen(tmp_path / 'empty.extxyz', tmp_path / 'out', model=tiny_model)


def test_parts_of_a_screen_make_the_whole(source, tmp_path, tiny_model):
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    screen(source, whole, model=tiny_model, pack=10)
    for number in (2, 3, 1):
        done = screen(source, parts, model=tiny_model, pack=10, shard=(number, 3))
        assert not done.stopped
    assert done.n_done == 240
    a, b = frame(whole), frame(parts)
    assert a.id.tolist() == b.id.tolist()
    np.testing.assert_allclose(a.volume_ratio, b.volume_ratio, rtol=1e-6)


def test_halves_packs_that_do_not_fit_into_memory(
    source, tmp_path, tiny_model, monkeypatch
):
    from ase_deeprelax.predict import batches

    whole, run_model = [], batches.run_model

    def short_of_memory(model, graph):
        if graph.n_graphs > 8:
            whole.append(graph.n_graphs)
            raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB')
        return run_model(model, graph)

    monkeypatch.setattr(batches, 'run_model', short_of_memory)
    done = screen(source, tmp_path / 'out', model=tiny_model, pack=100)
    assert whole
    assert (done.n_done, done.n_quarantined) == (240, 0)


def test_relaxed_structures_are_a_source_again(source, tmp_path, tiny_model):
    done = screen(source, tmp_path / 'out', model=tiny_model, pack=100)
    again = screen(tmp_path / 'out/packs', tmp_path / 'again', model=tiny_model)
    assert again.n_done == done.n_done
    assert frame(tmp_path / 'again').id[0] == 'many.extxyz@0'


def test_names_of_files_need_not_be_utf_8(tmp_path, tiny_model):
    folder = tmp_path / 'in'
    folder.mkdir()
    name = os.fsdecode(b'M\xf6bius.cif')
    write(tmp_path / 'a.cif', bulk('NaCl', 'rocksalt', a=5.5))
    try:
        (tmp_path / 'a.cif').rename(folder / name)
    except OSError:
        pytest.skip('this file system takes no such names')
    with tarfile.open(tmp_path / 'in.tar', 'w') as archive:
        archive.add(folder / name, name)
    for number, source in enumerate((folder, tmp_path / 'in.tar')):
        done = screen(source, tmp_path / f'{number}', model=tiny_model)
        assert done.results.table()['id'].to_pylist() == [r'M\udcf6bius.cif']
        assert screen(source, tmp_path / f'{number}', model=tiny_model) == done


def test_a_source_that_loses_structures_meanwhile_is_named(source):
    plan = Plan(n_structures=300, pack=100)
    packs = read_packs(open_source(source), plan, range(3))
    assert [len(list(items)) for _, items in islice(packs, 2)] == [100, 100]
    _, items = next(packs)
    with pytest.raises(
        ConfigError, match=r'many.extxyz was changed .* number 240 any more'
    ):
        list(items)
