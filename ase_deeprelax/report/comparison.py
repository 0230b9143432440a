"""The sections of a report on a comparison with iterative relaxation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ase import Atoms
from ase.constraints import FixAtoms

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
from ase_deeprelax.compare.tables import WIDE_DASH, Cell, Table, number
from ase_deeprelax.data.one_line import count
from ase_deeprelax.report import plot, plot_phonons
from ase_deeprelax.report.html_blocks import Section, figure_block, link, places
from ase_deeprelax.report.relaxations import notes
from ase_deeprelax.report.style import MANY
from ase_deeprelax.report.viewer_data import scene

# Phonon figures are drawn for so many crystals; the table has all.
MOST_PHONONS = 12
# Tables of single structures, and the viewer, have at most so many; JSON has all.
MOST_STRUCTURES = 500


def about(comparison: Comparison) -> str:
    """One line on how a comparison was made."""
    settings = comparison['settings']
    weights = f' (SHA-256 {settings["sha256"][:12]})' if settings['sha256'] else ''
    return (
        f'{count(len(comparison["structures"]))}; model {settings["model"]!r}{weights}, '
        f'package {settings["version"]}; to {settings["fmax"]:g} eV/Å in at most '
        f'{count(settings["steps"], "step")}; {settings["device"]}, '
        f'threads: {settings["threads"]}.'
    )


def worth_a_look(comparison: Comparison) -> Comparison:
    """The structures of a comparison that a page has room for.

    Those of which a run failed, did not converge or ended higher from the prediction come
    first, then the least certain ones.
    """
    structures = comparison['structures']
    if len(structures) <= MOST_STRUCTURES:
        return comparison
    bad = {run['structure'] for run in comparison['runs'] if not run['converged']}
    for row in comparison['summary']:
        bad |= set(row['both']['higher_structures'])
    order = sorted(structures, key=lambda row: (row['id'] not in bad, -(row['sigma'] or 0)))
    chosen = {row['id'] for row in order[:MOST_STRUCTURES]}
    return {
        **comparison,
        'structures': [row for row in structures if row['id'] in chosen],
        'predictions': [p for p in comparison['predictions'] if p['structure'] in chosen],
        'runs': [run for run in comparison['runs'] if run['structure'] in chosen],
    }


def predicted_scenes(comparison: Comparison) -> list[dict[str, Any]]:
    """The predictions of a comparison, for the viewer."""
    predictions = {row['structure']: row for row in comparison['predictions']}
    scenes = []
    for given in comparison['structures']:
        predicted = predictions[given['id']]
        if not predicted['ok']:
            continue
        before, after = (
            Atoms(
                given['numbers'],
                cell=x['cell'],
                positions=x['positions'],
                pbc=given.get('pbc', True),
                constraint=FixAtoms(given.get('fixed', [])),
            )
            for x in (given, predicted)
        )
        facts = notes(before, after, predicted['dmax'])
        facts['sigma / Å'] = number(predicted['sigma'], '.3f') or WIDE_DASH
        facts['model'] = comparison['settings']['model']
        title, sigma = structure_title(given), predicted['sigma_atoms']
        scenes.append(scene(title, before, after, sigma, facts))
    return scenes


def savings(comparison: Comparison, shown: Comparison) -> Section:
    """The section on costs with and without the prediction.

    Tables of single runs have those of ``shown``, see `worth_a_look`.
    """
    drawn = [cost_table(comparison), end_table(comparison), both_starts_table(comparison)]
    if comparison['batched']:
        drawn.append(batch_table(comparison))
    drawn.append(run_table(shown))
    figures = [
        figure_block(
            plot.calls_saved(comparison),
            'Calls of the calculator until converged, with and without the prediction, for '
            'structures that converged from both starts. Below the dashed line the '
            'prediction saved calls; in the boxes, numbers below 1. The tables give the '
            'ratio of the medians, which need not be the median of these ratios.',
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
                f'Relaxations with {calculator}: each structure thin, or {MANY:,} of more, '
                'the median of all thick; relaxations that are over keep their last value. '
                'Energies below 0.1 meV are drawn there. Dashed: fmax.',
            )
            for calculator in comparison['settings']['calculators']
        ),
    ]
    if any('cell fixed' not in row['kind'] for row in comparison['structures']):
        figures.append(
            figure_block(
                plot.lattice_parity(comparison),
                'Lattice parameters of inputs and predictions against relaxed ones.',
            )
        )
    medians = (
        'Medians with quartiles, over converged runs only; runs that failed or did not '
        'converge are counted, not averaged.'
    )
    text = [medians]
    if len(shown['structures']) < len(comparison['structures']):
        text.append(
            f'The viewer and the tables of runs and predictions show {MOST_STRUCTURES} of '
            f'{count(len(comparison["structures"]))}: those that failed, did not converge '
            'or ended higher first, then the least certain ones.'
        )
    text += [f'{line}.' for line in warnings_of(comparison)]
    return Section('With and without the prediction', text, drawn, figures)


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
