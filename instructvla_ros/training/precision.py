"""Mixed precision on a CPU: attention stays in float32.

torch has a fast bfloat16 matrix product on CPUs with the instructions for it, but the backward pass of its bfloat16
attention on a CPU is several times slower than in float32 (measured with torch 2.13 on Zen 4 for heads of 32).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def mixed_precision(wanted: str) -> str:
    """``no`` or ``bf16``: what is ``wanted``; ``auto`` is bf16 if this machine has instructions for its products."""
    if wanted != 'auto':
        return wanted
    if torch.cuda.is_available():
        return 'bf16' if torch.cuda.is_bf16_supported(including_emulation=False) else 'no'
    return 'bf16' if cpu_multiplies_bf16() else 'no'


def cpu_multiplies_bf16() -> bool:
    """Whether the processor has instructions for products of bfloat16 (AVX512-BF16 or AMX)."""
    features: dict[str, Any] = getattr(torch.cpu, 'get_capabilities', dict)()
    return bool(features.get('avx512_bf16') or features.get('amx_bf16'))


@contextmanager
def reduced(device: str) -> Iterator[None]:
    """Autocast to bfloat16 on a kind of device, with attention in float32 on a CPU."""
    # Standing between every call and torch costs time, so only where it is needed.
    with torch.autocast(device, torch.bfloat16), FloatAttention() if device == 'cpu' else nullcontext():
        yield


def compute_alike(layer: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A layer that computes on a CPU as under :func:`reduced` whenever autocast is on.

    Layers whose activations are not kept are computed again in the backward pass. torch restores autocast for them,
    but not our mode.
    """

    def run(*args: Any) -> Tensor:
        with FloatAttention() if torch.is_autocast_enabled('cpu') else nullcontext():
            return layer(*args)

    return run


class FloatAttention(TorchFunctionMode):
    """While it is entered, attention under CPU autocast computes in float32; everything else is as it was."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Stand between the caller and torch; the result has the type that autocast would give."""
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or args[0].device.type != 'cpu':
            return func(*args, **kwargs)
        if not torch.is_autocast_enabled('cpu'):
            return func(*args, **kwargs)
        result = torch.get_autocast_dtype('cpu')
        with torch.autocast('cpu', enabled=False):
            full = [_float(a) for a in args]
            named = {k: _float(v) for k, v in kwargs.items()}
            return func(*full, **named).to(result)


def _float(value: Any) -> Any:
    """A floating point tensor as float32; anything else as it is (masks may be boolean)."""
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
