"""Chemical formulas as they are printed, metals first, and the compositions they mean."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from math import gcd
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.formula import Formula
from numpy.typing import ArrayLike

from ase_deeprelax.errors import PairFileError

# The elements of a reduced formula and their counts, as ((Z, count), ...).
Composition = tuple[tuple[int, int], ...]

# The order of Table VI of the IUPAC nomenclature of inorganic chemistry (2005), which goes
# through the groups of the periodic table; pymatgen's `iupac_ordering` is the same.
ORDER = (
    'Rn Xe Kr Ar Ne He Fr Cs Rb K Na Li Ra Ba Sr Ca Mg Be '
    'Lr No Md Fm Es Cf Bk Cm Am Pu Np U Pa Th Ac '
    'Lu Yb Tm Er Ho Dy Tb Gd Eu Sm Pm Nd Pr Ce La Y Sc '
    'Hf Zr Ti Ta Nb V W Mo Cr Re Tc Mn Os Ru Fe Ir Rh Co Pt Pd Ni Au Ag Cu Hg Cd Zn '
    'Tl In Ga Al B Pb Sn Ge Si C Bi Sb As P N H Po Te Se S O At I Br Cl F'
)
_RANK = {symbol: rank for rank, symbol in enumerate(ORDER.split())}


def chemical_formula(atoms: Atoms, *, reduced: bool = True) -> str:
    """The formula of a structure, in the order of elements that IUPAC recommends.

    Parameters
    ----------
    atoms : ase.Atoms
    reduced : bool, default True
        One formula unit; False: all atoms.

    Returns
    -------
    str

    Examples
    --------
    >>> rocksalt = Atoms('Cl4Na4')
    >>> chemical_formula(rocksalt), chemical_formula(rocksalt, reduced=False)
    ('NaCl', 'Na4Cl4')
    >>> [chemical_formula(Atoms(name)) for name in ('CH4', 'AlLaO3', 'O2Si', 'O4SNa2')]
    ['CH4', 'LaAlO3', 'SiO2', 'Na2SO4']
    """
    counts = Counter(_symbol(number) for number in atoms.numbers.tolist())
    unit = gcd(*counts.values()) if reduced else 1
    ordered = sorted(counts, key=lambda symbol: (_RANK.get(symbol, len(_RANK)), symbol))
    return str(Formula.from_dict({symbol: counts[symbol] // unit for symbol in ordered}))


def _symbol(number: int) -> str:
    """The symbol of an atomic number, 'X' where there is no such element."""
    return chemical_symbols[number] if 0 < number < len(chemical_symbols) else 'X'


def element_counts(formula: str) -> dict[str, float]:
    """The elements of a formula as CIF files write it, blanks between, and their numbers.

    Deuterium counts as hydrogen. Empty where the text is no such formula.

    >>> element_counts('Na2 D20 S O14'), element_counts('(Na,K) Cl')
    ({'Na': 2.0, 'H': 20.0, 'S': 1.0, 'O': 14.0}, {})
    """
    parts = [re.fullmatch(r'([A-Z][a-z]?)(\d*\.?\d*)', part) for part in formula.split()]
    counts: dict[str, float] = defaultdict(float)
    for part in parts:
        if part is None:
            return {}
        symbol, number = part.groups()
        counts['H' if symbol == 'D' else symbol] += float(number or 1)
    return dict(counts)


def composition(numbers: ArrayLike) -> Composition:
    """The elements and counts of the reduced formula that these atomic numbers have.

    Parameters
    ----------
    numbers : (n_atoms,) int

    Returns
    -------
    tuple of (int, int)
        Atomic numbers in ascending order, each with its count in one formula unit.

    Examples
    --------
    >>> composition([17, 11, 11, 17])
    ((11, 1), (17, 1))
    """
    elements, counts = np.unique(numbers, return_counts=True)
    return tuple(
        zip(elements.tolist(), (counts // np.gcd.reduce(counts)).tolist(), strict=True)
    )


def read_compositions(path: Path) -> set[Composition]:
    """The compositions of a text file of formulas, which white space separates.

    Parameters
    ----------
    path : pathlib.Path

    Raises
    ------
    PairFileError
        It is no text, or a word in it is no formula.
    """
    word = ''
    found: set[Composition] = set()
    try:
        # Editors of Windows put a mark of byte order first.
        for word in path.read_text(encoding='utf-8-sig').split():
            found.add(composition(Atoms(word).numbers))
    except (ValueError, KeyError) as error:
        raise PairFileError(
            f'{path}: not a list of formulas, with blanks or line breaks between them: '
            f'{word[:40]!r} is none'
        ) from error
    return found
