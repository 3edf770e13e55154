"""Memory that serving a model takes on a GPU, from the sizes alone: nothing of it is allocated.

The pieces of the fast path run on torch's meta device, which knows shapes and no values, while every tensor that is
born and dies is counted. What a GPU takes on top is not counted: the CUDA context (about 0.5 GB), workspaces of
cuBLAS, and what the allocator rounds up. Attention is counted as the plain formula with its scores in memory; a fused
kernel needs less.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .config import ModelConfig
from .fast import merge_adapters
from .graphs import Graphs
from .instructvla import InstructVLA
from .static import BUCKET, StaticPath, padded
from .warmup import SESSIONS

META = torch.device('meta')
INSTRUCTION = 32  # tokens of the prompt beside image and queries; about 62 with the frame of the chat


class Births(TorchDispatchMode):
    """Counts the bytes of tensors born inside, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at what it made."""
        given = {id(t.untyped_storage()) for t in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if id(storage) not in given and storage not in self._known:
                self._known.add(storage)
                size = storage.nbytes()
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._died, size).atexit = False
        return out

    def _died(self, size: int) -> None:
        self.live -= size


def serving_memory(config: ModelConfig, dtype: torch.dtype, sessions: int = SESSIONS) -> dict[str, int]:
    """Bytes of serving one robot: weights, caches of ``sessions`` frames, and the largest intermediates.

    Returns:
        weights; caches; activations: of the sessions and of the chunk, which may run at the same time and are each as
        large as the largest of their pieces; total; and ``<piece> activations`` of every piece.
    """
    with META:
        model = InstructVLA(config)
    model = model.to(dtype).eval()
    merge_adapters(model)
    engine = StaticPath(model, Graphs(META))
    slot = engine._new_slot(1)
    v, t, d = config.vision, config.language, config.dino
    prompt = padded(v.image_tokens + INSTRUCTION + 30 + config.queries, BUCKET)
    rest = padded(config.max_new_tokens + config.queries + 16, BUCKET)
    rows = _empty(1, config.queries, dtype=torch.long)
    start, token = _empty(1, dtype=torch.long), _empty(1, 1, dtype=torch.long)
    latent = _empty(1, config.queries, t.hidden_size, dtype=dtype)
    views = _empty(1, config.views, 3, d.image_size, d.image_size)
    act = (latent, views, _empty(1, config.horizon, 7), *([_empty(1, 8)] if config.proprio else []))
    embedded = lambda n: _empty(1, n, t.hidden_size, dtype=dtype)  # noqa: E731
    peaks = {
        'vision tower': _peak(engine._see, _empty(1, 3, v.image_size, v.image_size)),
        'prompt': _peak(engine._read_whole, embedded(prompt), rows, *slot.state),
        'rest of a prompt': _peak(engine._read_on, embedded(rest), rows, start, *slot.state),
        'token': _peak(engine._speak, token, start, *slot.state),
        'chunk': _peak(engine._act, *act, steps=10, mask=config.expert.mask),
    }
    tensors = [*model.parameters(), *model.buffers()]
    found = {
        'weights': sum(x.nbytes for x in tensors),
        'caches': sessions * sum(x.nbytes for x in slot.state),
        'activations': sessions * max(p for name, p in peaks.items() if name != 'chunk') + peaks['chunk'],
    }
    found['total'] = sum(found.values())
    return found | {f'{name} activations': peak for name, peak in peaks.items()}


@torch.no_grad()
def _peak(work: Callable[..., Any], *arguments: Tensor, **options: Any) -> int:
    """Largest number of bytes alive at once, arguments and results included."""
    with Births() as births:
        work(*arguments, **options)
    return births.peak + sum(a.nbytes for a in arguments if a.dim() < 6)  # caches, six-dimensional, are counted apart


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [t for v in value.values() for t in _tensors(v)]
    if isinstance(value, (tuple, list)):
        return [t for v in value for t in _tensors(v)]
    return []
