import logging

import pytest
from ase.build import bulk
from pymatgen.core import Lattice, Species, Structure

from ase_deeprelax.predict import ignored, relax


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch):
    monkeypatch.setattr(ignored, '_named', set())


def salt(**options):
    return Structure(Lattice.cubic(4), ['Mg', 'O'], [[0, 0, 0], [0.5] * 3], **options)


def magnetic():
    atoms = bulk('NiO', 'rocksalt', a=4.2)
    atoms.set_initial_magnetic_moments([2.0, 0.0])
    return atoms


def charged(value):
    atoms = bulk('NaCl', 'rocksalt', a=5.6)
    atoms.set_initial_charges([value, -value])
    return atoms


def spins():
    structure = salt()
    structure.replace(0, Species('Fe', 2, spin=4))
    return structure


@pytest.mark.parametrize(
    ('make', 'what'),
    [
        (magnetic, 'magnetic moments'),
        (lambda: charged(1.0), 'atomic charges'),
        (lambda: salt(charge=-1), 'a total charge'),
        (spins, 'magnetic moments'),
    ],
)
def test_what_the_network_does_not_see_is_named_once(make, what, tiny_model, caplog):
    caplog.set_level(logging.WARNING)
    relax([make(), make()], model=tiny_model)
    relax(make(), model=tiny_model)
    [record] = caplog.records
    assert f'has {what}, which the prediction does not depend on' in record.getMessage()


def test_nothing_is_named_where_there_is_nothing(tiny_model, caplog):
    caplog.set_level(logging.WARNING)
    relax([bulk('Al'), charged(0.0), salt()], model=tiny_model)
    assert not caplog.records


def test_moments_and_charges_are_kept(tiny_model):
    relaxed = relax(magnetic(), model=tiny_model).atoms
    assert relaxed.get_initial_magnetic_moments().tolist() == [2.0, 0.0]
    assert relax(charged(0.5), model=tiny_model).atoms.get_initial_charges().tolist() == [
        0.5,
        -0.5,
    ]
