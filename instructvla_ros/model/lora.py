"""LoRA layers with one or two fused adapters, and the gate that mixes them per token (specification 4).

The gate weights the adapters in rank space: ``y = W x + b + B (g * A x)`` with the A's of all adapters stacked to one
matrix and the B's side by side. That equals gating the input of each adapter up to rounding, and needs two products
instead of two per adapter.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import ADAPTED, Adapters
from .packed import PackedLinear, multiply, pack

Gate = Tensor | float | None
"""None: the base layer alone. float: every adapter with this factor. Tensor (B, N, count * rank): factor per token."""


class Multiplier(Protocol):
    """Multiplies by a base weight in a way of its own."""

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., in) -> (..., out)."""
        ...


class LoraLinear(nn.Linear):
    """Linear layer with ``count`` stacked adapters; parameter names of the base layer stay ``weight`` and ``bias``.

    ``lora_a`` (count * rank, in), ``lora_b`` (out, count * rank); adapter i owns rows/columns [i * rank, (i+1) * rank).
    """

    def __init__(self, inputs: int, outputs: int, bias: bool, adapters: Adapters) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.rank, self.count, self.dropout = adapters.rank, adapters.count, adapters.dropout
        total = adapters.rank * adapters.count
        self.lora_a: nn.Parameter | None = nn.Parameter(torch.empty(total, inputs))
        self.lora_b: nn.Parameter | None = nn.Parameter(torch.empty(outputs, total))
        self.packed: Tensor | None = None
        self.frozen: Multiplier | None = None
        self.reset_adapters()

    def reset_adapters(self) -> None:
        """A as a linear layer is initialised by default, B zero: no effect at start."""
        if self.lora_a is not None and self.lora_b is not None and not self.lora_a.is_meta:
            bound = 1.0 / math.sqrt(self.in_features)
            nn.init.uniform_(self.lora_a, -bound, bound)
            nn.init.zeros_(self.lora_b)

    def forward(self, x: Tensor, gate: Gate = None) -> Tensor:  # type: ignore[override]
        """x (B, N, in) -> (B, N, out)."""
        base = self.base(x)
        if gate is None or self.lora_a is None or self.lora_b is None:
            return base
        dropped = F.dropout(x, self.dropout) if self.training else x
        ranks = F.linear(dropped, self.lora_a)
        return base + F.linear(ranks * gate, self.lora_b)

    def base(self, x: Tensor) -> Tensor:
        """x (B, N, in) -> (B, N, out) without adapters."""
        if self.packed is not None:
            return multiply(x, self.packed, self.bias)
        if self.frozen is not None:
            return self.frozen.multiply(x, self.bias)
        return F.linear(x, self.weight, self.bias)

    def pack(self) -> None:
        """Keep the base weight only as :func:`~.packed.pack` stores it: for inference on a CPU."""
        if self.packed is None:
            self.packed = pack(self.weight)
            self.register_parameter('weight', None)

    @torch.no_grad()
    def merge(self, factor: float) -> None:
        """Add the adapters to the base weight for good; afterwards the layer is a plain one."""
        if self.lora_a is not None and self.lora_b is not None:
            # float32 product: rounding W + BA once is better than rounding BA first
            delta = self.lora_b.float() @ self.lora_a.float()
            self.weight.copy_((self.weight.float() + factor * delta).to(self.weight.dtype))
            self.lora_a = self.lora_b = None


def apply(layer: nn.Linear | PackedLinear, x: Tensor, gate: Gate) -> Tensor:
    """Run a linear layer, with its adapters when it has some; no hooks, which cost as much as a small product."""
    if isinstance(layer, LoraLinear):
        return layer.base(x) if gate is None else layer.forward(x, gate)
    if isinstance(layer, PackedLinear):
        return multiply(x, layer.packed, layer.bias)
    return layer.forward(x)


def adapt(layer: nn.Module, adapters: Adapters) -> None:
    """Replace the linears of a decoder layer named in :data:`~.config.ADAPTED` by :class:`LoraLinear`."""
    for path in ADAPTED:
        parent_name, name = path.split('.')
        parent = layer.get_submodule(parent_name)
        old = parent.get_submodule(name)
        if not isinstance(old, nn.Linear):
            raise TypeError(f'{path} is a {type(old).__name__}, expected a linear layer')
        new = LoraLinear(old.in_features, old.out_features, old.bias is not None, adapters)
        setattr(parent, name, new)


class AdapterGate(nn.Module):
    """Classifier of the base hidden state (B, N, d) -> softmax weights (B, N, count) in float32."""

    def __init__(self, width: int, adapters: Adapters) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = width
        for _ in range(adapters.gate_depth - 1):
            layers += [nn.Linear(inputs, adapters.gate_size), nn.ReLU(), nn.Dropout(adapters.gate_dropout)]
            inputs = adapters.gate_size
        layers.append(nn.Linear(inputs, adapters.count))
        self.layers = nn.Sequential(*layers)
        self.rank, self.scale = adapters.rank, adapters.scale

    def forward(self, hidden: Tensor) -> Tensor:
        """Softmax weights of the adapters for every token, (B, N, count) float32."""
        return torch.softmax(self.layers(hidden).float(), dim=-1)

    def rank_weights(self, hidden: Tensor) -> Tensor:
        """The same, times the LoRA scale, repeated over the ranks and in the dtype of ``hidden``: a :data:`Gate`."""
        return (self(hidden) * self.scale).repeat_interleave(self.rank, dim=-1).to(hidden.dtype)
