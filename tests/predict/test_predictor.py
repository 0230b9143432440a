import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, mx2
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixInternals
from ase.filters import FrechetCellFilter
from ase.io import Trajectory, read, write

from ase_deeprelax import keys
from ase_deeprelax.errors import (
    DeepRelaxWarning,
    DeviceError,
    ModelError,
    PredictionError,
    StructureError,
    UnsupportedConstraintError,
    UnsupportedElementError,
)
from ase_deeprelax.geometry.symmetry import spacegroup_number
from ase_deeprelax.models import create_model
from ase_deeprelax.models.card import ModelCard
from ase_deeprelax.models.paegnn import PUBLISHED, PaEGNN
from ase_deeprelax.models.store import save_model
from ase_deeprelax.predict import PARTS, Predictor, relax
from ase_deeprelax.result import Relaxation
from ase_deeprelax.testing import awaken, generic_crystals, symmetric_crystals


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return awaken(create_model('paegnn', hidden=16, layers=2), scale=0.3)


@pytest.fixture(scope='module')
def crystals():
    return generic_crystals() + symmetric_crystals(4)


def unchanged(result, atoms):
    np.testing.assert_array_equal(result.deformation, np.eye(3))
    np.testing.assert_array_equal(result.displacement, np.zeros((len(atoms), 3)))
    return result.atoms == atoms and not any(k.startswith(keys.PREFIX) for k in atoms.info)


def overlapping():
    return Atoms('TiO', [[0, 0, 0], [0, 0, 0.01]], cell=4 * np.eye(3), pbc=True)


# --- what may move ---------------------------------------------------------------------


def test_a_layer_keeps_its_vacuum_and_says_what_it_is(model):
    for pbc in (True, (True, True, False)):
        layer = mx2('MoS2', vacuum=9)
        layer.pbc = pbc
        result = relax(layer, model)
        assert result.kind == result.atoms.info[keys.KIND] == 'layer'
        assert np.array_equal(result.atoms.cell.array[2], layer.cell.array[2])
        assert not np.allclose(result.atoms.cell.array[:2], layer.cell.array[:2])
        cell = layer.cell.array @ result.deformation
        positions = (layer.positions + result.displacement) @ result.deformation
        assert np.allclose(result.atoms.cell.array, cell, atol=1e-12)
        assert np.allclose(result.atoms.positions, positions, atol=1e-12)


def test_slabs_with_fixed_atoms_keep_their_cell(model):
    slab = fcc111('Al', (2, 1, 4), vacuum=8)
    slab.rattle(0.1, seed=0)
    fixed = slab.positions[:, 2] < slab.positions[:, 2].mean()
    slab.set_constraint(FixAtoms(mask=fixed))
    result = relax(slab, model)
    assert result.kind == 'layer, cell fixed'
    assert np.array_equal(result.atoms.cell.array, slab.cell.array)
    assert np.array_equal(result.atoms.positions[fixed], slab.positions[fixed])
    assert not np.allclose(result.atoms.positions[~fixed], slab.positions[~fixed])
    free = relax(slab, model, relax_cell=True)
    assert free.kind == 'layer'
    before, after = slab.get_scaled_positions(), free.atoms.get_scaled_positions()
    assert np.allclose(before[fixed][:, :2], after[fixed][:, :2])
    assert not np.allclose(free.atoms.cell.array, slab.cell.array)


def test_a_filter_says_what_may_move(model, crystals):
    atoms = crystals[2].copy()
    target = FrechetCellFilter(atoms, mask=[1, 1, 0, 0, 0, 1])
    result = relax(target, model)
    assert np.allclose(result.atoms.cell.array[:, 2], atoms.cell.array[:, 2])
    assert not np.allclose(result.atoms.cell.array, atoms.cell.array)
    assert atoms == crystals[2]


def test_what_the_model_has_not_learned_is_flagged(model, crystals):
    atoms = crystals[1]
    assert not relax(atoms, model).ood
    with pytest.warns(DeepRelaxWarning, match='not trained on: fixed cell'):
        assert 'fixed cell' in relax(atoms, model, relax_cell=False).ood
    with pytest.warns(DeepRelaxWarning, match='not trained on: partly fixed cell'):
        assert 'partly fixed cell' in relax(atoms, model, relax_cell='in-plane').ood
    with pytest.warns(DeepRelaxWarning, match='layer'):
        assert 'layer' in relax(mx2('MoS2', vacuum=9), model).ood
    held = atoms.copy()
    held.set_constraint(FixAtoms([0]))
    with pytest.warns(DeepRelaxWarning, match='not trained on: fixed atoms'):
        assert 'fixed atoms' in relax(held, model).ood
    model = awaken(create_model('paegnn', hidden=16, layers=2), scale=0.3)
    model.card = ModelCard(learned=('bulk', 'fixed cell'))
    assert not relax(atoms, model, relax_cell=False).ood


@pytest.mark.parametrize(
    'wrong',
    [
        'plane',
        3,
        [1, 1, 0],
        np.ones((2, 2)),
        [[1, 0], [1]],
        [1, 1, np.nan, 0, 0, 0],
        ['1', '1', '0', '0', '0', '0'],
    ],
)
def test_a_freedom_that_is_not_understood_is_refused(model, crystals, wrong):
    with pytest.raises(ValueError, match=r'(?s)relax_cell is .* must be True, False'):
        relax(crystals[0], model, relax_cell=wrong)


# --- what goes in and comes out ------------------------------------------------------


def test_record_says_what_the_atoms_are(model, crystals):
    for atoms, result in zip(crystals, relax(crystals, model), strict=True):
        assert result.ok
        assert not result.problem
        assert result.initial == atoms
        cell = atoms.cell.array @ result.deformation
        positions = (atoms.positions + result.displacement) @ result.deformation
        assert np.allclose(result.atoms.cell.array, cell, atol=1e-12)
        assert np.allclose(result.atoms.positions, positions, atol=1e-12)
        assert np.allclose(result.deformation, result.deformation.T, atol=1e-12)
        assert np.allclose(result.displacement.mean(axis=0), 0, atol=1e-6)
        assert result.sigma_atoms.shape == (len(atoms),)
        assert result.sigma == pytest.approx(result.sigma_bonds.mean(), rel=1e-5)


@pytest.mark.parametrize('form', [{}, {**PUBLISHED, 'hidden': 16, 'layers': 1}])
def test_bonds_are_the_users(form):
    model = awaken(create_model('paegnn', **({'hidden': 16, 'layers': 1} | form)))
    atoms = generic_crystals()[2]
    atoms.set_cell(np.array([[1, 0, 0], [3, 1, 0], [0, -2, 1]]) @ atoms.cell.array)
    atoms.positions += np.array([2, -1, 3]) @ atoms.cell.array
    atoms = atoms[[3, 1, 4, 0, 2]]
    result = relax(atoms, model)
    i, j = result.bonds.T
    ends = atoms.positions[j] + result.bond_offsets @ atoms.cell.array
    length = np.linalg.norm(ends - atoms.positions[i], axis=1)
    all_pairs = atoms.get_all_distances(mic=True)[i, j]
    assert length.max() < 12
    for a in range(5):  # the nearest neighbour of each atom is among its bonds
        touching = (i == a) | (j == a)
        nearest = np.sort(atoms.get_all_distances(mic=True)[a])[1]
        assert length[touching].min() == pytest.approx(nearest, abs=1e-4)
        mean = result.sigma_bonds[touching].mean()
        weights = (i == a).astype(float) + (j == a)
        mean = (weights * result.sigma_bonds).sum() / weights.sum()
        assert result.sigma_atoms[a] == pytest.approx(mean, rel=1e-5)
    assert (length >= all_pairs * (i != j) - 1e-4).all()


def test_one_in_one_out_many_in_many_out(model, crystals):
    one = relax(crystals[2], model)
    assert isinstance(one, Relaxation)
    for many in (crystals, tuple(crystals), iter(crystals), (a for a in crystals)):
        results = relax(many, model)
        assert [r.atoms.symbols.get_chemical_formula() for r in results] == [
            a.symbols.get_chemical_formula() for a in crystals
        ]
    assert relax([], model) == []
    assert len(relax([crystals[0]], model)) == 1
    assert np.allclose(results[2].atoms.positions, one.atoms.positions, atol=1e-5)


def test_frames_of_a_trajectory_are_many(model, crystals, tmp_path):
    """A slice of one has a length and numbered frames, but no iterator."""
    write(tmp_path / 'run.traj', crystals[:4])
    with Trajectory(tmp_path / 'run.traj') as trajectory:
        results = relax(trajectory[1:3], model)
    assert [len(r.initial) for r in results] == [len(a) for a in crystals[1:3]]


def test_pymatgen_in_and_out(model):
    from pymatgen.core import Lattice, Structure

    structure = Structure(
        Lattice.tetragonal(4.0, 4.3), ['Ti', 'O'], [[0, 0, 0], [0.5, 0.5, 0.4]]
    )
    result = relax(structure, model)
    assert result.structure.composition == structure.composition
    assert result.structure.lattice.volume == pytest.approx(result.atoms.cell.volume)
    assert len(relax([structure, result.atoms], model)) == 2


@pytest.mark.parametrize(
    ('second', 'problem'),
    [([0, 0, 0.05], 'atom 0 (Cs) and atom 1'), ([0.5, 0.5, 0.6], 'CsCl: the expected')],
    ids=['before the network', 'after it'],
)
def test_a_refused_structure_of_pymatgen_comes_back_with_all_it_carries(second, problem):
    from pymatgen.core import Lattice, Structure

    structure = Structure(
        Lattice.cubic(4.0),
        ['Cs', 'Cl'],
        [[0, 0, 0], second],
        charge=1,
        labels=['A', 'B'],
        site_properties={'magmom': [1.5, -0.5]},
    )
    [kept] = relax([structure], on_bad='keep', accept_below=1e-6)
    assert kept.problem.startswith(problem)
    assert kept.structure == structure
    assert kept.structure.labels == ['A', 'B']
    assert kept.structure.charge == 1
    assert kept.structure.site_properties['magmom'] == [1.5, -0.5]


def test_order_is_kept_over_batches_and_windows(model, monkeypatch):
    crystals = symmetric_crystals(23, seed=5)
    expected = relax(crystals, model)
    monkeypatch.setattr('ase_deeprelax.predict.stream.WINDOW', 7)
    predictor = Predictor(model, device='cpu', batch_edges=500)
    found = predictor.relax(crystals)
    for one, two in zip(expected, found, strict=True):
        assert one.initial == two.initial
        assert np.allclose(one.atoms.positions, two.atoms.positions, atol=1e-5)


def test_everything_the_atoms_carry_is_kept(model):
    atoms = generic_crystals()[2]
    atoms.info.update(name='x', nested={'a': [1]}, deeprelax_old=1)
    atoms.set_array('mine', np.arange(5))
    atoms.set_tags([1, 2, 3, 4, 5])
    atoms.set_initial_magnetic_moments(np.ones((5, 3)))
    atoms.set_initial_charges(np.arange(5))
    atoms.set_celldisp([0.1, 0.2, 0.3])
    atoms.set_constraint(FixAtoms([0]))
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
    before, calc = atoms.copy(), atoms.calc
    result = relax(atoms, model)
    assert atoms == before
    assert atoms.calc is calc
    assert atoms.info == before.info
    new = result.atoms
    assert new.calc is None
    assert new.info['name'] == 'x'
    assert new.info['nested'] == {'a': [1]}
    assert 'deeprelax_old' not in new.info
    for name in ('mine', 'tags', 'initial_magmoms', 'initial_charges'):
        assert np.array_equal(new.arrays[name], before.arrays[name])
    assert np.array_equal(new.get_celldisp(), before.get_celldisp())
    assert new.constraints[0].index.tolist() == [0]


def test_calculator_is_not_asked(model):
    class Loud(EMT):
        def calculate(self, *args, **kwargs):
            raise AssertionError

    atoms = bulk('Cu')
    atoms.calc = Loud()
    assert relax(atoms, model).atoms.calc is None
    assert isinstance(atoms.calc, Loud)


def test_keys_are_flat_and_survive_files(model, tmp_path):
    atoms = generic_crystals()[2]
    result = relax(atoms, model)
    info = result.atoms.info
    assert info[keys.SIGMA] == result.sigma
    assert info[keys.SIGMA_MAX] == result.sigma_atoms.max()
    assert info[keys.DMAX] == result.dmax > 0
    assert info[keys.VOLUME_RATIO] == pytest.approx(
        result.atoms.cell.volume / atoms.cell.volume
    )
    assert info[keys.RESIDUAL] == result.residual
    assert info[keys.STAGE] == 'predicted'
    assert result.ood == ''
    assert keys.OOD not in info
    assert {type(v) for k, v in info.items() if k != keys.SIGMA_ATOMS} == {float, str}
    for name in ('relaxed.traj', 'relaxed.extxyz'):
        write(tmp_path / name, result.atoms)
        back = read(tmp_path / name)
        assert back.info[keys.SIGMA] == pytest.approx(result.sigma)
        assert np.allclose(back.info[keys.SIGMA_ATOMS], result.sigma_atoms)
    assert np.allclose(back.arrays[keys.SIGMA], result.sigma_atoms)


def test_fixed_atoms_keep_their_fractional_coordinates(model):
    atoms = generic_crystals()[2]
    atoms.set_constraint(FixAtoms([1, 3]))
    result = relax(atoms, model)
    frac = [a.get_scaled_positions(wrap=False) for a in (atoms, result.atoms)]
    assert np.allclose(frac[0][[1, 3]], frac[1][[1, 3]], atol=1e-12)
    assert np.abs(frac[0] - frac[1]).max() > 1e-4
    positions = (atoms.positions + result.displacement) @ result.deformation
    assert np.allclose(result.atoms.positions, positions)


def test_constraint_that_cannot_be_honoured_is_named(model):
    atoms = generic_crystals()[2]
    atoms.set_constraint(FixInternals(bonds=[[2.0, [0, 1]]]))
    with pytest.raises(UnsupportedConstraintError, match='FixInternals'):
        relax(atoms, model)


def test_relaxed_input_is_told_so():
    untrained = create_model('paegnn', hidden=16, layers=1)
    result = relax(generic_crystals()[3], untrained)
    assert result.dmax < 1e-5
    assert result.volume_ratio == pytest.approx(1)
    assert result.residual == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize('symmetry', ['keep', 'free'])
def test_space_group_of_a_model_that_breaks_it(symmetry):
    form = {**PUBLISHED, 'hidden': 16, 'layers': 1}
    model = awaken(create_model('paegnn', **form), scale=0.5)
    atoms = bulk('TiO', 'zincblende', a=4.6)
    result = relax(atoms, model, symmetry=symmetry)
    assert result.spacegroup[0] == 216
    assert (result.spacegroup[1] == 216) == (symmetry == 'keep')
    assert result.spacegroup[1] == spacegroup_number(result.atoms)


def test_solver_moves_atoms_to_predicted_distances():
    class Stretch(PaEGNN):
        """Says nothing but that the bond within the cell grows by a tenth."""

        def forward(self, graph):
            said = super().forward(graph)
            length = graph.edge_vectors().norm(dim=1)[said.bond_index]
            intra = graph.intra[said.bond_index]
            said.distance = torch.where(intra, 1.1 * length, length)
            said.log_b = torch.where(intra, -9.0, 2.0).to(length.dtype)
            return said

    atoms = Atoms('OTi', [[1, 1, 1], [1, 1, 3.2]], cell=[5, 5, 7.5], pbc=True)
    model = Stretch(hidden=16, layers=1, intra_neighbors=5)
    result = relax(atoms, model, dtype='float64')
    assert result.atoms.get_distance(0, 1) == pytest.approx(2.42, abs=1e-3)
    assert result.displacement.sum(axis=0) == pytest.approx(0, abs=1e-9)


# --- what is wrong ----------------------------------------------------------------------


def test_bad_structure_raises_alone_and_is_kept_in_a_list(model, crystals):
    bad = overlapping()
    with pytest.raises(StructureError, match=r'atom 0 \(Ti\) and atom 1 \(O\)'):
        relax(bad, model)
    result = relax(bad, model, on_bad='keep')
    assert not result.ok
    assert 'one site' in result.problem or 'apart' in result.problem
    assert unchanged(result, bad)
    assert np.isnan(result.sigma)
    assert result.spacegroup == (0, 0)
    mixed = [crystals[0], bad, crystals[1], 'x.cif', Atoms(), crystals[2]]
    with pytest.warns(DeepRelaxWarning, match='3 of 6 structures were not .* index 1: ato'):
        results = relax(mixed, model)
    assert [r.ok for r in results] == [True, False, True, False, False, True]
    for k, single in ((0, crystals[0]), (2, crystals[1]), (5, crystals[2])):
        expected = relax(single, model)
        assert np.allclose(results[k].atoms.positions, expected.atoms.positions, atol=1e-5)
    with pytest.raises(StructureError, match='structure 1: '):
        relax(mixed, model, on_bad='raise')
    with warnings.catch_warnings(record=True) as caught:
        relax(mixed, model, on_bad='keep')
    assert not caught


class Odd(Atoms):
    """A subclass that cannot be copied."""

    def __init__(self):
        super().__init__(bulk('Cu'))


def test_an_error_in_a_list_keeps_its_cause(model):
    with pytest.raises(StructureError, match='structure 1: TypeError: ') as caught:
        relax([bulk('Cu'), Odd()], model, on_bad='raise')
    assert isinstance(caught.value.__cause__, TypeError)


def test_structure_without_neighbours_is_refused(model):
    atoms = Atoms('He', cell=[6.5, 6.5, 6.5], pbc=True)
    with pytest.raises(StructureError, match='no neighbour within'):
        relax(atoms, model)


def test_elements_that_the_model_has_not_seen(model, tmp_path):
    save_model(model, tmp_path, {'elements': [22, 8]})
    assert relax(bulk('TiO', 'rocksalt', a=4.2), tmp_path).ok
    with pytest.raises(UnsupportedElementError, match='Sr'):
        relax(bulk('SrO', 'rocksalt', a=5.2), tmp_path)


def test_outside_the_training_range_is_said_once(model, tmp_path):
    card = {'elements': [22, 8], 'range': {'n_atoms': [1, 3], 'volume_ratio': [0.1, 9]}}
    save_model(model, tmp_path, card)
    small, large = (
        bulk('TiO', 'rocksalt', a=4.2),
        bulk('TiO', 'rocksalt', a=4.2, cubic=True),
    )
    large.positions[0] += 0.1  # No supercell of the small one.
    with pytest.warns(UserWarning, match='2 of 3 .* first at index 1: 8 atoms') as caught:
        results = relax([small, large, large], tmp_path)
    assert [one.category for one in caught].count(DeepRelaxWarning) == 1
    assert [bool(r.ood) for r in results] == [False, True, True]
    assert results[1].atoms.info[keys.OOD] == results[1].ood
    assert all(r.ok for r in results)


class Broken(PaEGNN):
    """Says nonsense about structures with chromium."""

    kind = 'nan'

    def forward(self, graph):
        said = super().forward(graph)
        bad = graph.graph_of_atom[graph.z == 24].unique()
        atoms = torch.isin(graph.graph_of_atom, bad)
        bonds = atoms[graph.edge_index[0, said.bond_index]]
        if self.kind == 'nan':
            said.displacement[atoms] = torch.nan
        elif self.kind == 'nan cell':
            said.deformation[bad] = torch.nan
        elif self.kind == 'nan distance':
            said.distance[bonds] = torch.nan
        elif self.kind == 'inf scale':
            said.log_b[bonds] = torch.inf
        elif self.kind == 'flat':
            said.deformation[bad] = 0.0
        elif self.kind == 'huge':
            said.deformation[bad] *= 7
        elif self.kind == 'tiny':
            said.deformation[bad] *= 0.3
        return said


@pytest.mark.parametrize(
    'kind', ['nan', 'nan cell', 'nan distance', 'inf scale', 'flat', 'huge', 'tiny']
)
def test_broken_prediction_leaves_atoms_and_neighbours_alone(kind):
    model = awaken(Broken(hidden=16, layers=1), scale=0.3)
    model.kind = kind
    good = generic_crystals()
    bad = bulk('CrO', 'rocksalt', a=4.2)
    bad.set_initial_magnetic_moments([1, 2])
    copied = bad.copy()
    results = relax([good[0], bad, *good[1:]], model)
    assert [r.ok for r in results] == [True, False, True, True, True]
    assert unchanged(results[1], bad)
    assert bad == copied
    assert results[1].problem
    alone = relax(good, model)
    for one, two in zip(alone, [results[0], *results[2:]], strict=True):
        assert np.allclose(one.atoms.positions, two.atoms.positions, atol=1e-5)
    with pytest.raises(PredictionError):
        relax(bad, model)


class Hungry(PaEGNN):
    """Runs out of memory above ``most`` atoms, as torch does on a GPU."""

    most = 10
    error = torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')
    calls = 0

    def forward(self, graph):
        type(self).calls += 1
        if len(graph.z) > self.most:
            raise self.error
        return super().forward(graph)


@pytest.mark.parametrize(
    'error',
    [
        torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.'),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError('Failed to allocate 123 bytes'),
        RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`'),
        MemoryError(),
    ],
)
def test_batches_that_do_not_fit_are_halved(error):
    model = awaken(Hungry(hidden=16, layers=1), scale=0.3)
    model.error, model.most = error, 10
    crystals = symmetric_crystals(12, seed=2)
    sizes = [len(a) for a in crystals]
    assert max(sizes) > 10 > min(sizes)
    results = Predictor(model, device='cpu').relax(crystals)
    assert [r.ok for r in results] == [size <= 10 for size in sizes]
    assert all('do not fit into the memory' in r.problem for r in results if not r.ok)
    model.most = 10**6
    for one, two in zip(results, relax(crystals, model), strict=True):
        assert not one.ok or np.allclose(
            one.atoms.positions, two.atoms.positions, atol=1e-5
        )


def test_other_errors_of_a_model_are_not_hidden():
    model = Hungry(hidden=16, layers=1)
    model.error, model.most = RuntimeError('shapes do not match'), 0
    with pytest.raises(RuntimeError, match='shapes'):
        relax(generic_crystals(), model)


# --- devices, types, options ------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a CUDA device')
def test_auto_falls_back_and_cuda_is_refused_where_absent(model):
    assert Predictor(model).device.type == 'cpu'
    for device in ('cuda', 'cuda:0'):
        with pytest.raises(DeviceError, match="device='cpu'"):
            Predictor(model, device=device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('name', ['small', 'deeprelax', 'e3relax-h2', 'default'])
def test_cuda_agrees_with_cpu(name, model):
    model = model if name == 'small' else name
    crystals = generic_crystals() + symmetric_crystals(20)
    for one, two in zip(
        relax(crystals, model, device='cpu'),
        relax(crystals, model, device='cuda'),
        strict=True,
    ):
        assert np.allclose(one.atoms.positions, two.atoms.positions, atol=1e-4)


@pytest.mark.parametrize('device', ['gpu', 'cuda:99', 'meta', 'cpu:7', None, 3.5])
def test_devices_that_are_not_there(model, device):
    with pytest.raises(DeviceError, match='device'):
        Predictor(model, device=device)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', torch.float16, 'double', None])
def test_types_that_are_refused(model, dtype):
    with pytest.raises(ModelError, match='float32'):
        Predictor(model, device='cpu', dtype=dtype)


@pytest.mark.parametrize('option', [{'symmetry': 'break'}, {'on_bad': 'clip'}])
def test_unknown_options(model, option):
    with pytest.raises(ValueError, match=next(iter(option))):
        relax(bulk('Cu'), model, **option)


@pytest.mark.parametrize(
    'option',
    [
        {'accept_below': '0.05'},
        {'accept_below': True},
        {'batch_edges': '9'},
        {'batch_edges': 0},
    ],
)
def test_numbers_that_are_none(model, option):
    [(name, value)] = option.items()
    with pytest.raises(ValueError, match=f'{name} is {value!r}'):
        Predictor(model, device='cpu', **option)


def test_double_precision_agrees_with_single(model, crystals):
    for one, two in zip(
        relax(crystals, model), relax(crystals, model, dtype='float64'), strict=True
    ):
        assert np.allclose(one.atoms.positions, two.atoms.positions, atol=1e-4)


def test_half_precision_around_a_call_does_not_reach_it(model, crystals):
    expected = relax(crystals, model)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        found = relax(crystals, model, device='cpu')
    for one, two in zip(expected, found, strict=True):
        assert np.allclose(one.atoms.positions, two.atoms.positions, atol=1e-4)
        assert np.allclose(one.atoms.cell.array, two.atoms.cell.array, atol=1e-4)


def test_model_object_is_not_changed():
    model = create_model('paegnn', hidden=16, layers=1).train()
    Predictor(model, device='cpu', dtype='float64').relax([bulk('Cu')])
    assert model.training
    assert {x.dtype for x in model.parameters()} == {torch.float32}
    assert all(x.requires_grad for x in model.parameters())


def test_provenance(model, tmp_path):
    config = save_model(model, tmp_path / 'mine', {'elements': [29]})
    result = relax(bulk('Cu'), tmp_path / 'mine')
    assert (result.model, result.sha256) == ('mine', config['sha256'])
    assert result.atoms.info[keys.SHA256] == config['sha256']
    unsaved = relax(bulk('Cu'), create_model('paegnn', hidden=16, layers=1))
    assert (unsaved.model, unsaved.sha256) == ('PaEGNN', '')


def test_timings_add_up(model, crystals):
    predictor = Predictor(model, device='cpu')
    results = predictor.relax(crystals)
    assert tuple(predictor.timings) == PARTS
    for part in PARTS:
        total = sum(result.timings[part] for result in results)
        assert predictor.timings[part] == pytest.approx(total)
        assert total > 0


@pytest.mark.parametrize('seed', range(3))
def test_an_atom_without_a_neighbour_is_named_by_its_place_in_the_input(seed):
    """Networks that want the canonical frame want another order, too."""
    model = PaEGNN(hidden=16, layers=1, cutoff=2.5, offset_encoding=16)
    salt = bulk('NaCl', 'rocksalt', a=4.6, cubic=True)
    near = np.flatnonzero(salt.get_distances(0, range(1, 8), mic=True) < 2.4) + 1
    salt.symbols[0] = 'K'
    del salt[near]
    salt = salt[np.random.default_rng(seed).permutation(len(salt))]
    (alone,) = salt.symbols.search('K')
    message = rf'atom {alone} \(K\) has no neighbour within 2.5 A \(1 of 5 atoms'
    with pytest.raises(StructureError, match=message):
        relax(salt, model)


def test_progress_goes_to_stderr(model, crystals, capsys):
    relax(crystals, model, progress=True)
    out, err = capsys.readouterr()
    assert f'{len(crystals)}/{len(crystals)}' in err
    assert out == ''
    relax(crystals, model)
    assert capsys.readouterr() == ('', '')


def test_structures_that_fail_count_as_done(model, crystals, capsys):
    with pytest.warns(DeepRelaxWarning, match='1 of 3 structures were not relaxed'):
        relax([crystals[0], Atoms(), crystals[1]], model, progress=True)
    assert '3/3' in capsys.readouterr().err
