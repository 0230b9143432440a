"""quacc takes the class as it takes ASE's own, unmodified."""

import numpy as np
import pytest
from ase.build import bulk

from ase_deeprelax.optimize.optimizer import DeepRelaxOptimizer

quacc = pytest.importorskip('quacc', reason='quacc is not installed: pip install quacc')


@pytest.fixture
def relax_job(tmp_path):
    from quacc import change_settings
    from quacc.recipes.emt.core import relax_job

    with change_settings(
        {'RESULTS_DIR': tmp_path, 'SCRATCH_DIR': None, 'GZIP_FILES': False}
    ):
        yield relax_job


def gold():
    atoms = bulk('Au', a=4.2) * (2, 1, 1)
    atoms.rattle(0.05, seed=0)
    return atoms


@pytest.mark.parametrize('relax_cell', [True, False])
def test_relax_job(relax_job, relax_cell, tiny_model):
    start = gold()
    doc = relax_job(
        start,
        relax_cell=relax_cell,
        opt_params={
            'optimizer': DeepRelaxOptimizer,
            'optimizer_kwargs': {'model': str(tiny_model)},
        },
    )
    assert doc['converged']
    assert doc['parameters_opt']['optimizer'] == 'DeepRelaxOptimizer'
    assert doc['parameters_opt']['refinement'] == 'ElasticBFGS'
    assert len(doc['trajectory']) == len(doc['trajectory_results']) > 1
    moved = not np.array_equal(doc['atoms'].cell.array, start.cell.array)
    assert moved == relax_cell
    assert doc['atoms'].info['deeprelax_stage'].startswith('ElasticBFGS')


def test_default_model(relax_job):
    """The line of the documentation, with the shipped model."""
    doc = relax_job(gold(), relax_cell=True, opt_params={'optimizer': DeepRelaxOptimizer})
    assert doc['converged']
