"""From structures to checked, relaxed structures with an uncertainty.

checks -> graphs -> packs -> network -> distance geometry -> symmetry -> checks
"""

from ase_deeprelax.predict.predictor import Predictor, relax
from ase_deeprelax.predict.prepare import PARTS

__all__ = ['PARTS', 'Predictor', 'relax']
