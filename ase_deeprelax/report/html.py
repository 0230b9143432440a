"""One HTML file on relaxations: a crystal viewer, tables and figures.

Everything is in the file, and its content policy forbids it to load anything else; it opens
from a disk without a network. The page itself is in the folder ``page``.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ase_deeprelax import __version__
from ase_deeprelax.compare.evaluation_schema import AnyEvaluation
from ase_deeprelax.compare.schema import Comparison, check_version
from ase_deeprelax.files import write_atomically
from ase_deeprelax.report import comparison as compared
from ase_deeprelax.report import headlines
from ase_deeprelax.report import relaxations as relaxed
from ase_deeprelax.report.accuracy import accuracy
from ase_deeprelax.report.html_blocks import Section
from ase_deeprelax.result import Relaxation

PAGE = Path(__file__).with_name('page')
VIEWER = ('vectors.js', 'structure_files.js', 'painting.js', 'viewer.js')


def write_report(
    path: str | Path,
    comparison: Comparison | None = None,
    *,
    relaxations: Mapping[Any, Relaxation] | Iterable[Relaxation] | Relaxation | None = None,
    evaluation: AnyEvaluation | None = None,
    provenance: Sequence[str] = (),
) -> Path:
    """Write relaxations, a comparison or an evaluation as one HTML file.

    Parameters
    ----------
    path : str or Path
        Overwritten; its folder is made.
    comparison : dict, optional
        Of `savings.compare`, with ``phonons`` if there are any; also one that was read
        from a JSON file.
    relaxations : mapping or list of Relaxation, or a single one, optional
        By name; those of a list are called by formula and place. Of more than 500, table
        and viewer show the least certain ones. Default the predictions of ``comparison``.
    evaluation : dict, optional
        Of `evaluate` or `evaluate_all`; also one that was read from a JSON file.
    provenance : list of str
        How they were made, such as command and data; default nothing.

    Returns
    -------
    Path

    Raises
    ------
    ValueError
        There is nothing to report.
    TypeError
        Something in ``relaxations`` is no Relaxation, or another argument is of a kind that
        is not its own.
    ConfigError
        A later version of the package wrote the comparison or the evaluation.
    MissingDependencyError
        A comparison or an evaluation has figures, which need matplotlib.

    Examples
    --------
    >>> from ase.build import bulk
    >>> from ase_deeprelax import relax
    >>> crystals = {'KCl': bulk('KCl', 'rocksalt', a=5.64)}
    >>> results = relax(crystals.values())  # doctest: +SKIP
    >>> named = dict(zip(crystals, results))  # doctest: +SKIP
    >>> write_report('report.html', relaxations=named)  # doctest: +SKIP
    """
    if comparison is None and relaxations is None and evaluation is None:
        raise ValueError('nothing to report; give comparison, relaxations or evaluation')
    if comparison is not None:
        _check('comparison', comparison, 'compare', 'runs')
    if evaluation is not None:
        _check('evaluation', evaluation, 'evaluate', 'all')
    scenes: list[dict[str, Any]] = []
    parts: list[Section] = []
    first: list[str] = []
    about = [*provenance]
    if relaxations is not None:
        named = relaxed.named(relaxations)
        rows = {name: result.to_row() for name, result in named.items()}
        good = [row for row in rows.values() if row['ok']]
        models = relaxed.models_of(good)
        scenes = relaxed.scenes_of(named, rows)
        if evaluation is None:
            shown = relaxed.relaxed_section(rows, scenes)
            about += models
            first.append(
                headlines.of_relaxations(relaxed.columns_of(good), len(rows) - len(good))
            )
        else:  # a few of the pairs
            about += [f'In the viewer: m{line[1:]}' for line in models]
            shown = relaxed.relaxed_section(rows, scenes, 'Some of the pairs')
            shown = shown._replace(title='Structures in the viewer')
        parts.append(shown)
        if len(rows) > relaxed.MOST_ROWS:  # the table leaves out first what failed
            parts += relaxed.failures_section(
                [f'{name}: {row["problem"]}' for name, row in rows.items() if not row['ok']]
            )
    if comparison is not None:
        first += headlines.of_comparison(comparison)
        about.append(compared.about(comparison))
        chosen = compared.worth_a_look(comparison)
        if relaxations is None:
            scenes = compared.predicted_scenes(chosen)
        parts += [
            compared.savings(comparison, chosen),
            compared.predictions(chosen, [] if relaxations else scenes),
        ]
        if comparison.get('phonons'):
            parts.append(compared.phonons(comparison))
    if evaluation is not None:
        first += headlines.of_evaluation(evaluation)
        parts.append(accuracy(evaluation))
    return write_page(
        path, _title(comparison, evaluation), about, scenes, parts, first=first
    )


def _check(name: str, result: Any, maker: str, entry: str) -> None:
    """Refuse results of another kind, and those that a later version wrote."""
    if isinstance(result, Relaxation | list | tuple):
        raise TypeError(
            f'{name} is of type {type(result).__name__}; give relaxations as '
            'write_report(path, relaxations=...)'
        )
    check_version(result)
    if entry not in result:
        raise TypeError(f'{name} has no {entry!r}; give what {maker}() returns')


def _title(comparison: Comparison | None, evaluation: AnyEvaluation | None) -> str:
    if comparison is not None:
        return 'Relaxations with and without a prediction'
    return 'Relaxed structures' if evaluation is None else 'Accuracy of predictions'


def write_page(
    path: str | Path,
    title: str,
    about: Sequence[str],
    scenes: Sequence[Mapping[str, Any]],
    parts: Sequence[Section],
    *,
    first: Sequence[str] = (),
) -> Path:
    """Write sections, and crystals for the viewer, as one HTML file.

    Parameters
    ----------
    path : str or Path
        Overwritten; its folder is made.
    title : str
    about : list of str
        Where it comes from: lines under the headline, which end with version and machine.
    scenes : list of dict
        See `viewer_data.scene`.
    parts : list of Section
    first : list of str
        What came out, in words; default nothing.
    """
    loader = jinja2.FileSystemLoader(PAGE)
    pages = jinja2.Environment(
        autoescape=True, loader=loader, undefined=jinja2.StrictUndefined
    )
    html = pages.get_template('report.html').render(
        title=title,
        headlines=first,
        about=[*about, written_by()],
        scenes=scenes,
        scenes_json=embedded(scenes),
        sections=parts,
        css=_asset('report.css'),
        viewer=Markup('\n').join(map(_asset, VIEWER)),
        tables=_asset('tables.js'),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Names of files need not be UTF-8: what is not is written as \udcff.
    write_atomically(path, html.encode(errors='backslashreplace'))
    return path


def written_by() -> str:
    """One line on the package, the day and the machine."""
    return (
        f'Written by ase_deeprelax {__version__} on {datetime.now(UTC):%Y-%m-%d}; '
        f'Python {platform.python_version()}, {platform.system()} '
        f'{platform.machine()}, {os.cpu_count()} processor cores.'
    )


def embedded(data: Any) -> Markup:
    r"""Data as JSON that may stand in a ``<script>`` element, whatever text it holds.

    >>> print(embedded({'name': '</script>'}))
    {"name":"\u003c/script\u003e"}
    """
    text = json.dumps(data, allow_nan=False, separators=(',', ':'))
    for sign in '<>&':
        text = text.replace(sign, f'\\u{ord(sign):04x}')
    return Markup(text)  # noqa: S704 - nothing that HTML understands is left


def _asset(name: str) -> Markup:
    return Markup((PAGE / name).read_text(encoding='utf-8'))  # noqa: S704 - our own file
