"""Where screens of the tests run, and what must have become of them."""

import os
import sys
from pathlib import Path

import pandas as pd

import ase_deeprelax

ROOT = Path(ase_deeprelax.__file__).parents[1]
RECIPES = ROOT / 'tutorials/screening'
N = 240  # structures of the fixture `source`


def environment(*folders):
    """Variables for a process that uses this package, and the code of these folders."""
    places = os.pathsep.join(map(str, (*folders, ROOT)))
    programs = Path(sys.executable).parent
    path = f'{programs}{os.pathsep}{os.environ.get("PATH", os.defpath)}'
    return os.environ | {'PYTHONPATH': places, 'PATH': path, 'OMP_NUM_THREADS': '1'}


def rows(out):
    """All rows, read as a user of pandas would, without times."""
    found = pd.read_parquet(out / 'packs').sort_values('position', ignore_index=True)
    return found.drop(columns=['seconds', 'finished', 'atoms'])


def assert_complete(out):
    """Every structure of the fixture `source` is there, once, and relaxed."""
    found = rows(out)
    assert found.id.tolist() == [f'many.extxyz@{k}' for k in range(N)]
    assert found.ok.all()


def assert_same(out, undisturbed):
    """The ids of an undisturbed screen, once each, and its numbers."""
    pd.testing.assert_frame_equal(rows(out), undisturbed, rtol=1e-4, atol=1e-5)


def half_written(out):
    """Files of packs that were not finished."""
    return list((out / 'packs').glob('.*'))
