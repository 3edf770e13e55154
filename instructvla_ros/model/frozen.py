"""Matrices that training does not change, packed once for a CPU.

Every step multiplies by them forward and, transposed, backward. A product by rows takes 12 to 25 % longer than a packed
one (:mod:`~.packed`), and under autocast torch rounds a matrix that carries no gradient anew at every call.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .instructvla import InstructVLA
from .lora import LoraLinear
from .packed import can_pack, multiply, pack, pays_from

SMALLEST = 1 << 16
"""Numbers in a matrix below which a call costs what packing saves."""

MOST = 1 << 29
"""Numbers in all matrices above which none is packed: with both copies 4.3 GB in float32."""


class Frozen:
    """A matrix (out, in) and its packed copies, which are made anew if it changes after all."""

    def __init__(self, weight: Tensor) -> None:
        self._weight, self._version = weight, -1
        self._copies: dict[tuple[torch.dtype, bool], Tensor] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        return Frozen(deepcopy(self._weight, memo))

    def packed(self, dtype: torch.dtype, transposed: bool) -> Tensor:
        """Its packed copy in a number format."""
        if self._weight._version != self._version:
            self._copies.clear()
            self._version = self._weight._version
        copy = self._copies.get((dtype, transposed))
        if copy is None:
            weight = self._weight.detach().to(dtype)
            copy = self._copies[dtype, transposed] = pack(weight.t() if transposed else weight)
        return copy

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., in) -> (..., out), with the derivative for x, in the format of autocast where that is on."""
        dtype = torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else x.dtype
        if x.device.type != 'cpu' or not _packs(dtype):
            return F.linear(x, self._weight, bias)
        out: Tensor = _Product.apply(x.to(dtype), self, None if bias is None else bias.to(dtype))
        return out


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Frozen, bias: Tensor | None) -> Tensor:
        ctx.matrix = matrix
        return multiply(x.detach(), matrix.packed(x.dtype, False), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return multiply(gradient.contiguous(), ctx.matrix.packed(gradient.dtype, True), None), None, None


class FrozenLinear(nn.Linear):
    """A linear layer that training does not change; parameters and their names are those of the layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None, device='meta')
        self.weight, self.bias = layer.weight, layer.bias
        self.frozen = Frozen(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        return self.frozen.multiply(x, self.bias)


def _packs(dtype: torch.dtype) -> bool:
    if dtype not in _known:
        _known[dtype] = pays_from(dtype) <= MOST and can_pack(dtype)
    return _known[dtype]


_known: dict[torch.dtype, bool] = {}


def frozen_matrices(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Parent, name and layer of each linear layer that :func:`pack_frozen` would pack."""
    found = []
    for parent in model.modules():
        for name, layer in parent.named_children():
            if (
                isinstance(layer, nn.Linear)
                and layer.weight.numel() >= SMALLEST
                and not layer.weight.requires_grad
                and (layer.bias is None or not layer.bias.requires_grad)
            ):
                found.append((parent, name, layer))
    total = sum(layer.weight.numel() for _, _, layer in found)
    return found if total <= MOST and _packs(torch.float32) else []


def pack_frozen(model: InstructVLA) -> int:
    """Let a model on a CPU multiply by packed copies of the matrices that are not trained; how many.

    To be called when it is settled what is trained. Saving gives the same file as before.
    """
    if model.device.type != 'cpu':
        return 0
    matrices = frozen_matrices(model)
    for parent, name, layer in matrices:
        if isinstance(layer, LoraLinear):
            layer.frozen = Frozen(layer.weight)
        else:
            setattr(parent, name, FrozenLinear(layer))
    return len(matrices)
