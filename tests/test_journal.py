import json
import multiprocessing

import pytest

from ase_deeprelax.errors import ConfigError, DeepRelaxError
from ase_deeprelax.journal import Journal

SETTINGS = {'fmax': 0.05, 'relax_cell': None}


@pytest.fixture
def path(tmp_path):
    """A journal with two records."""
    path = tmp_path / 'new/runs.jsonl'
    with Journal(path, SETTINGS) as journal:
        journal.add(('a',), {'steps': 1})
        journal.add(('b', 'FIRE'), {'steps': 2})
    return path


def test_records_are_there_the_next_time(path):
    with Journal(path, SETTINGS) as journal:
        assert journal['b', 'FIRE'] == {'steps': 2}
        assert ('c',) not in journal
        journal.add(('c',), [1, 2])
    with Journal(path, SETTINGS) as journal:
        assert journal['c',] == [1, 2]


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'fmax': 0.1, 'relax_cell': None}, 'with fmax 0.05, now it is 0.1'),
        ({'fmax': 0.05}, 'with relax_cell None, now it is missing'),
        ({**SETTINGS, 'model': None}, 'with model missing, now it is None'),
        ({}, 'with fmax 0.05, now it is missing'),
        (None, 'with fmax 0.05, now it is missing'),
    ],
)
def test_other_settings_are_refused_also_where_one_was_dropped_or_added(
    path, settings, message
):
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=message):
        Journal(path, settings)
    assert path.read_bytes() == before
    with Journal(path, SETTINGS):  # the refusal has left it free
        pass


def test_a_torn_line_is_cut_off_and_nothing_else_is_written_again(path):
    text = path.read_text()
    for torn in ('{"key":["c"],"rec', '{"key":["c"],"record":1}'):
        path.write_text(text + torn)
        inode = path.stat().st_ino
        with Journal(path, SETTINGS) as journal:
            assert ('c',) not in journal
            assert journal['a',] == {'steps': 1}
        assert path.read_text() == text
        assert path.stat().st_ino == inode


def test_a_kill_in_the_first_line_leaves_an_empty_journal(path):
    path.write_text('{"settings":{"fm')
    with Journal(path, SETTINGS) as journal:
        journal.add(('a',), 1)
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    'text', ['dear diary', 'dear diary\n', '{"a": 1}', '{"a": 1}\n', '[1]\n', '5\n', '\n']
)
def test_files_of_others_are_refused_and_kept(tmp_path, text):
    path = tmp_path / 'notes.txt'
    path.write_text(text)
    with pytest.raises(ConfigError, match=r'no settings|not a journal'):
        Journal(path)
    assert path.read_text() == text


def test_files_written_before_are_read(path):
    lines = [
        {'settings': SETTINGS},
        {'key': ['a'], 'record': {'steps': 7}},
    ]
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    with Journal(path, SETTINGS) as journal:
        assert journal['a',] == {'steps': 7}


def test_numbers_that_are_not_finite_become_null(path):
    with Journal(path, SETTINGS) as journal:
        record = {'energy': float('nan'), 'curve': [[float('inf'), 1.5]], 'ok': True}
        kept = journal.add(('d',), record)
    assert kept == {'energy': None, 'curve': [[None, 1.5]], 'ok': True}

    def no_constants(name):
        raise AssertionError(name)

    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=no_constants)
    with Journal(path, SETTINGS) as journal:
        assert journal['d',] == kept


def key_of(record):
    return (record['k'],)


def test_lines_may_be_the_records_themselves(tmp_path):
    path = tmp_path / 'new' / 'lines.jsonl'
    with Journal(path, key_of=key_of) as journal:
        journal.add((1,), {'k': 1})
        journal.add(('å',), {'k': 'å'})
    assert path.read_text() == '{"k":1}\n{"k":"\\u00e5"}\n'
    with Journal(path, key_of=key_of) as journal:
        assert list(journal) == [(1,), ('å',)]


@pytest.mark.parametrize('torn', ['{"k": 3', '{"k": 3}', '\x00\x00'])
def test_a_torn_line_of_records_is_cut_off(tmp_path, torn):
    path = tmp_path / 'lines.jsonl'
    whole = ''.join(json.dumps({'k': k}) + '\n' for k in range(3))
    path.write_text(whole + torn)
    before = path.stat().st_ino
    with Journal(path, key_of=key_of) as journal:
        assert list(journal) == [(0,), (1,), (2,)]
        journal.add((9,), {'k': 9})
    assert path.read_text() == whole + '{"k":9}\n'
    assert path.stat().st_ino == before


@pytest.mark.parametrize('text', ['Dear diary\nunfinished', '{"other": 1}\nunfinished'])
def test_files_of_others_are_not_cut(tmp_path, text):
    path = tmp_path / 'notes.txt'
    path.write_text(text)
    with pytest.raises(ConfigError, match=r'notes\.txt: (not JSON lines|a line is none)'):
        Journal(path, key_of=key_of)
    assert path.read_text() == text


def test_what_is_there_is_not_made_again(path):
    with Journal(path, SETTINGS) as journal:
        assert journal.once(('a',), lambda: 1 / 0) == {'steps': 1}
        assert journal.once(('c',), lambda: {'steps': 3}) == {'steps': 3}
    with Journal(path, SETTINGS) as journal:
        assert journal['c',] == {'steps': 3}


def _open(path, found):
    try:
        Journal(path, SETTINGS)
    except DeepRelaxError as error:
        found.put(str(error))
    else:
        found.put('opened')


def test_a_second_process_is_turned_away_while_the_first_one_writes(path):
    pytest.importorskip('fcntl')
    context = multiprocessing.get_context('spawn')
    found = context.Queue()

    def second():
        process = context.Process(target=_open, args=(path, found))
        process.start()
        answer = found.get(timeout=60)
        process.join()
        return answer

    with Journal(path, SETTINGS) as journal:
        assert 'another process' in second()
        journal.add(('c',), 3)
    assert second() == 'opened'


def test_a_full_disk_is_told_by_name_and_finished_records_stay(path, largest_file):
    journal = Journal(path, SETTINGS)
    full = largest_file(path.stat().st_size + 100)
    with full, pytest.raises(OSError, match=r'runs\.jsonl'), journal:
        journal.add(('c',), 'x' * 50_000)
    with Journal(path, SETTINGS) as journal:
        assert list(journal) == [('a',), ('b', 'FIRE')]
        journal.add(('c',), 'x' * 50_000)
    with Journal(path, SETTINGS) as journal:
        assert len(list(journal)) == 3
