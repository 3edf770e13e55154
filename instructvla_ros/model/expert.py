"""System 1: latent, views and arm state to the velocity of an action chunk (specification 5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..datatypes import PROPRIO_DIM, STEP_DIM
from ..errors import ObservationError
from .config import ModelConfig
from .decoder import llama_decoder
from .dino import FilmDino

MAX_PERIOD = 100.0


def time_embedding(t: Tensor, width: int) -> Tensor:
    """(B,) flow times in [0, 1] -> (B, width) float32: sines, then cosines (specification 5.3)."""
    half = width // 2
    ramp = torch.arange(half, device=t.device, dtype=torch.float32)
    angles = t.float()[:, None] * torch.exp(-ramp * (math.log(MAX_PERIOD) / (half - 1)))
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def two_layers(inputs: int, width: int) -> nn.Sequential:
    """Projector: linear, SiLU, linear."""
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))


class ActionEmbed(nn.Module):
    """Noisy steps (B, H, 7) and time (B,) to tokens (B, H, d)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(STEP_DIM, width)
        self.linear_2 = nn.Linear(2 * width, width)
        self.linear_3 = nn.Linear(width, width)

    def forward(self, steps: Tensor, t: Tensor) -> Tensor:
        """The time embedding comes first in the concatenation."""
        action = self.linear_1(steps.to(self.linear_1.bias.dtype))
        time = time_embedding(t, action.shape[-1])[:, None].expand(-1, action.shape[1], -1).to(action.dtype)
        mixed = torch.nn.functional.silu(self.linear_2(torch.cat((time, action), dim=-1)))
        out: Tensor = self.linear_3(mixed)
        return out


class FlowExpert(nn.Module):
    """Tokens [visual, latent, state, action] through a Llama stack; the action rows give the velocity."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, c, h = config.expert.hidden_size, config.language.hidden_size, config.horizon
        self.config = config
        self.dino = FilmDino(config.dino, c)
        self.visual_projector = two_layers(config.dino.width, d)
        self.latent_projector = two_layers(c, d)
        self.state_embed = two_layers(PROPRIO_DIM, d) if config.proprio else None
        self.action_embed = ActionEmbed(d)
        self.decoder = llama_decoder(config.expert)
        self.head = nn.Sequential(
            nn.Linear(d * h, 4 * d),
            nn.SiLU(),
            nn.Linear(4 * d, 2 * d),
            nn.SiLU(),
            nn.Linear(2 * d, d // 2),
            nn.SiLU(),
            nn.Linear(d // 2, STEP_DIM * h),
        )

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        return self.action_embed.linear_1.bias.dtype

    def prefix(self, latent: Tensor, views: Tensor, proprio: Tensor | None) -> Tensor:
        """Tokens (B, P, d) that do not depend on the actions.

        Args:
            latent: (B, queries, c). views: (B, V, 3, S, S). proprio: normalised (B, 8), or None without a state token.
        """
        return self.join(self.features(latent, views), latent, proprio)

    def features(self, latent: Tensor, views: Tensor) -> Tensor:
        """DINO features (B, patches * V, width) of views (B, V, 3, S, S) under latent (B, queries, c)."""
        if views.shape[1] != self.config.views:
            raise ObservationError(f'the model sees {self.config.views} views, got {views.shape[1]}')
        out: Tensor = self.dino(views, latent.to(self.dtype))
        return out

    def join(self, features: Tensor, latent: Tensor, proprio: Tensor | None) -> Tensor:
        """Project DINO features (B, patches * V, width), latent and proprio to the prefix (B, P, d)."""
        parts = [self.visual_projector(features), self.latent_projector(latent.to(self.dtype))]
        if self.state_embed is not None:
            if proprio is None or proprio.shape != (len(latent), PROPRIO_DIM):
                got = None if proprio is None else tuple(proprio.shape)
                raise ObservationError(f'the model reads the arm state: proprio must be (B, {PROPRIO_DIM}), got {got}')
            parts.append(self.state_embed(proprio.to(self.dtype))[:, None])
        return torch.cat(parts, dim=1)

    def allowed(self, rows: int, device: torch.device) -> Tensor:
        """(rows, rows) bool: visual sees visual; latent and state see visual, latent, state; actions see all."""
        visual = self.config.dino.patches * self.config.views
        prefix = self.config.prefix_length
        at = torch.arange(rows, device=device)
        block = (at >= visual).long() + (at >= prefix).long()
        return block[None, :] <= block[:, None]

    def mask(self, rows: int, device: torch.device, kind: str | None = None) -> Tensor:
        """Attention mask of the whole sequence for 'bias' (float 0/1, added) or 'block' (bool) (specification 5.6)."""
        allowed = self.allowed(rows, device)
        return allowed.float() if (kind or self.config.expert.mask) == 'bias' else allowed

    def velocity(
        self, prefix: Tensor, steps: Tensor, t: Tensor, mask: str | None = None, whole: bool = False
    ) -> Tensor:
        """Velocity (B, H, 7) float32 at noisy steps (B, H, 7) and times (B,); nothing is kept for the next call.

        Args:
            whole: compute the prefix in the last layer too, although nobody reads it there, as the reference does.
        """
        x = torch.cat((prefix, self.action_embed(steps, t)), dim=1)
        rows = None if whole else self._behind(prefix, x)
        hidden = self.decoder(x, mask=self.mask(x.shape[1], x.device, mask), rows=rows)
        return self.read(hidden[:, -self.config.horizon :])

    def velocity_of_draws(self, prefix: Tensor, steps: Tensor, t: Tensor) -> Tensor:
        """Velocities (B, R, H, 7) of R independent draws of noise and time per row, the prefix computed once.

        Only under the block mask, where the prefix does not see the actions: every draw sees the prefix and itself,
        at the rotary positions it would have alone. Equal to R calls of :meth:`velocity`.

        Args:
            prefix: (B, P, d). steps: (B, R, H, 7). t: (B, R).
        """
        (batch, draws, horizon), p = steps.shape[:3], prefix.shape[1]
        tokens = self.action_embed(steps.flatten(0, 1), t.flatten()).unflatten(0, (batch, draws)).flatten(1, 2)
        x = torch.cat((prefix, tokens), dim=1)
        allowed = self.allowed(x.shape[1], x.device)
        draw = (torch.arange(x.shape[1], device=x.device) - p).div(horizon, rounding_mode='floor').clamp(min=-1)
        allowed &= (draw[None, :] < 0) | (draw[None, :] == draw[:, None])
        steps_at = torch.arange(p, p + horizon, device=x.device).repeat(draws)
        positions = torch.cat((torch.arange(p, device=x.device), steps_at))
        hidden = self.decoder(x, mask=allowed, positions=positions, rows=self._behind(prefix, x))
        return self.read(hidden.unflatten(1, (draws, horizon)).flatten(0, 1)).unflatten(0, (batch, draws))

    @staticmethod
    def _behind(prefix: Tensor, x: Tensor) -> Tensor:
        """(B, N - P) positions of the actions in a sequence x (B, N, d)."""
        return torch.arange(prefix.shape[1], x.shape[1], device=x.device).expand(len(x), -1)

    def read(self, hidden: Tensor) -> Tensor:
        """Action rows (B, H, d) -> velocity (B, H, 7) float32."""
        out: Tensor = self.head(hidden.flatten(1)).float()
        return out.unflatten(-1, (self.config.horizon, STEP_DIM))
