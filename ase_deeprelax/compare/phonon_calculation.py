"""Phonons of one structure by finite displacements.

Forces of the structure itself, which are not zero where it is no minimum, are subtracted.
A layer is repeated in its plane alone, and all wave vectors lie in that plane. The split of
optical modes in polar crystals, for which potentials give no charges, is left out.
"""

from __future__ import annotations

import warnings
from time import perf_counter
from types import ModuleType
from typing import Any

import numpy as np
from ase import Atoms
from ase.cell import Cell
from ase.units import kJ, mol

from ase_deeprelax.calculators.attached import calculator_name
from ase_deeprelax.compare.schema import (
    Bands,
    DensityOfStates,
    ImaginaryModes,
    ModeCount,
    Phonons,
    Thermal,
)
from ase_deeprelax.data.formula import chemical_formula
from ase_deeprelax.data.one_line import one_line
from ase_deeprelax.errors import (
    MissingDependencyError,
    RefinementError,
    StructureError,
)
from ase_deeprelax.geometry.lattice import reduced_basis
from ase_deeprelax.geometry.symmetry import symmetry_dataset
from ase_deeprelax.geometry.vacuum import find_layer

# Frequencies below minus this are imaginary, and below it left out of thermal properties:
# what remains of displacements, tolerances and single precision, THz.
THRESHOLD = 0.05
# Structures come out of relaxations with their symmetry up to this, A.
TOLERANCE = 1e-3
# Density of the mesh for densities of states: number of points times lattice vector, A.
MESH = 60.0
# Room around a layer whose box ends with it, A.
ROOM = 10.0
BAND_POINTS = 200
# Between points of a density of states, THz: flat bands are no wider.
DOS_STEP = 0.05
TEMPERATURES = np.arange(0.0, 1001.0, 50.0)

# The vectors along which waves run: all of a crystal, the first two of a layer.
Periodic = tuple[bool, bool, bool]


def phonons(
    atoms: Atoms,
    calculator: Any,
    *,
    min_length: float = 10.0,
    max_atoms: int = 250,
    displacement: float = 0.01,
    initial: Atoms | None = None,
) -> Phonons:
    """Phonons of one structure by finite displacements.

    The cell is taken as it stands: of a conventional cell, modes of the zone's boundary
    count as modes at Gamma. All atoms are displaced, also those that a constraint fixes.

    Parameters
    ----------
    atoms : ase.Atoms
        A relaxed crystal or layer, as `find_layer` tells them apart. Masses and initial
        magnetic moments are used where they were set.
    calculator : ase Calculator
        Gives the forces on displaced atoms.
    min_length : float, A
        No atom sees its own displacement nearer than this; default 10.
    max_atoms : int
        Supercells have at most so many atoms, even where that makes them shorter; default
        250.
    displacement : float, A
        Default 0.01.
    initial : ase.Atoms, optional
        The structure that supercell and path of the bands are chosen by, so that they are
        the same for several relaxations of it; default ``atoms``.

    Returns
    -------
    Phonons
        A dict, ready for JSON; `schema.Phonons` explains its fields.

    Raises
    ------
    MissingDependencyError
        phonopy is not installed.
    RefinementError
        The calculator returned forces that are not finite.
    StructureError
        The structure is neither a crystal nor a layer, or a single atom is all that the
        supercell holds.
    ValueError
        ``displacement`` is no length.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase.calculators.emt import EMT
    >>> found = phonons(bulk('Cu', a=3.59), EMT(), min_length=7.0)  # doctest: +SKIP
    >>> found['imaginary']['n']  # doctest: +SKIP
    0
    """
    start = perf_counter()
    if not displacement > 0:
        raise ValueError(f'displacement is {displacement}; it must be a length in A')
    if len(atoms) == 0 or atoms.cell.rank < 3:
        what = 'no cell' if len(atoms) else 'no atoms'
        raise StructureError(
            f'phonons are those of crystals and layers, and this is neither: {what}'
        )
    if hasattr(calculator, 'reset'):
        calculator.reset()  # a structure that failed may have left it half made
    initial = atoms if initial is None else initial
    matrix, shortest = choose_supercell(initial, min_length, max_atoms)
    if len(atoms) * abs(_determinant(matrix)) == 1:
        raise StructureError(
            'a supercell of one atom has no phonons; raise min_length or max_atoms'
        )
    layer, own = find_layer(initial), matrix
    periodic = (True, True, layer is None)
    if layer is not None:
        atoms, initial = (_upright(one, layer.basis) for one in (atoms, initial))
        own = np.rint(matrix @ np.linalg.inv(layer.basis)).astype(np.int64)
    found, residual = _force_constants(atoms, calculator, own, displacement)
    imaginary, bands = _imaginary(found, own), _bands(found, initial.cell, periodic)
    dos, thermal = _mesh(found, periodic)
    result: Phonons = {
        'fmax': residual,
        'supercell': matrix.tolist(),
        'n_supercell': len(found.supercell),
        'shortest': shortest,
        'capped': shortest < min_length - TOLERANCE,
        'displacements': len(found.supercells_with_displacements),
        'imaginary': imaginary,
        'bands': bands,
        'dos': dos,
        'thermal': thermal,
        'seconds': perf_counter() - start,
    }
    where = f'{chemical_formula(atoms)} in a supercell of {result["n_supercell"]} atoms'
    line = f'<phonons of {where}, {imaginary["n"]} imaginary modes>'
    return one_line(result, line)


def choose_supercell(
    atoms: Atoms, min_length: float = 10.0, max_atoms: int = 250
) -> tuple[np.ndarray, float]:
    """Integers that make a supercell long enough for phonons, or the cap on atoms allows.

    The smaller of two that keep the symmetry: multiples of the cell and of the conventional
    cell. Where both have too many atoms, the longest vectors of the reduced cell are cut.
    The vacuum vector of a layer is the third, taken once.

    Parameters
    ----------
    atoms : ase.Atoms
    min_length : float, A
        Default 10.
    max_atoms : int
        Default 250.

    Returns
    -------
    (3, 3) int64
        Rows; times the cell, the supercell.
    float
        Its shortest lattice vector, of a layer in the plane, A.

    Raises
    ------
    StructureError
        The structure is neither a crystal nor a layer.

    Examples
    --------
    >>> from ase.build import bulk
    >>> matrix, shortest = choose_supercell(bulk('Cu', a=3.6))
    >>> round(abs(np.linalg.det(matrix))), round(shortest, 2)
    (64, 10.18)
    """
    layer, most = find_layer(atoms), max(max_atoms // len(atoms), 1)
    if layer is not None:
        atoms = _upright(atoms, layer.basis)
        # The vacuum vector becomes the longest, and is long enough.
        lengths = atoms.cell.lengths()
        atoms.cell[2] *= 1 + (min_length + lengths.sum()) / lengths[2]
    cell = atoms.cell.array
    reduced = reduced_basis(cell)
    n = _multiples(reduced, cell, min_length)
    # All vectors alike, or those of the conventional cell: both keep the symmetry.
    alike = np.array([n.max(), n.max(), n.max() if layer is None else 1])
    matrices = [alike[:, None] * reduced]
    if (basis := _conventional(atoms)) is not None:
        matrices.append(_multiples(basis, cell, min_length)[:, None] * basis)
    matrix = min(matrices, key=lambda matrix: abs(_determinant(matrix)))
    if abs(_determinant(matrix)) > most:
        lengths = np.linalg.norm(reduced @ cell, axis=1)
        while n.prod() > most:
            n[np.argmax(np.where(n > 1, n * lengths, 0))] -= 1
        matrix = n[:, None] * reduced
    if layer is not None:  # The vacuum vector is the last.
        matrix = matrix[np.argsort(np.abs(matrix[:, 2]), kind='stable')]
    matrix *= np.sign(_determinant(matrix))
    short = reduced_basis(matrix @ cell) @ matrix @ cell
    given = matrix if layer is None else matrix @ layer.basis
    return given, float(np.linalg.norm(short, axis=1).min())


def _upright(atoms: Atoms, basis: np.ndarray) -> Atoms:
    """A layer in one piece in the middle of a box along its normal.

    Parameters
    ----------
    atoms : ase.Atoms
    basis : (3, 3) int64
        Its first two rows times the cell are the first two vectors of the box.
    """
    layer = find_layer(atoms)
    if layer is None:
        raise StructureError('initial is a layer, and the structure is none')
    room = layer.vacuum if np.isfinite(layer.vacuum) else ROOM
    upright = atoms.copy()
    positions, box = layer.standard_box(atoms, room)
    box[:2] = basis[:2] @ atoms.cell.array
    upright.set_cell(box, apply_constraint=False)
    upright.set_positions(positions, apply_constraint=False)
    upright.pbc = True, True, atoms.pbc.all()
    return upright


def _multiples(basis: np.ndarray, cell: np.ndarray, min_length: float) -> np.ndarray:
    """How many of each vector make it long enough."""
    lengths = np.linalg.norm(basis @ cell, axis=1)
    # Not one more along one of two vectors whose lengths differ by rounding.
    n = np.ceil(min_length / lengths - TOLERANCE).astype(np.int64)
    return np.maximum(n, 1)


def _conventional(atoms: Atoms) -> np.ndarray | None:
    """The conventional cell's vectors in those of the cell, or None if they do not fit."""
    crystal = atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers
    dataset = symmetry_dataset(crystal)
    if dataset is None:
        return None
    exact = np.linalg.inv(dataset.transformation_matrix).T
    basis = np.rint(exact).astype(np.int64)
    return basis if np.abs(exact - basis).max() < TOLERANCE else None


def _determinant(matrix: np.ndarray) -> int:
    return round(np.linalg.det(matrix))


def load_phonopy() -> ModuleType:
    """The package, or the line that installs it."""
    try:
        import phonopy
    except ImportError as error:
        raise MissingDependencyError(
            f"phonons need phonopy ({error}): pip install 'ase-deeprelax[phonopy]'"
        ) from error
    return phonopy


def _force_constants(
    atoms: Atoms, calculator: Any, matrix: np.ndarray, displacement: float
) -> tuple[Any, float]:
    """A Phonopy object with force constants, and the largest force at the structure."""
    phonopy = load_phonopy()
    from phonopy.structure.atoms import PhonopyAtoms

    unit = PhonopyAtoms(
        numbers=atoms.numbers,
        cell=atoms.cell.array,
        scaled_positions=atoms.get_scaled_positions(),
        masses=atoms.arrays.get('masses'),
        magnetic_moments=atoms.arrays.get('initial_magmoms'),
    )
    found = phonopy.Phonopy(
        unit, supercell_matrix=matrix.T, primitive_matrix=np.eye(3), symprec=TOLERANCE
    )
    found.generate_displacements(distance=displacement)
    rest = _forces(found.supercell, calculator, atoms.pbc)
    found.forces = [
        _forces(cell, calculator, atoms.pbc) - rest
        for cell in found.supercells_with_displacements
    ]
    found.produce_force_constants(show_drift=False)
    # Moving the whole crystal costs nothing, so nor must it here, where forces have noise.
    found.symmetrize_force_constants(show_drift=False)
    return found, float(np.linalg.norm(rest, axis=1).max())


def _forces(cell: Any, calculator: Any, pbc: np.ndarray) -> np.ndarray:
    atoms = Atoms(
        cell.numbers,
        cell=cell.cell,
        positions=cell.positions,
        pbc=pbc,
        magmoms=cell.magnetic_moments,
    )
    forces = np.array(calculator.get_property('forces', atoms), dtype=float)
    if not np.isfinite(forces).all():
        raise RefinementError(
            f'{calculator_name(calculator)}: forces on the displaced atoms of '
            f'{chemical_formula(atoms)} are not finite; use another calculator'
        )
    return forces


def _imaginary(found: Any, matrix: np.ndarray) -> ImaginaryModes:
    """Counts at the wave vectors where interpolation plays no part."""
    from phonopy.harmonic.dynmat_to_fc import get_commensurate_points

    points = get_commensurate_points(matrix.T)
    found.run_qpoints(points)
    frequencies = found.qpoints.frequencies
    at_gamma = np.abs(points).max(axis=1) < TOLERANCE
    [gamma] = frequencies[at_gamma]
    # The translations are the three nearest zero.
    gamma = np.sort(gamma[np.argsort(np.abs(gamma))[3:]])
    others = np.concatenate([frequencies[~at_gamma].ravel(), gamma])
    return {
        'threshold': THRESHOLD,
        'n_modes': len(others),
        **_count(others),
        'gamma': {**_count(gamma), 'frequencies': gamma.tolist()},
    }


def _count(frequencies: np.ndarray) -> ModeCount:
    return {
        'n': int((frequencies < -THRESHOLD).sum()),
        'lowest': float(frequencies.min()) if len(frequencies) else None,
    }


def _bands(found: Any, cell: Cell, periodic: Periodic) -> Bands:
    path = cell.bandpath(npoints=BAND_POINTS, eps=TOLERANCE, pbc=periodic)
    x, ticks, labels = path.get_linear_kpoint_axis()
    found.run_qpoints(path.kpts)
    step = np.diff(x)
    jump = np.linalg.norm(np.diff(path.cartesian_kpts(), axis=0), axis=1)
    return {
        'path': path.path,
        'x': x.tolist(),
        'ticks': ticks.tolist(),
        'labels': labels,
        # Across a comma the axis does not go on, the wave vector does.
        'breaks': (np.flatnonzero((step < 1e-9) & (jump > 1e-9)) + 1).tolist(),
        'frequencies': found.qpoints.frequencies.tolist(),
    }


def _mesh(found: Any, periodic: Periodic) -> tuple[DensityOfStates, Thermal]:
    """Density of states and thermal properties."""
    n = len(found.primitive)
    mesh: Any = MESH
    if not all(periodic):
        along = np.linalg.norm(np.linalg.inv(found.primitive.cell), axis=0)
        mesh = np.where(periodic, np.rint(MESH * along).clip(min=1), 1).astype(int)
    with warnings.catch_warnings():
        # It takes another mesh of the same density where the cell's own lacks symmetry.
        warnings.filterwarnings('ignore', 'Mesh .* incompatible')
        found.run_mesh(mesh, is_gamma_center=True)
    mesh = found.mesh
    counted = (mesh.frequencies > THRESHOLD).sum(axis=1) @ mesh.weights
    found.run_total_dos(freq_pitch=DOS_STEP)
    dos = found.total_dos
    found.run_thermal_properties(temperatures=TEMPERATURES, cutoff_frequency=THRESHOLD)
    thermal = found.thermal_properties
    return {
        'frequencies': np.asarray(dos.frequency_points).tolist(),
        'density': (np.asarray(dos.dos) / n).tolist(),
    }, {
        'temperatures': TEMPERATURES.tolist(),
        'free_energy': (np.asarray(thermal.free_energy) * kJ / mol / n).tolist(),
        'entropy': (np.asarray(thermal.entropy) / n).tolist(),
        'heat_capacity': (np.asarray(thermal.heat_capacity) / n).tolist(),
        'left_out': float(1 - counted / (3 * n * mesh.weights.sum())),
    }
