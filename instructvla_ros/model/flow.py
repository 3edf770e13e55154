"""Flow matching: the path between noise (t = 0) and actions (t = 1), its loss and its integration (spec. 5.7, 5.8)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SIGMA_MIN = 0.001


def sample_time(batch: int, generator: torch.Generator | None = None, device: torch.device | str = 'cpu') -> Tensor:
    """(B,) times t = 0.999 (1 - z), z ~ Beta(1.5, 1): most of them near the noise.

    Beta(1.5, 1) has the distribution function z^1.5, so z = u^(2/3) of a uniform u.
    """
    u = torch.rand(batch, generator=generator, device=generator.device if generator else device)
    return (0.999 * (1.0 - u ** (2.0 / 3.0))).to(device)


def interpolate(noise: Tensor, actions: Tensor, t: Tensor) -> Tensor:
    """Point of the path at t (B,): (1 - (1 - sigma) t) noise + t actions, (B, H, 7)."""
    t = t[:, None, None]
    return (1.0 - (1.0 - SIGMA_MIN) * t) * noise + t * actions


def target_velocity(noise: Tensor, actions: Tensor) -> Tensor:
    """Constant velocity of the path: actions - (1 - sigma) noise."""
    return actions - (1.0 - SIGMA_MIN) * noise


def flow_loss(velocity: Tensor, noise: Tensor, actions: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean squared error in float32.

    Args:
        velocity, noise, actions: (B, H, 7).
        valid: (B, H) bool, False on steps after the end of the episode; None counts every step as the reference does.
    """
    error = (velocity.float() - target_velocity(noise, actions).float()) ** 2
    if valid is None:
        return error.mean()
    weight = valid.to(error.dtype)[:, :, None].expand_as(error)
    return (error * weight).sum() / weight.sum().clamp(min=1.0)


def integrate(
    velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, steps: int, trace: list[Tensor] | None = None
) -> Tensor:
    """Forward Euler from noise (B, H, 7) at t = 0 to actions at t = 1, in float32.

    Args:
        velocity: (x (B, H, 7), t (B,)) -> (B, H, 7).
        steps: number of equal steps.
        trace: receives the velocity of every step.
    """
    x = noise.float()
    for k in range(steps):
        v = velocity(x, torch.full((len(x),), k / steps, device=x.device))
        if trace is not None:
            trace.append(v)
        x = x + v / steps
    return x
