"""The record of a relaxation as text, as JSON and as a row of a table."""

import io
import json
import math

import numpy as np
import pytest
from ase.build import bulk
from ase.constraints import FixAtoms, FixScaled
from ase.io import read, write
from ase.spacegroup import Spacegroup
from monty.json import MontyDecoder, MontyEncoder, jsanitize
from pymatgen.core import Lattice, Structure

from ase_deeprelax import Relaxation
from ase_deeprelax.data.formula import chemical_formula
from ase_deeprelax.predict import relax

ARRAYS = (
    'deformation',
    'displacement',
    'sigma_atoms',
    'bonds',
    'bond_offsets',
    'sigma_bonds',
)


def laden():
    atoms = bulk('NaCl', 'rocksalt', a=5.7, cubic=True)
    atoms.rattle(0.05, seed=0)
    atoms.set_constraint([FixAtoms([0]), FixScaled([1, 2], [True, True, False])])
    atoms.set_initial_magnetic_moments(range(8))
    atoms.set_celldisp([0.1, 0.2, 0.3])
    atoms.info.update(name='mine', numbers=np.arange(3.0), path={'a': [1, 2]})
    return atoms


def from_cif():
    file = io.BytesIO()
    write(file, bulk('Cu', cubic=True), format='cif')
    return read(io.BytesIO(file.getvalue()), format='cif')


INPUTS = {
    'atoms': laden,
    'cif': from_cif,
    'structure': lambda: Structure(
        Lattice.cubic(5.7),
        ['Na+', 'Cl-'],
        [[0, 0, 0], [0.5] * 3],
        charge=-1,
        site_properties={'magmom': [1.0, 0.0], 'array': [np.arange(3)] * 2},
    ),
    'overlapping': lambda: bulk('Cu', a=0.5),
    'nothing': lambda: 'POSCAR',
}


@pytest.fixture(params=INPUTS)
def result(request, tiny_model):
    return relax(INPUTS[request.param](), model=tiny_model, on_bad='keep')


def same(one, two):
    for name in ARRAYS:
        a, b = getattr(one, name), getattr(two, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    for name in ('ok', 'problem', 'ood', 'kind', 'model', 'sha256', 'version', 'timings'):
        assert getattr(one, name) == getattr(two, name)
    for name in ('sigma', 'residual'):
        assert repr(float(getattr(one, name))) == repr(float(getattr(two, name)))
    for a, b in ((one.atoms, two.atoms), (one.initial, two.initial)):
        assert a == b
        assert a.arrays.keys() == b.arrays.keys()
        for name, array in a.arrays.items():
            np.testing.assert_array_equal(array, b.arrays[name])
        assert repr(a.info) == repr(b.info)
        assert repr(a.constraints) == repr(b.constraints)
        np.testing.assert_array_equal(a.get_celldisp(), b.get_celldisp())


def test_json_there_and_back_is_exact(result):
    text = json.dumps(result.as_dict(), allow_nan=False)
    back = Relaxation.from_dict(json.loads(text))
    same(result, back)
    assert json.dumps(back.as_dict(), allow_nan=False) == text
    if result.source is not None:
        assert repr(back.structure) == repr(result.structure)
        assert back.structure.charge == result.structure.charge


def test_monty_and_so_jobflow_can_store_it(result):
    same(MontyDecoder().decode(MontyEncoder().encode(result)), result)
    stored = jsanitize({'output': result}, strict=True, enum_values=True)
    json.dumps(stored, allow_nan=False)
    same(MontyDecoder().process_decoded(stored)['output'], result)


def test_one_line(result):
    assert '\n' not in repr(result)
    assert len(repr(result)) < 300
    assert chemical_formula(result.initial) in repr(result)
    assert ('failed' in repr(result)) == (not result.ok)


def test_a_row_is_flat(result):
    row = result.to_row()
    assert {type(value) for value in row.values()} <= {str, int, float, bool}
    assert row['ok'] == result.ok
    assert row['n_atoms'] == len(result.initial)
    assert math.isnan(row['sigma']) == (not result.ok)
    if result.ok:
        assert row['sigma_max'] == result.sigma_atoms.max()
        assert row['volume_ratio'] == result.volume_ratio


def test_information_that_json_cannot_hold_is_left_out_by_name(tiny_model, caplog):
    atoms = bulk('Cu')
    atoms.info.update(handle=object(), kept=1)
    back = Relaxation.from_dict(relax(atoms, model=tiny_model).as_dict())
    assert back.initial.info == {'kept': 1}
    assert "atoms.info['handle'] of Cu is a object" in caplog.text


@pytest.mark.parametrize(
    'group', [{'symbol': 'Fm-3m'}, {'symbol': 'Fm-3m', 'number': 225}, Spacegroup(225)]
)
def test_the_space_group_in_info_stays_what_it_is(tiny_model, group):
    atoms = bulk('Cu')
    atoms.info['spacegroup'] = group
    back = Relaxation.from_dict(relax(atoms, model=tiny_model).as_dict())
    assert back.initial.info['spacegroup'] == group


def test_records_that_lack_a_part_are_refused_by_name(tiny_model):
    record = relax(bulk('Cu'), model=tiny_model).as_dict()
    del record['bonds']
    with pytest.raises(ValueError, match="it lacks 'bonds'"):
        Relaxation.from_dict(record)


def test_bonds_lead_from_atom_to_atom_in_both_structures(tiny_model):
    """In the images in which the atoms are written."""
    atoms = laden()
    atoms.positions += np.random.default_rng(0).integers(-3, 4, (8, 3)) @ atoms.cell.array
    result = relax(atoms, model=tiny_model)
    i, j = result.bonds.T
    for structure, longest in ((result.initial, 5.001), (result.atoms, 6.0)):
        ends = structure.positions[j] + result.bond_offsets @ structure.cell.array
        lengths = np.linalg.norm(ends - structure.positions[i], axis=1)
        assert lengths.max() < longest
        assert lengths.min() > 2.0
