"""Partial occupancy: the one place that refuses disordered structures.

Prediction, refinement, comparison and labelling call `check_ordered`. Structures of
pymatgen say by themselves whether they are ordered, see `data.structures.as_atoms`.
"""

from __future__ import annotations

import json
import math
import numbers
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms

from ase_deeprelax.errors import StructureError

# Shares closer to 1 than this are whole: files are written with few digits.
ROUNDING = 1e-3
# How CIF files say that a number is not known or does not apply.
UNKNOWN = ('', '?', '.')
NAMES = ('occupancy', 'occupancies', 'site_occupancy', 'site_occupancies')


def check_ordered(atoms: Atoms) -> None:
    """Refuse sites that are partially occupied, or shared by several elements.

    Read are ``atoms.info['occupancy']``, which ASE's CIF reader writes (shares of elements
    by the number of the kind of site, ``atoms.arrays['spacegroup_kinds']``), and numbers of
    that name, in any case, in ``info`` or ``arrays``, per atom or one for all of them. An
    occupancy that is not known, ``?`` or ``.`` in a CIF file, counts as 1.

    Parameters
    ----------
    atoms : ase.Atoms

    Raises
    ------
    StructureError
        Naming the kind of site or the atom, and its shares.

    Examples
    --------
    >>> from ase.build import bulk
    >>> salt = bulk('NaCl', 'rocksalt', a=5.6)
    >>> salt.info['occupancy'] = {'0': {'Na': '?'}, '1': {'Cl': 1.0}}
    >>> check_ordered(salt)
    >>> salt.info['occupancy']['0'] = {'Na': 0.5, 'K': 0.5}
    >>> check_ordered(salt)
    Traceback (most recent call last):
    ...
    ase_deeprelax.errors.StructureError: site kind 0 is partially occupied (Na 0.5, ...
    """
    for name in filter(_means_occupancy, atoms.info):
        _check_info(atoms, name)
    for name in filter(_means_occupancy, atoms.arrays):
        _check_per_atom(atoms, atoms.arrays[name], f'atoms.arrays[{name!r}]')


def _means_occupancy(name: Any) -> bool:
    return isinstance(name, str) and name.lower() in NAMES


def _check_info(atoms: Atoms, name: str) -> None:
    occupancy, where = atoms.info[name], f'atoms.info[{name!r}]'
    if isinstance(occupancy, str):  # as some files keep a dict
        try:
            occupancy = json.loads(occupancy.removeprefix('_JSON').strip())
        except (ValueError, RecursionError):
            return
    if isinstance(occupancy, Mapping):
        _check_kinds(atoms, occupancy, where)
    elif isinstance(occupancy, (list, tuple, np.ndarray)):
        _check_per_atom(atoms, occupancy, where)
    elif isinstance(occupancy, numbers.Real):
        _check_site(float(occupancy), 'each atom', where)


def _check_kinds(atoms: Atoms, occupancy: Mapping[Any, Any], where: str) -> None:
    """Shares by the kind of site; kinds of which no atom is left do not matter."""
    kinds = atoms.arrays.get('spacegroup_kinds')
    left = None if kinds is None else {str(int(kind)) for kind in kinds}
    for kind, shares in occupancy.items():
        if left is None or str(kind) in left:
            _check_site(shares, f'site kind {kind}', where)


def _check_per_atom(atoms: Atoms, occupancy: Any, where: str) -> None:
    if len(occupancy) != len(atoms):
        return
    for index, shares in enumerate(occupancy):
        _check_site(shares, f'atom {index} ({atoms.symbols[index]})', where)


def _check_site(shares: Any, site: str, where: str) -> None:
    named = shares if isinstance(shares, Mapping) else {'': shares}
    parts = {str(symbol): share_of(share) for symbol, share in named.items()}
    there = [share for share in parts.values() if share > ROUNDING]
    if len(there) == 1 and abs(there[0] - 1) < ROUNDING:
        return
    what = ', '.join(f'{symbol} {share:g}'.strip() for symbol, share in parts.items())
    once = len(there) != 1 or there[0] < 1
    extent = 'partially' if once else 'more than once'
    raise StructureError(
        f'{site} is {extent} occupied ({what or "by nothing"}, says {where}); choose an '
        f'ordered arrangement, and delete {where} then'
    )


def share_of(value: Any) -> float:
    """The number that an occupancy is; 1 where it is not known.

    >>> share_of('0.50(2)'), share_of('?')
    (0.5, 1.0)
    """
    if value is None or (isinstance(value, str) and value.strip() in UNKNOWN):
        return 1.0
    if isinstance(value, str):  # as in 0.50(2)
        value = re.sub(r'\(\d+\)$', '', value.strip())
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise StructureError(
            f'the occupancy {value!r} is no number; correct or delete it'
        ) from None
    return 1.0 if math.isnan(number) else number
