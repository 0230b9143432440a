"""The sections of a report on relaxations and comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms

from ase_deeprelax.compare.comparison_tables import (
    batch_table,
    both_starts_table,
    cost_table,
    end_table,
    phonon_table,
    run_table,
    structure_title,
    warnings_of,
)
from ase_deeprelax.compare.schema import Comparison
from ase_deeprelax.compare.tables import WIDE_DASH, Cell, Table, count, number
from ase_deeprelax.data.pair import fixed_atoms
from ase_deeprelax.report import plot, plot_phonons
from ase_deeprelax.report.html_blocks import Section, figure_block, link, places
from ase_deeprelax.report.viewer_data import layer_of, periodic_vectors, scene
from ase_deeprelax.result import Relaxation

# Phonon figures are drawn for so many crystals; the table has all.
MOST_PHONONS = 12


# --- relaxations


def named(
    relaxations: Mapping[Any, Relaxation] | Iterable[Relaxation],
) -> dict[str, Relaxation]:
    """Relaxations by name; those of a list are called by formula and place."""
    if isinstance(relaxations, Mapping):
        return {str(name): result for name, result in relaxations.items()}
    return {
        f'{result.initial.get_chemical_formula()}, {k}': result
        for k, result in enumerate(relaxations)
    }


def scenes(named: Mapping[str, Relaxation]) -> list[dict[str, Any]]:
    """Relaxations that succeeded, for the viewer."""
    scenes = []
    for name, result in named.items():
        if not result.ok:
            continue
        before, after = result.spacegroup
        notes = _notes(result.initial, result.atoms, result.dmax, result.sigma)
        notes |= {
            'relaxed as': result.kind or WIDE_DASH,
            'space group': f'{before} → {after}',
            'model': result.model,
        }
        scenes.append(scene(name, result.initial, result.atoms, result.sigma_atoms, notes))
    return scenes


def _notes(
    before: Atoms, after: Atoms, dmax: float | None, sigma: float | None
) -> dict[str, str]:
    """Facts that the viewer shows beside a crystal or layer."""
    periodic = periodic_vectors(layer_of(before))
    fixed = int(fixed_atoms(before).sum())
    notes = {
        'atoms': f'{len(before)}, {fixed} of them fixed' if fixed else f'{len(before)}'
    }
    if periodic.all():
        what, sizes = 'volume / Å³', [atoms.get_volume() for atoms in (before, after)]
    else:
        what, sizes = 'area / Å²', [_area(atoms, periodic) for atoms in (before, after)]
    notes |= {
        what: f'{sizes[0]:.2f} → {sizes[1]:.2f}',
        f'change of {what.split()[0]}': f'{100 * (sizes[1] / sizes[0] - 1):+.1f} %',
    }
    lengths = zip('abc', before.cell.lengths(), after.cell.lengths(), strict=True)
    notes |= {
        f'{name} / Å': f'{a:.3f} → {b:.3f}'
        for (name, a, b), shown in zip(lengths, periodic, strict=True)
        if shown
    }
    return notes | {
        'moved at most / Å': number(dmax, '.3f') or WIDE_DASH,
        'sigma / Å': number(sigma, '.3f') or WIDE_DASH,
    }


def _area(atoms: Atoms, periodic: np.ndarray) -> float:
    return float(np.linalg.norm(np.cross(*atoms.cell.array[periodic])))


def relaxed(
    named: Mapping[str, Relaxation], scenes: Sequence[Mapping[str, Any]]
) -> Section:
    """The section of relaxations, whose names open the viewer."""
    where = places(scenes)
    rows: list[list[Cell]] = [
        [
            *(link(name, where), len(one.initial), 'yes' if one.ok else 'refused'),
            *(number(x, '.3f') for x in (one.dmax, one.volume_ratio, one.sigma)),
            '{} → {}'.format(*one.spacegroup) if one.ok else None,
            one.problem or one.ood,
        ]
        for name, one in named.items()
    ]
    heads = ['structure', 'atoms', 'relaxed', 'dmax / Å', 'volume ratio', 'sigma / Å']
    heads += ['space group', 'remark']
    table = Table(heads, rows, (0, 2, 7), 'All relaxations').without_empty_columns()
    refused = sum(not one.ok for one in named.values())
    text = f'{count(len(named))}, {refused} of them refused by the checks.'
    return Section('Relaxations', [text], [table])


# --- comparisons


def about(comparison: Comparison) -> str:
    """One line on how a comparison was made."""
    settings = comparison['settings']
    return (
        f'{count(len(comparison["structures"]))}; model {settings["model"]!r}, '
        f'package {settings["version"]}; to {settings["fmax"]:g} eV/Å in at most '
        f'{count(settings["steps"], "step")}; {settings["device"]}, '
        f'threads: {settings["threads"]}.'
    )


def predicted_scenes(comparison: Comparison) -> list[dict[str, Any]]:
    """The predictions of a comparison, for the viewer."""
    predictions = {row['structure']: row for row in comparison['predictions']}
    scenes = []
    for given in comparison['structures']:
        predicted = predictions[given['id']]
        if not predicted['ok']:
            continue
        before, after = (
            Atoms(given['numbers'], cell=x['cell'], positions=x['positions'], pbc=True)
            for x in (given, predicted)
        )
        notes = _notes(before, after, predicted['dmax'], predicted['sigma'])
        notes['model'] = comparison['settings']['model']
        title, sigma = structure_title(given), predicted['sigma_atoms']
        scenes.append(scene(title, before, after, sigma, notes))
    return scenes


def savings(comparison: Comparison) -> Section:
    """The section on costs with and without the prediction."""
    drawn = [cost_table(comparison), end_table(comparison), both_starts_table(comparison)]
    if comparison['batched']:
        drawn.append(batch_table(comparison))
    drawn.append(run_table(comparison))
    figures = [
        figure_block(
            plot.calls_saved(comparison),
            'Calls of the calculator until converged, with and without the prediction, for '
            'structures that converged from both starts. Below the dashed line the '
            'prediction saved calls; in the boxes, numbers below 1.',
        ),
        figure_block(
            plot.energy_boxes(comparison),
            'Energies above that of the full relaxation from the unrelaxed structure '
            '(linear between -1 and 1, logarithmic beyond). Boxes hold the middle half, '
            'whiskers reach from 5 to 95 %.',
        ),
        *(
            figure_block(
                plot.convergence(comparison, calculator),
                f'Relaxations with {calculator}: each structure thin, the median thick; '
                'relaxations that are over keep their last value. Dashed: fmax.',
            )
            for calculator in comparison['settings']['calculators']
        ),
        figure_block(
            plot.lattice_parity(comparison),
            'Lattice parameters of inputs and predictions against relaxed ones.',
        ),
    ]
    text = (
        'Medians with quartiles, over converged runs only; runs that failed or did not '
        'converge are counted, not averaged.'
    )
    warnings = (f'{line}.' for line in warnings_of(comparison))
    title = 'With and without the prediction'
    return Section(title, [text, *warnings], drawn, figures)


def predictions(comparison: Comparison, scenes: Sequence[Mapping[str, Any]]) -> Section:
    """The section of predictions alone, whose names open the viewer."""
    found = {row['structure']: row for row in comparison['predictions']}
    where = places(scenes)
    rows: list[list[Cell]] = []
    for given in comparison['structures']:
        row = found[given['id']]
        volumes = row['volume'], given['volume']
        ratio = volumes[0] / volumes[1] if volumes[0] and volumes[1] else None
        numbers = (row['dmax'], ratio, row['sigma'], row['rmsd_to_reference'])
        rows.append(
            [
                link(structure_title(given), where),
                given['n_atoms'],
                'yes' if row['ok'] else 'refused',
                *(number(value, '.3f') for value in numbers),
                {True: 'yes', False: 'no', None: None}[row['spacegroup_kept']],
                row['problem'] or row['ood'],
            ]
        )
    heads = ['structure', 'atoms', 'predicted', 'dmax / Å', 'volume ratio', 'sigma / Å']
    heads += ['RMSD to reference', 'space group kept', 'remark']
    table = Table(heads, rows, (0, 2, 8), 'The one-shot predictions alone')
    return Section('Predictions', [], [table.without_empty_columns()])


def phonons(comparison: Comparison) -> Section:
    """The section of phonons."""
    titles = {row['id']: structure_title(row) for row in comparison['structures']}
    drawn = dict.fromkeys(
        (row['structure'], row['calculator'])
        for row in comparison.get('phonons', [])
        if row['ok']
    )
    figures = []
    for structure, calculator in list(drawn)[:MOST_PHONONS]:
        which = f'{titles[structure]}, {calculator}'
        figures += [
            figure_block(
                plot_phonons.phonon_bands(comparison, structure, calculator),
                f'Phonons of {which}: bands and density of states. Imaginary frequencies '
                'are drawn below zero.',
            ),
            figure_block(
                plot_phonons.thermal_properties(comparison, structure, calculator),
                f'Harmonic thermal properties of {which}; moles of atoms.',
            ),
        ]
    return Section('Phonons', [], [phonon_table(comparison)], figures)
