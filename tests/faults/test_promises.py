"""What holds for all structures: same bits, no loss of others, nothing else touched."""

import os
import shutil
import socket
import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

from ase_deeprelax.errors import DeepRelaxWarning, StructureError
from ase_deeprelax.optimize.optimizer import DeepRelaxOptimizer
from ase_deeprelax.predict import Predictor, relax
from tests.faults.faces import (
    bits,
    both_faces,
    by_function,
    by_optimizer,
    crystal,
    gold,
    same,
    sparse,
)


@both_faces
def test_same_input_gives_the_same_bits(face, tiny_model):
    ends = [face(crystal(), tiny_model) for _ in range(3)]
    for one in ends[1:]:
        assert one.positions.tobytes() == ends[0].positions.tobytes()
        assert one.cell.array.tobytes() == ends[0].cell.array.tobytes()
        assert repr(one.info) == repr(ends[0].info)


def test_what_nobody_foresaw_stays_with_its_structure(tiny_model):
    """Constraints and subclasses may raise anything."""

    class Strict(Atoms):
        def __init__(self, name, *args, **kwargs):
            super().__init__(*args, **kwargs)

    class Moody(FixAtoms):
        def adjust_positions(self, atoms, new):
            raise ZeroDivisionError('not today')

    out_of_range, not_whole, moody = crystal(), crystal(), crystal()
    out_of_range.set_constraint(FixAtoms([99]))
    not_whole.arrays['numbers'] = not_whole.numbers + 0.5
    moody.set_constraint(Moody([0]))
    bad = [out_of_range, not_whole, moody]
    subclass = Strict('x', crystal())
    before = [bits(atoms) for atoms in bad]
    results = relax([crystal(), *bad, subclass, crystal()], model=tiny_model)
    assert [result.ok for result in results] == [True, False, False, False, False, True]
    expected = relax(crystal(), model=tiny_model)
    for result in (results[0], results[-1]):
        same([result.atoms.positions], [expected.atoms.positions])
    assert 'FixAtoms names atom 99' in results[1].problem
    assert 'name' in results[4].problem
    assert [bits(atoms) for atoms in bad] == before
    with pytest.raises(StructureError, match=r'TypeError: .*name') as caught:
        relax(subclass, model=tiny_model)
    assert isinstance(caught.value.__cause__, TypeError)


def test_nothing_outside_the_atoms_is_touched(tiny_model, tmp_path, monkeypatch):
    """No network, no pickle, no random numbers, no settings of torch, no environment."""

    def forbidden(*args, **kwargs):
        raise AssertionError('forbidden')

    def state():
        return (
            dict(os.environ),
            torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002 - users seed it
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
            np.geterr(),
            list(warnings.filters),
        )

    monkeypatch.setattr(socket, 'socket', forbidden)
    monkeypatch.setattr(torch, 'load', forbidden)
    model = shutil.copytree(tiny_model, tmp_path / 'fresh')  # not loaded before
    before = state()
    for atoms in (crystal(), gold()):
        by_function(atoms, model)
        by_optimizer(atoms, model)
    assert state() == before


def test_warnings_point_to_the_users_line(tiny_model):
    def optimizer(atoms=None):
        return DeepRelaxOptimizer(atoms, model=tiny_model, logfile=None)

    def assigned():
        atoms = sparse()
        atoms.optimizer = optimizer()
        atoms.optimizer.run()

    def refined():
        atoms = molecule('H2O')
        atoms.calc = EMT()
        optimizer(atoms).run(fmax=1)

    calls = [
        lambda: relax(sparse(), model=tiny_model),
        lambda: relax([sparse(), crystal(), sparse()], model=tiny_model),
        lambda: Predictor(tiny_model).relax([sparse()]),
        lambda: optimizer(sparse()).run(),
        lambda: optimizer().run(sparse()),
        lambda: list(optimizer(sparse()).irun()),
        assigned,
        refined,
    ]
    for call in calls:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            call()
        places = [w.filename for w in caught if w.category is DeepRelaxWarning]
        assert places == [__file__]
