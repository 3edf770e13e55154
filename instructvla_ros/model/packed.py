"""Matrices in the order in which a CPU multiplies them fastest, for serving.

oneDNN multiplies in blocks. Given a matrix by rows it puts the blocks together at every call, which for few rows costs
as much as the product; a matrix that is packed once saves that. In float32 small ones gain nothing: calling the packed
product takes 12 microseconds more.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_PAYS_FROM = {torch.float32: 1 << 18, torch.bfloat16: 1 << 14}  # numbers in a matrix, on a CPU with AVX-512

_mkldnn = torch.ops.mkldnn  # what torch.compile itself uses for linear layers on a CPU


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch, on this machine, multiplies packed matrices of a number format, and gets it right."""
    try:
        weight, x = torch.ones(32, 64, dtype=dtype), torch.ones(3, 64, dtype=dtype)
        return bool((multiply(x, pack(weight), None) == 64).all())
    except (AttributeError, RuntimeError):  # another build of torch, or no such kernel
        return False


def pays_from(dtype: torch.dtype) -> int:
    """Numbers in a matrix of a format from which packing pays on this machine; ``sys.maxsize`` where none does.

    Without AVX-512 a product of many rows may be slower packed than by rows: there nothing pays.
    """
    return _PAYS_FROM.get(dtype, sys.maxsize) if 'AVX512' in torch.backends.cpu.get_cpu_capability() else sys.maxsize


def pack(weight: Tensor) -> Tensor:
    """An opaque copy of a matrix (out, in) for :func:`multiply`."""
    out: Tensor = _mkldnn._reorder_linear_weight(weight.detach().contiguous())
    return out


def multiply(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., in) times a packed matrix (out, in), plus bias (out,): (..., out).

    The packed product has no derivative: where x wants a gradient the matrix is unpacked, which takes longer.
    """
    if x.requires_grad and torch.is_grad_enabled():
        return F.linear(x, packed.to_dense(), bias)
    out: Tensor = _mkldnn._linear_pointwise(x, packed, bias, 'none', [], '')
    return out


class PackedLinear(nn.Module):
    """A linear layer that has its matrix packed only: for inference, not for training or saving.

    Args:
        layer: on a CPU. Its matrix is copied; the layer itself is not changed.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.packed = pack(layer.weight)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out), in the number format of the layer."""
        return multiply(x, self.packed, self.bias)
