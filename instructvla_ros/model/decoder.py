"""Pre-norm rotary decoder shared by the VLM (Qwen2) and the action expert (Llama).

The layers are those of ``transformers`` (same parameter names); the loop over them and its arithmetic are ours, so that
the gate, the mask, the cache and the rows that are needed are arguments instead of hidden state, and so that a model of
a few million parameters does not spend its time between the operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .config import Adapters, Expert, Language
from .lora import Gate, adapt, apply


class KVCache:
    """Keys and values of every layer in buffers of fixed capacity; ``length`` says how much is valid.

    Cropping is setting ``length``. Buffers never move, so their addresses may be captured in a CUDA graph.

    Args:
        data: (layers, 2, B, heads, capacity, dim).
    """

    def __init__(self, data: Tensor) -> None:
        self.data = data
        self.capacity = data.shape[4]
        self.length = 0
        self._layers = [layer.unbind(0) for layer in data.unbind(0)]

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write (B, heads, N, dim) behind ``length`` and return everything up to there (``length`` is not moved).

        Keys with a gradient are returned but not kept.
        """
        start, count = self.length, key.shape[2]
        end = start + count
        if end > self.capacity:
            raise ValueError(f'KV cache holds {self.capacity} positions, {end} are needed')
        if key.requires_grad:  # written in place, the buffer would carry this graph into the next call
            kept = self.data[layer, :, :, :, :start]
            return torch.cat((kept[0], key), dim=2), torch.cat((kept[1], value), dim=2)
        keys, values = self._layers[layer]
        keys.narrow(2, start, count).copy_(key)
        values.narrow(2, start, count).copy_(value)
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)

    def advance(self, count: int) -> None:
        """Count the positions that a pass has appended to every layer."""
        self.length += count

    def copy_prefix(self, other: KVCache, length: int) -> None:
        """Take over the first ``length`` positions of another cache."""
        self.data[:, :, :, :, :length] = other.data[:, :, :, :, :length]
        self.length = length


class PlacedCache(KVCache):
    """A cache written at the places a tensor names. Whole buffers are returned: a mask has to say what is valid.

    No size depends on a number that only the host knows, so a captured pass may go on anywhere.

    Args:
        data: as of :class:`KVCache`. places: (N,) positions that the N tokens of the next pass take.
    """

    def __init__(self, data: Tensor, places: Tensor) -> None:
        super().__init__(data)
        self.places = places

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write (B, heads, N, dim) at the places and return the whole buffers."""
        keys, values = self._layers[layer]
        keys.index_copy_(2, self.places, key)
        values.index_copy_(2, self.places, value)
        return keys, values

    def advance(self, count: int) -> None:
        """The places already say where a pass goes."""


class Decoder(nn.Module):
    """Stack of decoder layers with a final norm.

    Args:
        layers: ``transformers`` decoder layers (Qwen2 or Llama). norm: the final RMS norm.
        heads, kv_heads, head_dim: of the attention. rope_theta: base of the rotary frequencies.
        dropout: of the attention weights, training only.
    """

    def __init__(
        self,
        layers: list[nn.Module],
        norm: nn.Module,
        heads: int,
        kv_heads: int,
        head_dim: int,
        rope_theta: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.rope_theta, self.dropout = rope_theta, dropout
        self.checkpointing = False
        self.round_frequencies = False
        self._tables: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    def new_cache(self, batch: int, capacity: int, like: Tensor) -> KVCache:
        """Empty cache for ``capacity`` positions with dtype and device of ``like``."""
        shape = (len(self.layers), 2, batch, self.kv_heads, capacity, self.head_dim)
        return KVCache(torch.zeros(shape, dtype=like.dtype, device=like.device))

    def rotary(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos, sin (..., N, 1, head_dim) of positions (..., N); frequencies in float32 whatever the weights are."""
        ramp = torch.arange(0, self.head_dim, 2, device=positions.device, dtype=torch.float32) / self.head_dim
        frequencies = 1.0 / (self.rope_theta**ramp)
        if self.round_frequencies:
            frequencies = frequencies.bfloat16().float()
        angles = positions[..., None].float() * frequencies
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(-2)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def _turn(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`rotary` with the signs that :func:`_rotate` wants."""
        cos, sin = self.rotary(positions, like.dtype)
        first, second = sin.chunk(2, dim=-1)
        return cos, torch.cat((-first, second), dim=-1)

    def _turn_from(self, past: int, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`_turn` of positions past .. past + count - 1, from a table."""
        end = past + count
        if torch.compiler.is_compiling():
            return self._turn(torch.arange(past, end, device=like.device), like)
        size = max(512, 1 << (end - 1).bit_length())
        # A table is never replaced: a captured graph may read it for as long as the model lives.
        key = (size, like.device, like.dtype, self.round_frequencies)
        if key not in self._tables:
            with torch.inference_mode(False):
                self._tables[key] = self._turn(torch.arange(size, device=like.device), like)
        cos, sin = self._tables[key]
        return cos.narrow(0, past, count), sin.narrow(0, past, count)

    def forward(
        self,
        x: Tensor,
        *,
        gate: Gate = None,
        mask: Tensor | None = None,
        causal: bool = True,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Run the stack.

        Args:
            x: (B, N, d) embeddings.
            gate: what the adapters contribute (:data:`~.lora.Gate`).
            mask: bool (True: may attend) or additive float, broadcastable to (B, heads, N, past + N); replaces
                ``causal``.
            causal: attend to the past only; with False and no mask everything sees everything.
            positions: (N,) or (B, N) rotary positions; default past .. past + N - 1.
            cache: keys and values of earlier positions; this call appends its own.
            rows: (B, R) indices into N whose output is wanted. The last layer computes only those.

        Returns:
            (B, N, d), or (B, R, d) with ``rows``, after the final norm.
        """
        past, n = (cache.length if cache else 0), x.shape[1]
        cos, sin = self._turn_from(past, n, x) if positions is None else self._turn(positions, x)
        if mask is None and causal and past and n > 1:
            keys = torch.arange(past + n, device=x.device)
            mask = keys <= keys[past:, None]
        # A kernel flag, not a mask, for the plain triangle; one new row may see the whole past.
        triangle = mask is None and causal and n > 1
        if mask is not None and mask.is_floating_point():
            mask = mask.to(x.dtype)
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            chosen = rows if index == last else None
            args = (layer, index, x, cos, sin, gate, mask, triangle, cache, chosen)
            if self.checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(self._layer, *args, use_reentrant=False)
            else:
                x = self._layer(*args)
        if cache is not None:
            cache.advance(n)
        return _normalize(self.norm, x)

    def _layer(
        self,
        layer: Any,
        index: int,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        gate: Gate,
        mask: Tensor | None,
        triangle: bool,
        cache: KVCache | None,
        rows: Tensor | None,
    ) -> Tensor:
        attention = layer.self_attn
        h = _normalize(layer.input_layernorm, x)
        key = _rotate(self._heads(apply(attention.k_proj, h, gate)), cos, sin).transpose(1, 2)
        value = self._heads(apply(attention.v_proj, h, gate)).transpose(1, 2)
        if cache is not None:
            key, value = cache.append(index, key, value)
        if rows is not None:
            x, h, gate, cos, sin, mask = self._pick(rows, x, h, gate, cos, sin, mask, triangle, key.shape[2])
            triangle = False
        query = _rotate(self._heads(apply(attention.q_proj, h, gate)), cos, sin).transpose(1, 2)
        out = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=triangle,
            enable_gqa=self.kv_heads != self.heads,
        )
        x = x + apply(attention.o_proj, out.transpose(1, 2).flatten(2), gate)
        h = _normalize(layer.post_attention_layernorm, x)
        mlp = layer.mlp
        inner = F.silu(apply(mlp.gate_proj, h, gate)) * apply(mlp.up_proj, h, gate)
        return x + apply(mlp.down_proj, inner, gate)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, self.head_dim)

    @staticmethod
    def _pick(
        rows: Tensor,
        x: Tensor,
        h: Tensor,
        gate: Gate,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        triangle: bool,
        keys: int,
    ) -> tuple[Tensor, Tensor, Gate, Tensor, Tensor, Tensor | None]:
        batch, n = x.shape[:2]
        take = rows[:, :, None]
        if isinstance(gate, Tensor):
            gate = gate.gather(1, take.expand(-1, -1, gate.shape[-1]))
        if triangle:
            mask = (torch.arange(keys, device=x.device) <= take)[:, None]
        elif mask is not None:
            wide = mask.expand(batch, mask.shape[1] if mask.dim() == 4 else 1, n, keys)
            mask = wide.gather(2, take[:, None].expand(-1, wide.shape[1], -1, keys))
        angle = take[..., None].expand(-1, -1, -1, cos.shape[-1])
        cos, sin = (t.expand(batch, n, 1, -1).gather(1, angle) for t in (cos, sin))
        index = take.expand(-1, -1, x.shape[-1])
        return x.gather(1, index), h.gather(1, index), gate, cos, sin, mask


def qwen2_decoder(sizes: Language, adapters: Adapters) -> Decoder:
    """Decoder of the VLM, its linears adapted when ``adapters.count`` is not 0."""
    from transformers.models.qwen2.modeling_qwen2 import Qwen2Config, Qwen2DecoderLayer, Qwen2RMSNorm

    config = Qwen2Config(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        rms_norm_eps=sizes.rms_norm_eps,
    )
    layers: list[nn.Module] = [Qwen2DecoderLayer(config, i) for i in range(sizes.layers)]
    if adapters.count:
        for layer in layers:
            adapt(layer, adapters)
    norm = Qwen2RMSNorm(sizes.hidden_size, eps=sizes.rms_norm_eps)
    decoder = Decoder(layers, norm, sizes.heads, sizes.kv_heads, sizes.head_dim, sizes.rope_theta, 0.0)
    decoder.round_frequencies = sizes.rope_bf16
    return decoder


def llama_decoder(sizes: Expert) -> Decoder:
    """Decoder of the action expert."""
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaDecoderLayer, LlamaRMSNorm

    config = LlamaConfig(
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        rms_norm_eps=sizes.rms_norm_eps,
    )
    layers: list[nn.Module] = [LlamaDecoderLayer(config, i) for i in range(sizes.layers)]
    norm = LlamaRMSNorm(sizes.hidden_size, eps=sizes.rms_norm_eps)
    dim = sizes.hidden_size // sizes.heads
    return Decoder(layers, norm, sizes.heads, sizes.heads, dim, sizes.rope_theta, sizes.dropout)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn heads x (B, N, heads, dim) by what :meth:`Decoder._turn` gives; a roll brings partners together."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def _normalize(norm: Any, x: Tensor) -> Tensor:
    """RMS norm of Qwen2 and Llama over the last dimension, in float32 whatever the weights are."""
    wide = x.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = (length * length / x.shape[-1] + norm.variance_epsilon).rsqrt()
    out: Tensor = norm.weight * (wide * scale).to(x.dtype)
    return out
