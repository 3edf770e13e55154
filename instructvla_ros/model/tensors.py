"""Reading tensor files safely, and saying in one message what does not fit."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from .config import ModelConfig
from .released import GROUPS, Piece, entries, ignorable

Groups = Mapping[str, Mapping[str, Tensor]]
FORMATS = {'float32': torch.float32, 'bfloat16': torch.bfloat16}


def number_format(name: str) -> torch.dtype:
    """Number format by name.

    Raises:
        CheckpointError: neither float32 nor bfloat16.
    """
    if name not in FORMATS:
        raise CheckpointError(f'number format {name!r}: use {" or ".join(FORMATS)}')
    return FORMATS[name]


def read_torch_file(file: Path) -> dict[str, dict[str, Tensor]]:
    """Memory-map a released ``.pt`` file: group -> key -> tensor. No code in the file is executed.

    Raises:
        CheckpointError: truncated, not a torch file, holds code or other objects, or lacks a group.
    """
    try:
        content = torch.load(file, map_location='cpu', weights_only=True, mmap=True)
    except FileNotFoundError:
        raise CheckpointError(f'no such checkpoint file: {file}') from None
    except pickle.UnpicklingError as err:
        # torch explains how to load it all the same; that advice is not passed on.
        found = re.search(r'GLOBAL (\S+)', str(err))
        reason = f'it calls {found[1]}' if found else 'it holds objects other than tensors'
        raise CheckpointError(
            f'{file} is not a plain tensor file and was not loaded, because loading it could run code: {reason}. '
            'Ask its author for a file that holds only tensors'
        ) from None
    except (RuntimeError, EOFError, ValueError, OSError) as err:
        size = file.stat().st_size if file.exists() else 0
        raise CheckpointError(
            f'{file} ({size / 1e9:.3f} GB) is truncated or not a torch checkpoint: {str(err).splitlines()[0]}. '
            'Download it again and compare the size'
        ) from None
    model = content.get('model') if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise CheckpointError(f"{file} has no entry 'model' with {', '.join(GROUPS)}: not an InstructVLA checkpoint")
    missing = [g for g in GROUPS if not isinstance(model.get(g), dict)]
    if missing:
        raise CheckpointError(f'{file} lacks the parts {", ".join(missing)} of an InstructVLA checkpoint')
    for group in GROUPS:
        for key, value in model[group].items():
            if not isinstance(value, Tensor):
                raise CheckpointError(f'{file}: {group}.{key} is a {type(value).__name__}, not a tensor')
    return {g: dict(model[g]) for g in GROUPS}


def check_released(groups: Groups, config: ModelConfig) -> list[str]:
    """Compare a released checkpoint with the names and shapes of ``config``.

    Returns:
        Keys that are there but not used: dead DINO blocks, pooling head, old extras.

    Raises:
        CheckpointError: every missing, unexpected and misshapen tensor, in one message.
    """
    wanted = {(e.group, e.key): e for e in entries(config)}
    present = {(g, k): tuple(t.shape) for g in GROUPS for k, t in groups[g].items()}
    missing, misshapen, unused = [], [], []
    for place, entry in wanted.items():
        name = '.'.join(place)
        if place not in present:
            if entry.pieces:
                missing.append(name)
        elif not entry.pieces:
            unused.append(name)
        elif present[place] != entry.shape:
            misshapen.append(f'{name}: {present[place]}, expected {entry.shape}')
    extra = [p for p in present if p not in wanted]
    unused += ['.'.join(p) for p in extra if ignorable(*p)]
    report(missing, ['.'.join(p) for p in extra if not ignorable(*p)], misshapen)
    return unused


def assemble(groups: Groups, config: ModelConfig) -> dict[str, Tensor]:
    """Our parameters from a checked released checkpoint; tensors that need no change stay memory-mapped views."""
    parts: dict[str, list[tuple[Piece, Tensor]]] = {}
    for entry in entries(config):
        for piece in entry.pieces:
            tensor = groups[entry.group][entry.key]
            if piece.source is not None:
                tensor = tensor.narrow(piece.dim, piece.source[0], piece.source[1] - piece.source[0])
            parts.setdefault(piece.name, []).append((piece, tensor))
    out = {}
    for name, found in parts.items():
        if len(found) == 1:
            out[name] = found[0][1]
        else:
            found.sort(key=lambda p: p[0].target or (0, 0))
            out[name] = torch.cat([t for _, t in found], dim=found[0][0].dim)
    return out


def check_names(present: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Compare names and shapes of our own format.

    Raises:
        CheckpointError: every missing, unexpected and misshapen tensor, in one message.
    """
    report(
        [n for n in wanted if n not in present],
        [n for n in present if n not in wanted],
        [f'{n}: {present[n]}, expected {s}' for n, s in wanted.items() if n in present and present[n] != s],
    )


def report(missing: Iterable[str], unexpected: Iterable[str], misshapen: Iterable[str]) -> None:
    """Raise one :class:`CheckpointError` that lists everything, layers folded to ranges; nothing when all is well."""
    lines = []
    for title, names in (('missing', list(missing)), ('unexpected', list(unexpected)), ('misshapen', list(misshapen))):
        if names:
            lines.append(f'{len(names)} {title}:')
            lines += [f'  {line}' for line in fold(names)]
    if lines:
        raise CheckpointError(
            'the checkpoint does not fit this variant of the model; nothing was loaded.\n' + '\n'.join(lines)
        )


def fold(names: Iterable[str]) -> list[str]:
    """Join names that differ only in the layer number: ``layers.{0-27}.mlp.up_proj.weight``."""
    groups: dict[str, list[int]] = {}
    for name in names:
        match = re.search(r'(?<=layers\.|blocks\.)\d+', name)
        key = name if match is None else f'{name[: match.start()]}{{}}{name[match.end() :]}'
        groups.setdefault(key, []).append(-1 if match is None else int(match.group()))
    return [k if v[0] < 0 else k.replace('{}', _ranges(sorted(v)), 1) for k, v in groups.items()]


def _ranges(numbers: list[int]) -> str:
    spans: list[list[int]] = []
    for n in numbers:
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    text = ','.join(str(a) if a == b else f'{a}-{b}' for a, b in spans)
    return text if len(numbers) == 1 else f'{{{text}}}'


def cast(tensors: dict[str, Tensor], dtype: torch.dtype, device: Any) -> dict[str, Tensor]:
    """Own copies in ``dtype`` on ``device``, one tensor at a time; the source dictionary is emptied on the way."""
    out = {}
    for name in list(tensors):
        tensor = tensors.pop(name)
        out[name] = tensor.to(device=device, dtype=dtype, copy=True).contiguous()
    return out
