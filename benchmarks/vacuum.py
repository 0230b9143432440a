"""The widest gaps of slabs, layered crystals and porous ones: the study of `VACUUM_GAP`.

Every structure is taken as periodic along all three vectors. Slabs and monolayers are what
the file says (pbc). Crystals are sorted by their bonds, shorter than 1.25 times the sum of
the covalent radii: layered (bonds go on in two dimensions only, and there is a gap of more
than 2.5 A), porous (bonds go on in three, and a sphere of radius 1.9 A fits between the
covalent spheres of the atoms) and other crystals.

Prints a markdown table: the widest gap between planes of nuclei, and between planes that
touch van der Waals spheres, over all lattice planes; and what `find_layer` says. Then, by
name, crystals that it does not take for crystals, and slabs that it does not find.

    python benchmarks/vacuum.py pairs_slab.jsonl.gz pairs_2d.jsonl.gz seeds_mp.jsonl.gz
"""

import gzip
import itertools
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import covalent_radii, vdw_radii
from scipy.spatial import cKDTree

from ase_deeprelax.compare.tables import Table
from ase_deeprelax.errors import StructureError
from ase_deeprelax.geometry.lattice import reduced_basis
from ase_deeprelax.geometry.neighbors import neighbor_list
from ase_deeprelax.geometry.vacuum import find_layer

BOND, SHEETS, CAVITY, GRID = 1.25, 2.5, 1.9, 0.6
PLANES = np.array(
    [hkl for hkl in itertools.product((-2, -1, 0, 1, 2), repeat=3) if any(hkl)]
)
IMAGES = np.array(list(itertools.product((-1, 0, 1), repeat=3)))


def structures(path):
    """Name, reduced structure with pbc True, and the kind of a layer or None."""
    with gzip.open(path, 'rt') as lines:
        for record in map(json.loads, lines):
            cell = np.array(record.get('cell0', record.get('cell')))
            basis = reduced_basis(cell)
            frac = np.array(record.get('frac0', record.get('frac')))
            atoms = Atoms(record['numbers'], frac @ cell, cell=basis @ cell, pbc=True)
            atoms.wrap()
            layer = not all(record.get('pbc', [True]))
            yield record['id'], atoms, record.get('kind') if layer else None


def widest_gap(atoms, radii):
    """The widest gap between the planes that touch spheres, over all lattice planes, A."""
    reciprocal = PLANES @ np.linalg.inv(atoms.cell.array).T
    periods = 1 / np.linalg.norm(reciprocal, axis=1)
    widest = -np.inf
    for k in np.argsort(-periods):
        period = periods[k]
        if period <= widest:  # No gap is wider than the period of its planes.
            break
        heights = (atoms.positions @ reciprocal[k] % 1.0) * period
        order = np.argsort(heights - radii)
        low, high = (heights - radii)[order], (heights + radii)[order]
        below = np.maximum.accumulate(np.append(high.max() - period, high))
        widest = max(widest, (np.append(low, low[0] + period) - below).max())
    return widest


def bonded_dimensions(atoms):
    """In how many dimensions the most extended part that bonds hold together goes on."""
    radii = BOND * covalent_radii[atoms.numbers]
    cell = atoms.cell.array
    i, j, offset = neighbor_list(atoms.positions, cell, 2 * radii.max())
    vector = atoms.positions[j] + offset @ cell - atoms.positions[i]
    bonds = defaultdict(list)
    for k in np.flatnonzero(np.linalg.norm(vector, axis=1) < radii[i] + radii[j]):
        bonds[i[k]].append((j[k], offset[k]))
    images, most = {}, 0
    for start in range(len(atoms)):
        if start in images:
            continue
        images[start], cycles, stack = np.zeros(3, int), {(0, 0, 0)}, [start]
        while stack:
            atom = stack.pop()
            for other, shift in bonds[atom]:
                image = images[atom] + shift
                if other in images:
                    cycles.add(tuple(image - images[other]))
                else:
                    images[other] = image
                    stack.append(other)
        most = max(most, np.linalg.matrix_rank(np.array(list(cycles))))
    return most


def cavity(atoms):
    """Radius of the largest sphere between the covalent spheres of the atoms, A."""
    cell = atoms.cell.array
    sides = [np.arange(0, 1, GRID / length) for length in np.linalg.norm(cell, axis=1)]
    points = np.stack(np.meshgrid(*sides), axis=-1).reshape(-1, 3) @ cell
    free = np.full(len(points), np.inf)
    for number in np.unique(atoms.numbers):
        sites = atoms.positions[atoms.numbers == number]
        tree = cKDTree((sites[:, None] + IMAGES @ cell).reshape(-1, 3))
        np.minimum(free, tree.query(points)[0] - covalent_radii[number], out=free)
    return free.max()


def kind_of(atoms, gap):
    """What a crystal is."""
    dimensions = bonded_dimensions(atoms)
    if dimensions == 2 and gap > SHEETS:
        return 'layered'
    if dimensions == 3 and cavity(atoms) > CAVITY:
        return 'porous'
    return 'other crystals'


def verdict(atoms):
    """What `find_layer` says."""
    try:
        layer = find_layer(atoms)
    except StructureError as error:
        return str(error).split(':')[0]
    return 'crystal' if layer is None else 'layer'


def main(*paths):
    """Sort, measure, print."""
    gaps, verdicts, odd = defaultdict(list), defaultdict(Counter), []
    for path in paths:
        for name, atoms, layer in structures(path):
            nuclei = widest_gap(atoms, np.zeros(len(atoms)))
            usual = np.nan_to_num(vdw_radii[atoms.numbers], nan=2.0)
            kind = layer or kind_of(atoms, nuclei)
            gaps[kind].append((nuclei, widest_gap(atoms, usual)))
            said = verdict(atoms)
            verdicts[kind][said if said in ('crystal', 'layer') else 'refused'] += 1
            right = (
                'crystal'
                if 'crystals' in kind or kind in ('layered', 'porous')
                else 'layer'
            )
            if said != right:
                odd.append(f'{Path(path).name} {name}: {kind}, {nuclei:.2f} A, {said}')
    rows = []
    for kind, values in gaps.items():
        marks = np.percentile(values, [0, 1, 50, 99, 100], axis=0).T
        both = [' / '.join(f'{mark:.1f}' for mark in column) for column in marks]
        found = [str(verdicts[kind][what]) for what in ('crystal', 'layer', 'refused')]
        rows.append([kind, str(len(values)), *both, *found])
    titles = ['', 'n', 'gap/A: least, 1 %, median, 99 %, most', 'less vdW radii/A']
    print(Table([*titles, 'crystal', 'layer', 'refused'], rows).as_markdown())
    print('\n'.join(['', *odd]))


if __name__ == '__main__':
    main(*sys.argv[1:])
