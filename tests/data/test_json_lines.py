"""Files of JSON lines that nobody should have written."""

import gzip
import json
import os
import time

import pytest
from ase.build import bulk

from ase_deeprelax.data.pairs import TRAINED_ON, make_pair, pair_record, read_pairs
from ase_deeprelax.data.relaxed_structures import read_relaxed
from ase_deeprelax.errors import PairFileError

RECORD = pair_record(make_pair('Cu', bulk('Cu', a=3.5), bulk('Cu', a=3.6)))


NOT_NEEDED = {'ok': True, 'split': '', 'scale': 1.0, 'pbc': (True,) * 3, 'src': ''}
NOT_NEEDED |= {'fixed': None, 'fixed_cell': False, 'kind': ''}


def line(**changes):
    return json.dumps(RECORD | changes)


BROKEN = {
    'id': (line(id='mp-\ud800'), 'lone surrogate'),
    'formula': (line(formula='Cu\udfff'), 'the formula .* holds a lone surrogate'),
    'split': (line(split=['train']), 'no pair of split'),
    'deep': ('[' * 100_000, 'not a JSON object'),
    'deep object': ('{"a":' * 100_000, 'not a JSON object'),
    'digits': ('{"numbers": [' + '9' * 10_000 + ']}', 'not a JSON object'),
    'huge number': (line(numbers=[10**30]), r'line 1, id .Cu.'),
    'element': (line(numbers=[0]), 'atom 0 has the atomic number 0'),
    'no element': (line(numbers=[200]), 'atomic number 200'),
    'no number': (line(scale='large'), 'could not convert'),
    'pbc': (line(pbc=5), r'line 1'),
    'fixed': (line(fixed=3), r'line 1'),
    'array': ('[1, 2]', 'a list, not a JSON object'),
    'number': (line() + '\n17', 'line 2: a int, not a JSON object'),
    'cut': (line() + '\n{"id": "p1", "num', 'line 2: not a JSON object'),
    'latin': (b'{"id": "\xe9"}', 'not a JSON object'),
    'nan': (line(cell0=[[float('nan')] * 3] * 3), 'not finite'),
}


def test_null_counts_as_missing(tmp_path):
    """As tables have it that pandas writes as JSON lines."""
    path, empty = tmp_path / 'pairs.jsonl', dict.fromkeys(NOT_NEEDED)
    path.write_text(line(**empty))
    [pair] = read_pairs(path, TRAINED_ON, ok_only=True)
    for name, default in NOT_NEEDED.items():
        assert getattr(pair, name) == default, name
    path.write_text(line(**empty, id='a', formula='Cu'))
    [relaxed] = read_relaxed(path, (), 9)
    assert (relaxed.pbc, relaxed.src) == ((True, True, True), '')
    path.write_text(line(cell1=None))
    with pytest.raises(PairFileError, match="line 1, id 'Cu': the key 'cell1' is missing"):
        read_pairs(path)


@pytest.mark.parametrize('case', BROKEN)
def test_broken_records_are_named_with_their_line(case, tmp_path):
    text, words = BROKEN[case]
    path = tmp_path / 'pairs.jsonl'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(PairFileError, match=words):
        read_pairs(path, 'train' if case == 'split' else None)


@pytest.mark.parametrize('unit', [b'\n', b' ', b'{}\n', b'[', b'{"split":"x"}\n'])
@pytest.mark.parametrize(
    'read',
    [lambda path: read_pairs(path, 'train'), lambda path: read_relaxed(path, (), 100)],
    ids=['pairs', 'relaxed'],
)
def test_gzip_bombs_are_refused_soon(read, unit, tmp_path):
    path = tmp_path / 'bomb.jsonl.gz'
    with gzip.open(path, 'wb', compresslevel=9) as file:
        for _ in range(4):
            file.write(unit * ((1 << 24) // len(unit)))
    begun = time.process_time()
    with pytest.raises(PairFileError, match=r'expands|longer|key|KeyError|empty lines'):
        read(path)
    assert time.process_time() - begun < 3


def test_cut_file_of_relaxed_structures_is_named(tmp_path):
    path = tmp_path / 'known.jsonl.gz'
    path.write_bytes(gzip.compress(f'{line()}\n'.encode() * 100))
    assert len(read_relaxed(path, set(), 10)) == 100
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(PairFileError, match=r'known\.jsonl'):
        read_relaxed(path, set(), 10)


def test_special_files_are_not_opened(tmp_path):
    if not hasattr(os, 'mkfifo'):
        pytest.skip('no named pipes on this system')
    path = tmp_path / 'pairs.jsonl'
    os.mkfifo(path)
    with pytest.raises(PairFileError, match='no regular file'):
        read_pairs(path)


def test_ids_that_no_file_can_hold_are_refused_before_they_are_written():
    with pytest.raises(PairFileError, match='lone surrogate'):
        make_pair('mp-\ud83d', bulk('Cu'), bulk('Cu'))
