"""The frozen record of one relaxation."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from ase import Atoms


@dataclass(frozen=True, eq=False)
class Relaxation:
    """One prediction: the relaxed structure, how far to trust it, where it came from.

    With rows as vectors, the relaxed structure is ``cell = cell0 @ deformation`` and
    ``positions = (positions0 + displacement) @ deformation``.

    Attributes
    ----------
    atoms : ase.Atoms
        The relaxed structure; where ``ok`` is False, a copy of the input.
    initial : ase.Atoms
        A copy of the input.
    deformation : (3, 3) array
        Stretch of the cell (row vectors multiply it from the left); symmetric where all of
        the cell could change.
    displacement : (n_atoms, 3) array, A
        Displacements at the unrelaxed cell, without rigid drift.
    sigma : float, A
        System-level uncertainty, the mean over bonds (paper eq. 24).
    sigma_atoms : (n_atoms,) array, A
        Mean over the bonds of each atom.
    bonds : (n_bonds, 2) int array
        Atoms ``i, j`` of each bond of the model's graph.
    bond_offsets : (n_bonds, 3) int array
        Lattice translation of ``j``, for atoms wrapped into the cell.
    sigma_bonds : (n_bonds,) array, A
        Laplace scale of each bond's predicted distance.
    residual : float, A
        Mean violation of the distance bounds that the solver left.
    ok : bool
        Whether the prediction passed the checks.
    problem : str
        Why not, or ''.
    ood : str
        Why the input lies outside the training range, or ''.
    kind : str
        What was relaxed: 'bulk' or 'layer' (or slab), with ', cell held' where only atoms
        could move.
    model, sha256, version : str
        Provenance.
    timings : dict of str to float, s
        Wall time per part, shared evenly among the structures of a pack.
    """

    atoms: Atoms
    initial: Atoms
    deformation: np.ndarray
    displacement: np.ndarray
    sigma: float
    sigma_atoms: np.ndarray
    bonds: np.ndarray
    bond_offsets: np.ndarray
    sigma_bonds: np.ndarray
    residual: float
    ok: bool
    problem: str
    ood: str
    kind: str
    model: str
    sha256: str
    version: str
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def structure(self):
        """The relaxed structure as a ``pymatgen.core.Structure``."""
        from pymatgen.io.ase import AseAtomsAdaptor

        return AseAtomsAdaptor.get_structure(self.atoms)

    @cached_property
    def spacegroup(self):
        """Space group numbers before and after (symprec 1e-2), 0 where not determined.

        Found when first asked for: finding them takes longer than the prediction.
        """
        from ase_deeprelax.geometry.symmetry import spacegroup_number

        if not self.ok:
            return 0, 0
        return spacegroup_number(self.initial), spacegroup_number(self.atoms)

    @property
    def dmax(self):
        """Largest displacement of an atom at the unrelaxed cell, A."""
        return float(np.linalg.norm(self.displacement, axis=1).max(initial=0.0))

    @property
    def volume_ratio(self):
        """Predicted over input volume."""
        return float(np.linalg.det(self.deformation))


def no_uncertainty(n_atoms):
    """The fields of a `Relaxation` of which nothing is known without a model's answer.

    >>> no_uncertainty(2)['sigma_atoms']
    array([nan, nan])
    """
    return {
        'sigma': np.nan,
        'sigma_atoms': np.full(n_atoms, np.nan),
        'bonds': np.zeros((0, 2), dtype=np.int64),
        'bond_offsets': np.zeros((0, 3), dtype=np.int64),
        'sigma_bonds': np.zeros(0),
        'residual': np.nan,
    }
