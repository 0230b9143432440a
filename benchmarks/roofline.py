"""How close the network stage comes to what this machine can do.

Structures go through the network in the batches of ``Predictor``, on one thread. Each
operation of torch is counted: the floating-point operations of products of matrices, and
the bytes that it reads and writes. The least time of an operation is the larger of two: its
products at the rate of a large product of matrices, and its bytes at the rate of a copy of
as many bytes. Small copies stay in the caches and are faster. Both rates are measured in
the same run. The bound of the stage is the sum over all operations, and the share of the
bound is that sum over the CPU time that the stage takes.

    python benchmarks/roofline.py PAIRS --limit 256
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from cpu_time import medians
from iterative import sample
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ase_deeprelax import Predictor
from ase_deeprelax.compare.tables import Table
from ase_deeprelax.data.batching import collate, group_by_size
from ase_deeprelax.predict.prepare import prepare

MODELS = ('deeprelax', 'ensemble')
SIDE = 1024  # of the large product of matrices
# Bytes that a copy reads and writes, together; below and above, the rate is taken as equal.
COPIES = 2 ** np.arange(18, 29, 2)
# Operations that only look at a tensor in another way, although they return it as new.
VIEWS = ('aten::_unsafe_view', 'aten::detach', 'aten::alias')
GATHER = 'aten::index_select'


class Work(TorchDispatchMode):
    """Floating-point operations and bytes of each operation of torch within.

    Attributes
    ----------
    operations : dict of str to list of (flops, bytes)
        By name.
    """

    def __init__(self):
        super().__init__()
        self.operations = defaultdict(list)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.name().partition('.')[0]
        if not (func.is_view or name in VIEWS):
            count = flop_registry.get(func.overloadpacket)
            flops = count(*args, **kwargs, out_val=out) if count else 0
            written = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
            read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
            if name == GATHER:  # it reads the rows that it returns
                read = [*written, *read[1:]]
            moved = sum(size(x) for x in [*read, *written])
            self.operations[name].append((flops, moved))
        return out


def size(tensor):
    """Bytes in memory; what is expanded is there once."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.itemsize * int(np.prod([n for n, stride in pairs if stride != 0]))


class Machine:
    """Measured rates of one thread: products in flop/s, copies in bytes/s."""

    def __init__(self, repeats):
        a = torch.rand(SIDE, SIDE)
        calls = {'product': lambda: [torch.mm(a, a) for _ in range(5)]}
        times = COPIES[-1] // COPIES  # all sizes move as many bytes
        for moved, n in zip(COPIES, times, strict=True):
            source = torch.rand(int(moved) // 8)
            target = torch.empty_like(source)
            calls[moved] = lambda s=source, t=target, n=n: [t.copy_(s) for _ in range(n)]
        seconds = medians(calls, repeats)
        self.product = 5 * 2 * SIDE**3 / seconds['product']
        self.copies = COPIES * times / np.array([seconds[k] for k in COPIES])

    def copy(self, moved):
        """Rate at which as many bytes are copied, bytes/s."""
        return np.interp(np.log(np.maximum(moved, 1)), np.log(COPIES), self.copies)

    def bound(self, flops, moved):
        """Least time of operations, s."""
        return np.maximum(flops / self.product, moved / self.copy(moved))


def kind(flops, name):
    """The row of the table that an operation belongs to."""
    if flops.any():
        return 'products of matrices'
    indexed = ('index', 'scatter', 'gather', 'unique', 'sort', 'embedding')
    return 'by index' if any(word in name for word in indexed) else 'element by element'


def stage(name, inputs, machine, repeats):
    """Rows of a model: each kind of operation, and the whole."""
    predictor = Predictor(name, device='cpu')
    graphs = [prepare(atoms, predictor.settings).graph for atoms in inputs]
    sizes = [graph.num_nodes for graph in graphs], [graph.num_edges for graph in graphs]
    groups = group_by_size(*sizes, predictor.batch_edges)
    batches = [collate([graphs[k] for k in group]) for group in groups]

    def network():
        with torch.inference_mode():
            for batch in batches:
                predictor.model(batch)

    network()
    seconds = medians({'network': network}, repeats)['network']
    with torch.no_grad(), Work() as work:
        for batch in batches:
            predictor.model(batch)
    totals = defaultdict(lambda: np.zeros(4))
    for operation, counted in work.operations.items():
        flops, moved = np.array(counted, dtype=float).T
        row = len(flops), flops.sum(), moved.sum(), machine.bound(flops, moved).sum()
        totals[kind(flops, operation)] += row
    totals['whole network'] = sum(totals.values())
    for what, (calls, flops, moved, bound) in totals.items():
        whole = what == 'whole network'
        per = 1e3 / len(inputs)
        yield [
            name,
            what,
            f'{calls / len(batches):.0f}',
            f'{flops / 1e9 / len(inputs):.3f}',
            f'{moved / 1e6 / len(inputs):.1f}',
            f'{per * bound:.2f}',
            f'{per * seconds:.2f}' if whole else '',
            f'{flops / 1e9 / seconds:.0f}' if whole else '',
            f'{moved / 1e9 / seconds:.1f}' if whole else '',
            f'{100 * bound / seconds:.0f}' if whole else '',
        ]


def main():
    """Measure the machine, then the models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('pairs', type=Path)
    parser.add_argument('--limit', type=int, default=256, metavar='N')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--seed', type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    inputs = [pair.unrelaxed for pair in sample(options.pairs, options.limit, options.seed)]
    machine = Machine(options.repeats)
    copies = zip(COPIES, machine.copies, strict=True)
    rates = ', '.join(
        f'{rate / 1e9:.0f} ({int(moved) >> 10:,} kB)' for moved, rate in copies
    )
    print(
        f'One thread: products {machine.product / 1e9:.0f} Gflop/s; copies in GB/s, read '
        f'and written: {rates}. {len(inputs)} of {options.pairs.name}.\n'
    )
    rows = [
        row for model in MODELS for row in stage(model, inputs, machine, options.repeats)
    ]
    heads = ['model', 'operations', 'calls per batch', 'Gflop each', 'MB each']
    heads += ['bound / ms', 'CPU ms each', 'Gflop/s', 'GB/s', 'share of the bound / %']
    print(Table(heads, rows, text_columns=(0, 1)).as_markdown())


if __name__ == '__main__':
    main()
