"""Distance geometry: from bounds on distances to positions (paper eqs. 16-20).

The paper minimises the mean violation of the bounds with 100 steps of Adam, one structure
at a time. Here all structures of a batch take damped Gauss-Newton steps together: the
linear systems are solved by conjugate gradients on sums over edges, so that nothing is
ever padded, and each structure has its own damping, step cap and end.

The violation s of a bound counts as |s| - HUBER / 2 beyond HUBER and as s^2 / (2 HUBER)
within. Far from the bounds that is the paper's loss; close to them it averages noise
as least squares do and has the derivatives that Gauss-Newton needs. Where all bounds can
hold, both have the same minima.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ase_deeprelax.predict.edg_bounds import (
    HUBER,
    Bounds,
    Sums,
    anchor_bounds,
    edge_bounds,
)

MAX_MOVE = 0.4  # A; no atom moves further in one step
INNER_STEPS = 30  # of conjugate gradients, at most, per step
INNER_TOL = 0.3  # relative residual at which they stop
HELD = 0.03  # stiffness of bounds that hold, so that a step breaks fewer of them
BROKEN = 0.3  # of those that stay broken by more than HUBER, whose loss is straight
DAMPING_MIN, DAMPING_START, DAMPING_MAX = 1e-7, 1e-3, 1e7  # times an atom's stiffness


@dataclass(frozen=True)
class EDGSolution:
    """Positions that fit the bounds, and how well.

    Attributes
    ----------
    pos : (n_atoms, 3), A
    residual : (n_graphs,), A
        Mean violation over the bounds of a structure; 0 where it has none, not finite
        where its input is not.
    converged : (n_graphs,) bool
        Whether the bounds hold, or no step improves on them any more. False where the
        steps ran out or the input is not finite.
    steps : int
        Steps taken until the last structure was done.
    """

    pos: torch.Tensor
    residual: torch.Tensor
    converged: torch.Tensor
    steps: int


@torch.no_grad()
def solve_edg(  # noqa: PLR0917
    pos: torch.Tensor,
    cell: torch.Tensor,
    graph_of_atom: torch.Tensor,
    edge_index: torch.Tensor,
    offset: torch.Tensor,
    lower: torch.Tensor,
    upper: torch.Tensor,
    *,
    anchor_index: torch.Tensor | None = None,
    anchor_pos: torch.Tensor | None = None,
    anchor_lower: torch.Tensor | None = None,
    anchor_upper: torch.Tensor | None = None,
    fixed: torch.Tensor | None = None,
    max_steps: int = 100,
    tol: float = 1e-4,
) -> EDGSolution:
    """Move atoms, at fixed cells, until their distances lie within bounds (eqs. 16-20).

    The loss of one structure is the mean over its edges of the violation of
    ``lower <= |X_j + offset @ cell - X_i| <= upper`` plus the mean over its anchors of that
    of ``anchor_lower <= |X_j - anchor_pos_i| <= anchor_upper``. A lower bound above its
    upper bound is replaced, like it, by the mean of the two.

    Fixed atoms stay bit-for-bit where they are; without them and without anchors a
    structure keeps the centroid it starts with. A structure whose
    bounds hold at the start is returned bit-for-bit, as is one with input that is not
    finite. Structures do not influence each other.

    Parameters
    ----------
    pos : (n_atoms, 3), A
        Start, float32 or float64; all floating-point input has the same type.
    cell : (n_graphs, 3, 3), A
        Relaxed cells, rows.
    graph_of_atom : (n_atoms,) int64
    edge_index : (2, n_edges) int64
        Neighbour ``j`` in row 0, centre ``i`` in row 1; one of i-j and j-i is enough.
    offset : (n_edges, 3)
        Lattice translations of the neighbours.
    lower, upper : (n_edges,), A
        Bounds (eqs. 18, 19); ``upper`` may be infinite.
    anchor_index : (2, n_anchors) int64, optional
        ``j`` in row 0, ``i`` in row 1.
    anchor_pos : (n_atoms, 3), A, optional
        Fixed points that the anchors start from: the strained unrelaxed positions.
    anchor_lower, anchor_upper : (n_anchors,), A, optional
    fixed : (n_atoms,) bool, optional
        Atoms that do not move; default none.
    max_steps : int
        Default 100.
    tol : float, A
        Bounds violated by less hold, and a structure that moves by less is done;
        default 1e-4.

    Returns
    -------
    EDGSolution

    Examples
    --------
    Two atoms in a large box, pushed apart to 2 A:

    >>> pos = torch.tensor([[0.0, 0.0, 0.0], [1.5, 0.0, 0.0]])
    >>> solution = solve_edg(
    ...     pos,
    ...     9 * torch.eye(3)[None],
    ...     torch.zeros(2, dtype=torch.long),
    ...     torch.tensor([[1], [0]]),
    ...     torch.zeros(1, 3),
    ...     torch.tensor([2.0]),
    ...     torch.tensor([2.1]),
    ... )
    >>> float((solution.pos[1] - solution.pos[0]).norm()) > 1.999
    True
    """
    n_graphs = cell.shape[0]
    bounds = edge_bounds(
        pos, cell, graph_of_atom, edge_index, offset, lower=lower, upper=upper
    )
    if fixed is None:
        fixed = torch.zeros_like(graph_of_atom, dtype=torch.bool)
    anchored = (
        torch.zeros_like(cell[:, 0, 0]).index_add_(0, graph_of_atom, fixed.to(pos)) > 0
    )
    if (
        anchor_index is not None
        and anchor_pos is not None
        and anchor_lower is not None
        and anchor_upper is not None
    ):
        anchors = anchor_bounds(
            pos,
            anchor_pos,
            graph_of_atom,
            anchor_index,
            lower=anchor_lower,
            upper=anchor_upper,
        )
        bounds = bounds.joined(anchors)
        anchored[anchors.graph] = True
    sums = Sums(graph_of_atom, anchored, fixed)
    excess, _ = bounds.measure(pos.new_zeros(3, len(pos) + 1))
    worst = sums.largest(excess.abs(), bounds.graph)
    finite = torch.isfinite(sums.of_atoms(pos.sum(1)))
    converged, steps = finite & (worst <= tol), 0
    active = finite & torch.isfinite(worst) & ~converged
    if bool(active.any()):
        # In single precision, rounding errors would keep some layers moving until the steps
        # ran out: those whose bounds contradict each other.
        move, solved, steps = _minimise(sums, bounds.double(), active, max_steps, tol)
        move = move.to(pos.dtype)
        pos, converged = pos + move[:, :-1].T, converged | solved
        excess, _ = bounds.measure(move)
    count = torch.bincount(bounds.graph, minlength=n_graphs).clamp(min=1)
    residual = sums.of_bounds(excess.abs(), bounds) / count
    return EDGSolution(pos, residual, converged, steps)


def _minimise(
    sums: Sums, bounds: Bounds, active: torch.Tensor, max_steps: int, tol: float
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Moves (3, n_atoms + 1), convergence of active graphs (n_graphs,), number of steps."""
    move = bounds.base.new_zeros(3, len(sums.graph))
    converged = torch.zeros_like(active)
    length = bounds.base.square().sum(0).sqrt()
    # What rounding of the distances does to the loss.
    slack = sums.of_bounds(bounds.weight * length, bounds) * torch.finfo(length.dtype).eps
    stiffness = sums.stiffness(bounds.weight / HUBER, bounds)
    stiffness = torch.where(stiffness > 0, stiffness, 1)
    damping = torch.full_like(slack, DAMPING_START)
    settling = torch.zeros_like(active)
    n_active = -1
    for step in range(max_steps):
        if (n_left := int(active.sum())) == 0:
            return move, converged, step
        if n_left != n_active:
            n_active = n_left
            bounds = bounds.kept(active.index_select(0, bounds.graph))
            excess, unit = bounds.measure(move)
        resistance = stiffness * sums.spread(damping)
        push, size, hoped = _step(
            sums, bounds, excess, unit, damping=resistance, settling=settling
        )
        settling = size < HUBER
        trial = move + push
        new_excess, new_unit = bounds.measure(trial)
        gain = bounds.loss(excess, sums) - bounds.loss(new_excess, sums)
        accepted = active & (gain >= -slack)
        move = torch.where(sums.spread(accepted), trial, move)
        if bool((accepted == active).all()):
            excess, unit = new_excess, new_unit
        else:
            excess, unit = bounds.measure(move)
        too_fine = hoped <= slack
        held = sums.largest(excess.abs(), bounds.graph) <= tol
        still = accepted & (size < tol) & (damping <= 1)
        done = active & (held | still | (~accepted & too_fine))
        converged |= done
        easier = accepted & (too_fine | (gain > 0.75 * hoped))
        harder = ~accepted | (~too_fine & (gain < 0.25 * hoped))
        damping = torch.where(
            easier, damping / 10, torch.where(harder, damping * 10, damping)
        )
        damping = damping.clamp(min=DAMPING_MIN)
        active = active & ~done & (damping < DAMPING_MAX)
    return move, converged, max_steps


def _step(
    sums: Sums,
    bounds: Bounds,
    excess: torch.Tensor,
    unit: torch.Tensor,
    *,
    damping: torch.Tensor,
    settling: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One damped Gauss-Newton step, capped.

    Returns the moves, the largest of each structure before the cap (n_graphs,), and the
    decrease of the loss that the quadratic model expects of them (n_graphs,).
    """
    over = excess.abs()
    pull = bounds.slope(excess) * unit
    force = sums.onto_atoms(-pull, bounds, unit.new_zeros(3, len(damping)))
    # Tangent parabolas land on a bound. Where steps have become small, a bound still broken
    # will stay so: its stiffness is only in the way.
    outvoted = (over > HUBER) & settling.index_select(0, bounds.graph)
    share = torch.where(outvoted, BROKEN, torch.where(over > 0, 1.0, HELD))
    rows = unit * (share * bounds.weight / over.clamp(min=HUBER)).sqrt()  # of the Jacobian
    push = sums.without_drift(_solve(sums, bounds, rows, damping, force))
    size = sums.largest(push.square().sum(0).sqrt(), sums.graph)
    push = push * sums.spread(MAX_MOVE / size.clamp(min=MAX_MOVE))
    bend = sums.of_bounds((rows * bounds.difference(push)).sum(0).square(), bounds)
    return push, size, sums.dot(force, push).double() - bend.double() / 2


def _solve(
    sums: Sums,
    bounds: Bounds,
    rows: torch.Tensor,
    damping: torch.Tensor,
    force: torch.Tensor,
) -> torch.Tensor:
    """Conjugate gradients on (J^T J + damping) x = force, each structure to its own end."""
    # J^T J averaged over directions: one number per atom is the same in all orientations.
    diagonal = sums.stiffness(rows.square().sum(0) / 3, bounds) + damping
    x = torch.zeros_like(force)
    rest = force
    direction = rest / diagonal
    norm = sums.dot(rest, direction)
    goal = norm * INNER_TOL**2
    for _ in range(INNER_STEPS):
        pull = rows * (rows * bounds.difference(direction)).sum(0)
        product = sums.onto_atoms(pull, bounds, damping * direction)
        curvature = sums.dot(direction, product)
        # Structures at their goal stand still while the others go on.
        live = (norm > goal) & (curvature > 0)
        length = torch.where(live, norm / torch.where(live, curvature, 1), 0)
        x = x + sums.spread(length) * direction
        rest = rest - sums.spread(length) * product
        conditioned = rest / diagonal
        new_norm = torch.where(live, sums.dot(rest, conditioned), norm)
        ratio = torch.where(live, new_norm / torch.where(live, norm, 1), 0)
        direction = conditioned + sums.spread(ratio) * direction
        norm = new_norm
        if not bool((live & (norm > goal)).any()):
            break
    return x
