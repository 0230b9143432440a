"""The distance-geometry solver: what it recovers, and what it may never do."""

from itertools import pairwise

import numpy as np
import pytest
import spglib
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_deeprelax.geometry.neighbors import neighbor_list
from ase_deeprelax.predict import edg_solver
from ase_deeprelax.predict.edg_solver import solve_edg

DOUBLE = torch.float64
CUTOFF = 6.0
quick = settings(max_examples=15, deadline=None)


class Crystal:
    """A random relaxed crystal, a start away from it, and bounds on its distances."""

    def __init__(self, seed, n=20, rms=0.25, noise=0.0, band=1e-4, cutoff=CUTOFF):
        rng = np.random.default_rng(seed)
        edge = 8.0 * (n / 20) ** (1 / 3)
        strain = rng.normal(size=(3, 3)) * 0.02
        self.cell = edge * (np.eye(3) + (strain + strain.T) / 2)
        self.relaxed = random_packing(rng, n, edge) @ self.cell
        moves = rng.normal(size=(n, 3))
        moves *= rms / np.sqrt((moves**2).sum(1).mean())
        self.start = self.relaxed + moves - moves.mean(axis=0)
        i, j, offset = neighbor_list(self.start, self.cell, cutoff)
        once = (j > i) | ((j == i) & ((offset @ [1e4, 1e2, 1]) > 0))
        self.i, self.j, self.offset = i[once], j[once], offset[once]
        distance = self.distances(self.relaxed)
        distance = distance + noise * rng.normal(size=len(distance))
        self.lower, self.upper = np.maximum(0, distance - band), distance + band

    def distances(self, positions):
        vectors = positions[self.j] + self.offset @ self.cell - positions[self.i]
        return np.linalg.norm(vectors, axis=1)

    def error(self, positions):
        """Mean |dx| over atoms and axes, without drift, A."""
        delta = positions - self.relaxed
        return np.abs(delta - delta.mean(axis=0)).mean()

    def loss(self, positions):
        excess = self.distances(positions)
        excess = np.abs(excess - np.clip(excess, self.lower, self.upper))
        near = np.minimum(excess, edg_solver.HUBER)
        return (near * (excess - near / 2) / edg_solver.HUBER).mean()


def random_packing(rng, n, edge, closest=1.6):
    """Fractional coordinates of n atoms in a cube, none closer than ``closest``."""
    found = np.zeros((0, 3))
    while len(found) < n:
        new = rng.random(3)
        delta = found - new
        if (np.linalg.norm(delta - np.round(delta), axis=1) * edge > closest).all():
            found = np.vstack([found, new])
    return found


def pack(crystals, dtype=DOUBLE):
    """Positional arguments of solve_edg, and the slices of the crystals' atoms."""
    ends = np.cumsum([0, *(len(c.start) for c in crystals)])
    real = {
        name: torch.from_numpy(np.concatenate(values)).to(dtype)
        for name, values in {
            'pos': [c.start for c in crystals],
            'cell': [c.cell[None] for c in crystals],
            'offset': [c.offset for c in crystals],
            'lower': [c.lower for c in crystals],
            'upper': [c.upper for c in crystals],
        }.items()
    }
    graph = torch.arange(len(crystals)).repeat_interleave(torch.from_numpy(np.diff(ends)))
    edges = [np.stack([c.j, c.i]) + k for c, k in zip(crystals, ends, strict=False)]
    edge_index = torch.from_numpy(np.concatenate(edges, axis=1))
    arguments = [real['pos'], real['cell'], graph, edge_index]
    arguments += [real['offset'], real['lower'], real['upper']]
    return arguments, [slice(*pair) for pair in pairwise(ends)]


def solve(crystals, dtype=DOUBLE, **options):
    arguments, parts = pack(crystals, dtype)
    solution = solve_edg(*arguments, **options)
    return solution, [solution.pos[part].double().numpy() for part in parts]


def pair_of_atoms(distance, lower, upper):
    """Two atoms on a line in a box that their images do not reach across."""
    return (
        torch.tensor([[0.0, 0.0, 0.0], [distance, 0.0, 0.0]]),
        20 * torch.eye(3)[None],
        torch.zeros(2, dtype=torch.long),
        torch.tensor([[1], [0]]),
        torch.zeros(1, 3),
        torch.tensor([lower]),
        torch.tensor([upper]),
    )


def separation(solution):
    return float((solution.pos[1] - solution.pos[0]).norm())


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_exact_distances_bring_the_relaxed_positions_back(dtype):
    crystals = [Crystal(seed) for seed in range(50)]
    solution, found = solve(crystals, dtype)
    errors = np.array([c.error(x) for c, x in zip(crystals, found, strict=True)])
    assert min(c.error(c.start) for c in crystals) > 0.1
    assert (errors < 1e-3).mean() >= 0.96
    assert solution.pos.dtype == dtype
    assert solution.converged.all()
    assert solution.residual.max() < 1e-4


def test_noise_is_averaged():
    """Each atom has some 34 bounds: the error is far below that of one distance."""
    crystals = [Crystal(seed, noise=0.1) for seed in range(20)]
    _, found = solve(crystals)
    errors = [c.error(x) for c, x in zip(crystals, found, strict=True)]
    assert np.mean(errors) < 0.03
    wide = [Crystal(seed, noise=0.1, band=0.1) for seed in range(20)]
    _, found = solve(wide)
    assert np.mean([c.error(x) for c, x in zip(wide, found, strict=True)]) < 0.035


@pytest.mark.parametrize(
    ('bounds', 'most'),
    [({}, 10), ({'noise': 0.1}, 25), ({'noise': 0.1, 'band': 0.1}, 33)],
    ids=['exact', 'contradictory', 'wide'],
)
def test_few_steps_are_enough(bounds, most):
    solution, _ = solve([Crystal(seed, **bounds) for seed in range(20)])
    assert solution.converged.all()
    assert solution.steps <= most


def contradictory(seed):
    """A small crystal whose bounds ask for a half or for twice the distances, at random."""
    rng = np.random.default_rng(seed)
    crystal = Crystal(seed, n=int(rng.integers(2, 5)), cutoff=4.0)
    distance = crystal.distances(crystal.relaxed)
    crystal.lower = distance * rng.choice([0.05, 0.3, 1.0, 2.0], len(distance))
    crystal.upper = crystal.lower + rng.choice([0.0, 0.2], len(distance))
    return crystal


def test_no_step_makes_it_worse_and_steps_come_to_an_end():
    """Whatever the bounds: steps that would are taken back, and tried shorter."""
    crystals = [contradictory(seed) for seed in range(60)]
    losses = []
    for steps in range(25):
        _, found = solve(crystals, max_steps=steps)
        losses.append([c.loss(x) for c, x in zip(crystals, found, strict=True)])
    rises = np.diff(losses, axis=0)
    assert rises.max() < 1e-12
    assert (rises[-5:].sum(axis=0) < 0).any()  # some are still on their way
    solution, _ = solve(crystals, max_steps=250)
    assert solution.converged.all()


def adam(crystal, steps=100, lr=0.1):
    """The reference's loop: Adam on the mean violation (eqs. 16-20), by autograd."""
    (pos, cell, _, (j, i), offset, lower, upper), _ = pack([crystal])
    x = pos.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=lr)
    for _ in range(steps):
        distance = (x[j] + offset @ cell[0] - x[i]).norm(dim=1)
        loss = (torch.relu(distance - upper) + torch.relu(lower - distance)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return x.detach().numpy()


def test_no_worse_than_the_reference_on_its_own_loss():
    """The paper's loop stops after 100 steps; the smoothed loss costs less than that."""
    crystals = [Crystal(seed, n=12, noise=0.05, band=0.02) for seed in range(6)]
    solution, found = solve(crystals)
    theirs = [adam(crystal) for crystal in crystals]
    violation = []
    for crystal, x in zip(crystals, theirs, strict=True):
        distance = crystal.distances(x)
        clipped = np.clip(distance, crystal.lower, crystal.upper)
        violation.append(np.abs(distance - clipped).mean())
    assert float(solution.residual.mean()) < 1.02 * np.mean(violation)
    errors = np.array(
        [(c.error(x), c.error(y)) for c, x, y in zip(crystals, found, theirs, strict=True)]
    )
    assert errors[:, 0].mean() < errors[:, 1].mean()


def test_a_start_within_its_bounds_comes_back_bit_for_bit():
    happy, sad = Crystal(0, rms=0.0), Crystal(1, noise=0.1)
    for dtype in (torch.float32, torch.float64):
        solution, _ = solve([happy], dtype)
        assert solution.steps == 0
        assert torch.equal(solution.pos, pack([happy], dtype)[0][0])
        assert solution.converged.all()
        solution, _ = solve([sad, happy, sad], dtype)
        arguments, parts = pack([sad, happy, sad], dtype)
        assert torch.equal(solution.pos[parts[1]], arguments[0][parts[1]])
        assert not torch.equal(solution.pos[parts[0]], arguments[0][parts[0]])


sizes = st.lists(st.integers(2, 14), min_size=1, max_size=4)


@quick
@given(sizes, st.integers(0, 1000), st.sampled_from([1e-4, 0.03, 0.1]))
def test_a_batch_is_its_structures(numbers, seed, band):
    crystals = [
        Crystal(seed + k, n=n, noise=0.05, band=band) for k, n in enumerate(numbers)
    ]
    together, found = solve(crystals)
    for k, crystal in enumerate(crystals):
        alone, (x,) = solve([crystal])
        np.testing.assert_allclose(found[k], x, atol=1e-9)
        assert together.converged[k] == alone.converged[0]
        assert float(together.residual[k]) == pytest.approx(float(alone.residual[0]))
        assert crystal.loss(x) <= crystal.loss(crystal.start)
        np.testing.assert_allclose(x.mean(axis=0), crystal.start.mean(axis=0), atol=1e-9)


@quick
@given(st.integers(2, 14), st.integers(0, 1000))
def test_turning_and_renumbering_the_crystal(n, seed):
    crystal = Crystal(seed, n=n, noise=0.05, band=0.03)
    _, (expected,) = solve([crystal])
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    order = rng.permutation(n)
    shuffled = rng.permutation(len(crystal.i))
    backwards = rng.random(len(shuffled)) < 0.5
    new = np.argsort(order)
    crystal.start, crystal.cell = crystal.start[order] @ turn, crystal.cell @ turn
    i, j, offset = (a[shuffled] for a in (new[crystal.i], new[crystal.j], crystal.offset))
    crystal.i, crystal.j = np.where(backwards, j, i), np.where(backwards, i, j)
    crystal.offset = np.where(backwards[:, None], -offset, offset)
    crystal.lower, crystal.upper = crystal.lower[shuffled], crystal.upper[shuffled]
    _, (found,) = solve([crystal])
    np.testing.assert_allclose(found, expected[order] @ turn, atol=1e-7)


def rutile(a, c, u):
    """Two Ti and four O, space group 136."""
    fractional = [[0, 0, 0], [0.5, 0.5, 0.5], [u, u, 0], [-u, -u, 0]]
    fractional += [[0.5 + u, 0.5 - u, 0.5], [0.5 - u, 0.5 + u, 0.5]]
    return np.array(fractional) @ np.diag([a, a, c])


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_a_symmetric_start_stays_symmetric(dtype):
    crystal = Crystal(0, n=6)
    crystal.cell = np.diag([4.6, 4.6, 2.96])
    crystal.start, target = rutile(4.6, 2.96, 0.33), rutile(4.6, 2.96, 0.305)
    crystal.i, crystal.j, crystal.offset = neighbor_list(
        crystal.start, crystal.cell, CUTOFF
    )
    # Bounds that contradict each other, but alike for equivalent atoms.
    distance = crystal.distances(target)
    distance = distance + 0.05 * np.sin(20 * distance)
    crystal.lower = crystal.upper = distance
    solution, (found,) = solve([crystal], dtype)
    assert solution.residual[0] > 0.01
    assert np.abs(found - crystal.start).max() > 0.05
    fractional = found @ np.linalg.inv(crystal.cell)
    structure = (crystal.cell, fractional, [22, 22, 8, 8, 8, 8])
    assert spglib.get_symmetry_dataset(structure, symprec=1e-5).number == 136


def test_anchors_hold_the_frame():
    """Distances from fixed points bring back also what the crystal's own do not see."""
    crystal = Crystal(3, n=12)
    shift = np.array([0.1, -0.07, 0.04])
    target = torch.from_numpy(crystal.relaxed + shift)
    i, j = (torch.from_numpy(a) for a in np.nonzero(~np.eye(12, dtype=bool)))
    points = torch.from_numpy(crystal.start)
    distance = (target[j] - points[i]).norm(dim=1)
    anchors = {
        'anchor_index': torch.stack([j, i]),
        'anchor_pos': points,
        'anchor_lower': distance,
        'anchor_upper': distance,
    }
    solution, (found,) = solve([crystal], **anchors)
    assert np.abs(found - target.numpy()).max() < 1e-3
    assert solution.converged.all()
    # In a batch only the anchored structure drifts.
    solution, (found, other) = solve([crystal, Crystal(4, n=9)], **anchors)
    assert np.abs(found - target.numpy()).max() < 1e-3
    np.testing.assert_allclose(other.mean(axis=0), Crystal(4, n=9).start.mean(axis=0))
    # Anchors alone are enough.
    arguments, _ = pack([crystal])
    arguments[3:] = arguments[3][:, :0], *(a[:0] for a in arguments[4:])
    solution = solve_edg(*arguments, **anchors)
    assert (solution.pos - target).abs().max() < 1e-3


def test_edges_and_anchors_count_as_means_however_many_there_are():
    """Four edges ask for 2 A, one anchor for 2.02 A: halfway is best."""
    start = torch.tensor([[0.0, 0.0, 0.0], [2.3, 0.0, 0.0]], dtype=DOUBLE)
    solution = solve_edg(
        start,
        20 * torch.eye(3, dtype=DOUBLE)[None],
        torch.zeros(2, dtype=torch.long),
        torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]]),
        torch.zeros(4, 3, dtype=DOUBLE),
        torch.full((4,), 2.0, dtype=DOUBLE),
        torch.full((4,), 2.0, dtype=DOUBLE),
        anchor_index=torch.tensor([[1], [0]]),
        anchor_pos=start,
        anchor_lower=torch.tensor([2.02], dtype=DOUBLE),
        anchor_upper=torch.tensor([2.02], dtype=DOUBLE),
        fixed=torch.tensor([True, False]),
    )
    assert separation(solution) == pytest.approx(2.01, abs=1e-4)


@pytest.mark.parametrize('count', [1, 2, 10, 20])
def test_fixed_atoms_stay_and_the_others_find_their_places_beside_them(count):
    crystal, other = Crystal(3, n=20), Crystal(4, n=9)
    fixed = np.arange(20) < count
    crystal.start += [0.2, -0.2, 0.2]
    crystal.start[fixed] = crystal.relaxed[fixed]
    everything = torch.from_numpy(np.append(fixed, np.zeros(9, dtype=bool)))
    solution, (found, floating) = solve([crystal, other], fixed=everything)
    np.testing.assert_array_equal(found[fixed], crystal.start[fixed])
    assert np.abs(found - crystal.relaxed).max() < 1e-3
    assert solution.converged.all()
    assert solution.steps < 40
    np.testing.assert_allclose(floating.mean(axis=0), other.start.mean(axis=0))


@pytest.mark.parametrize(
    ('start', 'lower', 'upper', 'expected'),
    [
        (2.0, 2.2, 2.0, 2.1),  # crossed: meet in the middle
        (1.0, -5.0, 3.0, 1.0),
        (1.0, -5.0, -1.0, 0.0),  # no length is below 0
        (4.0, 1.0, 3.0, 3.0),
        (1.0, 2.0, float('inf'), 2.0),
        (1.0, 0.0, float('inf'), 1.0),
        (1.0, 7.0, 7.0, 7.0),  # further than one capped step
        (0.0, 2.0, 2.0, 0.0),  # coincident: no direction to part in
    ],
)
def test_two_atoms(start, lower, upper, expected):
    solution = solve_edg(*pair_of_atoms(start, lower, upper))
    assert separation(solution) == pytest.approx(expected, abs=2e-4)
    assert solution.converged.all()
    assert float(solution.residual[0]) == pytest.approx(0 if start else lower, abs=2e-4)


def test_steps_are_capped_and_counted():
    for steps in (0, 1, 3):
        solution = solve_edg(*pair_of_atoms(1.0, 9.0, 9.0), max_steps=steps)
        assert solution.steps == steps
        assert not solution.converged.any()
        assert separation(solution) <= 1.0 + 2 * steps * edg_solver.MAX_MOVE + 1e-5
        assert float(solution.residual[0]) == pytest.approx(9.0 - separation(solution))


def test_cells_without_a_free_bond():
    """One atom and its own images: nothing can move, the residual still tells."""
    images = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    arguments = [
        torch.tensor([[0.3, 0.2, 0.1]]),
        3 * torch.eye(3)[None],
        torch.zeros(1, dtype=torch.long),
        torch.zeros(2, 3, dtype=torch.long),
        images,
        torch.full((3,), 3.1),
        torch.full((3,), 3.2),
    ]
    solution = solve_edg(*arguments)
    assert torch.equal(solution.pos, arguments[0])
    assert float(solution.residual[0]) == pytest.approx(0.1, rel=1e-4)
    arguments[3:] = arguments[3][:, :0], *(a[:0] for a in arguments[4:])
    solution = solve_edg(*arguments)
    assert torch.equal(solution.pos, arguments[0])
    assert solution.residual.tolist() == [0.0]
    assert solution.converged.tolist() == [True]


def test_nothing_to_solve():
    empty = torch.zeros(0)
    integers = torch.zeros(0, dtype=torch.long)
    solution = solve_edg(
        empty.view(0, 3),
        empty.view(0, 3, 3),
        integers,
        integers.view(2, 0),
        empty.view(0, 3),
        empty,
        empty,
    )
    assert solution.pos.shape == (0, 3)
    assert solution.residual.shape == solution.converged.shape == (0,)
    assert solution.steps == 0


wild = st.sampled_from([0.0, -1.0, 1e-30, 0.5, 3.0, 50.0, 1e8, 1e30, 3e38, float('inf')])
harm = st.tuples(st.integers(0, 10**6), wild, wild)


@settings(max_examples=60, deadline=None)
@given(st.lists(harm, min_size=1, max_size=30), st.booleans(), st.sampled_from([1, 2, 7]))
def test_no_bounds_make_nan_or_harm_others(harms, coincident, n):
    good, bad = Crystal(5, n=8, noise=0.05), Crystal(6, n=n, noise=0.05)
    for edge, lower, upper in harms:
        if len(bad.i):
            bad.lower[edge % len(bad.i)] = lower
            bad.upper[edge % len(bad.i)] = upper
    if coincident:
        bad.start[0] = bad.start[-1]
    _, (expected,) = solve([good], torch.float32)
    solution, (first, middle, last) = solve([good, bad, good], torch.float32, max_steps=60)
    np.testing.assert_allclose(first, expected, atol=1e-5)
    np.testing.assert_allclose(last, expected, atol=1e-5)
    assert np.isfinite(middle).all()
    assert solution.converged[0]
    assert solution.converged[2]
    assert not solution.residual.isnan().any()
    assert solution.residual[1].isfinite() or not solution.converged[1]


@pytest.mark.parametrize('where', ['pos', 'cell', 'lower', 'upper'])
def test_nan_stays_in_its_structure(where):
    good, bad = Crystal(5, n=8, noise=0.05), Crystal(6, n=6, noise=0.05)
    _, (expected,) = solve([good])
    getattr(bad, 'start' if where == 'pos' else where).flat[0] = np.nan
    solution, (found, broken) = solve([good, bad])
    np.testing.assert_allclose(found, expected, atol=1e-9)
    np.testing.assert_array_equal(broken, bad.start)
    assert solution.converged.tolist() == [True, False]
    assert solution.residual.isnan().tolist() == [False, True]


def test_a_place_that_is_not_finite_is_no_solution_without_bounds_either():
    arguments, _ = pack([Crystal(5, n=2), Crystal(6, n=2)])
    arguments[0][0, 0] = np.nan
    arguments[3:] = arguments[3][:, :0], *(a[:0] for a in arguments[4:])
    solution = solve_edg(*arguments)
    assert solution.converged.tolist() == [False, True]
    assert solution.steps == 0


def test_inputs_are_not_touched_and_no_graph_is_kept():
    arguments, _ = pack([Crystal(7, n=6)])
    arguments[0].requires_grad_()
    copies = [a.detach().clone() for a in arguments]
    solution = solve_edg(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(arguments, copies, strict=True))
    assert not solution.pos.requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_gpu_agrees_with_cpu():
    crystals = [Crystal(seed, n=5 + seed, noise=0.03, band=0.03) for seed in range(8)]
    arguments, _ = pack(crystals)
    expected = solve_edg(*arguments)
    solution = solve_edg(*(a.cuda() for a in arguments))
    assert solution.pos.is_cuda
    assert (solution.pos.cpu() - expected.pos).abs().max() < 1e-6
    assert torch.equal(solution.converged.cpu(), expected.converged)
