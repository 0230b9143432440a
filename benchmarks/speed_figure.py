"""The picture of the page on time: an answer by each way, and time per atom by size.

    python benchmarks/speed_figure.py          # writes docs/speed.svg

All numbers are those of ``benchmarks/results/published.json``, ``rivals.json`` and
``scaling.json``.
"""

from render import ROOT, drawn_from, load, rows_of

from ase_deeprelax.report.style import (
    BLUE,
    GREY,
    MARKERS,
    MORE,
    ORANGE,
    log,
    need_matplotlib,
    panels,
    styled,
)

FILE = ROOT / 'docs' / 'speed.svg'
SHOWN = ('published', 'rivals', 'scaling')
# Name in the result, label and colour.
WAYS = (
    ('published pipeline, one by one', 'published pipeline', GREY),
    ('ours, published size, one call', 'the same network, ours', BLUE),
    ('ours, ensemble, one call', 'ensemble', BLUE),
    ('ours, deeprelax, one call', 'deeprelax', BLUE),
)
RIVALS = (
    ('m3gnet, FIRE', 'one by one', 'M3GNet, FIRE'),
    ('m3gnet, ElasticBFGS', 'batched', 'M3GNet, ElasticBFGS, batched'),
)


def one_answer(axis):
    """CPU time of one answer by each way; relaxations are from a run of their own."""
    published = {row.get('#0'): row for row in rows_of(load('published'))}
    rivals = {(row['#0'], row['#1']): row for row in rows_of(load('rivals'))}
    bars = [
        (label, float(rivals[name, way]['CPU ms each']), ORANGE)
        for name, way, label in RIVALS
    ]
    bars += [
        (label, float(published[name]['CPU ms each']), color) for name, label, color in WAYS
    ]
    bars.sort(key=lambda bar: -bar[1])
    labels, times, colors = zip(*bars, strict=True)
    places = range(len(bars))
    axis.barh(places, times, color=colors)
    for place, time in zip(places, times, strict=True):
        axis.annotate(
            f'{time:.3g}' if time < 1000 else f'{time:,.0f}',
            (time, place),
            xytext=(4, 0),
            textcoords='offset points',
            va='center',
        )
    axis.set_yticks(places, labels)
    axis.invert_yaxis()
    axis.set(xlabel='CPU ms for a crystal of 8 atoms, one thread', xlim=(1, 4 * max(times)))
    axis.set_title('one answer')
    log(axis, 'x')


def by_size(axis):
    """Time per atom for each kind of supercell."""
    rows = rows_of(load('scaling'))
    for k, kind in enumerate(dict.fromkeys(row['supercells of MgO'] for row in rows)):
        mine = [row for row in rows if row['supercells of MgO'] == kind]
        atoms = [int(row['atoms']) for row in mine]
        times = [float(row['ms per atom']) for row in mine]
        axis.plot(atoms, times, color=(BLUE, *MORE)[k], marker=MARKERS[k], ms=4, label=kind)
    axis.set(
        xlabel='atoms in the cell', ylabel='CPU ms per atom, one thread', ylim=(0, None)
    )
    axis.set_title('one structure at a time')
    log(axis, 'x')
    axis.legend()


@styled
def draw():
    """The two panels, as a file."""
    figure, [axes] = panels(1, 2, shape=0.66)
    one_answer(axes[0])
    by_size(axes[1])
    with need_matplotlib().rc_context({'svg.hashsalt': 'speed'}):
        drawn = {'Date': None, 'Description': drawn_from(*SHOWN)}
        figure.savefig(FILE, metadata=drawn)


if __name__ == '__main__':
    draw()
    print(f'{FILE.relative_to(ROOT)}: {FILE.stat().st_size / 1000:.0f} kB')
