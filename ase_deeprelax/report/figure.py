"""A figure that a notebook shows where it is the last thing in a cell."""

import io

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A ``Figure`` that needs no pyplot to be seen."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format='png', dpi='figure')
        return buffer.getvalue()
