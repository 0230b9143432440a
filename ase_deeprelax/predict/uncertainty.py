"""From Laplace scales of bonds to the uncertainty of atoms and structures.

Equation numbers are those of Yang et al., Nat. Commun. 15, 8148 (2024).
"""

from __future__ import annotations

import torch


def aggregate(
    sigma_bonds: torch.Tensor,
    bonds: torch.Tensor,
    graph_of_atom: torch.Tensor,
    n_graphs: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Uncertainty per atom and per structure.

    Parameters
    ----------
    sigma_bonds : (n_bonds,), A
        ``exp(log_b)`` of one model, or the total of an ensemble (`models.ensemble`).
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


def _mean(values: torch.Tensor, index: torch.Tensor, n: int) -> torch.Tensor:
    total = values.new_zeros(n).index_add_(0, index, values)
    return total / torch.bincount(index, minlength=n)
