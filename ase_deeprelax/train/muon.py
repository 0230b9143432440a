"""Muon for the matrices of a network, AdamW for all else, as one optimizer.

Muon (Jordan 2024) orthogonalizes the momentum of each weight matrix before the step. On
the networks here it reaches in equal steps what AdamW alone reaches much later; the
model cards give the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


def muon_and_adamw(
    model: nn.Module,
    *,
    muon_rate: float,
    adamw_rate: float,
    weight_decay: float,
    amsgrad: bool = False,
) -> torch.optim.Optimizer:
    """The optimizer of a model: Muon for two-dimensional weights, AdamW for the rest.

    Embeddings are tables rather than maps and stay with AdamW.

    Parameters
    ----------
    model : torch.nn.Module
    muon_rate, adamw_rate : float
        Learning rates; Muon's updates are scaled to the size of AdamW's.
    weight_decay : float
    amsgrad : bool
        Of AdamW; default False.

    Returns
    -------
    torch.optim.Optimizer

    Examples
    --------
    >>> network = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4))
    >>> optimizer = muon_and_adamw(
    ...     network, muon_rate=2e-3, adamw_rate=1e-3, weight_decay=0.01
    ... )
    >>> [len(group['params']) for group in optimizer.param_groups]
    [1, 2]
    """
    tables = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    matrices, others = [], []
    for parameter in model.parameters():
        is_matrix = parameter.dim() == 2 and id(parameter) not in tables
        (matrices if is_matrix else others).append(parameter)
    muon = Muon(matrices, muon_rate, weight_decay=weight_decay)
    adamw = torch.optim.AdamW(
        others, adamw_rate, weight_decay=weight_decay, amsgrad=amsgrad
    )
    return Together([muon, adamw])


# Coefficients of the Newton-Schulz iteration, as in torch.optim.Muon.
ITERATION = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` with updates of the size of AdamW's, for many small matrices.

    Matrices of one shape are taken through the iteration together: on a GPU the hundreds of
    small operations of one after the other take as long as the network.

    Parameters
    ----------
    params : iterable of (n, m) torch.nn.Parameter
    lr : float
    momentum : float
        Of the Nesterov kind; default 0.95.
    weight_decay : float
        Default 0.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ):
        defaults = {'lr': lr, 'momentum': momentum, 'weight_decay': weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all matrices that have a gradient; ``closure`` must be None."""
        if closure is not None:
            raise ValueError('Muon takes no closure; call it before the step')
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[nn.Parameter, torch.Tensor]]] = {}
            for parameter in group['params']:
                if (gradient := parameter.grad) is not None:
                    pairs = by_shape.setdefault(parameter.shape, [])
                    pairs.append((parameter, gradient))
            for pairs in by_shape.values():
                self._step(pairs, group)

    def _step(
        self, pairs: list[tuple[nn.Parameter, torch.Tensor]], group: dict[str, Any]
    ) -> None:
        """A step of matrices of one shape, each with its gradient."""
        looked_ahead = []
        for parameter, gradient in pairs:
            state = self.state[parameter]
            if not state:
                state['momentum'] = torch.zeros_like(parameter)
            state['momentum'].lerp_(gradient, 1 - group['momentum'])
            looked_ahead.append(gradient.lerp(state['momentum'], group['momentum']))
        parameters = [parameter for parameter, _ in pairs]
        updates = orthogonal(torch.stack(looked_ahead)).to(parameters[0].dtype)
        size = group['lr'] * 0.2 * math.sqrt(max(parameters[0].shape))
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - group['lr'] * group['weight_decay'])
            parameter.sub_(update, alpha=size)


def orthogonal(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Nearly orthogonal matrices along the given ones, (k, n, m), in bfloat16."""
    a, b, c = ITERATION
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Together(torch.optim.Optimizer):
    """Several optimizers that step at the same time and are saved as one.

    Parameters
    ----------
    optimizers : list of torch.optim.Optimizer
        For different parameters; ``param_groups`` holds the groups of all of them.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer]):
        self.optimizers = optimizers
        super().__init__([group for o in optimizers for group in o.param_groups], {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of each; ``closure`` is called once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {'optimizers': [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        states = state_dict['optimizers']
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)
        # Loading replaces the groups of each optimizer.
        self.param_groups = [group for o in self.optimizers for group in o.param_groups]
