"""Muon for the matrices of a network, AdamW for all else, as one optimizer.

Muon (Jordan 2024) orthogonalizes the momentum of each weight matrix before the step. On
the networks here it reaches in equal steps what AdamW alone reaches much later; the
model cards give the numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ase_deeprelax.errors import ConfigError


def muon_and_adamw(
    model: nn.Module, *, muon_rate: float, adamw_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer of a model: Muon for two-dimensional weights, AdamW for the rest.

    Embeddings are tables rather than maps and stay with AdamW.

    Parameters
    ----------
    model : torch.nn.Module
    muon_rate, adamw_rate : float
        Learning rates; Muon's updates are scaled to the size of AdamW's.
    weight_decay : float

    Returns
    -------
    torch.optim.Optimizer

    Raises
    ------
    ConfigError
        This version of torch has no Muon.

    Examples
    --------
    >>> network = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4))
    >>> optimizer = muon_and_adamw(
    ...     network, muon_rate=2e-3, adamw_rate=1e-3, weight_decay=0.01
    ... )
    >>> [len(group['params']) for group in optimizer.param_groups]
    [1, 2]
    """
    if not hasattr(torch.optim, 'Muon'):
        raise ConfigError(
            f'optimize.muon_rate needs torch 2.9 or newer, here is {torch.__version__}; '
            'install it, or leave muon_rate out and train with AdamW'
        )
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
    muon = torch.optim.Muon(
        matrices,
        lr=muon_rate,
        momentum=0.95,
        weight_decay=weight_decay,
        adjust_lr_fn='match_rms_adamw',
    )
    return Together(
        [muon, torch.optim.AdamW(others, adamw_rate, weight_decay=weight_decay)]
    )


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
