"""From Laplace scales of bonds to the uncertainty of atoms, structures and ensembles.

Equation numbers are those of Yang et al., Nat. Commun. 15, 8148 (2024).
"""

import torch
from torch import nn

from ase_deeprelax.errors import ModelError
from ase_deeprelax.models.base import Prediction, RelaxationModel


def aggregate(sigma_bonds, bonds, graph_of_atom, n_graphs):
    """Uncertainty per atom and per structure.

    Parameters
    ----------
    sigma_bonds : (n_bonds,), A
        ``exp(log_b)`` of one model, or the total of an ensemble (`combine`).
    bonds : (2, n_bonds) int64
        The two atoms of each bond.
    graph_of_atom : (n_atoms,) int64
    n_graphs : int

    Returns
    -------
    sigma_atoms : (n_atoms,), A
        Mean over the bonds that start or end at the atom; nan for an atom without bonds.
    sigma : (n_graphs,), A
        Mean over the bonds of the structure (eq. 24); nan for one without bonds.

    Examples
    --------
    >>> atoms = torch.zeros(3, dtype=torch.long)
    >>> bonds = torch.tensor([[0, 0], [1, 2]])
    >>> aggregate(torch.tensor([0.1, 0.3]), bonds, atoms, 1)
    (tensor([0.2000, 0.1000, 0.3000]), tensor([0.2000]))
    """
    both_ends = bonds.flatten()
    sigma_atoms = _mean(sigma_bonds.repeat(2), both_ends, len(graph_of_atom))
    graph_of_bond = graph_of_atom.index_select(0, bonds[0])
    return sigma_atoms, _mean(sigma_bonds, graph_of_bond, n_graphs)


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
    """Replicas of one network, trained from different seeds, as one model (paper 4.7).

    Strain and displacements are the members' means, distances those of eq. 22. The scale
    of a bond is the mean, not the sum, of the members' contributions to eq. 23: a length
    that compares with that of a single model, whose scale says what the data leave open
    and not what training does.

    Parameters
    ----------
    members : list of RelaxationModel
        Of the same graph, as `load_model` gives them; `relax` takes the ensemble as its
        ``model``.

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
                    f'member {k} wants the graph {spec}, member 0 {specs[0]}; an ensemble '
                    'is made of replicas of one architecture'
                )
        self.members = nn.ModuleList(members)
        self.spec = specs[0]
        self.name = f'ensemble of {len(members)}'
        cards = [getattr(member, 'card', {}) for member in members]
        seen = [set(card['elements']) for card in cards if card.get('elements')]
        self.card = {
            **cards[0],
            'elements': sorted(set.intersection(*seen)) if seen else [],
        }

    def forward(self, graph):
        """Prediction for a batch of graphs."""
        said = [member(graph) for member in self.members]
        distance, log_b = self._combine([(p.distance, p.log_b) for p in said])
        prediction = Prediction(
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


def _mean(values, index, n):
    total = values.new_zeros(n).index_add_(0, index, values)
    return total / torch.bincount(index, minlength=n)
