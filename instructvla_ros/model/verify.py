"""Run golden vectors: the largest difference of every array against its tolerance (golden vectors' README)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError
from .checkpoint import Bundle, load, open_source
from .flow import flow_loss, interpolate
from .images import dino_pixels, join_views, siglip_pixels
from .instructvla import Batch, InstructVLA
from .released import entries

# Absolute, float32. 'x': times the largest reference value; 'r': relative.
TOLERANCES: dict[str, tuple[float, str]] = {
    'image_tokens': (5e-6, ''),
    'latent': (5e-5, ''),
    'reason_logits': (5e-5, ''),
    'dino_features': (1e-5, 'x'),
    'velocities': (5e-6, ''),
    'normalized_actions': (5e-6, ''),
    'actions': (5e-6, ''),
    'flow_loss': (5e-6, ''),
    'batch_ce_loss': (1e-5, 'r'),
    'batch_total_loss': (1e-5, 'r'),
}
GRADIENT = (1e-4, 'x')
EXACT = (0.0, '')
MASKS = {'': 'bias', '_blockwise': 'block'}


@dataclass(frozen=True)
class Check:
    """One compared array. ``difference`` and ``tolerance`` are absolute; nan when the shapes differ."""

    array: str
    difference: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Within tolerance."""
        return bool(self.difference <= self.tolerance)


@dataclass(frozen=True)
class CaseReport:
    """All checks of one golden directory. In JSON a difference of unequal text and a tolerance not set are null."""

    case: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Every array within tolerance, and at least one was there."""
        return bool(self.checks) and all(c.ok for c in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        arrays = {
            c.array: {'difference': _finite(c.difference), 'tolerance': _finite(c.tolerance), 'ok': c.ok}
            for c in self.checks
        }
        return {'case': self.case, 'ok': self.ok, 'arrays': arrays}


def golden_cases(folder: str | Path) -> list[Path]:
    """The golden directories in ``folder``, or ``folder`` itself.

    Raises:
        CheckpointError: there is no golden.npz.
    """
    root = Path(folder)
    found = [root] if (root / 'golden.npz').is_file() else sorted(p.parent for p in root.glob('*/golden.npz'))
    if not found:
        raise CheckpointError(f'no golden.npz in {root} or in the folders in it')
    return found


def verify(case: Path, *, fast: bool = False, training: bool = True, dtype: torch.dtype = torch.float32) -> CaseReport:
    """Run every golden array of one case on the CPU.

    Args:
        case: checkpoint of either format with ``golden.npz``.
        fast: use the fast inference path instead of the plain one.
        training: also losses and gradients of the training batch (float32 only).
        dtype: in another number format than float32 the differences are reported without a verdict.
    """
    golden = dict(np.load(case / 'golden.npz', allow_pickle=False))
    views = 2 if 'wrist_image' in golden else 1
    bundle = load(case, views=views, dtype=dtype)
    checks = list(_inference(bundle, golden, _fast(bundle.model) if fast else _plain(bundle.model)))
    if dtype != torch.float32:
        checks = [Check(c.array, c.difference, float('inf')) for c in checks]
    elif training and 'batch_input_ids' in golden:
        checks += _training(bundle, golden)
    return CaseReport(case.name, tuple(checks))


def compare(array: str, ours: Any, reference: Any, tolerance: tuple[float, str]) -> Check:
    """Largest absolute difference; the tolerance is made absolute. Text and ids: 0 when equal, infinity when not."""
    if isinstance(ours, Tensor):
        ours = ours.detach().float() if ours.is_floating_point() else ours.detach()
    ours, reference = np.asarray(ours), np.asarray(reference)
    limit, kind = tolerance
    if ours.shape != reference.shape or reference.dtype.kind in 'US':
        same = ours.shape == reference.shape and bool(np.all(ours == reference))
        return Check(array, 0.0 if same else float('inf'), 0.0)
    scale = 1.0 if not kind else float(np.max(np.abs(reference), initial=0.0))
    difference = np.max(np.abs(ours.astype(np.float64) - reference.astype(np.float64)), initial=0.0)
    return Check(array, float(difference), limit * scale)


@dataclass(frozen=True)
class _Path:
    """The calls of one inference path, so that both are verified by the same code."""

    image_tokens: Callable[[Tensor], Tensor]
    sentence: Callable[[Tensor, Tensor, int, list[Tensor]], list[int]]
    latent: Callable[[Tensor, Tensor], Tensor]
    chunk: Callable[[Tensor, Tensor, Tensor | None, Tensor, str, list[Tensor]], Tensor]


def _plain(model: InstructVLA) -> _Path:
    return _Path(
        model.vlm.image_tokens,
        lambda ids, pixels, end, logits: model.sentence(ids, pixels, end_id=end, logits=logits)[0],
        model.latent,
        lambda c, v, p, n, mask, trace: model.chunk(c, v, p, n, mask=mask, trace=trace),
    )


def _fast(model: InstructVLA) -> _Path:
    from .fast import FastPath

    engine = FastPath(model)
    return _Path(
        model.vlm.image_tokens,
        lambda ids, pixels, end, logits: engine.sentence(engine.begin(pixels), ids, end_id=end, logits=logits)[0],
        lambda ids, pixels: engine.latent(engine.begin(pixels), ids),
        lambda c, v, p, n, mask, trace: engine.chunk(c, v, p, n, mask=mask, trace=trace),
    )


@torch.no_grad()
def _inference(bundle: Bundle, golden: dict[str, Any], path: _Path) -> Iterator[Check]:
    model, prompts, config = bundle.model, bundle.prompts, bundle.config
    frames = [golden['image'], golden['wrist_image']] if config.views == 2 else [golden['image']]
    pixels = torch.from_numpy(siglip_pixels(join_views(frames), config.vision.image_size))[None]
    views = torch.from_numpy(np.stack([dino_pixels(f, config.dino.image_size) for f in frames]))[None]
    statistics, instruction = bundle.dataset(), str(golden['instruction'])
    yield compare('dino_pixels', views[0], golden['dino_pixels'], EXACT)
    yield compare('image_tokens', path.image_tokens(pixels), golden['image_tokens'], TOLERANCES['image_tokens'])
    response = None
    if 'reason_prompt_ids' in golden:
        prompt = prompts.reason(instruction)[None]
        yield compare('reason_prompt_ids', prompt, golden['reason_prompt_ids'], EXACT)
        logits: list[Tensor] = []
        tokens = path.sentence(torch.from_numpy(prompt), pixels, prompts.end_id, logits)
        yield compare('reason_token_ids', tokens, golden['reason_token_ids'], EXACT)
        yield compare('reason_logits', torch.cat(logits), golden['reason_logits'], TOLERANCES['reason_logits'])
        response = prompts.response(tokens, 'reference')
        yield compare('response', response, golden['response'], EXACT)
    ids = prompts.action(instruction, response)[None]
    yield compare('input_ids', ids, golden['input_ids'], EXACT)
    # A sentence that differs is reported above; what follows is compared on the reference's own prompt.
    latent = path.latent(torch.from_numpy(golden['input_ids']), pixels)
    yield compare('latent', latent, golden['latent'], TOLERANCES['latent'])
    features = model.expert.dino(views, latent)
    yield compare('dino_features', features, golden['dino_features'], TOLERANCES['dino_features'])
    proprio = None
    if config.proprio:
        normalized = statistics.normalize_proprio(golden['proprio'])
        yield compare('proprio_normalized', normalized, golden['proprio_normalized'], EXACT)
        proprio = torch.from_numpy(normalized.astype(np.float32))[None]
    noise = torch.from_numpy(golden['noise'])
    x0, x1, t = (torch.from_numpy(golden[k]) for k in ('train_x0', 'train_actions', 'train_t'))
    prefix = model.expert.prefix(latent, views, proprio)
    for suffix, mask in MASKS.items():
        trace: list[Tensor] = []
        raw = path.chunk(latent, views, proprio, noise, mask, trace)[0]
        finished = statistics.finish(raw.numpy())
        arrays = {
            'velocities': torch.stack(trace).flatten(2),
            'normalized_actions': finished,
            'actions': statistics.unnormalize(finished),
            'flow_loss': flow_loss(model.expert.velocity(prefix, interpolate(x0, x1, t), t, mask), x0, x1),
        }
        for name, value in arrays.items():
            yield compare(name + suffix, value, golden[name + suffix], TOLERANCES[name])


def _training(bundle: Bundle, golden: dict[str, Any]) -> Iterator[Check]:
    model, prompts, config = bundle.model, bundle.prompts, bundle.config
    dialogs = json.loads(str(golden['batch_dialogs']))
    ids, labels = prompts.collate([prompts.dialog(d) for d in dialogs])
    yield compare('batch_input_ids', ids, golden['batch_input_ids'], EXACT)
    yield compare('batch_labels', labels, golden['batch_labels'], EXACT)
    yield compare('batch_attention_mask', ids != prompts.pad_id, golden['batch_attention_mask'], EXACT)
    count = len(dialogs)
    pixels = torch.from_numpy(siglip_pixels(golden['batch_frame'], config.vision.image_size))[None]
    views = torch.from_numpy(golden['dino_pixels'])[None]
    proprio = torch.from_numpy(golden['batch_proprio_normalized'])[:, 0] if config.proprio else None
    x0, x1, t = (torch.from_numpy(golden[k]) for k in ('batch_x0', 'batch_actions', 'batch_t'))
    batch = Batch(
        ids=torch.from_numpy(ids),
        labels=torch.from_numpy(labels),
        pixels=pixels.expand(count, -1, -1, -1),
        views=views.expand(count, -1, -1, -1, -1),
        actions=x1,
        proprio=proprio,
        noise=x0,
        t=t,
    )
    for suffix, mask in reversed(MASKS.items()):  # 'bias' last: the stored gradients are its
        model.zero_grad()
        losses = model(batch, mask=mask)
        for name, value in (('batch_ce_loss', losses.ce), ('batch_total_loss', losses.total)):
            yield compare(name + suffix, value.item(), golden[name + suffix], TOLERANCES[name])
    losses.total.backward()
    ours = _gradients(model)
    for key in sorted(k for k in golden if k.startswith('grad:')):
        name = key.removeprefix('grad:')
        yield compare(key, ours(name), golden[key], GRADIENT)
    model.zero_grad()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _gradients(model: InstructVLA) -> Callable[[str], Any]:
    """Look up our gradient by the reference's parameter name; for the vocabulary tables the rows of the queries."""
    prefixes = {'action_model': 'action_model.', 'language_model': 'vlm.language_model.'}
    table = {prefixes[e.group] + e.key: e for e in entries(model.config) if e.group in prefixes}
    parameters = dict(model.named_parameters())

    def look_up(name: str) -> Any:
        piece = table[name].pieces[-1]  # of an embedding: the query rows
        gradient = parameters[piece.name].grad
        if gradient is None:
            return np.zeros(0)
        if piece.target is not None:
            gradient = gradient.narrow(piece.dim, piece.target[0], piece.target[1] - piece.target[0])
        return gradient.numpy()

    return look_up


def describe(path: str | Path, *, views: int | None = None, tokenizer: str | Path | None = None) -> dict[str, Any]:
    """What ``checkpoint inspect`` shows: format, variant, sizes, parameter counts, datasets, unused tensors."""
    from ..config import to_dict
    from .tensors import fold

    source = open_source(path, views=views, tokenizer=tokenizer)
    parts: dict[str, int] = {}
    for name, tensor in source.tensors.items():
        part = '.'.join(name.split('.')[:2])
        parts[part] = parts.get(part, 0) + tensor.numel()
    return {
        'origin': source.origin,
        'revision': source.revision,
        'stage': source.config.stage,
        'parameters': sum(parts.values()),
        'parts': parts,
        'dtypes': sorted({str(t.dtype).removeprefix('torch.') for t in source.tensors.values()}),
        'datasets': sorted(source.statistics),
        'unused': fold(source.unused),
        'config': to_dict(source.config),
    }
