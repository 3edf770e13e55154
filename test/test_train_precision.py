"""Mixed precision: what runs in bfloat16, and what does not."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointError, checkpoint

from instructvla_ros.training.precision import (
    FloatAttention,
    compute_alike,
    cpu_multiplies_bf16,
    mixed_precision,
    reduced,
)


def test_attention_computes_in_float32_inside_autocast_and_gives_its_type() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 8, requires_grad=True) for _ in range(3))
    exact = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    with torch.autocast('cpu', torch.bfloat16):
        rough = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        with FloatAttention():
            kept = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            product = q @ k.transpose(-1, -2)
    assert rough.dtype == kept.dtype == product.dtype == torch.bfloat16
    assert torch.equal(kept, exact.bfloat16()) and not torch.equal(rough, kept)
    kept.float().sum().backward()
    assert q.grad is not None and q.grad.dtype == torch.float32


def test_masks_of_both_kinds_pass() -> None:
    q = torch.randn(1, 2, 4, 8)
    seen = torch.ones(4, 4, dtype=torch.bool).tril()
    added = torch.zeros(4, 4).masked_fill(~seen, -torch.inf)
    with torch.autocast('cpu', torch.bfloat16), FloatAttention():
        a = F.scaled_dot_product_attention(q, q, q, attn_mask=seen)
        b = F.scaled_dot_product_attention(q, q, q, attn_mask=added.bfloat16())
    torch.testing.assert_close(a, b)


def test_without_autocast_nothing_changes() -> None:
    q = torch.randn(1, 2, 4, 8)
    with FloatAttention():
        out = F.scaled_dot_product_attention(q, q, q)
    assert torch.equal(out, F.scaled_dot_product_attention(q, q, q)) and out.dtype == torch.float32


def test_auto_follows_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mixed_precision('no') == 'no' and mixed_precision('bf16') == 'bf16'
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert mixed_precision('auto') == ('bf16' if cpu_multiplies_bf16() else 'no')
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: {'avx512_bf16': False, 'avx2': True}, raising=False)
    assert mixed_precision('auto') == 'no'
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: {'amx_bf16': True}, raising=False)
    assert mixed_precision('auto') == 'bf16'


def test_reduced_precision_ends_with_the_context() -> None:
    a = torch.randn(4, 4)
    with reduced('cpu'):
        assert (a @ a).dtype == torch.bfloat16
    assert (a @ a).dtype == torch.float32


def test_a_layer_that_is_computed_again_has_the_precision_it_had() -> None:
    torch.manual_seed(0)
    q = torch.randn(1, 2, 4, 8, requires_grad=True)

    def layer(x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x) @ x.transpose(-1, -2)

    with reduced('cpu'):
        kept = layer(q).float().sum()
        again = checkpoint(layer, q, use_reentrant=False).float().sum()
    (wanted,) = torch.autograd.grad(kept, q)
    with pytest.raises(CheckpointError):
        torch.autograd.grad(again, q, retain_graph=True)
    with reduced('cpu'):
        again = checkpoint(compute_alike(layer), q, use_reentrant=False).float().sum()
    (found,) = torch.autograd.grad(again, q)
    assert torch.equal(found, wanted)
