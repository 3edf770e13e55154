"""One number to minimise, and the parts it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ..model.flow import target_velocity
from ..model.instructvla import Batch, InstructVLA, Losses
from .examples import Labels
from .grounding import Grounding
from .precision import mixed_precision, reduced
from .settings import Training


class Objective(nn.Module):
    """Model and losses in one module, so that every parallel strategy sees a single forward pass."""

    def __init__(self, model: InstructVLA, options: Training, words: Sequence[int] = ()) -> None:
        super().__init__()
        self.model = model
        self.options = options
        self.sharded = False
        self.mixed = mixed_precision(options.precision) == 'bf16'
        weights = options.grounding
        self.weights = {n: getattr(weights, n) for n in ('pointing', 'patches', 'words', 'naming', 'latent')}
        self.grounding = Grounding(model.config, words) if any(self.weights.values()) else None

    def forward(self, batch: Batch, labels: Labels, general: Batch | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss, and its parts as detached scalars."""
        # Not accelerate's: it allows one precision per process. Held-out losses are always computed in full precision.
        with reduced(self.model.device.type) if self.mixed and self.training else nullcontext():
            return self._losses(batch, labels, general)

    def _losses(self, batch: Batch, labels: Labels, general: Batch | None) -> tuple[Tensor, dict[str, Tensor]]:
        losses = self.model(batch, mask_padding=self.options.mask_padding, length_groups=self.options.length_groups)
        parts = {'flow': losses.flow, 'ce': losses.ce}
        total = losses.total
        if self.options.path_weight and losses.velocity is not None and batch.actions is not None:
            parts['path'] = path_loss(losses, batch)
            total = total + self.options.path_weight * parts['path']
        if self.grounding is not None:
            for name, value in self.grounding(losses, labels, self.model.vlm.embed_tokens.weight).items():
                parts[name] = value
                total = total + self.weights[name] * value
        if general is not None:
            parts['general'] = self._spoken(general)
            total = total + parts['general']
        return total, {k: v.detach() for k, v in parts.items()}

    def _spoken(self, general: Batch) -> Tensor:
        if general.pixels is not None or not self.sharded:
            return self.model(general, length_groups=self.options.length_groups).ce
        # Processes that share the weights run the same layers: a black picture that nothing reads, for those without.
        size = self.model.config.vision.image_size
        unread = self.model.vlm.image_tokens(torch.zeros(1, 3, size, size, device=general.ids.device))
        return self.model(general, length_groups=self.options.length_groups).ce + 0.0 * unread.sum()


def path_loss(losses: Losses, batch: Batch) -> Tensor:
    """Mean square of the summed translation error along a chunk: where the hand ends up, not each step alone."""
    assert losses.velocity is not None and batch.actions is not None and batch.noise is not None
    noise = batch.noise
    actions = batch.actions
    if noise.dim() == 4:
        actions, noise = actions.repeat_interleave(noise.shape[1], dim=0), noise.flatten(0, 1)
    error = (losses.velocity - target_velocity(noise, actions))[..., :3]
    horizon = error.shape[1]
    return (torch.cumsum(error, dim=1) ** 2).mean() / horizon
