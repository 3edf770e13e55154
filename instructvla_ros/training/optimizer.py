"""What moves the weights: AdamW, or Muon for the matrices of layers and AdamW for the rest.

Muon (Jordan 2024; rates as in arXiv 2502.16982, so that those of AdamW serve) makes every direction of a matrix's
update equally long. A small model from random weights learned as much from it in two thirds of the steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from ..model.instructvla import InstructVLA
from .objective import Objective
from .settings import Training

THIN = 16
"""Matrices with a side shorter than this are left to AdamW: heads of few channels, inputs of the arm state."""
_MOMENTUM = 0.95


def check_optimizer(options: Training, sharded: bool = False) -> None:
    """What can be known before anything is loaded.

    Raises:
        ConfigError: Muon with sharded weights, or with a torch that has none.
    """
    if options.optimizer == 'adamw':
        return
    if sharded:
        raise ConfigError('optimizer muon needs whole matrices: leave `sharded` out, or set optimizer=adamw')
    if not hasattr(torch.optim, 'Muon'):
        raise ConfigError(f'optimizer muon needs torch 2.9 or later, this is {torch.__version__}; set optimizer=adamw')


def make_optimizer(objective: Objective, options: Training) -> torch.optim.Optimizer:
    """Optimiser of everything that is trained; only matrices are decayed."""
    if options.optimizer == 'adamw':
        return _adamw([p for p in objective.parameters() if p.requires_grad], options)
    matrices = inner_matrices(objective.model)
    chosen = {id(p) for p in matrices}
    rest = [p for p in objective.parameters() if p.requires_grad and id(p) not in chosen]
    if not matrices:
        return _adamw(rest, options)
    muon = torch.optim.Muon(matrices, options.lr, options.weight_decay, _MOMENTUM, adjust_lr_fn='match_rms_adamw')
    return _Joined(muon, _adamw(rest, options)) if rest else muon


def inner_matrices(model: InstructVLA) -> list[nn.Parameter]:
    """Trained matrices of linear layers and adapters: no embeddings, no convolutions, no thin ones."""
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    every = {id(p): p for m in linear for p in m.parameters(recurse=False)}
    return [p for p in every.values() if p.requires_grad and p.dim() == 2 and min(p.shape) >= THIN]


def _adamw(trained: list[nn.Parameter], options: Training) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [
        {'params': [p for p in trained if p.dim() >= 2], 'weight_decay': options.weight_decay},
        {'params': [p for p in trained if p.dim() < 2], 'weight_decay': 0.0},
    ]
    # Fused: one pass over every weight instead of ten.
    return torch.optim.AdamW(groups, options.lr, (0.9, options.beta2), fused=True)


class _Joined(torch.optim.Optimizer):
    """Two optimisers as one, with one state that is saved and loaded; each goes on with its own groups."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self.parts = (first, second)
        super().__init__([*first.param_groups, *second.param_groups], {})
        self._share()

    def _share(self) -> None:
        first, second = self.parts
        count = len(first.param_groups)
        first.param_groups, second.param_groups = self.param_groups[:count], self.param_groups[count:]
        first.state = second.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what ``state_dict`` of such an optimiser returned."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move all weights by their gradients."""
        for part in self.parts:
            part.step()
