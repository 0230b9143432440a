"""Layers to test with: real ones, random ones, and every way of writing them down."""

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, bcc110, fcc100, fcc111, graphene, hcp0001, mx2
from hypothesis import strategies as st

from tests.strategies import orthogonal, random_crystal, seeds, unimodular


def with_adsorbate(slab, what, height):
    """The slab with a molecule or atom above its first site."""
    add_adsorbate(slab, what, height, position=tuple(slab.positions[-1, :2]))
    return slab


def bilayer():
    """Two sheets of MoS2 with a van der Waals gap of 3.5 A between them."""
    sheet = mx2('MoS2', vacuum=10)
    other = sheet.copy()
    other.positions += [0.0, 1.6, 3.19 + 3.5]
    return sheet + other


def real_layers():
    """Layers along z, periodic along x and y, by name."""
    buckled = graphene('Si2', a=3.87, thickness=0.45, vacuum=10)
    layers = {
        'graphene': graphene(vacuum=10),
        'silicene': buckled,
        'MoS2': mx2('MoS2', vacuum=10),
        'MoS2, 1T': mx2('MoS2', kind='1T', vacuum=10),
        'MoS2, two sheets': bilayer(),
        'Cu(111)': fcc111('Cu', (1, 1, 4), vacuum=10),
        'Cu(100), 12 planes': fcc100('Cu', (1, 1, 12), vacuum=10),
        'Fe(110)': bcc110('Fe', (2, 1, 3), vacuum=10),
        'Ti(0001)': hcp0001('Ti', (2, 2, 3), vacuum=10),
        'Pt(111) + O': with_adsorbate(fcc111('Pt', (2, 2, 3), vacuum=10), 'O', 2.0),
        'Cu(111) + CO': with_adsorbate(fcc111('Cu', (2, 2, 2), vacuum=10), 'C', 1.9),
        'Pt(111) + Ar': with_adsorbate(fcc111('Pt', (2, 2, 3), vacuum=10), 'Ar', 4.0),
    }
    with_adsorbate(layers['Cu(111) + CO'], 'O', 1.15)
    for slab in layers.values():
        slab.pbc = True, True, False
    return layers


def random_layer(seed, n_atoms):
    """A random crystal, cut open: its cell vectors a and b, and vacuum."""
    crystal = random_crystal(seed, n_atoms)
    crystal.rotate(crystal.cell[0], 'x', rotate_cell=True)
    b = crystal.cell.array[1] * [0, 1, 1]
    crystal.rotate(b, 'y', rotate_cell=True)
    cell = crystal.cell.array
    cell[2] = [0.0, 0.0, 40.0]
    return Atoms(crystal.numbers, crystal.positions, cell=cell, pbc=(True, True, False))


@st.composite
def layers(draw):
    """Layers along z, real and random ones, with vacuum of some width."""
    if draw(st.booleans()):
        return draw(st.sampled_from(list(real_layers().values())))
    layer = random_layer(draw(seeds()), draw(st.integers(1, 12)))
    layer.info['random'] = True
    return layer


def rewrite(layer, rng, *, vacuum, cells=None, tilt=True, across=False, pbc=True):
    """A layer along z in another box; ``arrays['was']`` holds the old indices.

    Parameters
    ----------
    vacuum : float, A
    cells : (3, 3) int, optional
        Unimodular: other lattice vectors. Where ``pbc`` is False along the vacuum vector,
        those of the plane only.
    tilt : bool
        Lean the vacuum vector over.
    across : bool
        Put the border of the box into the layer: between any two planes, or, where ``pbc``
        is False along the vacuum vector, between two that bonds hold together.
    pbc : bool
        Whether pbc is True along the vacuum vector.
    """
    heights = layer.positions[:, 2]
    thickness = np.ptp(heights)
    rows = layer.cell.array.copy()
    rows[2] = [0.0, 0.0, (thickness + vacuum) * rng.choice([-1, 1])]
    if tilt:
        rows[2] += rng.uniform(-1, 1, 2) @ rows[:2]
    positions = layer.positions + rng.uniform(-1, 1, 2) @ rows[:2]
    bottom = rng.uniform(0.1, vacuum - 0.1) + min(rows[2, 2], 0.0)
    if across:
        planes = np.unique(heights - heights.min())
        gaps = np.flatnonzero(np.diff(planes) < (np.inf if pbc else 2.6))
        bottom = 0.0
        if len(gaps):
            k = rng.choice(gaps)
            bottom = -rng.uniform(planes[k], planes[k + 1])
    positions[:, 2] += bottom - heights.min()
    along = rng.integers(-3, 4, (len(layer), 3)) if pbc else 0
    if cells is not None:
        block = np.eye(3, dtype=int)
        if pbc:
            block = cells
        else:
            block[:2, :2] = plane_part(cells)
        rows = block @ rows
    frac = positions @ np.linalg.inv(rows)
    if across or pbc:
        frac -= np.floor(frac)
    else:
        frac[:, :2] -= np.floor(frac[:, :2])
    frac += along
    turn = orthogonal(rng.integers(2**32), improper=bool(rng.integers(2)))
    roll, order = rng.integers(3), rng.permutation(len(layer))
    result = Atoms(
        layer.numbers[order],
        cell=np.roll(rows @ turn, roll, axis=0),
        positions=(frac @ rows @ turn)[order],
        pbc=np.roll([True, True, pbc], roll),
    )
    result.new_array('was', order)
    return result


def plane_part(cells):
    """(2, 2) unimodular matrix made of a (3, 3) one."""
    shear = np.array([[1, int(cells[0, 1])], [0, 1]])
    return shear @ np.array([[1, 0], [int(cells[1, 0]), 1]]) @ np.array([[0, 1], [1, 0]])


@st.composite
def written_layers(draw):
    """A layer along z, and the same layer written down in some other way."""
    layer = draw(layers())
    pbc = draw(st.booleans())
    # Bonds need not hold random layers together, which pbc False asks for.
    may_cut = pbc or not layer.info.get('random')
    other = rewrite(
        layer,
        np.random.default_rng(draw(seeds())),
        vacuum=draw(st.floats(7.5, 57.0)),
        cells=draw(st.none() | unimodular()),
        tilt=draw(st.booleans()),
        across=may_cut and draw(st.booleans()),
        pbc=pbc,
    )
    return layer, other
