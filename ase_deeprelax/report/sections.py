"""What a report says: tables, figures and crystals from the dictionaries of this folder.

A section is ``title, text, tables, figures``, as the page's template takes them.
"""

import math
from collections.abc import Mapping

from ase import Atoms
from markupsafe import Markup

from ase_deeprelax.compare.metrics import ERRORS, SHARES
from ase_deeprelax.report.drawing import count, to_svg
from ase_deeprelax.report.scene import scene

# Phonon figures for so many crystals; the table has all.
MOST_PHONONS = 12
NONE = '\N{EN DASH}'
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
        notes |= {'space group': f'{before} → {after}', 'model': result.model}
        scenes.append(scene(name, result.initial, result.atoms, result.sigma_atoms, notes))
    return scenes


def _notes(before, after, dmax, sigma):
    """What the viewer tells beside a crystal."""
    ratio = after.get_volume() / before.get_volume()
    notes = {
        'atoms': str(len(before)),
        'volume / Å³': f'{before.get_volume():.2f} → {after.get_volume():.2f}',
        'change of volume': f'{100 * (ratio - 1):+.1f} %',
    }
    lengths = zip('abc', before.cell.lengths(), after.cell.lengths(), strict=True)
    notes |= {f'{name} / Å': f'{a:.3f} → {b:.3f}' for name, a, b in lengths}
    return notes | {
        'moved at most / Å': _(dmax, '.3f'),
        'sigma / Å': _(sigma, '.3f'),
    }


def relaxed(named, scenes):
    """The section of relaxations, whose names open the viewer."""
    places, rows = _places(scenes), []
    for name, result in named.items():
        remark = result.problem or result.ood
        numbers = (result.dmax, result.volume_ratio, result.sigma)
        shown = [_(number, '.3f') for number in numbers]
        state = 'yes' if result.ok else 'refused'
        groups = '{} → {}'.format(*result.spacegroup) if result.ok else NONE
        first = [_link(name, places), len(result.initial), state]
        rows.append([*first, *shown, groups, remark])
    heads = ['structure', 'atoms', 'relaxed', 'dmax / Å', 'volume ratio', 'sigma / Å']
    table = _table('Relaxations', [*heads, 'space group', 'remark'], rows, words=(0, 2, 7))
    refused = sum(not result.ok for result in named.values())
    text = [f'{count(len(named))}, {refused} of them refused by the checks.']
    return _section('Relaxations', text, [table])


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
    from ase_deeprelax.report import plot

    tables = [_starts(comparison), _both_starts(comparison)]
    if comparison['batched']:
        tables.append(_batched(comparison))
    tables.append(_runs(comparison))
    figures = [
        _figure(
            plot.calls_saved(comparison),
            'Calls of the calculator until converged, with and without the prediction, for '
            'structures that converged from both starts. Below the dashed line the '
            'prediction saved calls; in the boxes, numbers below 1.',
        ),
        _figure(
            plot.energy_boxes(comparison),
            'Energies above that of the full relaxation from the unrelaxed structure '
            '(linear between -1 and 1, logarithmic beyond). Boxes hold the middle half, '
            'whiskers reach from 5 to 95 %.',
        ),
        *(
            _figure(
                plot.convergence(comparison, calculator),
                f'The way down with {calculator}: each structure thin, the median thick; '
                'relaxations that are over keep their last value. Dashed: fmax.',
            )
            for calculator in comparison['settings']['calculators']
        ),
        _figure(
            plot.lattice_parity(comparison),
            'Lattice parameters of inputs and predictions against relaxed ones.',
        ),
    ]
    text = (
        'Medians with quartiles, over converged runs only; what failed or did not converge '
        'is counted, not averaged.'
    )
    text = [text, *_ended_higher(comparison)]
    return _section('With and without the prediction', text, tables, figures)


def _starts(comparison):
    rows = []
    for row in comparison['summary']:
        for start in ('unrelaxed', 'prediction'):
            one = row[start]
            counts = [one['converged'], one['unconverged'], one['failed']]
            costs = [_spread(one['calls'], '.0f'), _spread(one['seconds'], '.2f')]
            kept = _(one['spacegroup_kept'], '.0%')
            rmsd = _spread(one['rmsd_to_reference'], '.3f')
            names = [row['calculator'], row['optimizer'], start]
            rows.append([*names, *counts, *costs, kept, rmsd])
    heads = ['calculator', 'optimizer', 'start', 'converged', 'unconverged', 'failed']
    heads += ['calls', 'time / s', 'space group kept', 'RMSD to reference']
    return _table('Relaxations from both starts', heads, rows, words=(0, 1, 2))


def _both_starts(comparison):
    rows = []
    for row in comparison['summary']:
        both = row['both']
        shares = [_(both[key], '.0%') for key in ('equal', 'lower', 'higher', 'uphill')]
        rows.append(
            [
                *(row['calculator'], row['optimizer'], both['n']),
                _(both['median_calls_ratio'], '.0%'),
                _spread(both['calls_saved'], '.0f'),
                _spread(both['seconds_saved'], '.2f'),
                *shares,
            ]
        )
    heads = ['calculator', 'optimizer', 'both converged', 'calls', 'calls saved']
    heads += ['time saved / s', 'same energy', 'lower', 'higher', 'prediction uphill']
    tolerance = _MEV * comparison['settings']['energy_tolerance']
    caption = (
        f'From the prediction, beside the unrelaxed start (same: {tolerance:g} meV/atom)'
    )
    return _table(caption, heads, rows, words=(0, 1))


def _ended_higher(comparison):
    """A line for each calculator and optimizer with structures that nobody should miss."""
    return [
        f'{row["calculator"]}, {row["optimizer"]}: from the prediction these ended higher: '
        f'{", ".join(row["both"]["higher_structures"])}.'
        for row in comparison['summary']
        if row['both']['higher_structures']
    ]


def _batched(comparison):
    rows = [
        [
            *(one['calculator'], one['optimizer'], one['start'], one['n']),
            _(one['converged'], 'd'),
            _spread(one['calls'], '.0f') if one['calls'] else NONE,
            _(one['seconds_per_structure'], '.3f'),
            one['problem'],
        ]
        for one in comparison['batched']
    ]
    heads = ['calculator', 'optimizer', 'start', 'structures', 'converged', 'calls']
    heads += ['time per structure / s', 'problem']
    return _table('Many structures per pass', heads, rows, words=(0, 1, 2, 7))


def _runs(comparison):
    titles = {s['id']: _title(s) for s in comparison['structures']}
    rows = [
        [
            *(titles[run['structure']], run['calculator'], run['optimizer'], run['start']),
            *(run['calls'], _(run['seconds'], '.2f'), _(run['energy_per_atom'], '.4f')),
            *(_(run['fmax'], '.3f'), 'yes' if run['converged'] else run['reason'] or 'no'),
        ]
        for run in comparison['runs']
    ]
    heads = ['structure', 'calculator', 'optimizer', 'start', 'calls', 'time / s']
    heads += ['energy / eV per atom', 'fmax / eV Å⁻¹', 'converged']
    return _table('Every run', heads, rows, words=(0, 1, 2, 3, 8), folded=True)


def predictions(comparison, scenes):
    """The section of predictions alone, whose names open the viewer."""
    said = {one['structure']: one for one in comparison['predictions']}
    places, rows = _places(scenes), []
    for given in comparison['structures']:
        one, title = said[given['id']], _title(given)
        ratio = one['volume'] / given['volume'] if one['ok'] else None
        kept = {True: 'yes', False: 'no', None: NONE}[one['spacegroup_kept']]
        numbers = (one['dmax'], ratio, one['sigma'], one['rmsd_to_reference'])
        shown = [_(number, '.3f') for number in numbers]
        first = [_link(title, places), given['n_atoms'], 'yes' if one['ok'] else 'refused']
        rows.append([*first, *shown, kept, one['problem'] or one['ood']])
    heads = ['structure', 'atoms', 'predicted', 'dmax / Å', 'volume ratio', 'sigma / Å']
    heads += ['RMSD to reference', 'space group kept', 'remark']
    table = _table('The one-shot answers alone', heads, rows, words=(0, 2, 8))
    return _section('Predictions', [], [table])


def phonons(comparison):
    """The section of phonons."""
    from ase_deeprelax.report import plot_phonons

    titles = {s['id']: _title(s) for s in comparison['structures']}
    rows, drawn = [], {}
    for entry in comparison['phonons']:
        names = [titles[entry['structure']], entry['calculator'], entry['kind']]
        if not entry['ok']:
            rows.append([*names, *4 * [NONE], entry['problem']])
            continue
        bad = entry['imaginary']
        share = f'{bad["n"]} of {bad["n_modes"]}'
        forces = _(entry['fmax'], '.3f')
        rows.append(
            [*names, forces, share, _(bad['lowest'], '.2f'), entry['n_supercell'], '']
        )
        drawn[entry['structure'], entry['calculator']] = names
    figures = []
    for (structure, calculator), (title, *_rest) in list(drawn.items())[:MOST_PHONONS]:
        which = f'{title}, {calculator}'
        figures += [
            _figure(
                plot_phonons.phonon_bands(comparison, structure, calculator),
                f'Phonons of {which}: bands and density of states. Imaginary frequencies '
                'are drawn below zero.',
            ),
            _figure(
                plot_phonons.thermal_properties(comparison, structure, calculator),
                f'Harmonic thermal properties of {which}; moles of atoms.',
            ),
        ]
    heads = ['structure', 'calculator', 'relaxed', 'fmax / eV Å⁻¹', 'imaginary modes']
    heads += ['lowest / THz', 'atoms of supercell', 'problem']
    table = _table('Imaginary modes', heads, rows, words=(0, 1, 2, 7))
    return _section('Phonons', [], [table], figures)


# --- evaluations


def accuracy(evaluation):
    """The section of errors on pairs."""
    from ase_deeprelax.report import plot

    models = evaluation.get('models') or {'model': evaluation}
    text = [
        f'{name if name != "model" else one["model"]}: {one["ms_per_structure"]:.2f} ms '
        f'per structure on {one["device"]}, {one["n_failed"]} failed, rank correlation of '
        f'sigma with the error of the distances {_(one["spearman_sigma"], ".2f")}.'
        for name, one in models.items()
    ]
    tables = []
    for part, n in (('all', evaluation['n']), ('ok', evaluation['n_ok'])):
        if n == 0 or (part == 'ok' and n == evaluation['n']):
            continue
        section = evaluation[part]
        rows = [
            [
                key,
                *(
                    f'{s[key]["mean"]:.4f} / {s[key]["median"]:.4f}'
                    for s in section.values()
                ),
            ]
            for key in ERRORS
        ]
        rows += [[key, *(f'{s[key]:.4f}' for s in section.values())] for key in SHARES]
        which = f'all {n:,} pairs' if part == 'all' else f'{n:,} pairs marked ok'
        caption = f'{which}: mean / median of errors (Å, Å², Å³), shares'
        names = [
            evaluation.get(method, method) if method == 'model' else method
            for method in section
        ]
        tables.append(_table(caption.capitalize(), ['', *names], rows))
    figures = []
    if evaluation.get('structures'):
        caption = (
            'Errors of single structures on a logarithmic axis; dashed: medians. The zeros '
            'that symmetry makes, and what else is below the axis, count in its first bin.'
        )
        figures.append(_figure(plot.error_distributions(evaluation), caption))
        figures += [
            _figure(
                plot.calibration(evaluation, name),
                'Uncertainty and error of each structure. Points on the dashed line are '
                'calibrated, those above it too sure of themselves.',
            )
            for name, one in models.items()
            if one['spearman_sigma'] is not None
        ]
    return _section('Accuracy on pairs with a known answer', text, tables, figures)


# --- parts of the page


def _section(title, text, tables, figures=()):
    return {'title': title, 'text': text, 'tables': tables, 'figures': figures}


def _table(caption, heads, rows, *, words=(0,), folded=False):
    """``words`` are the columns of text, which are flush left."""
    return {
        'caption': caption,
        'heads': heads,
        'rows': rows,
        'words': words,
        'folded': folded,
    }


def _figure(figure, caption):
    # Names in it were escaped by matplotlib.
    return {'svg': Markup(to_svg(figure, caption)), 'caption': caption}  # noqa: S704


def _places(scenes):
    """Where in the viewer's list a name is."""
    return {one['name']: place for place, one in enumerate(scenes)}


def _link(name, places):
    """A name that, where there is a picture of it, opens that."""
    return {'text': name, 'scene': places[name]} if name in places else name


def _(value, form):
    """A number in words, a dash for what does not exist."""
    if value is None or math.isnan(value):
        return NONE
    return f'{value:{form}}'


def _spread(values, form):
    if not values['n']:
        return NONE
    # z: what rounds to zero has no sign
    low, middle, high = (f'{values[key]:z{form}}' for key in ('q25', 'median', 'q75'))
    return f'{middle} ({low} to {high})'
