"""Small alloys off their minimum, for relaxations with EMT."""

import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT


def alloy(a=3.75, seed=2):
    """Cu3Au with rattled atoms."""
    atoms = bulk('Cu', cubic=True, a=a)
    atoms.symbols[0] = 'Au'
    atoms.rattle(0.1, seed=seed)
    return atoms


def alloy_with_emt():
    """Cu3Au with rattled atoms and a calculator."""
    atoms = alloy(a=None, seed=0)
    atoms.calc = EMT()
    return atoms


def strained_alloy(seed=0, a=3.8):
    """Cu3Au off its minimum, in strain and in positions."""
    rng = np.random.default_rng(seed)
    atoms = bulk('Cu', a=a, cubic=True)
    atoms.symbols[0] = 'Au'
    atoms.set_cell(
        atoms.cell.array @ (np.eye(3) + rng.uniform(-0.02, 0.02, (3, 3))), scale_atoms=True
    )
    atoms.positions += rng.uniform(-0.1, 0.1, (4, 3))
    return atoms


def place(atoms):
    """(n_atoms + 3, 3): all that a relaxation changes."""
    return np.concatenate([atoms.positions, atoms.cell.array])
