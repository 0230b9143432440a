"""Speed of the distance-geometry solver beside the paper's loop.

Random crystals of 10-20 atoms, moved by 0.25 A rms, with one of each pair of distances
within 6 A. Per row: structures per second of CPU time for ``solve_edg``, the speed in
units of the reference-like loop (100 steps of Adam by autograd, one structure at a time),
mean coordinate errors of both.

    python benchmarks/edg.py
"""

import argparse
import time

import numpy as np
import torch

from ase_deeprelax.geometry.neighbors import neighbor_list
from ase_deeprelax.predict.edg_solver import solve_edg

# Start moved by (A rms), noise of the distances (A), half width of the bounds (A).
CASES = {
    'satisfied': (0.0, 0.0, 1e-3),
    'exact': (0.25, 0.0, 1e-4),
    'noise 0.03': (0.25, 0.03, 0.03),
    'noise 0.1': (0.25, 0.1, 0.1),
}


def crystal(seed, rms, noise, band):
    """Relaxed positions, and the arguments of solve_edg for one structure."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(10, 21))
    cell = 8.0 * (n / 20) ** (1 / 3) * np.eye(3)
    relaxed = np.zeros((0, 3))
    while len(relaxed) < n:
        new = rng.random(3)
        delta = relaxed - new
        if (np.linalg.norm((delta - np.round(delta)) @ cell, axis=1) > 1.6).all():
            relaxed = np.vstack([relaxed, new])
    relaxed = relaxed @ cell
    moves = rng.normal(size=(n, 3)) * rms / np.sqrt(3)
    start = relaxed + moves - moves.mean(axis=0)
    i, j, offset = neighbor_list(start, cell, 6.0)
    once = (j > i) | ((j == i) & (offset @ [1e4, 1e2, 1] > 0))
    i, j, offset = i[once], j[once], offset[once]
    distance = np.linalg.norm(relaxed[j] + offset @ cell - relaxed[i], axis=1)
    distance = distance + noise * rng.normal(size=len(distance))
    real = start, cell[None], offset, np.maximum(0, distance - band), distance + band
    start, cell, offset, lower, upper = (torch.tensor(a, dtype=torch.float32) for a in real)
    edge_index = torch.from_numpy(np.stack([j, i]))
    return relaxed, (start, cell, edge_index, offset, lower, upper)


def pack(structures, device):
    """Arguments of solve_edg for a batch."""
    sizes = torch.tensor([len(pos) for pos, *_ in structures])
    pos, cell, edge_index, offset, lower, upper = zip(*structures, strict=True)
    first = (sizes.cumsum(0) - sizes).tolist()
    edge_index = [edges + k for edges, k in zip(edge_index, first, strict=True)]
    graph = torch.arange(len(sizes)).repeat_interleave(sizes)
    packed = torch.cat(pos), torch.cat(cell), graph, torch.cat(edge_index, dim=1)
    packed += torch.cat(offset), torch.cat(lower), torch.cat(upper)
    return [tensor.to(device) for tensor in packed]


def adam(structure):
    """The reference's loop (eqs. 16-20)."""
    pos, cell, (j, i), offset, lower, upper = structure
    x = pos.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.1)
    for _ in range(100):
        distance = (x[j] + offset @ cell[0] - x[i]).norm(dim=1)
        loss = (torch.relu(distance - upper) + torch.relu(lower - distance)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return x.detach()


def timed(function, device, repeats=3):
    """Result and best time, s: of the CPU, so that other programs count less."""
    clock = time.process_time if device == 'cpu' else time.perf_counter
    best = np.inf
    for _ in range(repeats):
        start = clock()
        result = function()
        if device != 'cpu':
            torch.cuda.synchronize()
        best = min(best, clock() - start)
    return result, best


def error(found, relaxed):
    """Mean |dx| without drift, A."""
    delta = found.double().cpu().numpy() - relaxed
    return np.abs(delta - delta.mean(axis=0)).mean()


def row(case, size, device):
    """One line of the table."""
    drawn = [crystal(seed, *CASES[case]) for seed in range(size)]
    relaxed, structures = zip(*drawn, strict=True)
    packed = pack(structures, device)
    solution, seconds = timed(lambda: solve_edg(*packed), device)
    found = solution.pos.split([len(x) for x in relaxed])
    ours = np.mean([error(x, y) for x, y in zip(found, relaxed, strict=True)])
    # One structure after the other: a few of them tell the speed.
    few = [[tensor.to(device) for tensor in structure] for structure in structures[:8]]
    found, loop = timed(lambda: [adam(structure) for structure in few], device, repeats=1)
    theirs = np.mean([error(x, y) for x, y in zip(found, relaxed, strict=False)])
    return (
        f'{case:12s}{size:6d}{size / seconds:14.0f}{1e3 * seconds / size:9.3f}'
        f'{loop / len(few) * size / seconds:9.0f}{solution.steps:7d}'
        f'{float(solution.converged.float().mean()):11.2f}{ours:10.5f}{theirs:10.5f}'
    )


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--sizes', type=int, nargs='+', default=[1, 32, 256])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        'start        batch  structures/s  ms each   x Adam  steps  converged   error/A'
        '    Adam/A'
    )
    for case in CASES:
        for size in options.sizes:
            print(row(case, size, options.device))


if __name__ == '__main__':
    main()
