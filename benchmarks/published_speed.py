"""Our pipeline beside the published one, in one run, on one thread.

Structures go one by one through `published_pipeline`: graph, network, 100 steps of Adam.
Ours relaxes the same structures with the same weights (`PublishedForm`, the published
size), and with the shipped models, in one call and one by one; its times hold checks,
symmetry and results as well. Weights are random, but for the last layers, which are fitted
to the distances within other crystals: solvers then meet bounds as after a training.

Subnormal numbers, the far tails of the published Gaussians, are slow on CPUs: the published
pipeline is also timed with these taken for zero, as GPUs do, which is the harder rival.

Before it is timed, it is checked that both give the same: numbers of the network on the
published graphs, and what the solvers reach from them. Prints markdown tables of CPU time.

    python benchmarks/published_speed.py PAIRS --limit 24
"""

import argparse
from pathlib import Path

import numpy as np
import published_pipeline as published
import torch
from ase.data import covalent_radii
from cpu_time import cpu_timings, timed
from iterative import sample
from published_form import PublishedForm, to_crystal_graph

from ase_deeprelax import Predictor
from ase_deeprelax.compare.tables import Table
from ase_deeprelax.data.batching import collate
from ase_deeprelax.predict.edg_solver import solve_edg
from ase_deeprelax.testing import symmetric_crystals

MODELS = ('deeprelax', 'ensemble')
PLAIN = 'published pipeline, one by one'
FLUSHED = 'the same, subnormal numbers flushed'
FITTED = 64  # crystals that the last layers are fitted to
ATOMS = 0.001  # by which the weights of atoms in the heads are made smaller
PARTS = ('graph', 'network', 'solver')
# Elements whose covalent radius is known, A.
SMALLEST = 0.3
# The published network has no row for more, and no answer for a single atom.
MOST, FEWEST = published.ELEMENTS - 1, 2


def main():
    """Check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('pairs', type=Path)
    parser.add_argument('--limit', type=int, default=24, metavar='N')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--seed', type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)

    pairs = sample(options.pairs, 2 * options.limit, options.seed)
    inputs = [pair.unrelaxed for pair in pairs if len(pair) >= FEWEST][: options.limit]
    network = fitted(published.PlainNetwork())
    size = np.mean([len(atoms) for atoms in inputs])
    print(f'{len(inputs)} of {options.pairs.name}, {size:.1f} atoms on average\n')
    print(agreement(network, inputs).as_markdown(), '\n')
    print(speed(network, inputs, options.repeats).as_markdown())


@torch.no_grad()
def fitted(network):
    """The network with last layers that say the distances within the input.

    Crystals of random prototypes and elements are fitted by least squares; the scale of the
    errors is their mean. The cell is left as it is.
    """
    known = [z for z in range(1, MOST) if covalent_radii[z] > SMALLEST]
    crystals = symmetric_crystals(FITTED, elements=known)
    graphs = [published.build_graph(atoms) for atoms in crystals if len(atoms) >= FEWEST]
    for out, within in ((network.out_cross, True), (network.out_distance, False)):
        # What is random about the atoms would hide the lengths.
        out[0].weight[:, : 2 * published.HIDDEN] *= ATOMS
        seen = []
        hook = out[-1].register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0]))
        lengths = []
        for graph in graphs:
            network(graph)
            lengths.append(lengths_of(graph)[graph.intra | (not within)])
        hook.remove()
        x, y = torch.cat(seen).double(), torch.cat(lengths).double()
        x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
        ridge = 1e-4 * torch.eye(x.shape[1], dtype=x.dtype) * x.square().mean() * len(x)
        weights = torch.linalg.solve(x.T @ x + ridge, x.T @ y)
        error = (x @ weights - y).abs().mean()
        out[-1].weight.zero_()
        out[-1].weight[0], out[-1].bias[0] = weights[:-1].float(), float(weights[-1])
        out[-1].bias[1] = float(error.log())
    for parameter in network.out_cell[-1].parameters():
        parameter.zero_()
    return network.requires_grad_(False)


def lengths_of(graph):
    """(n_edges,), A."""
    vectors = graph.pos[graph.j] + graph.offset @ graph.cell - graph.pos[graph.i]
    return vectors.norm(dim=1)


def agreement(network, inputs):
    """How far the two differ on the graphs of the published pipeline."""
    plain = [published.build_graph(atoms) for atoms in inputs]
    graphs, orders = zip(*map(to_crystal_graph, plain), strict=True)
    batch = collate(graphs)
    raw = PublishedForm(network).raw(batch)
    answers = [network(graph) for graph in plain]
    three = list(zip(answers, plain, orders, strict=True))
    cross = torch.cat([a.cross[order[graph.intra[order]]] for a, graph, order in three])
    distance = torch.cat([a.distance[order] for a, _, order in three])
    starts = [graph.pos for graph in plain]
    theirs = [
        published.solve(graph, answer) for graph, answer in zip(plain, answers, strict=True)
    ]
    ours = solved(batch, raw)

    def violation(places):
        rows = zip(places, plain, answers, strict=True)
        return f'{np.mean([float(published.violation(*row)) for row in rows]):.4f}'

    def apart(places, others):
        rows = zip(places, others, strict=True)
        return f'{np.mean([float((x - y).abs().mean()) for x, y in rows]):.4f}'

    rows = [
        ['cross distances, largest difference', f'{largest(raw.cross, cross):.1e}'],
        ['distances, largest difference', f'{largest(raw.distance, distance):.1e}'],
        ['mean violation of the bounds: input', violation(starts)],
        ['mean violation of the bounds: 100 steps of Adam', violation(theirs)],
        ['mean violation of the bounds: our solver', violation(ours)],
        ['mean distance per axis: Adam from the input', apart(theirs, starts)],
        ['mean distance per axis: our solver from Adam', apart(ours, theirs)],
    ]
    return Table(['same weights, same graphs', 'A'], rows, text_columns=(0,))


def largest(a, b):
    """The largest difference, A."""
    return float((a - b).abs().max())


def solved(batch, raw):
    """Positions of each structure by our solver, from the same bounds."""
    lower, upper = published.bounds(raw.distance, raw.log_b)
    anchor_lower, anchor_upper = published.bounds(raw.cross, raw.cross_log_b)
    solution = solve_edg(
        batch.pos,
        raw.cell,
        batch.graph_of_atom,
        batch.edge_index,
        batch.offset,
        lower,
        upper,
        anchor_index=batch.edge_index[:, batch.intra],
        anchor_pos=batch.pos,
        anchor_lower=anchor_lower,
        anchor_upper=anchor_upper,
    )
    return solution.pos.split(batch.starts.diff().tolist())


def published_parts(network, inputs):
    """Relax one by one; CPU time of each part, s."""
    parts = dict.fromkeys(PARTS, 0.0)
    for atoms in inputs:
        graph, seconds = timed(lambda: published.build_graph(atoms))  # noqa: B023
        parts['graph'] += seconds
        with torch.no_grad():
            answer, seconds = timed(lambda: network(graph))  # noqa: B023
        parts['network'] += seconds
        _, seconds = timed(lambda: published.solve(graph, answer))  # noqa: B023
        parts['solver'] += seconds
    return parts


def speed(network, inputs, repeats):
    """All ways in turns; of each, the repeat whose CPU time is the median."""
    calls = {
        PLAIN: lambda: published_parts(network, inputs),
        FLUSHED: lambda: flushed(lambda: published_parts(network, inputs)),
    }
    predictors = {'published size': Predictor(PublishedForm(network), device='cpu')}
    predictors |= {model: Predictor(model, device='cpu') for model in MODELS}
    for model, predictor in predictors.items():
        predictor.relax(inputs, on_bad='raise')  # caches are warm from here on
        for way, batches in (('one call', [inputs]), ('one by one', [[x] for x in inputs])):
            title = f'ours, {model}, {way}'
            calls[title] = lambda p=predictor, b=batches: relaxed(p, b)
    found = {title: [] for title in calls}
    with cpu_timings():
        for _ in range(repeats):
            for title, call in calls.items():
                parts, seconds = timed(call)
                found[title].append((seconds, *parts.values()))
    middle = {title: sorted(times)[repeats // 2] for title, times in found.items()}
    rows = []
    for title, (seconds, *parts) in middle.items():
        shown = [seconds, *parts, seconds - sum(parts)]
        per = [f'{1e3 * value / len(inputs):.2f}' for value in shown]
        ratios = [f'{middle[rival][0] / seconds:.1f}' for rival in (PLAIN, FLUSHED)]
        rows.append([title, *per, *ratios])
    heads = ['', 'CPU ms each', *(f'{part} / ms' for part in PARTS), 'rest / ms']
    return Table([*heads, 'x published', 'x flushed'], rows, text_columns=(0,))


def flushed(call):
    """Call with subnormal numbers taken for zero."""
    torch.set_flush_denormal(True)
    try:
        return call()
    finally:
        torch.set_flush_denormal(False)


def relaxed(predictor, batches):
    """Relax each batch in a call of its own; CPU time of each part, s."""
    parts = dict.fromkeys(PARTS, 0.0)
    for batch in batches:
        predictor.relax(batch)
        for part in PARTS:
            parts[part] += predictor.timings[part]
    return parts


if __name__ == '__main__':
    main()
