"""What a run needs to go on exactly where it stopped: weights, their average, the optimiser, the step."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, DataError

STATE, LOG = 'state.pt', 'log.jsonl'


class Average:
    """Exponential moving average of the trained weights; with decay 0 the weights themselves."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.values = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad} if decay else {}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """After a step. The decay grows from 0, so that the first weights are forgotten."""
        self.steps += 1
        decay = min(self.decay, (1.0 + self.steps) / (10.0 + self.steps))
        for name, parameter in module.named_parameters():
            if name in self.values:
                self.values[name].lerp_(parameter.detach(), 1.0 - decay)

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchange average and weights; a second call undoes it."""
        for name, parameter in module.named_parameters():
            if name in self.values:
                other = self.values[name].clone()
                self.values[name].copy_(parameter)
                parameter.copy_(other)


def save_state(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the state whole or not at all; the last good one survives a full disk.

    Raises:
        DataError: the disk is full or the folder not writable.
    """
    draft = folder / f'{STATE}.part'
    try:
        torch.save(dict(content), draft)
        os.replace(draft, folder / STATE)
    except (OSError, RuntimeError) as err:
        draft.unlink(missing_ok=True)
        raise DataError(f'the state of the run was not saved to {folder}: {err}; the last one is still good') from None


def load_state(folder: Path) -> dict[str, Any] | None:
    """State of an earlier run, or None. Nothing in the file is executed.

    Raises:
        CheckpointError: damaged.
    """
    file = folder / STATE
    if not file.is_file():
        return None
    try:
        content: dict[str, Any] = torch.load(file, map_location='cpu', weights_only=True)
        return content
    except Exception as err:  # unpickling a damaged file raises many kinds; all end in the same advice
        raise CheckpointError(f'{file} is damaged ({err}); remove it to start over from the beginning') from None


def read_log(file: Path) -> list[dict[str, Any]]:
    """Entries of ``log.jsonl``; a line cut off by a full disk or a killed process is left out."""
    out = []
    for line in file.read_text(encoding='utf-8').splitlines() if file.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and 'step' in entry and 'kind' in entry:
            out.append(entry)
    return out


class Log:
    """Numbers of a run: one JSON line per entry, and TensorBoard when it is installed."""

    def __init__(self, folder: Path, step: int) -> None:
        self.file = folder / LOG
        self._cut(step)
        self.started = time.monotonic()
        self.board: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self.board = SummaryWriter(str(folder / 'tensorboard'), purge_step=step)

    def _cut(self, step: int) -> None:
        """Drop entries of steps that will be made again."""
        if self.file.is_file():
            kept = [e for e in read_log(self.file) if e['step'] <= step]
            self.file.write_text(''.join(f'{json.dumps(e)}\n' for e in kept), encoding='utf-8')

    def write(self, step: int, kind: str, values: Mapping[str, float | Tensor]) -> None:
        """One entry; ``kind`` is 'train' or 'validation'."""
        numbers = {k: round(float(v), 6) for k, v in values.items()}
        entry = {'step': step, 'kind': kind, 'seconds': round(time.monotonic() - self.started, 2), **numbers}
        try:
            with open(self.file, 'a', encoding='utf-8') as file:
                file.write(json.dumps(entry) + '\n')
        except OSError as err:
            raise DataError(f'cannot write {self.file}: {err.strerror}; the last saved state is still good') from None
        if self.board is not None:
            for name, value in numbers.items():
                self.board.add_scalar(f'{kind}/{name}', value, step)

    def close(self) -> None:
        """Flush TensorBoard."""
        if self.board is not None:
            self.board.close()
