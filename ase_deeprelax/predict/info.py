"""What a prediction leaves in the ``info`` and ``arrays`` of its atoms."""

from __future__ import annotations

import numpy as np

from ase_deeprelax import keys
from ase_deeprelax.result import Relaxation


def write_info(result: Relaxation) -> None:
    """Write the flat names of `keys` into the relaxed atoms; those of an input go."""
    info, sigma_atoms = result.atoms.info, result.sigma_atoms
    keys.strip(result.atoms)
    info[keys.SIGMA] = result.sigma
    info[keys.SIGMA_MAX] = float(sigma_atoms.max())
    # A list: pymatgen cannot compare structures whose properties hold arrays.
    info[keys.SIGMA_ATOMS] = sigma_atoms.tolist()
    info[keys.DMAX] = result.dmax
    info[keys.VOLUME_RATIO] = result.volume_ratio
    info[keys.RESIDUAL] = result.residual
    if np.isfinite(result.error):
        _write_errors(result)
    info[keys.MODEL] = result.model
    info[keys.SHA256] = result.sha256
    info[keys.VERSION] = result.version
    info[keys.KIND] = result.kind
    info[keys.STAGE] = 'predicted'
    if result.ood:  # extxyz cannot hold an empty string: it swallows what follows it
        info[keys.OOD] = result.ood
    keys.arrays_from_info(result.atoms)


def _write_errors(result: Relaxation) -> None:
    """The names of `keys` that a calibration fills."""
    info = result.atoms.info
    info[keys.ERROR] = result.error
    info[keys.POSITION_90] = result.position_90.tolist()
    info[keys.LATTICE_LOW], info[keys.LATTICE_HIGH] = result.lattice_90.T.tolist()
    if np.isfinite(result.volume_90).all():
        info[keys.VOLUME_LOW], info[keys.VOLUME_HIGH] = result.volume_90.tolist()
    if np.isfinite(result.novelty):
        info[keys.NOVELTY] = result.novelty
