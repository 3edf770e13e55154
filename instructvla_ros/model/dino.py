"""DINOv2 with registers, FiLM-conditioned by the mean latent, up to an explicit tap block (specification 5.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ObservationError
from .config import Dino
from .stem import patch_projection


class Attention(nn.Module):
    """Self-attention with one fused qkv product."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, d) -> (B, N, d)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class LayerScale(nn.Module):
    """Learned factor per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Scale the last dimension."""
        return x * self.gamma


class Mlp(nn.Module):
    """Two layers with GELU (erf)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, d) -> (B, N, d)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class FilmBlock(nn.Module):
    """Transformer block with FiLM between the attention residual and the MLP residual."""

    def __init__(self, width: int, heads: int, condition: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)
        self.ls2 = LayerScale(width)
        self.scale = nn.Linear(condition, width)
        self.shift = nn.Linear(condition, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (n, tokens, d), condition (n, c)."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        x = x * (1 + self.scale(condition)[:, None]) + self.shift(condition)[:, None]
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Pictures to patch tokens."""

    def __init__(self, stem: str, patch: int, width: int) -> None:
        super().__init__()
        self.proj = patch_projection(stem, patch, width)

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, 3, S, S) -> (n, patches, d)."""
        out: Tensor = self.proj(pixels)
        return out.flatten(2).transpose(1, 2)


class FilmDino(nn.Module):
    """Views and mean latent to patch features: the raw output of block ``tap_block``, without the prefix tokens."""

    def __init__(self, config: Dino, condition: int) -> None:
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.randn(1, 1, config.width) * 1e-6)
        self.reg_token = nn.Parameter(torch.randn(1, config.registers, config.width) * 1e-6)
        self.pos_embed = nn.Parameter(torch.randn(1, config.patches, config.width) * 0.02)
        self.patch_embed = PatchEmbed(config.stem, config.patch_size, config.width)
        self.blocks = nn.ModuleList(
            FilmBlock(config.width, config.heads, condition) for _ in range(config.tap_block + 1)
        )

    def forward(self, pixels: Tensor, latent: Tensor) -> Tensor:
        """Patch-interleaved features of all views.

        Args:
            pixels: (B, V, 3, S, S). latent: (B, queries, c).

        Returns:
            (B, patches * V, width): patch 0 of view 0, patch 0 of view 1, ..., patch 1 of view 0, ...
        """
        size = self.config.image_size
        if pixels.dim() != 5 or tuple(pixels.shape[2:]) != (3, size, size):
            raise ObservationError(f'DINO pixels must be (B, views, 3, {size}, {size}), got {tuple(pixels.shape)}')
        batch, views = pixels.shape[:2]
        condition = latent.mean(1).repeat_interleave(views, dim=0)
        x = self.patch_embed(pixels.flatten(0, 1).to(self.cls_token.dtype)) + self.pos_embed
        # Prefix tokens carry no position (specification 5.2).
        prefix = torch.cat((self.cls_token, self.reg_token), dim=1).expand(len(x), -1, -1)
        x = torch.cat((prefix, x), dim=1)
        for block in self.blocks:
            x = block(x, condition)
        patches = x[:, prefix.shape[1] :].unflatten(0, (batch, views))
        return patches.transpose(1, 2).flatten(1, 2)
