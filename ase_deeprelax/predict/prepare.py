"""The first step of a prediction: a structure is checked and becomes a graph.

    prepared = prepare(structure, settings)
    [output], _ = run_model(model, collate([prepared.graph]))
    result = finish(prepared, output, [move_of(prepared, output)])

The structure is not changed.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from ase import Atoms
from ase.filters import Filter

from ase_deeprelax.data.convert import Frame, to_graph
from ase_deeprelax.data.graph import CrystalGraph, GraphSpec
from ase_deeprelax.data.structures import as_atoms
from ase_deeprelax.errors import StructureError
from ase_deeprelax.geometry.degrees_of_freedom import Freedom, find_freedom, unwrap
from ase_deeprelax.geometry.free_strain import RelaxCell
from ase_deeprelax.geometry.symmetry import Symmetry, find_symmetry
from ase_deeprelax.models.calibration import Calibration
from ase_deeprelax.predict.ignored import name_ignored
from ase_deeprelax.predict.structure_checks import (
    check_cell,
    check_contents,
    outside_ranges,
)

PARTS = ('checks', 'symmetry', 'graph', 'network', 'solver')


@dataclass(frozen=True)
class Settings:
    """What `prepare` and `finish` need to know of a model and of its user's wishes.

    Attributes
    ----------
    spec : GraphSpec
        The graph that the model wants.
    dtype : torch.dtype
    keep_symmetry : bool
        Whether moves are projected on the space group of the input; default True.
    name, sha256 : str
        Of the model, for the record.
    elements : collection of int, optional
        Atomic numbers that the model was trained on; default: all.
    ranges : dict of str to (low, high), optional
        Seen in training, see `check_structure`.
    learned : collection of str
        What the model was trained on: 'bulk', 'layer', 'fixed cell', 'partly fixed cell',
        'fixed atoms'; default bulk crystals only.
    calibration : Calibration, optional
        What is known about the errors of the model.
    accept_below : float, optional, A
        A prediction whose expected error is not below this is refused.
    shrinks : bool
        Whether moves that are smaller than their uncertainty are mostly left out
        (`predict.shrinkage`); default False.
    """

    spec: GraphSpec
    dtype: torch.dtype
    keep_symmetry: bool = True
    name: str = ''
    sha256: str = ''
    elements: Collection[int] | None = None
    ranges: Mapping[str, Collection[float]] | None = None
    learned: Collection[str] = ('bulk',)
    calibration: Calibration | None = None
    accept_below: float | None = None
    shrinks: bool = False


@dataclass(frozen=True, eq=False)
class Prepared:
    """A checked structure, ready for the network. Made by `prepare`.

    Attributes
    ----------
    initial : ase.Atoms
        A copy of the input.
    source : pymatgen Structure or None
        A copy of the input, where it was one.
    settings : Settings
    freedom : Freedom
        The directions in which it may move.
    symmetry : Symmetry or None
        The operations that the prediction keeps.
    ood : str
        Why the input lies outside the training range, or ''.
    graph : CrystalGraph
    frame : Frame
        The way back from the graph to the input's orientation and order.
    timings : dict of str to float, s
        Wall time by `PARTS`; later steps add theirs.
    """

    initial: Atoms
    source: Any
    settings: Settings
    freedom: Freedom
    symmetry: Symmetry | None
    ood: str
    graph: CrystalGraph
    frame: Frame
    timings: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))


def prepare(
    structure: Any, settings: Settings, relax_cell: RelaxCell | None = None
) -> Prepared:
    """Check a structure, find what may move in it, and make its graph.

    Parameters
    ----------
    structure : ase.Atoms, pymatgen Structure, ase.filters.Filter
        It is not changed.
    settings : Settings
    relax_cell : bool, str, array or None
        See `find_freedom`; default None.

    Returns
    -------
    Prepared

    Raises
    ------
    StructureError, UnsupportedElementError, UnsupportedConstraintError
        It cannot be relaxed; see `check_structure` and `find_freedom`.
    """
    timings = dict.fromkeys(PARTS, 0.0)
    with timed(timings, 'checks'):
        # A copy has no calculator, so no result of it can outlive the move.
        initial = copy_of(structure)
        check_cell(initial)
        freedom = find_freedom(
            structure if isinstance(structure, Filter) else initial, relax_cell
        )
        check_contents(initial, freedom.layer, settings.elements)
        unlearned = _not_learned(freedom, settings.learned)
        source = source_of(structure)
        name_ignored(initial, source)
    found = symmetry = None
    labels = freedom.labels if freedom.labels.any() else None
    if settings.keep_symmetry:
        with timed(timings, 'symmetry'):
            found = find_symmetry(initial, labels=labels, layer=freedom.layer)
            symmetry = found.keeping(freedom.motion.free_strain)
    with timed(timings, 'checks'):
        alike = found if labels is None else None  # it knows fixed atoms from free ones
        outside = outside_ranges(initial, freedom.layer, settings.ranges, alike)
    with timed(timings, 'graph'):
        graph, frame = graph_of(initial, freedom, settings)
    ood = '; '.join(filter(None, (outside, unlearned)))
    return Prepared(
        initial, source, settings, freedom, symmetry, ood, graph, frame, timings
    )


def copy_of(structure: Any) -> Atoms:
    """A copy of the Atoms in a structure or filter, without a calculator."""
    atoms = unwrap(structure) if isinstance(structure, Filter) else as_atoms(structure)
    return atoms.copy()


def source_of(structure: Any) -> Any:
    """A copy of a pymatgen Structure, None for Atoms and filters; see `Prepared.source`."""
    return None if isinstance(structure, (Atoms, Filter)) else structure.copy()


def graph_of(
    atoms: Atoms, freedom: Freedom, settings: Settings
) -> tuple[CrystalGraph, Frame]:
    """The graph of atoms; a network can say nothing about one that has no neighbour."""
    graph, frame = to_graph(
        atoms, settings.spec, settings.dtype, motion=freedom.motion, layer=freedom.layer
    )
    counts = torch.bincount(graph.edge_index[1], minlength=len(atoms))
    lonely = (counts == 0).nonzero().flatten()
    if len(lonely):
        first = int(lonely[0]) if frame.order is None else int(frame.order[lonely[0]])
        raise StructureError(
            f'atom {first} ({atoms.symbols[first]}) has no neighbour within '
            f'{settings.spec.cutoff:g} A ({len(lonely)} of {len(atoms)} atoms have none); '
            'the model predicts dense crystals and layers: scale the cell to a plausible '
            'volume, or remove the atom'
        )
    return graph, frame


def _not_learned(freedom: Freedom, learned: Collection[str]) -> str:
    """What the structure needs and the model was not trained on, or ''."""
    needed = ['bulk' if freedom.layer is None else 'layer']
    if freedom.strain is None:
        needed.append('fixed cell')
    elif freedom.layer is None and not freedom.strain.frees_all:
        needed.append('partly fixed cell')
    if (freedom.labels == 1).any():
        needed.append('fixed atoms')
    missing = [what for what in needed if what not in learned]
    return f'the model was not trained on: {", ".join(missing)}' if missing else ''


@contextmanager
def timed(timings: dict[str, float], part: str) -> Generator[None]:
    """Add the wall time of a block, s, to one of `PARTS`."""
    start = perf_counter()
    try:
        yield
    finally:
        timings[part] += perf_counter() - start
