"""Unrelaxed structures to make pairs from: made from relaxed ones, or given."""

from ase_deeprelax.train.inputs.alloys import AlloyRecipe, Alloys
from ase_deeprelax.train.inputs.defects import DefectRecipe, Defects, LayerDefects
from ase_deeprelax.train.inputs.given import Given, Structures
from ase_deeprelax.train.inputs.prototypes import PrototypeRecipe, Prototypes
from ase_deeprelax.train.inputs.series import KINDS, Kind, Series, needs_hubbard
from ase_deeprelax.train.inputs.slabs import SlabRecipe, Slabs
from ase_deeprelax.train.inputs.substitutions import (
    FixedCells,
    Monolayers,
    Recipe,
    Substitutions,
    substitute,
)

# The series of each kind; `Prototypes` need no relaxed structures.
SERIES = {
    series.kind: series
    for series in (
        Substitutions,
        FixedCells,
        Monolayers,
        Slabs,
        Defects,
        LayerDefects,
        Alloys,
        Prototypes,
    )
}

__all__ = [
    'KINDS',
    'SERIES',
    'AlloyRecipe',
    'Alloys',
    'DefectRecipe',
    'Defects',
    'FixedCells',
    'Given',
    'Kind',
    'LayerDefects',
    'Monolayers',
    'PrototypeRecipe',
    'Prototypes',
    'Recipe',
    'Series',
    'SlabRecipe',
    'Slabs',
    'Structures',
    'Substitutions',
    'needs_hubbard',
    'substitute',
]
