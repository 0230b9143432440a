"""Properties of the input that a network does not see, named once."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from ase import Atoms

from ase_deeprelax.data.formula import chemical_formula

log = logging.getLogger(__name__)

_named: set[str] = set()


def name_ignored(atoms: Atoms, structure: Any = None) -> None:
    """Log, once per process and kind, what the prediction does not depend on.

    Charges and magnetic moments stay where they are; only the network does not see them.

    Parameters
    ----------
    atoms : ase.Atoms
        The input.
    structure : pymatgen Structure, optional
        What the atoms were made of.
    """
    for what in _ignored(atoms, structure):
        if what not in _named:
            _named.add(what)
            log.warning(
                '%s: the input has %s, which the prediction does not depend on; they are '
                'kept. Further inputs are not named',
                chemical_formula(atoms),
                what,
            )


def _ignored(atoms: Atoms, structure: Any) -> list[str]:
    found = []
    for array, what in (
        ('initial_charges', 'atomic charges'),
        ('initial_magmoms', 'magnetic moments'),
    ):
        if array in atoms.arrays and np.any(atoms.arrays[array]):
            found.append(what)
    total = getattr(structure, '_charge', None) or atoms.info.get('charge')
    if isinstance(total, (int, float, np.number)) and total != 0:
        found.append('a total charge')
    spins = (getattr(site.specie, 'spin', None) for site in structure or ())
    if 'magnetic moments' not in found and any(spins):
        found.append('magnetic moments')
    return found
