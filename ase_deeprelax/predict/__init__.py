"""From structures to checked, relaxed structures with an uncertainty.

prepare (checks, freedom, symmetry, graph) -> run_model (network, distance geometry, in
batches) -> finish (symmetry, constraints, checks)
"""

from ase_deeprelax.predict.predictor import Predictor, relax
from ase_deeprelax.predict.prepare import PARTS

__all__ = ['PARTS', 'Predictor', 'relax']
