"""The look of all figures: style, panels, boxes, and SVG for a page."""

from __future__ import annotations

import functools
import io
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from html import escape
from itertools import cycle
from string import ascii_lowercase
from types import ModuleType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from ase_deeprelax.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import Locator

P = ParamSpec('P')
R = TypeVar('R')

INK = '#1b2430'
GREY, BLUE, GREEN, ORANGE = '#8a8f98', '#0072b2', '#009e73', '#e69f00'
MORE = ('#d55e00', '#cc79a7', '#56b4e9', '#b8a800')
MARKERS = 'osD^vP'
DASHES = ('-', (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1, 1, 1)), (0, (9, 2)))
DASHED = (0, (4, 2))
# Below this number of structures, each is drawn to be seen.
FEW = 30
# Above this number of points or lines, they are drawn as an image; of lines, no more than
# this number are drawn.
MANY = 1000
# Widths of one and of two columns of a journal, inches (89 and 183 mm), and the text size
# that journals want, points.
SINGLE, DOUBLE = 89 / 25.4, 183 / 25.4
TEXT = 7
# An inch on a page: text of a figure is then as large as the page's own.
PIXELS = 154
# The longest names in titles and beside boxes, letters; SHORT where a number follows.
# Legends and tables have them in full.
LONG, SHORT = 24, 20
# A letter of a panel stands so far left of it and above, points.
_BESIDE = (-24, 6)
# Settings of matplotlib are those of the process: threads draw one after another.
_DRAWING = threading.RLock()
_STYLE = {
    'font.size': TEXT,
    'text.color': INK,
    'axes.labelcolor': INK,
    'axes.edgecolor': INK,
    'axes.titlesize': TEXT,
    'axes.titleweight': 'bold',
    'axes.linewidth': 0.6,
    'axes.labelpad': 3,
    'lines.linewidth': 1.1,
    'lines.markersize': 4,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'axes.axisbelow': True,
    'grid.color': INK,
    'grid.alpha': 0.12,
    'grid.linewidth': 0.5,
    'xtick.color': INK,
    'ytick.color': INK,
    'xtick.major.size': 2.5,
    'ytick.major.size': 2.5,
    'xtick.major.width': 0.6,
    'ytick.major.width': 0.6,
    'xtick.minor.size': 0,
    'ytick.minor.size': 0,
    'legend.frameon': False,
    'svg.fonttype': 'none',
    'savefig.dpi': 230,
}


def need_matplotlib() -> ModuleType:
    """The package, or a `MissingDependencyError` that says how to install it."""
    try:
        import matplotlib.figure
    except ImportError as error:
        raise MissingDependencyError(
            f'figures need matplotlib, which cannot be imported ({error}): '
            "pip install 'ase-deeprelax[plot]'"
        ) from error
    return matplotlib


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Draw in the style of this file, whatever the caller's is."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        with _DRAWING, need_matplotlib().rc_context(_STYLE):
            return draw(*args, **kwargs)

    return drawn


@styled
def to_svg(figure: Figure, label: str) -> str:
    """A figure as an ``<svg>`` element that stands in an HTML page.

    Text stays text, ink and blue take the colours of the page, so that dark pages get light
    axes, and the background shines through.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    label : str
        The content in words, for screen readers.

    Returns
    -------
    str
    """
    buffer = io.StringIO()
    with need_matplotlib().rc_context({'svg.hashsalt': label}), warnings.catch_warnings():
        # The browser has the letters that the font of the figure lacks.
        warnings.filterwarnings('ignore', 'Glyph .* missing from font')
        nobody = dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))
        figure.savefig(buffer, format='svg', transparent=True, metadata=nobody)
    text = buffer.getvalue()
    text = text[text.index('<svg') :].replace('xlink:href', 'href')
    for color, name in ((INK, 'currentColor'), (BLUE, 'var(--after)')):
        text = text.replace(color, name)
    # A style sheet within would hold for the whole page.
    text = re.sub(r'<(metadata|style).*?</\1>', '', text, flags=re.DOTALL)
    text = re.sub(r'^<svg[^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 HEAD>', text)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else '', text)
    wide = PIXELS * figure.get_figwidth()
    head = f'style="max-width: {wide:.0f}px" role="img" aria-label="{escape(label)}"'
    return text.replace('HEAD', head, 1)


def panels(
    rows: int, columns: int, *, shape: float = 0.95, **settings: Any
) -> tuple[Figure, np.ndarray]:
    """A figure as wide as one column of a journal, or as two for panels side by side.

    Parameters
    ----------
    rows, columns : int
    shape : float
        Height over width of a panel, the text around it included.
    **settings
        For ``Figure.subplots``.

    Returns
    -------
    figure : matplotlib.figure.Figure
    axes : (rows, columns) array
        With a letter each, where there is more than one.
    """
    wide = SINGLE if columns == 1 else DOUBLE
    size = (wide, shape * wide / columns * rows)
    figure, axes = _grid(size, rows, columns, **settings)
    _letter(axes.flat)
    return figure, axes


def panels_in_rows(
    n: int, most: int = 3, *, shape: float = 0.95, below: float = 0, **settings: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with ``n`` panels, at most ``most`` of them side by side; see `panels`.

    With ``below``, one more panel stands under them, as wide as the figure and so many
    inches high, text included.
    """
    columns = min(n, most)
    rows = -(-n // columns)
    wide = SINGLE if columns == 1 else DOUBLE
    heights = [shape * wide / columns] * rows + [below] * (below > 0)
    size = (wide, sum(heights))
    figure, axes = _grid(size, len(heights), columns, height_ratios=heights, **settings)
    shown = list(axes.flat[:n])
    if below:
        last = axes[-1, 0]
        last.set_subplotspec(last.get_gridspec()[-1, :])
        shown.append(last)
    for ax in axes.flat:
        if ax not in shown:
            ax.remove()
    _letter(shown)
    return figure, shown


def _grid(
    size: tuple[float, float], rows: int, columns: int, **settings: Any
) -> tuple[Figure, np.ndarray]:
    need_matplotlib()
    from ase_deeprelax.report.figure import NotebookFigure

    figure = NotebookFigure(size, dpi=PIXELS, layout='constrained')
    return figure, figure.subplots(rows, columns, squeeze=False, **settings)


def _letter(axes: Iterable[Axes]) -> None:
    """Give each panel a letter, where there is more than one."""
    axes = list(axes)
    for ax, letter in zip(axes if len(axes) > 1 else (), ascii_lowercase, strict=False):
        ax.annotate(
            letter,
            (0, 1),
            _BESIDE,
            xycoords='axes fraction',
            textcoords='offset points',
            fontsize=TEXT + 1,
            fontweight='bold',
        )


def boxes(
    ax: Axes,
    columns: Iterable[np.ndarray],
    names: Sequence[str],
    colors: Sequence[str],
    *,
    vertical: bool = True,
) -> None:
    """Boxes over the values themselves, which are scattered sideways, always the same."""
    random = np.random.default_rng(0)
    for at, (values, color) in enumerate(zip(columns, colors, strict=True)):
        side = at + random.uniform(-0.2, 0.2, len(values))
        places = (side, values) if vertical else (values, side)
        few = len(values) < FEW  # each of them is worth a look
        size, alpha = (11, 0.9) if few else (4, 0.35)
        order = 3 if few else 1
        dots = ax.scatter(*places, size, color, alpha=alpha, lw=0, zorder=order)
        dots.set_rasterized(len(values) > MANY)
        ax.boxplot(
            values,
            positions=[at],
            widths=0.55,
            orientation='vertical' if vertical else 'horizontal',
            whis=(5, 95),
            showfliers=False,
            patch_artist=True,
            boxprops={'facecolor': color, 'alpha': 0.35, 'edgecolor': color, 'lw': 1},
            medianprops={'color': INK, 'lw': 1.4},
            whiskerprops={'color': color, 'lw': 1},
            capprops={'color': color, 'lw': 1},
        )
    (ax.set_xticks if vertical else ax.set_yticks)(range(len(names)), map(plain, names))
    if not vertical:
        ax.invert_yaxis()


def parity(
    ax: Axes,
    truths: np.ndarray,
    predicted: Iterable[tuple[str, np.ndarray, str]],
    unit: str = '',
) -> None:
    """Predictions, each (name, values, color), against the truth, with mean errors."""
    errors, seen = [f'mean error / {unit}' if unit else 'mean error'], [truths]
    for (name, values, color), marker in zip(predicted, cycle(MARKERS), strict=False):
        error = np.abs(values - truths).mean()
        errors.append(f'{plain(shortened(name, SHORT))}: {error:.3f}')
        seen.append(values)
        # As shapes, thousands of points would make a page of megabytes.
        many = len(values) > MANY
        dots = ax.scatter(truths, values, 8, color, marker=marker, label=plain(name))
        dots.set(alpha=0.5, linewidth=0, rasterized=many)
    # From the left edge on, they leave the letter of the panel its room.
    ax.set_title('\n'.join(errors), fontweight='normal', loc='left')
    diagonal(ax, np.concatenate(seen))


def diagonal(ax: Axes, values: np.ndarray) -> None:
    """Equal axes around the values, and the line of equality."""
    low, high = np.min(values), np.max(values)
    if low > 0 and high > 8 * low:
        low, high = low / 1.3, high * 1.3
    else:
        # Values that differ by rounding alone are one value.
        span = high - low if high - low > 1e-4 * abs(high) else 0
        edge = 0.06 * span or 0.05 * abs(high) or 1
        low, high = low - edge, high + edge
    ax.plot([low, high], [low, high], color=INK, lw=0.7, ls=DASHED)
    ax.set(xlim=(low, high), ylim=(low, high), aspect='equal')


def log(ax: Axes, *names: str) -> None:
    """Logarithmic axes ('x', 'y') with plain numbers; call it when the limits are set."""
    for name in names:
        getattr(ax, f'set_{name}scale')('log')
        axis = getattr(ax, f'{name}axis')
        axis.set_major_locator(_few_ticks(*axis.get_view_interval()))
        axis.set_major_formatter(short_number)
        axis.set_minor_formatter('')


def short_number(value: float, _: object = None) -> str:
    """A number on an axis; a function with a name, so that figures can be pickled.

    >>> short_number(0.100)
    '0.1'
    """
    return f'{value:g}'


def _few_ticks(low: float, high: float) -> Locator:
    """As many numbers on a logarithmic axis as have room in a small panel."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    if high < 8 * low:
        return MaxNLocator(4)
    if high < 30 * low:
        return LogLocator(subs=(1, 2, 5))
    return LogLocator(subs=(1, 3) if high < 300 * low else (1,))


def legend(figure: Figure, ax: Axes) -> None:
    """One legend for all panels, above them; each name once."""
    handles, names = ax.get_legend_handles_labels()
    once = dict(zip(names, handles, strict=True))
    if not once:
        return
    # About what an entry takes, in inches: its line, and letters of 7 points.
    wide = 0.45 + 0.055 * max(map(len, once))
    columns = min(len(once), max(1, int(figure.get_figwidth() / wide)))
    placed = figure.legend(
        once.values(), once.keys(), loc='outside upper left', ncols=columns
    )
    for handle in filter(None, placed.legend_handles):
        handle.set(alpha=1, linewidth=1.8)


def nothing(ax: Axes, text: str) -> None:
    """Say in an empty panel why it is empty."""
    ax.text(0.5, 0.5, text, ha='center', va='center', transform=ax.transAxes)
    for name in 'xy':
        alike = getattr(ax, f'get_shared_{name}_axes')().get_siblings(ax)
        # Panels that share an axis with it would lose their ticks, too.
        if not any(other.has_data() for other in alike if other is not ax):
            ax.set(**{f'{name}ticks': []})


def shortened(name: str, most: int) -> str:
    """A name that has room in a panel; of a longer one the middle is left out.

    >>> shortened('tensornet:/models/TensorNet-MatPES', 16)
    'tensorne…-MatPES'
    """
    name = str(name)
    half = (most - 1) // 2
    return name if len(name) <= most else f'{name[: most - 1 - half]}…{name[-half:]}'


def plain(text: str) -> str:
    r"""Text for a figure: names are no formulas, whatever dollars they hold.

    A space before an underscore keeps matplotlib from leaving the name out of legends.
    The parts of a file name that are no UTF-8 are drawn as their codes.

    >>> plain('_mine, 5 $')
    ' _mine, 5 \\$'
    """
    text = str(text).encode(errors='backslashreplace').decode().replace('$', r'\$')
    return f' {text}' if text.startswith('_') else text
