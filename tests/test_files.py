import json

import pytest

from ase_deeprelax.errors import PairFileError
from ase_deeprelax.files import JsonLines


def test_records_come_back(tmp_path):
    path = tmp_path / 'new' / 'lines.jsonl'
    with JsonLines(path) as lines:
        assert lines.records == []
        lines.add({'k': 1})
        lines.add({'k': 'å'})
    with JsonLines(path) as lines:
        assert lines.records == [{'k': 1}, {'k': 'å'}]


@pytest.mark.parametrize('torn', ['{"k": 3', '{"k": 3}', '\x00\x00'])
def test_torn_last_line_is_cut_off_and_the_rest_is_not_written_again(tmp_path, torn):
    path = tmp_path / 'lines.jsonl'
    whole = ''.join(json.dumps({'k': k}) + '\n' for k in range(3))
    path.write_text(whole + torn)
    before = path.stat().st_ino
    with JsonLines(path) as lines:
        assert [record['k'] for record in lines.records] == [0, 1, 2]
        lines.add({'k': 9})
    assert path.read_text() == whole + '{"k":9}\n'
    assert path.stat().st_ino == before


def test_file_is_cut_only_once_it_is_known_to_be_json_lines(tmp_path):
    path = tmp_path / 'notes.txt'
    path.write_text('Dear diary\nunfinished')
    with pytest.raises(PairFileError, match=r'notes\.txt: not JSON lines'):
        JsonLines(path)
    assert path.read_text() == 'Dear diary\nunfinished'


def test_file_has_one_writer(tmp_path):
    path = tmp_path / 'lines.jsonl'
    with JsonLines(path), pytest.raises(PairFileError, match='another process'):
        JsonLines(path)
    with JsonLines(path):
        pass
