"""Real screens that are killed, starved and doubled: every structure is there once."""

import errno
import os
import signal
import sqlite3
import subprocess
import tempfile
import zipfile
from contextlib import closing

import pandas as pd
import psutil
import pytest
from ase.build import bulk
from ase.db import connect
from ase.io import write

from ase_deeprelax import screen
from ase_deeprelax.errors import ConfigError, StructureError
from ase_deeprelax.screening.store import Store
from tests.screening.screens import assert_same, half_written, rows


def test_killed_twice_it_ends_with_the_same_rows(
    command, packs_there, source, tmp_path, undisturbed
):
    out = tmp_path / 'out'
    for count in (3, 9):
        process = command(source, out)
        packs_there(process, out, count)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    half = out / 'packs' / '.000019.parquet.1'
    half.write_bytes(b'PAR1')  # as a kill in the middle of writing leaves it
    process = command(source, out)
    output, _ = process.communicate()
    assert process.returncode == 0
    assert '240 of 240 structures done, 0 of them quarantined' in output
    assert not half_written(out)
    assert_same(out, undisturbed)


# Something happens inside of the k-th call of a step of writing.
AT_CALL = """
import errno, os, signal
from pathlib import Path
from ase_deeprelax import files
calls, real = [0], {step}
def faulty(*args, **options):
    calls[0] += 1
    if calls[0] == {k}:
        {happens}
    return real(*args, **options)
{step} = faulty
"""
KILL = 'os.kill(os.getpid(), signal.SIGKILL)'
NO_SPACE = 'raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))'


@pytest.mark.parametrize(
    ('step', 'k'),
    [('os.fsync', 2), ('os.fsync', 5), ('Path.replace', 1), ('Path.replace', 3)],
)
def test_killed_while_it_writes(command, source, tmp_path, undisturbed, step, k):
    out = tmp_path / 'out'
    assert (
        command(source, out, before=AT_CALL.format(step=step, k=k, happens=KILL)).wait()
        == -9
    )
    assert command(source, out).wait() == 0
    assert_same(out, undisturbed)


def test_sigterm_finishes_the_pack_and_says_how_to_go_on(
    command, packs_there, source, tmp_path, undisturbed
):
    out = tmp_path / 'out'
    process = command(source, out)
    packs_there(process, out, 2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 143
    assert 'stopped by SIGTERM after a whole pack; the same command goes on' in errors
    assert 2 <= len(Store(out).done()) < 20
    assert not half_written(out)
    assert not list(out.glob('.stop-*'))
    assert command(source, out).wait() == 0
    assert_same(out, undisturbed)


FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))
"""


def test_full_disk_leaves_finished_packs(command, source, tmp_path, undisturbed):
    out = tmp_path / 'out'
    command(source, out, pack=12).wait()
    sizes = sorted(file.stat().st_size for file in (out / 'packs').iterdir())
    for file in (out / 'packs').iterdir():
        file.unlink()
    # Files may be as large as most packs are, but not as the largest.
    process = command(source, out, before=FULL.format(size=sizes[-2]))
    _, errors = process.communicate()
    assert process.returncode == 1
    assert 'File too large' in errors
    assert 'Make room and give the same command again' in errors
    assert 'Traceback' not in errors
    assert not half_written(out)
    n_done = 12 * len(Store(out).done())
    assert f'{n_done} of 240 structures are there' in errors
    assert command(source, out).wait() == 0
    assert_same(out, undisturbed)


@pytest.mark.parametrize('step', ['os.fsync', 'Path.replace'])
def test_disk_that_is_full_only_when_a_pack_is_synced_or_named(
    command, source, tmp_path, undisturbed, step
):
    out = tmp_path / 'out'
    before = AT_CALL.format(step=step, k=9, happens=NO_SPACE)
    process = command(source, out, before=before)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert 'No space left on device' in errors
    assert 'Make room and give the same command again' in errors
    assert not half_written(out)
    assert 0 < len(Store(out).done()) < 20
    assert command(source, out).wait() == 0
    assert_same(out, undisturbed)


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / 'disk'
    disk.mkdir()
    made = ['mount', '-t', 'tmpfs', '-o', 'size=96k', 'tmpfs', str(disk)]
    if os.geteuid() or subprocess.run(made, check=False, capture_output=True).returncode:
        pytest.skip('no right to mount a small disk here')
    yield disk
    subprocess.run(['umount', str(disk)], check=True)


def test_no_space_left_on_the_disk(command, small_disk, source, undisturbed):
    out = small_disk / 'out'
    process = command(source, out)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert 'No space left on device' in errors
    assert not half_written(out)
    subprocess.run(['mount', '-o', 'remount,size=8m', str(small_disk)], check=True)
    assert command(source, out).wait() == 0
    assert_same(out, undisturbed)


def test_a_disk_that_is_full_from_the_start_is_named(tmp_path, largest_file):
    full = pytest.raises(OSError, match='File too large')
    with largest_file(0), full as caught, Store(tmp_path / 'out').locked():
        pass
    assert caught.value.filename == str(tmp_path / 'out')


def test_damaged_and_truncated_input_takes_no_other_structure(
    command, source, tmp_path, undisturbed
):
    lines, frames = source.read_text().splitlines(keepends=True), []
    while lines:
        end = int(lines[0]) + 2
        frames.append(lines[:end])
        del lines[:end]
    frames[100][-1] = 'Na 0 0 what\n'
    text = ''.join(line for frame in frames for line in frame)
    source.write_text(text[:-60])
    process = command(source, tmp_path / 'out')
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert '240 of 240 structures done, 2 of them quarantined' in output
    found = rows(tmp_path / 'out')
    assert found.position[~found.ok].tolist() == [100, 239]
    assert 'what' in found.problem[100]
    good = found[found.ok].reset_index(drop=True)
    expected = undisturbed.drop([100, 239]).reset_index(drop=True)
    pd.testing.assert_frame_equal(good, expected, rtol=1e-4, atol=1e-5)


def test_a_second_process_on_one_output_is_refused(
    command, packs_there, source, tmp_path, undisturbed, tiny_model
):
    out = tmp_path / 'out'
    first = command(source, out)
    packs_there(first, out, 1)
    first.send_signal(signal.SIGSTOP)
    for shard in (None, (1, 2)):
        with pytest.raises(ConfigError, match='is writing to it'):
            screen(source, out, model=tiny_model, pack=12, shard=shard)
    with pytest.raises(ConfigError, match=f'process {first.pid} on'):
        screen(source, out, model=tiny_model, pack=12)
    first.send_signal(signal.SIGCONT)
    assert first.wait() == 0
    assert_same(out, undisturbed)


def test_parts_run_beside_each_other_but_none_twice(
    command, packs_there, source, tmp_path, undisturbed, tiny_model
):
    out = tmp_path / 'out'
    first = command(source, out, '--shard', '1/2')
    packs_there(first, out, 1)
    first.send_signal(signal.SIGSTOP)
    for shard in ((1, 2), None):
        with pytest.raises(ConfigError, match='is writing to it'):
            screen(source, out, model=tiny_model, pack=12, shard=shard)
    screen(source, out, model=tiny_model, pack=12, shard=(2, 2))
    first.send_signal(signal.SIGCONT)
    assert first.wait() == 0
    assert_same(out, undisturbed)


# Systems that have no locks, and network file systems that answer that they know none.
NO_FCNTL = 'from ase_deeprelax import files; files.fcntl = None'
NO_LOCKS = """
import errno, fcntl, os
def flock(file, how):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
fcntl.flock = flock
"""


@pytest.mark.parametrize(
    ('before', 'said'), [(NO_FCNTL, ''), (NO_LOCKS, 'start no second run')]
)
def test_nothing_depends_on_locks(command, source, tmp_path, undisturbed, before, said):
    """Two processes at once do no harm."""
    out = tmp_path / 'out'
    both = [command(source, out, before=before) for _ in range(2)]
    for process in both:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert said in errors
    assert_same(out, undisturbed)


def test_clocks_may_differ(command, packs_there, source, tmp_path, undisturbed):
    """Files of another machine, whose clock is years ahead or behind, are as good."""
    out = tmp_path / 'out'
    process = command(source, out)
    packs_there(process, out, 4)
    process.kill()
    process.wait()
    done = sorted((out / 'packs').glob('0*.parquet'))
    for file, time in ((source, 4e9), (out / 'manifest.json', 1e9), (done[0], 4e9)):
        os.utime(file, (time, time))
    kept = [file.stat().st_mtime_ns for file in done]
    assert command(source, out).wait() == 0
    assert [file.stat().st_mtime_ns for file in done] == kept
    assert_same(out, undisturbed)


def test_ctrl_c_leaves_finished_packs(command, packs_there, source, tmp_path, undisturbed):
    out = tmp_path / 'out'
    process = command(source, out)
    packs_there(process, out, 1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert 'the same command goes on from here' in errors
    assert command(source, out).wait() == 0
    assert_same(out, undisturbed)


def children(process):
    """The workers of a screen."""
    found = psutil.Process(process.pid).children()
    return [child for child in found if 'spawn_main' in ' '.join(child.cmdline())]


def test_a_lost_worker_is_replaced(command, packs_there, source, tmp_path, undisturbed):
    out = tmp_path / 'out'
    process = command(source, out, '--workers', 2)
    packs_there(process, out, 2)
    children(process)[0].kill()
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert '240 of 240' in output
    assert_same(out, undisturbed)


def test_workers_end_with_the_process_that_began_them(
    command, packs_there, source, tmp_path
):
    out = tmp_path / 'out'
    process = command(source, out, '--workers', 2)
    packs_there(process, out, 1)
    workers = children(process)
    assert len(workers) == 2
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


def test_sigterm_to_all_processes_of_a_job(
    command, packs_there, source, tmp_path, undisturbed
):
    out = tmp_path / 'out'
    process = command(source, out, '--workers', 2)
    packs_there(process, out, 2)
    workers = children(process)
    assert len(workers) == 2
    for one in (*workers, process):
        one.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 143, errors
    assert 'the same command goes on' in errors
    assert len(Store(out).done()) < 20
    assert command(source, out).wait() == 0
    assert_same(out, undisturbed)


@pytest.mark.parametrize('name', ['large.cif', 'large.extxyz'])
def test_a_full_temporary_folder_quarantines_nothing(
    name, tmp_path, tiny_model, largest_file
):
    """Structures of an archive are unpacked there."""
    write(tmp_path / name, bulk('NaCl', 'rocksalt', a=5.6, cubic=True) * 3)
    with zipfile.ZipFile(tmp_path / 'all.zip', 'w') as archive:
        archive.write(tmp_path / name, name)
    full = largest_file((tmp_path / name).stat().st_size - 100)
    told = pytest.raises(StructureError, match=r'cannot be unpacked .*File too large')
    with full, told:
        screen(tmp_path / 'all.zip', tmp_path / 'out', model=tiny_model)
    done = screen(tmp_path / 'all.zip', tmp_path / 'out', model=tiny_model)
    assert (done.n_done, done.n_quarantined) == (1, 0)


@pytest.fixture
def cifs(tmp_path):
    """A folder of nine crystals."""
    folder = tmp_path / 'cifs'
    folder.mkdir()
    for k in range(9):
        write(folder / f'{k}.cif', bulk('NaCl', 'rocksalt', a=5.3 + 0.05 * k))
    return folder


@pytest.fixture
def after_a_pack(monkeypatch):
    """Let something happen once, behind the first pack that is written."""

    def after_a_pack(happen):
        def write_pack(store, pack, rows):
            monkeypatch.undo()
            store.write(pack, rows)
            happen()

        monkeypatch.setattr(Store, 'write', write_pack)

    return after_a_pack


def test_a_disk_that_is_away_for_a_while_quarantines_nothing(
    cifs, tmp_path, tiny_model, after_a_pack
):
    out = tmp_path / 'out'
    after_a_pack(lambda: cifs.rename(tmp_path / 'away'))
    with pytest.raises(StructureError, match=r'2\.cif.* put that right and give the same'):
        screen(cifs, out, model=tiny_model, pack=2)
    (tmp_path / 'away').rename(cifs)
    assert Store(out).done() == {0}
    done = screen(cifs, out, model=tiny_model, pack=2)
    assert (done.n_done, done.n_quarantined) == (9, 0)


@pytest.fixture
def database(tmp_path):
    """A folder with a database of five crystals, for which readers wait a moment only."""
    real = sqlite3.connect

    def impatient(*args, **options):
        return real(*args, **options | {'timeout': 0.1})

    folder = tmp_path / 'data'
    folder.mkdir()
    with connect(folder / 'salts.db') as rows:
        for k in range(5):
            rows.write(bulk('NaCl', 'rocksalt', a=5.3 + 0.05 * k))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, 'connect', impatient)
        yield folder


@pytest.mark.parametrize('begun', [False, True])
def test_a_database_that_is_locked_for_a_while_quarantines_nothing(
    database, tmp_path, tiny_model, after_a_pack, begun
):
    out = tmp_path / 'out'
    with closing(sqlite3.connect(database / 'salts.db')) as other:
        if begun:
            after_a_pack(lambda: other.execute('BEGIN EXCLUSIVE'))
        else:
            other.execute('BEGIN EXCLUSIVE')
        with pytest.raises(StructureError, match=r'salts\.db.*(locked|is writing)'):
            screen(database, out, model=tiny_model, pack=2)
    assert Store(out).done() == ({0} if begun else set())
    done = screen(database, out, model=tiny_model, pack=2)
    assert (done.n_done, done.n_quarantined) == (5, 0)


def test_a_temporary_folder_that_fails_once_makes_no_source_shorter(
    cifs, tmp_path, tiny_model, monkeypatch
):
    with zipfile.ZipFile(tmp_path / 'all.zip', 'w') as archive:
        for name in ('a.extxyz', 'b.extxyz', 'c.extxyz'):
            write(tmp_path / name, bulk('NaCl', 'rocksalt', a=5.5))
            archive.write(tmp_path / name, name)
    made, make = [], tempfile.mkdtemp

    def fail_once(*args, **options):
        made.append(1)
        if len(made) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return make(*args, **options)

    monkeypatch.setattr(tempfile, 'mkdtemp', fail_once)
    with pytest.raises(OSError, match='No space left'):
        screen(tmp_path / 'all.zip', tmp_path / 'out', model=tiny_model)
    done = screen(tmp_path / 'all.zip', tmp_path / 'out', model=tiny_model)
    assert (done.n_structures, done.n_quarantined) == (3, 0)


def test_a_folder_that_grows_when_the_work_begins_is_refused(
    cifs, tmp_path, tiny_model, monkeypatch
):
    """The structures of the first pass over it had other numbers."""
    from ase_deeprelax.screening import run

    def grown(*args):
        write(cifs / '0b.cif', bulk('KBr', 'rocksalt', a=6.5))
        return work(*args)

    out, work = tmp_path / 'out', run.work
    monkeypatch.setattr(run, 'work', grown)
    with pytest.raises(ConfigError, match='was changed during the screen'):
        screen(cifs, out, model=tiny_model, pack=2)
    assert not Store(out).done()
    monkeypatch.undo()
    (cifs / '0b.cif').unlink()
    found = screen(cifs, out, model=tiny_model, pack=2).results
    assert found.table()['id'].to_pylist() == [f'{k}.cif' for k in range(9)]


def test_a_source_that_is_written_to_meanwhile_is_told_at_the_end(
    cifs, tmp_path, tiny_model, after_a_pack
):
    out, file = tmp_path / 'out', cifs / '7.cif'
    after_a_pack(lambda: os.utime(file, (1e9, 1e9)))  # the content is the same
    assert screen(cifs, out, model=tiny_model, pack=2).n_done == 9
    for pack in (out / 'packs').iterdir():
        pack.unlink()
    after_a_pack(lambda: write(file, bulk('KBr', 'rocksalt', a=6.5)))
    with pytest.raises(ConfigError, match='rows may be of either content'):
        screen(cifs, out, model=tiny_model, pack=2)
