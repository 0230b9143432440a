"""pymatgen's matcher of structures, with the same answers in less time."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from pymatgen.analysis.structure_matcher import SpeciesComparator, StructureMatcher
from pymatgen.core import Composition, Element, Structure

# So many reduced structures are kept: a pair and the predictions for it need a few.
KEPT = 32


class SameElement(SpeciesComparator):
    """Whether two sites hold the same element.

    `SpeciesComparator` compares occupancies, which are all 1 here; that takes most of the
    time where hundreds of atoms meet hundreds.
    """

    def are_equal(self, sp1: Composition, sp2: Composition) -> bool:
        return next(iter(sp1)) == next(iter(sp2))


class Matcher(StructureMatcher):
    """`StructureMatcher` for structures of elements.

    It keeps reduced structures, too, but looks them up by comparing each site with each
    other one, which takes longer than to reduce them again.

    Parameters
    ----------
    **settings
        As `StructureMatcher` takes them.

    Examples
    --------
    >>> copper = Structure(3.6 * np.eye(3), ['Cu'], [[0.0, 0.0, 0.0]])
    >>> float(Matcher(scale=False).get_rms_dist(copper, copper)[0])
    0.0
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(comparator=SameElement(), **settings)

    @classmethod
    def _get_reduced_structure(
        cls, struct: Any, primitive_cell: bool = True, niggli: bool = True
    ) -> Structure:
        """A new copy of the reduced structure, whose lattice the matcher may scale."""
        return _reduced(
            struct.lattice.matrix.tobytes(),
            struct.frac_coords.tobytes(),
            struct.atomic_numbers,
            primitive_cell,
            niggli,
        ).copy()


@lru_cache(maxsize=KEPT)
def _reduced(
    lattice: bytes,
    coordinates: bytes,
    numbers: tuple[int, ...],
    primitive_cell: bool,
    niggli: bool,
) -> Structure:
    """A structure as pymatgen reduces it; its arrays are given as bytes, to be keys."""
    cell, positions = (np.frombuffer(x).reshape(-1, 3) for x in (lattice, coordinates))
    structure = Structure(cell, [Element.from_Z(z) for z in numbers], positions)
    if niggli:
        structure = structure.get_reduced_structure(reduction_algo='niggli')
    return structure.get_primitive_structure() if primitive_cell else structure
