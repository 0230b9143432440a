"""What broken models and absent devices get at both public faces."""

import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT

from ase_deeprelax import keys
from ase_deeprelax.errors import (
    DeepRelaxWarning,
    DeviceError,
    ModelError,
    PredictionError,
)
from ase_deeprelax.optimize.elastic_bfgs import ElasticBFGS
from ase_deeprelax.optimize.optimizer import DeepRelaxOptimizer
from ase_deeprelax.predict import relax
from tests.faults.faces import bits, both_faces, crystal, gold, laden, model_that


def nan(said):
    said.displacement[0, 0] = torch.nan


def nan_cell(said):
    said.deformation[0, 1, 1] = torch.nan


def skewed(said):
    said.deformation[0, 0, 1] += 0.1


def turned(said):
    """By half a turn: the volume stays positive."""
    said.deformation[0, :2] *= -1


def contradictory(said):
    said.distance = said.distance * torch.where(said.bond_index % 2 == 0, 3.0, 0.1)
    said.log_b = torch.full_like(said.log_b, -5.0)


def far_too_long(said):
    said.distance = said.distance * 1e30


def no_scale(said):
    said.log_b = torch.full_like(said.log_b, 100.0)


BROKEN = {
    'nan': (nan, 'not finite'),
    'nan cell': (nan_cell, 'not finite'),
    'skewed': (skewed, 'not symmetric and positive definite'),
    'turned': (turned, 'not symmetric and positive definite'),
    'contradictory': (contradictory, r'contradict each other by \d.* A on average'),
    'too long': (far_too_long, 'contradict each other'),
    'scale': (no_scale, 'not finite'),
}


@pytest.mark.parametrize('item', BROKEN)
@both_faces
def test_model_is_broken(face, item):
    spoil, words = BROKEN[item]
    atoms = laden(crystal())
    before = bits(atoms)
    with pytest.raises(PredictionError, match=words):
        face(atoms, model_that(spoil))
    assert bits(atoms) == before


@pytest.mark.parametrize('item', BROKEN)
def test_model_is_broken_with_calculator(item):
    """Then the relaxation is what it would have been without."""
    atoms, plain = gold(), gold()
    atoms.calc, plain.calc = EMT(), EMT()
    optimizer = DeepRelaxOptimizer(atoms, model=model_that(BROKEN[item][0]), logfile=None)
    with pytest.warns(DeepRelaxWarning, match='without a prediction'):
        assert optimizer.run(fmax=0.05) is True
    ElasticBFGS(plain, logfile=None).run(fmax=0.05)
    assert np.array_equal(atoms.positions, plain.positions)


def as_floats(said):
    said.bond_index = said.bond_index.float()


def in_double(said):
    said.log_b = said.log_b.double()


def test_an_output_of_another_form_is_named():
    def cut(output):
        output.displacement = output.displacement[:-1]

    atoms = crystal()
    with pytest.raises(ModelError, match=r'displacement of shape .* must be \(\d+, 3\)'):
        relax(atoms, model=model_that(cut))
    for spoil, words in (
        ({'features': torch.zeros(len(atoms) + 1, 4)}, r'features of shape .* must be \('),
        ({'distance': np.zeros(3)}, 'distance as ndarray; it must be a tensor'),
        ({'displacement': None}, 'displacement as NoneType'),
        ({'cross_index': torch.zeros(3).long()}, 'cross_distance as NoneType'),
    ):
        with pytest.raises(ModelError, match=words):
            relax(atoms, model=model_that(lambda said, new=spoil: vars(said).update(new)))
    for spoil, words in (
        (
            lambda said: said.bond_index.add_(9**6),
            r'bond_index with the edge 5\d+; .* 0 to',
        ),
        (lambda said: said.bond_index.sub_(10**6), r'bond_index with the edge -\d+;'),
        (as_floats, r'bond_index of type torch\.float32; it must be torch\.int64'),
        (in_double, r'log_b of type torch\.float64; it must be torch\.float32'),
    ):
        with pytest.raises(ModelError, match=words):
            relax(atoms, model=model_that(spoil))
    model = model_that(nan)
    model.forward = lambda graph: {'displacement': graph.pos}
    with pytest.raises(ModelError, match='returned dict, not ModelOutput'):
        relax(atoms, model=model)


def test_small_contradictions_are_told():
    model = model_that(lambda said: said.distance.mul_(1.02))
    result = relax(crystal(), model=model)
    assert result.ok
    assert 0 < result.residual < 1
    assert result.atoms.info[keys.RESIDUAL] == result.residual


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a CUDA device')
def test_device_that_is_not_there(tiny_model):
    atoms = laden(gold())
    for calc in (None, EMT()):
        atoms.calc = calc
        before = bits(atoms)
        optimizer = DeepRelaxOptimizer(atoms, model=tiny_model, device='cuda', logfile=None)
        with pytest.raises(DeviceError, match="device='cpu'"):
            optimizer.run()
        assert bits(atoms) == before
