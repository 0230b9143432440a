"""Screens of millions of structures: streams in, packs of rows out, resumed anywhere."""

from ase_deeprelax.screening.results import Results
from ase_deeprelax.screening.run import screen
from ase_deeprelax.screening.sources import open_source

__all__ = ['Results', 'open_source', 'screen']
