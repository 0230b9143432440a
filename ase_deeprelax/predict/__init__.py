"""From structures to checked, relaxed structures with an uncertainty.

checks -> graphs -> packs -> network -> distance geometry -> symmetry -> checks
"""

from ase_deeprelax.predict.job import PARTS
from ase_deeprelax.predict.predictor import Predictor, relax

__all__ = ['PARTS', 'Predictor', 'relax']
