import copy
import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress

import ase_deeprelax
from ase_deeprelax.calculators.batched import batch_potential
from ase_deeprelax.calculators.registry import (
    POTENTIALS,
    Potential,
    _check_matgl,
    get_calculator,
    potential_name,
)
from ase_deeprelax.errors import (
    DeepRelaxError,
    DeviceError,
    MissingDependencyError,
    ModelError,
    StructureError,
    UnsupportedElementError,
)

pytestmark = pytest.mark.usefixtures('one_thread')

SHARED = Path(__file__).parents[2] / '../shared/potentials'
FOLDERS = {
    'm3gnet': SHARED / 'M3GNet-MP-2021.2.8-PES',
    'tensornet': SHARED / 'TensorNet-MatPES-PBE-v2025.1-PES',
}
NAMES = ('m3gnet', 'tensornet', 'chgnet', 'sevennet')


def weights(name):
    """The name with weights that need no network, or a skipped test."""
    pytest.importorskip(POTENTIALS[name].package, exc_type=ImportError)
    if name not in FOLDERS:
        return name
    if not FOLDERS[name].is_dir():
        pytest.skip(f'needs {FOLDERS[name].name} in ../shared/potentials')
    return f'{name}:{FOLDERS[name]}'


@pytest.fixture(scope='module')
def legacy():
    """Inside, the folder's M3GNet, trained with an old matgl, gives its own answers."""
    helper = SHARED / 'legacy_m3gnet.py'
    if not helper.exists():
        pytest.skip('needs ../shared/potentials/legacy_m3gnet.py')
    pytest.importorskip('matgl')
    spec = importlib.util.spec_from_file_location('legacy_m3gnet', helper)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.legacy_aggregation():
        yield


@pytest.fixture(scope='module', params=NAMES)
def real(request):
    """A real potential, each loaded once."""
    potential = weights(request.param)
    if request.param == 'm3gnet':
        request.getfixturevalue('legacy')
    return get_calculator(potential)


def crystal(calculator=None):
    """Without symmetry, so that no component of forces and stress is zero."""
    atoms = bulk('MgO', 'rocksalt', a=4.16)  # no neighbour near M3GNet's cutoff, a kink
    shear = [[0, 0.04, -0.05], [0, 0.03, 0.06], [0, 0, -0.02]]
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + shear), scale_atoms=True)
    atoms.positions[1] += [0.08, -0.12, 0.05]
    atoms.calc = calculator
    return atoms


def test_stress_is_the_derivative_of_energy_by_strain_in_ase_units(real):
    atoms = crystal(real)
    stress = atoms.get_stress()
    expected = calculate_numerical_stress(atoms, eps=2e-3)
    assert np.abs(expected).min() > 1e-3
    # energies are of single precision: 1e-6 eV over 2 eps V
    assert stress == pytest.approx(expected, rel=0.01, abs=1e-4)


def test_forces_are_minus_the_derivative_of_energy_by_positions(real):
    atoms = crystal(real)
    expected = calculate_numerical_forces(atoms, eps=2e-3, iatoms=[1])
    assert np.abs(expected).min() > 0.05
    assert atoms.get_forces()[1:] == pytest.approx(expected, rel=0.01, abs=2e-3)


def test_energies_are_those_of_the_cell_not_of_an_atom(real):
    atoms = crystal(real)
    double = atoms * (2, 1, 1)
    double.calc = real
    energy = atoms.get_potential_energy()
    assert double.get_potential_energy() == pytest.approx(2 * energy, rel=1e-5)
    assert double.get_stress() == pytest.approx(atoms.get_stress(), abs=1e-5)


def test_forces_and_stress_do_not_depend_on_the_order_of_the_lattice_vectors(real):
    atoms, left = crystal(real), crystal(real)
    left.set_cell(left.cell.array[[1, 0, 2]])
    assert left.cell.handedness == -1
    stress, forces = atoms.get_stress(), atoms.get_forces()
    assert left.get_stress() == pytest.approx(stress, abs=1e-5)
    assert left.get_forces() == pytest.approx(forces, abs=1e-5)


def test_results_are_plain_numbers_of_double_precision(real):
    atoms = crystal(real)
    assert isinstance(atoms.get_potential_energy(), float)
    assert real.results['stress'].shape == (6,)
    assert real.results['forces'].shape == (2, 3)
    assert real.results['stress'].dtype == real.results['forces'].dtype == float
    assert real.name in NAMES


def test_answers_do_not_depend_on_what_was_asked_before(real):
    def answer(atoms):
        return atoms.get_potential_energy(), *atoms.get_forces().ravel()

    first = answer(crystal(real))
    other = bulk('NaCl', 'rocksalt', a=5.6)
    other.calc = real
    assert answer(other) != first
    assert answer(crystal(real)) == first


@pytest.mark.parametrize('name', ['tensornet', 'chgnet'])
def test_a_molecule_without_a_box_is_refused_with_the_way_out(name):
    water = molecule('H2O')
    water.calc = get_calculator(weights(name))
    with pytest.raises(StructureError, match=r'no box.*put it into one'):
        water.get_potential_energy()
    with pytest.raises(StructureError, match='no box'):
        batch_potential(water.calc)([molecule('H2O')])
    water.center(vacuum=8)
    assert np.isfinite(water.get_potential_energy())


def test_a_calculator_for_molecules_takes_one_without_a_box():
    water = molecule('H2O')
    water.calc = Potential('emt', EMT())
    assert np.isfinite(water.get_potential_energy())


def test_unknown_elements_are_named(real):
    atoms = crystal(real)
    atoms.symbols[1] = 'Rn'
    with pytest.raises(UnsupportedElementError, match=r'^atom 1 \(Rn\): .* not trained'):
        atoms.get_potential_energy()


def test_copies_and_pickles_answer_alike():
    atoms = crystal(get_calculator(weights('chgnet')))
    again = pickle.loads(pickle.dumps(atoms))
    energy = atoms.get_potential_energy()
    assert again.calc is not atoms.calc
    assert again.get_potential_energy() == energy


class OnlyAsked(EMT):
    """Makes the forces when they are asked for, as DFT does, and keeps them."""

    def calculate(self, atoms, properties, system_changes):
        kept = copy.deepcopy(self.results)  # EMT writes into its arrays
        super().calculate(atoms, properties, system_changes)
        asked = {'energy', *properties}
        self.results = kept | {name: self.results[name] for name in asked}


def test_nothing_of_the_structure_before_is_handed_on():
    atoms = bulk('Cu', cubic=True)
    atoms.rattle(0.1, seed=0)
    atoms.calc = Potential('lazy', OnlyAsked())
    before = atoms.get_forces()
    atoms.rattle(0.1, seed=1)
    atoms.get_potential_energy()
    forces = atoms.get_forces()
    atoms.calc = EMT()
    np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-9)
    assert not np.allclose(forces, before)


def test_two_calculators_of_one_name_answer_alike():
    potential = weights('tensornet')
    one, two = crystal(get_calculator(potential)), crystal(get_calculator(potential))
    assert one.get_potential_energy() == two.get_potential_energy()
    assert (one.get_stress() == two.get_stress()).all()


@pytest.mark.parametrize('name', ['chgnet', 'tensornet'])
def test_a_package_that_made_float64_the_default_of_torch_changes_nothing(name):
    """As MACE does where its weights are of float64."""
    potential = weights(name)
    expected = crystal(get_calculator(potential)).get_potential_energy()
    torch.set_default_dtype(torch.float64)
    try:
        found = crystal(get_calculator(potential)).get_potential_energy()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == pytest.approx(expected, abs=1e-4)


def test_other_weights_of_a_package_by_their_name():
    chgnet, older = (
        crystal(get_calculator(name))
        for name in (weights('chgnet'), f'{weights("chgnet")}:0.2.0')
    )
    assert chgnet.get_potential_energy() != older.get_potential_energy()
    with pytest.raises(ModelError, match=r"'chgnet:9\.9\.9'.*weights on disk"):
        get_calculator('chgnet:9.9.9')


def test_settings_reach_the_calculator_of_the_package():
    name = weights('chgnet')
    calculator = get_calculator(name, return_site_energies=True)
    atoms = crystal(calculator)
    total = atoms.get_potential_energy()
    assert calculator.results['energies'].sum() == pytest.approx(total, rel=1e-5)


def test_weights_of_another_kind_are_refused():
    weights('tensornet')
    with pytest.raises(ModelError, match=r'^/\S*: .* of kind TensorNet, not M3GNet'):
        get_calculator(f'm3gnet:{FOLDERS["tensornet"]}')


@pytest.mark.parametrize('name', ['chgnet', 'tensornet', 'sevennet'])
@pytest.mark.parametrize('place', ['/nowhere/weights', './nowhere', '~/nowhere/weights'])
def test_a_path_that_is_not_there_is_not_looked_for_elsewhere(name, place):
    pytest.importorskip(POTENTIALS[name].package, exc_type=ImportError)
    with pytest.raises(ModelError, match=r'no file or folder .*nowhere'):
        get_calculator(f'{name}:{place}')


def test_damaged_weights_are_named(tmp_path):
    weights('tensornet')
    with pytest.raises(ModelError, match=r'holds no model\.json, model\.pt, state\.pt'):
        get_calculator(f'tensornet:{tmp_path}')
    for file in FOLDERS['tensornet'].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=f'none with weights .*{tmp_path}'):
        get_calculator(f'tensornet:{tmp_path}')


@pytest.mark.parametrize('name', ['chgnet', 'tensornet'])
def test_nothing_is_printed(name, capsys):
    crystal(get_calculator(weights(name))).get_potential_energy()
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('name', POTENTIALS)
def test_a_missing_package_is_named_with_the_line_that_installs_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, POTENTIALS[name].package, None)
    line = rf"pip install 'ase-deeprelax\[{POTENTIALS[name].extra}\]'"
    with pytest.raises(MissingDependencyError, match=f'{name}.*{line}'):
        get_calculator(name)


def test_a_package_that_cannot_be_imported_is_named_with_the_reason(tmp_path, monkeypatch):
    """It is there, but its libraries are not."""
    text = "raise ImportError('libcudart.so.13: cannot open shared object file')"
    (tmp_path / 'mace.py').write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'mace', raising=False)
    with pytest.raises(MissingDependencyError, match=r"'mace'.*\(libcudart.so.13"):
        get_calculator('mace')


def test_a_device_that_is_not_there_is_refused_before_weights_are_read():
    pytest.importorskip('matgl')
    with pytest.raises(DeviceError, match='nonsense'):
        get_calculator('tensornet', device='nonsense')


def test_weights_may_lie_in_the_home_of_the_user(monkeypatch):
    folder = Path(weights('tensornet').partition(':')[2])
    monkeypatch.setenv('HOME', str(folder.parent))
    atoms = crystal(get_calculator(f'tensornet:~/{folder.name}'))
    assert np.isfinite(atoms.get_potential_energy())


def test_weights_of_chgnet_on_disk_are_those_that_are_used():
    chgnet = pytest.importorskip('chgnet')
    [file] = Path(chgnet.__file__).parent.glob('pretrained/r2scan/*.tar')
    usual, named, read = (
        crystal(get_calculator(name)).get_potential_energy()
        for name in ('chgnet', 'chgnet:r2scan', f'chgnet:{file}')
    )
    assert read == pytest.approx(named, abs=1e-5)
    assert abs(read - usual) > 1e-3


def test_weights_for_other_elements_than_those_of_salt_are_not_judged_by_salt():
    _check_matgl('tensornet:/x', Potential('tensornet', EMT(), [29, 79]))


def test_unknown_names_have_names_too():
    """A stage has one before its calculator is made."""
    assert potential_name('nonsense') == 'nonsense'
    assert potential_name('nonsense:weights') == 'nonsense:weights'
    assert potential_name('nonsense:/path') == 'nonsense'


def test_unknown_names_list_the_known():
    with pytest.raises(ModelError, match=f"'chgnett'.*{', '.join(POTENTIALS)}"):
        get_calculator('chgnett')


def test_a_calculator_is_handed_back_and_a_function_makes_new_ones():
    calculator = EMT()
    assert get_calculator(calculator) is calculator
    for make in (EMT, lambda: EMT(asap_cutoff=True)):
        one, two = get_calculator(make), get_calculator(make)
        assert isinstance(one, EMT)
        assert one is not two
    assert two.parameters.asap_cutoff


def test_a_calculator_that_can_be_called_is_a_calculator():
    class Callable(EMT):
        def __call__(self):
            raise AssertionError('it makes nothing')

    calculator = Callable()
    assert get_calculator(calculator) is calculator


@pytest.mark.parametrize(
    'wrong', [None, 3, Atoms('Cu'), lambda: None, Path('weights'), Path]
)
def test_what_is_no_potential_is_refused(wrong):
    with pytest.raises(ModelError, match='is no calculator; give one of m3gnet'):
        get_calculator(wrong)


def test_settings_for_a_finished_calculator_are_refused():
    with pytest.raises(ModelError, match='asap_cutoff'):
        get_calculator(EMT(), asap_cutoff=True)
    assert issubclass(ModelError, DeepRelaxError)


def test_importing_it_loads_no_potential_no_torch_and_no_builders():
    code = 'import sys; import ase_deeprelax.calculators.registry; print(*sys.modules)'
    root = Path(ase_deeprelax.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, '-c', code],
        env=os.environ | {'PYTHONPATH': str(root)},
        check=True,
        capture_output=True,
        text=True,
    )
    packages = {entry.package for entry in POTENTIALS.values()}
    assert not {'torch', 'ase.build', *packages} & set(done.stdout.split())
