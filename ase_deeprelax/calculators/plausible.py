"""Whether a potential computes what its weights were trained for."""

from __future__ import annotations

from typing import Any

from ase import Atoms, units

# Rock salt at its lattice constant of PBE, A. Its bulk modulus is 24 GPa; other functionals
# and potentials are within 4 GPa of zero. Weights that were made for other directions of
# edges give 14 GPa.
LATTICE_CONSTANT = 5.69
MOST_PRESSURE = 6.0


def salt() -> Atoms:
    """Rock salt, the crystal that every universal potential gets right."""
    from ase.build import bulk  # which reads tables of molecules and space groups

    return bulk('NaCl', 'rocksalt', a=LATTICE_CONSTANT)


def problem_with(calculator: Any) -> str:
    """Why a potential for many elements cannot be trusted, or '' if it can.

    Parameters
    ----------
    calculator : ase Calculator
        With a stress in eV/A^3.

    Examples
    --------
    >>> from ase.calculators.lj import LennardJones
    >>> problem_with(LennardJones(sigma=2.5, epsilon=1.0)).partition(' of ')[0]
    'NaCl is under a pressure'
    """
    stress = calculator.get_property('stress', salt())
    pressure = -stress[:3].mean() / units.GPa
    if abs(pressure) <= MOST_PRESSURE:
        return ''
    return (
        f'NaCl is under a pressure of {pressure:.1f} GPa at its lattice constant of PBE '
        f'({LATTICE_CONSTANT} A), where it should be near 0'
    )
