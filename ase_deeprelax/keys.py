"""The flat names this package writes into ``atoms.info`` and ``atoms.arrays``.

Flat scalars with one prefix survive .traj and .extxyz; nested dicts and ``None`` do not,
so none are written. Numbers per atom go into ``arrays`` (kept by extxyz) and into ``info``
(kept by .traj).
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

PREFIX = 'deeprelax_'

SIGMA = 'deeprelax_sigma'  # info, float, A: mean bond-level uncertainty of the structure
SIGMA_MAX = 'deeprelax_sigma_max'  # info, float, A: largest per-atom uncertainty
SIGMA_ATOMS = 'deeprelax_sigma_atoms'  # info, (n_atoms,), A: copy of arrays[SIGMA]
DMAX = 'deeprelax_dmax'  # info, float, A: largest displacement of an atom at fixed cell
VOLUME_RATIO = 'deeprelax_volume_ratio'  # info, float: predicted / input volume
RESIDUAL = 'deeprelax_residual'  # info, float, A: mean violation of the distance bounds
ERROR = 'deeprelax_error'  # info, float, A: expected error of the coordinates (mean)
# arrays and info, (n_atoms,), A: distances that 90 % of the errors do not exceed
POSITION_90 = 'deeprelax_position_90'
LATTICE_LOW = 'deeprelax_lattice_low'  # info, (3,), A: 90 % intervals of the lengths of
LATTICE_HIGH = 'deeprelax_lattice_high'  # the lattice vectors
VOLUME_LOW = 'deeprelax_volume_low'  # info, float, A^3: 90 % interval of the volume
VOLUME_HIGH = 'deeprelax_volume_high'
NOVELTY = 'deeprelax_novelty'  # info, float: above 1, atoms are unlike those in training
MODEL = 'deeprelax_model'  # info, str: name of the model
SHA256 = 'deeprelax_sha256'  # info, str: hash of its weights
VERSION = 'deeprelax_version'  # info, str: version of this package
KIND = 'deeprelax_kind'  # info, str: 'bulk', 'layer' or 'other', and ', cell fixed' if so
VERIFIED = 'deeprelax_verified'  # info, str: what one call of a potential says of it
ID = 'deeprelax_id'  # info, str: which structure of the inputs it is
STAGE = 'deeprelax_stage'  # info, str: 'predicted', or the refinement it is from
OOD = 'deeprelax_ood'  # info, str: why the input is outside the training range, if it is


def is_ours(name: object) -> bool:
    """Whether this package writes such a name; ``atoms.info`` may have names of any type.

    >>> is_ours('deeprelax_sigma'), is_ours(5)
    (True, False)
    """
    return isinstance(name, str) and name.startswith(PREFIX)


def ours(atoms: Atoms) -> dict[str, Any]:
    """Return the entries of ``atoms.info`` that this package wrote, as a new dict."""
    return {name: value for name, value in atoms.info.items() if is_ours(name)}


def strip(atoms: Atoms) -> None:
    """Remove the names of this package from ``atoms.info`` and ``atoms.arrays``."""
    for store in (atoms.info, atoms.arrays):
        for name in list(filter(is_ours, store)):
            del store[name]


def arrays_from_info(atoms: Atoms) -> None:
    """Copy the numbers per atom from ``atoms.info`` into ``atoms.arrays``.

    >>> from ase.build import bulk
    >>> salt = bulk('NaCl', 'rocksalt', a=5.6)
    >>> salt.info['deeprelax_sigma_atoms'] = [0.01, 0.02]
    >>> arrays_from_info(salt)
    >>> salt.arrays['deeprelax_sigma']
    array([0.01, 0.02])
    """
    for name, copied in ((SIGMA, SIGMA_ATOMS), (POSITION_90, POSITION_90)):
        if copied in atoms.info:
            atoms.arrays[name] = np.array(atoms.info[copied], dtype=float)


def to_key_value_pairs(atoms: Atoms) -> dict[str, Any]:
    """The scalars of this package in ``atoms.info``, for ``ase.db``'s ``key_value_pairs``.

    Parameters
    ----------
    atoms : ase.Atoms
        Relaxed by this package.

    Returns
    -------
    dict of str to float or str
        In the units of the names (A, A^3); without arrays, and without texts that read as
        a number, which databases refuse.

    Examples
    --------
    >>> from ase.build import bulk
    >>> copper = bulk('Cu')
    >>> copper.info |= {'deeprelax_sigma': 0.02, 'deeprelax_kind': 'bulk', 'mine': 1}
    >>> to_key_value_pairs(copper)
    {'deeprelax_sigma': 0.02, 'deeprelax_kind': 'bulk'}
    """
    return {name: value for name, value in ours(atoms).items() if is_column(name, value)}


def is_column(name: str, value: object) -> bool:
    """Whether ``ase.db`` takes a value as a column of this name, and finds it again.

    >>> is_column('gap', 1.1), is_column('note', '12'), is_column('moments', [0.1, 0.2])
    (True, False, False)
    """
    from ase.db.core import check  # takes a while, and few need it

    if isinstance(value, str) and not value:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # at names that read as a formula
        try:
            check({name: value})
        except (ValueError, UserWarning):
            return False
    return True
