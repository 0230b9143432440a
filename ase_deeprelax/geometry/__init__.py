"""Cells, neighbours, symmetry, vacuum, and what may move: geometry without tensors."""
