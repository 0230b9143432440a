"""Promises about layers, fixed atoms and fixed cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from ase import Atoms
from ase.build import mx2
from ase.constraints import FixAtoms

from ase_deeprelax.data.formula import chemical_formula
from ase_deeprelax.geometry.free_strain import RelaxCell
from ase_deeprelax.geometry.symmetry import find_symmetry
from ase_deeprelax.geometry.vacuum import find_layer
from ase_deeprelax.models.base import RelaxationModel
from ase_deeprelax.result import Relaxation
from ase_deeprelax.testing.crystals import (
    generic_crystals,
    room_for,
    symmetric_crystals,
)
from ase_deeprelax.testing.predictions import (
    TOLERANCE,
    expect,
    expect_close,
    known_elements,
    orthogonal_matrices,
    predictions,
    rotated,
)

PARTS: tuple[RelaxCell, ...] = ('in-plane', 'hydrostatic', [1, 0, 0, 0, 0, 1])


def holds_what_is_held(model: RelaxationModel, dtype: str) -> None:
    """Fixed cells, fixed atoms and vacuum vectors stay to the last bit; strains that are
    held stay zero.
    """
    elements = known_elements(model)
    for atoms in generic_crystals(elements):
        (result,) = predictions(model, dtype, [atoms], relax_cell=False)
        same = np.array_equal(result.atoms.cell.array, atoms.cell.array)
        expect(same, f'{chemical_formula(atoms)}: the fixed cell changed')
        held = atoms.copy()
        held.set_constraint(FixAtoms([0]))
        (result,) = predictions(model, dtype, [held], relax_cell=False)
        same = np.array_equal(result.atoms.positions[0], atoms.positions[0])
        expect(same, f'{chemical_formula(atoms)}: the fixed atom moved')
        for relax_cell in PARTS:
            (result,) = predictions(model, dtype, [atoms], relax_cell=relax_cell)
            _expect_held_strains(atoms, result.deformation, relax_cell)
    for layer in generic_layers(elements):
        (result,) = predictions(model, dtype, [layer])
        same = np.array_equal(result.atoms.cell.array[2], layer.cell.array[2])
        expect(same, f'{chemical_formula(layer)}: the vacuum vector changed')


def _expect_held_strains(
    atoms: Atoms, deformation: np.ndarray, relax_cell: RelaxCell
) -> None:
    strain = deformation - np.eye(3)
    if relax_cell == 'hydrostatic':
        held = strain - np.trace(strain) / 3 * np.eye(3)
    elif relax_cell == 'in-plane':
        normal = np.cross(atoms.cell[0], atoms.cell[1])
        held = strain @ normal / np.linalg.norm(normal)
    else:
        held = [strain[1, 1], strain[2, 2], strain[0, 2], strain[1, 2]]
    largest = np.abs(held).max()
    expect(
        largest < 1e-12,
        f'{chemical_formula(atoms)}, {relax_cell!r}: fixed strain {largest:.1e}',
    )


def tells_fixed_atoms_apart(model: RelaxationModel, dtype: str) -> None:
    """Which atoms are fixed does not depend on their order."""
    for atoms in generic_crystals(known_elements(model))[1:]:
        n = len(atoms)
        order = np.random.default_rng(5).permutation(n)
        one, two = atoms.copy(), atoms[order]
        fixed = np.arange(n) < n // 2
        one.set_constraint(FixAtoms(mask=fixed))
        two.set_constraint(FixAtoms(mask=fixed[order]))
        before, after = predictions(model, dtype, [one, two], relax_cell=False)
        displacement = before.displacement[order]
        where = f'{chemical_formula(atoms)} with fixed atoms in another order'
        expect_close(after, before.deformation, displacement, TOLERANCE[dtype], where)


def ignores_the_box_of_a_layer(model: RelaxationModel, dtype: str) -> None:
    """Height and tilt of the box, the place of the layer in it, images and pbc along the
    vacuum do not matter.
    """
    for layer in generic_layers(known_elements(model)):
        boxes = list(_boxes(layer))
        first, *others = predictions(model, dtype, [layer, *boxes])
        for other in others:
            box = other.initial.cell[2].round(1)
            where = f'{chemical_formula(layer)} in a box of {box} A'
            _expect_same_layer(first, other, np.eye(3), TOLERANCE[dtype], where)


def _boxes(layer: Atoms) -> Iterator[Atoms]:
    cell = layer.cell.array
    for height, tilt, lift, pbc in (
        (15.0, 0.0, 0.0, True),
        (60.0, 0.0, 31.0, True),
        (60.0, 0.0, 31.0, (True, True, False)),
        (22.0, 0.4, 11.0, True),
    ):
        other = layer.copy()
        vacuum = [0, 0, height] + tilt * cell[0]
        other.set_cell([cell[0], cell[1], vacuum])
        other.positions[:, 2] += lift
        other.pbc = pbc
        if pbc is True:
            other.wrap()  # Across the border, where the layer lies there.
        yield other


def _layer_change(result: Relaxation) -> tuple[np.ndarray, np.ndarray]:
    """Stretch in the plane (3, 3), and displacements (n_atoms, 3) in A before it."""
    layer = find_layer(result.initial)
    if layer is None:
        raise AssertionError(f'{chemical_formula(result.initial)} is no layer any more')
    old, new = (
        np.array([*(layer.basis[:2] @ atoms.cell.array), layer.normal])
        for atoms in (result.initial, result.atoms)
    )
    stretch = np.linalg.solve(old, new)
    start, end = (layer.in_one_piece(atoms) for atoms in (result.initial, result.atoms))
    return stretch, end @ np.linalg.inv(stretch) - start


def ignores_orientation_of_a_layer(model: RelaxationModel, dtype: str) -> None:
    """A layer may lie in any plane, either side up, its vacuum along any lattice vector."""
    for layer in generic_layers(known_elements(model)):
        first = predictions(model, dtype, [layer])[0]
        for rotation in orthogonal_matrices(2):
            turned = rotated(layer, rotation)
            turned.cell[:] = turned.cell.array[[2, 0, 1]]
            (other,) = predictions(model, dtype, [turned])
            where = f'{chemical_formula(layer)}, turned'
            _expect_same_layer(first, other, rotation, TOLERANCE[dtype], where)


def _expect_same_layer(
    first: Relaxation, other: Relaxation, rotation: np.ndarray, tolerance: float, where: str
) -> None:
    """The layers agree, whatever the boxes."""
    (stretch, u), (other_stretch, other_u) = (_layer_change(x) for x in (first, other))
    rows = first.initial.cell.array[:2] @ rotation
    change = rotation.T @ stretch @ rotation
    error = np.abs(rows @ (other_stretch - change)).max()
    shift = other_u - u @ rotation
    error = max(error, np.abs(shift - shift.mean(axis=0)).max())
    expect(error <= tolerance, f'{where} differs by {error:.1e} A, allowed: {tolerance:g}')


def keeps_layer_group(model: RelaxationModel, dtype: str) -> None:
    """A layer keeps its operations, and a crystal those that its fixed atoms have too."""
    elements = np.array(known_elements(model))
    size = 3.2 * room_for(known_elements(model))
    for symbol, kind in (('MoS2', '2H'), ('MoS2', '1T')):
        layer = mx2(symbol, kind=kind, a=size, thickness=size, vacuum=9)
        kinds = np.unique(layer.numbers, return_inverse=True)[1]
        layer.numbers = elements[kinds % len(elements)]
        (result,) = predictions(model, dtype, [layer], symmetry='keep')
        before, after = (len(find_symmetry(x).rotations) for x in (layer, result.atoms))
        expect(after >= before, f'{kind}: {before} operations became {after}')
    for atoms in symmetric_crystals(10, known_elements(model)):
        labels = (np.arange(len(atoms)) == 0).astype(int)
        atoms.set_constraint(FixAtoms([0]))
        (result,) = predictions(model, dtype, [atoms], symmetry='keep', relax_cell=False)
        before, after = (
            len(find_symmetry(x, labels=labels).rotations) for x in (atoms, result.atoms)
        )
        expect(
            after >= before,
            f'{chemical_formula(atoms)}: {before} operations became {after}',
        )


def generic_layers(elements: Sequence[int] = (8, 12, 22, 38)) -> list[Atoms]:
    """Layers without symmetry: of one plane of atoms, and of three."""
    rng = np.random.default_rng(7)
    room = room_for(elements)
    a, b, c, _ = (tuple(elements) * 4)[:4]
    plane = Atoms([a, b], [[0, 0, 0], [1.45, 0.84, 0]], cell=[2.9, 2.51, 20], pbc=True)
    sandwich = mx2('MoS2', a=3.3, thickness=3.2, vacuum=9)
    sandwich.numbers[:] = [c, a, b]
    sandwich.pbc = True
    layers = [plane, sandwich, sandwich.repeat((2, 1, 1))]
    for layer in layers:
        strain = np.eye(3)
        strain[:2, :2] += 0.05 * rng.standard_normal((2, 2))
        layer.set_cell(room * layer.cell.array @ strain, scale_atoms=True)
        layer.positions += 0.1 * rng.standard_normal(layer.positions.shape)
    return layers
