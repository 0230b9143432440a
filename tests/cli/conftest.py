"""What the tests of the command line share."""

import pytest
from ase.build import bulk
from typer.testing import CliRunner

from ase_deeprelax.cli import app
from ase_deeprelax.data.pairs import make_pair, write_pairs


@pytest.fixture(scope='session')
def run():
    """A command and its options, as a user would write them; its output and exit code."""

    def run(*words, **kwargs):
        words = [str(word) for word in words]
        return CliRunner().invoke(app, words, prog_name='deeprelax', **kwargs)

    return run


@pytest.fixture
def pairs_file(tmp_path):
    pairs = []
    for k, name in enumerate(('NaCl', 'KBr', 'MgO', 'LiF', 'CaO', 'AgCl')):
        before, after = (bulk(name, 'rocksalt', a=a) for a in (5.3, 5.1 + 0.1 * k))
        pairs.append(make_pair(f'pair-{k}', before, after, split='train'))
    file = tmp_path / 'pairs.jsonl.gz'
    write_pairs(file, pairs)
    return file
