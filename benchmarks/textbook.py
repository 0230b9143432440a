"""Textbook crystals: is the lattice constant right that a newcomer asks for first?

Elements and simple compounds are predicted from cells that are 6 % too short and 6 % too
long in each direction. Prints a markdown table against the lattice constants of PBE by
P. Haas, F. Tran and P. Blaha, Phys. Rev. B 79, 085104 (2009), and how many crystals lie
within 1 % of them from both starts.

    python benchmarks/textbook.py --model deeprelax
"""

import argparse
import warnings

from ase.build import bulk

from ase_deeprelax import Predictor, available_models
from ase_deeprelax.compare.tables import Table

# Prototype and lattice constant of PBE, A.
CRYSTALS = {
    'C': ('diamond', 3.575),
    'Si': ('diamond', 5.475),
    'Ge': ('diamond', 5.769),
    'SiC': ('zincblende', 4.384),
    'BN': ('zincblende', 3.629),
    'AlP': ('zincblende', 5.513),
    'GaAs': ('zincblende', 5.757),
    'InP': ('zincblende', 5.968),
    'Al': ('fcc', 4.041),
    'Ni': ('fcc', 3.518),
    'Cu': ('fcc', 3.632),
    'Pd': ('fcc', 3.943),
    'Ag': ('fcc', 4.147),
    'Pt': ('fcc', 3.985),
    'Au': ('fcc', 4.154),
    'Na': ('bcc', 4.196),
    'V': ('bcc', 3.001),
    'Fe': ('bcc', 2.833),
    'Nb': ('bcc', 3.312),
    'Mo': ('bcc', 3.164),
    'W': ('bcc', 3.191),
    'LiF': ('rocksalt', 4.071),
    'NaCl': ('rocksalt', 5.701),
    'MgO': ('rocksalt', 4.261),
}
ATOMS_PER_CUBE = {'fcc': 4, 'bcc': 2, 'diamond': 8, 'zincblende': 8, 'rocksalt': 8}
STRAINS = (-0.06, 0.06)


def lattice_constant(atoms, prototype):
    """Edge of the cube, A."""
    return (atoms.cell.volume * ATOMS_PER_CUBE[prototype] / len(atoms)) ** (1 / 3)


def main():
    """Predict and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', action='append', help='default: all that are shipped')
    options = parser.parse_args()

    inputs = [
        bulk(name, prototype, a=a * (1 + strain))
        for name, (prototype, a) in CRYSTALS.items()
        for strain in STRAINS
    ]
    for model in options.model or available_models():
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', '.*outside the training range')
            results = iter(Predictor(model).relax(inputs))
        rows, right = [], 0
        for name, (prototype, a) in CRYSTALS.items():
            found = [lattice_constant(next(results).atoms, prototype) for _ in STRAINS]
            errors = [100 * (value / a - 1) for value in found]
            right += max(map(abs, errors)) <= 1
            cells = [f'{a:.3f}', *(f'{value:.3f}' for value in found)]
            rows.append([name, prototype, *cells, *(f'{error:+.1f}' for error in errors)])
        starts = [f'{100 * strain:+.0f} %' for strain in STRAINS]
        titles = [model, '', 'PBE/A', *(f'from {s}' for s in starts)]
        titles += [f'error/% from {s}' for s in starts]
        print(Table(titles, rows, (0, 1)).as_markdown())
        print(f'\n{right} of {len(CRYSTALS)} within 1 % from both starts\n')


if __name__ == '__main__':
    main()
