"""What a report says of relaxations and comparisons, from their dictionaries."""

from collections.abc import Mapping

import numpy as np
from ase import Atoms

from ase_deeprelax.compare.summary import WAYS
from ase_deeprelax.data.pair import fixed_atoms
from ase_deeprelax.report import plot, plot_phonons
from ase_deeprelax.report.html_blocks import (
    NONE,
    figure,
    link,
    number,
    places,
    section,
    spread,
    table,
)
from ase_deeprelax.report.style import count
from ase_deeprelax.report.viewer_data import layer_of, periodic_vectors, scene

# Phonon figures for so many crystals; the table has all.
MOST_PHONONS = 12
_MEV = 1000


# --- relaxations


def named(relaxations):
    """Relaxations by name; those of a list are called by formula and place."""
    if isinstance(relaxations, Mapping):
        return {str(name): result for name, result in relaxations.items()}
    return {
        f'{result.initial.get_chemical_formula()}, {k}': result
        for k, result in enumerate(relaxations)
    }


def scenes(named):
    """Those relaxations that moved something, for the viewer."""
    scenes = []
    for name, result in named.items():
        if not result.ok:
            continue
        before, after = result.spacegroup
        notes = _notes(result.initial, result.atoms, result.dmax, result.sigma)
        notes |= {
            'relaxed as': result.kind or NONE,
            'space group': f'{before} → {after}',
            'model': result.model,
        }
        scenes.append(scene(name, result.initial, result.atoms, result.sigma_atoms, notes))
    return scenes


def _notes(before: Atoms, after: Atoms, dmax: float, sigma: float | None) -> dict[str, str]:
    """What the viewer tells beside a crystal or layer."""
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
        'moved at most / Å': number(dmax, '.3f'),
        'sigma / Å': number(sigma, '.3f'),
    }


def _area(atoms: Atoms, periodic: np.ndarray) -> float:
    return float(np.linalg.norm(np.cross(*atoms.cell.array[periodic])))


def relaxed(named, scenes):
    """The section of relaxations, whose names open the viewer."""
    where, rows = places(scenes), []
    for name, result in named.items():
        remark = result.problem or result.ood
        numbers = (result.dmax, result.volume_ratio, result.sigma)
        shown = [number(value, '.3f') for value in numbers]
        state = 'yes' if result.ok else 'refused'
        groups = '{} → {}'.format(*result.spacegroup) if result.ok else NONE
        first = [link(name, where), len(result.initial), state]
        rows.append([*first, *shown, groups, remark])
    heads = ['structure', 'atoms', 'relaxed', 'dmax / Å', 'volume ratio', 'sigma / Å']
    heads += ['space group', 'remark']
    refused = sum(not result.ok for result in named.values())
    text = [f'{count(len(named))}, {refused} of them refused by the checks.']
    return section('Relaxations', text, [table('Every one', heads, rows, words=(0, 2, 7))])


# --- comparisons


def about(comparison):
    """One line on what was compared."""
    settings = comparison['settings']
    return (
        f'{count(len(comparison["structures"]))}; model {settings["model"]!r}, '
        f'package {settings["version"]}; to {settings["fmax"]:g} eV/Å in at most '
        f'{settings["steps"]} steps; {settings["device"]}, threads: {settings["threads"]}.'
    )


def predicted_scenes(comparison):
    """The predictions of a comparison, for the viewer."""
    said = {one['structure']: one for one in comparison['predictions']}
    scenes = []
    for given in comparison['structures']:
        one = said[given['id']]
        if not one['ok']:
            continue
        before, after = (
            Atoms(given['numbers'], cell=x['cell'], positions=x['positions'], pbc=True)
            for x in (given, one)
        )
        notes = _notes(before, after, one['dmax'], one['sigma'])
        notes['model'] = comparison['settings']['model']
        sigma = one['sigma_atoms']
        if sigma is not None:
            sigma = [float('nan') if value is None else value for value in sigma]
        scenes.append(scene(_title(given), before, after, sigma, notes))
    return scenes


def _title(structure):
    id, formula = structure['id'], structure['formula']
    return formula if id == formula else f'{formula}, {id}'


def savings(comparison):
    """The section of what predictions save."""
    tables = [_costs(comparison), _ends(comparison), _beside(comparison)]
    if comparison['batched']:
        tables.append(_batched(comparison))
    tables.append(_runs(comparison))
    figures = [
        figure(
            plot.calls_saved(comparison),
            'Calls of the calculator until converged, with and without the prediction, for '
            'structures that converged from both starts. Below the dashed line the '
            'prediction saved calls; in the boxes, numbers below 1.',
        ),
        figure(
            plot.energy_boxes(comparison),
            'Energies above that of the full relaxation from the unrelaxed structure '
            '(linear between -1 and 1, logarithmic beyond). Boxes hold the middle half, '
            'whiskers reach from 5 to 95 %.',
        ),
        *(
            figure(
                plot.convergence(comparison, calculator),
                f'The way down with {calculator}: each structure thin, the median thick; '
                'relaxations that are over keep their last value. Dashed: fmax.',
            )
            for calculator in comparison['settings']['calculators']
        ),
        figure(
            plot.lattice_parity(comparison),
            'Lattice parameters of inputs and predictions against relaxed ones.',
        ),
    ]
    text = (
        'Medians with quartiles, over converged runs only; what failed or did not converge '
        'is counted, not averaged.'
    )
    text = [text, *_warnings(comparison)]
    return section('With and without the prediction', text, tables, figures)


def _costs(comparison):
    counts, rows = ('converged', 'unconverged', 'failed'), []
    for row in comparison['summary']:
        for way, title in WAYS.items():
            one = row[way]
            rows.append(
                [
                    *(row['calculator'], row['optimizer'], title),
                    *(one.get(key, NONE) for key in counts),
                    *(spread(one.get(cost), '.0f') for cost in ('calls', 'steps')),
                    spread(one['seconds'], '.2f'),
                ]
            )
    heads = ['calculator', 'optimizer', 'way', *counts, 'calls', 'steps', 'time / s']
    return table('What it cost to converge', heads, rows, words=(0, 1, 2))


def _ends(comparison):
    rows = []
    for row in comparison['summary']:
        above = {'alone': row['alone'], 'prediction': row['both']}
        for way, title in WAYS.items():
            one, energies = row[way], above.get(way, {}).get('energy_difference')
            rows.append(
                [
                    *(row['calculator'], row['optimizer'], title),
                    number(one.get('converged_share'), '.0%'),
                    spread(energies, '.1f', _MEV),
                    spread(one['rmsd_to_reference'], '.3f'),
                    number(one['spacegroup_kept'], '.0%'),
                ]
            )
    heads = ['calculator', 'optimizer', 'way', 'converged', 'energy / meV per atom']
    heads += ['RMSD to reference', 'space group kept']
    caption = 'Where it led; energies above the relaxation from the unrelaxed structure'
    return table(caption, heads, rows, words=(0, 1, 2))


def _beside(comparison):
    rows = []
    for row in comparison['summary']:
        both = row['both']
        shares = ('equal', 'lower', 'higher', 'uphill')
        rows.append(
            [
                *(row['calculator'], row['optimizer'], both['n']),
                number(both['median_calls_ratio'], '.0%'),
                spread(both['calls_saved'], '.0f'),
                spread(both['seconds_saved'], '.2f'),
                *(number(both[share], '.0%') for share in shares),
            ]
        )
    heads = ['calculator', 'optimizer', 'both converged', 'calls', 'calls saved']
    heads += ['time saved / s', 'same energy', 'lower', 'higher', 'prediction uphill']
    tolerance = _MEV * comparison['settings']['energy_tolerance']
    caption = (
        'From the prediction, beside from the unrelaxed structure '
        f'(same energy: within {tolerance:g} meV per atom)'
    )
    return table(caption, heads, rows, words=(0, 1))


def _warnings(comparison):
    """Lines on structures that the prediction did no good, whom nobody should miss."""
    for row in comparison['summary']:
        name = f'{row["calculator"]} + {row["optimizer"]}, from the prediction'
        if higher := row['both']['higher_structures']:
            yield f'{name} ended higher: {", ".join(higher)}.'
        if lost := row['only_unrelaxed']:
            yield f'{name} did not converge: {", ".join(lost)}.'


def _batched(comparison):
    rows = [
        [
            *(one['calculator'], one['optimizer'], one['start'], one['n']),
            number(one['converged'], 'd'),
            spread(one['calls'], '.0f'),
            number(one['seconds_per_structure'], '.3f'),
            one['problem'],
        ]
        for one in comparison['batched']
    ]
    heads = ['calculator', 'optimizer', 'start', 'structures', 'converged', 'calls']
    heads += ['time per structure / s', 'problem']
    return table('Many structures per pass', heads, rows, words=(0, 1, 2, 7))


def _runs(comparison):
    titles = {s['id']: _title(s) for s in comparison['structures']}
    rows = [
        [
            *(titles[run['structure']], run['calculator'], run['optimizer'], run['start']),
            *(run['calls'], run['steps'], number(run['seconds'], '.2f')),
            *(number(run['energy_per_atom'], '.4f'), number(run['fmax'], '.3f')),
            'yes' if run['converged'] else run['reason'] or 'no',
        ]
        for run in comparison['runs']
    ]
    heads = ['structure', 'calculator', 'optimizer', 'start', 'calls', 'steps']
    heads += ['time / s', 'energy / eV per atom', 'fmax / eV Å⁻¹', 'converged']
    return table('Every run', heads, rows, words=(0, 1, 2, 3, 9), folded=True)


def predictions(comparison, scenes):
    """The section of predictions alone, whose names open the viewer."""
    said = {one['structure']: one for one in comparison['predictions']}
    where, rows = places(scenes), []
    for given in comparison['structures']:
        one, title = said[given['id']], _title(given)
        ratio = one['volume'] / given['volume'] if one['ok'] else None
        kept = {True: 'yes', False: 'no', None: NONE}[one['spacegroup_kept']]
        numbers = (one['dmax'], ratio, one['sigma'], one['rmsd_to_reference'])
        shown = [number(value, '.3f') for value in numbers]
        first = [link(title, where), given['n_atoms'], 'yes' if one['ok'] else 'refused']
        rows.append([*first, *shown, kept, one['problem'] or one['ood']])
    heads = ['structure', 'atoms', 'predicted', 'dmax / Å', 'volume ratio', 'sigma / Å']
    heads += ['RMSD to reference', 'space group kept', 'remark']
    caption = 'The one-shot answers alone'
    return section('Predictions', [], [table(caption, heads, rows, words=(0, 2, 8))])


def phonons(comparison):
    """The section of phonons."""
    titles = {s['id']: _title(s) for s in comparison['structures']}
    rows, drawn = [], {}
    for entry in comparison['phonons']:
        names = [titles[entry['structure']], entry['calculator'], entry['kind']]
        if not entry['ok']:
            rows.append([*names, *4 * [NONE], entry['problem']])
            continue
        bad = entry['imaginary']
        share = f'{bad["n"]} of {bad["n_modes"]}'
        forces = number(entry['fmax'], '.3f')
        rows.append(
            [*names, forces, share, number(bad['lowest'], '.2f'), entry['n_supercell'], '']
        )
        drawn[entry['structure'], entry['calculator']] = f'{names[0]}, {names[1]}'
    figures = []
    for (structure, calculator), which in list(drawn.items())[:MOST_PHONONS]:
        figures += [
            figure(
                plot_phonons.phonon_bands(comparison, structure, calculator),
                f'Phonons of {which}: bands and density of states. Imaginary frequencies '
                'are drawn below zero.',
            ),
            figure(
                plot_phonons.thermal_properties(comparison, structure, calculator),
                f'Harmonic thermal properties of {which}; moles of atoms.',
            ),
        ]
    heads = ['structure', 'calculator', 'relaxed', 'fmax / eV Å⁻¹', 'imaginary modes']
    heads += ['lowest / THz', 'atoms of supercell', 'problem']
    shown = table('Imaginary modes', heads, rows, words=(0, 1, 2, 7))
    return section('Phonons', [], [shown], figures)
