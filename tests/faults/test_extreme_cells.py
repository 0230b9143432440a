"""No cell ends the process or stops it: each is answered or refused, in about a second.

The structures go through forked processes, so that a crash in native code is a failed test.
``python -m tests.faults.test_extreme_cells 5000`` looks at more of them.
"""

import os
import signal
import sys
import warnings
from contextlib import suppress

import pytest
import torch

from ase_deeprelax.errors import DeepRelaxError
from ase_deeprelax.models import create_model
from ase_deeprelax.optimize.refinable import check_refinable
from ase_deeprelax.predict import relax
from tests.faults.extreme import extreme_cells

PER_PROCESS = 50
# Machines that run tests may be slow: a cell that hangs takes minutes.
SECONDS = 10


def look_at(atoms, model):
    with suppress(DeepRelaxError):
        check_refinable(atoms)
    with suppress(DeepRelaxError):
        relax(atoms, model=model, device='cpu')


def failures(seed, n, model):
    """Cells on which a process died, hung or raised anything but our errors."""
    todo, found = extreme_cells(seed, n), []
    while todo:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            warnings.simplefilter('ignore')
            with suppress(BaseException):
                for atoms in todo:
                    signal.alarm(SECONDS)
                    look_at(atoms, model)
                    os.write(writer, b'.')
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, 'rb') as pipe:
            done = len(pipe.read())
        os.waitpid(pid, 0)
        if done < len(todo):
            found.append((todo[done].cell.tolist(), todo[done].pbc.tolist()))
        todo = todo[done + 1 :]
    return found


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return create_model('paegnn', hidden=16, layers=1)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork on this system')
@pytest.mark.parametrize('seed', range(8))
def test_extreme_cells_are_answered_or_refused(seed, model):
    assert failures(seed, PER_PROCESS, model) == []


if __name__ == '__main__':
    torch.set_num_threads(1)
    for number in range(int(sys.argv[1]) // PER_PROCESS):
        for cell in failures(
            number, PER_PROCESS, create_model('paegnn', hidden=16, layers=1)
        ):
            print(number, *cell)
