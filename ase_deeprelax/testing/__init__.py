"""What any `RelaxationModel` must hold to, ours or a user's, as functions that raise.

Each check takes a model and a float type and goes through the `Predictor`, as users do.

Examples
--------
In a test file, with pytest::

    @pytest.mark.parametrize('dtype', ['float32', 'float64'])
    @pytest.mark.parametrize('check', testing.CHECKS, ids=lambda check: check.__name__)
    def test_my_model(check, dtype):
        check(testing.awaken(MyModel()), dtype)
"""

import copy
from dataclasses import fields

import numpy as np
import torch
from ase.build import bulk
from torch_geometric.data import Batch

from ase_deeprelax.data.convert import to_graph
from ase_deeprelax.infer import DTYPES
from ase_deeprelax.models.base import LOG_B_RANGE
from ase_deeprelax.predict import Predictor
from ase_deeprelax.symmetry import find_symmetry
from ase_deeprelax.testing.crystals import generic_crystals, symmetric_crystals

# How far predictions for two ways of writing one crystal may differ, A.
TOLERANCE = {'float32': 1e-4, 'float64': 1e-8}
BATCH_TOLERANCE = {'float32': 1e-5, 'float64': 1e-9}
SUPERCELL_TOLERANCE = 1e-3
SYMPREC = 1e-3


def awaken(model, *, scale=0.05, seed=0):
    """A copy whose zero-initialised weights are random, so that it predicts something.

    Models start with read-outs of zero ("already relaxed"), on which every invariance
    holds trivially.

    Parameters
    ----------
    model : RelaxationModel
    scale : float
        Size of the outputs of such a layer for inputs of order one, default 0.05.
    seed : int

    Returns
    -------
    RelaxationModel
        In eval mode.
    """
    model = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and not parameter.any():
                size = scale / parameter.shape[1] ** 0.5
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return model


def says_something(model, dtype):
    """The checks below mean nothing for a model that moves nothing."""
    for result in _results(model, dtype, generic_crystals(_elements(model))[1:]):
        change = np.abs(result.deformation - np.eye(3)).max()
        _expect(result.dmax > 5e-3, f'largest displacement is {result.dmax:.1e} A')
        _expect(change > 1e-4, f'largest strain is {change:.1e}')


def output_is_sound(model, dtype):
    """Shapes, types, ranges; nothing of the input is changed."""
    predictor = Predictor(model, device='cpu', dtype=dtype)
    spec, torch_dtype = predictor.model.spec, DTYPES[dtype]
    crystals = generic_crystals(_elements(model))
    batch = Batch.from_data_list([to_graph(a, spec, torch_dtype)[0] for a in crystals])
    before = batch.clone()
    with torch.inference_mode():
        said = predictor.model(batch)
    for key in before.to_dict():
        _expect(torch.equal(batch[key], before[key]), f'the model changed graph.{key}')
    n_bonds = len(said.bond_index)
    shapes = {
        'deformation': (batch.n_graphs, 3, 3),
        'displacement': (len(batch.z), 3),
        'distance': (n_bonds,),
        'log_b': (n_bonds,),
    }
    for name, shape in shapes.items():
        value = getattr(said, name)
        _expect(value.shape == shape, f'{name} has shape {tuple(value.shape)}, not {shape}')
        _expect(value.dtype == torch_dtype, f'{name} is {value.dtype}, not {torch_dtype}')
    values = {field.name: getattr(said, field.name) for field in fields(said)}
    for k, (deformation, displacement) in enumerate(values.pop('layers')):
        values |= {f'layer {k} deformation': deformation}
        values |= {f'layer {k} displacement': displacement}
    for name, value in values.items():
        if value is not None:
            _expect(not value.requires_grad, f'{name} is not detached')
            _expect(torch.isfinite(value).all(), f'{name} is not finite')
    _check_ranges(batch, said)


def _check_ranges(batch, said):
    stretch = said.deformation
    _expect(torch.allclose(stretch, stretch.mT, atol=1e-6), 'deformation is not symmetric')
    positive = (torch.linalg.eigvalsh(stretch) > 0).all()
    _expect(positive, 'deformation is not positive definite')
    drift = stretch.new_zeros(batch.n_graphs, 3)
    drift.index_add_(0, batch.graph_of_atom, said.displacement)
    _expect(drift.abs().max() < 1e-4, 'displacements have a rigid drift')
    low, high = LOG_B_RANGE
    for log_b in (said.log_b, said.anchor_log_b):
        inside = log_b is None or ((log_b >= low) & (log_b <= high)).all()
        _expect(inside, 'log_b is out of range')
    _expect((said.distance >= 0).all(), 'negative distances')
    bonds = torch.bincount(batch.edge_index[:, said.bond_index].flatten())
    _expect((bonds > 0).all(), 'an atom has no bond with a predicted distance')


def ignores_orientation(model, dtype):
    """Rotated and mirrored crystals relax to the rotated and mirrored structures."""
    for rotation in _orthogonal(2):
        _same(model, dtype, lambda atoms, r=rotation: (_rotated(atoms, r), r, None))


def ignores_origin(model, dtype):
    """A rigid translation changes nothing."""

    def move(atoms):
        moved = atoms.copy()
        moved.positions += [0.31, 1.77, -2.13]
        return moved, np.eye(3), None

    _same(model, dtype, move)


def ignores_order(model, dtype):
    """Atoms may come in any order."""
    rng = np.random.default_rng(1)

    def permute(atoms):
        order = rng.permutation(len(atoms))
        return atoms[order], np.eye(3), order

    _same(model, dtype, permute)


def ignores_images(model, dtype):
    """Atoms may be written in any periodic image, and stay in it."""
    rng = np.random.default_rng(2)

    def scatter(atoms):
        moved = atoms.copy()
        moved.positions += rng.integers(-3, 4, (len(atoms), 3)) @ atoms.cell.array
        return moved, np.eye(3), None

    _same(model, dtype, scatter)


def ignores_lattice_vectors(model, dtype):
    """Any three vectors that span the lattice will do, left-handed ones too."""
    for matrix in ([[1, 0, 0], [1, 1, 0], [-1, 2, 1]], [[0, 1, 0], [1, 0, 1], [0, 0, 1]]):

        def choose(atoms, matrix=matrix):
            moved = atoms.copy()
            moved.set_cell(np.array(matrix) @ atoms.cell.array)
            return moved, np.eye(3), None

        _same(model, dtype, choose)


def ignores_supercell(model, dtype):
    """A 2x1x1 supercell relaxes as its cell does; for models that do not see the cell."""
    if model.spec.canonical:
        return
    crystals = generic_crystals(_elements(model)) + symmetric_crystals(4, _elements(model))
    large = [atoms.repeat((2, 1, 1)) for atoms in crystals]
    pairs = zip(
        _results(model, dtype, crystals), _results(model, dtype, large), strict=True
    )
    for one, two in pairs:
        displacement = np.concatenate([one.displacement] * 2)
        _close(two, one.deformation, displacement, SUPERCELL_TOLERANCE, 'the supercell')


def ignores_company(model, dtype):
    """What shares the batch does not matter."""
    for symmetry, crystals in _both_kinds(model):
        together = _results(model, dtype, crystals, symmetry)
        for atoms, one in zip(crystals, together, strict=True):
            (alone,) = _results(model, dtype, [atoms], symmetry)
            where = f'{atoms.symbols} alone'
            _close(alone, one.deformation, one.displacement, BATCH_TOLERANCE[dtype], where)


def leaves_input_alone(model, dtype):
    """The atoms handed in are bit for bit what they were."""
    crystals = generic_crystals(_elements(model))
    before = [atoms.copy() for atoms in crystals]
    _results(model, dtype, crystals)
    for atoms, copied in zip(crystals, before, strict=True):
        _expect(atoms == copied, f'{copied.symbols} was changed')


def keeps_single_atoms(model, dtype):
    """In a cell of one atom only the cell can relax."""
    for name, structure in (('Cu', 'fcc'), ('Fe', 'bcc'), ('Po', 'sc')):
        atoms = bulk(name, structure, a=3.4)
        atoms.numbers[:] = _elements(model)[0]
        (result,) = _results(model, dtype, [atoms])
        _expect(result.dmax < 1e-6, f'one atom moved by {result.dmax:.1e} A')
        _expect(np.isfinite(result.sigma), 'sigma is not finite')


def keeps_space_group(model, dtype, n=100):
    """The space group is not lowered, by equivariance or, without it, by projection."""
    symmetry = 'keep' if model.spec.canonical else 'free'
    crystals = symmetric_crystals(n, _elements(model))
    for atoms, result in zip(
        crystals, _results(model, dtype, crystals, symmetry), strict=True
    ):
        before, after = (
            len(find_symmetry(structure, SYMPREC).rotations)
            for structure in (atoms, result.atoms)
        )
        _expect(after >= before, f'{atoms.symbols}: {before} operations became {after}')


CHECKS = (
    says_something,
    output_is_sound,
    ignores_orientation,
    ignores_origin,
    ignores_order,
    ignores_images,
    ignores_lattice_vectors,
    ignores_supercell,
    ignores_company,
    leaves_input_alone,
    keeps_single_atoms,
    keeps_space_group,
)


def _elements(model):
    """Eight elements that the model knows."""
    known = getattr(model, 'card', {}).get('elements') or (3, 8, 12, 13, 22, 26, 38, 50)
    return tuple(known[:: max(1, len(known) // 8)][:8])


def _both_kinds(model):
    """Crystals without symmetry as the network sees them, symmetric ones projected.

    A solver that starts on a symmetric saddle point leaves it to where rounding says.
    """
    elements = _elements(model)
    return (
        ('free', generic_crystals(elements)),
        ('keep', symmetric_crystals(6, elements)),
    )


def _results(model, dtype, crystals, symmetry='free'):
    predictor = Predictor(model, device='cpu', dtype=dtype, symmetry=symmetry)
    return predictor.relax(crystals, on_bad='raise')


def _same(model, dtype, change):
    """Predictions before and after ``change(atoms) -> atoms, rotation, order`` agree."""
    for symmetry, crystals in _both_kinds(model):
        changed = [change(atoms) for atoms in crystals]
        before = _results(model, dtype, crystals, symmetry)
        after = _results(model, dtype, [new for new, *_ in changed], symmetry)
        for one, two, (_, r, order) in zip(before, after, changed, strict=True):
            displacement = one.displacement if order is None else one.displacement[order]
            where = f'{one.atoms.symbols} (symmetry={symmetry!r})'
            _close(
                two, r.T @ one.deformation @ r, displacement @ r, TOLERANCE[dtype], where
            )


def _close(result, deformation, displacement, tolerance, where):
    cell = result.initial.cell.array @ (result.deformation - deformation)
    error = max(np.abs(cell).max(), np.abs(result.displacement - displacement).max())
    _expect(
        error <= tolerance, f'{where} differs by {error:.1e} A, allowed is {tolerance:g}'
    )


def _orthogonal(n):
    """Random orthogonal matrices, proper and improper in turn."""
    rng = np.random.default_rng(3)
    matrices = np.linalg.qr(rng.standard_normal((n, 3, 3)))[0]
    sign = np.sign(np.linalg.det(matrices)) * (-1.0) ** np.arange(n)
    return matrices * sign[:, None, None]


def _rotated(atoms, rotation):
    rotated = atoms.copy()
    rotated.set_cell(atoms.cell.array @ rotation)
    rotated.positions = atoms.positions @ rotation
    return rotated


def _expect(holds, message):
    """Raise, also under ``python -O``."""
    if not holds:
        raise AssertionError(message)
