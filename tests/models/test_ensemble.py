"""What several models as one say, and their card."""

import pytest
from ase.build import bulk

from ase_deeprelax.errors import ModelError
from ase_deeprelax.models import create_model
from ase_deeprelax.models.card import ModelCard
from ase_deeprelax.models.ensemble import Ensemble
from ase_deeprelax.predict import relax


def together(*cards):
    members = [create_model('egnn', hidden=16, layers=1) for _ in cards]
    for member, card in zip(members, cards, strict=True):
        member.card = card
    return Ensemble(members).card


def test_an_ensemble_knows_what_all_members_know():
    one = ModelCard(
        elements=(8, 12, 22),
        learned=('bulk', 'layer'),
        ranges={'n_atoms': (1.0, 40.0), 'volume_ratio': (0.5, 2.0)},
        saw_relaxed=True,
    )
    two = ModelCard(
        elements=(8, 22, 38), learned=('bulk',), ranges={'n_atoms': (2.0, 60.0)}
    )
    card = together(ModelCard(learned=one.learned, saw_relaxed=True), one)
    assert (card.elements, card.learned) == (one.elements, one.learned)
    assert (card.ranges, card.saw_relaxed) == (one.ranges, True)
    card = together(one, two)
    assert (card.elements, card.learned, card.saw_relaxed) == ((8, 22), ('bulk',), False)
    assert card.ranges == {'n_atoms': (2.0, 40.0), 'volume_ratio': (0.5, 2.0)}


@pytest.mark.parametrize('other', ['MIT', 'CC-BY-4.0'])
def test_the_errors_of_a_member_are_not_those_of_the_ensemble(other):
    member = ModelCard(
        name='mine', licence='MIT', training={'steps': 9}, metrics={'mae': 0.1}
    )
    card = together(member, ModelCard(licence=other))
    assert (card.name, card.training, card.metrics) == ('', {}, {})
    assert card.licence == ', '.join(dict.fromkeys(['MIT', other]))


def test_names_of_models_are_no_members():
    members = [create_model('egnn', hidden=16, layers=1), 'runs/mine/model']
    with pytest.raises(ModelError, match="member 1 is 'runs/mine/model', and no model"):
        Ensemble(members)


class Backwards(type(create_model('egnn', hidden=16, layers=1))):
    """Its distances are of the same edges, in another order."""

    def forward(self, graph):
        said = super().forward(graph)
        for name in ('bond_index', 'distance', 'log_b'):
            setattr(said, name, getattr(said, name).flip(0))
        return said


def test_distances_of_other_edges_are_not_averaged():
    members = [create_model('egnn', hidden=16, layers=1), Backwards(hidden=16, layers=1)]
    atoms = bulk('NaCl', 'rocksalt', a=5.6)
    for one in members:
        assert relax(atoms, model=Ensemble([one, one])).ok
    with pytest.raises(ModelError, match=r'member 1 .* other edges .*bond_index'):
        relax(atoms, model=Ensemble(members))
