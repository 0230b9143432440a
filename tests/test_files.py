"""Links and pipes stay what they are, and names of any text stay in their folder."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ase_deeprelax.errors import ConfigError
from ase_deeprelax.files import (
    check_writable,
    disk_is_full,
    plain_name,
    replaced,
    write_atomically,
)


@pytest.mark.parametrize('there', [True, False])
def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path, there):
    (tmp_path / 'disk').mkdir()
    place, link = tmp_path / 'disk' / 'large.json', tmp_path / 'out.json'
    link.symlink_to('disk/large.json')
    if there:
        place.write_text('before')
    check_writable(link)
    assert link.is_symlink()
    assert place.exists() == there
    write_atomically(link, 'after')
    assert link.is_symlink()
    assert place.read_text() == 'after'
    assert list((tmp_path / 'disk').iterdir()) == [place]


def test_only_content_that_is_synced_has_its_name_synced(tmp_path, monkeypatch):
    """Each time takes milliseconds: minutes for thousands of files."""
    synced = []
    monkeypatch.setattr(os, 'fsync', synced.append)
    with replaced(tmp_path / 'a.cif') as part:
        part.write_text('a crystal')
    assert not synced
    write_atomically(tmp_path / 'a.json', '{}')
    assert len(synced) == 2  # the file, and its folder


def test_a_link_to_a_folder_that_is_not_there_is_refused(tmp_path):
    (tmp_path / 'out.json').symlink_to('disk/large.json')
    with pytest.raises(ConfigError, match=r'out\.json cannot be written: No such file'):
        check_writable(tmp_path / 'out.json')


def test_a_check_makes_no_folder(tmp_path):
    """A command that is refused afterwards leaves none behind."""
    check_writable(tmp_path / 'new' / 'a' / 'out.json')
    assert not list(tmp_path.iterdir())
    (tmp_path / 'note').touch()
    with pytest.raises(ConfigError, match=r'out\.json cannot be written: Not a directory'):
        check_writable(tmp_path / 'note' / 'a' / 'out.json')


@pytest.mark.timeout(60)
def test_a_pipe_is_refused_and_stays(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(ConfigError, match='it is a pipe or a device'):
        check_writable(tmp_path / 'pipe')
    assert (tmp_path / 'pipe').is_fifo()


@given(st.text(max_size=300))
def test_names_of_any_text_stay_in_their_folder(text):
    name = plain_name(text)
    assert name not in ('', '.', '..')
    assert not set(name) & set('/\\\0')
    assert len(os.fsencode(name)) <= 200


def test_a_check_neither_makes_nor_removes_the_file(tmp_path):
    """Another process may make one of this name at the same moment."""
    path, watched = tmp_path / 'pairs.jsonl', []
    watching = True

    def watch(event, args):
        if watching and event in ('open', 'os.remove') and str(args[0]) == str(path):
            watched.append(event)

    sys.addaudithook(watch)
    check_writable(path)
    assert not watched
    path.touch()
    assert watched == ['open']
    watching = False


def test_a_full_disk_leaves_the_former_file_and_is_told_by_name(tmp_path, largest_file):
    path = tmp_path / 'out.json'
    write_atomically(path, 'before')
    with largest_file(1000), pytest.raises(OSError, match=r'out\.json') as caught:
        write_atomically(path, 'x' * 5000)
    assert caught.value.filename == str(path)
    assert disk_is_full(caught.value)
    assert path.read_text() == 'before'
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('name', [f'{"n" * 249}.json', f'{"ü" * 124}.json', 'a b.json'])
def test_a_file_may_have_any_name_that_the_system_takes(tmp_path, name):
    path = tmp_path / name
    check_writable(path)
    for text in ('before', 'after'):
        write_atomically(path, text)
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_threads_that_write_one_file_do_not_mix_their_answers(tmp_path):
    path = tmp_path / 'out.txt'
    with ThreadPoolExecutor(1) as other, replaced(path) as part:
        part.write_text('mine')
        other.submit(write_atomically, path, 'of the other').result()
        assert path.read_text() == 'of the other'
        assert part.read_text() == 'mine'
    assert path.read_text() == 'mine'
    assert list(tmp_path.iterdir()) == [path]
