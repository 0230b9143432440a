"""Which degrees of freedom vacuum, filters and constraints leave to a prediction.

What is held is held in the coordinates of ``ase.filters.FrechetCellFilter``, so that a
prediction and a refinement through that filter move in the same space:

* the cell changes by a deformation whose logarithm is projected on what ``relax_cell``,
  ``mask``, ``hydrostatic_strain``, ``constant_volume`` and ``FixSymmetry`` allow;
* all atoms, fixed ones too, follow the cell (they keep their fractional coordinates), and
  a constraint acts on the step that is left. Where the cell is held, a fixed atom
  therefore stays where it was, to the last bit;
* the vacuum vector of a layer stays, and its atoms follow the strain about its middle
  plane. Where nothing else is asked for, this strain may make the layer thicker.

A crystal has no origin: where constraints hold some atoms in part, the prediction is first
shifted rigidly to the place where they have least to take away.
"""

from ase_deeprelax.freedom.cell_filter import FreeCellFilter, free_cell
from ase_deeprelax.freedom.freedom import Freedom, find_freedom, unwrap
from ase_deeprelax.freedom.strain import RelaxCell, check_relax_cell

__all__ = [
    'FreeCellFilter',
    'Freedom',
    'RelaxCell',
    'check_relax_cell',
    'find_freedom',
    'free_cell',
    'unwrap',
]
