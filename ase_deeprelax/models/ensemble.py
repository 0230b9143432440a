"""Members' mean and their disagreement as one model (paper eqs. 21-23).

Equation numbers are those of Yang et al., Nat. Commun. 15, 8148 (2024).
"""

import torch
from torch import nn

from ase_deeprelax.errors import ModelError
from ase_deeprelax.models.base import ModelOutput, RelaxationModel


def combine(distances, log_b):
    """Mean distance and total bond uncertainty of an ensemble, eqs. 21-23.

    The deviation of a member from the mean is taken as its absolute value, so that it is
    a length like the Laplace scale beside it. As in the paper the members' contributions
    are added, so totals of ensembles of different size do not compare.

    Parameters
    ----------
    distances : (n_models, n_bonds), A
        Predicted by each member for the same bonds.
    log_b : (n_models, n_bonds)

    Returns
    -------
    mean : (n_bonds,), A
    total : (n_bonds,), A

    Examples
    --------
    >>> combine(torch.tensor([[2.0], [2.2]]), torch.zeros(2, 1))
    (tensor([2.1000]), tensor([2.2000]))
    """
    mean = distances.mean(0)
    model = (distances - mean).abs()
    return mean, (log_b.exp() + model).sum(0)


class Ensemble(RelaxationModel):
    """Several networks as one model (paper 4.7): replicas of one, or of different forms.

    Strain and displacements are the members' means, distances those of eq. 22. The scale
    of a bond is the mean, not the sum, of the members' contributions to eq. 23: a length
    that compares with that of a single model, whose scale says what the data leave open
    and not what training does.

    Parameters
    ----------
    members : list of RelaxationModel
        That want the same graph, as `load_model` gives them; `relax` takes the ensemble as
        its ``model``.

    Raises
    ------
    ModelError
        No members, or members that want different graphs.

    Examples
    --------
    >>> from ase_deeprelax.models import create_model
    >>> members = [create_model('paegnn', hidden=16, layers=2) for _ in range(3)]
    >>> len(Ensemble(members).members)
    3
    """

    def __init__(self, members):
        super().__init__()
        if not members:
            raise ModelError('an ensemble needs members; hand in a list of models')
        specs = [member.spec for member in members]
        for k, spec in enumerate(specs):
            if spec != specs[0]:
                raise ModelError(
                    f'member {k} wants the graph {spec}, member 0 {specs[0]}; the members '
                    'of an ensemble share one graph'
                )
        self.members = nn.ModuleList(members)
        self.spec = specs[0]
        self.name = f'ensemble of {len(members)}'
        cards = [getattr(member, 'card', {}) for member in members]
        seen = [set(card['elements']) for card in cards if card.get('elements')]
        self.card = {
            **cards[0],
            'elements': sorted(set.intersection(*seen)) if seen else [],
            'learned': [
                what
                for what in cards[0].get('learned', ['bulk'])
                if all(what in card.get('learned', ['bulk']) for card in cards)
            ],
            'second_look': all(card.get('second_look', False) for card in cards),
        }

    def forward(self, graph):
        """ModelOutput for a batch of graphs."""
        said = [member(graph) for member in self.members]
        distance, log_b = self._combine([(p.distance, p.log_b) for p in said])
        prediction = ModelOutput(
            torch.stack([p.deformation for p in said]).mean(0),
            torch.stack([p.displacement for p in said]).mean(0),
            said[0].bond_index,
            distance,
            log_b,
        )
        if said[0].anchor_index is not None:
            prediction.anchor_index = said[0].anchor_index
            prediction.anchor_distance, prediction.anchor_log_b = self._combine(
                [(p.anchor_distance, p.anchor_log_b) for p in said]
            )
        return prediction

    def _combine(self, said):
        distances, scales = zip(*said, strict=True)
        mean, total = combine(torch.stack(distances), torch.stack(scales))
        return mean, (total / len(said)).log()
