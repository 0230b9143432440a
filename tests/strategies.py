"""Crystals to test with: hypothesis strategies, and real prototypes of high symmetry."""

import numpy as np
from ase import Atoms
from ase.build import bulk, mx2
from ase.data import covalent_radii
from ase.spacegroup import crystal
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# Tests are the same on every run; crystals take a while to build.
quick = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

ELEMENTS = [3, 6, 7, 8, 9, 11, 12, 13, 14, 16, 17, 20, 22, 26, 29, 38, 41, 56, 74, 82]
SYSTEMS = (
    'cubic',
    'tetragonal',
    'orthorhombic',
    'hexagonal',
    'trigonal',
    'monoclinic',
    'triclinic',
)


def seeds():
    return st.integers(0, 2**32 - 1)


def orthogonal(seed, *, improper=False):
    """(3, 3) random rotation, or rotation times inversion."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    q = q * np.sign(np.linalg.det(q))
    return -q if improper else q


@st.composite
def rotations(draw, *, improper=None):
    """(3, 3) orthogonal matrices; proper and improper by default."""
    if improper is None:
        improper = draw(st.booleans())
    return orthogonal(draw(seeds()), improper=improper)


@st.composite
def unimodular(draw, *, steps=4, largest=3):
    """(3, 3) integer matrices of determinant 1 or -1, the more skewed the more steps."""
    matrix = np.eye(3, dtype=int)[draw(st.permutations(range(3)))]
    matrix = matrix * np.array(draw(st.tuples(*3 * [st.sampled_from([-1, 1])])))[:, None]
    for _ in range(draw(st.integers(0, steps))):
        i, j = draw(st.permutations(range(3)))[:2]
        matrix[i] += draw(st.integers(-largest, largest)) * matrix[j]
    return matrix


def cell_of(system, rng, volume):
    """(3, 3) cell of a crystal system with random parameters, A."""
    a, b, c = rng.uniform(0.75, 1.35, 3)
    alpha, beta, gamma = rng.uniform(65, 115, 3)
    parameters = {
        'cubic': (a, a, a, 90, 90, 90),
        'tetragonal': (a, a, c, 90, 90, 90),
        'orthorhombic': (a, b, c, 90, 90, 90),
        'hexagonal': (a, a, c, 90, 90, 120),
        'trigonal': (a, a, a, alpha, alpha, alpha),
        'monoclinic': (a, b, c, 90, beta, 90),
        'triclinic': (a, b, c, alpha, beta, gamma),
    }[system]
    cell = Atoms(cell=parameters).cell.array
    return cell * (volume / abs(np.linalg.det(cell))) ** (1 / 3)


def random_crystal(seed, n_atoms, system='triclinic', elements=ELEMENTS, closest=0.7):
    """Atoms at random places, no closer than ``closest`` times the sum of their radii."""
    rng = np.random.default_rng(seed)
    numbers = rng.choice(rng.choice(elements, min(4, n_atoms)), n_atoms)
    radii = covalent_radii[numbers]
    volume = 2.5 * (4 / 3 * np.pi * radii**3).sum() + 8.0
    images = np.stack(np.meshgrid(*3 * [[-1, 0, 1]]), axis=-1).reshape(-1, 3)
    while True:
        cell = cell_of(system, rng, volume)
        positions = np.zeros((0, 3))
        for _ in range(200 * n_atoms):
            trial = rng.random(3) @ cell
            delta = positions[:, None] + images @ cell - trial
            distances = np.linalg.norm(delta, axis=2).min(axis=1, initial=np.inf)
            limits = closest * (radii[: len(positions)] + radii[len(positions)])
            if (distances > limits).all():
                positions = np.vstack([positions, trial])
            if len(positions) == n_atoms:
                return Atoms(numbers=numbers, positions=positions, cell=cell, pbc=True)
        volume *= 1.2


@st.composite
def crystals(draw, *, min_atoms=1, max_atoms=20, systems=SYSTEMS, disguised=True):
    """Crystals of all systems; ``disguised``: skewed, left-handed, turned, unwrapped."""
    n_atoms = draw(st.integers(min_atoms, max_atoms))
    atoms = random_crystal(draw(seeds()), n_atoms, draw(st.sampled_from(systems)))
    return draw(disguises(atoms)) if disguised else atoms


@st.composite
def disguises(draw, atoms, *, permute=True):
    """The same crystal written differently; ``arrays['was']`` holds the old indices."""
    rng = np.random.default_rng(draw(seeds()))
    return disguise(
        atoms,
        rng,
        rotation=draw(rotations()),
        basis=draw(unimodular()),
        permute=permute,
    )


def disguise(atoms, rng, *, rotation=None, basis=None, permute=True):
    """Turn, translate, re-choose the cell, unwrap, permute; positions stay a crystal's."""
    rotation = np.eye(3) if rotation is None else rotation
    basis = np.eye(3, dtype=int) if basis is None else basis
    order = rng.permutation(len(atoms)) if permute else np.arange(len(atoms))
    cell = basis @ atoms.cell.array
    images = rng.integers(-3, 4, (len(atoms), 3)) @ cell
    positions = (atoms.positions + images + rng.uniform(-5, 5, 3)) @ rotation
    result = Atoms(
        numbers=atoms.numbers[order],
        positions=positions[order],
        cell=cell @ rotation,
        pbc=True,
    )
    result.new_array('was', order)
    return result


def prototypes():
    """Real crystals of high symmetry, chiral and polar ones too, by name."""
    layer = mx2('MoS2', vacuum=4.0)
    layer.pbc = True
    return {
        'Cu fcc': bulk('Cu'),
        'Fe bcc': bulk('Fe'),
        'Mg hcp': bulk('Mg'),
        'Si diamond': bulk('Si', 'diamond', a=5.43),
        'Si diamond, cubic': bulk('Si', 'diamond', a=5.43, cubic=True),
        'NaCl': bulk('NaCl', 'rocksalt', a=5.64),
        'NaCl, 2x1x1': bulk('NaCl', 'rocksalt', a=5.64) * (2, 1, 1),
        'CsCl': bulk('CsCl', 'cesiumchloride', a=4.12),
        'ZnS wurtzite': bulk('ZnS', 'wurtzite', a=3.82, c=6.26, u=0.3748),
        'CaF2': bulk('CaFF', 'fluorite', a=5.46),
        'MoS2, vacuum': layer,
        'SrTiO3': crystal(
            ['Sr', 'Ti', 'O'],
            [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)],
            spacegroup=221,
            cellpar=[3.905] * 3 + [90] * 3,
        ),
        'TiO2 rutile': crystal(
            ['Ti', 'O'],
            [(0, 0, 0), (0.305, 0.305, 0)],
            spacegroup=136,
            cellpar=[4.594, 4.594, 2.959, 90, 90, 90],
        ),
        'SiO2 quartz': crystal(
            ['Si', 'O'],
            [(0.4697, 0, 1 / 3), (0.4135, 0.2669, 0.7858)],
            spacegroup=152,
            cellpar=[4.916, 4.916, 5.405, 90, 90, 120],
        ),
        'Te': crystal(
            ['Te'],
            [(0.2636, 0, 1 / 3)],
            spacegroup=152,
            cellpar=[4.458, 4.458, 5.927, 90, 90, 120],
        ),
        'CaTiO3': crystal(
            ['Ca', 'Ti', 'O', 'O'],
            [(0.0359, 0.25, 0.9930), (0, 0, 0.5), (0.4837, 0.25, 0.0778),
             (0.2897, 0.0372, 0.7112)],
            spacegroup=62,
            cellpar=[5.444, 7.644, 5.379, 90, 90, 90],
        ),
        'ZrO2 baddeleyite': crystal(
            ['Zr', 'O', 'O'],
            [(0.2754, 0.0395, 0.2083), (0.07, 0.3317, 0.3447), (0.4496, 0.7569, 0.4792)],
            spacegroup=14,
            cellpar=[5.15, 5.212, 5.317, 90, 99.23, 90],
        ),
        'Al2O3': crystal(
            ['Al', 'O'],
            [(0, 0, 0.3521), (0.3063, 0, 0.25)],
            spacegroup=167,
            cellpar=[4.76, 4.76, 12.99, 90, 90, 120],
            primitive_cell=True,
        ),
    }  # fmt: skip


def in_order(first, second, vectors):
    """Edges as rows (first, second, x, y, z) in an order that rounding does not change."""
    rows = np.column_stack([first, second, vectors])
    return rows[np.lexsort(rows.round(4).T[::-1])]


def sorted_edges(graph):
    """The edges of a graph `in_order`."""
    return in_order(*graph.edge_index.flip(0).numpy(), graph.edge_vectors().numpy())
