import json
import multiprocessing

import pytest

from ase_deeprelax.compare.results_cache import ResultsCache
from ase_deeprelax.errors import ConfigError, DeepRelaxError

SETTINGS = {'fmax': 0.05, 'relax_cell': None}


@pytest.fixture
def path(tmp_path):
    """A cache with two records."""
    path = tmp_path / 'new/runs.jsonl'
    with ResultsCache(path, SETTINGS) as cache:
        cache.add(('a',), {'steps': 1})
        cache.add(('b', 'FIRE'), {'steps': 2})
    return path


def test_records_are_there_the_next_time(path):
    with ResultsCache(path, SETTINGS) as cache:
        assert cache['b', 'FIRE'] == {'steps': 2}
        assert ('c',) not in cache
        cache.add(('c',), [1, 2])
    with ResultsCache(path, SETTINGS) as cache:
        assert cache['c',] == [1, 2]


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
        ResultsCache(path, settings)
    assert path.read_bytes() == before
    with ResultsCache(path, SETTINGS):  # the refusal has left it free
        pass


def test_a_torn_line_is_cut_off_and_nothing_else_is_written_again(path):
    text = path.read_text()
    for torn in ('{"key":["c"],"rec', '{"key":["c"],"record":1}'):
        path.write_text(text + torn)
        inode = path.stat().st_ino
        with ResultsCache(path, SETTINGS) as cache:
            assert ('c',) not in cache
            assert cache['a',] == {'steps': 1}
        assert path.read_text() == text
        assert path.stat().st_ino == inode


def test_a_kill_in_the_first_line_leaves_an_empty_cache(path):
    path.write_text('{"settings":{"fm')
    with ResultsCache(path, SETTINGS) as cache:
        cache.add(('a',), 1)
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    'text', ['dear diary', 'dear diary\n', '{"a": 1}', '{"a": 1}\n', '[1]\n', '\n']
)
def test_files_of_others_are_refused_and_kept(tmp_path, text):
    path = tmp_path / 'notes.txt'
    path.write_text(text)
    with pytest.raises(ConfigError, match=r'no settings|not a journal'):
        ResultsCache(path)
    assert path.read_text() == text


def test_files_written_before_are_read(path):
    lines = [
        {'settings': SETTINGS},
        {'key': ['a'], 'record': {'steps': 7}},
    ]
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    with ResultsCache(path, SETTINGS) as cache:
        assert cache['a',] == {'steps': 7}


def test_numbers_that_are_not_finite_become_null(path):
    with ResultsCache(path, SETTINGS) as cache:
        record = {'energy': float('nan'), 'curve': [[float('inf'), 1.5]], 'ok': True}
        kept = cache.add(('d',), record)
    assert kept == {'energy': None, 'curve': [[None, 1.5]], 'ok': True}

    def no_constants(name):
        raise AssertionError(name)

    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=no_constants)
    with ResultsCache(path, SETTINGS) as cache:
        assert cache['d',] == kept


def _open(path, found):
    try:
        ResultsCache(path, SETTINGS)
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

    with ResultsCache(path, SETTINGS) as cache:
        assert 'another process' in second()
        cache.add(('c',), 3)
    assert second() == 'opened'
