"""matcalc takes the class as it takes ASE's own, unmodified."""

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT

from ase_deeprelax.optimize.optimizer import DeepRelaxOptimizer

matcalc = pytest.importorskip(
    'matcalc', reason='matcalc is not installed: pip install matcalc'
)


@pytest.fixture
def optimizer(tiny_model):
    class Ours(DeepRelaxOptimizer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, model=tiny_model, **kwargs)

    return Ours


def gold():
    atoms = bulk('Au', a=4.2, cubic=True)
    atoms.rattle(0.05, seed=0)
    return atoms


@pytest.mark.parametrize('relax_cell', [True, False])
@pytest.mark.parametrize('fix', [{}, {'fix_atoms': [0]}, {'fix_symmetry': True}])
def test_relax_calc(optimizer, relax_cell, fix, tmp_path):
    start = gold() if 'fix_symmetry' not in fix else bulk('Au', a=4.2, cubic=True)
    calc = matcalc.RelaxCalc(
        EMT(),
        optimizer=optimizer,
        relax_cell=relax_cell,
        fmax=0.05,
        traj_file=str(tmp_path / 'relax.traj'),
        **fix,
    )
    result = calc.calc(start)
    # matcalc compares bare forces with fmax; ASE's cell filter, by which every optimizer
    # stops, compares forces times the deformation of the cell, here up to 10 %.
    assert result['max_force'] <= (0.055 if relax_cell else 0.05)
    if relax_cell:
        assert result['volume'] == pytest.approx(4 * 16.73, rel=0.02)
    else:
        assert result['volume'] == pytest.approx(start.cell.volume, rel=1e-12)
    assert np.isfinite(result['energy'])


def test_default_model():
    """The line of the documentation, with the shipped model."""
    calc = matcalc.RelaxCalc(EMT(), optimizer=DeepRelaxOptimizer)
    assert calc.calc(gold())['is_converged']
