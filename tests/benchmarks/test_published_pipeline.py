"""The published pipeline and ours give the same numbers from the same weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk

from ase_deeprelax.data.batching import collate
from ase_deeprelax.predict.edg_solver import solve_edg
from ase_deeprelax.testing import generic_crystals

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture
def published(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import published_pipeline

    return published_pipeline


@pytest.fixture
def form(published):
    import published_form

    return published_form


def crystals():
    """Two to sixteen atoms, also where a neighbour has many images."""
    wide = bulk('TiO', 'rocksalt', a=4.2, cubic=True) * (2, 1, 1)
    wide.rattle(0.1, seed=1)
    return [*generic_crystals()[1:], wide]


def network(published, dtype, **size):
    torch.manual_seed(0)
    net = published.PlainNetwork(**size).to(dtype).requires_grad_(False)
    for out in (net.out_cross, net.out_distance):
        out[-1].bias += 0.5  # none of the distances is cut at zero
    return net


def test_published_size(published):
    assert sum(p.numel() for p in published.PlainNetwork().parameters()) == 15_829_517


@pytest.mark.parametrize(
    ('dtype', 'size', 'rounding'),
    [
        (torch.float64, {'hidden': 32, 'n_layers': 3}, 1e-11),
        (torch.float32, {}, 2e-5),
    ],
)
def test_network_agrees_in_a_batch(published, form, dtype, size, rounding):
    net = network(published, dtype, **size)
    plain = [published.build_graph(atoms, dtype) for atoms in crystals()]
    graphs, orders = zip(*map(form.to_crystal_graph, plain), strict=True)
    ours = form.PublishedForm(net).raw(collate(graphs))
    starts, inside = 0, 0
    for k, (graph, order) in enumerate(zip(plain, orders, strict=True)):
        theirs = net(graph)
        edges = slice(starts, starts + len(order))
        rows = order[graph.intra[order]]  # pairs within the cell come first
        pairs = slice(inside, inside + len(rows))
        for mine, reference in (
            (ours.distance[edges], theirs.distance[order]),
            (ours.log_b[edges], theirs.log_b[order]),
            (ours.cross[pairs], theirs.cross[rows]),
            (ours.cross_log_b[pairs], theirs.cross_log_b[rows]),
            (ours.cell[k], theirs.cell),
        ):
            assert reference.abs().max() > 0.01
            scale = rounding * reference.abs().max()
            torch.testing.assert_close(mine, reference, rtol=0, atol=float(scale))
        starts, inside = edges.stop, pairs.stop


def test_graph_is_the_published_one(published):
    """Thirty neighbours and twenty pairs at most, pairs first; nothing within both."""
    atoms = bulk('TiO', 'rocksalt', a=4.2, cubic=True) * (2, 2, 1)
    graph = published.build_graph(atoms)
    pairs = torch.bincount(graph.i[graph.intra], minlength=len(atoms))
    assert (pairs == 20).all()
    assert (torch.bincount(graph.i[~graph.intra]) <= 30).all()
    assert graph.offset[~graph.intra].any(dim=1).all()
    assert not graph.offset[graph.intra].any()
    positions = atoms.positions[graph.j] + graph.offset.numpy() @ atoms.cell.array
    lengths = np.linalg.norm(positions - atoms.positions[graph.i], axis=1)
    assert lengths[~graph.intra.numpy()].max() <= 6


def test_solvers_agree(published):
    """Exact distances of a displaced crystal: both find it, ours closer to the bounds."""
    relaxed = crystals()[-1]
    start = relaxed.copy()
    start.rattle(0.1, seed=3)
    graph = published.build_graph(start, torch.float64)
    aim = torch.from_numpy(relaxed.positions)
    j, i, inside = graph.j, graph.i, graph.intra
    cross = (aim[j[inside]] - graph.pos[i[inside]]).norm(dim=1)
    distance = (aim[j] + graph.offset @ graph.cell - aim[i]).norm(dim=1)
    width = torch.tensor(-5.0, dtype=torch.float64)
    answer = published.Answer(
        cross, width.expand(len(cross)), distance, width.expand(len(distance)), graph.cell
    )
    theirs = published.solve(graph, answer)
    lower, upper = published.bounds(answer.distance, answer.log_b)
    anchor_lower, anchor_upper = published.bounds(answer.cross, answer.cross_log_b)
    ours = solve_edg(
        graph.pos,
        graph.cell.unsqueeze(0),
        torch.zeros_like(graph.z),
        torch.stack([j, i]),
        graph.offset,
        lower,
        upper,
        anchor_index=torch.stack([j, i])[:, inside],
        anchor_pos=graph.pos,
        anchor_lower=anchor_lower,
        anchor_upper=anchor_upper,
    )
    assert bool(ours.converged.all())
    reached = [float(published.violation(x, graph, answer)) for x in (ours.pos, theirs)]
    assert reached[0] <= 1e-4
    assert reached[0] <= reached[1] <= 0.02
    # Adam's last steps are still 0.01 A long.
    assert float((ours.pos - theirs).abs().mean()) < 0.02
    assert float((graph.pos - aim).abs().mean()) > 0.05
