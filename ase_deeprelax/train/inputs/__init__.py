"""Unrelaxed structures to make pairs from: made from relaxed ones, or given."""

from ase_deeprelax.train.inputs.defects import DefectRecipe, Defects
from ase_deeprelax.train.inputs.given import Structures
from ase_deeprelax.train.inputs.series import Series, needs_hubbard
from ase_deeprelax.train.inputs.slabs import SlabRecipe, Slabs
from ase_deeprelax.train.inputs.substitutions import (
    FixedCells,
    Monolayers,
    Recipe,
    Substitutions,
    substitute,
)

__all__ = [
    'DefectRecipe',
    'Defects',
    'FixedCells',
    'Monolayers',
    'Recipe',
    'Series',
    'SlabRecipe',
    'Slabs',
    'Structures',
    'Substitutions',
    'needs_hubbard',
    'substitute',
]
