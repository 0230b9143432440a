"""The blocks of a page: sections with text, tables and figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup

from ase_deeprelax.compare.tables import Link, Table
from ase_deeprelax.report.style import SINGLE, to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class FigureBlock(NamedTuple):
    """A drawing and its caption; ``half``: two of them stand side by side."""

    svg: Markup
    caption: str
    half: bool


class Section(NamedTuple):
    """A heading and the blocks under it, in the form that the page's template takes."""

    title: str
    text: Sequence[str]
    tables: Sequence[Table]
    figures: Sequence[FigureBlock] = ()


def figure_block(figure: Figure, caption: str) -> FigureBlock:
    """A figure of matplotlib as SVG, with a caption."""
    # matplotlib has escaped the names in it.
    svg = Markup(to_svg(figure, caption))  # noqa: S704
    return FigureBlock(svg, caption, figure.get_figwidth() <= SINGLE)


def places(scenes: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Places in the viewer's list, by the names of the scenes."""
    return {scene['name']: place for place, scene in enumerate(scenes)}


def link(name: str, places: Mapping[str, int]) -> str | Link:
    """A name that, where the viewer shows it, opens the viewer there."""
    return Link(name, places[name]) if name in places else name
