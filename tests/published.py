"""Writers of small data sets in the layouts that the papers' data sets have."""

import csv

import numpy as np
from ase.build import bulk, mx2
from ase.db import connect
from ase.io import write
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.io.cif import CifWriter
from scipy.spatial.transform import Rotation

SPLITS = ('train', 'val', 'test')


def crystals(rng, n=7):
    """``(id, split, unrelaxed, relaxed)``: strained and displaced, in any images, and the
    relaxed half also shifted and rotated, as files of two programs may differ.
    """
    kinds = [
        bulk('MgO', 'rocksalt', a=4.3, cubic=True),
        bulk('BaO', 'cesiumchloride', a=3.5) * (2, 1, 1),
        bulk('Ti', 'hcp', a=2.95, c=4.7),
    ]
    for k in range(n):
        relaxed = kinds[(k + k // 3) % 3].copy()  # seven show every kind in training
        relaxed.rattle(0.02, rng=rng)
        unrelaxed = relaxed.copy()
        strain = rng.uniform(-0.05, 0.05, (3, 3))
        unrelaxed.set_cell(relaxed.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        unrelaxed.rattle(0.1, rng=rng)
        relaxed.positions += rng.integers(-1, 2, (len(relaxed), 3)) @ relaxed.cell.array
        relaxed.positions += rng.uniform(0, 1, 3)
        relaxed.rotate(*turn(rng), rotate_cell=True)
        yield f'c-{k}', SPLITS[k % 3], unrelaxed, relaxed


def turn(rng):
    """Angle in degrees and axis of a random rotation, for ``Atoms.rotate``."""
    vector = Rotation.random(random_state=int(rng.integers(2**31))).as_rotvec()
    return np.degrees(np.linalg.norm(vector)), vector


def layers(rng, n=3):
    """The same of MoS2 layers in vacuum, as C2DB has them, with one period out of three."""
    for k in range(n):
        relaxed = mx2(a=3.18, thickness=3.13, vacuum=7.0)
        unrelaxed = relaxed.copy()
        unrelaxed.set_cell(relaxed.cell.array * [1.03, 1.03, 1], scale_atoms=True)
        unrelaxed.rattle(0.05, rng=rng)
        for atoms in (unrelaxed, relaxed):
            atoms.pbc = True, True, False
        yield f'MoS2-{k}', SPLITS[k], unrelaxed, relaxed


def write_xmno(folder, pairs, place='.'):
    """X-Mn-O: both halves in the lists, without a header, and a number beside."""
    for split in SPLITS:
        ids = [id for id, s, *_ in pairs if s == split]
        rows = [(f'{id}_{half}', 0.1) for id in ids for half in ('unrelaxed', 'relaxed')]
        _write_rows(folder / f'id_prop_{split}_all.csv', rows)
    _write_cifs(folder / place, pairs, ('_unrelaxed', '_relaxed'))


def write_mp(folder, pairs, place='CIF'):
    """Materials Project: ``mp_id``, ``_U`` and ``_R``; lists as pandas writes them."""
    for split in SPLITS:
        ids = [id for id, s, *_ in pairs if s == split]
        rows = [('', 'mp_id', 'energy'), *((k, id, 0.1) for k, id in enumerate(ids))]
        _write_rows(folder / f'{split}.csv', rows)
    _write_cifs(folder / place, pairs, ('_U', '_R'))


def write_c2db(folder, pairs, place='CIF'):
    """C2DB, vdW, JARVIS, and sets of one's own."""
    write_lists(folder, pairs)
    _write_cifs(folder / place, pairs, ('_unrelaxed', '_relaxed'))


def write_lists(folder, pairs):
    """Lists with the column ``atoms_id``."""
    for split in SPLITS:
        ids = [id for id, s, *_ in pairs if s == split]
        _write_rows(folder / f'{split}.csv', [('atoms_id',), *((id,) for id in ids)])


def write_databases(folder, pairs):
    """C2DB as its authors give it: the unrelaxed structures in the rows' data.

    As ``structure.json`` or under one of two other names, while the row itself holds what
    became of them.
    """
    names = ('structure.json', 'structure_large_vacuum.json', 'unrelaxed.json')
    first, second = connect(folder / 'unrelaxed.db'), connect(folder / 'relaxed.db')
    for k, (id, _, unrelaxed, relaxed) in enumerate(pairs):
        record = {
            'numbers': unrelaxed.numbers.tolist(),
            'positions': unrelaxed.positions.tolist(),
            'cell': unrelaxed.cell.array.tolist(),
        }
        data = {names[k % 3]: {'1': record, 'ids': [1]}}
        first.write(relaxed, folder=f'/somewhere/tree/{id}', data=data)
    for id, _, _, relaxed in reversed(pairs):
        second.write(relaxed, folder=f'elsewhere/{id}')


def _write_rows(path, rows):
    with path.open('w', newline='') as file:
        csv.writer(file).writerows(rows)


def _write_cifs(place, pairs, suffixes):
    """One half by ASE, the other by pymatgen."""
    place.mkdir(exist_ok=True)
    for id, _, unrelaxed, relaxed in pairs:
        write(place / f'{id}{suffixes[0]}.cif', unrelaxed)
        structure = AseAtomsAdaptor.get_structure(relaxed)
        CifWriter(structure).write_file(place / f'{id}{suffixes[1]}.cif')
