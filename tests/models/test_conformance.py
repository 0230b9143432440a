import unittest

import pytest
import torch
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

from ase_deeprelax import testing
from ase_deeprelax.models import create_model
from ase_deeprelax.models.card import ModelCard
from ase_deeprelax.models.folders import available_models
from ase_deeprelax.models.paegnn import PUBLISHED
from ase_deeprelax.models.store import load_model

# Hyperparameters, and how loud the read-outs are: displacements of about 0.1 A. Distances
# that contradict each other wildly would test the solver's chaos instead.
SMALL = {'hidden': 32, 'layers': 2}
FORMS = {
    'paegnn': ('paegnn', SMALL, 0.3),
    'paegnn-published': ('paegnn', {**PUBLISHED, **SMALL}, 0.2),
    'e3relax-h2': ('e3relax-h2', SMALL, 0.02),
    'e3relax-h2-reference': ('e3relax-h2', {**SMALL, 'num_rbf': 16, 'reference': True}, 1),
}


@pytest.fixture(scope='module', params=[*FORMS, *available_models()])
def model(request):
    if request.param not in FORMS:
        return load_model(request.param)
    architecture, hyperparameters, scale = FORMS[request.param]
    torch.manual_seed(0)
    model = testing.awaken(create_model(architecture, **hyperparameters), scale=scale)
    if request.param == 'e3relax-h2':
        with torch.no_grad():  # its vectors are small before training
            for move in model.moves:
                move.vectors.weight *= 50
    return model


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('check', testing.CHECKS, ids=lambda check: check.__name__)
def test_model(model, check, dtype):
    check(model, dtype)


@pytest.mark.parametrize('elements', [(8,), (8, 22)])
@pytest.mark.parametrize('check', testing.CHECKS, ids=lambda check: check.__name__)
def test_model_of_few_elements(check, elements):
    architecture, hyperparameters, scale = FORMS['paegnn']
    model = testing.awaken(create_model(architecture, **hyperparameters), scale=scale)
    model.card = ModelCard(elements=elements)
    check(model, 'float64')


@pytest.mark.timeout(60)
@pytest.mark.parametrize('elements', [(55,), (37, 55), (87,)])
def test_crystals_of_large_atoms_alone_have_room(elements):
    for atoms in testing.symmetric_crystals(30, elements):
        i, j, distance = neighbor_list('ijd', atoms, 4.0)
        radii = covalent_radii[atoms.numbers]
        assert (distance > 0.7 * (radii[i] + radii[j])).all()


def test_check_that_does_not_apply_is_skipped():
    model = create_model('paegnn', **{**PUBLISHED, **SMALL})
    with pytest.raises(unittest.SkipTest, match='sees the choice of cell'):
        testing.ignores_supercell(model, 'float64')


def test_untrained_model_moves_nothing():
    model = create_model('paegnn', hidden=16, layers=2)
    with pytest.raises(AssertionError, match='displacement'):
        testing.says_something(model, 'float64')


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Anchored(type(create_model('paegnn', hidden=16, layers=2))):
    """A model that knows where the origin is."""

    def forward(self, graph):
        said = super().forward(graph)
        said.displacement = said.displacement + 0.01 * graph.pos.sin()
        return said


@pytest.mark.parametrize(
    'check',
    [testing.ignores_orientation, testing.ignores_origin, testing.keeps_space_group],
)
def test_checks_find_a_model_that_is_not_equivariant(check):
    with pytest.raises(AssertionError, match=r'differs by|operations became'):
        check(testing.awaken(Anchored(hidden=16, layers=2)), 'float64')


def test_check_finds_a_model_that_changes_its_input():
    class Vandal(Anchored):
        def forward(self, graph):
            said = super().forward(graph)
            graph.pos.add_(1.0)
            return said

    with pytest.raises(AssertionError, match=r'changed graph\.pos'):
        testing.output_is_sound(Vandal(hidden=16, layers=2).eval(), 'float32')


def test_check_finds_a_model_that_returns_something_else():
    class Dictionary(Anchored):
        def forward(self, graph):
            return vars(super().forward(graph))

    with pytest.raises(AssertionError, match='forward returned dict, not ModelOutput'):
        testing.output_is_sound(Dictionary(hidden=16, layers=2).eval(), 'float32')


@pytest.mark.parametrize('kept', [0, 1])
def test_check_finds_a_model_that_leaves_an_atom_without_bonds(kept):
    """The last atoms of the batch, or all of them."""

    class Lonely(Anchored):
        def forward(self, graph):
            said = super().forward(graph)
            said.displacement = said.displacement * 0
            first = graph.edge_index[:, said.bond_index].amax(dim=0) < kept
            said.bond_index, said.distance, said.log_b = (
                x[first] for x in (said.bond_index, said.distance, said.log_b)
            )
            return said

    with pytest.raises(AssertionError, match='an atom has no bond'):
        testing.output_is_sound(Lonely(hidden=16, layers=2).eval(), 'float32')


class Spoilt(type(create_model('paegnn', hidden=16, layers=2))):
    """A model of whose output one field is wrong."""

    def __init__(self, field, value):
        super().__init__(hidden=16, layers=2)
        self.field, self.value = field, value

    def forward(self, graph):
        said = super().forward(graph)
        setattr(said, self.field, self.value(said, graph))
        return said


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('displacement', lambda *_: None, 'displacement is NoneType, not a tensor'),
        (
            'distance',
            lambda said, _: said.distance[:, None],
            r'distance has shape \(\d+, 1\)',
        ),
        (
            'bond_index',
            lambda said, _: said.bond_index.float(),
            'bond_index is torch.float32',
        ),
        (
            'bond_index',
            lambda said, _: said.bond_index - 10**6,
            r'bond_index holds \[-\d+\]',
        ),
        (
            'bond_index',
            lambda said, _: said.bond_index // 2,
            'bond_index holds an edge twice',
        ),
        ('cross_index', lambda said, _: said.bond_index, 'cross_log_b belong together'),
        ('log_b', lambda said, _: said.log_b - 20, 'log_b is out of range'),
        ('features', lambda said, _: said.displacement[:1], r'features has shape \(1, 3\)'),
    ],
)
def test_check_names_what_is_wrong_with_an_output(field, value, message):
    with pytest.raises(AssertionError, match=message):
        testing.output_is_sound(Spoilt(field, value), 'float32')


def test_check_finds_features_that_turn_with_the_crystal():
    model = testing.awaken(Spoilt('features', lambda _, graph: graph.pos))
    with pytest.raises(AssertionError, match='features of turned crystals differ'):
        testing.ignores_orientation(model, 'float64')


def test_check_finds_a_move_that_depends_on_the_size_of_the_cell():
    """By so little that the solver takes it back."""

    def more(said, graph):
        sizes = graph.starts.diff().index_select(0, graph.graph_of_atom)
        return said.displacement * (1 + 1e-3 * sizes.unsqueeze(1))

    model = testing.awaken(Spoilt('displacement', more))
    with pytest.raises(AssertionError, match='what forward returns for a supercell'):
        testing.ignores_supercell(model, 'float64')


@pytest.mark.parametrize('check', testing.CHECKS, ids=lambda check: check.__name__)
def test_a_model_whose_predictions_are_refused_fails_each_check(check):
    model = Spoilt('displacement', lambda said, _: said.displacement * torch.nan)
    with pytest.raises(AssertionError, match='not finite'):
        check(model, 'float32')
