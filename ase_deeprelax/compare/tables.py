"""Rows and columns as text, for terminals and for markdown."""


def as_text(titles, rows, *, left=1):
    """Columns in line, two spaces apart.

    Parameters
    ----------
    titles : list of str
    rows : list of list of str
    left : int
        How many of the columns are flush left, default 1; the others are flush right.

    Examples
    --------
    >>> print(as_text(['model', 'A'], [['dummy', '0.11'], ['mine', '0.075']]))
    model      A
    dummy   0.11
    mine   0.075
    """
    rows = [titles, *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        padded = [c.ljust(w) if k < left else c.rjust(w) for k, (c, w) in enumerate(cells)]
        lines.append('  '.join(padded).rstrip())
    return '\n'.join(lines)


def as_markdown(titles, rows, *, left=1):
    """The same as a table of markdown.

    >>> print(as_markdown(['model', 'A'], [['dummy', '0.11']]))
    | model | A |
    |---|--:|
    | dummy | 0.11 |
    """
    rule = '|' + '|'.join('---' if k < left else '--:' for k in range(len(titles))) + '|'
    lines = [f'| {" | ".join(row)} |' for row in (titles, *rows)]
    return '\n'.join([lines[0], rule, *lines[1:]])
