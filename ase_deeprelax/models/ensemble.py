"""Members' mean and their disagreement as one model (paper eqs. 21-23).

Equation numbers are those of Yang et al., Nat. Commun. 15, 8148 (2024).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ase_deeprelax.data.graph import CrystalGraph
from ase_deeprelax.errors import ModelError
from ase_deeprelax.models.base import (
    GraphNetwork,
    ModelOutput,
    RelaxationModel,
    takes_topology,
)
from ase_deeprelax.models.card import TASKS, ModelCard
from ase_deeprelax.models.topology import Topology


def combine(
    distances: torch.Tensor, log_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
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


def common_card(cards: list[ModelCard]) -> ModelCard:
    """The card of an ensemble: what its members have in common.

    Training and errors of the members are left out; those of the ensemble are others.

    A card that lists no elements, or gives no range, does not narrow those of the others.

    Examples
    --------
    >>> oxides = ModelCard(elements=(8, 12, 22), ranges={'n_atoms': (1, 40)})
    >>> small = ModelCard(elements=(8, 12), ranges={'n_atoms': (2, 20)})
    >>> card = common_card([oxides, small])
    >>> card.elements, card.ranges
    ((8, 12), {'n_atoms': (2, 20)})
    """
    seen = [set(card.elements) for card in cards if card.elements]
    limits: dict[str, list[tuple[float, float]]] = {}
    for card in cards:
        for name, limit in card.ranges.items():
            limits.setdefault(name, []).append(limit)
    return ModelCard(
        licence=', '.join(dict.fromkeys(card.licence for card in cards if card.licence)),
        elements=tuple(sorted(set.intersection(*seen))) if seen else (),
        learned=tuple(task for task in TASKS if all(task in c.learned for c in cards)),
        ranges={
            name: (max(low for low, _ in several), min(high for _, high in several))
            for name, several in limits.items()
        },
        saw_relaxed=all(card.saw_relaxed for card in cards),
    )


class Ensemble(GraphNetwork):
    """Several networks as one model (paper 4.7): replicas of one, or of different forms.

    Strain and displacements are the members' means, distances those of eq. 22. The scale
    of a bond is the mean, not the sum, of the members' contributions to eq. 23: a length
    that compares with that of a single model, whose scale covers what the data leave open
    but not what training does.

    Parameters
    ----------
    members : list of RelaxationModel
        That want the same graph, as `load_model` gives them; `relax` takes the ensemble as
        its ``model``.

    Raises
    ------
    ModelError
        No members, members that are no models, or that want different graphs.

    Examples
    --------
    >>> from ase_deeprelax.models import create_model
    >>> members = [create_model('paegnn', hidden=16, layers=2) for _ in range(3)]
    >>> len(Ensemble(members).members)
    3
    """

    def __init__(self, members: list[RelaxationModel]):
        super().__init__()
        if not members:
            raise ModelError('an ensemble needs members; hand in a list of models')
        for k, member in enumerate(members):
            if not isinstance(member, RelaxationModel):
                raise ModelError(
                    f'member {k} is {member!r}, and no model; load_model makes one of a '
                    'name or a folder'
                )
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
        self.card = common_card([member.card for member in members])

    def predict(self, graph: CrystalGraph, topology: Topology) -> ModelOutput:
        """Predict for a batch of graphs, see `ModelOutput`."""
        outputs: list[Any] = [
            member(graph, topology) if takes_topology(member) else member(graph)
            for member in self.members
        ]
        first = outputs[0]
        for k, output in enumerate(outputs[1:], start=1):
            _check_same_edges(k, output, first)
        distance, log_b = combine(
            torch.stack([o.distance for o in outputs]),
            torch.stack([o.log_b for o in outputs]),
        )
        output = ModelOutput(
            torch.stack([o.deformation for o in outputs]).mean(0),
            torch.stack([o.displacement for o in outputs]).mean(0),
            first.bond_index,
            distance,
            self._mean_log(log_b),
            features=first.features,
        )
        if first.cross_index is not None:
            distance, log_b = combine(
                torch.stack([o.cross_distance for o in outputs]),
                torch.stack([o.cross_log_b for o in outputs]),
            )
            output.cross_index = first.cross_index
            output.cross_distance, output.cross_log_b = distance, self._mean_log(log_b)
        return output

    def _mean_log(self, total: torch.Tensor) -> torch.Tensor:
        return (total / len(self.members)).log()


def _check_same_edges(k: int, output: ModelOutput, first: ModelOutput) -> None:
    """Refuse member ``k`` if its distances are not of the edges that member 0 predicts."""
    for name in ('bond_index', 'cross_index'):
        one, other = getattr(first, name), getattr(output, name)
        if one is None or one is other:
            continue
        if other is None or not torch.equal(one, other):
            raise ModelError(
                f'member {k} of the ensemble gives distances of other edges than member 0 '
                f'({name}); all members must number the same edges in the same order, as '
                'those of `topology` are'
            )
