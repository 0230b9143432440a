"""From Laplace scales of bonds to the uncertainty of atoms, structures and ensembles.

Equation numbers are those of Yang et al., Nat. Commun. 15, 8148 (2024).
"""

import torch


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


def _mean(values, index, n):
    total = values.new_zeros(n).index_add_(0, index, values)
    return total / torch.bincount(index, minlength=n)
