"""Restart files: whole at any moment, of the right structure, of this version."""

import json
import os
import warnings

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms
from ase.optimize import RestartError

from ase_deeprelax import DeepRelaxOptimizer, Stage, keys
from ase_deeprelax.errors import ConfigError, DeepRelaxWarning
from tests.alloys import alloy_with_emt as alloy


@pytest.fixture
def begun(tiny_model, tmp_path):
    """A restart file after three steps, in a folder that was not there."""
    path = tmp_path / 'new' / 'restart.json'
    DeepRelaxOptimizer(alloy(), path, None, model=tiny_model).run(fmax=0.01, steps=3)
    return path


def test_a_write_that_fails_leaves_the_former_file_whole(tiny_model, begun, monkeypatch):
    before = begun.read_bytes()

    def full(descriptor):
        raise OSError('no space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='no space'):
        DeepRelaxOptimizer(alloy(), begun, None, model=tiny_model).run(steps=1)
    assert begun.read_bytes() == before
    assert list(begun.parent.iterdir()) == [begun]


def test_atoms_that_are_elsewhere_stay_there(tiny_model, begun):
    """They are moved to where the run stopped only from where it began."""
    atoms = alloy()
    atoms.positions[1] += [0.0, 0.05, 0.0]
    before = atoms.copy()
    optimizer = DeepRelaxOptimizer(atoms, begun, None, model=tiny_model)
    optimizer.run(fmax=0.01, steps=0)
    assert np.array_equal(atoms.positions, before.positions)
    assert np.array_equal(atoms.cell.array, before.cell.array)
    same = alloy()
    DeepRelaxOptimizer(same, begun, None, model=tiny_model).run(fmax=0.01, steps=0)
    assert not np.array_equal(same.positions, alloy().positions)


def test_a_file_of_another_start_is_not_used(tiny_model, begun):
    """As where a loop over structures of one composition names one file for all."""
    alone, atoms = alloy(), alloy()
    for one in (alone, atoms):
        one.rattle(0.1, seed=5)
    DeepRelaxOptimizer(alone, logfile=None, model=tiny_model).run(fmax=0.01)
    optimizer = DeepRelaxOptimizer(atoms, begun, None, model=tiny_model)
    with pytest.warns(DeepRelaxWarning, match='is of another start.*begin anew'):
        assert optimizer.run(fmax=0.01)
    assert np.array_equal(atoms.positions, alone.positions)
    assert [record.name for record in optimizer.stages] == ['prediction', 'emt']


def test_a_file_is_taken_up_by_the_first_run_alone(tiny_model, begun):
    """The second one goes on from where the first one ended."""
    optimizer = DeepRelaxOptimizer(alloy(), begun, None, model=tiny_model)
    with warnings.catch_warnings():
        warnings.simplefilter('error', DeepRelaxWarning)  # it would be of another start
        assert optimizer.run(fmax=0.05) is True
        taken = optimizer.nsteps
        assert optimizer.run(fmax=1e-3) is True
    assert optimizer.nsteps > taken
    assert [record.name for record in optimizer.stages] == ['prediction', 'emt', 'emt']


def test_what_became_of_the_prediction_is_told_after_it_too(tiny_model, begun):
    whole, atoms = alloy(), alloy()
    DeepRelaxOptimizer(whole, None, None, model=tiny_model).run(fmax=0.01)
    DeepRelaxOptimizer(atoms, begun, None, model=tiny_model).run(fmax=0.01)
    assert whole.info[keys.STAGE] == 'ElasticBFGS (prediction rolled back)'
    assert atoms.info[keys.STAGE] == whole.info[keys.STAGE]


def test_a_single_step_takes_it_up_too(tiny_model, begun):
    optimizer = DeepRelaxOptimizer(alloy(), begun, None, model=tiny_model)
    optimizer.step()
    assert optimizer.stages[-1].steps == 4  # three of them before it was stopped


def test_numbers_per_atom_come_back_with_the_structure(calibrated_model, tmp_path):
    options = {'model': calibrated_model, 'energy_gate': None, 'logfile': None}
    options['restart'] = tmp_path / 'restart.json'
    stopped, again = alloy(), alloy()
    DeepRelaxOptimizer(stopped, **options).run(fmax=1e-3, steps=2)
    DeepRelaxOptimizer(again, **options).run(fmax=1e-3, steps=0)
    for name in (keys.SIGMA, keys.POSITION_90):
        np.testing.assert_array_equal(again.arrays[name], stopped.arrays[name])


def test_files_of_the_version_before_are_refused_with_the_way_out(tiny_model, tmp_path):
    path = tmp_path / 'restart.json'
    names = ('began', 'atoms', 'info', 'prediction', 'chain')
    path.write_text(json.dumps(dict.fromkeys(names)))
    with pytest.raises(RestartError, match=r'ase_deeprelax 0\.1.*delete'):
        DeepRelaxOptimizer(alloy(), path, None, model=tiny_model).run()


STAGES = [
    Stage(EMT, fmax=0.3, optimizer='FIRE'),
    Stage(EMT, fmax=1e-3, relax_cell=False),
]


@pytest.mark.parametrize(
    'other',
    [
        {'refine': [STAGES[0], Stage(EMT, fmax=1e-3)]},
        {'refine': [STAGES[0], Stage(EMT, optimizer='BFGS', relax_cell=False)]},
        {'refine': [STAGES[0], Stage(LennardJones, relax_cell=False)]},
        {'refine': STAGES[:1]},
        {},
    ],
    ids=['cell', 'optimizer', 'calculator', 'one stage', 'no stage'],
)
def test_another_refinement_is_refused_and_the_file_kept(tiny_model, tmp_path, other):
    options = {'model': tiny_model, 'logfile': None, 'restart': tmp_path / 'restart.json'}
    stopped = DeepRelaxOptimizer(alloy(), refine=STAGES, energy_gate=None, **options)
    while len(stopped.stages) < 3:
        stopped.run(steps=1)
    before, atoms = options['restart'].read_bytes(), alloy()
    atoms.calc = None
    optimizer = DeepRelaxOptimizer(atoms, **options, **other)
    for _ in range(2):  # the second run does not begin anew over the file
        with pytest.raises(RestartError, match=r'stage 2, EMT with ElasticBFGS.*delete'):
            optimizer.run()
    assert np.array_equal(atoms.positions, alloy().positions)
    assert options['restart'].read_bytes() == before


def changed(atoms, how):
    if how == 'fixed':
        atoms.set_constraint(FixAtoms([0]))
    else:
        getattr(atoms, f'set_initial_{how}')(range(len(atoms)))
    return atoms


@pytest.mark.parametrize('how', ['fixed', 'magnetic_moments', 'charges'])
def test_atoms_that_are_held_or_computed_otherwise_are_refused(tiny_model, tmp_path, how):
    """They would be moved to where the others ended, and called converged."""
    options = {'model': tiny_model, 'logfile': None, 'restart': tmp_path / 'restart.json'}
    assert DeepRelaxOptimizer(changed(alloy(), how), refine=EMT(), **options).run()
    before, atoms = options['restart'].read_bytes(), alloy()
    optimizer = DeepRelaxOptimizer(atoms, refine=EMT(), **options)
    for _ in range(2):
        with pytest.raises(RestartError, match='set the same ones, or delete'):
            optimizer.run()
    assert np.array_equal(atoms.positions, alloy().positions)
    assert options['restart'].read_bytes() == before
    same = DeepRelaxOptimizer(changed(alloy(), how), refine=EMT(), **options)
    assert same.run()
    assert same.nsteps == 0


def test_stages_to_come_may_be_others(tiny_model, tmp_path):
    options = {'model': tiny_model, 'logfile': None, 'restart': tmp_path / 'restart.json'}
    DeepRelaxOptimizer(alloy(), refine=STAGES[:1], **options).run()
    atoms = alloy()
    longer = DeepRelaxOptimizer(atoms, refine=STAGES, **options)
    assert longer.run()
    names = [record.optimizer for record in longer.stages]
    assert names == ['', 'FIRE', 'ElasticBFGS']
    assert np.abs(atoms.get_forces()).max() < 1e-3


def test_positions_that_are_not_finite_are_never_converged(tiny_model):
    class Flat(EMT):
        """No forces anywhere, and no look at the positions."""

        def calculate(self, atoms=None, properties=(), system_changes=()):
            self.results = {
                'energy': 0.0,
                'free_energy': 0.0,
                'forces': np.zeros((len(atoms), 3)),
                'stress': np.zeros(6),
            }

    atoms = alloy()
    atoms.calc = Flat()
    optimizer = DeepRelaxOptimizer(atoms, None, None, model=tiny_model)
    assert optimizer.run(fmax=0.05)
    atoms.positions[0, 0] = np.nan
    assert optimizer.converged() is False
    assert optimizer.gradient_converged(np.zeros(3 * len(atoms))) is False
    atoms.positions[0, 0] = 0.0
    assert optimizer.gradient_converged(np.zeros(3 * len(atoms))) is True
    atoms.cell[1, 2] = np.nan
    assert optimizer.gradient_converged(np.zeros(3 * len(atoms))) is False


def test_a_restart_file_that_cannot_be_written_is_told_before_anything_moves(
    tiny_model, tmp_path
):
    (tmp_path / 'file').write_text('')
    atoms = bulk('Cu', a=3.7)
    before = atoms.cell.array.copy()
    optimizer = DeepRelaxOptimizer(
        atoms,
        restart=tmp_path / 'file' / 'state.json',
        refine=EMT(),
        model=tiny_model,
        logfile=None,
    )
    with pytest.raises(ConfigError, match='cannot be written'):
        optimizer.run(steps=2)
    assert np.array_equal(atoms.cell.array, before)
