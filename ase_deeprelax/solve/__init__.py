"""From predicted distances to positions."""

from ase_deeprelax.solve.edg import EDGSolution, solve_edg

__all__ = ['EDGSolution', 'solve_edg']
