"""The two public faces as functions, crystals, and what must not change."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from ase_deeprelax.models.paegnn import PaEGNN
from ase_deeprelax.optimize.optimizer import DeepRelaxOptimizer
from ase_deeprelax.predict import relax
from ase_deeprelax.testing import awaken


def by_function(atoms, model):
    """The relaxed atoms."""
    return relax(atoms, model=model).atoms


def by_optimizer(atoms, model, target=None):
    """The atoms themselves, relaxed."""
    optimizer = DeepRelaxOptimizer(target or atoms, model=model, logfile=None)
    assert optimizer.run(steps=1) is True
    return atoms


both_faces = pytest.mark.parametrize('face', [by_function, by_optimizer])


def crystal():
    """A rattled perovskite of five atoms."""
    atoms = Atoms(
        'SrTiO3',
        scaled_positions=[
            [0, 0, 0],
            [0.5] * 3,
            [0.5, 0.5, 0],
            [0.5, 0, 0.5],
            [0, 0.5, 0.5],
        ],
        cell=[3.95, 3.95, 3.95],
        pbc=True,
    )
    atoms.rattle(0.05, seed=0)
    return atoms


def gold():
    atoms = bulk('Au', cubic=True)
    atoms.rattle(0.1, seed=2)
    return atoms


def bits(atoms):
    """All that must not change where something is refused."""
    return (
        {name: (x.tobytes(), x.dtype, x.shape) for name, x in atoms.arrays.items()},
        atoms.cell.array.tobytes(),
        atoms.pbc.tobytes(),
        atoms.get_celldisp().tobytes(),
        repr(atoms.info),
        [(id(c), repr(c.todict())) for c in atoms.constraints],
        id(atoms.calc),
    )


def laden(atoms):
    """With things on them that a refusal must leave alone."""
    atoms.info.update(name='mine', deeprelax_sigma=0.5)
    atoms.set_tags(range(len(atoms)))
    atoms.set_celldisp([0.1, 0.2, 0.3])
    return atoms


def step(before, after):
    """Deformation and displacement between two structures."""
    deformation = np.linalg.solve(before.cell.array, after.cell.array)
    back = after.positions @ np.linalg.inv(deformation)
    return deformation, back - before.positions


def same(one, two, atol=1e-5):
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


def sparse():
    """Chains of atoms as far from each other as those of a crystal are."""
    return Atoms('Au2', [[0, 0, 0], [0, 0, 2.5]], cell=[6.9, 6.9, 5], pbc=True)


class Says(PaEGNN):
    """A network whose answer is spoilt by a function."""

    def spoil(self, said):
        pass

    def forward(self, graph):
        said = super().forward(graph)
        self.spoil(said)
        return said


def model_that(spoil):
    torch.manual_seed(0)
    model = awaken(Says(hidden=16, layers=1))
    model.spoil = spoil
    return model
