"""Pictures to patch tokens: the single linear patch projection of the paper, or a few convolutions for small models."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .config import CONV_STRIDE


class ConvStem(nn.Module):
    """Overlapping convolutions, then non-overlapping patches: (n, 3, S, S) -> (n, width, S/patch, S/patch).

    A tower that has to learn to see from a few hundred thousand pictures finds edges and colours much sooner with
    it than with one linear map per patch (early convolutions: arXiv 2106.14881).
    """

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 8, 4, padding=2)
        self.second = nn.Conv2d(32, 64, 3, 2, padding=1)
        self.third = nn.Conv2d(64, 64, 3, 1, padding=1)
        self.last = nn.Conv2d(64, width, patch // CONV_STRIDE, patch // CONV_STRIDE)

    @property
    def weight(self) -> Tensor:
        """Of the last layer: its number format is that of the tower."""
        return self.last.weight

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, 3, S, S) -> (n, width, S/patch, S/patch)."""
        x = F.gelu(self.second(F.gelu(self.first(pixels))))
        out: Tensor = self.last(x + F.gelu(self.third(x)))
        return out


def patch_projection(stem: str, patch: int, width: int) -> nn.Module:
    """First layer of a vision tower, named by :data:`~.config.STEMS`."""
    return ConvStem(patch, width) if stem == 'conv' else nn.Conv2d(3, width, patch, patch)
